"""Keep the kernel timings of a build, which make the next build on the same GPU faster.

Timings are valid for one TensorRT, one GPU and one driver, so the user's cache has a file for each combination.
TensorRT-RTX measures no timings when it builds, and has no such file.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgeres.device.libraries import Availability
from edgeres.files import write_file
from edgeres.zoo.download import cache_dir

_DRIVER = Path("/proc/driver/nvidia/version")
_L4T = Path("/etc/nv_tegra_release")


@dataclass(frozen=True)
class TimingCache:
    """Timings in a file. If it cannot be read or written, the build goes on and takes longer."""

    path: Path

    def attach(self, config: Any) -> None:
        """Give a builder's configuration the timings of earlier builds, or none if the vendor refuses them."""
        try:
            known = self.path.read_bytes()
        except OSError:
            known = b""
        for content in dict.fromkeys((known, b"")):
            cache = config.create_timing_cache(content)
            if cache is not None and config.set_timing_cache(cache, False):
                return

    def keep(self, config: Any) -> None:
        """Write the configuration's timings after a build."""
        cache = config.get_timing_cache()
        if cache is not None:
            with suppress(OSError):
                write_file(self.path, bytes(cache.serialize()))


def timing_cache(here: Availability) -> TimingCache | None:
    """The file for this TensorRT, GPU and driver; None for RTX and without a GPU."""
    if here.flavour == "rtx" or here.gpu is None:
        return None
    gpu = here.gpu
    words = ("tensorrt", here.version or "", gpu.name, f"sm{gpu.sm}", "driver", driver() or f"cuda{gpu.cuda}")
    name = "-".join(re.sub(r"[^A-Za-z0-9.]+", "_", word) for word in words)
    return TimingCache(cache_dir() / "timing" / f"{name}.cache")


def driver(version: Path = _DRIVER, l4t: Path = _L4T) -> str | None:
    """Version of the GPU driver: ``535.129.03`` on a desktop, ``L4T36.4.3`` on a Jetson; None if it is unknown."""
    with suppress(OSError):
        if found := re.search(r"Kernel Module(?: for \w+)? +(\d+\.[\d.]+)", version.read_text(errors="replace")):
            return found[1]
    with suppress(OSError):
        if found := re.match(r"# R(\d+) \(release\), REVISION: ([\d.]+)", l4t.read_text(errors="replace")):
            return f"L4T{found[1]}.{found[2]}"
    return None
