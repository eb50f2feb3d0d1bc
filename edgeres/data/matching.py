"""Match the classes of a source with a network's outputs."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from edgeres.data.base import Source, View, check_labels_below, some
from edgeres.data.labels import clean, imagenet_classes, is_generic, plain
from edgeres.data.signs import CLASSES, OWN_WEIGHTS
from edgeres.errors import SourceError

Names = tuple[str, ...]
_LABELS = "build with --labels FILE, one name per output"  # verify has no such option: the bundle has the names
_NUMBERED = re.compile(r"\d+[\s_.-]+(?=.)")  # 07_stop
_TRAINED = "give images of the classes that the network was trained on"


@dataclass(frozen=True)
class _Matched:
    """The output of each class with images.

    Attributes:
        names: one per output.
        note: what the user has to know of it.
    """

    outputs: list[int | None]
    names: Names
    note: str = ""


def match_labels(source: Source, spec_labels: Names) -> Source:
    """The same images, with labels that are indices of the network's outputs, and with its class names.

    The labels of a source without class names must be such indices already. The first rule that gives every class with
    images its own output is used:

    1. by name: exactly, or ignoring case, spaces, underscores, hyphens, and how accents are encoded; then without the
       number that all names begin with (``07_stop``);
    2. by WordNet id (``n01440764`` or ``n01440764_tench``) where the network's classes are ImageNet's 1,000;
    3. by number, where all names are numbers (``10`` is output 10, although it sorts before ``2``); numbers from 1 to
       that of outputs count from one;
    4. by order, where all labels of the network are generic (``class 7``) and both have as many: the network's outputs
       then get the classes' names.

    The source may have fewer classes than the network. Only validation needs this: calibration reads no labels.

    Args:
        spec_labels: one name per output, as in ``ModelSpec.labels``.

    Raises:
        SourceError: there are no labels, some are out of range, or names do not match; the message shows both.
    """
    if (source.labels < 0).any():
        hint = "validation needs one folder per class, or --validation-labels FILE"
        raise SourceError("has no labels", where=source.description, hint=hint)
    if not source.classes:
        check_labels_below(len(spec_labels), source.labels, source.name, source.description)
        return View(source, np.arange(len(source)), source.labels, spec_labels, source.description)
    used = np.unique(source.labels)
    match = _match(source, [source.classes[i] for i in used], spec_labels)
    outputs = np.full(len(source.classes), -1, np.int64)
    outputs[used] = np.array(match.outputs, np.int64)
    view = View(source, np.arange(len(source)), outputs[source.labels], match.names, source.description)
    view.classes_before = spec_labels
    view.notes = (*source.notes, *filter(None, [match.note]))
    return view


def _match(source: Source, names: Sequence[str], spec_labels: Names) -> _Matched:
    """The output of each of these classes, by the first rule that gives every class its own output."""
    numbered = source.classes if _are_numbers(source.classes) else names  # a selection may lack the largest number
    rules = (
        _by_name(names, spec_labels),
        _by_name([_NUMBERED.sub("", name, 1) for name in names], spec_labels) if _have_numbers(names) else None,
        _by_wnid(names, spec_labels),
        _by_number(names, numbered, spec_labels) if _are_numbers(names) else None,
    )
    for match in rules:
        if match is not None and None not in match.outputs and len(set(match.outputs)) == len(names):
            return match
    for classes in (source.classes, tuple(names)):  # a class without images counts, as in the training data, if it fits
        if is_generic(spec_labels) and len(classes) == len(spec_labels) and not _are_numbers(names):
            return _by_order(names, classes)
    what, hint = _why_not(names, spec_labels)
    raise SourceError(what, where=source.description, hint=hint)


def _by_name(names: Sequence[str], spec_labels: Names) -> _Matched:
    exact = _index_of_unique(spec_labels)
    alike = _index_of_unique(map(plain, spec_labels))
    return _Matched([exact.get(name, alike.get(plain(name))) for name in names], spec_labels)


def _by_wnid(names: Sequence[str], spec_labels: Names) -> _Matched | None:
    wnids, words = zip(*imagenet_classes(), strict=True)
    if spec_labels != words and not (len(spec_labels) == len(wnids) and is_generic(spec_labels)):
        return None
    index = {wnid: output for output, wnid in enumerate(wnids)}
    return _Matched([index.get(name.split("_")[0]) for name in names], words)


def _by_number(names: Sequence[str], classes: Sequence[str], spec_labels: Names) -> _Matched:
    """By the numbers ``names``; ``classes`` are those of all classes, which tell what they count from."""
    numbers, outputs = [int(name) for name in names], len(spec_labels)
    every = [int(name) for name in classes]
    if max(every) == outputs and min(every) >= 1:
        note = f"classes are numbered up to {outputs:,}, so they count from one: {names[0]} is output {numbers[0] - 1}"
        return _Matched([number - 1 for number in numbers], spec_labels, note)
    note = ""
    in_text_order = [int(name) for name in sorted(classes)]
    if 0 not in every and len(every) > 1:
        note = (
            f"classes are numbered without a 0: {names[0]} is taken as output {numbers[0]} of 0 to {outputs - 1}; "
            "if they count from one, build with --labels FILE that holds the numbers, one per output"
        )
    elif in_text_order != sorted(every):
        note = (
            "classes are taken as outputs by their number; a network trained with torchvision's ImageFolder has them "
            f"sorted as text ({some(map(str, in_text_order), len(classes))}): give build --labels FILE in that order"
        )
    return _Matched([number if number < outputs else None for number in numbers], spec_labels, note)


def _by_order(names: Sequence[str], classes: Names) -> _Matched:
    """Names that are numbers are left to :func:`_by_number`; sorted as text they would get wrong outputs."""
    named = tuple(map(clean, classes))
    index = {name: output for output, name in enumerate(classes)}
    listed = some(named, len(named))
    note = f"the network's outputs have no names; they are taken for the classes in this order: {listed}"
    return _Matched([index[name] for name in names], named, note)


def _why_not(names: Sequence[str], spec_labels: Names) -> tuple[str, str]:
    """Why classes match no outputs, and the next step."""
    shown, outputs = some(names, len(names)), len(spec_labels)
    if _are_numbers(names):
        largest = max(map(int, names))
        if largest >= outputs:
            return f"classes are numbered up to {largest:,}, and the network has {outputs:,} outputs", _TRAINED
        return f"several classes have the same number: {shown}", "put their images into one folder"
    if is_generic(spec_labels):
        what = f"has {len(names):,} classes ({shown}), and the network has {outputs:,} outputs without names"
        more = "give the folder whose sub-folders are the classes, or " if len(names) > outputs else ""
        return what, f"{more}{_LABELS}"
    by_name = _by_name(names, spec_labels).outputs
    known = f"the network knows {some(spec_labels, outputs)}"
    wrong = [name for name, output in zip(names, by_name, strict=True) if output is None]
    twice = _twice(wrong, spec_labels)
    if twice:
        what = f"the network has several outputs of the same name, and {twice} could be each of them"
        return what, f"{_LABELS}, all different"
    if not wrong:
        uses = Counter(by_name)
        same = [name for name, output in zip(names, by_name, strict=True) if uses[output] > 1]
        return f"several classes match the same output: {some(same, len(same))}; {known}", "put them into one folder"
    ids = " or folders named by WordNet ids" if spec_labels == tuple(word for _, word in imagenet_classes()) else ""
    if len(wrong) == len(names):
        what = f"none of its {len(names):,} classes is one of the network's: it has {shown}; {known}"
        if tuple(spec_labels) == CLASSES:
            return what, OWN_WEIGHTS
        return what, f"{_TRAINED}{ids}; if these are its classes under other names, {_LABELS}"
    what = f"{len(wrong):,} of {len(names):,} classes are none of the network's: {some(wrong, len(wrong))}; {known}"
    return what, f"take these folders out, or rename those that only have another name{ids}"


def _twice(wrong: Sequence[str], spec_labels: Names) -> str:
    """The first of these names that several outputs have."""
    uses = Counter(map(plain, spec_labels))
    return next((name for name in wrong if uses[plain(name)] > 1), "")


def _index_of_unique(labels: Iterable[str]) -> dict[str, int]:
    labels = list(labels)
    count = Counter(labels)
    return {label: output for output, label in enumerate(labels) if count[label] == 1}


def _have_numbers(names: Sequence[str]) -> bool:
    """Whether a number stands before each name."""
    return all(_NUMBERED.match(name) for name in names)


def _are_numbers(names: Sequence[str]) -> bool:
    return all(re.fullmatch(r"[0-9]{1,9}", name) for name in names)
