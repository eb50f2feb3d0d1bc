"""A calibration in parts: on several machines, or in several runs.

Images are split into the batches that a single run would take, and every batch is computed as in that run. Sketches add
up exactly, so the result does not depend on which part had which batch, nor on the order in which parts are merged.

    state = State.empty(job)
    state.merge(part)          # a part is a State too
    state.document("mse")      # the content of calibration.json, once every batch is in
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgeres._version import __version__
from edgeres.calibrate.identity import Identity
from edgeres.calibrate.record import Calibration, Wanted
from edgeres.calibrate.sketch import Sketch
from edgeres.data.base import some
from edgeres.data.loader import OnUnreadable
from edgeres.data.npz import check_sizes, read_array
from edgeres.documents import MAX_BYTES, DocumentKind, require
from edgeres.errors import InputError, SourceError, reading
from edgeres.files import read_file
from edgeres.records import I64, Method, Preprocess

MAX_SHARDS = 1_000_000
_AGAIN = "edgeres calibrate --shard writes one"


@dataclass(frozen=True)
class CalibrationJob:
    """What all parts of one calibration have in common.

    Attributes:
        model: the graph that runs.
        preprocess: preprocessing of its input.
        source, source_digest: description of the images, and their SHA-256.
        images: number of images in the source.
        batch: images per step.
        wanted: the ranges to choose, by style.
    """

    model: Identity
    preprocess: Preprocess
    source: str
    source_digest: str
    images: int
    batch: int
    wanted: Mapping[str, Wanted]
    on_unreadable: OnUnreadable = "fail"

    def __post_init__(self) -> None:
        require(0 <= self.images < 1 << 40, "images must be 0 to 2**40")
        require(self.batch >= 1, "batch must be 1 or more")
        likes = ({*asked.like.values()} <= {*asked.all} for asked in self.wanted.values())
        require(all(likes), "like must name tensors with a range of their own")

    @property
    def batches(self) -> int:
        return -(-self.images // self.batch)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The tensors to observe, each once."""
        return tuple(dict.fromkeys(tensor for asked in self.wanted.values() for tensor in asked.all))

    def shard(self, index: int, count: int) -> I64:
        """Numbers of the batches in shard ``index`` (from 1) of ``count``: every ``count``-th batch."""
        return np.arange(index - 1, self.batches, count, dtype=np.int64)

    def positions(self, batches: I64) -> I64:
        """Positions in the source of the images of some batches."""
        all_of = batches[:, None] * self.batch + np.arange(self.batch)
        return all_of[all_of < self.images].astype(np.int64)

    def difference(self, other: CalibrationJob) -> str:
        """Why parts of this job and ``other`` cannot be merged, in words; "" where they can."""
        model = self.model.difference(other.model)
        pairs = {
            "other images": (self.source_digest, other.source_digest),
            "another preprocessing": (self.preprocess, other.preprocess),
            "another --batch": (self.batch, other.batch),
            "other tensors": (dict(self.wanted), dict(other.wanted)),
            "another rule for unreadable images": (self.on_unreadable, other.on_unreadable),
        }
        return model or next((words for words, (ours, theirs) in pairs.items() if ours != theirs), "")


@dataclass(frozen=True)
class _Header:
    """The JSON document in a state file.

    Attributes:
        edgeres: the version that wrote it.
        bins: shapes of a sketch's arrays; versions with other shapes cannot read the file.
    """

    edgeres: str
    bins: Mapping[str, tuple[int, ...]]
    job: CalibrationJob
    samples: int
    unreadable: tuple[str, ...]
    shard: tuple[int, int]

    def __post_init__(self) -> None:
        require(self.samples >= 0, "samples must not be negative")
        require(1 <= self.shard[0] <= self.shard[1] <= MAX_SHARDS, "shard must be 1/1 to N/N, with N at most a million")


_STATE = DocumentKind(_Header, "a state of a calibration", _AGAIN, schemas=(2, 2), kind="edgeres calibration state")


