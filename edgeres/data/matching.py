"""Match the classes of a source with a network's outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable

import numpy as np

from edgeres.data.base import Source, View, check_labels_below, some
from edgeres.data.labels import imagenet_classes
from edgeres.errors import SourceError

Names = tuple[str, ...]
Outputs = list[int | None]


def match_labels(source: Source, spec_labels: Names) -> Source:
    """The same images, with labels that are indices of the network's outputs, and with its class names.

    The labels of a source without class names must be such indices already. The first rule that gives every class its
    own output is used:

    1. by name: exactly, or ignoring case, spaces, underscores and hyphens;
    2. by WordNet id (``n01440764`` or ``n01440764_tench``) where the network's classes are ImageNet's 1,000;
    3. by number, where all names are numbers (``10`` is output 10, although it sorts before ``2``);
    4. by sorted order, where all labels of the network are generic (``class 7``) and both have as many.

    The source may have fewer classes than the network. Only validation needs this: calibration reads no labels.

    Args:
        spec_labels: one name per output, as in ``ModelSpec.labels``.

    Raises:
        SourceError: there are no labels, some are out of range, or names do not match; the message shows both.
    """
    if (source.labels < 0).any():
        hint = "validation needs one folder per class, or labels"
        raise SourceError("has no labels", where=source.description, hint=hint)
    if source.classes:
        outputs = np.array(_match(source, spec_labels), np.int64)
    else:
        check_labels_below(len(spec_labels), source.labels, source.name, source.description)
        outputs = np.arange(len(spec_labels))
    return View(source, np.arange(len(source)), outputs[source.labels], spec_labels, source.description)


def _match(source: Source, spec_labels: Names) -> list[int]:
    """The output of each class, by the first rule that gives every class its own output."""
    for rule in (_by_name, _by_wnid, _by_number, _by_order):
        outputs = [output for output in rule(source.classes, spec_labels) if output is not None]
        if len(set(outputs)) == len(source.classes):
            return outputs
    by_name = _by_name(source.classes, spec_labels)
    uses = Counter(by_name)
    wrong = [name for name, output in zip(source.classes, by_name, strict=True) if output is None or uses[output] > 1]
    raise SourceError(
        f"{len(wrong):,} of {len(source.classes):,} classes match none of the model's labels, or the same one twice: "
        f"{some(wrong, len(wrong))}; the model has {some(spec_labels, len(spec_labels))}",
        where=source.description,
        hint="rename the classes as the model's labels, or give the data set it was trained on",
    )


def _by_name(names: Names, spec_labels: Names) -> Outputs:
    exact = _index_of_unique(spec_labels)
    plain = _index_of_unique(map(_plain, spec_labels))
    return [exact.get(name, plain.get(_plain(name))) for name in names]


def _by_wnid(names: Names, spec_labels: Names) -> Outputs:
    wnids, words = zip(*imagenet_classes(), strict=True)
    if spec_labels != words and not (len(spec_labels) == len(wnids) and _is_generic(spec_labels)):
        return []
    index = {wnid: output for output, wnid in enumerate(wnids)}
    return [index.get(name.split("_")[0]) for name in names]


def _by_number(names: Names, spec_labels: Names) -> Outputs:
    numbers = map(int, names) if _are_numbers(names) else ()
    return [number if number < len(spec_labels) else None for number in numbers]


def _by_order(names: Names, spec_labels: Names) -> Outputs:
    """Names that are numbers are left to :func:`_by_number`; sorted as text they would get wrong outputs."""
    fits = _is_generic(spec_labels) and len(names) == len(spec_labels) and not _are_numbers(names)
    return [*range(len(names))] if fits else []


def _index_of_unique(labels: Iterable[str]) -> dict[str, int]:
    labels = list(labels)
    count = Counter(labels)
    return {label: output for output, label in enumerate(labels) if count[label] == 1}


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]", "", name).casefold()


def _is_generic(labels: Names) -> bool:
    return all(re.fullmatch(r"class[ _]\d+", label) for label in labels)


def _are_numbers(names: Names) -> bool:
    return all(re.fullmatch(r"[0-9]{1,9}", name) for name in names)
