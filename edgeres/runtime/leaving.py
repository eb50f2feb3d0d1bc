"""Calls into a native library that daemon threads may still be in when Python exits.

Python ends a daemon thread where it comes back from native code after the interpreter is gone: its C++ frames are
unwound, which ONNX Runtime does not allow, and the process aborts. So at exit, calls that have begun are waited for,
and no other one begins.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections.abc import Callable
from typing import TypeVar

_LONGEST_SECONDS = 30.0  # of a call that is waited for
_inside: dict[int, int] = {}  # calls by thread
_leaving = False
R = TypeVar("R")


def kept_whole(work: Callable[[], R]) -> R:
    """Do what must not be cut off by the end of the program; in a daemon thread, it may never come back then."""
    thread = threading.get_ident()
    while True:
        _inside[thread] = _inside.get(thread, 0) + 1  # before the look at _leaving, so that _wait sees one of them
        try:
            if not (_leaving and threading.current_thread().daemon):
                return work()
        finally:
            _inside[thread] -= 1
        threading.Event().wait()


def _wait() -> None:
    global _leaving
    _leaving = True
    end = time.monotonic() + _LONGEST_SECONDS
    while any(list(_inside.values())) and time.monotonic() < end:
        time.sleep(0.001)


atexit.register(_wait)
