"""Whether an engine is for this machine, told from its record and its first bytes, before the vendor loads it.

Every plan begins with a tag, and holds the version that wrote it in bytes 24 to 27 (``trtexec --getPlanVersionOnly``
reads it there; TensorRT-RTX 1.7 writes it there too):

    ftrt  TensorRT, for the version that built it alone (where bytes 4 to 7 are 0, the layout of the header)
    vtrt  TensorRT-RTX, likewise; or a TensorRT plan that other versions load too, which TensorRT itself judges
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgeres.device.targets import JETSON_SM
from edgeres.records import EngineRecord

if TYPE_CHECKING:
    from edgeres.device.libraries import Flavour

HEADER_BYTES = 28
_TITLES: dict[str, str] = {"rtx": "TensorRT-RTX", "tensorrt": "TensorRT"}
_OLDEST_PORTABLE = (8, 0)  # Ampere
_NO_8 = 9  # TensorRT 10 loads what 8.6 built, so 8 counts as 9


@dataclass(frozen=True)
class Here:
    """What would run an engine.

    Attributes:
        version: of the vendor's package.
        gpu, sm: name and compute capability of the GPU.
    """

    flavour: Flavour
    version: str
    gpu: str
    sm: str


def refusal(header: bytes, record: EngineRecord | None, here: Here) -> str | None:
    """Why this engine cannot run here, in one line; None where nothing speaks against loading it.

    Args:
        header: the engine's first :data:`HEADER_BYTES` bytes, or more.
        record: its entry in the manifest, None for an engine without a bundle.
    """
    title = _TITLES[here.flavour]
    if record is not None and record.runtime != here.flavour:
        return f"it is an engine for {_TITLES.get(record.runtime, record.runtime)}, not for {title}"
    if header[:4] not in (b"ftrt", b"vtrt") or len(header) < HEADER_BYTES:
        return "it is no engine, or one that was cut off"
    if header[:4] == b"ftrt" and here.flavour == "rtx":
        return f"it is an engine for TensorRT, not for {title}"
    if record is not None and record.version_compatible and here.flavour == "tensorrt":
        return _wrong_version(record, here) or _wrong_gpu(record, here)
    built_by = ".".join(map(str, header[24:28]))
    strict = (header[:4] == b"ftrt" or here.flavour == "rtx") and not any(header[4:8])
    if strict and not _same(built_by, here.version):
        return f"it was built by {title} {built_by} and loads in no other, and here is {here.version}"
    return None if record is None else _wrong_gpu(record, here)


def _wrong_version(record: EngineRecord, here: Here) -> str | None:
    """Of an engine for later versions too: those of the same major version and of the next."""
    built, running = _release(record.version), _release(here.version)
    if running[:3] >= built[:3] and max(running[0], _NO_8) - max(built[0], _NO_8) <= 1:
        return None
    last = max(built[0], _NO_8) + 1
    return f"it was built by TensorRT {record.version} for that and later ones to {last}.x, and here is {here.version}"


def _wrong_gpu(record: EngineRecord, here: Here) -> str | None:
    if here.sm in record.compute_capabilities:
        return None
    if record.hardware_compatible and here.sm in JETSON_SM:
        return f"it was built for other GPUs too, but for no Jetson, and this one ({here.gpu}) is"
    if record.compute_capabilities and not record.hardware_compatible:
        wanted = ", ".join(record.compute_capabilities)
        return f"it was built for SM {wanted}, and this GPU ({here.gpu}) is SM {here.sm}"
    if tuple(int(part) for part in here.sm.split(".")) < _OLDEST_PORTABLE:
        return f"it runs on Ampere (SM 8.0) and later, and this GPU ({here.gpu}) is SM {here.sm}"
    return None


def _release(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version)[:4]) or (0,)


def _same(built_by: str, version: str) -> bool:
    """Some packages leave the build number out: 10.3.0 is 10.3.0.30's."""
    parts = version.split(".")
    return built_by.split(".")[: len(parts)] == parts[:4]
