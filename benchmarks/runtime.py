"""Measure the overhead of the runtime on ONNX Runtime's CPU provider: ``python benchmarks/runtime.py BUNDLE [--json]``.

- import: ``import edgeres.runtime`` in new processes, with NumPy
- overhead: a classifier's call without preprocessing, compared with the bare session in alternating calls
- health: the same call with and without looking at images for ``health``, in alternating blocks of 16 calls
- preprocessing: a 1280x720 camera frame to the network's input on one core, compared with Pillow's complete resize in
  alternating calls, for the bundle's preprocessing and for ImageNet's (shorter side 256, crop 224); bits are compared
- camera to answer: ``classify(frame)`` for a 1280x720 frame of each format on the CPU, beside the inference alone, and
  the same network with the frame as its graph's input
- steady memory: many inferences from four threads; every result is compared with one thread's, bit for bit

Times are medians of the calling thread's CPU time, since all work is in that thread. Time of other programs does not
count, but their use of the caches has an effect. On an idle machine it equals wall time.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import onnxruntime as ort
from PIL import Image

from edgeres.bundle import Bundle
from edgeres.data.preprocess import apply, normalize, pixels_read
from edgeres.graph.forms import FORMS
from edgeres.records import F32, U8, Preprocess
from edgeres.runtime import Batcher, Classifier, Frame, OrtRunner
from edgeres.runtime.frames import frame_from, frame_spec
from edgeres.runtime.health import EVERY, FIRST, Watch

FRAME_PX = (720, 1280)
PROCESSES = 15
THREADS = 4
SAMPLES = 50  # samples of the resident memory

Work = Callable[[], Any]


def by_turns(works: dict[str, Work], rounds: int) -> dict[str, F32]:
    """CPU seconds of each call; every round runs each function once, in random order."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    order = np.random.default_rng(0)
    for work in works.values():
        work()
    for _ in range(rounds):
        for name in order.permutation(list(works)).tolist():
            start = time.thread_time()
            works[name]()
            seconds[name].append(time.thread_time() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def median_ms(seconds: F32) -> float:
    return 1e3 * float(np.median(seconds))


def interval(values: F32, seed: int = 0) -> tuple[float, float]:
    """95 % interval of a median, from 1,000 resamplings."""
    rng = np.random.default_rng(seed)
    medians = [np.median(rng.choice(values, len(values))) for _ in range(1000)]
    return float(np.percentile(medians, 2.5)), float(np.percentile(medians, 97.5))


def import_time() -> dict[str, float]:
    """Import seconds in new processes: edgeres.runtime, and NumPy alone."""

    def median(module: str) -> float:
        code = f"import time; t = time.perf_counter(); import {module}; print(time.perf_counter() - t)"
        runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, check=True) for _ in range(PROCESSES)]
        return float(np.median([float(run.stdout) for run in runs]))

    return {"edgeres.runtime_s": median("edgeres.runtime"), "numpy_s": median("numpy")}


def overhead(path: Path, rounds: int) -> dict[str, Any]:
    """One image of the network's size, batch 1, one thread."""
    bundle = Bundle(path)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    graph = bundle.file(FORMS["cpu"].file)
    bare = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    name = bare.get_inputs()[0].name
    p = bundle.manifest.model.preprocess
    image = np.random.default_rng(0).integers(0, 256, (*p.crop_px, 3), np.uint8)
    feed = {name: apply(image, p)[None]}
    room = np.empty_like(feed[name])
    with Classifier(bundle, backend="cpu", threads=1) as classify:
        assert classify(image).logits.tobytes() == bare.run(None, feed)[0][0].tobytes()
        works = {
            "bare": lambda: bare.run(None, feed),
            "preprocess": lambda: apply(image, p, room[0]),
            "call": lambda: classify(image),
        }
        seconds = by_turns(works, rounds)
    ratio = 100 * (seconds["call"] - seconds["preprocess"] - seconds["bare"]) / np.median(seconds["bare"])
    fastest = {name: float(values.min()) for name, values in seconds.items()}
    return {
        **{f"{name}_ms": median_ms(values) for name, values in seconds.items()},
        "overhead_percent": float(np.median(ratio)),
        "overhead_percent_ci95": interval(ratio),
        "of_fastest_percent": 100 * ((fastest["call"] - fastest["preprocess"]) / fastest["bare"] - 1),
        "rounds": rounds,
    }


