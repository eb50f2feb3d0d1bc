"""A contact sheet of ``edgeres predict``: images with their predictions, as a page or a picture."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from io import BytesIO

from PIL import Image, ImageDraw, ImageFont

from edgeres.records import IMAGE_ORDERS, THUMBNAIL_PX, ImagePrediction, in_order
from edgeres.report.markup import Html, el, join, render_page

SHOWN = 1000  # images of about 5 kB each
_WORDS = {"unsure": "least sure first", "sure": "surest first", "class": "by class", "path": "by name"}
_COLUMNS, _GAP, _TEXT_PX = 8, 12, 48


def render_sheet(title: str, told: Sequence[str], answers: Sequence[ImagePrediction], by: str) -> str:
    """The sheet as a page; its reader chooses the order, and whether only wrong answers are shown, without a script.

    Args:
        told: lines above the pictures.
        answers: the first :data:`SHOWN` in the order ``by`` are shown.
        by: one of :data:`IMAGE_ORDERS`.
    """
    shown = in_order(answers, by)[:SHOWN]
    if len(answers) > len(shown):
        told = [*told, f"{len(shown):,} of {len(answers):,} are shown, {_WORDS[by]}."]
    places = {sort: {id(answer): i for i, answer in enumerate(in_order(shown, sort))} for sort in IMAGE_ORDERS}
    places["path"] = {id(answer): i for i, answer in enumerate(sorted(shown, key=lambda a: str(a.file.path)))}
    figures = (_figure(answer, {sort: places[sort][id(answer)] for sort in IMAGE_ORDERS}) for answer in shown)
    wrong = sum(answer.wrong for answer in shown)
    choices = [_choice("radio", sort, words, checked=sort == by) for sort, words in _WORDS.items()]
    if wrong:
        choices.append(_choice("checkbox", "wrong", f"only the {wrong:,} wrong", checked=False))
    sheet = el("section", *choices, el("div", *figures, class_="gallery"), class_="sheet")
    head = (el("h1", title), *(el("p", line, class_="soft") for line in told))
    return render_page(title, join(*head, sheet))


def _choice(kind: str, name: str, words: str, *, checked: bool) -> Html:
    on = {"checked": ""} if checked else {}
    group = "order" if kind == "radio" else name
    return join(el("input", type=kind, name=group, id=name, **on), el("label", words, for_=name))


def _figure(answer: ImagePrediction, places: dict[str, int]) -> Html:
    path, p = answer.file.path, answer.prediction
    names = {"sure": "--sure", "unsure": "--unsure-first", "class": "--class", "path": "--path"}
    told = [el("span", f"{p.label}, {100 * p.score:.1f}\u00a0%", class_=_colour(answer))]
    if answer.wrong:
        told.append(el("span", f"is {answer.file.label}"))
    said = f"{path}: {p.label}, {100 * p.score:.1f} %" + (f", is {answer.file.label}" if answer.wrong else "")
    source = f"data:image/jpeg;base64,{b64encode(answer.jpeg).decode()}"
    return el(
        "figure",
        el("img", src=source, alt=said, title=str(path), loading="lazy"),
        el("figcaption", *told, el("span", path.name, class_="soft small")),
        style=";".join(f"{names[sort]}:{place}" for sort, place in places.items()),
        **({"class_": "wrong"} if answer.wrong else {}),
    )


def _colour(answer: ImagePrediction) -> str:
    return "known" if answer.file.label is None else "fail" if answer.wrong else "pass"


def draw_sheet(answers: Sequence[ImagePrediction], by: str) -> bytes:
    """The sheet as a PNG file: rows of images with label and score; wrong ones have a frame."""
    shown = in_order(answers, by)[:SHOWN]
    columns = min(_COLUMNS, max(1, len(shown)))
    rows = -(-len(shown) // columns)
    cell = (THUMBNAIL_PX + _GAP, THUMBNAIL_PX + _TEXT_PX + _GAP)
    canvas = Image.new("RGB", (columns * cell[0] + _GAP, rows * cell[1] + _GAP), "white")
    draw, font = ImageDraw.Draw(canvas), _font()
    for i, answer in enumerate(shown):
        left, top = (_GAP + place * size for place, size in zip((i % columns, i // columns), cell, strict=True))
        picture = Image.open(BytesIO(answer.jpeg))
        corner = (left + (THUMBNAIL_PX - picture.width) // 2, top + (THUMBNAIL_PX - picture.height) // 2)
        canvas.paste(picture, corner)
        ink = "#b3261e" if answer.wrong else "#1b1f24"
        if answer.wrong:
            draw.rectangle((left, top, left + THUMBNAIL_PX - 1, top + THUMBNAIL_PX - 1), outline=ink, width=3)
        lines = [f"{answer.prediction.label}", f"{100 * answer.prediction.score:.1f} %"]
        if answer.wrong:
            lines[1] += f", is {answer.file.label}"
        for line, text in enumerate([*lines, answer.file.path.name]):
            draw.text((left, top + THUMBNAIL_PX + 3 + 14 * line), _fits(draw, text, font), ink, font=font)
    stream = BytesIO()
    canvas.save(stream, "PNG")
    return stream.getvalue()


def _font() -> ImageFont.ImageFont | ImageFont.FreeTypeFont:
    return ImageFont.load_default(12)


def _fits(draw: ImageDraw.ImageDraw, text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """Cut text to the width of a picture; characters that the font lacks become question marks."""
    text = text if isinstance(font, ImageFont.FreeTypeFont) else text.encode("latin-1", "replace").decode("latin-1")
    while draw.textlength(text, font=font) > THUMBNAIL_PX and len(text) > 4:
        text = f"{text[:-4]}..." if text.endswith("...") else f"{text[:-3]}..."
    return text
