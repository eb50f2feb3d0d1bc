"""Whether an engine can run on this machine, checked on its record and header before the vendor loads it.

Every engine begins with a tag of four bytes. Bytes 24 to 27 hold the version that built it (``trtexec
--getPlanVersionOnly`` reads them; TensorRT-RTX 1.7 writes them too). The tags are:

    ftrt  TensorRT; only the version that built it loads it
    vtrt  TensorRT-RTX, likewise; or a version-compatible engine of TensorRT, which TensorRT itself checks

The version is compared only where bytes 4 to 7, the layout of the header, are 0.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from edgeres.device.targets import JETSON_SM, RUNTIME_TITLES, Flavour
from edgeres.records import EngineRecord

HEADER_BYTES = 28
_OLDEST_PORTABLE = (8, 0)  # Ampere
_NO_8 = 9  # TensorRT 10 loads engines of 8.6, so major version 8 counts as 9


@dataclass(frozen=True)
class RunsOn:
    """The runtime and the GPU that an engine would run on.

    Attributes:
        version: of the vendor's package.
        gpu, sm: name and compute capability of the GPU.
    """

    flavour: Flavour
    version: str
    gpu: str
    sm: str


def refusal(header: bytes, record: EngineRecord | None, here: RunsOn) -> str | None:
    """Why this engine cannot run here, in one line; None where it may be loaded.

    Args:
        header: the engine's first :data:`HEADER_BYTES` bytes, or more.
        record: its entry in the manifest, None for an engine without a bundle.
    """
    title = RUNTIME_TITLES[here.flavour]
    if record is not None and record.runtime != here.flavour:
        return f"it is an engine for {RUNTIME_TITLES.get(record.runtime, record.runtime)}, not for {title}"
    if header[:4] not in (b"ftrt", b"vtrt") or len(header) < HEADER_BYTES:
        return "it is no engine, or an engine file that was cut off"
    if header[:4] == b"ftrt" and here.flavour == "rtx":
        return f"it is an engine for TensorRT, not for {title}"
    if record is not None and record.portability.version_compatible and here.flavour == "tensorrt":
        return _wrong_version(record, here) or _wrong_gpu(record, here)
    built_by = ".".join(map(str, header[24:28]))
    strict = (header[:4] == b"ftrt" or here.flavour == "rtx") and not any(header[4:8])
    if strict and not _same(built_by, here.version):
        return f"it was built by {title} {built_by} and loads in no other version, and here is {here.version}"
    return None if record is None else _wrong_gpu(record, here)


def _wrong_version(record: EngineRecord, here: RunsOn) -> str | None:
    """Check a version-compatible engine: later versions with the same major number or the next one load it."""
    built, running = _release(record.version), _release(here.version)
    if running[:3] >= built[:3] and max(running[0], _NO_8) - max(built[0], _NO_8) <= 1:
        return None
    last = max(built[0], _NO_8) + 1
    return f"it was built by TensorRT {record.version} for later versions up to {last}.x, and here is {here.version}"


def _wrong_gpu(record: EngineRecord, here: RunsOn) -> str | None:
    if here.sm in record.portability.compute_capabilities:
        return None
    if record.portability.hardware_compatible and here.sm in JETSON_SM:
        return f"it was built for other GPUs too, but not for Jetsons, and this GPU ({here.gpu}) is one"
    if record.portability.compute_capabilities and not record.portability.hardware_compatible:
        wanted = ", ".join(record.portability.compute_capabilities)
        return f"it was built for SM {wanted}, and this GPU ({here.gpu}) is SM {here.sm}"
    if tuple(int(part) for part in here.sm.split(".")) < _OLDEST_PORTABLE:
        return f"it runs on Ampere (SM 8.0) and later, and this GPU ({here.gpu}) is SM {here.sm}"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4]) or (0,)


def _same(built_by: str, version: str) -> bool:
    """Whether both versions are the same; some packages leave out the build number, as 10.3.0 for 10.3.0.30."""
    parts = version.split(".")
    return built_by.split(".")[: len(parts)] == parts[:4]
