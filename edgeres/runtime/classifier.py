"""Answer images with a bundle: the entry point for applications."""

from __future__ import annotations

import io
import os
import threading
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeAlias, TypeVar

import numpy as np

from edgeres.bundle import PIXELS, Bundle, steady
from edgeres.data.channels import Pixels
from edgeres.data.files import is_pil, read_image, read_pil
from edgeres.data.headers import bounded
from edgeres.data.preprocess import geometry, normalize, pixels_read
from edgeres.data.seen import PIXELS_KIND, Seen
from edgeres.errors import BundleError, InputError, UsageError
from edgeres.records import (
    CLASSIFICATION,
    F32,
    F64,
    U8,
    FrameSpec,
    ModelSpec,
    PixelReading,
    Prediction,
    Preprocess,
)
from edgeres.runtime.choose import Choice, open_backend, open_frames
from edgeres.runtime.engine import TensorRTRunner
from edgeres.runtime.frames import Frame, flat_bytes
from edgeres.runtime.health import Health, Watch
from edgeres.runtime.prepared import takes_bytes
from edgeres.runtime.runner import Backend, Feed
from edgeres.signing import Anyone, permit_for

if TYPE_CHECKING:
    from PIL.Image import Image

# An array is (H, W, 3) uint8 RGB, or (N,) uint8: the content of a file, as bytes are; a str or Path is a file.
Picture: TypeAlias = "U8 | str | Path | bytes | bytearray | memoryview | array[int] | Frame | Image"

# The first inference of a batch size sets shapes, the second records a CUDA graph, the third is as fast as later ones.
_WARM = 3

Answer = TypeVar("Answer")
Own = TypeVar("Own", bound="Predictor[Any]")


