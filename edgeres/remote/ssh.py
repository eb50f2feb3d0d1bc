"""Run commands on a remote machine over plain ssh, and copy files by rsync, or by tar where one side has no rsync.

Keys, ports and names come from the user's ssh configuration; ssh never asks on the terminal.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from time import sleep
from typing import IO

from edgeres.errors import EnvironmentError_, UsageError
from edgeres.files import FREE_SPACE, open_below

_SOCKET_TRIES = 200
_GRACE_SECONDS = 0.5
SSH_FAILED = 255  # exit code of ssh itself; all others are the command's
_OPTIONS = ("-T", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "ServerAliveInterval=15")
_MARK = "----edgeres----"
# Runs "$@" until it ends. If the connection closes before, the command gets SIGTERM.
_WATCHED = (
    f'echo {_MARK}; exec 3<&0; "$@" </dev/null & p=$!; (cat <&3; kill -TERM $p) >/dev/null 2>&1 & w=$!;'
    " wait $p; r=$?; kill $w 2>/dev/null; exit $r"
)
# (pattern in ssh's message, what it means, next step); the first match counts.
_FAILURES = (
    (r"Could not resolve hostname|Name or service not known", "no such host", "check its name, or give an address"),
    (r"Permission denied(, please| \([a-z])", "it refuses your key", "ssh-copy-id {host}, or load the key: ssh-add"),
    (r"HOST IDENTIFICATION HAS CHANGED", "its host key has changed", "if that is right: ssh-keygen -R {host}"),
    (r"Host key verification failed", "its host key is not known", "{ssh} {host} once"),
    (r"Connection refused", "no ssh server answers there", "check the port, and that sshd runs"),
    (r"timed out|No route to host|Network is unreachable|Host is down", "it does not answer", "check its network"),
    (r"configuration|Bad owner or permissions|option", "ssh does not take its configuration", "see the words above"),
)
_RSYNC_FILE_ERROR, _FULL_BELOW = 11, 1 << 20
_DISK_FULL = re.compile(r"No space left on device|Disk quota exceeded")


@dataclass(frozen=True)
class Done:
    """Exit code and output of a remote command."""

    code: int
    out: str
    err: str

    @property
    def why(self) -> str:
        """Why it failed: its last line on stderr, else its exit code."""
        lines = self.err.strip().splitlines()
        return lines[-1] if lines else f"exit code {self.code}"


@dataclass(frozen=True)
class Host:
    """A remote machine and how to reach it.

    Attributes:
        name: as ssh takes it: ``user@host`` or an alias of the user's configuration.
        ssh: the ssh command with the user's options.
        rsync: whether both sides have rsync; tar, the replacement, cannot resume within a file.
        socket: of a connection that is open already, see :meth:`shared`; "": each command opens its own.
    """

    name: str
    ssh: tuple[str, ...] = ("ssh",)
    rsync: bool = True
    socket: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^-\s/:][^\s/:]*", self.name):
            raise UsageError(f"is not a host: {self.name!r}", hint='give user@host; a port goes into --ssh "ssh -p N"')
        if not self.ssh:
            raise UsageError("names no command", where="--ssh", hint='e.g. --ssh "ssh -p 2222"')
        if shutil.which(self.ssh[0]) is None:
            raise EnvironmentError_(f"no such command: {self.ssh[0]}", hint="install OpenSSH's client")

    @property
    def _command(self) -> list[str]:
        return [*self.ssh, *_OPTIONS, *(("-S", self.socket) if self.socket else ())]

    @contextmanager
    def shared(self) -> Iterator[Host]:
        """The same host with one connection for all commands of the block, where ssh can share one."""
        with TemporaryDirectory(prefix="edgeres-") as folder:
            socket = f"{folder}/ssh"  # short: the path of a socket is limited to about 100 characters
            argv = [*self._command, "-M", "-N", "-S", socket, self.name]
            silence = subprocess.DEVNULL
            master = subprocess.Popen(argv, stdin=silence, stdout=silence, stderr=silence, start_new_session=True)
            try:
                for _ in range(_SOCKET_TRIES):
                    if Path(socket).exists() or master.poll() is not None:
                        break
                    sleep(0.05)
                yield replace(self, socket=socket) if Path(socket).exists() else self
            finally:
                master.terminate()
                try:
                    master.wait(_GRACE_SECONDS)
                except subprocess.TimeoutExpired:
                    master.kill()
                    master.wait()

    def run(self, argv: Sequence[str], *, feed: str = "") -> Done:
        """Run a command to its end, with ``feed`` as its input.

        Raises:
            EnvironmentError_: ssh cannot reach the machine.
        """
        line = f"echo {_MARK}; exec {shlex.join(argv)}"
        command = [*self._command, self.name, shlex.join(["sh", "-c", line])]
        done = subprocess.run(command, input=feed, capture_output=True, text=True, errors="replace", check=False)
        return _checked(self, Done(done.returncode, done.stdout, done.stderr))

    def watch(self, argv: Sequence[str], tell: Callable[[str], None]) -> Done:
        """Run a long command and pass its lines on stderr to ``tell``; Ctrl-C stops the command, too.

        Raises:
            EnvironmentError_: ssh cannot reach the machine, or the connection breaks.
        """
        remote = shlex.join(["sh", "-c", _WATCHED, "sh", *argv])
        said = []
        # stdout goes to a file: a full pipe that nobody reads would block the command.
        with TemporaryFile("w+", errors="replace") as out:
            with _child([*self._command, self.name, remote], subprocess.PIPE, out) as child:
                assert child.stderr
                for line in child.stderr:
                    said.append(line)
                    tell(line.rstrip("\n"))
                code = child.wait()
            out.seek(0)
            return _checked(self, Done(code, out.read(), "".join(said)))

    def send(self, folder: Path, names: Sequence[str], to: str) -> None:
        """Copy files, named by their paths in ``folder``, to a remote folder. Files that arrived earlier are not sent.

        Raises:
            EnvironmentError_: the connection breaks, or the disk there is full.
        """
        listed = "".join(f"{name}\0" for name in names)
        if self.rsync:
            code, said = self._rsync([f"{folder}/", f"{self.name}:{to}/"], listed)
            # With a full disk rsync may report nothing but this exit code.
            self._ended(code, said, full=code == _RSYNC_FILE_ERROR and self.free_bytes(to) < _FULL_BELOW)
            return
        packer = ["tar", "-C", str(folder), "--null", "-T", "-", "-cf", "-"]
        unpack = shlex.join(["sh", "-c", 'mkdir -p "$1" && tar -C "$1" -xf -', "sh", to])
        with _child(packer, stdin=subprocess.PIPE) as tar:
            assert tar.stdin and tar.stdout and tar.stderr
            with _child([*self._command, self.name, unpack], stdin=tar.stdout) as ssh:
                assert ssh.stderr
                tar.stdout.close()  # tar then gets SIGPIPE when ssh ends
                with suppress(BrokenPipeError):
                    tar.stdin.write(listed)
                    tar.stdin.close()
                said = ssh.stderr.read()
                code = ssh.wait()
            if not code and tar.wait():
                raise EnvironmentError_(f"cannot be read ({tar.stderr.read().strip()})", where=folder)
        self._ended(code, said)

    def fetch(self, folder: str, names: Sequence[str], to: Path) -> None:
        """Copy files, named by their paths in a remote ``folder``, to a local folder.

        Raises:
            EnvironmentError_: the connection breaks, or the local disk is full.
        """
        if self.rsync:
            self._ended(*self._rsync([f"{self.name}:{folder}/", f"{to}/"], "\0".join((*names, ""))))
            return
        for name in names:
            with open_below(to, name, new=True) as stream:
                command = [*self._command, self.name, shlex.join(["cat", f"{folder}/{name}"])]
                done = subprocess.run(command, stdout=stream, stderr=subprocess.PIPE, text=True, check=False)
            self._ended(done.returncode, done.stderr)

    def free_bytes(self, folder: str) -> int:
        """Free space on the disk of a remote folder; a large number where it is unknown."""
        said = self.run(["df", "-Pk", folder]).out.split()
        return int(said[-3]) << 10 if len(said) > 3 and said[-3].isdecimal() else 1 << 62

    def _rsync(self, ends: Sequence[str], listed: str) -> tuple[int, str]:
        # -s: no shell splits file names. --partial-dir: an interrupted file continues where it stopped.
        argv = ["rsync", "-rt", "-s", "--partial-dir=.rsync-partial", "-e", shlex.join(self._command)]
        argv += ["--files-from=-", "--from0", *ends]
        done = subprocess.run(argv, input=listed, capture_output=True, text=True, errors="replace", check=False)
        return done.returncode, done.stderr

    def _ended(self, code: int, said: str, *, full: bool = False) -> None:
        """Raise if a copy failed."""
        if code == 0:
            return
        if full or _DISK_FULL.search(said):
            raise EnvironmentError_("the disk there is full", where=self.name, hint=FREE_SPACE)
        raise _failure(self, said, "copying stopped")


def _checked(host: Host, done: Done) -> Done:
    """The same without the output of the user's login scripts, which comes before the mark."""
    if done.code == SSH_FAILED:
        raise _failure(host, done.err, "the connection broke")
    return Done(done.code, done.out.partition(f"{_MARK}\n")[2], done.err)


def _failure(host: Host, said: str, otherwise: str) -> EnvironmentError_:
    for pattern, what, hint in _FAILURES:
        if re.search(pattern, said):
            return EnvironmentError_(what, where=host.name, hint=hint.format(host=host.name, ssh=shlex.join(host.ssh)))
    lines = [line for line in said.strip().splitlines() if not line.startswith("rsync error")]
    why = lines[-1] if lines else "no reason was given"
    return EnvironmentError_(f"{otherwise} ({why})", where=host.name, hint="run it again, it continues from there")


@contextmanager
def _child(
    argv: Sequence[str], stdin: int | IO[str], stdout: int | IO[str] = subprocess.PIPE
) -> Iterator[subprocess.Popen[str]]:
    """Start a child process and stop it at the end of the block."""
    # In its own session, so that Ctrl-C does not reach it directly.
    child = subprocess.Popen(
        argv, stdin=stdin, stdout=stdout, stderr=subprocess.PIPE, text=True, errors="replace", start_new_session=True
    )
    try:
        yield child
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait()
        for stream in (child.stdin, child.stdout, child.stderr):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
