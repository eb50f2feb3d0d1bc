"""The Python packages that a run is made of: edgeres, and what it needs of what is installed. Nothing is imported."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib.metadata import Distribution, PackageNotFoundError, distribution

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_EXTRA = re.compile(r"""extra\s*==\s*["']([^"']+)["']""")
# Packages that build networks where the user asks for theirs.
_SOURCES = ("timm", "torchvision", "transformers", "pytorch_lightning")
_NOT_RUN = ("dev",)  # extras that no run needs
_OURS = "edgeres"
_LONGEST_LICENSE = 100  # characters; longer ones are the text of a licence, not its name
# What edgeres needs, where a checkout runs that was not installed.
_ROOTS = (_OURS, "click", "msgspec", "numpy", "onnx", "onnxruntime", "pillow", "rich", "safetensors", "torch")


@dataclass(frozen=True)
class Package:
    """An installed package.

    Attributes:
        name: normalized as registries do.
        license: an SPDX expression, or words; empty where it states none.
        is_spdx: whether it is such an expression.
        needs: names of the installed packages that it depends on.
    """

    name: str
    version: str
    license: str
    is_spdx: bool
    needs: tuple[str, ...]


def installed() -> tuple[Package, ...]:
    """edgeres and the packages that it and they depend on, as far as they are installed; by name."""
    found: dict[str, Package] = {}
    waiting = [*_ROOTS, *(name for name in _SOURCES if name in sys.modules)]
    while waiting:
        name = _normalized(waiting.pop())
        if name in found:
            continue
        try:
            known = distribution(name)
        except PackageNotFoundError:
            continue
        needs = sorted(set(_needs(known, name)) - {name})
        found[name] = Package(name, known.version, *_license(known), tuple(needs))
        waiting += needs
    kept = (replace(one, needs=tuple(name for name in one.needs if name in found)) for one in found.values())
    return tuple(sorted(kept, key=lambda package: package.name))


def _needs(known: Distribution, name: str) -> Iterable[str]:
    """Names of what a package requires; of extras only those of edgeres, since what an extra adds is there or not."""
    for line in known.requires or ():
        requirement, _, marker = line.partition(";")
        extra = _EXTRA.search(marker)
        match = _NAME.match(requirement.strip())
        if match and (extra is None or (name == _OURS and extra[1] not in _NOT_RUN)):
            yield _normalized(match[0])


def _normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _license(known: Distribution) -> tuple[str, bool]:
    """The licence that a package states, and whether that is an SPDX expression."""
    fields = {key: (known.metadata.get_all(key) or [""])[0].strip() for key in ("License-Expression", "License")}
    if fields["License-Expression"]:
        return fields["License-Expression"], True
    stated = fields["License"]
    if stated and "\n" not in stated and len(stated) <= _LONGEST_LICENSE and stated.upper() != "UNKNOWN":
        return stated, False
    titles = known.metadata.get_all("Classifier") or []
    named = [title.rpartition("::")[2].strip() for title in titles if title.startswith("License ::")]
    return ", ".join(named), False
