"""Images of several threads in one batch: answers are those of single calls, none waits for ever, none gets lost."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import write_bundle

from edgeres.errors import InputError, UsageError
from edgeres.records import U8
from edgeres.runtime import Batcher, Classifier, Frame

SOON = 60.0  # seconds until a test gives up; nothing takes so long
FOREVER = 1e6  # ms


def noise(seed: int) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)


class Held:
    """A classifier whose inferences wait for a word, and which remembers their sizes."""

    def __init__(self, real: Classifier) -> None:
        self.real, self.sizes = real, list[int]()
        self.entered, self.go = threading.Semaphore(0), threading.Event()
        self.frames, self.max_batch, self.prepare, self.batch = real.frames, None, real.prepare, real.batch
        self.error: Exception | None = None

    def batch_of_prepared(self, images: list[U8]) -> Any:
        self.sizes.append(len(images))
        self.entered.release()
        assert self.go.wait(SOON)
        if self.error is not None:
            raise self.error
        return self.real.batch_of_prepared(images)


@pytest.fixture
def classify(tmp_path: Path) -> Iterator[Classifier]:
    with Classifier(write_bundle(tmp_path / "b.edgeres"), threads=1) as opened:
        yield opened


@pytest.fixture
def held(classify: Classifier) -> Any:
    return Held(classify)


def test_answers_are_those_of_single_calls(classify: Classifier) -> None:
    """From eight threads, as arrays and as frames."""
    images = [noise(seed) for seed in range(40)]
    alone = [classify(image).logits for image in images]
    with Batcher(classify, max_delay_ms=2) as batcher, ThreadPoolExecutor(8) as threads:
        kinds = [image if seed % 2 else Frame(image, "rgb8") for seed, image in enumerate(images)]
        answers = list(threads.map(lambda image: batcher.submit(image).result(SOON), kinds))
    for found, wanted in zip(answers, alone, strict=True):
        np.testing.assert_allclose(found.logits, wanted, rtol=1e-5, atol=1e-5)


def test_a_full_batch_does_not_wait(held: Any) -> None:
    held.go.set()
    with Batcher(held, max_delay_ms=FOREVER, max_batch=3) as batcher:
        done, left = wait([batcher.submit(noise(seed)) for seed in range(6)], SOON)
        assert (len(done), len(left), held.sizes) == (6, 0, [3, 3])


def test_one_image_waits_no_longer_than_agreed(held: Any) -> None:
    held.go.set()
    with Batcher(held, max_delay_ms=20, max_batch=8) as batcher:
        assert batcher.submit(noise(0)).result(SOON).label
    assert held.sizes == [1]


def test_what_arrives_during_an_inference_is_one_batch(held: Any) -> None:
    with Batcher(held, max_delay_ms=0, max_batch=8) as batcher:
        first = batcher.submit(noise(0))
        assert held.entered.acquire(timeout=SOON)
        others = [batcher.submit(noise(seed)) for seed in range(1, 6)]
        held.go.set()
        wait([first, *others], SOON)
    assert held.sizes == [1, 5]


def test_too_many_images_drop_the_oldest(held: Any) -> None:
    with Batcher(held, max_delay_ms=0, max_waiting=2) as batcher:
        running = batcher.submit(noise(0))
        assert held.entered.acquire(timeout=SOON)
        waiting = [batcher.submit(noise(seed)) for seed in range(1, 5)]
        assert [one.cancelled() for one in waiting] == [True, True, False, False]
        held.go.set()
        wait([running, *waiting[2:]], SOON)
    assert held.sizes == [1, 2]


def test_a_camera_may_use_its_memory_again(classify: Classifier, held: Any) -> None:
    """Also where the image has the network's size already, so that nothing is resized."""
    image = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    wanted = classify(image).logits.copy()
    with Batcher(held, max_delay_ms=0) as batcher:
        answer = batcher.submit(image)
        image[...] = 0
        held.go.set()
        np.testing.assert_array_equal(answer.result(SOON).logits, wanted)


def test_errors_reach_whoever_waits(held: Any) -> None:
    held.error = RuntimeError("the GPU is gone")
    held.go.set()
    with Batcher(held, max_delay_ms=FOREVER, max_batch=2) as batcher:
        with pytest.raises(InputError, match="or a Frame, found float"):
            batcher.submit(1.5)  # type: ignore[arg-type]
        for answer in [batcher.submit(noise(seed)) for seed in range(2)]:
            with pytest.raises(RuntimeError, match="the GPU is gone"):
                answer.result(SOON)
        held.error = None
        wait([batcher.submit(noise(seed)) for seed in range(2)], SOON)
    assert held.sizes == [2, 2]


def test_a_cancelled_image_is_not_run(held: Any) -> None:
    with Batcher(held, max_delay_ms=0) as batcher:
        first = batcher.submit(noise(0))
        assert held.entered.acquire(timeout=SOON)
        gone, kept = batcher.submit(noise(1)), batcher.submit(noise(2))
        assert gone.cancel()
        held.go.set()
        wait([first, kept], SOON)
    assert held.sizes == [1, 1]


def test_closing_answers_what_waits(held: Any) -> None:
    held.go.set()
    batcher = Batcher(held, max_delay_ms=FOREVER)
    answers = [batcher.submit(noise(seed)) for seed in range(3)]
    batcher.close()
    batcher.close()
    assert all(answer.done() for answer in answers)
    with pytest.raises(UsageError, match="the batcher is closed"):
        batcher.submit(noise(0))


def test_a_callback_may_close_it(held: Any) -> None:
    held.go.set()
    batcher = Batcher(held, max_delay_ms=0)
    closed: Future[None] = Future()

    def stop(_: object) -> None:
        batcher.close()
        closed.set_result(None)

    batcher.submit(noise(0)).add_done_callback(stop)
    closed.result(SOON)
    batcher.close()


@pytest.mark.parametrize(
    "wrong", [{"max_delay_ms": -1}, {"max_delay_ms": float("nan")}, {"max_batch": 0}, {"max_waiting": 0}]
)
def test_figures_out_of_range_are_refused(classify: Classifier, wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="max_delay_ms is 0 or more"):
        Batcher(classify, **wrong)


class OnTheGpu:
    """As torch's and cupy's arrays on a GPU are."""

    def __init__(self) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {}

    def __dlpack_device__(self) -> tuple[int, int]:
        return 2, 0

    def __dlpack__(self, **_: Any) -> Any:
        raise BufferError("Unsupported device in DLTensor.")


def test_arrays_of_other_libraries_by_dlpack(classify: Classifier) -> None:
    torch = pytest.importorskip("torch", reason="it gives arrays of another library")
    image = noise(3)
    wanted = classify(image).logits
    np.testing.assert_array_equal(classify(torch.from_numpy(image)).logits, wanted)
    np.testing.assert_array_equal(classify.batch(torch.from_numpy(image[None]))[0].logits, wanted)
    assert torch.from_dlpack(classify(image).logits.copy()).shape == wanted.shape
    with pytest.raises(InputError, match=r"float32 \(12, 10, 3\)|uint8"):
        classify(torch.from_numpy(image).float())


def test_an_array_on_a_gpu_is_refused_in_one_line(classify: Classifier) -> None:
    with pytest.raises(InputError, match=r"OnTheGpu lies on a GPU; copy it to the CPU first") as caught:
        classify(OnTheGpu())  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