class Predictor(Generic[Answer]):
    """A bundle's INT8 network, ready to be called; a context manager. Subclasses say what its outputs mean.

    Any number of threads may use one at the same time. On a GPU, each gets an execution context and a stream of its
    own; on a CPU, all share one session.

    Args:
        bundle: directory of a bundle.
        backend: ``auto`` takes the first that runs here of ``tensorrt``, ``rtx``, and ONNX Runtime's ``cuda`` and
            ``cpu``; any other value names the only one to try.
        threads: per inference on the CPU; 0 takes every core.
        gpu: number of the GPU.
        health: whether some of the images are looked at for :meth:`health`.
        trust: a file of public keys; only a bundle that one of their owners signed is loaded, and no engine that was
            added later. None: any bundle, without version-compatible engines, which hold code for the CPU.
            :data:`~edgeres.runtime.ANYONE`: any bundle, and that code runs.

    Attributes:
        backend: name and version of what runs the network.
        passed_over: one line for each preferred backend, and each engine for frames, that does not run here.
        frames: the kinds of frame that go to the network as they are; others are prepared on the CPU. See :meth:`way`.
        labels, preprocess, spec: of the bundle.

    Raises:
        BundleError: the bundle is incomplete, was changed, has another task, or its network is not what its manifest
            says; with ``trust``, it is not signed, by another key, or was changed after it was signed.
        EngineError: the backend that was asked for cannot run here. An engine for another device or version is
            refused before it is loaded.
    """

    task: ClassVar[str]

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes that it scores; () where its answers are no classes."""
        return ()

    def __init__(
        self,
        bundle: str | Path | Bundle,
        *,
        backend: Choice = "auto",
        threads: int = 0,
        gpu: int = 0,
        health: bool = True,
        trust: str | Path | Anyone | None = None,
    ) -> None:
        def open_in(bundle: Bundle) -> tuple[ModelSpec, Seen | None, _Networks]:
            check_task(bundle, self.task)
            permit = permit_for(bundle, trust)
            seen = _seen(bundle) if health and bundle.has(PIXELS) else None
            runner, notes = open_backend(bundle, backend, threads, gpu, permit)
            try:
                by_frame, more = open_frames(bundle, runner, gpu, permit)
            except BaseException:
                runner.close()
                raise
            return bundle.manifest.model, seen, _Networks(runner, by_frame, notes + more)

        opened = open_in(bundle) if isinstance(bundle, Bundle) else steady(bundle, open_in, lambda old: old[2].close())
        spec, seen, self._networks = opened
        self._runner, self.passed_over = self._networks.prepared, self._networks.passed_over
        self.frames = tuple(self._networks.by_frame)
        self.labels = spec.labels
        self.preprocess = spec.preprocess
        self.spec = spec
        self._buffer = _InputBuffer(spec.preprocess, takes_bytes=takes_bytes(self._runner))
        self.backend = self._runner.name
        watched = health and self.preprocess.channels == 3  # its figures are of colours
        self._watch = Watch(seen, bgr=spec.preprocess.channel_order == "BGR") if watched else None

    def __call__(self, image: Picture) -> Answer:
        """Answer one image: an array (H, W, 3) uint8 RGB, an image of Pillow, a file, a file's bytes, or a
        camera's :class:`Frame`.

        Raises:
            InputError: it is no image; SourceError: a file or its bytes cannot be decoded.
        """
        return self.batch([image])[0]

    def batch(self, images: Iterable[Picture]) -> list[Answer]:
        """Answer several images; they may differ in size and in kind.

        Args:
            images: any iterable, also a generator, which is read to its end first; an array (N, H, W, 3) is N images.

        Raises:
            InputError: an array is not an image; SourceError: a file cannot be decoded.
        """
        images = _several(images)
        if not self.frames:
            return self._prepared(images)
        by_frame: dict[FrameSpec, dict[int, U8]] = {}
        for at, image in enumerate(images):
            if (laid := self._as_it_is(image)) is not None:
                by_frame.setdefault(laid[0], {})[at] = laid[1]
        answers: dict[int, Answer] = {}
        for frame, arrays in by_frame.items():
            rows = list(arrays.values())
            feed = rows[0][None] if len(rows) == 1 else np.stack(rows)
            answers |= zip(arrays, self._predict(feed, self._networks.by_frame[frame]), strict=True)
        left = [at for at in range(len(images)) if at not in answers]
        answers |= zip(left, self._prepared([images[at] for at in left]), strict=True)
        return [answers[at] for at in range(len(images))]

    def _prepared(self, images: Sequence[Picture]) -> list[Answer]:
        """The answers to images that are prepared on the CPU."""
        if not images:
            return []
        feed = self._buffer.of(len(images))
        for image, row in zip(images, feed, strict=True):
            self._fill(row, self.prepare(image), str(image.format) if isinstance(image, Frame) else "")
        return self._predict(feed, self._runner)

    @property
    def max_batch(self) -> int | None:
        """The largest batch that runs at once; larger ones are run in parts. None: any."""
        return self._runner.max_batch

    def way(self, image: Picture) -> str:
        """How this image gets to the network, in words: as it is, or prepared on the CPU and why."""
        if not isinstance(image, Frame):
            return "prepared on the CPU: it is no Frame"
        if not isinstance(self._runner, TensorRTRunner):
            return f"prepared on the CPU: the network runs on {self.backend}, not as an engine"
        for spec in self.frames:
            if image.laid_as(spec) is not None:
                return f"as it is: {spec} is prepared in the engine"
        asked = image.spec()
        if asked is None:
            return f"prepared on the CPU: no engine can take {str(image.format).lower()}"
        if self.preprocess.channels == 4:
            return "prepared on the CPU: no engine can take frames for a network of four channels"
        return f"prepared on the CPU: no engine takes it; edgeres engine BUNDLE --frame {asked} builds one"

    def _as_it_is(self, image: Picture) -> tuple[FrameSpec, U8] | None:
        """Which engine takes an image as it is, and the array for it."""
        if not isinstance(image, Frame):
            return None
        for spec in self.frames:
            if (laid := image.laid_as(spec)) is not None:
                if self._watch is not None and self._watch.wants():
                    self._watch.look(self.prepare(image), str(image.format))
                return spec, laid
        return None

    def prepare(self, image: Picture) -> U8:
        """The pixels that the network takes of an image, (h, w, 3) uint8: to read images in other threads.

        Raises:
            InputError: it is no image; SourceError: a file or its bytes cannot be decoded.
        """
        p = self.preprocess
        if isinstance(image, Frame):
            return geometry(image.pixels(p.reading, lambda size_px: pixels_read(size_px, p)), p)
        return geometry(_pixels(image, p.reading), p)

    def batch_of_prepared(self, images: Sequence[U8]) -> list[Answer]:
        """Answer what :meth:`prepare` gave."""
        if not images:
            return []
        feed = self._buffer.of(len(images))
        for pixels, row in zip(images, feed, strict=True):
            self._fill(row, pixels, "")
        return self._predict(feed, self._runner)

    def _fill(self, row: F32 | U8, pixels: U8, form: str) -> None:
        self._buffer.fill(row, pixels)
        if self._watch is not None and self._watch.wants():
            self._watch.look(pixels, form)

    def warm_up(self, batch: int = 1, threads: int = 1) -> None:
        """Run until later calls take their usual time.

        Args:
            batch: images per later call.
            threads: number of threads that will call at the same time; their execution contexts are made now.
        """
        if not (isinstance(batch, int) and isinstance(threads, int) and min(batch, threads) >= 1):
            raise UsageError(f"batch and threads are whole numbers of at least 1, found {batch!r} and {threads!r}")
        image = np.zeros_like(self._buffer.of(batch)).astype(self._runner.inputs[0].dtype, copy=False)
        feeds = [(self._runner, image)]
        feeds += [(one, np.zeros((batch, *spec.shape), np.uint8)) for spec, one in self._networks.by_frame.items()]
        together = threading.Barrier(threads)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for runner, feed in feeds:
                    for _ in range(_WARM):
                        together.wait()
                        runner.infer({runner.input_name: feed})
            except BaseException as error:
                together.abort()
                errors.append(error)

        others = [threading.Thread(target=work, name="edgeres-warm-up") for _ in range(threads - 1)]
        for thread in others:
            thread.start()
        work()
        for thread in others:
            thread.join()
        for error in errors:
            if not isinstance(error, threading.BrokenBarrierError):
                raise error

    def health(self) -> Health:
        """Whether the images so far look like those of the calibration, in words.

        Channels or chroma planes exchanged, too dark or bright, a frozen camera, another scale, gray, blurred. It may
        run the network on 32 images twice, and takes up to 0.1 s otherwise.

        Example:
            >>> print(classify.health())                     # doctest: +SKIP
            too dark: mean green 21, 113 in the calibration; check exposure and light
        """
        if self._watch is None:
            return Health(0, 0, note="nothing was looked at: the classifier was made with health=False")
        return self._watch.health(self._sureness)

    def close(self) -> None:
        """Free the network and its memory, after all threads that are using it have finished."""
        self._networks.close()

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _predict(self, feed: F32 | U8, runner: Backend) -> list[Answer]:
        outputs = runner.infer({runner.input_name: feed.astype(runner.inputs[0].dtype, copy=False)})
        return self.answers(outputs, runner)

    def answers(self, outputs: Feed, runner: Backend) -> list[Answer]:
        """One answer per image, from the arrays that a runner gave for a batch."""
        raise NotImplementedError

    def _sureness(self, images: Sequence[U8]) -> F64:
        """How sure the network is of each image, (h, w, 3) in the network's channel order; equal where it says not."""
        return np.zeros(len(images))