def health(path: Path, rounds: int) -> dict[str, Any]:
    """What looking at one of 16 images adds to a call, in percent of a call; every block of 16 has one look."""
    p = Bundle(path).manifest.model.preprocess
    image = np.random.default_rng(0).integers(0, 256, (*p.crop_px, 3), np.uint8)
    with Classifier(path, backend="cpu", threads=1) as classify:
        classify.batch([image] * FIRST)
        looking = classify._watch

        def block(watch: Watch | None) -> None:
            classify._watch = watch  # one classifier, because two sessions differ by more than this
            for _ in range(EVERY):
                classify(image)

        works: dict[str, Work] = {"on": lambda: block(looking), "off": lambda: block(None)}
        seconds = by_turns(works, max(rounds // EVERY, 2))
        pixels, watch = image.copy(), Watch(None, bgr=False)
        looks = by_turns({"look": lambda: watch.look(pixels)}, rounds)["look"]
    added = 100 * (seconds["on"] - seconds["off"]) / np.median(seconds["off"])
    call_ms = median_ms(seconds["off"]) / EVERY
    return {
        "call_ms": call_ms,
        "look_ms": median_ms(looks),
        "looks_percent": 100 * median_ms(looks) / EVERY / call_ms,
        "added_percent": float(np.median(added)),
        "added_percent_ci95": interval(added),
    }


def whole(image: U8, p: Preprocess) -> F32:
    """The preprocessing by Pillow's calls, with both passes computed completely."""
    height, width = image.shape[:2]
    size = p.crop_px
    if p.resize_px is not None:
        assert p.crop_px[0] == p.crop_px[1]
        short = min(height, width)
        size = (int(p.resize_px * height / short), int(p.resize_px * width / short))
    kind = Image.Resampling[p.interpolation.upper()]
    resized = Image.fromarray(image).resize((size[1], height), kind).resize((size[1], size[0]), kind)
    top, left = (round((have - want) / 2) for have, want in zip(size, p.crop_px, strict=True))
    cropped = resized.crop((left, top, left + p.crop_px[1], top + p.crop_px[0]))
    return normalize(np.asarray(cropped)[..., :: 1 if p.channel_order == "RGB" else -1], p)


def preprocessing(p: Preprocess, rounds: int) -> dict[str, Any]:
    """Milliseconds by format of the frame; ``pillow`` has RGB as input."""
    image = np.random.default_rng(0).integers(0, 256, (*FRAME_PX, 3), np.uint8)
    fourth = np.zeros((*FRAME_PX, 1), np.uint8)
    bgr = np.ascontiguousarray(image[..., ::-1])
    half = np.random.default_rng(1).integers(0, 256, (FRAME_PX[0] * 3 // 2, FRAME_PX[1]), np.uint8)
    frames = {
        "rgb8": Frame(image, "rgb8"),
        "bgr8": Frame(bgr, "bgr8"),
        "bgra8": Frame(np.concatenate([bgr, fourth], axis=-1), "bgra8"),
        "mono8": Frame(image[..., 0].copy(), "mono8"),
        "nv12": Frame(half, "nv12"),
        "yuyv": Frame(image[..., :2].copy(), "yuyv"),
    }
    expected = whole(image, p)
    for name in ("rgb8", "bgr8", "bgra8"):
        assert apply(frames[name].rgb(), p).tobytes() == expected.tobytes(), name
    works: dict[str, Work] = {"pillow": lambda: whole(image, p)}
    room = np.empty_like(expected)  # kept between calls, as in a classifier
    works |= {
        name: lambda frame=frame: apply(frame.rgb(lambda px: pixels_read(px, p)), p, room)
        for name, frame in frames.items()
    }
    with one_core():
        seconds = by_turns(works, rounds)
    return {
        **{f"{name}_ms": median_ms(values) for name, values in seconds.items()},
        "fastest_rgb8_ms": 1e3 * float(seconds["rgb8"].min()),
        "rgb8_of_pillow": float(np.median(seconds["rgb8"]) / np.median(seconds["pillow"])),
        "resize_px": p.resize_px,
        "crop_px": list(p.crop_px),
    }


def camera(path: Path, rounds: int) -> dict[str, Any]:
    """Milliseconds from a frame to its answer, by format; ``graph``: the preprocessing is in the graph."""
    from edgeres.graph.frame import with_frame
    from edgeres.graph.normalize import load_onnx

    bundle, height, width = Bundle(path), *FRAME_PX
    p, graph = bundle.manifest.model.preprocess, load_onnx(bundle.file(FORMS["cpu"].file))
    result: dict[str, Any] = {}
    with Classifier(bundle, backend="cpu", threads=1, health=False) as classify, one_core():
        works: dict[str, Work] = {}
        with ExitStack() as stack:
            for name in ("rgb8", "bgr8", "bgra8", "mono8", "nv12", "yuyv"):
                spec = frame_spec(f"{width}x{height}:{name}")
                data = np.random.default_rng(0).integers(0, 256, spec.shape, np.uint8)
                frame = frame_from(spec, data)
                works[name] = lambda frame=frame: classify(frame)
                if name in ("bgr8", "nv12"):
                    own = stack.enter_context(OrtRunner(with_frame(graph, p, spec).SerializeToString(), threads=1))
                    works[f"{name}_graph"] = lambda own=own, data=data: own.infer({own.input_name: data[None]})
            prepared = classify.prepare(frame)
            works["inference"] = lambda: classify.batch_of_prepared([prepared])
            seconds = by_turns(works, rounds)
        result |= {f"{name}_ms": median_ms(values) for name, values in seconds.items()}
        result |= {
            f"{name}_prepared_share": 1 - result["inference_ms"] / result[f"{name}_ms"] for name in ("bgr8", "nv12")
        }
    return result


class one_core:
    """Keeps this process on one core, where the system supports it."""

    def __enter__(self) -> None:
        self.before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
        if self.before:
            os.sched_setaffinity(0, {max(self.before)})

    def __exit__(self, *_: object) -> None:
        if self.before:
            os.sched_setaffinity(0, self.before)


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def steady(path: Path, inferences: int) -> dict[str, Any]:
    """Inferences from four threads with different frames; the growth of memory per inference in the second half."""
    images = [np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8) for seed in range(16)]
    samples: list[tuple[int, int]] = []
    done, wrong, lock = 0, 0, threading.Lock()
    with Classifier(path, backend="cpu", threads=1) as classify:
        alone = [classify(image).logits.tobytes() for image in images]

        def work(number: int) -> None:
            nonlocal done, wrong
            for turn in range(inferences // THREADS):
                index = (turn + number) % len(images)
                differs = classify(images[index]).logits.tobytes() != alone[index]
                with lock:
                    done += 1
                    wrong += differs
                    if done % max(inferences // SAMPLES, 1) == 0:
                        samples.append((done, resident_bytes()))

        threads = [threading.Thread(target=work, args=(number,)) for number in range(THREADS)]
        started = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - started
    late = np.array(samples[len(samples) // 2 :], np.float64)
    slope = float(np.polyfit(late[:, 0], late[:, 1], 1)[0])
    return {
        "inferences": done,
        "threads": THREADS,
        "wrong": wrong,
        "images_per_s": done / seconds,
        "resident_mb": [round(samples[0][1] / 1e6, 2), round(samples[-1][1] / 1e6, 2)],
        "growth_bytes_per_inference": slope,
    }


def cameras(path: Path, count: int = 4, seconds: float = 5.0) -> dict[str, Any]:
    """Cameras with 20 images a second each on one Batcher: time from an image to its answer, by the longest delay."""
    images = [np.random.default_rng(seed).integers(0, 256, (240, 320, 3), np.uint8) for seed in range(count)]
    found: dict[str, Any] = {}
    with Classifier(path, backend="cpu", threads=1) as classify:
        classify.warm_up()
        for delay in (0.0, 5.0, 20.0):
            took: list[float] = []
            with Batcher(classify, max_delay_ms=delay) as batcher:

                def camera(number: int, batcher: Batcher = batcher, took: list[float] = took) -> None:
                    begin = time.perf_counter() + 0.05 * number / count  # they are not in step
                    for turn in range(int(20 * seconds)):
                        time.sleep(max(0.0, begin + 0.05 * turn - time.perf_counter()))
                        there = time.perf_counter()
                        done = batcher.submit(images[number])
                        done.add_done_callback(lambda _, there=there: took.append(time.perf_counter() - there))

                threads = [threading.Thread(target=camera, args=(number,)) for number in range(count)]
                for thread in threads:
                    thread.start()
                for thread in threads:
                    thread.join()
            p50, p99 = np.percentile(took, (50, 99)) * 1e3
            found[f"max_delay_ms {delay:g}"] = f"p50 {p50:.2f} ms, p99 {p99:.2f} ms, {len(took)} images"
    return found


def show(result: dict[str, Any]) -> None:
    for title, figures in result.items():
        print(f"\n{title}")
        for name, value in figures.items():
            print(f"  {name:28} {value:.4g}" if isinstance(value, float) else f"  {name:28} {value}")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=400)
    parser.add_argument("--inferences", type=int, default=10_000)
    parser.add_argument("--json", action="store_true")
    choice = parser.parse_args(arguments)
    p = Bundle(choice.bundle).manifest.model.preprocess
    result = {
        "import": import_time(),
        "overhead": overhead(choice.bundle, choice.rounds),
        "health": health(choice.bundle, choice.rounds),
        "1280x720 by the bundle": preprocessing(p, choice.rounds),
        "1280x720 by ImageNet's usual": preprocessing(Preprocess((224, 224), resize_px=256), choice.rounds),
        "camera to answer, 1280x720": camera(choice.bundle, max(choice.rounds // 8, 2)),
        "four cameras, 20 images/s each": cameras(choice.bundle),
        "steady memory": steady(choice.bundle, choice.inferences),
    }
    if choice.json:
        print(json.dumps(result, indent=2))
    else:
        show(result)


if __name__ == "__main__":
    main()
