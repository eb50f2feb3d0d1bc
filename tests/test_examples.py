"""The examples of docs/examples and the ROS 2 node, on stand-ins for ROS and TensorRT that follow their documentation.

docs/examples/README.md lists what was tested this way and what was not, as it needs a real robot.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.metadata import files
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import fake_ros
import numpy as np
import pytest
from bundles import CLASSES, SIDE, spec, write_bundle
from fake_ros import MESSAGES, Ros

from edgeres.bundle import Bundle
from edgeres.data.preprocess import apply, geometry
from edgeres.deploy import ros2
from edgeres.errors import UsageError
from edgeres.records import F32, U8, EngineOrigin, EngineRecord, Portability, Preprocess
from edgeres.runtime import Classifier, TensorSpec, classifier

EXAMPLES = Path(__file__).parents[1] / "docs" / "examples"
STAND_INS = Path(__file__).parent / "cpp"
Image, Header, Time = MESSAGES["sensor_msgs/Image"], MESSAGES["std_msgs/Header"], MESSAGES["builtin_interfaces/Time"]


def noise(height: int, width: int, seed: int = 0) -> U8:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)


def load_example(name: str) -> Any:
    path = ros2.__file__.replace("ros2.py", "ros2_node.py") if name == "ros2_node" else EXAMPLES / f"{name}.py"
    found = importlib.util.spec_from_file_location(f"example_{name}", path)
    assert found is not None and found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("examples") / "tiny.edgeres")


def expected(path: Path, image: U8, count: int = 5) -> list[tuple[str, float]]:
    with Classifier(path, threads=1) as classify:
        return classify(image).top(count)


# --- ROS 2 -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch, path: Path) -> Iterator[Ros]:
    with fake_ros.installed(monkeypatch, Ros({"bundle": str(path), "backend": "cpu", "threads": 1})) as found:
        yield found


def message(image: U8, encoding: str = "rgb8", padding: int = 0, stamp: int = 0) -> Any:
    """``image`` (H, W, 3) RGB as a camera driver sends it, with unused bytes behind each row."""
    pixels = {"rgb8": image, "bgr8": image[..., ::-1], "mono8": image[..., :1]}[encoding]
    rows = pixels.reshape(len(image), -1)
    rows = np.concatenate([rows, np.full((len(rows), padding), 0xEE, np.uint8)], axis=1)
    header = Header(stamp=Time(sec=stamp, nanosec=7), frame_id="camera")
    height, width = image.shape[:2]
    return Image(header=header, height=height, width=width, encoding=encoding, step=rows.shape[1], data=rows.tobytes())


def arrive(*messages: Any) -> Callable[[Any], None]:
    def event(node: Any) -> None:
        for one in messages:
            node.subscriptions_made[0].arrives(one)

    return event


def stop(ros: Ros) -> Callable[[Any], None]:
    """Shut the context down, as rclpy's signal handler does."""

    def event(node: Any) -> None:
        ros.running = False

    return event


def spin(ros: Ros, *events: Callable[[Any], None]) -> Any:
    """Run the node; returns it afterwards."""
    ros.events.extend([*events, stop(ros)])
    assert load_example("ros2_node").main([]) == 0
    return ros.nodes[0]


def results(answer: Any) -> list[tuple[str, float]]:
    return [(one.class_id, one.score) for one in answer.results]


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "mono8"])
@pytest.mark.parametrize("padding", [0, 5])
def test_the_node_answers_each_image_with_what_the_classifier_says(
    ros: Ros, path: Path, encoding: str, padding: int
) -> None:
    image = noise(20, 30)
    sent = message(image, encoding, padding, stamp=12)
    node = spin(ros, arrive(sent))
    (publisher,) = node.publishers_made
    (answer,) = publisher.sent
    assert (type(answer).__name__, publisher.topic) == ("Classification", "classification")
    assert (answer.header.stamp.sec, answer.header.stamp.nanosec, answer.header.frame_id) == (12, 7, "camera")
    seen = np.repeat(image[..., :1], 3, axis=-1) if encoding == "mono8" else image
    assert results(answer) == expected(path, seen)


def test_old_images_give_way_to_the_newest(ros: Ros, path: Path) -> None:
    images = [noise(20, 30, seed) for seed in range(4)]
    first, *while_busy = [message(image, stamp=index) for index, image in enumerate(images)]
    node = spin(ros, arrive(first), arrive(*while_busy))
    qos = node.subscriptions_made[0].qos
    assert (qos.depth, qos.reliability) == (1, fake_ros.ReliabilityPolicy.BEST_EFFORT)
    assert [answer.header.stamp.sec for answer in node.publishers_made[0].sent] == [0, 3]
    assert results(node.publishers_made[0].sent[1]) == expected(path, images[3])