class Classifier(Predictor[Prediction]):
    """A bundle's INT8 network of scores of classes, ready to be called; :class:`Predictor` has its arguments.

    Example:
        >>> classify = Classifier("resnet18.edgeres")        # doctest: +SKIP
        >>> classify("photo.jpg").label                      # doctest: +SKIP
        'stop'
    """

    task = CLASSIFICATION

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the scores."""
        return self.labels

    def answers(self, outputs: Feed, runner: Backend) -> list[Prediction]:
        """The scores, logits and names of each image."""
        scores = outputs[runner.output_name].astype(np.float32, copy=False)
        return predictions(scores, self.labels, probabilities=self.spec.output == "probabilities")

    def _sureness(self, images: Sequence[U8]) -> F64:
        """The highest probability of each image."""
        feed, scores = self._buffer.of(1), []
        for image in images:
            self._buffer.fill(feed[0], image)
            scores.append(self._predict(feed, self._runner)[0].score)
        return np.array(scores)


@dataclass(frozen=True)
class _Networks:
    """What runs the network: for prepared images, and for each kind of frame that goes to it as it is."""

    prepared: Backend
    by_frame: dict[FrameSpec, Backend]
    passed_over: tuple[str, ...]

    def close(self) -> None:
        for runner in (self.prepared, *self.by_frame.values()):
            runner.close()


def _seen(bundle: Bundle) -> Seen:
    return PIXELS_KIND.decode(bundle.content(PIXELS) or b"", bundle.path / PIXELS)


class _InputBuffer(threading.local):
    """A thread's input array, kept between calls, because allocating it costs more than filling it."""

    def __init__(self, p: Preprocess, *, takes_bytes: bool) -> None:
        self._preprocess, self._normalized = p, not takes_bytes
        self._feed = self._new(0)

    def of(self, batch: int) -> F32 | U8:
        if len(self._feed) != batch:
            self._feed = self._new(batch)
        return self._feed

    def fill(self, row: F32 | U8, pixels: U8) -> None:
        """Write prepared pixels, (h, w, channels), as the network takes them."""
        if self._normalized:
            normalize(pixels, self._preprocess, row)  # type: ignore[arg-type]  # its rows are float32
        else:
            row[...] = pixels

    def _new(self, batch: int) -> F32 | U8:
        p = self._preprocess
        if self._normalized:
            return np.empty((batch, *p.shape), np.float32)
        return np.empty((batch, *p.crop_px, p.channels), np.uint8)


