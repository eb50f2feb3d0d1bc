"""An OCI registry, through oras, which logs in with the credentials of ``docker login``.

What is read has a limit before it is read, and is hashed while it arrives: the registry is not trusted.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import IO, Any
from urllib.parse import urljoin

from edgeres.errors import BundleError, EnvironmentError_, needs
from edgeres.hub.address import Address

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
MOST_MANIFEST_BYTES = 1 << 20
_CONNECT_SECONDS, _READ_SECONDS = 15.0, 60.0
_CHUNK = 1 << 20
# From this long on, a transfer must have had this rate.
_PATIENCE_SECONDS, _LEAST_RATE = 60.0, 10_000.0


@dataclass(frozen=True)
class Blob:
    """Content in a registry: ``sha256:`` and 64 hex digits, and its length in bytes."""

    digest: str
    size: int


class Registry:
    """A repository in a registry.

    Args:
        plain: without TLS.

    Raises:
        EnvironmentError_: oras is not installed.
    """

    def __init__(self, address: Address, *, plain: bool = False) -> None:
        try:
            import oras.container
            import oras.provider
        except ImportError:
            raise needs("hub", "oras") from None
        self._address = address
        plain = plain or address.is_here
        self._base = f"{'http' if plain else 'https'}://{address.host}/v2/{address.name}"
        with self._told():
            self._client = oras.provider.Registry(hostname=address.host, insecure=plain)
            # oras repeats a request that failed for more than two minutes, also where nobody listens.
            self._request = partial(inspect.unwrap(oras.provider.Registry.do_request), self._client)
            self._client.auth.load_configs(oras.container.Container(f"{address.host}/{address.name}:latest"))
        for scheme in ("http://", "https://"):
            self._client.session.mount(scheme, _patient())

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *error: object) -> None:
        self._client.session.close()

    def manifest(self) -> tuple[dict[str, Any], str]:
        """The OCI manifest at the address, and its digest.

        Raises:
            BundleError: there is none, or it is not what the digest says.
            EnvironmentError_: the registry does not answer, or refuses.
        """
        reply = self._ask("GET", f"/manifests/{self._address.reference}", headers={"Accept": MANIFEST_TYPE})
        with reply:
            self._refuse(reply, 200)
            content = self._body(reply, MOST_MANIFEST_BYTES)
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if self._address.digest not in ("", digest):
            raise BundleError("the registry sent another manifest than the digest's", where=self._address)
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise BundleError("is no bundle: its OCI manifest is no JSON object", where=self._address)
        return found, digest

    def put_manifest(self, content: bytes) -> str:
        """Give the tag to an OCI manifest; returns its digest."""
        with self._ask(
            "PUT", f"/manifests/{self._address.tag}", data=content, headers={"Content-Type": MANIFEST_TYPE}
        ) as reply:
            self._refuse(reply, 201)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"

    def has(self, blob: Blob) -> bool:
        with self._ask("HEAD", f"/blobs/{blob.digest}") as reply:
            return bool(reply.status_code == 200)

    def put(self, blob: Blob, stream: IO[bytes]) -> None:
        """Upload a blob."""
        with self._ask("POST", "/blobs/uploads/") as reply:
            self._refuse(reply, 202)
            place = reply.headers.get("Location", "")
        url = urljoin(f"{self._base}/", place)
        url += f"{'&' if '?' in url else '?'}digest={blob.digest}"
        headers = {"Content-Type": "application/octet-stream"}
        with self._told(), self._request(url, "PUT", data=_Body(stream, blob.size), headers=headers) as reply:
            self._refuse(reply, 201)

    def get(self, blob: Blob, into: IO[bytes]) -> None:
        """Download a blob, of which not one byte more than its size is read.

        Raises:
            BundleError: it has another length or digest.
            EnvironmentError_: the registry does not answer, refuses, or is too slow.
        """
        with self._ask("GET", f"/blobs/{blob.digest}", stream=True) as reply:
            self._refuse(reply, 200)
            found, length = hashlib.sha256(), 0
            for chunk in self._chunks(reply):
                length += len(chunk)
                if length > blob.size:
                    break
                found.update(chunk)
                into.write(chunk)
        if length != blob.size or f"sha256:{found.hexdigest()}" != blob.digest:
            raise BundleError(f"the registry sent other bytes than those of {blob.digest}", where=self._address)

    def _ask(self, method: str, path: str, **given: Any) -> Any:
        with self._told():
            return self._request(f"{self._base}{path}", method, **{"stream": True, **given})

    def _body(self, reply: Any, most: int) -> bytes:
        content = bytearray()
        for chunk in self._chunks(reply):
            content += chunk
            if len(content) > most:
                raise BundleError(f"its OCI manifest has more than {most:,} bytes", where=self._address)
        return bytes(content)

    def _chunks(self, reply: Any) -> Iterator[bytes]:
        start, length = time.monotonic(), 0
        with self._told():
            for chunk in reply.iter_content(_CHUNK):
                length += len(chunk)
                seconds = time.monotonic() - start
                if seconds > _PATIENCE_SECONDS and length < _LEAST_RATE * seconds:
                    what = f"sends less than {_LEAST_RATE / 1000:g} kB a second"
                    raise EnvironmentError_(what, where=self._address.host, hint="try again later")
                yield chunk

    def _refuse(self, reply: Any, wanted: int) -> None:
        """Raise unless the answer is what was asked for."""
        status = reply.status_code
        if status == wanted:
            return
        if status == 404:
            raise BundleError("there is no such bundle in the registry", where=self._address, hint="check name and tag")
        host = self._address.host
        if status in (401, 403):
            raise EnvironmentError_("the registry refuses", where=self._address, hint=f"docker login {host}")
        raise EnvironmentError_(f"the registry answers {status}", where=self._address, hint="try again later")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Turn what oras and requests raise into one line."""
        from oras.auth import AuthenticationException
        from requests import RequestException

        host = self._address.host
        try:
            yield
        except RequestException as error:
            cause: BaseException = error
            while cause.__context__ is not None:
                cause = cause.__context__
            why = getattr(cause, "strerror", None) or type(error).__name__
            what = f"the registry cannot be reached ({why})"
            raise EnvironmentError_(what, where=host, hint="check the address and the network") from None
        except (AuthenticationException, ValueError, KeyError) as error:  # or a configuration that oras cannot read
            what = f"cannot log in ({str(error)[:120]})"
            raise EnvironmentError_(what, where=host, hint=f"docker login {host}") from None


class _Body:
    """The body of a request, which begins again where the request is repeated."""

    def __init__(self, stream: IO[bytes], size: int) -> None:
        self._stream, self._size = stream, size

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[bytes]:
        self._stream.seek(0)
        while chunk := self._stream.read(_CHUNK):
            yield chunk


def _patient() -> Any:
    """requests' adapter with limits of time, which oras does not set."""
    from requests.adapters import HTTPAdapter

    class Adapter(HTTPAdapter):
        def send(self, request: Any, **given: Any) -> Any:  # type: ignore[override]  # of the timeout alone
            return super().send(request, **{**given, "timeout": (_CONNECT_SECONDS, _READ_SECONDS)})

    return Adapter()
