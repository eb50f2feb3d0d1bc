"""A program may end while other threads are inside a network."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from bundles import write_bundle

PROGRAM = """
import threading, time
import numpy as np
import edgeres

classify = edgeres.load({path!r}, backend="cpu")
image = np.zeros((40, 40, 3), np.uint8)
started = threading.Barrier(5)

def work():
    classify(image)
    started.wait()
    while True:
        classify(image)

for _ in range(4):
    threading.Thread(target=work, daemon=True).start()
started.wait()
time.sleep(0.05)
{last}
"""


@pytest.mark.parametrize(
    ("last", "code", "words"),
    [
        ("print('end')", 0, ""),
        ("raise SystemExit(7)", 7, ""),
        ("raise ValueError('x')", 1, "ValueError: x"),
        ("import atexit; atexit.register(lambda: print(classify(image).score > 0))", 0, ""),
    ],
)
def test_daemon_threads_do_not_abort_the_end_of_a_program(tmp_path: Path, last: str, code: int, words: str) -> None:
    path = write_bundle(tmp_path / "net.edgeres")
    program = PROGRAM.format(path=str(path), last=last)
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
        assert done.returncode == code, done.stderr
        assert done.stderr.strip().endswith(words) and (words or not done.stderr.strip())