def test_parameters_choose_the_topic_and_what_is_told(ros: Ros, path: Path) -> None:
    image = noise(20, 30, 3)
    best = expected(path, image, len(CLASSES))
    ros.parameters |= {"topic": "/front/image_raw", "top_k": 3, "min_score": (best[1][1] + best[2][1]) / 2}
    node = spin(ros, arrive(message(image)))
    assert node.subscriptions_made[0].topic == "/front/image_raw"
    assert results(node.publishers_made[0].sent[0]) == best[:2]


@pytest.mark.parametrize(
    ("field", "value", "words"), [("encoding", "32FC1", "not known"), ("height", 21, "expected a rgb8 frame")]
)
def test_an_image_that_cannot_be_read_is_said_and_passed_over(ros: Ros, field: str, value: Any, words: str) -> None:
    bad, good = message(noise(20, 30)), message(noise(20, 30))
    setattr(bad, field, value)
    node = spin(ros, arrive(bad), arrive(good))
    assert len(node.publishers_made[0].sent) == 1
    (line,) = [line for level, line in node.logger.lines if level == "error"]
    assert words in line


def test_the_node_says_what_it_runs_on(ros: Ros) -> None:
    node = spin(ros)
    assert any("ONNX Runtime" in line for level, line in node.logger.lines if level == "info")


@pytest.mark.parametrize("interrupted", [False, True])
def test_shutdown_frees_in_order(ros: Ros, interrupted: bool) -> None:
    def interrupt(node: Any) -> None:
        raise KeyboardInterrupt

    node = spin(ros, *[interrupt] * interrupted)
    assert ros.history == ["executor.shutdown", "destroy_node", "try_shutdown"]
    with pytest.raises(UsageError):
        node.classify(noise(8, 8))


def test_a_bundle_that_is_not_there_is_one_line_and_exit_3(ros: Ros, capsys: pytest.CaptureFixture[str]) -> None:
    ros.parameters["bundle"] = "no/such.edgeres"
    assert load_example("ros2_node").main([]) == 3
    assert re.fullmatch(r"error: no/such\.edgeres: no such bundle.*\n", capsys.readouterr().err)
    assert ros.history == ["try_shutdown"]


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vision_msgs/Classification", {"result": []}),
        ("vision_msgs/Classification", {"results": [3]}),
        ("vision_msgs/ObjectHypothesis", {"id": "stop"}),
        ("vision_msgs/ObjectHypothesis", {"class_id": 3}),
        ("vision_msgs/ObjectHypothesis", {"score": np.float32(1)}),
        ("sensor_msgs/Image", {"step": -1}),
        ("sensor_msgs/Image", {"data": [[1]]}),
    ],
)
def test_the_stand_in_refuses_what_rosidl_refuses(name: str, values: dict[str, Any]) -> None:
    with pytest.raises(AssertionError):
        MESSAGES[name](**values)
    with pytest.raises((AssertionError, AttributeError)):
        for field, value in values.items():
            setattr(MESSAGES[name](), field, value)


def test_the_messages_are_those_of_humble_and_jazzy(ros: Ros) -> None:
    """Compare with the definitions of rosbags, and serialize with it."""
    typesys = pytest.importorskip("rosbags.typesys", reason="it knows the messages of each ROS release")
    answer = spin(ros, arrive(message(noise(20, 30), stamp=5))).publishers_made[0].sent[0]
    for release in (typesys.Stores.ROS2_HUMBLE, typesys.Stores.ROS2_JAZZY):
        store = typesys.get_typestore(release)
        for name in ("builtin_interfaces/Time", "std_msgs/Header", "sensor_msgs/Image"):
            known = [field for field, _ in store.fielddefs[name.replace("/", "/msg/")][1]]
            assert list(MESSAGES[name]._fields) == known
        for name in ("vision_msgs/ObjectHypothesis", "vision_msgs/Classification"):
            full = name.replace("/", "/msg/")
            store.register(typesys.get_types_from_msg(fake_ros.DEFINITIONS[name], full))
        kinds = {name: store.types[name.replace("/", "/msg/")] for name in fake_ros.DEFINITIONS}
        real = kinds["vision_msgs/Classification"](
            header=kinds["std_msgs/Header"](
                stamp=kinds["builtin_interfaces/Time"](**vars(answer.header.stamp)), frame_id=answer.header.frame_id
            ),
            results=[kinds["vision_msgs/ObjectHypothesis"](**vars(one)) for one in answer.results],
        )
        data = store.serialize_cdr(real, "vision_msgs/msg/Classification")
        assert results(store.deserialize_cdr(data, "vision_msgs/msg/Classification")) == results(answer)


