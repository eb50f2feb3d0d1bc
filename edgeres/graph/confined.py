"""Run a function on foreign bytes in another process with limits of memory and time.

The process gets a JSON document and bytes, and gives a JSON document and bytes: nothing it sends is unpickled. However
a hostile graph ends it, the answer is one error in this process.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

from edgeres import errors
from edgeres.errors import NO_MEMORY, EdgeresError, EnvironmentError_, ModelError

MEMORY, SECONDS = 1_800_000_000, 45  # bytes of the process's own data; on one clock for all cores, and on the wall's
ALONE = "export the classifier alone, for images of its usual size"
_TOO_MUCH = f"trying this graph takes more than {MEMORY / 1e9:.1f} GB"
# The search path of this process, and not the directory that it happens to be in.
_START = "import sys; sys.path[:] = sys.argv[1].split('\\n'); from edgeres.graph.confined import main; main()"

Json = dict[str, Any]


def confined(function: str, asked: Json, content: bytes, where: object) -> tuple[Json, bytes]:
    """What a function of edgeres gives, computed in a process with :data:`MEMORY` and :data:`SECONDS`.

    Args:
        function: ``module:name``, a function (asked, content) -> (JSON, bytes).

    Raises:
        ModelError: it takes more, or ends the process.
        EdgeresError: what the function raises.
        EnvironmentError_: this program cannot start Python.
    """
    header = json.dumps({"function": function, "asked": asked, "size": len(content)}).encode()
    command = [sys.executable or "", "-c", _START, "\n".join(sys.path), str(MEMORY), str(SECONDS)]
    try:
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        what = f"a graph of unknown cost is tried in a process of its own, which does not start ({error.strerror})"
        raise EnvironmentError_(what, where=where) from None
    try:
        given, _ = child.communicate(header + b"\n" + content, SECONDS + 10)
    except subprocess.TimeoutExpired:
        raise _too_long(where) from None
    finally:
        child.kill()
        child.wait()
    line, _, rest = given.partition(b"\n")
    with suppress(ValueError):
        answer = json.loads(line)
        if "error" in answer and answer["error"]["what"] == NO_MEMORY:
            raise ModelError(_TOO_MUCH, where=where, hint=ALONE)
        if "error" in answer:
            raise _error_of(answer["error"], where)
        return answer["found"], rest
    if -child.returncode in (24, 14):  # SIGXCPU, SIGALRM
        raise _too_long(where)
    raise ModelError(f"{_TOO_MUCH}, or ends ONNX Runtime (status {child.returncode})", where=where, hint=ALONE)


def _too_long(where: object) -> ModelError:
    return ModelError(f"trying this graph takes more than {SECONDS} s", where=where, hint=ALONE)


def _error_of(told: Json, where: object) -> EdgeresError:
    """The error that the other process raised, as if it had been raised here."""
    kind = getattr(errors, str(told.get("kind")), ModelError)
    if not (isinstance(kind, type) and issubclass(kind, EdgeresError)):
        kind = ModelError
    return kind(str(told.get("what")), where=where, hint=told.get("hint"))


def main() -> None:
    """The other process: limits first, then the function on what stdin brings."""
    _limit(*map(int, sys.argv[2:4]))
    out = os.dup(1)
    os.dup2(2, 1)  # what libraries print is not the answer
    header = json.loads(sys.stdin.buffer.readline())
    content = sys.stdin.buffer.read(header["size"])
    module, _, name = header["function"].partition(":")
    try:
        found, data = getattr(import_module(module), name)(header["asked"], content)
        answer = {"found": found}
    except EdgeresError as error:
        answer, data = {"error": {"kind": type(error).__name__, "what": error.what, "hint": error.hint}}, b""
    except MemoryError:
        answer, data = {"error": {"kind": "ModelError", "what": NO_MEMORY, "hint": None}}, b""
    with os.fdopen(out, "wb") as stream:
        stream.write(json.dumps(answer).encode() + b"\n" + data)
    os._exit(0)  # what the libraries do at exit is not needed


def _limit(memory: int, seconds: int) -> None:
    import signal

    if hasattr(signal, "alarm"):
        signal.alarm(seconds)  # the parent may be gone by then
    try:
        import resource
    except ImportError:  # Windows: the deadline remains
        return
    limits = {"RLIMIT_DATA": memory, "RLIMIT_AS": 4 * memory, "RLIMIT_CPU": seconds, "RLIMIT_CORE": 0}
    for name, limit in limits.items():
        with suppress(AttributeError, ValueError, OSError):
            number = getattr(resource, name)
            _, hard = resource.getrlimit(number)
            allowed = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(number, (allowed, hard))