@dataclass
class State:
    """An unfinished calibration.

    Attributes:
        done: numbers of the batches that are counted.
        sketches: by tensor.
        samples: number of images in these batches that could be read.
        unreadable: the other images, each with the reason.
        shard: index and count, for messages only.
    """

    job: CalibrationJob
    done: set[int]
    sketches: dict[str, Sketch]
    samples: int = 0
    unreadable: list[str] = field(default_factory=list)
    shard: tuple[int, int] = (1, 1)

    @staticmethod
    def empty(job: CalibrationJob, shard: tuple[int, int] = (1, 1)) -> State:
        return State(job, set(), {name: Sketch() for name in job.tensors}, shard=shard)

    def merge(self, part: State) -> None:
        """Add a part of the same job; the result is exact and does not depend on the order.

        Raises:
            InputError: the part is of another job, or has batches that are counted already.
        """
        wrong = self.job.difference(part.job)
        if wrong:
            raise InputError(f"the parts are of different calibrations: {wrong}")
        if self.done & part.done:
            raise InputError(f"{len(self.done & part.done)} batches are in two of the parts")
        for name, sketch in self.sketches.items():
            sketch.merge(part.sketches[name])
        self.done |= part.done
        self.samples += part.samples
        self.unreadable += part.unreadable

    def left(self, batches: I64) -> I64:
        """The batches that are not counted yet, in order."""
        return np.array([number for number in batches.tolist() if number not in self.done], np.int64)

    def calibration(self) -> Calibration:
        job = self.job
        return Calibration(self.sketches, self.samples, job.source, job.source_digest, job.preprocess)

    def document(self, method: Method) -> dict[str, Any]:
        """The content of calibration.json.

        Raises:
            SourceError: none of the images could be read.
        """
        if not self.samples:
            what = f"none of {self.job.images:,} images can be read: {some(self.unreadable, len(self.unreadable), 10)}"
            raise SourceError(what, where=self.job.source, hint="give images that Pillow can read")
        job, calibration = self.job, self.calibration()
        ranges = calibration.choose(method, job.wanted)
        return calibration.to_dict(method, ranges, job.model, job.batch, tuple(sorted(self.unreadable)))

    def pack(self) -> bytes:
        """The content of a state file: an .npz with the counts of non-empty bins."""
        header = _Header(__version__, _layout(), self.job, self.samples, tuple(self.unreadable), self.shard)
        arrays: dict[str, Any] = {
            f"{number}.{name}": values
            for number, sketch in enumerate(self.sketches.values())
            for name, values in _dissolve(sketch).items()
        }
        stream = io.BytesIO()
        text = np.frombuffer(json.dumps(_STATE.content(header)).encode(), np.uint8)
        np.savez_compressed(stream, header=text, done=np.array(sorted(self.done), np.int64), **arrays)
        return stream.getvalue()

    @staticmethod
    def unpack(content: bytes, where: object = None) -> State:
        """The state in the content of a state file.

        Raises:
            InputError: it is something else, damaged, or from a version with other bins.
            EnvironmentError_: there is not enough memory for it.
        """
        with reading(where, "is not a state of a calibration, or damaged", hint=_AGAIN):
            file = _arrays(content)
            header = _STATE.decode(file.pop("header").tobytes(), where)
            if dict(header.bins) != _layout():
                what = f"was written by edgeres {header.edgeres}, whose states differ from those of {__version__}"
                raise InputError(what, where=where, hint="calibrate every shard with one version")
            done = _numbers(file.pop("done"), header.job.batches)
            sketches = {name: _rebuild(file, number) for number, name in enumerate(header.job.tensors)}
            require(not file, "there are unknown arrays")
            complete = header.samples + len(header.unreadable) == len(header.job.positions(done))
            require(complete, "samples must be the number of images in its batches")
        return State(header.job, set(done.tolist()), sketches, header.samples, [*header.unreadable], header.shard)


