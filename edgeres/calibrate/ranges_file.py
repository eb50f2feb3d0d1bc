"""A calibration.json read back: its ranges in place of measured ones, if they belong to the network."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from edgeres.calibrate.identity import Identity
from edgeres.calibrate.record import SCHEMA, Ranges, Wanted, document
from edgeres.data.base import Source
from edgeres.errors import InputError
from edgeres.records import U8, Method, Preprocess, TensorRange

_AGAIN = "edgeres calibrate makes a new one"


@dataclass(frozen=True)
class Recorded:
    """A calibration.json that was read and whose form was checked.

    Attributes:
        path: of the file.
        content: of the file.
    """

    path: Path
    content: Mapping[str, Any]

    @property
    def method(self) -> Any:
        """A :data:`Method`, or ``imported``."""
        return str(self.content["method"])

    @property
    def batch(self) -> int | None:
        """Images that ran at a time, where that is known."""
        return self.content.get("batch")

    @property
    def samples(self) -> int:
        """Images it was measured on; 0 where the ranges were imported."""
        return int(self.content["samples"])

    @property
    def model(self) -> Identity:
        """The graph whose tensors it names."""
        return Identity.from_dict(self.content["model"])

    @property
    def preprocess(self) -> Preprocess:
        return Preprocess.from_dict(self.content["preprocess"])

    def choose(
        self, method: Method, wanted: Mapping[Any, Wanted], known: Mapping[str, TensorRange] = MappingProxyType({})
    ) -> Ranges:
        """The recorded ranges, whatever the method; see :meth:`Calibration.choose`.

        Raises:
            InputError: some are not in the file.
        """
        return {style: asked.complete(self._of_style(style, asked, known)) for style, asked in wanted.items()}

    def _of_style(self, style: str, asked: Wanted, known: Mapping[str, TensorRange]) -> dict[str, TensorRange]:
        entries = {name: entry["ranges"] for name, entry in self.content["tensors"].items()}
        limits = {name: entries.get(name, {}).get(style) for name in asked.all if name not in known}
        for name in limits.keys() & set(asked.symmetric):
            # TensorRT's own range, of a tensor behind a ReLU, may have been chosen for twice the codes.
            limits[name] = entries.get(name, {}).get("symmetric") or limits[name]
        missing = [name for name, found in limits.items() if found is None]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            what = f"holds no range of {missing[0]}{more} for the {style} graph"
            raise InputError(what, where=self.path, hint=_AGAIN)
        found = {name: self._range(name, pair) for name, pair in limits.items()}
        return found | {name: known[name] for name in asked.all if name in known}

    def _range(self, name: str, limits: Sequence[float]) -> TensorRange:
        return TensorRange(name, float(limits[0]), float(limits[1]), self.method, self.samples)

    def to_dict(
        self,
        method: Method,
        ranges: Mapping[Any, Mapping[str, TensorRange]],
        about: Mapping[str, Any] = MappingProxyType({}),
    ) -> dict[str, Any]:
        """The content of a calibration.json with these ranges and what this one knows of the images."""
        head = {name: value for name, value in self.content.items() if name not in {"schema", "tensors"}}
        head["model"] = {**about["model"], "name": self.model.name}
        used = {name for found in ranges.values() for name in found}
        entries = {name: entry for name, entry in self.content["tensors"].items() if name in used}
        kept = {n: self._range(n, e["ranges"]["symmetric"]) for n, e in entries.items() if "symmetric" in e["ranges"]}
        observed = {name: entry["observed"] for name, entry in entries.items() if "observed" in entry}
        return document(head, {**ranges, "symmetric": kept}, observed)

    def images(self) -> Source:
        """Where the ranges come from, as a source without images: what there was to see in them is in the file."""
        return _Seen(str(self.content["source"]), str(self.content["source_digest"]))

    def of(self, forms: Iterable[tuple[Identity, Preprocess]]) -> Recorded:
        """The same ranges as those of the first of ``forms``.

        Args:
            forms: of one network, each with the preprocessing of its input; they share the tensors behind the first
                convolution, and the ranges may have been recorded for any of them. Only as many are drawn as it takes.

        Raises:
            InputError: they are of another network, or of other inputs; the line says what differs.
        """
        tried: list[tuple[Identity, Preprocess]] = []
        for model, preprocess in forms:
            tried.append((model, preprocess))
            if self.model.matches(model) and self.preprocess == preprocess:
                own = {"model": tried[0][0].to_dict(), "preprocess": tried[0][1].to_dict()}
                return replace(self, content={**self.content, **own})
        alike = sorted(tried, key=lambda form: (not self.model.matches(form[0]), form[0].graph != self.model.graph))
        model, preprocess = alike[0]
        wrong = self.model.difference(model) or _difference(self.preprocess, preprocess)
        if wrong.endswith("weights") and set(self.preprocess.std) == {1.0}:
            wrong += ", or another mean and std, which are part of them in a bundle"
        raise InputError(f"does not belong here: {wrong}", where=self.path, hint=_AGAIN)


class _Seen(Source):
    """Images that were seen once and are not needed any more."""

    def __init__(self, description: str, digest: str) -> None:
        self.classes = ()
        self.labels = np.zeros(0, np.int64)
        self.description = description
        self._digest = digest

    def name(self, index: int) -> str:
        raise IndexError(index)

    def image(self, index: int) -> U8:
        raise IndexError(index)

    def digest(self) -> str:
        return self._digest


def _difference(recorded: Preprocess, asked: Preprocess) -> str:
    ours, theirs = asked.to_dict(), recorded.to_dict()
    name = next(name for name in ours if ours[name] != theirs[name])
    return f"it was made with {name} {_plain(theirs[name])}, and this network's is {_plain(ours[name])}"


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def read_calibration(path: str | Path) -> Recorded:
    """Read a calibration.json.

    Raises:
        InputError: it is missing, damaged, or in a format that does not name its network.
    """
    path = Path(path)
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot be read ({error.strerror})", where=path, hint="check the path") from error
    except ValueError:
        raise _not_ours(path) from None
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int) or "tensors" not in content:
        raise _not_ours(path)
    if content["schema"] > SCHEMA:
        raise InputError(
            f"written in format {content['schema']}, this edgeres reads {SCHEMA}", where=path, hint="upgrade edgeres"
        )
    if not content.get("model"):
        raise InputError("does not say which network it is of", where=path, hint=_AGAIN)
    recorded = Recorded(path, content)
    try:
        _check(recorded)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"is damaged ({type(error).__name__}: {error})", where=path, hint=_AGAIN) from error
    return recorded


def _not_ours(path: Path) -> InputError:
    return InputError(
        "is no calibration.json",
        where=path,
        hint="of TensorRT caches and other tools' files edgeres calibrate --import makes one",
    )


def _check(recorded: Recorded) -> None:
    """Touch whatever is read later, so that a damaged file is told before anything is computed."""
    for name in ("method", "samples", "batch", "model", "preprocess"):
        getattr(recorded, name)
    recorded.images()
    for name, entry in recorded.content["tensors"].items():
        dict(entry.get("observed", {}))
        for low, high in entry["ranges"].values():
            if not (math.isfinite(low) and math.isfinite(high) and low <= 0 <= high):
                raise ValueError(f"the range of {name} is {low} to {high}")
