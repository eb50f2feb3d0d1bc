"""Classify a camera's images with OpenCV: print label, score and images per second.

    python3 camera.py resnet18.edgeres                          the first camera
    python3 camera.py resnet18.edgeres video.mp4 --headless     a file: every image, in order
    python3 camera.py resnet18.edgeres rtsp://10.0.0.7/stream
    python3 camera.py resnet18.edgeres "nvarguscamerasrc ! video/x-raw(memory:NVMM),width=1280,height=720 ! nvvidconv \\
        ! video/x-raw,format=BGRx ! videoconvert ! video/x-raw,format=BGR ! appsink drop=true max-buffers=1"

A thread reads all images of a camera, and the classifier gets the newest one when it is ready. Images in between are
dropped and counted. GStreamer pipelines need an OpenCV that was built with GStreamer, as JetPack's is; pip's is not.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2

from edgeres.errors import EdgeresError, EnvironmentError_, InputError
from edgeres.runtime import Classifier, Frame, Prediction

FORMATS = {1: "mono8", 3: "bgr8", 4: "bgra8"}


def open_camera(source: str) -> Any:
    """A ``cv2.VideoCapture`` of a camera's number, a file, a URL or a GStreamer pipeline.

    Raises:
        InputError: OpenCV cannot open it.
    """
    if source.isdecimal():
        camera = cv2.VideoCapture(int(source))
    elif "!" in source:
        camera = cv2.VideoCapture(source, cv2.CAP_GSTREAMER)
    else:
        camera = cv2.VideoCapture(source)
    if not camera.isOpened():
        camera.release()
        hint = "this OpenCV may lack GStreamer" if "!" in source else "check that it exists and is not in use"
        raise InputError("OpenCV cannot open this source", where=source, hint=hint)
    return camera


class Newest:
    """Iterates over a camera's images, always the newest one; others are dropped. It ends when the camera ends."""

    def __init__(self, camera: Any) -> None:
        self.dropped = 0
        self._camera, self._ended = camera, False
        self._image: Any = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read, name="camera", daemon=True)
        self._thread.start()

    def __iter__(self) -> Iterator[Any]:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._image is not None or self._ended)
                image, self._image = self._image, None
            if image is None:
                return
            yield image

    def close(self) -> None:
        with self._changed:
            self._ended = True
        self._thread.join()  # a camera must not be released while it is read

    def _read(self) -> None:
        while not self._ended:
            there, image = self._camera.read()
            with self._changed:
                if there:
                    self.dropped += self._image is not None
                    self._image = image
                else:
                    self._ended = True
                self._changed.notify()


def every(camera: Any) -> Iterator[Any]:
    """All images of a file."""
    while True:
        there, image = camera.read()
        if not there:
            return
        yield image


def frame_of(image: Any) -> Frame:
    """OpenCV's array as a Frame, which the classifier reads in place."""
    if image.ndim == 3 and image.shape[2] == 1:
        image = image[..., 0]
    return Frame(image, FORMATS[1 if image.ndim == 2 else image.shape[2]])


def show(image: Any, line: str) -> bool:
    """Show the image with a line of text; returns False when the user quits (q, Esc).

    Raises:
        EnvironmentError_: there is no screen, or this OpenCV has no windows.
    """
    cv2.putText(image, line, (8, 28), cv2.FONT_HERSHEY_SIMPLEX, 0.8, (0, 255, 0), 2)
    try:
        cv2.imshow("edgeres", image)
        return cv2.waitKey(1) & 0xFF not in (ord("q"), 27)
    except cv2.error as error:
        raise EnvironmentError_("OpenCV cannot show a window here", hint="use --headless") from error


def line_of(prediction: Prediction, per_second: float) -> str:
    return f"{prediction.label:24} {prediction.score:6.1%} {per_second:7.1f} images/s"


def run(classify: Classifier, images: Iterator[Any] | Newest, *, headless: bool) -> int:
    """Classify until the images end; returns their number."""
    count, started = 0, time.monotonic()
    for image in images:
        frame = frame_of(image)
        if not count:
            sys.stderr.write(f"frames: {classify.way(frame)}\n")
        prediction = classify(frame)
        count += 1
        line = line_of(prediction, count / (time.monotonic() - started))
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        if not headless and not show(image, line):
            break
    return count


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source", nargs="?", default="0", help="number, file, URL or GStreamer pipeline")
    parser.add_argument("--backend", default="auto", choices=("auto", "tensorrt", "rtx", "cuda", "cpu"))
    parser.add_argument("--headless", action="store_true", help="no window")
    choice = parser.parse_args(argv)
    try:
        with Classifier(choice.bundle, backend=choice.backend) as classify:
            classify.warm_up()
            sys.stdout.write(f"{classify.backend}\n")
            return watch(classify, choice.source, headless=choice.headless)
    except EdgeresError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    except KeyboardInterrupt:
        return 130


def watch(classify: Classifier, source: str, *, headless: bool) -> int:
    camera = open_camera(source)
    newest = None if Path(source).is_file() else Newest(camera)
    try:
        count = run(classify, newest or every(camera), headless=headless)
    finally:
        if newest is not None:
            newest.close()
        camera.release()
    if not count:
        raise InputError("no image was received", where=source)
    sys.stdout.write(f"{count} images, {newest.dropped if newest else 0} dropped\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
