"""Read the tensors of a checkpoint without running code that the file may hold.

    file -> tree of plain values, tensors and inert objects -> the tensors by their path in it

Nothing is imported or called that a file names: :mod:`~edgeres.inert` reads pickles. Tensors are read when they are
asked for, so the optimizer's state takes no memory.
"""

from __future__ import annotations

import io
import json
import math
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from edgeres.errors import WeightsError, reading
from edgeres.files import LFS_POINTER, PULL, is_lfs_pointer, open_file, read_file, refuse_special
from edgeres.inert import DamagedPickle, Inert, Make, read_pickle

_SAVE_STATE = "load it in the program that wrote it and save model.state_dict() alone"
_AS_MODULE = "export the network as ONNX and give that as the model, or give the module to edgeres.build in Python"
_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file that torch wrote before 1.6
_DTYPES = {
    "Float": "float32",
    "Double": "float64",
    "Half": "float16",
    "BFloat16": "bfloat16",
    "Bool": "bool",
    "Long": "int64",
    "Int": "int32",
    "Short": "int16",
    "Char": "int8",
    "Byte": "uint8",
}
_NUMPY = re.compile(r"[<>|=]?(f[248]|i[1248]|u[1248]|b1)")
_WITHOUT_VALUES = ("sparse", "qtensor", "nested", "meta", "wrapper_subclass")
# Parts of names that torch.compile, FSDP and activation checkpointing insert.
_INSERTED = re.compile(r"(?:^|(?<=\.))(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_TRAINING_ONLY = ("num_batches_tracked", "n_averaged")
_DEEPEST = 64
_LONGEST_NAME = 1000  # of a tensor, with all keys that lead to it
_MOST_TENSORS = 20_000
_LARGEST_PICKLE = 1 << 28  # bytes without the values of tensors
_MOST_ELEMENTS = 1 << 40
_DAMAGED = "is damaged or no checkpoint"
_FETCH = "fetch it again"


@dataclass(frozen=True, eq=False)
class Stored:
    """A tensor of a file that is not read yet.

    Attributes:
        dtype: as torch calls it, or the kind of a tensor that is not dense.
        place: equal for tensors that share their values.
        load: gives the values, in any floating type and memory layout.
    """

    shape: tuple[int, ...]
    dtype: str
    place: tuple[Any, ...]
    load: Callable[[], Tensor]

    def read(self, name: str, path: Path) -> Tensor:
        """The values as a dense float32 tensor.

        Raises:
            WeightsError: it is not dense, not floating-point or not finite, or the file is damaged there.
        """
        dtype = getattr(torch, self.dtype, None)
        if not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
            hint = "give the checkpoint from before it was quantized or pruned"
            what = f"{name} is not a dense floating-point tensor, but {self.dtype}"
            raise WeightsError(what, where=path, hint=hint)
        with reading(path, _DAMAGED, error=WeightsError, hint=_FETCH):
            tensor = self.load().detach().to(torch.float32).contiguous()
        if bad := int((~tensor.isfinite()).sum()):
            raise WeightsError(f"{bad:,} of {tensor.numel():,} values of {name} are not finite", where=path)
        return tensor


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of a file.

    Attributes:
        tensors: by their path in the file, such as ``state_dict.module.conv1.weight``. What only training needs is left
            out: ``n_averaged``, ``num_batches_tracked`` and other whole numbers.
        holders: for each tensor the path of the dictionary or module that holds it, with a dot at its end.
        modules: pickled and scripted modules by their path, with a dot at its end.
        keys: the first level of the file, for messages.
        objects: classes and functions that the file names, for messages.
    """

    path: Path
    tensors: dict[str, Stored] = field(default_factory=dict)
    holders: dict[str, str] = field(default_factory=dict)
    modules: dict[str, Inert] = field(default_factory=dict)
    keys: tuple[str, ...] = ()
    objects: list[str] = field(default_factory=list)


def load_checkpoint(path: Path) -> Checkpoint:
    """Read files of ``torch.save``, pickles, TorchScript archives and safetensors, also sharded, known by content.

    Raises:
        WeightsError: the file is missing, damaged or no checkpoint, or it holds no tensors.
    """
    with reading(path, _DAMAGED, error=WeightsError, hint=_FETCH):
        reason, hint = _misfit(path)
        if reason:
            raise WeightsError(reason, where=path, hint=hint)
        if path.name.endswith(".index.json"):
            return _sharded(path)
        if is_safetensors(path):
            tree: Any = _safetensors(path)
        elif _starts(path, b"PK"):
            tree = _Archive(path).tree()
        else:
            tree = _old_file(path)
        checkpoint = _collect(tree, path)
    if not checkpoint.tensors:
        among = f" among {', '.join(checkpoint.keys)}" if checkpoint.keys else f", but {_kind(tree)}"
        made = f"; reading it would run {checkpoint.objects[0]}, which is not done" if checkpoint.objects else ""
        raise WeightsError(f"holds no state dict{among:.200}{made:.200}", where=path, hint=_SAVE_STATE)
    return checkpoint


def is_safetensors(path: Path) -> bool:
    """Whether the file is safetensors: by its suffix, or 8 bytes of length followed by JSON."""
    with open_file(path) as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _starts(path: Path, head: bytes) -> bool:
    with path.open("rb") as file:
        return file.read(len(head)) == head


def _kind(tree: object) -> str:
    return tree.path if isinstance(tree, Inert) else f"a {type(tree).__name__}"


def _misfit(path: Path) -> tuple[str, str | None]:
    """The reason why a file is certainly no checkpoint, and the next step; ("", None) where it may be one."""
    if not path.exists():
        return "no such file", None
    refuse_special(path)
    if path.is_dir():
        return "is a directory", "give the file of the checkpoint"
    head = read_file(path, 512)
    if not head:
        return "is empty", "fetch it again"
    if re.match(rb"\s*<(!doctype|html|\?xml)", head, re.IGNORECASE):
        return "is a web page, not a checkpoint", "fetch the file itself, not the page about it"
    if is_lfs_pointer(head):
        return f"is {LFS_POINTER}", PULL
    if path.suffix == ".onnx":
        return "is an ONNX graph", "give it as the model, without --weights"
    if head.startswith(b"\x89HDF"):
        return "is an HDF5 file, as Keras writes", "export the network as ONNX and give that as the model"
    if head.startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")):
        return "is compressed", "unpack it first"
    if tarfile.is_tarfile(path):
        return "is a tar archive, as torch wrote before 0.2", _SAVE_STATE
    shard = re.search(r"-(\d{5})-of-(\d{5})\.", path.name)
    if shard and int(shard[2]) > 1:
        return f"is part {int(shard[1])} of {int(shard[2])}", "give the .index.json beside it"
    return "", None


def _safetensors(path: Path) -> dict[str, Stored]:
    dtypes = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}
    found = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - it is no dictionary
            part = file.get_slice(name)

            def load(name: str = name) -> Tensor:
                with safe_open(path, framework="pt") as again:
                    tensor: Tensor = again.get_tensor(name)
                    return tensor

            kind = dtypes.get(part.get_dtype(), part.get_dtype())
            found[name] = Stored(tuple(part.get_shape()), kind, (str(path), name), load)
    return found


def _sharded(path: Path) -> Checkpoint:
    """All parts that an index names, as transformers writes it."""
    try:
        if path.stat().st_size > _LARGEST_PICKLE:
            raise ValueError("it is too large")
        content = json.loads(read_file(path))
        parts = {str(part) for part in content["weight_map"].values()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError("is no index of a sharded checkpoint", where=path, hint="fetch it again") from error
    whole = Checkpoint(path)
    for part in sorted(parts):
        if Path(part).name != part:
            raise WeightsError(f"names {part}, which is not beside it", where=path, hint="put all parts in one folder")
        file = path.with_name(part)
        if not file.is_file():
            raise WeightsError(f"{part} is missing beside it", where=path, hint="put all parts in one folder")
        reason, hint = _misfit(file) if not re.search(r"-\d{5}-of-", part) else ("", None)
        if reason:
            raise WeightsError(reason, where=file, hint=hint)
        with reading(file, _DAMAGED, error=WeightsError, hint=_FETCH):
            tree = _safetensors(file) if is_safetensors(file) else _Archive(file).tree()
            found = _collect(tree, path)
        whole.tensors.update(found.tensors)
        whole.holders.update(found.holders)
    return whole


@dataclass(frozen=True)
class _Storage:
    """Values of one dtype that tensors are views of; ``dtype`` is None for bytes."""

    dtype: str | None
    key: str
    size: int
    load: Callable[[], bytes]


class _Array:
    """A numpy array that its pickle makes first and fills later."""

    def __init__(self) -> None:
        self.stored: Stored | None = None

    def take_state(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        data = data.encode("latin-1") if isinstance(data, str) else data
        self.stored = _array(data, dtype, shape, "F" if fortran else "C").stored


def _array(data: Any, dtype: Any, shape: Any, order: str = "C") -> _Array:
    """A numpy array of numbers; one of objects holds none, and is recorded without values."""
    made = _Array()
    name = dtype.args[0] if isinstance(dtype, Inert) and dtype.args else ""
    swapped = isinstance(dtype, Inert) and isinstance(dtype.state, tuple) and ">" in dtype.state
    if isinstance(name, str) and _NUMPY.fullmatch(name) and isinstance(data, bytes | bytearray):
        kind = np.dtype((">" if swapped else "<") + name.lstrip("<>|="))
        sizes, order = _sizes(shape), "F" if order == "F" else "C"

        def load() -> Tensor:
            values = np.frombuffer(data, kind).reshape(sizes, order=order)  # type: ignore[call-overload]
            return torch.from_numpy(values.astype(kind.newbyteorder("=")))

        made.stored = Stored(sizes, kind.name, ("array", id(made)), load)
    return made


def _sizes(given: Any) -> tuple[int, ...]:
    sizes: tuple[int, ...] = tuple(given) if isinstance(given, list | tuple) else (given,)
    if len(sizes) > _DEEPEST or not all(type(size) is int and 0 <= size <= _MOST_ELEMENTS for size in sizes):
        raise DamagedPickle("sizes that are no sizes of a tensor")
    return sizes


def _view(storage: Any, offset: Any, size: Any, stride: Any, *_: Any, dtype: str | None = None) -> Stored:
    """A tensor as torch describes it: a part of a storage; all steps in values, not bytes."""
    if not isinstance(storage, _Storage):
        raise DamagedPickle("a tensor of what is no storage")
    kind = dtype or storage.dtype
    (start,), sizes, steps = _sizes(offset), _sizes(size), _sizes(stride)
    values = math.prod(sizes, start=1)
    known = getattr(torch, kind or "", None)
    if len(sizes) != len(steps) or not isinstance(known, torch.dtype):
        raise DamagedPickle(f"a tensor of {kind}")
    have = storage.size if storage.dtype else storage.size // known.itemsize
    last = start + sum((n - 1) * step for n, step in zip(sizes, steps, strict=True))
    # An expanded tensor has more values than the file: a few bytes could ask for all memory.
    if values > have or (values and last >= have):
        raise DamagedPickle(f"a tensor of {values} values where {have} are stored")

    def load() -> Tensor:
        data = storage.load()
        if len(data) < have * known.itemsize:
            raise ValueError(f"{len(data)} bytes where {have * known.itemsize} are expected")
        if not data:
            return torch.empty(sizes, dtype=known)
        return torch.frombuffer(bytearray(data), dtype=known).as_strided(sizes, steps, start)

    return Stored(sizes, str(kind), (id(storage), start, steps), load)


def _view_of_bytes(storage: Any, offset: Any, size: Any, stride: Any, *rest: Any) -> Stored:
    named = rest[2].path if len(rest) > 2 and isinstance(rest[2], Inert) else ""
    return _view(storage, offset, size, stride, dtype=named.removeprefix("torch."))


def _without_values(kind: str) -> Make:
    def make(*args: Any) -> Stored:
        flat = [inner for a in args for inner in (a, *(a if isinstance(a, tuple) else ()))]
        sizes = next((a for a in flat if isinstance(a, tuple) and a and all(type(n) is int for n in a)), ())

        def load() -> Tensor:
            raise ValueError("a tensor without dense values")

        return Stored(_sizes(sizes), f"a {kind} tensor", (id(args),), load)

    return make


def _of_type(make: Any, _: Any, args: Any, *rest: Any) -> Any:
    """A tensor of a subclass: what its own function makes."""
    maker = _MAKERS.get(make.path) if isinstance(make, Inert) else None
    return maker(*args) if maker and isinstance(args, tuple) else Inert("a tensor of an unknown class", rest)


def _encode(text: Any, *_: Any) -> Any:
    """Bytes as pickles of protocol 2 write them."""
    return text.encode("latin-1") if isinstance(text, str) else text


def _from_bytes(data: Any) -> Any:
    """A storage within a plain pickle: a whole file of ``torch.save`` as bytes."""
    if not isinstance(data, bytes | bytearray):
        raise DamagedPickle("a storage of what is no bytes")
    return _stream(io.BytesIO(data), lambda: io.BytesIO(data))


_UTILS = "torch._utils._rebuild_"
_MAKERS: dict[str, Make] = {
    f"{_UTILS}tensor": _view,
    f"{_UTILS}tensor_v2": _view,
    f"{_UTILS}tensor_v3": _view_of_bytes,
    f"{_UTILS}parameter": lambda data, *_: data,
    f"{_UTILS}parameter_with_state": lambda data, *_: data,
    f"{_UTILS}device_tensor_from_numpy": lambda array, *_: array,
    f"{_UTILS}xla_tensor": lambda array, *_: array,
    **{f"{_UTILS}{kind}{end}": _without_values(kind) for kind in _WITHOUT_VALUES for end in ("", "_tensor")},
    f"{_UTILS}meta_tensor_no_storage": _without_values("meta"),
    f"{_UTILS}sparse_csr_tensor": _without_values("sparse"),
    "torch._tensor._rebuild_from_type": _of_type,
    "torch._tensor._rebuild_from_type_v2": _of_type,
    "torch.storage._load_from_bytes": _from_bytes,
    "torch.Size": lambda sizes=(), *_: tuple(sizes),
    "_codecs.encode": _encode,
    **{f"numpy.{core}.multiarray._reconstruct": lambda *_: _Array() for core in ("core", "_core")},
    **{f"numpy.{core}.numeric._frombuffer": _array for core in ("core", "_core")},
}


def _storage_of(identifier: Any, load: Callable[[str], bytes]) -> _Storage:
    """The storage of a persistent identifier, ("storage", type, key, device, number of values)."""
    kind, described, key, _, size, *view = identifier
    name = described.path.rpartition(".")[2].removesuffix("Storage") if isinstance(described, Inert) else ""
    if kind != "storage" or not isinstance(key, str) or type(size) is not int or (view and view[0] is not None):
        raise DamagedPickle("an unknown kind of storage")
    dtype = None if name == "Untyped" else _DTYPES.get(name, name)
    return _Storage(dtype, key, size, lambda: load(key))


class _Archive:
    """A zip archive of ``torch.save`` or TorchScript: a pickle, and the values of each storage as they are."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as archive:
                self.members = {info.filename: info for info in archive.infolist()}
        except zipfile.BadZipFile as error:
            raise WeightsError("is cut short", where=path, hint="fetch it again") from error
        pickles = [name for name in self.members if name.split("/")[1:] == ["data.pkl"]]
        if len(pickles) != 1:
            raise WeightsError(self._otherwise(), where=path, hint=self._hint())
        self.top = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, _Storage] = {}

    def _otherwise(self) -> str:
        names = {name.partition("/")[2] for name in self.members}
        if any(name.startswith(("models/", "data/weights/")) or name == "archive_format" for name in names):
            return "is a program of torch.export, whose weights have no names"
        return "is a zip archive that torch.save did not write"

    def _hint(self) -> str:
        return _AS_MODULE if "torch.export" in self._otherwise() else _SAVE_STATE

    def tree(self) -> Any:
        if self.members.get(f"{self.top}byteorder") and self._read(f"{self.top}byteorder") == b"big":
            raise WeightsError("was written on a big-endian machine", where=self.path, hint=_SAVE_STATE)
        pickle = io.BytesIO(self._read(f"{self.top}data.pkl"))
        return read_pickle(pickle, _MAKERS, self._storage)

    def _storage(self, identifier: Any) -> _Storage:
        found = _storage_of(identifier, lambda key: self._read(f"{self.top}data/{key}"))
        return self.storages.setdefault(found.key, found)

    def _read(self, name: str) -> bytes:
        """A member's bytes. torch can write archives without checksums, which :mod:`zipfile` takes for damaged."""
        info = self.members.get(name)
        if info is None:
            raise ValueError(f"{name} is missing in it")
        if name.endswith(".pkl") and info.file_size > _LARGEST_PICKLE:
            raise ValueError(f"{name} has {info.file_size:,} bytes")
        if info.compress_type != zipfile.ZIP_STORED:
            raise ValueError(f"{name} is compressed, and torch.save compresses nothing")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            header = file.read(30)
            file.seek(int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little"), io.SEEK_CUR)
            if info.file_size > self.path.stat().st_size:
                raise ValueError(f"{name} is larger than the file")
            data = file.read(info.file_size)
        if len(data) != info.file_size or (info.CRC and zlib.crc32(data) != info.CRC):
            raise ValueError(f"{name} has another checksum than the archive says")
        return data


def _old_file(path: Path) -> Any:
    with path.open("rb") as file:
        return _stream(file, lambda: path.open("rb"))


def _stream(file: IO[bytes], again: Callable[[], IO[bytes]]) -> Any:
    """A file that torch wrote before 1.6, or a plain pickle.

    torch's: a magic number, the version, facts on the machine, the object, keys of storages; then for each key 8 bytes
    with the number of values, and the values.
    """
    places: dict[str, tuple[int, int]] = {}
    kinds: dict[str, _Storage] = {}

    def load(key: str) -> bytes:
        start, size = places[key]
        with again() as opened:
            end = opened.seek(0, io.SEEK_END)
            if start + size > end:
                raise ValueError(f"{size:,} values are expected behind byte {start:,}, and the file has {end:,} bytes")
            opened.seek(start)
            return opened.read(size)

    def persistent(identifier: Any) -> _Storage:
        storage = _storage_of(identifier, load)
        return kinds.setdefault(storage.key, storage)

    first = read_pickle(file, _MAKERS, persistent)
    if first != _MAGIC:
        return first
    for _ in ("version", "machine"):
        read_pickle(file, {}, persistent)
    tree = read_pickle(file, _MAKERS, persistent)
    keys = read_pickle(file, {}, persistent)
    for key in keys if isinstance(keys, list) else ():
        head = file.read(8)
        known = getattr(torch, kinds[key].dtype or "uint8", None) if key in kinds else None
        if len(head) != 8 or not isinstance(known, torch.dtype):
            raise DamagedPickle("the values of a storage are missing")
        places[key] = (file.tell(), int.from_bytes(head, "little") * known.itemsize)
        file.seek(places[key][1], io.SEEK_CUR)
    return tree


def _collect(tree: Any, path: Path) -> Checkpoint:
    """Walk through the tree and name every tensor by its path."""
    found = Checkpoint(path, keys=tuple(map(str, tree)) if isinstance(tree, Mapping) else ())
    seen: set[int] = set()
    waiting: list[tuple[Any, tuple[str, ...], str | None]] = [(tree, (), None)]
    while waiting:
        node, parts, module = waiting.pop()
        if isinstance(node, _Array):
            node = node.stored
        if isinstance(node, Stored):
            _enter(found, node, parts, module)
        elif isinstance(node, dict | list | tuple | Inert) and id(node) not in seen and len(parts) <= _DEEPEST:
            seen.add(id(node))
            inner, children = None, _children(node)
            if isinstance(node, Inert) and node.args is not None:
                found.objects.append(node.path)
            if isinstance(node, Inert) and (inside := _module_state(node)) is not None:
                here = ".".join((*parts, ""))
                found.modules[here] = node
                inner, children = here if module is None else module, inside
            waiting += [(child, (*parts, *name), inner) for name, child in reversed(list(children))]
    return found


def _enter(found: Checkpoint, tensor: Stored, parts: tuple[str, ...], module: str | None) -> None:
    if sum(map(len, parts)) > _LONGEST_NAME:
        raise WeightsError(f"the name of a tensor is longer than {_LONGEST_NAME:,} characters", where=found.path)
    full = ".".join(parts)
    name = _INSERTED.sub("", full)
    counts = tensor.shape == () and re.fullmatch(r"u?int\d+|bool", tensor.dtype)
    if counts or name.endswith(_TRAINING_ONLY):
        return
    if name in found.tensors and found.tensors[name].place != tensor.place:
        raise WeightsError(f"two tensors are named {name}", where=found.path, hint=_SAVE_STATE)
    if len(found.tensors) >= _MOST_TENSORS:
        raise WeightsError(f"holds more than {_MOST_TENSORS:,} tensors", where=found.path, hint=_SAVE_STATE)
    found.tensors[name] = tensor
    holder = ".".join((*parts[:-1], "")) if module is None else module
    found.holders[name] = _INSERTED.sub("", holder)


def _children(node: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """What a dictionary, a list or an inert object holds, with the parts of the name that each adds."""
    if isinstance(node, dict):
        yield from (((str(key),), value) for key, value in node.items())
    elif isinstance(node, list | tuple):
        yield from (((str(index),), value) for index, value in enumerate(node))
    else:
        yield from (((), part) for part in (node.state, node.items, node.members, node.args) if part)


def _module_state(node: Inert) -> Iterator[tuple[tuple[str, ...], Any]] | None:
    """Parameters, buffers and children of a pickled or scripted module; None where it is no module."""
    state = node.state
    if not isinstance(state, dict):
        return None
    if node.path.startswith("__torch__."):
        return _children(state)
    tables = [state.get(name) for name in ("_parameters", "_buffers", "_modules")]
    if not all(isinstance(table, dict) for table in tables):
        return None
    hidden = state.get("_non_persistent_buffers_set")
    left_out = hidden.args[0] if isinstance(hidden, Inert) and hidden.args else hidden
    left_out = left_out if isinstance(left_out, list) else []
    return (item for table in tables for item in _children(table) if item[0][0] not in left_out)
