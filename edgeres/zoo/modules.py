"""Checks a pickled module against the network that takes its tensors.

The class of a pickled module is not run. As far as the file describes them, its layers have to be the network's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from edgeres.errors import WeightsError
from edgeres.inert import Inert

_SETTINGS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("stride", "padding", "dilation", "groups"),
    nn.BatchNorm2d: ("eps",),
    nn.MaxPool2d: ("kernel_size", "stride", "padding", "dilation", "ceil_mode"),
}
_HINT = "export the module as ONNX and give that as the model"
_ACTIVATIONS = "torch.nn.modules.activation."


def check_modules(network: nn.Module, modules: Mapping[str, Inert], path: Path) -> None:
    """Compare layers by their names.

    Args:
        modules: what the file says about each layer, by its name in the backbone. Scripted ones have no settings.

    Raises:
        WeightsError: a layer has another setting, or an activation is no ReLU.
    """
    for name, layer in network.named_modules():
        found = modules.get(name)
        state: dict[Any, Any] = found.state if found and isinstance(found.state, dict) else {}
        for setting in _SETTINGS.get(type(layer), ()):
            given, ours = state.get(setting, getattr(layer, setting)), getattr(layer, setting)
            if not _equal(given, ours):
                raise WeightsError(
                    f"{name} has {setting} {given!r:.40} where the network has {ours}", where=path, hint=_HINT
                )
    for name, found in modules.items():
        if found.path.startswith(_ACTIVATIONS) and found.path != f"{_ACTIVATIONS}ReLU":
            what = f"{name} is a {found.path.removeprefix(_ACTIVATIONS)} where the network has a ReLU"
            raise WeightsError(what, where=path, hint=_HINT)
    pool = modules.get("maxpool")
    if pool and isinstance(network.get_submodule("maxpool"), nn.MaxPool2d) and not pool.path.endswith(".MaxPool2d"):
        raise WeightsError(f"maxpool is a {pool.path} where the network has a MaxPool2d", where=path, hint=_HINT)


def _equal(given: object, ours: object) -> bool:
    """Whether two settings mean the same: 1 is (1, 1)."""
    simple = (int, float, str, bool, tuple)
    if not isinstance(given, simple) or not isinstance(ours, simple):
        return False
    pair = [value if isinstance(value, tuple) else (value, value) for value in (given, ours)]
    return (
        len(pair[0]) == len(pair[1]) and all(isinstance(v, int | float | str) for v in pair[0]) and pair[0] == pair[1]
    )
