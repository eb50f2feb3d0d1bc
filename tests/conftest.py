"""One thread per test process: the suite runs in several at once, and threads beyond the cores only wait.

Nothing is asserted of time, so hypothesis gets no deadline either: an example may have to wait for a core.
"""

from __future__ import annotations

import os

from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("edgeres", deadline=None)
settings.load_profile("edgeres")
