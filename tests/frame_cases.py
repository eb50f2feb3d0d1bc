"""Random camera frames with what OpenCV makes of them, and Frame arguments as bad callers make them. Seeded.

``reference`` reads the planes by slices of bytes and converts them by cv2; it shares nothing with the package.
"""

from __future__ import annotations

from array import array
from typing import Any

import cv2
import numpy as np

# (rows of the picture, columns, bytes) of each plane; bytes are per sample group
FULL, HALF, PAIRS = (1, 1, 1), (2, 2, 1), (2, 2, 2)
BAYER = [f"bayer_{order}" for order in ("rggb", "bggr", "gbrg", "grbg")]
PLANES: dict[str, list[tuple[int, int, int]]] = {
    **{name: [(1, 1, 3)] for name in ("rgb8", "bgr8")},
    **{name: [(1, 1, 4)] for name in ("rgba8", "bgra8")},
    **{name: [(1, 1, 6)] for name in ("rgb16", "bgr16")},
    **{name: [(1, 1, 8)] for name in ("rgba16", "bgra16")},
    **{name: [FULL] for name in ("mono8", *(f"{name}8" for name in BAYER))},
    **{name: [(1, 1, 2)] for name in ("mono16", "16UC1", *(f"{name}16" for name in BAYER))},
    **{name: [(1, 1, 2)] for name in ("yuyv", "yvyu", "uyvy")},
    **{name: [FULL, PAIRS] for name in ("nv12", "nv21")},
    **{name: [FULL, HALF, HALF] for name in ("i420", "yv12")},
}
# OpenCV calls a mosaic by the second and third pixel of its second row: ROS's RGGB is BayerBG.
CODES = {
    "rgb8": None,
    "bgr8": cv2.COLOR_BGR2RGB,
    "rgba8": cv2.COLOR_RGBA2RGB,
    "bgra8": cv2.COLOR_BGRA2RGB,
    "mono8": cv2.COLOR_GRAY2RGB,
    "mono16": cv2.COLOR_GRAY2RGB,
    "16UC1": cv2.COLOR_GRAY2RGB,
    "bayer_rggb8": cv2.COLOR_BayerBG2RGB,
    "bayer_bggr8": cv2.COLOR_BayerRG2RGB,
    "bayer_gbrg8": cv2.COLOR_BayerGR2RGB,
    "bayer_grbg8": cv2.COLOR_BayerGB2RGB,
    "yuyv": cv2.COLOR_YUV2RGB_YUY2,
    "yvyu": cv2.COLOR_YUV2RGB_YVYU,
    "uyvy": cv2.COLOR_YUV2RGB_UYVY,
    "nv12": cv2.COLOR_YUV2RGB_NV12,
    "nv21": cv2.COLOR_YUV2RGB_NV21,
    "i420": cv2.COLOR_YUV2RGB_I420,
    "yv12": cv2.COLOR_YUV2RGB_YV12,
}
CODES |= {name.replace("8", "16"): code for name, code in CODES.items() if name.endswith("8") and name != "mono8"}
NAMES = tuple(PLANES)
INTEGERS = (int, np.int16, np.uint16, np.int32, np.uint32, np.int64, np.uint64)


def samples_of(name: str) -> int:
    """Bytes per sample."""
    return 2 if "16" in name else 1


