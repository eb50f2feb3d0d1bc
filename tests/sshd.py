"""A real ssh server on this machine, for tests: its own keys, its own port, gone at the end."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass(frozen=True)
class Server:
    """``config`` is an ssh configuration in which the host is called ``robot``."""

    config: Path
    port: int
    log: Path

    @property
    def ssh(self) -> str:
        return f"ssh -F {self.config}"

    def other(self, name: str, **changes: str) -> str:
        """ssh with other settings: what a user has who cannot get in."""
        text = self.config.read_text()
        for key, value in changes.items():
            text = "".join(
                f"  {key} {value}\n" if line.split()[:1] == [key] else f"{line}\n" for line in text.splitlines()
            )
        path = self.config.with_name(f"config-{name}")
        path.write_text(text)
        return f"ssh -F {path}"


@contextmanager
def server(folder: Path, force: str = "") -> Iterator[Server]:
    """Start sshd; skips with a word where there is none.

    Args:
        force: a shell command that runs instead of each command of a client, which it finds in SSH_ORIGINAL_COMMAND.
    """
    sshd = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
    if sshd is None or not shutil.which("ssh-keygen"):
        pytest.skip("no ssh server is installed (openssh-server)")
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where a server of root's wants to retreat to
    for name in ("host", "user", "stranger"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", folder / name], check=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    (folder / "authorized").write_text((folder / "user.pub").read_text())
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nAuthorizedKeysFile {folder}/authorized\n"
        "PasswordAuthentication no\nKbdInteractiveAuthentication no\nUsePAM no\nStrictModes no\nPidFile none\n"
        "PermitRootLogin prohibit-password\nMaxStartups 100\n" + (f"ForceCommand {force}\n" if force else "")
    )
    (folder / "known").write_text(f"[127.0.0.1]:{port} {(folder / 'host.pub').read_text()}")
    config = folder / "config"
    config.write_text(
        f"Host *\n  HostName 127.0.0.1\n  Port {port}\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  IdentityAgent none\n  UserKnownHostsFile {folder}/known\n  GlobalKnownHostsFile none\n"
        "  StrictHostKeyChecking yes\n"
    )
    config.chmod(0o600)
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen([sshd, "-D", "-e", "-f", str(folder / "sshd_config")], stderr=stream)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if process.poll() is not None:
                pytest.skip(f"the ssh server does not start here: {log.read_text().strip()}")
            time.sleep(0.05)
        yield Server(config, port, log)
    finally:
        process.terminate()
        process.wait()