def _several(images: Iterable[Picture]) -> list[Picture]:
    single = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | array | Frame)
    one_array = isinstance(images, np.ndarray) and images.ndim < 4 and images.dtype != object
    if single or one_array or not isinstance(images, Iterable):
        kind = f"an array {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise InputError(f"batch takes a sequence of images, found {kind}", hint="classify(image) takes a single one")
    return list(images)


def _pixels(image: object, reading: PixelReading) -> U8:
    """(H, W, C), as the preprocessing takes it."""
    if isinstance(image, np.ndarray) and image.ndim != 1 and not _is_column(image):
        return bounded(image)
    if isinstance(image, Frame):
        return image.pixels(reading)
    if isinstance(image, str | os.PathLike):
        return read_image(Path(image), None, reading)
    if is_pil(image):
        return read_pil(image, reading)
    foreign = hasattr(image, "__cuda_array_interface__") or hasattr(image, "__dlpack__")
    if foreign and not isinstance(image, np.ndarray):
        return _pixels(_on_the_cpu(image), reading)
    try:
        content = flat_bytes(image)
    except (TypeError, ValueError, BufferError):
        kind = f"an array {image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        hint = "see docs/runtime.md"
        raise InputError(f"an image is an array, a file, bytes or a Frame, found {kind}", hint=hint) from None
    return read_image(io.BytesIO(image if isinstance(image, bytes) else content.data), "image in memory", reading)


def _on_the_cpu(image: object) -> U8:
    """The array of another library, by DLPack; its memory is read in place.

    Raises:
        InputError: it lies on a GPU, or cannot be exchanged.
    """
    try:
        array: Any = np.from_dlpack(image)  # type: ignore[arg-type]
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        on_gpu = hasattr(image, "__cuda_array_interface__")
        hint = "copy it to the CPU first, e.g. image.cpu() or cupy.asnumpy(image)"
        what = f"this {type(image).__name__} {'lies on a GPU' if on_gpu else f'cannot be read ({error})'}"
        raise InputError(what, hint=hint) from None
    return array  # type: ignore[no-any-return]


def _is_column(image: Pixels) -> bool:
    """Whether it is a file's content as OpenCV's imencode gave it before 4.5: (N, 1) bytes, no picture."""
    return image.ndim == 2 and image.dtype == np.uint8 and 1 in image.shape


def check_task(bundle: Bundle, task: str) -> None:
    """Raise a BundleError where the network is for another task."""
    if (tasks := bundle.manifest.model.tasks) != (task,):
        what = f"its task is {' and '.join(tasks)}, not {task}"
        raise BundleError(what, where=bundle.path, hint="edgeres.load and edgeres predict take it")


def outputs_of(runner: Backend, feed: F32 | U8) -> F32:
    """What a network gives for a batch, (N, classes), as float32."""
    outputs = runner.infer({runner.input_name: feed.astype(runner.inputs[0].dtype, copy=False)})[runner.output_name]
    return outputs.astype(np.float32, copy=False)


def predictions(outputs: F32, labels: tuple[str, ...], *, probabilities: bool) -> list[Prediction]:
    """The answers that a network's outputs, (N, classes) float32, stand for.

    Args:
        probabilities: whether the outputs are probabilities, not logits.
    """
    scores = outputs if probabilities else _softmax(outputs)
    return [Prediction(s, row, labels) for s, row in zip(scores, outputs, strict=True)]


def _softmax(logits: F32) -> F32:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    result: F32 = powers / powers.sum(axis=1, keepdims=True)
    return result
