"""Addresses of bundles in an OCI registry: ``oci://HOST[:PORT]/NAME[:TAG]``, or ``@sha256:DIGEST`` for a tag."""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeres.errors import UsageError

FORM = "oci://HOST[:PORT]/NAME[:TAG]"
_LEAST = "latest"
# The grammar of names, tags and digests in the OCI distribution specification.
_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_ADDRESS = re.compile(
    r"oci://(?P<host>(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[::1\])(?::\d{1,5})?)"
    rf"/(?P<name>{_PART}(?:/{_PART})*)"
    r"(?::(?P<tag>[A-Za-z0-9_][A-Za-z0-9._-]{0,127}))?(?:@(?P<digest>sha256:[0-9a-f]{64}))?"
)
_HERE = ("localhost", "127.0.0.1", "[::1]")


@dataclass(frozen=True)
class Address:
    """Where a bundle is in a registry.

    Attributes:
        host: with its port, if it has one.
        name: of the repository.
        tag: "" where a digest was given alone.
        digest: ``sha256:`` and 64 hex digits of the OCI manifest; "": whatever the tag leads to.
    """

    host: str
    name: str
    tag: str = _LEAST
    digest: str = ""

    @staticmethod
    def of(text: str) -> Address:
        """Read an address.

        Raises:
            UsageError: it is written otherwise. Its words are not repeated where they may hold a password.
        """
        if "@" in text.partition("://")[2].partition("/")[0]:
            what = "an address has no user and password"
            raise UsageError(what, where="oci://", hint="docker login HOST keeps them where push and pull find them")
        found = _ADDRESS.fullmatch(text)
        if found is None:
            raise UsageError(f"{text!r:.100} is no address of a bundle", hint=f"{FORM}, names in small letters")
        host, name, tag, digest = found.group("host", "name", "tag", "digest")
        return Address(host, name, tag or ("" if digest else _LEAST), digest or "")

    @property
    def reference(self) -> str:
        """What the registry looks up."""
        return self.digest or self.tag

    @property
    def is_here(self) -> bool:
        """Whether the registry runs on this machine, where nobody listens in between."""
        return re.sub(r":\d+$", "", self.host) in _HERE

    def pinned(self, digest: str) -> Address:
        return Address(self.host, self.name, self.tag, digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"oci://{self.host}/{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")
