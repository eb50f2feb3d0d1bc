"""Records a command in a terminal, and draws docs/session.svg from the record.

    python docs/make_session.py record edgeres build --model resnet18 --int8    writes docs/session.json
    python docs/make_session.py                                                 writes docs/session.svg from it

The record holds what stands on the screen at the end, each row with the second at which it got its last form; progress
bars that were overwritten are not in it. The drawing shows each row from that moment on, in SECONDS altogether. Nothing
in it is written by hand.
"""

from __future__ import annotations

import html
import json
import os
import pty
import re
import shlex
import struct
import sys
import termios
import time
from dataclasses import dataclass, field
from fcntl import ioctl
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent
RECORD, SVG = DOCS / "session.json", DOCS / "session.svg"
COLUMNS, ROWS = 80, 100
SECONDS = 12.0  # that the drawing takes, whatever the command took
_ROW_PX, _COLUMN_PX, _PAD_PX = 17, 7.83, 14
_CONTROL = re.compile(r"\x1b\[(\??[\d;]*)([A-Za-z])|\x1b\]8;[^\x1b]*\x1b\\")
_COLOURS = {31: "#ff9a92", 32: "#69d58c", 33: "#f2c14e", 34: "#79b8ff", 35: "#e599f7", 36: "#3bc9db", 37: "#e8ebef"}


def record(command: list[str], path: Path) -> int:
    """Run a command on a terminal of its own, show it, and write what stood there; returns its exit code."""
    started, screen, at = time.time(), Screen(), 0.0
    child, terminal = pty.fork()
    if child == 0:
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS)}
        os.execvp(command[0], command)
    ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    left = b""
    while True:
        try:
            block = os.read(terminal, 1 << 16)
        except OSError:  # Linux's way to say that the child has closed it
            block = b""
        if not block:
            break
        os.write(1, block)
        text, left = _decoded(left + block)
        at = round(time.time() - started, 1)
        screen.feed(text, at)
    _, status, used = os.wait4(child, 0)
    code, processor = os.waitstatus_to_exitcode(status), round(used.ru_utime + used.ru_stime, 1)
    head: dict[str, Any] = {"command": shlex.join(command), "timestamp": int(started), "exit_code": code}
    head |= {"seconds": at, "processor_seconds": processor}
    rows = [{"since": since, "parts": _parts(row)} for row, since in zip(screen.rows, screen.since, strict=True)]
    while rows and not rows[-1]["parts"]:
        rows.pop()
    lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text(f'{json.dumps(head)[:-1]}, "rows": [\n  {lines}\n]}}\n', encoding="utf-8")
    return code


def _parts(row: list[tuple[str, str]]) -> list[tuple[int, str, str]]:
    """Column, text and style of each stretch of one style; blanks alone are left out."""
    parts, start = [], 0
    for i in range(1, len(row) + 1):
        if i < len(row) and row[i][1] == row[start][1]:
            continue
        text = "".join(character for character, _ in row[start:i]).rstrip()
        if text:
            parts.append((start, text, row[start][1]))
        start = i
    return parts


def _decoded(block: bytes) -> tuple[str, bytes]:
    """Text, and the bytes of a character that is not complete yet."""
    for end in range(len(block), max(len(block) - 4, -1), -1):
        try:
            return block[:end].decode(), block[end:]
        except UnicodeDecodeError:
            continue
    return block.decode(errors="replace"), b""


