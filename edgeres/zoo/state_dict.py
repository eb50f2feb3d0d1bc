"""Read the tensors of a checkpoint without running code that the file may hold.

file -> mappings of tensors -> the one state dict among them, float32, without wrappers' prefixes
"""

from __future__ import annotations

import pickle
import pickletools
import re
import tarfile
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from edgeres.errors import WeightsError

State = dict[str, Tensor]

# Where a checkpoint holds several state dicts, the first of these names is the trained network.
_NESTS = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module", "ema", "model_ema")
# Prefixes that DataParallel, Lightning, torch.compile and backbone wrappers add to keys, in any order and number.
_WRAPPERS = re.compile(r"^(?:(?:module|model|net|network|backbone|encoder|_orig_mod)\.)+")
_TRAINING_ONLY = ("num_batches_tracked", "n_averaged")
_SAVE_STATE = "where you trust the file, load it in the program that wrote it and save model.state_dict() alone"


def load_state(path: Path) -> State:
    """The tensors of a checkpoint, float32, by their names without wrappers' prefixes.

    It reads files of ``torch.save`` and safetensors, and recognizes both by content, whatever the suffix. Entries that
    only training needs are left out: those beside the network's (epoch, optimizer), ``n_averaged`` and
    ``num_batches_tracked``.

    Raises:
        WeightsError: the file is missing, damaged or no checkpoint; it is a pickle that would run code; it holds no
            state dict or several; or a tensor in it is sparse, quantized, or not finite.
    """
    data = _read(path)
    state: State = {}
    for key, tensor in _unwrap(data, path).items():
        name = _WRAPPERS.sub("", key.replace("._orig_mod.", "."))
        if name in state:
            raise WeightsError(f"two tensors are named {name} without their prefixes", where=path, hint=_SAVE_STATE)
        state[name] = _plain(tensor, name, path)
    return state


def _read(path: Path) -> object:
    """The content of a file, read without running code in it; it raises as :func:`load_state`."""
    reason, hint = _misfit(path)
    if reason:
        raise WeightsError(reason, where=path, hint=hint)
    try:
        if is_safetensors(path):
            return load_file(path)
        with warnings.catch_warnings():  # about pickle protocols; a file that cannot be read is refused below
            warnings.simplefilter("ignore")
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # on damaged bytes the unpickler raises any exception
        wanted = _wanted_global(error, path) if isinstance(error, pickle.UnpicklingError) else None
        if wanted:
            reason = f"refused: reading it would run {wanted}, and a checkpoint has to be tensors only"
            raise WeightsError(reason, where=path, hint=_SAVE_STATE) from error
        reason = str(error).partition("\n")[0] or type(error).__name__
        raise WeightsError(f"is damaged or no checkpoint: {reason:.200}", where=path, hint="fetch it again") from error


def _wanted_global(error: Exception, path: Path) -> str | None:
    """The name that a refused pickle would call: from torch's message, or from the opcodes for protocol 4 and later."""
    if named := re.search(r"(?:GLOBAL|Unsupported class) ([\w.]+)", str(error)):
        return named[1]
    strings: list[str] = []
    with suppress(ValueError), path.open("rb") as file:
        for opcode, argument, _ in pickletools.genops(file):
            if opcode.name == "STACK_GLOBAL":
                return ".".join(strings[-2:])
            if isinstance(argument, str):
                strings.append(argument)
    return None


def _misfit(path: Path) -> tuple[str, str | None]:
    """The reason why a file is certainly no checkpoint, and the next step; ("", None) where it may be one."""
    if not path.is_file():
        return "no such file", None
    with path.open("rb") as file:
        head = file.read(512)
    if not head:
        return "is empty", "fetch it again"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "is a web page, not a checkpoint", "fetch the file itself, not the page about it"
    if head.startswith(b"version https://git-lfs"):
        return "is a Git LFS pointer, not the file it points to", "run git lfs pull"
    if path.suffix == ".onnx":
        return "is an ONNX graph", "give it as the model, without --weights"
    if tarfile.is_tarfile(path):  # these make torch before 2.6 run code even so (CVE-2025-32434)
        return "is a tar archive, as torch wrote before 0.2", _SAVE_STATE
    if head.startswith(b"PK"):
        return _misfit_zip(path)
    return "", None


def _misfit_zip(path: Path) -> tuple[str, str | None]:
    try:
        with zipfile.ZipFile(path) as archive:
            names = {Path(name).name for name in archive.namelist()}
    except zipfile.BadZipFile:
        return "is cut short", "fetch it again"
    if "constants.pkl" in names:
        return "is a TorchScript archive, which holds code", _SAVE_STATE
    if "data.pkl" not in names:
        return "is a zip archive that torch.save did not write", _SAVE_STATE
    return "", None


def is_safetensors(path: Path) -> bool:
    """Whether the file is safetensors: by its suffix, or 8 bytes of length followed by JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _unwrap(data: object, path: Path) -> Mapping[str, Tensor]:
    """The state dict in a checkpoint, at any depth."""
    found = list(_state_dicts(data, ""))
    if not found:
        keys = f" among {', '.join(map(str, data))}" if isinstance(data, Mapping) else f", but a {type(data).__name__}"
        raise WeightsError(f"holds no state dict{keys:.200}", where=path, hint=_SAVE_STATE)
    ranked = sorted((_NESTS.index(nest) if nest in _NESTS else len(_NESTS), nest, state) for nest, state in found)
    if len(ranked) > 1 and ranked[1][0] == ranked[0][0]:
        nests = ", ".join(nest for _, nest, _ in ranked)
        raise WeightsError(f"holds several state dicts: {nests}", where=path, hint="save the one you mean alone")
    tensors = {str(key): value for key, value in ranked[0][2].items() if isinstance(value, Tensor)}
    return {key: tensor for key, tensor in tensors.items() if not key.endswith(_TRAINING_ONLY)}


def _state_dicts(data: object, nest: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every mapping that holds a tensor named ``...weight``, with its key."""
    if not isinstance(data, Mapping):
        return
    if any(isinstance(v, Tensor) and str(k).endswith("weight") for k, v in data.items()):
        yield nest, data
    for key, value in data.items():
        yield from _state_dicts(value, str(key))


def _plain(tensor: Tensor, name: str, path: Path) -> Tensor:
    if not tensor.is_floating_point() or tensor.layout is not torch.strided:
        hint = "give the checkpoint from before it was quantized or pruned"
        raise WeightsError(f"{name} is not a dense floating-point tensor, but {tensor.dtype}", where=path, hint=hint)
    tensor = tensor.detach().to(torch.float32).contiguous()
    if bad := int((~tensor.isfinite()).sum()):
        raise WeightsError(f"{bad:,} of {tensor.numel():,} values of {name} are not finite", where=path)
    return tensor
