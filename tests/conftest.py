"""One thread per test process: the suite runs in several at once, and more threads than cores only wait for each other."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