@dataclass
class Screen:
    """The part of a terminal that edgeres uses; whatever else is asked of it is an error.

    Attributes:
        rows: characters with their styles.
        since: the time at which each row got its last form.
    """

    rows: list[list[tuple[str, str]]] = field(default_factory=lambda: [[]])
    since: list[float] = field(default_factory=lambda: [0.0])
    row: int = 0
    column: int = 0
    style: tuple[int, ...] = ()

    def feed(self, text: str, at: float) -> None:
        place = 0
        while place < len(text):
            found = _CONTROL.match(text, place)
            if found:
                if found[2]:
                    self._control(found[1], found[2], at)
                place = found.end()
                continue
            self._put(text[place], at)
            place += 1

    def _put(self, character: str, at: float) -> None:
        if character == "\r":
            self.column = 0
        elif character == "\n":
            self.row += 1
            if self.row == len(self.rows):
                self.rows.append([])
                self.since.append(at)
        elif character >= " ":
            if self.column == COLUMNS:
                self.column = 0
                self._put("\n", at)
            row = self.rows[self.row]
            row.extend([(" ", "")] * (self.column + 1 - len(row)))
            new = (character, self._css())
            if row[self.column] != new:
                row[self.column] = new
                self.since[self.row] = at
            self.column += 1
        elif character != "\x07":
            raise ValueError(f"the terminal does not know {character!r}")

    def _control(self, numbers: str, letter: str, at: float) -> None:
        count = int(numbers) if numbers.isdecimal() else 0
        if letter == "m":
            codes = [int(code or 0) for code in numbers.split(";")]
            if codes[0] == 38:  # one of 256 colours: of bars, which are gone at the end
                codes = []
            self.style = () if 0 in codes else (*self.style, *codes)
        elif letter == "A":
            self.row = max(0, self.row - max(count, 1))
        elif letter == "K" and count in (0, 2):
            row, start = self.rows[self.row], self.column if count == 0 else 0
            if any(character != " " for character, _ in row[start:]):
                self.since[self.row] = at
            del row[start:]
        elif (letter, numbers) not in {("l", "?25"), ("h", "?25")}:
            raise ValueError(f"the terminal does not know ESC [ {numbers} {letter}")

    def _css(self) -> str:
        words = []
        for code in self.style:
            if code == 1:
                words.append("font-weight:bold")
            elif code == 2:
                words.append("opacity:.7")
            elif 31 <= code % 60 <= 37:
                words.append(f"fill:{_COLOURS[code % 60]}")
        return ";".join(words)


def draw(text: str) -> str:
    """The drawing of a record."""
    found = json.loads(text)
    prompt = f"$ {found['command']}"
    rows = [{"since": 0.0, "parts": [(0, prompt, "font-weight:bold")]}, *found["rows"]]
    day = time.strftime("%Y-%m-%d", time.gmtime(found["timestamp"]))
    title = f"Recorded {day}: {found['seconds']:.0f} s, {found['processor_seconds']:.0f} s of processor time."
    width, height = round(2 * _PAD_PX + COLUMNS * _COLUMN_PX), 2 * _PAD_PX + _ROW_PX * (len(rows) + 2)
    body = [_row(row, row["since"] * SECONDS / max(found["seconds"], 1.0), i) for i, row in enumerate(rows)]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">\n'
        f"<title>{html.escape(prompt)}. {title}</title>\n"
        "<style>text{font:13px ui-monospace,'DejaVu Sans Mono',Menlo,Consolas,monospace;fill:#e8ebef;white-space:pre}"
        "@media(prefers-reduced-motion:no-preference){.r{animation:r .01s both}}"
        "@keyframes r{from{visibility:hidden}to{visibility:visible}}</style>\n"
        '<rect width="100%" height="100%" rx="10" fill="#101317"/>\n'
        + "\n".join(body)
        + f'\n<text x="{_PAD_PX}" y="{height - _PAD_PX}" style="opacity:.7">{title}</text>\n</svg>\n'
    )


def _row(row: dict[str, Any], begin: float, number: int) -> str:
    parts = []
    for column, text, style in row["parts"]:
        look = f' style="{style}"' if style else ""
        parts.append(f'<tspan x="{round(_PAD_PX + column * _COLUMN_PX, 1)}"{look}>{html.escape(text)}</tspan>')
    y = _PAD_PX + _ROW_PX * (number + 0.75)
    return f'<text class="r" y="{y}" style="animation-delay:{begin:.2f}s">{"".join(parts)}</text>'


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        sys.exit(record(sys.argv[2:], RECORD))
    SVG.write_text(draw(RECORD.read_text(encoding="utf-8")), encoding="utf-8")
