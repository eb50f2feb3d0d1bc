"""One thread per test process: the suite runs in several at once, and threads beyond the cores only wait."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