def rows_of(name: str, height: int, width: int) -> list[tuple[int, int]]:
    """(rows, bytes per row) of each plane."""
    return [(height // down, width // across * many) for down, across, many in PLANES[name]]


def converted(name: str, planes: list[Any], scale: float | None) -> Any:
    """RGB by cv2 of planes with the picture's own rows: (rows, bytes) uint8, or (rows, samples) uint16."""
    height, code = len(planes[0]), CODES[name]
    if len(planes) > 1:
        width = planes[0].shape[1]
        stacked = np.concatenate([np.ascontiguousarray(plane).ravel() for plane in planes])
        return cv2.cvtColor(stacked.reshape(height * 3 // 2, width), code)
    image = np.ascontiguousarray(planes[0])
    channels = {"rgb": 3, "bgr": 3, "rgba": 4, "bgra": 4, "yuyv": 2, "yvyu": 2, "uyvy": 2}
    many = channels.get(name.rstrip("0123456789"), 1)
    image = image.reshape(height, -1, many) if many > 1 else image
    if name.startswith("bayer"):
        image = cv2.cvtColor(image, code)
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image.reshape(height, -1), alpha=scale or 255 / 65535).reshape(image.shape)
    return image if code is None or name.startswith("bayer") else cv2.cvtColor(image, code)


def reference(given: dict[str, Any]) -> Any:
    """RGB of a frame's arguments; an IndexError where bytes are missing."""
    name, data = given["format"], given["data"]
    order = ">u2" if given.get("big_endian") else "<u2"
    if isinstance(data, np.ndarray) and data.ndim > 1:
        if len(PLANES[name]) == 1:
            flat = np.ascontiguousarray(data).reshape(len(data), -1)
            return converted(name, [flat.astype(np.uint16) if samples_of(name) == 2 else flat], given.get("scale"))
        given = {**given, "data": np.ascontiguousarray(data).tobytes(), "step_bytes": None}
        given |= {"height_px": len(data) * 2 // 3, "width_px": data.shape[1]}
        data = given["data"]
    height, width = int(given["height_px"]), int(given["width_px"])
    sizes = rows_of(name, height, width)
    parts = [bytes(part) for part in data] if isinstance(data, tuple | list) else [bytes(data)] * len(sizes)
    steps, offsets = given.get("step_bytes"), given.get("offsets_bytes")
    if steps is None or np.ndim(steps) == 0:
        first = int(steps or 0) or sizes[0][1]
        steps = [first * length // sizes[0][1] for _, length in sizes]
    if offsets is None:
        ends = np.cumsum([0, *(int(step) * rows for step, (rows, _) in zip(steps, sizes, strict=False))])
        offsets = [0] * len(sizes) if isinstance(data, tuple | list) else ends.tolist()
    planes = []
    for part, (rows, length), step, offset in zip(parts, sizes, steps, np.atleast_1d(offsets), strict=False):
        starts = [int(offset) + int(step) * row for row in range(rows)]
        lines = [part[start : start + length] for start in starts]
        if any(len(line) != length for line in lines) or min(starts) < 0:
            raise IndexError(f"bytes are missing: {rows} rows of {length} from {offset} in steps of {step}")
        plane = np.frombuffer(b"".join(lines), np.uint8).reshape(rows, length)
        planes.append(plane.view(order).astype(np.uint16) if samples_of(name) == 2 else plane)
    return converted(name, planes, given.get("scale"))


def case(rng: np.random.Generator, name: str) -> dict[str, Any]:
    """Arguments of a good frame: a random size, layout and container."""
    height, width = (int(side) for side in 2 * rng.integers(2, (24, 40)))
    if not name.startswith(("nv", "i4", "yv", "yu", "uy")):
        height, width = height + int(rng.integers(2)), width + int(rng.integers(2))
    given: dict[str, Any] = {"format": name}
    if samples_of(name) == 2:
        given["scale"] = 255 / 5000 if name == "16UC1" or rng.random() < 0.3 else None
    kind = rng.choice(["array", "tight", "step", "steps", "offsets", "separate"])
    if kind == "array":
        return {**given, "data": _as_array(rng, name, height, width)}
    integer = INTEGERS[rng.integers(len(INTEGERS))]
    given |= {"height_px": integer(height), "width_px": integer(width), "big_endian": bool(rng.integers(2))}
    sizes = rows_of(name, height, width)
    gap = 4 * int(rng.integers(0, 20))
    steps = [length + gap * length // sizes[0][1] for _, length in sizes]
    if kind == "step" and any(steps[0] * length % sizes[0][1] for _, length in sizes):
        kind = "steps"
    if kind == "tight":
        steps = [length for _, length in sizes]
    elif kind == "step":
        steps = [steps[0] * length // sizes[0][1] for _, length in sizes]
        given["step_bytes"] = integer(steps[0])
    else:
        steps = [length + 2 * int(rng.integers(0, 40)) for _, length in sizes]
        given["step_bytes"] = _several(rng, steps)
    if kind == "separate":
        given["data"] = tuple(_contained(rng, _noise(rng, n * s)) for s, (n, _) in zip(steps, sizes, strict=True))
        return given
    at, offsets = 0, []
    for step, (rows, _) in zip(steps, sizes, strict=True):
        at += 2 * int(rng.integers(0, 500)) if kind == "offsets" else 0
        offsets.append(at)
        at += step * rows
    if kind == "offsets":
        given["offsets_bytes"] = _several(rng, offsets)
        at += int(rng.integers(0, 5000))
    missing = steps[-1] - sizes[-1][1] if rng.random() < 0.3 else 0  # the last gap
    given["data"] = _contained(rng, _noise(rng, at - missing))
    return given


def _noise(rng: np.random.Generator, count: int) -> bytes:
    return rng.bytes(count)


def _several(rng: np.random.Generator, values: list[int]) -> Any:
    """One value per plane, as tuples, lists, arrays, or as GstVideoMeta's four."""
    forms = [tuple, list, np.array, lambda found: [*found, *[0] * (4 - len(found))]]
    return forms[rng.integers(len(forms))](values)


def _contained(rng: np.random.Generator, data: bytes) -> Any:
    forms = [bytes, bytearray, memoryview, lambda d: array("B", d), lambda d: np.frombuffer(d, np.uint8)]
    forms += [lambda d: np.frombuffer(d, np.uint8).repeat(2)[::2], lambda d: memoryview(d).cast("c")]
    return forms[rng.integers(len(forms))](data)


def _as_array(rng: np.random.Generator, name: str, height: int, width: int) -> Any:
    many = PLANES[name][0][2] // samples_of(name)
    rows = height * 3 // 2 if len(PLANES[name]) > 1 else height
    shape = (rows, width) if many == 1 else (rows, width, many)
    dtype = np.uint8 if samples_of(name) == 1 else [np.dtype("<u2"), np.dtype(">u2")][rng.integers(2)]
    larger = rng.integers(0, 256 if dtype == np.uint8 else 65536, (rows + 3, width + 5, *shape[2:])).astype(dtype)
    found = [larger[:rows, :width], larger[3:, 5:], larger[rows - 1 :: -1, width - 1 :: -1]][rng.integers(3)]
    assert found.shape == shape
    return found.copy() if rng.random() < 0.3 else found


def _released() -> memoryview:
    view = memoryview(b"1234")
    view.release()
    return view


class Liar:
    """An object whose ``__index__`` is not what it seems."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __index__(self) -> Any:
        return self.value


SIZES: tuple[Any, ...] = (
    0,
    -1,
    1,
    3,
    2**31,
    2**63,
    2**200,
    True,
    4.0,
    "4",
    None,
    b"4",
    np.uint8(200),
    np.uint16(65535),
)
SIZES += (np.float32(4), np.bool_(True), np.array(4), np.array([4, 5]), [4], float("nan"), Liar(6), Liar("6"), 1j)
SEVERAL: tuple[Any, ...] = (*SIZES, (), (0,), (-8, 8), (64, 2**63), (64, None), ("a", "b"), [64, 32, 32], [[64], [32]])
SEVERAL += (np.zeros((2, 2)), np.array([64.0, 64.0]), {0: 64, 1: 64}, {64}, "6464", array("I", [64, 64]), (64, 0, 0, 0))
DATA: tuple[Any, ...] = (None, b"", "text", 5, [1, 2, 3], (), [b""], {}, object(), np.float64(1), np.zeros(()))
DATA += (np.zeros(9), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3), np.int8), array("H", [1]))
DATA += (memoryview(b"12345678").cast("H"), memoryview(b"12345678").cast("B", (2, 4)), array("b", [1, -1]), _released())
DATA += (np.zeros((2, 2), object), np.zeros(4, "M8[s]"), np.zeros(5, [("a", "u1")]), np.zeros((4, 4, 3, 1), np.uint8))
DATA += (np.broadcast_to(np.uint8(7), (6, 6)), np.broadcast_to(np.uint8(7), (6, 6, 3)), [[1, 2], [3, 4]])
FORMS: tuple[Any, ...] = (None, "", b"rgb8", 7, "RGB", "nv12 ", "jpeg", "bayer", "NV12", "yuv420", ["rgb8"], *NAMES)
SCALES: tuple[Any, ...] = (
    0,
    -1,
    1,
    float("nan"),
    float("inf"),
    "1",
    b"1",
    True,
    1e300,
    1e-300,
    10**400,
    1j,
    [1],
    object(),
)
FLAGS: tuple[Any, ...] = (0, 1, 2, -1, "yes", None, np.bool_(True), 1.0, np.uint8(1), [], np.array([True, False]))
POOLS = {"data": DATA, "format": FORMS, "height_px": SIZES, "width_px": SIZES, "step_bytes": SEVERAL}
POOLS |= {"offsets_bytes": SEVERAL, "scale": SCALES, "big_endian": FLAGS}


def hostile(rng: np.random.Generator) -> dict[str, Any]:
    """Arguments of a good frame, of which up to three are changed a little, or replaced by anything."""
    given = case(rng, NAMES[rng.integers(len(NAMES))])
    for _ in range(rng.choice(4, p=[0.1, 0.6, 0.2, 0.1])):
        key = list(POOLS)[rng.integers(len(POOLS))]
        near = _near(rng, given.get(key))
        given[key] = near if near is not None and rng.random() < 0.5 else POOLS[key][rng.integers(len(POOLS[key]))]
    return given


def _near(rng: np.random.Generator, value: Any) -> Any:
    """Nearly the same: a size that is off by a little, data with a few bytes less or more."""
    off = int(rng.integers(-3, 4))
    if isinstance(value, bytes):
        return value + bytes(off) if off > 0 else value[: len(value) + off]
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        return int(value) + off
    if isinstance(value, list | tuple) and value and isinstance(value[-1], int):
        return [*value[:-1], value[-1] + 16 * off]
    if isinstance(value, np.ndarray) and value.ndim and value.size:
        return value[: len(value) + off] if off < 0 else value.astype(np.float32) if off > 1 else value.copy("F")
    return None
