"""Settings of all tests, and what ``make quick`` runs: QUICK, less tests that turn out not to be quick.

One thread per test process: the suite runs in several at once, and threads beyond the cores only wait. Nothing is
asserted about time, so hypothesis has no deadline either: an example may have to wait for a core.
"""

from __future__ import annotations

import multiprocessing.process
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

os.environ.setdefault("OMP_NUM_THREADS", "1")

settings.register_profile("edgeres", deadline=None)
settings.load_profile("edgeres")

# Test modules most of whose tests take milliseconds.
QUICK = frozenset(
    f"test_{name}.py"
    for name in (
        *("backends", "baseline", "bench", "bias", "checks", "config", "conformance", "dla", "docs", "documents"),
        *("exact_input", "forms", "frames", "gates", "layer_noise", "layers", "lint", "memory", "predict"),
        *("preflight", "preprocessing_check", "runtime", "signs", "targets", "timed", "verify", "zero_points"),
    )
)
# Models are loaded by torch, and engines are compiled by TensorRT-RTX.
SLOW_PACKAGES = ("torch", "tensorrt_rtx")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="no process, no server, no compiled engine, no bundled model")


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    return True if config.getoption("--quick") and collection_path.name not in {*QUICK, "tests"} else None


class NoSlowPackages:
    """Stands first in ``sys.meta_path``: these packages are not there, and a test that asks for one is not quick."""

    in_test = False

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.split(".")[0] in SLOW_PACKAGES:
            if self.in_test:
                pytest.skip(f"not quick: imports {name}")
            raise ModuleNotFoundError(f"{name} is not imported by quick tests", name=name)


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        sys.meta_path.insert(0, NoSlowPackages())  # type: ignore[arg-type]


@pytest.fixture(scope="session", autouse=True)
def quick_tests_stay_in_this_process(pytestconfig: pytest.Config) -> Iterator[None]:
    """Under ``--quick``, tests that start a process or a server or import a slow package are skipped."""
    if not pytestconfig.getoption("--quick"):
        yield
        return

    def refuse(what: str) -> Any:
        return lambda *_, **__: pytest.skip(f"not quick: {what}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(subprocess.Popen, "__init__", refuse("starts a process"))
        patch.setattr(multiprocessing.process.BaseProcess, "start", refuse("starts a process"))
        patch.setattr(os, "fork", refuse("starts a process"))
        patch.setattr(socket.socket, "listen", refuse("starts a server"))
        patch.setattr(NoSlowPackages, "in_test", True)
        yield
