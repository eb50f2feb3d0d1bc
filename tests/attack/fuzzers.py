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

import bombs
import click
import fuzz
import harness
import workshop
from harness import Tally
from workshop import Reader

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
        if reader.is_json and turn % 4:
            yield next(iter(fuzz.wrong_json(reader.good, 1, rng.randrange(1 << 30), reader.seal)))
        elif turn % 3 == 1:
            yield numbers(reader.good, rng)
        elif turn % 3 == 2 and not reader.is_json:
            yield words(reader.good, rng)
        else:
            *_, mutant = fuzz.mutations(reader.good or b"x", 8, rng.randrange(1 << 30))
            yield mutant


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

    name = rng.choice(sorted(set(COMMANDS) - {"remote", "doctor"}))
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

    def attempt(self, kind: str, content: bytes, *, seconds: int = harness.SECONDS) -> harness.Ran:
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
            if reader.file.startswith("b.edgeres/") and reader.file.endswith(".onnx"):
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
    asked = parser.parse_args(arguments)
    until = time.monotonic() + asked.seconds
    harness.preload(torch=not asked.quick)
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    try:
        fuzzer = Fuzzer((workshop.write if asked.quick else workshop.build)(folder), asked.seed)
        kinds = [kind for kind, reader in fuzzer.readers.items() if asked.only in kind]
        kinds = [kind for kind in kinds if not (asked.quick and fuzzer.readers[kind].torch)]
        for turn in count():
            if time.monotonic() > until or (asked.quick and turn == 2):
                break
            for kind in kinds:
                if time.monotonic() > until:
                    break
                if turn % fuzzer.readers[kind].rounds == 0:
                    fuzzer.mutant(kind)
                if name := next(iter(list(bombs.BOMBS.get(kind, ()))[turn:]), None):
                    fuzzer.bomb(kind, name)
            fuzzer.line() if not asked.only else None
        lines = [line for broken in fuzzer.tally.broken.values() for line in broken]
        sys.stdout.write("\n".join([fuzzer.tally.table(), *lines, ""]))
        return 1 if fuzzer.tally.broken else 0
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