def _arrays(content: bytes) -> dict[str, npt.NDArray[Any]]:
    """The arrays of an .npz.

    Raises:
        ValueError: an array is too large. What zipfile, zlib and NumPy raise for damaged files.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        large = [info.filename for info in members if info.file_size > MAX_BYTES]
        require(not large, f"{large[:1]} is too large")
        check_sizes(members)
        return {info.filename.removesuffix(".npy"): read_array(archive, info) for info in members}


def _dissolve(sketch: Sketch) -> dict[str, npt.NDArray[Any]]:
    """The content of a sketch: of each array the places and values of its non-zero elements, and the numbers."""
    parts: dict[str, npt.NDArray[Any]] = {}
    for name, value in vars(sketch).items():
        if isinstance(value, np.ndarray):
            flat = value.reshape(-1)
            places = np.flatnonzero(flat)
            parts |= {f"{name}.places": places, f"{name}.values": flat[places]}
        else:
            parts[name] = np.asarray(value)
    return parts


def _rebuild(file: dict[str, npt.NDArray[Any]], number: int) -> Sketch:
    """A sketch from its arrays, which are taken out of ``file``."""
    sketch = Sketch()
    for name, value in vars(sketch).items():
        if isinstance(value, np.ndarray):
            places = _numbers(file.pop(f"{number}.{name}.places"), value.size)
            counts = file.pop(f"{number}.{name}.values")
            alike = counts.dtype == value.dtype and counts.shape == places.shape
            require(alike, "there are not as many values as places")
            require(bool((counts > 0).all()), "a count is not positive")
            value.reshape(-1)[places] = counts
        else:
            found = file.pop(f"{number}.{name}")
            require(found.shape == () and found.dtype == np.float64, f"{name} is not a number")
            setattr(sketch, name, float(found))
    finite = bool(np.isfinite([sketch.low, sketch.high]).all())
    require(sketch.low <= sketch.high if finite else sketch.count == 0, "low and high are not a range")
    return sketch


def _numbers(values: npt.NDArray[Any], end: int) -> I64:
    """Whole numbers from 0 to below ``end``, ascending; anything else is refused."""
    require(values.dtype == np.int64 and values.ndim == 1, "places are not a list of integers")
    require(bool((np.diff(values, prepend=-1, append=end) > 0).all()), "places are out of range or order")
    return values


def _layout() -> dict[str, tuple[int, ...]]:
    return {name: np.shape(value) for name, value in vars(Sketch()).items()}


def read_state(path: Path) -> State:
    """Read a state file.

    Raises:
        InputError: missing, damaged, or something else.
    """
    with reading(path, hint="check the path"):
        content = read_file(path)
    return State.unpack(content, path)


def merge_files(paths: Sequence[Path]) -> State:
    """The complete calibration from the states of its shards.

    Raises:
        InputError: the states are of different calibrations, two hold the same images, or images are missing.
    """
    state = read_state(paths[0])
    given = [state.shard]
    for path in paths[1:]:
        part = read_state(path)
        try:
            state.merge(part)
        except InputError as error:
            where, hint = f"{paths[0]} and {path}", "give each shard of one calibration once"
            raise InputError(error.what, where=where, hint=hint) from None
        given.append(part.shard)
    left = state.left(state.job.shard(1, 1))
    if len(left):
        missing = f"{len(state.job.positions(left)):,} of {state.job.images:,} images are in none of the parts"
        raise InputError(missing, where=", ".join(map(str, paths)), hint=_absent(given))
    return replace(state, shard=(1, 1))


def _absent(given: Iterable[tuple[int, int]]) -> str:
    """Which shards are missing, if all are shards of one split."""
    indices, counts = zip(*given, strict=True)
    absent = [f"{index}/{counts[0]}" for index in range(1, counts[0] + 1) if index not in indices]
    if len(set(counts)) > 1 or not absent:
        return "give all shards of one split"
    many = len(absent) > 1
    return f"shard{'s' * many} {some(absent, len(absent), 10)} {'are' if many else 'is'} missing"
