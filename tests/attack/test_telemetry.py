"""No process of edgeres reports to anybody: no file appears in the user's cache, and no name is looked up."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from bundles import classifier, write_bundle, write_images
from PIL import Image

from edgeres.bundle import FP32
from edgeres.graph.forms import FORMS

# Stands before libc in a child process: notes what is asked of the network, and refuses it.
SPY = r"""
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void note(const char *what, const char *of) {
    char line[512];
    int fd = open(getenv("SPY_LOG"), O_WRONLY | O_CREAT | O_APPEND, 0600);
    int n = snprintf(line, sizeof line, "%s %s\n", what, of ? of : "");
    if (fd >= 0) { if (write(fd, line, n) < 0) {} close(fd); }
}
int getaddrinfo(const char *name, const char *port, const struct addrinfo *hints, struct addrinfo **found) {
    note("lookup", name);
    return EAI_NONAME;
}
struct hostent *gethostbyname(const char *name) { note("lookup", name); h_errno = HOST_NOT_FOUND; return NULL; }
static int is_net(const struct sockaddr *to) { return to && (to->sa_family == AF_INET || to->sa_family == AF_INET6); }
int connect(int fd, const struct sockaddr *to, socklen_t size) {
    if (is_net(to)) note("connect", "");
    errno = ENETUNREACH;
    return -1;
}
ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
    if (is_net(to)) note("send", "");
    errno = ENETUNREACH;
    return -1;
}
"""


@pytest.fixture(scope="module")
def spy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C compiler and LD_PRELOAD")
    folder = tmp_path_factory.mktemp("spy")
    (folder / "spy.c").write_text(SPY)
    subprocess.run([compiler, "-shared", "-fPIC", "-o", folder / "spy.so", folder / "spy.c"], check=True)
    return folder / "spy.so"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("quiet")
    write_images(folder / "images.npz")
    graphs = {FP32: classifier(), FORMS["cpu"].file: classifier()}
    return write_bundle(folder / "x.edgeres", files=graphs)


def watched(spy: Path, home: Path, *argv: str, **environment: str) -> tuple[list[str], list[str], str]:
    """Run Python with a new home: what it asked of the network, the files that it left there, and what it printed."""
    home.mkdir()
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ORT_", "XDG_"))}
    log = home.parent / f"{home.name}.log"
    places = {"HOME": str(home), "LD_PRELOAD": str(spy), "SPY_LOG": str(log), "CI": ""}
    done = subprocess.run(
        [sys.executable, *argv], env={**kept, **places, **environment}, capture_output=True, text=True
    )
    said = log.read_text().splitlines() if log.is_file() else []
    files = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    assert done.returncode in (0, 1), done.stderr  # a gate may fail
    assert "Traceback" not in done.stderr
    return said, files, done.stdout


def test_the_spy_sees_what_a_process_asks_of_the_network(spy: Path, tmp_path: Path) -> None:
    lookup = "import socket\ntry: socket.getaddrinfo('example.invalid', 443)\nexcept OSError: pass\n"
    connect = "try: socket.create_connection(('127.0.0.1', 9))\nexcept OSError: pass\n"
    to_number = "s = socket.socket()\ns.connect_ex(('127.0.0.1', 9))\n"
    said, _, _ = watched(spy, tmp_path / "home", "-c", lookup + connect + to_number)
    assert said == ["lookup example.invalid", "lookup 127.0.0.1", "connect "]


RUNS = {
    "predict": ("-m", "edgeres", "predict", "{bundle}", "{image}"),
    "verify": ("-m", "edgeres", "verify", "{bundle}", "--validation", "{images}"),
    "edgeres.load": (
        "-c",
        "import sys, edgeres, time\nedgeres.load('{bundle}')('{image}')\ntime.sleep(0.5)\nprint('done')",
    ),
    "edgeres.runtime": (
        "-c",
        "from edgeres.runtime import OrtRunner\nfrom pathlib import Path\n"
        "OrtRunner(Path('{bundle}/model.fp32.onnx'))\nimport time; time.sleep(0.5); print('done')",
    ),
    "another process that it starts": (
        "-c",
        "import edgeres, subprocess, sys\n"
        "subprocess.run([sys.executable, '-c', 'import onnxruntime as o, time; o.InferenceSession("
        '"{bundle}/model.fp32.onnx", providers=["CPUExecutionProvider"]); time.sleep(0.5)\'], check=True)\n'
        "print('done')",
    ),
}


@pytest.mark.parametrize("name", RUNS)
def test_no_file_appears_and_no_name_is_looked_up(name: str, spy: Path, bundle: Path, tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), (200, 30, 30)).save(tmp_path / "a.png")
    places = {"bundle": bundle, "image": tmp_path / "a.png", "images": bundle.parent / "images.npz"}
    argv = [part.format(**places) for part in RUNS[name]]
    said, files, printed = watched(spy, tmp_path / "home", *argv)
    assert "done" in printed or "top-1" in printed or "a.png" in printed
    assert (said, files) == ([], [])


def test_a_value_that_the_user_set_is_kept(tmp_path: Path) -> None:
    code = "import os, edgeres; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    for given, kept in ((None, "1"), ("0", "0"), ("", "")):
        setting = {} if given is None else {"ORT_DISABLE_TELEMETRY": given}
        environment = {name: value for name, value in os.environ.items() if name != "ORT_DISABLE_TELEMETRY"}
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, env={**environment, **setting}, capture_output=True, text=True)
        assert done.stdout == f"{kept}\n"
