"""edgeres predict"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from edgeres.cli.options import (
    UserPath,
    as_json,
    backend_option,
    choice,
    trust_options,
    trusted,
    whole_number,
    written_file,
)
from edgeres.cli.progress import progress
from edgeres.cli.show import echo, print_json
from edgeres.records import IMAGE_ORDERS, ImagePrediction, UnreadableImage, in_order
from edgeres.words import escaped

NAMED = 10


@click.command("predict")
@click.argument("bundle", type=UserPath())
@click.argument("images", type=UserPath(), nargs=-1, required=True, metavar="IMAGE|DIR...")
@whole_number("--top", "Classes to show.  [default: 5; 1 below a directory]")
@choice("--sort", IMAGE_ORDERS, "Order of the images.  [default: path; on the sheet: unsure, least sure first]")
@written_file("--sheet", "Write a contact sheet, .html or .png.")
@backend_option
@trust_options
@as_json
def command(
    bundle: Path,
    images: tuple[Path, ...],
    top: int | None,
    sort: str | None,
    sheet: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Answer images with a bundle's INT8 network: the given files, and all images below the given directories.

    Where folders are named as the network's labels, wrong answers are marked and counted. Images in directories that
    cannot be read are left out and listed; a file given by name must be readable.

    \b
    edgeres predict resnet18.edgeres photo.jpg
    edgeres predict resnet18.edgeres photos/ --sheet sheet.html --sort unsure
    """
    from edgeres.errors import SourceError
    from edgeres.files import write_file
    from edgeres.runtime.predictions import classify_all, find_images
    from edgeres.task.load import load

    _check_sheet(sheet)
    with load(bundle, backend=given.pop("backend"), trust=trusted(given)) as classify:
        classes = classify.classes
        _check_asked({"--sheet": sheet, "--sort": sort, "--top": top} if not classes else {}, classify.task)
        listing = find_images(images, classes)
        found = listing.files
        with progress(quiet=as_json).task("classifying", len(found)) as advance:
            told = list(classify_all(classify, found, pictures=sheet is not None, advance=advance))
        backend = classify.backend
    answers = [answer for answer in told if not isinstance(answer, UnreadableImage)]
    unreadable = [answer for answer in told if isinstance(answer, UnreadableImage)]
    if not answers:
        raise SourceError(f"none of {len(told):,} images can be read: {_named(unreadable)}", where=images[0])
    if not classes:
        _tell(answers, unreadable, backend, listing.notes, as_json=as_json)
        return
    answers = in_order(answers, sort or "path")
    if sheet is not None:
        write_file(sheet, _sheet(sheet, bundle, answers, unreadable, sort or "unsure"))
    listed = any(not image.named for image in found)
    if as_json:
        print_json(_as_json(answers, unreadable, backend, top or 5))
    else:
        _show(answers, top or (1 if listed else 5), lines=listed)
        if listed:
            echo(_summary(answers))
        if sheet is not None:
            echo(f"sheet: {sheet}")
    for note in listing.notes:
        echo(f"note: {note}", err=True)
    if unreadable:
        echo(_left_out(unreadable), err=True)


def _check_sheet(sheet: Path | None) -> None:
    from edgeres.errors import UsageError

    if sheet is not None and sheet.suffix.lower() not in {".html", ".png"}:
        raise UsageError("is neither a page nor a picture", where=sheet, hint="give a name that ends in .html or .png")


def _check_asked(asked: dict[str, Any], task: str) -> None:
    """Refuse options that need scores of classes."""
    from edgeres.errors import UsageError

    for option, value in asked.items():
        if value is not None:
            raise UsageError(f"needs scores of classes, and the task is {task}", where=option, hint="leave it out")


def _tell(
    answers: Sequence[ImagePrediction],
    unreadable: Sequence[UnreadableImage],
    backend: str,
    notes: Sequence[str],
    *,
    as_json: bool,
) -> None:
    """Print answers that are no classes, in their own words."""
    if as_json:
        rows = [{"image": str(one.file.path), "backend": backend, **one.prediction.to_dict()} for one in answers]
        print_json([*rows, *({"image": str(one.file.path), "error": one.why} for one in unreadable)])
    for answer in () if as_json else answers:
        click.secho(escaped(str(answer.file.path)), bold=True)
        for line in answer.prediction.words():
            echo(f"  {line}")
    for note in notes:
        echo(f"note: {note}", err=True)
    if unreadable:
        echo(_left_out(unreadable), err=True)


def _sheet(
    path: Path, bundle: Path, answers: Sequence[ImagePrediction], unreadable: Sequence[UnreadableImage], by: str
) -> bytes:
    from edgeres.report.sheet import draw_sheet, render_sheet

    if path.suffix.lower() == ".png":
        return draw_sheet(answers, by)
    told = [_summary(answers)]
    if unreadable:
        told.append(_left_out(unreadable))
    return render_sheet(f"What {bundle.name} says", told, answers, by).encode(errors="replace")


def _show(answers: Sequence[ImagePrediction], top: int, *, lines: bool) -> None:
    """Print one block per image, or one line per image of a directory where only the best class is wanted."""
    for answer in answers:
        path, best = str(answer.file.path), answer.prediction.top(top)
        if lines and top == 1:
            wrong = f"  (is {escaped(str(answer.file.label))})" if answer.wrong else ""
            echo(f"{100 * best[0][1]:5.1f} %  {escaped(best[0][0])}{wrong}  {escaped(str(path))}")
            continue
        click.secho(escaped(path), bold=True)
        for label, score in best:
            echo(f"  {100 * score:5.1f} %  {escaped(label)}")


def _summary(answers: Sequence[ImagePrediction]) -> str:
    known = [answer for answer in answers if answer.file.label is not None]
    count = f"{len(answers):,} image{'s' * (len(answers) > 1)}"
    if not known:
        return f"{count}; no folder is named as a label, so no answer can be called right or wrong"
    wrong = sum(answer.wrong for answer in known)
    right = f"{100 * (1 - wrong / len(known)):.2f} % right"
    return f"{count}, {len(known):,} in folders of labels: {right}, {wrong:,} wrong"


def _left_out(unreadable: Sequence[UnreadableImage]) -> str:
    words = "images cannot be read and are" if len(unreadable) > 1 else "image cannot be read and is"
    return f"{len(unreadable):,} {words} left out: {_named(unreadable)}"


def _named(unreadable: Sequence[UnreadableImage]) -> str:
    from edgeres.data.base import some

    return some((f"{one.file.path} ({one.why})" for one in unreadable), len(unreadable), NAMED)


def _as_json(
    answers: Sequence[ImagePrediction], unreadable: Sequence[UnreadableImage], backend: str, top: int
) -> list[Any]:
    rows: list[Any] = [
        {
            "image": str(answer.file.path),
            "backend": backend,
            "label": answer.file.label,
            "top": [{"label": label, "score": score} for label, score in answer.prediction.top(top)],
        }
        for answer in answers
    ]
    return rows + [{"image": str(one.file.path), "error": one.why} for one in unreadable]