# --- a camera --------------------------------------------------------------------------------------------------------


class Capture:
    """A stand-in for ``cv2.VideoCapture``: images as fast as they are requested."""

    def __init__(self, images: list[U8]) -> None:
        self.images, self.released = iter(images), False

    def read(self) -> tuple[bool, Any]:
        image = next(self.images, None)
        return image is not None, image

    def isOpened(self) -> bool:
        return True

    def release(self) -> None:
        self.released = True


@pytest.fixture
def camera(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The example; with a module of that name where OpenCV is not installed."""
    if importlib.util.find_spec("cv2") is None:
        monkeypatch.setitem(sys.modules, "cv2", ModuleType("cv2"))
    return load_example("camera")


def test_who_is_late_gets_the_newest_image(camera: Any) -> None:
    images = [noise(8, 8, seed) for seed in range(9)]
    newest = camera.Newest(Capture(images))
    newest._thread.join()  # no image was requested before the camera ended
    assert [image.tobytes() for image in newest] == [images[-1].tobytes()]
    assert newest.dropped == len(images) - 1
    newest.close()


def test_who_keeps_up_gets_every_image_and_the_end(camera: Any) -> None:
    images, turn = [noise(8, 8, seed) for seed in range(5)], threading.Semaphore(1)

    class Waits(Capture):
        def read(self) -> tuple[bool, Any]:
            turn.acquire()
            return super().read()

    newest, seen = camera.Newest(Waits(images)), []
    for image in newest:
        seen.append(image.tobytes())
        turn.release()
    newest.close()
    assert seen == [image.tobytes() for image in images]
    assert newest.dropped == 0


@pytest.mark.parametrize("channels", [None, 1, 3, 4])
def test_opencvs_arrays_become_frames(camera: Any, path: Path, channels: int | None) -> None:
    rgb = noise(20, 30)
    gray = rgb[..., 1]
    image, seen = {
        None: (gray, np.stack([gray] * 3, axis=-1)),
        1: (gray[..., None], np.stack([gray] * 3, axis=-1)),
        3: (rgb[..., ::-1], rgb),
        4: (np.concatenate([rgb[..., ::-1], gray[..., None]], axis=-1), rgb),
    }[channels]
    with Classifier(path, threads=1) as classify:
        assert classify(camera.frame_of(image)).logits.tobytes() == classify(seen).logits.tobytes()


def test_a_live_camera_is_released_and_counted(
    camera: Any, path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capture = Capture([noise(20, 30, seed) for seed in range(3)])
    monkeypatch.setattr(camera, "open_camera", lambda source: capture)
    assert camera.main([str(path), "0", "--headless", "--backend", "cpu"]) == 0
    *_, last = capsys.readouterr().out.splitlines()
    found = re.fullmatch(r"(\d) images, (\d) dropped", last)
    assert found and int(found[1]) + int(found[2]) == 3 and int(found[1]) >= 1
    assert capture.released
    assert camera.main([str(path), "0", "--headless", "--backend", "cpu"]) == 3  # it is at its end now
    assert "no image was received" in capsys.readouterr().err


def test_every_image_of_a_video_is_classified(
    camera: Any, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    cv2 = pytest.importorskip("cv2", reason="reads and writes videos")
    if not hasattr(cv2, "VideoCapture"):
        pytest.skip("OpenCV is not installed")
    file = tmp_path / "frames.avi"
    writer = cv2.VideoWriter(str(file), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    for seed in range(6):
        writer.write(np.repeat(np.repeat(noise(6, 8, seed), 8, axis=0), 8, axis=1))
    writer.release()
    assert camera.main([str(path), str(file), "--headless", "--backend", "cpu"]) == 0
    _, *lines, last = capsys.readouterr().out.splitlines()
    capture = cv2.VideoCapture(str(file))
    frames = [capture.read()[1] for _ in range(6)]
    wanted = [expected(path, np.ascontiguousarray(frame[..., ::-1]), 1)[0] for frame in frames]
    assert [line.split()[0] for line in lines] == [label for label, _ in wanted]
    assert [line.split()[1] for line in lines] == [f"{score:.1%}" for _, score in wanted]
    assert last == "6 images, 0 dropped"

    def no_window(*arguments: Any) -> None:
        raise cv2.error("The function is not implemented")

    monkeypatch.setattr(cv2, "imshow", no_window)
    assert camera.main([str(path), str(file), "--backend", "cpu"]) == 3
    assert "--headless" in capsys.readouterr().err

    (tmp_path / "text.avi").write_text("this is no video")
    for source in (tmp_path / "text.avi", tmp_path / "missing.avi", "nonsense ! appsink"):
        assert camera.main([str(path), str(source), "--headless"]) == 3
        assert "OpenCV cannot open this source" in capsys.readouterr().err


# --- C++ -------------------------------------------------------------------------------------------------------------

cpp = pytest.mark.xdist_group("cpp")  # one worker compiles
FLAGS = ("-std=c++17", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-ffp-contract=off")
CHECKED = ("-fsanitize=address,undefined", "-fno-sanitize-recover=all")


def compiler() -> str:
    found = shutil.which("g++") or shutil.which("clang++")
    if found is None:
        pytest.skip("no C++ compiler")
    return found


def compile_(sources: list[Path], *flags: str) -> None:
    argv = [compiler(), *FLAGS, "-I", str(EXAMPLES / "cpp"), *flags, *map(str, sources)]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@dataclass(frozen=True)
class Program:
    """The example; ``logits`` is the same with a main that writes logits."""

    file: Path
    logits: Path

    def __call__(self, *words: Any, fail: str = "") -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "FAKE_FAIL": fail, "ASAN_OPTIONS": "detect_leaks=0"}
        return subprocess.run([self.file, *map(str, words)], env=env, capture_output=True, text=True, timeout=120)

    def logits_of(self, *words: Any, fail: str = "", jetson: bool = False) -> tuple[bytes, str]:
        """What it writes, and how often the stand-in launched a graph and copied."""
        env = {**os.environ, "FAKE_FAIL": fail, "FAKE_COUNTS": "1", **({"FAKE_INTEGRATED": "1"} if jetson else {})}
        done = subprocess.run([self.logits, *map(str, words)], env=env, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr.decode().strip()


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Program:
    """The example, linked with the stand-in for CUDA and TensorRT."""
    folder = tmp_path_factory.mktemp("cpp")
    probe = [compiler(), "-std=c++17", "-fsyntax-only", "-x", "c++", "-"]
    sources = sorted((EXAMPLES / "cpp").glob("*.cpp"))
    if subprocess.run(probe, input=b"#include <nlohmann/json.hpp>", capture_output=True).returncode:
        others = [source for source in sources if source.name != "bundle.cpp"]
        compile_(others, "-isystem", str(STAND_INS), "-fsyntax-only")
        pytest.skip("compiled all but bundle.cpp: nlohmann/json is not installed (Debian: nlohmann-json3-dev)")
    stand_in = (STAND_INS / "stand_in.cpp", "-isystem", str(STAND_INS), "-o")
    compile_([*sources, stand_in[0]], *stand_in[1:], str(folder / "classify"))
    without_main = [source for source in sources if source.name != "main.cpp"]
    compile_([*without_main, STAND_INS / "logits_driver.cpp", stand_in[0]], *stand_in[1:], str(folder / "logits"))
    return Program(folder / "classify", folder / "logits")


@dataclass(frozen=True)
class Case:
    image: U8
    p: Preprocess

    def line(self, **changes: Any) -> bytes:
        p = SimpleNamespace(**{**self.p.to_dict(), **changes})
        words = [*self.image.shape[:2], *p.crop_px, -1 if p.resize_px is None else p.resize_px, p.interpolation]
        words += [*p.mean, *p.std, p.pixel_scale, int(p.channel_order == "BGR"), int(p.layout == "NHWC")]
        return " ".join(map(str, words)).encode() + b"\n" + self.image.tobytes()


def cases() -> Iterator[Case]:
    """Images of the crop's size, of a camera's size, and of many other sizes, with various preprocessing."""
    for order in ("RGB", "BGR"):
        for layout in ("NCHW", "NHWC"):
            yield Case(noise(8, 12), Preprocess((8, 12), channel_order=order, layout=layout))  # type: ignore[arg-type]
    yield Case(noise(32, 32), Preprocess((32, 32), mean=(128, 128, 128), std=(1, 1, 1), pixel_scale=1))
    yield Case(noise(360, 640), Preprocess((224, 224), resize_px=256))
    rng = np.random.default_rng(7)
    for seed in range(120):
        sizes = rng.integers(1, 90, 2).tolist()
        crop = (int(rng.integers(1, 50)), int(rng.integers(1, 50)))
        yield Case(
            noise(*sizes, seed),
            Preprocess(
                crop,
                None if rng.random() < 0.3 else int(rng.integers(1, 70)),
                ("nearest", "bilinear", "bicubic", "lanczos")[seed % 4],
                mean=tuple(rng.random(3).tolist()),
                std=tuple((rng.random(3) + 0.1).tolist()),
                channel_order="BGR" if rng.random() < 0.5 else "RGB",
                layout="NHWC" if rng.random() < 0.5 else "NCHW",
            ),
        )


@pytest.fixture(scope="module")
def prepare(tmp_path_factory: pytest.TempPathFactory) -> Callable[[bytes], subprocess.CompletedProcess[bytes]]:
    """Run the preprocessing alone on cases, which returns floats; exit code 7 for an invalid case."""
    program = tmp_path_factory.mktemp("cpp") / "preprocess"
    sources = [EXAMPLES / "cpp" / "preprocess.cpp", STAND_INS / "preprocess_driver.cpp"]
    compile_(sources, *CHECKED, "-o", str(program))
    return lambda content: subprocess.run([program], input=content, capture_output=True, timeout=120)


@cpp
def test_cpp_prepares_an_image_bit_for_bit_as_python(prepare: Callable[[bytes], Any]) -> None:
    all_cases = list(cases())
    done = prepare(b"".join(case.line() for case in all_cases))
    assert (done.returncode, done.stderr) == (0, b"")
    values = np.frombuffer(done.stdout, np.float32)
    for case in all_cases:
        wanted = apply(case.image, case.p).ravel()
        assert values[: wanted.size].tobytes() == wanted.tobytes(), (case.image.shape, case.p)
        values = values[wanted.size :]
    assert not values.size


@cpp
@pytest.mark.parametrize(
    "changes",
    [{"interpolation": "hamming"}, {"std": (1.0, 0.0, 1.0)}, {"crop_px": (0, 4)}, {"resize_px": 0}],
    ids=lambda changes: next(iter(changes)),
)
def test_cpp_refuses_a_contract_that_it_does_not_know(prepare: Callable[[bytes], Any], changes: dict[str, Any]) -> None:
    done = prepare(Case(noise(9, 9), Preprocess((4, 4))).line(**changes))
    assert (done.returncode, done.stdout) == (7, b"")


def ppm(file: Path, image: U8, comment: str = "") -> Path:
    height, width = image.shape[:2]
    file.write_bytes(f"P6\n{comment}{width} {height}\n255\n".encode() + image.tobytes())
    return file


WEIGHTS = 3 * np.random.default_rng(5).standard_normal((len(CLASSES), 3)).astype(np.float32)
WEIGHTS[3] = WEIGHTS[1]  # two classes that always tie
RECORD = EngineRecord(
    "jetson-orin-nx", "tensorrt", "10.3.0", "int8", "built", "engines/a.engine", portability=Portability(("8.7",))
)


def fake_engine(weights: F32 = WEIGHTS) -> bytes:
    """See tests/cpp/stand_in.cpp."""
    return b"FAKE" + struct.pack("4i", 3, SIDE, SIDE, len(weights)) + weights.tobytes()


def robot(folder: Path, data: bytes | None = None, record: EngineRecord = RECORD, **changes: Any) -> Path:
    """A bundle with an engine for the stand-in."""
    path = write_bundle(folder / "robot.edgeres", spec(**changes))
    data = data or fake_engine()
    Bundle(path).add_engines({replace(record, size_bytes=len(data)): data})
    return path


def top5(image: U8, p: Preprocess, *, probabilities: bool = False) -> list[tuple[str, float]]:
    """Expected by NumPy; equal scores keep their order."""
    logits = WEIGHTS.astype(np.float64) @ apply(image, p).astype(np.float64).mean(axis=(1, 2))
    powers = np.exp(logits - logits.max())
    scores = logits if probabilities else powers / powers.sum()
    return [(CLASSES[i], float(scores[i])) for i in np.argsort(-scores, kind="stable")[:5]]


def answers(done: subprocess.CompletedProcess[str]) -> list[tuple[str, float]]:
    assert (done.returncode, done.stderr) == (0, "")
    return [(line.split("  ")[1], float(line.split("  ")[0])) for line in done.stdout.splitlines()]


@cpp
@pytest.mark.parametrize(
    ("size", "changes"),
    [
        ((SIDE, SIDE), {}),
        ((60, 80), {"resize_px": 10, "interpolation": "bicubic", "channel_order": "BGR"}),
        ((7, 31), {"output": "probabilities"}),
    ],
)
def test_cpp_says_what_numpy_says(
    built: Program, tmp_path: Path, size: tuple[int, int], changes: dict[str, Any]
) -> None:
    image, bundle = noise(*size, 3), robot(tmp_path, **changes)
    p = Bundle(bundle).manifest.model.preprocess
    wanted = top5(image, p, probabilities=changes.get("output") == "probabilities")
    raw = tmp_path / "frame.rgb"
    raw.write_bytes(image.tobytes())
    for done in (
        built(bundle, ppm(tmp_path / "a.ppm", image, "# by a camera\n")),
        built(bundle, raw, f"{size[1]}x{size[0]}"),
    ):
        got = answers(done)
        assert [label for label, _ in got] == [label for label, _ in wanted]
        np.testing.assert_allclose([score for _, score in got], [score for _, score in wanted], atol=2e-6)


@dataclass
class StandIn:
    """The stand-in's engine as a backend of Python: the same sums of doubles in the same order."""

    name = "stand-in"
    input_name, output_name = "pixels", "scores"
    inputs = (TensorSpec("pixels", np.dtype(np.float32), (None, 3, SIDE, SIDE)),)
    outputs = (TensorSpec("scores", np.dtype(np.float32), (None, len(CLASSES))),)
    max_batch = None

    def infer(self, feed: Any) -> Any:
        images = feed["pixels"].astype(np.float64)
        return {"scores": np.stack([self._scores(image) for image in images]).astype(np.float32)}

    def _scores(self, image: Any) -> Any:
        sums = [sum(plane.ravel().tolist(), 0.0) for plane in image]
        scores = np.zeros(len(CLASSES))
        for channel, total in enumerate(sums):
            scores += WEIGHTS[:, channel].astype(np.float64) * total / float(SIDE * SIDE)
        return scores

    def close(self) -> None:
        pass

    def __enter__(self) -> StandIn:
        return self

    def __exit__(self, *error: object) -> None:
        pass


CONTRACTS: list[dict[str, Any]] = [
    {},
    {"resize_px": 10, "interpolation": "bicubic", "channel_order": "BGR"},
    {"mean": (128.0,) * 3, "std": (1.0,) * 3, "pixel_scale": 1.0, "interpolation": "lanczos"},
]


@cpp
@pytest.mark.parametrize("changes", CONTRACTS, ids=["imagenet", "bgr bicubic", "bytes lanczos"])
@pytest.mark.parametrize("jetson", [False, True])
def test_cpp_answers_with_the_bytes_that_python_answers_with(
    built: Program, tmp_path: Path, changes: dict[str, Any], jetson: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the picture to the logits, each on its stand-in; the second image is recorded, all further ones launched."""
    images = [noise(20 + seed, 31, seed) for seed in range(5)]
    path = robot(tmp_path, **changes)
    pictures = [ppm(tmp_path / f"{index}.ppm", image) for index, image in enumerate(images)]
    monkeypatch.setattr(classifier, "open_backend", lambda *given: (StandIn(), ()))
    with Classifier(path) as classify:
        wanted = b"".join(classify(image).logits.tobytes() for image in images)
    found, counts = built.logits_of(path, *pictures, jetson=jetson)
    assert len(found) == len(wanted) == 4 * len(CLASSES) * len(images) and found == wanted
    assert counts == f"4 launches, {0 if jetson else 10} copies"


@cpp
@pytest.mark.parametrize("step", ["cudaStreamBeginCapture", "cudaStreamEndCapture", "cudaGraphInstantiateWithFlags"])
def test_cpp_runs_without_a_graph_where_none_can_be_recorded(built: Program, tmp_path: Path, step: str) -> None:
    pictures = [ppm(tmp_path / f"{seed}.ppm", noise(SIDE, SIDE, seed)) for seed in range(3)]
    path = robot(tmp_path)
    found, counts = built.logits_of(path, *pictures, fail=step)
    assert (found, counts) == (built.logits_of(path, *pictures)[0], "0 launches, 6 copies")


@cpp
def test_cpp_shows_several_images_below_their_names(built: Program, tmp_path: Path) -> None:
    path = robot(tmp_path)
    pictures = [ppm(tmp_path / f"{seed}.ppm", noise(SIDE, SIDE, seed)) for seed in range(3)]
    done = built(path, *pictures)
    alone = [built(path, picture).stdout for picture in pictures]
    assert done.stdout == "".join(f"{picture}:\n{one}" for picture, one in zip(pictures, alone, strict=True))
    assert "launching the graph: out of memory" in built(path, *pictures, fail="cudaGraphLaunch").stderr


@cpp
@pytest.mark.parametrize("changes", [{}, {"resize_px": 10, "interpolation": "bicubic", "channel_order": "BGR"}])
def test_cpp_gives_an_engine_of_bytes_the_prepared_bytes(
    built: Program, tmp_path: Path, changes: dict[str, Any]
) -> None:
    weights = WEIGHTS / np.float32(255)
    data = b"FAKB" + struct.pack("4i", 3, SIDE, SIDE, len(weights)) + weights.tobytes()
    record = replace(RECORD, origin=EngineOrigin(takes_bytes=True))
    path, image = robot(tmp_path, data, record, **changes), noise(60, 80)
    pixels = geometry(image, spec(**changes).preprocess)
    logits = weights.astype(np.float64) @ pixels.astype(np.float64).mean(axis=(0, 1))
    scores = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    found = answers(built(path, ppm(tmp_path / "a.ppm", image)))
    assert [label for label, _ in found] == [CLASSES[i] for i in np.argsort(-scores, kind="stable")[:5]]
    np.testing.assert_allclose([score for _, score in found], np.sort(scores)[::-1][:5], atol=2e-6)


@cpp
def test_cpp_takes_the_int8_engine_for_this_gpu(built: Program, tmp_path: Path) -> None:
    """Engines for another runtime, precision or GPU, and version-compatible ones, are skipped."""
    others = {
        replace(
            RECORD, portability=Portability(("8.7",), version_compatible=True), file="engines/e.engine"
        ): b"FAKE brings code",
        replace(RECORD, runtime="rtx", target="rtx", file="engines/b.engine"): b"FAKE rtx",
        replace(RECORD, precision="fp32", file="engines/c.engine"): b"FAKE fp32",
        replace(
            RECORD, target="tensorrt", portability=Portability(("8.6",)), file="engines/d.engine"
        ): b"FAKE other GPU",
    }
    image = noise(SIDE, SIDE)
    picture, path = ppm(tmp_path / "a.ppm", image), write_bundle(tmp_path / "robot.edgeres")
    Bundle(path).add_engines({replace(record, size_bytes=len(data)): data for record, data in others.items()})
    done = built(path, picture)
    assert done.returncode == 3
    assert "no TensorRT engine for compute capability 8.7; run on this device: edgeres engine" in done.stderr
    Bundle(path).add_engines({replace(RECORD, size_bytes=len(fake_engine())): fake_engine()})
    assert answers(built(path, picture))[0][0] == top5(image, Preprocess((SIDE, SIDE)))[0][0]


FAILURES = {
    "cudaGetDevice": "no CUDA-capable device",
    "createInferRuntime": "TensorRT does not start",
    "createExecutionContext": "no execution context",
    "cudaStreamCreateWithFlags": "making a stream: out of memory",
    "getTensorDataType": "pixels is neither float32 nor an image of bytes",
    "cudaMalloc": "memory on the GPU: out of memory",
    "cudaHostAlloc": "page-locked memory: out of memory",
    "setTensorAddress": "pixels cannot be given its memory",
    "upload": "copying to the GPU",
    "enqueueV3": "the engine did not run",
    "download": "copying from the GPU",
    "cudaStreamSynchronize": "running the engine",
}


@cpp
def test_cpp_frees_everything_wherever_it_fails(built: Program, tmp_path: Path) -> None:
    """The stand-in has other exit codes for leaks and for freeing in the wrong order."""
    picture, path = ppm(tmp_path / "a.ppm", noise(SIDE, SIDE)), robot(tmp_path)
    for function, words in FAILURES.items():
        done = built(path, picture, fail=function)
        assert (done.returncode, done.stdout) == (3, ""), (function, done)
        assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1, function


@cpp
def test_cpp_tells_what_is_wrong_with_its_input(built: Program, tmp_path: Path) -> None:
    picture, path = ppm(tmp_path / "a.ppm", noise(SIDE, SIDE)), robot(tmp_path)
    assert built().returncode == built(path).returncode == 2

    def refused(*words: Any) -> str:
        done = built(*words)
        assert (done.returncode, done.stdout) == (3, "")
        assert done.stderr.startswith("error: ")
        return done.stderr

    assert "no bundle" in refused(tmp_path, picture)
    assert "cannot be read" in refused(path, tmp_path / "none.ppm")
    assert "ends before" in refused(path, picture, f"{SIDE}x{SIDE + 9}")
    assert "holds more" in refused(path, picture, f"{SIDE}x{SIDE}")
    assert "WIDTHxHEIGHT" in refused(path, picture, "8by8")
    for content in (b"P5\n8 8\n255\n", b"P6\n8 8\n65535\n", b"P6\n8\n", b"", b"\xff\xd8\xff"):
        (tmp_path / "b.ppm").write_bytes(content)
        assert "not a PPM of 8 bits" in refused(path, tmp_path / "b.ppm")
    (tmp_path / "b.ppm").write_bytes(b"P6\n8 -8\n255\n")
    assert "no size of an image" in refused(path, tmp_path / "b.ppm")
    (tmp_path / "b.ppm").write_bytes(picture.read_bytes()[:-1])
    assert "ends before the image does" in refused(path, tmp_path / "b.ppm")


@cpp
def test_cpp_tells_what_is_wrong_with_a_bundle(built: Program, tmp_path: Path) -> None:
    picture = ppm(tmp_path / "a.ppm", noise(SIDE, SIDE))
    damaged = robot(tmp_path / "damaged", b"this was an engine once")
    assert "edgeres engine BUNDLE: deserializeCudaEngine: this is no plan" in built(damaged, picture).stderr
    other = robot(tmp_path / "other", fake_engine(WEIGHTS[:4]))
    assert "other classes" in built(other, picture).stderr
    path = robot(tmp_path)
    engine, manifest = path / "engines" / "a.engine", path / "manifest.json"
    engine.write_bytes(engine.read_bytes()[:-1])
    assert "not the file that the manifest describes" in built(path, picture).stderr
    engine.unlink()
    assert "missing" in built(path, picture).stderr
    text = manifest.read_text()
    for broken in (text[: len(text) // 2], "[]", text.replace('"crop_px"', '"crop"'), ""):
        manifest.write_text(broken)
        done = built(path, picture)
        assert done.returncode == 3 and "manifest.json: is damaged" in done.stderr
    manifest.write_text(re.sub(r'"schema": \d+', '"schema": 99', text))
    assert "another schema" in built(path, picture).stderr


@cpp
def test_cpp_compiles_against_cudas_own_headers(tmp_path: Path) -> None:
    """CUDA's headers, where pip has installed nvidia-cuda-runtime and nvidia-cuda-crt."""
    found = {}
    for package in ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12", "nvidia-cuda-crt", "nvidia-cuda-nvcc-cu12"):
        try:
            for file in files(package) or []:
                if file.name in ("cuda_runtime_api.h", "host_defines.h") and file.parent.name in ("include", "crt"):
                    found[file.parent.name] = Path(str(file.locate())).parent
        except ModuleNotFoundError:
            continue
    if found.keys() != {"include", "crt"}:
        pytest.skip("CUDA's headers are not installed")
    shutil.copy(STAND_INS / "NvInfer.h", tmp_path)
    include = ["-isystem", str(found["include"]), "-isystem", str(found["crt"].parent), "-isystem", str(tmp_path)]
    compile_([EXAMPLES / "cpp" / "engine.cpp"], *include, "-fsyntax-only")


@cpp
def test_cmake_takes_the_project(tmp_path: Path) -> None:
    """CMake configures with stand-ins for the packages that it needs."""
    if shutil.which("cmake") is None:
        pytest.skip("no CMake")
    compiler()
    (tmp_path / "FindCUDAToolkit.cmake").write_text("add_library(CUDA::cudart INTERFACE IMPORTED)\n")
    (tmp_path / "Findnlohmann_json.cmake").write_text("add_library(nlohmann_json::nlohmann_json INTERFACE IMPORTED)\n")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "libnvinfer.so").touch()
    (tmp_path / "include").symlink_to(STAND_INS)
    argv = ["cmake", "-S", EXAMPLES / "cpp", "-B", tmp_path / "build", f"-DTENSORRT_ROOT={tmp_path}"]
    done = subprocess.run([*argv, f"-DCMAKE_MODULE_PATH={tmp_path}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    named = {
        match.split("/")[-1] for match in re.findall(r"[\w/]+\.cpp", (EXAMPLES / "cpp" / "CMakeLists.txt").read_text())
    }
    assert named == {file.name for file in (EXAMPLES / "cpp").glob("*.cpp")}


# --- all of them -----------------------------------------------------------------------------------------------------


def test_the_readme_names_every_example() -> None:
    text = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    for file in set(EXAMPLES.iterdir()) - {EXAMPLES / "__pycache__"}:
        assert file.name == "README.md" or f"`{file.name}" in text, file.name
