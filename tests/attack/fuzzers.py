"""Plain mutation of every input of every reader, seeded; each mutant is given to the command that reads it.

PYTHONPATH=tests python tests/attack/fuzzers.py 600         ten minutes; prints a table, and what broke a rule
PYTHONPATH=tests python tests/attack/fuzzers.py --quick     two mutants and one bomb of a kind that torch does not read
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import struct
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import bombs
import click
import fuzz
import harness
import onnx
import workshop
from harness import Tally
from workshop import Reader

NOT_SEALED = ("b.edgeres/manifest.json", "b.edgeres/signature.json")
HEAD = 24_000  # bytes that hold the structure of a ResNet-20's checkpoint
LARGE = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 62, (1 << 64) - 1)
# What stands in texts of others: for terminals, shells, file systems, XML and spreadsheets.
WORDS = (
    "\x1b[2J",
    "\u202e",
    "\x00",
    "../../x",
    "/etc/passwd",
    "$(id)",
    "%s%n",
    "<script>",
    "=1+1",
    "\ud83d",
    "a" * 5000,
    "\r\n",
)


def attempts(reader: Reader, seed: int) -> Iterator[bytes]:
    """Mutants of a good input without end."""
    for turn in count():
        rng = random.Random(f"{seed}.{turn}")
        if reader.form == "ONNX" and turn % 4:
            yield fields(reader.good, rng)
        elif reader.form == "ends" and turn % 8:
            yield ends(reader.good, rng)
        elif reader.is_json and turn % 4:
            yield next(iter(fuzz.wrong_json(reader.good, 1, rng.randrange(1 << 30), reader.seal)))
        elif turn % 3 == 1:
            yield numbers(reader.good, rng)
        elif turn % 3 == 2 and not reader.is_json:
            yield words(reader.good, rng)
        else:
            *_, mutant = fuzz.mutations(reader.good or b"x", 8, rng.randrange(1 << 30))
            yield mutant


def fields(content: bytes, rng: random.Random) -> bytes:
    """One to three fields of an ONNX file with another value of their type, doubled or lost."""
    model = onnx.load_from_string(content)
    for _ in range(rng.randrange(1, 4)):
        message: Any = model
        for _ in range(rng.randrange(1, 9)):
            field, value = rng.choice(message.ListFields() or [(None, None)])
            if field is None:
                break
            if field.type != field.TYPE_MESSAGE or rng.random() < 0.08:
                _change(message, field, rng)
                break
            message = rng.choice(value) if hasattr(value, "append") and len(value) else value
            if not hasattr(message, "ListFields"):
                break
    return bytes(model.SerializeToString())


def _change(message: Any, field: Any, rng: random.Random) -> None:
    """Give a field of protobuf a value that nobody expects."""
    value, name = getattr(message, field.name), field.name
    if hasattr(value, "append"):
        if rng.random() < 0.4 and len(value):
            del value[rng.randrange(len(value))]
        elif field.type == field.TYPE_MESSAGE and len(value):
            value.add().CopyFrom(rng.choice(value))
        elif len(value):
            value[rng.randrange(len(value))] = _of_type(field, value[0], rng)
        return
    if field.type == field.TYPE_MESSAGE or rng.random() < 0.2:
        message.ClearField(name)
    else:
        setattr(message, name, _of_type(field, value, rng))


def _of_type(field: Any, value: Any, rng: random.Random) -> Any:
    if isinstance(value, bytes):
        return words(value, rng) if rng.random() < 0.5 else value[: rng.randrange(len(value) + 1)]
    if isinstance(value, str):
        return rng.choice((value + "x", "", *(word.encode("utf-8", "replace").decode() for word in WORDS)))
    if isinstance(value, float):
        return rng.choice((0.0, -1.0, 1e38, float("nan"), float("inf"), 1e-45))
    signed, bits = field.type not in (field.TYPE_UINT32, field.TYPE_UINT64), 32
    if field.type in (field.TYPE_INT64, field.TYPE_UINT64):
        bits = 64
    most = (1 << (bits - signed)) - 1
    return rng.choice((*(min(one, most) for one in LARGE), *((-1, -2, -most - 1) if signed else ()), value + 1))


def ends(content: bytes, rng: random.Random) -> bytes:
    """A mutant of the first or of the last bytes."""
    head, tail = content[:HEAD], content[HEAD:]
    if rng.random() < 0.3:
        head, tail = content[:-HEAD], content[-HEAD:]
        return head + one_of(tail, rng)
    return one_of(head, rng) + tail


def one_of(content: bytes, rng: random.Random) -> bytes:
    """A mutant of one of the plain kinds."""
    way = rng.randrange(3)
    if way == 0:
        return numbers(content, rng)
    if way == 1:
        return words(content, rng)
    *_, mutant = fuzz.mutations(content, 8, rng.randrange(1 << 30))
    return mutant


def numbers(content: bytes, rng: random.Random) -> bytes:
    """Numbers of 1 to 8 bytes overwritten by those at which counters break."""
    data = bytearray(content)
    for _ in range(rng.randrange(1, 4)):
        size, order = rng.choice((1, 2, 4, 8)), rng.choice("<>")
        at = rng.randrange(min(len(data), rng.choice((64, 512, 1 << 30))))
        value = rng.choice(LARGE) & ((1 << 8 * size) - 1)
        data[at : at + size] = (
            struct.pack(f"{order}Q", value)[:size] if order == "<" else struct.pack(">Q", value)[-size:]
        )
    return bytes(data)


def words(content: bytes, rng: random.Random) -> bytes:
    """A word that something would obey, in the place of some bytes."""
    at = rng.randrange(len(content) + 1)
    return content[:at] + rng.choice(WORDS).encode("utf-8", "surrogatepass") + content[at + rng.randrange(9) :]


def options(rng: random.Random) -> list[str]:
    """A command line that nobody would write."""
    from edgeres.cli import COMMANDS, cli

    name = rng.choice(sorted(set(COMMANDS) - {"remote", "doctor", "try"}))  # the last one serves until it is ended
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    names = [option for parameter in command.params for option in parameter.opts if option.startswith("-")]
    values = (
        "",
        "-1",
        "0",
        "1e999",
        "nan",
        "b.edgeres",
        "net.onnx",
        "a.png",
        ".",
        "signs:2",
        "signs:-1",
        "x" * 300,
        "\x1b[31m",
        "é\u202e",
    )
    line = [name, *rng.choices(("b.edgeres", "net.onnx", "nope", "", "."), k=rng.randrange(3))]
    for _ in range(rng.randrange(4)):
        line += [rng.choice(names), *([rng.choice(values)] if rng.random() < 0.7 else [])]
    return line


class Fuzzer:
    """Tries mutants in one folder, which is put in order after each."""

    def __init__(self, built: Path, seed: int = 0) -> None:
        self.built = built
        self.readers = workshop.readers(built)
        self.seed = seed
        self.tally = Tally()
        self.mutants = {kind: attempts(reader, seed) for kind, reader in self.readers.items()}
        self.turns = count()

    def attempt(self, kind: str, content: bytes, *, seconds: int = harness.CLOCK) -> harness.Ran:
        """Give an input to its reader."""
        reader = self.readers[kind]
        with tempfile.TemporaryDirectory(prefix="attack-") as name:
            here = Path(name)
            workshop.place(self.built, here)
            (here / "a.png").write_bytes(workshop.image("PNG"))
            target = here / reader.file
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(content)
            for beside in ("a.png", "b.png") if reader.file.startswith("i/") else ():
                (here / "i" / beside).write_bytes(workshop.image("PNG"))
            if reader.file.startswith("b.edgeres/") and reader.file not in NOT_SEALED:
                reseal(here / "b.edgeres")
            return harness.run(reader.command, here, seconds=seconds)

    def mutant(self, kind: str) -> None:
        """One more mutant of a kind."""
        content = next(self.mutants[kind])
        ran = self.attempt(kind, content)
        if not self.tally.add(kind, ran, f"{kind} {self.tally.tried[kind]}"):
            keep(kind, content)

    def line(self) -> None:
        """One more command line."""
        line = options(random.Random(f"{self.seed}.{next(self.turns)}"))
        with tempfile.TemporaryDirectory(prefix="attack-") as name:
            workshop.place(self.built, Path(name))
            (Path(name) / "a.png").write_bytes(workshop.image("PNG"))
            self.tally.add("command line", harness.run(line, Path(name)), line)

    def bomb(self, kind: str, name: str) -> None:
        """One input that asks for much."""
        with tempfile.TemporaryDirectory(prefix="bomb-") as folder:
            bombs.BOMBS[kind][name](Path(folder) / "bomb")
            content = (Path(folder) / "bomb").read_bytes()
        self.tally.add(f"bomb: {kind}", self.attempt(kind, content), name)


def reseal(bundle: Path) -> None:
    """Let the manifest of a bundle name its files as they are: a hostile builder would."""
    import hashlib
    import json

    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"] = {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in manifest["files"]}
    (bundle / "manifest.json").write_text(workshop.resealed(json.dumps(manifest)))


def keep(kind: str, content: bytes) -> None:
    """Keep an input that broke a rule, for whoever mends it."""
    folder = Path(os.environ.get("ATTACK_KEEP", tempfile.gettempdir())) / "attack-broken"
    folder.mkdir(exist_ok=True)
    (folder / f"{kind.replace(' ', '-')}-{random.Random(content).randrange(10**9)}").write_bytes(content)


def main(arguments: Sequence[str] | None = None) -> int:
    """Try all kinds in turn until the time is over."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seconds", type=float, nargs="?", default=1800)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", default="", help="kinds that contain this word")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--bombs", choices=("with", "no", "only"), default="with", help="inputs that ask for much")
    parser.add_argument("--json", type=Path, help="a file for the figures, written after every round")
    asked = parser.parse_args(arguments)
    harness.preload(torch=not asked.quick)
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        fuzzer = Fuzzer((workshop.write if asked.quick else workshop.build)(folder), asked.seed)
        until = time.monotonic() + asked.seconds
        kinds = [kind for kind, reader in fuzzer.readers.items() if asked.only in kind]
        kinds = [kind for kind in kinds if not (asked.quick and fuzzer.readers[kind].torch)]
        for turn in count():
            if time.monotonic() > until or (asked.quick and turn == 2):
                break
            for kind in kinds:
                if time.monotonic() > until:
                    break
                if turn % fuzzer.readers[kind].rounds == 0 and asked.bombs != "only":
                    fuzzer.mutant(kind)
                if asked.bombs == "no":
                    continue
                if name := next(iter(list(bombs.BOMBS.get(kind, ()))[turn:]), None):
                    fuzzer.bomb(kind, name)
            fuzzer.line() if not asked.only and asked.bombs != "only" else None
            if asked.json:
                asked.json.write_text(fuzzer.tally.to_json())
            if asked.bombs == "only" and turn > max(map(len, bombs.BOMBS.values())):
                break
        lines = [line for broken in fuzzer.tally.broken.values() for line in broken]
        sys.stdout.write("\n".join([fuzzer.tally.table(), *lines, ""]))
        return 1 if fuzzer.tally.broken else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
