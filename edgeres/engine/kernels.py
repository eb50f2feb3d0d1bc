"""Read the kernels of an RTX engine from its bytes; this needs no GPU and no vendor package.

The vendor's inspector needs the GPU that the engine is for. But RTX compiles ahead of time, and the engine contains the
compiler's program as text, behind the tag NLYM and a length (seen in 1.5, 1.6 and 1.7):

    header { region = { name= place=accelerator ... } ... accelerators={sm80 } }
    descriptors { tensor={ name= dims={ "n" 64 56 56 } type=int8 region= ... } ... }
    main { corrltn={ ... }  function={ ... }  wait={ ... } ... }

Every instruction of ``main`` names the tensors that it reads and writes, and its ONNX nodes. ``corrltn`` is a
convolution and lists what is fused into it. ``function`` is a kernel generated for operations that could not be fused
into a convolution; its name has up to four letters of each: ``__myl_MulMinMaxRounCast`` quantizes. Such a kernel moves
each tensor once: shape times size of the type. A convolution's kernel is chosen on the GPU, and may read more.

Worked number: behind a Conv with 64 channels of 56 x 56 in float32, ReLU and quantize read 802,816 and write 200,704
bytes; in float16 they would read half.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from math import ceil, prod
from typing import Any

from edgeres.errors import EngineError

_TAG = b"NLYM"
_MAGIC = (b"vtrt", b"ptrt", b"ftrt")
# Instructions that are no kernels: streams wait for each other, and shapes are computed on the host.
_CONTROL = frozenset({"wait", "signal", "shape_call"})
_KINDS = {"corrltn": "convolution", "function": "pointwise", "fully_connected": "matmul", "runtime_fusion": "matmul"}
_KINDS |= {"maxpool": "pooling", "avgpool": "pooling"}
_FUSIONS = {"bias": "bias", "relu": "ReLU", "accu": "Add", "quantize": "quantize"}
_DTYPES = {"float": "float32", "half": "float16"}
_WORDS = {"Fc": "MatMul", "Relu": "ReLU", "Roun": "Round", "Tran": "Transpose", "Slic": "Slice", "Repl": "Fill"}
_WORDS |= {"Conc": "Concat", "Resh": "Reshape", "Resi": "Resize", "Sigm": "Sigmoid"}
_MOVES = frozenset({"Transpose", "Slice", "Fill", "Concat", "Reshape", "Move"})
_STEP = re.compile(r"(?P<quantize>(?:Mul)?MinMaxRounCast)|(?P<dequantize>CastMul)|[A-Z]?[^A-Z]+|[A-Z]")


@dataclass(frozen=True)
class Tensor:
    """A tensor in the GPU's memory; a ``constant`` is stored in the engine.

    The batch, which is known only at run time, counts as 1 in ``shape``.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    constant: bool = False

    @property
    def size_bytes(self) -> int:
        return ceil(prod(self.shape) * _bits(self.dtype) / 8)

    def __str__(self) -> str:
        return f"{self.dtype} {'x'.join(map(str, self.shape))}"


@dataclass(frozen=True)
class Kernel:
    """One kernel launch.

    Attributes:
        kind: convolution, matmul, pooling, pointwise (generated for all other operations, means included), or the
            compiler's own word.
        name: the operations of a generated kernel, ``Mul, Add, ReLU, quantize``; for other kernels the ONNX node.
        inputs: all that it reads, constants included, in the compiler's order.
        fused: further operations of a convolution or matmul.
        layers: its ONNX nodes, as the compiler lists them.
        symbol: the compiler's name, without the hash.
    """

    kind: str
    name: str
    inputs: tuple[Tensor, ...]
    writes: tuple[Tensor, ...]
    fused: tuple[str, ...]
    layers: tuple[str, ...]
    symbol: str

    @property
    def reads(self) -> tuple[Tensor, ...]:
        """The activations among the inputs, each once."""
        return tuple(dict.fromkeys(tensor for tensor in self.inputs if not tensor.constant))

    @property
    def moved_bytes(self) -> int:
        """Bytes of the activations that it reads and writes."""
        return sum(tensor.size_bytes for tensor in (*self.reads, *self.writes))

    @property
    def constant_bytes(self) -> int:
        """Bytes of the weights and scales that it reads."""
        return sum(tensor.size_bytes for tensor in dict.fromkeys(self.inputs) if tensor.constant)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "name": self.name,
            "reads": [str(tensor) for tensor in self.reads],
            "writes": [str(tensor) for tensor in self.writes],
            "fused": list(self.fused),
            "moved_bytes": self.moved_bytes,
            "constant_bytes": self.constant_bytes,
            "layers": list(self.layers),
            "symbol": self.symbol,
        }


@dataclass(frozen=True)
class LostInt8:
    """A convolution or matmul that runs in float because a kernel before it dequantizes its codes.

    ``node`` names its ONNX node, or several; ``layers`` are those of the kernel that dequantizes.
    """

    node: str
    layers: tuple[str, ...]


@dataclass(frozen=True)
class Program:
    """The kernels of an engine, in launch order, and the GPUs that it was compiled for.

    RTX's portable default is ``sm80``, for Ampere and later; ``portable`` says whether later GPUs run it too.
    """

    accelerators: tuple[str, ...]
    portable: bool
    kernels: tuple[Kernel, ...]

    def of_kind(self, kind: str) -> tuple[Kernel, ...]:
        return tuple(kernel for kernel in self.kernels if kernel.kind == kind)

    @property
    def moved_bytes(self) -> int:
        """Bytes of activations that one inference reads and writes; a dynamic batch counts as 1."""
        return sum(kernel.moved_bytes for kernel in self.kernels)

    @property
    def constant_bytes(self) -> int:
        """Bytes of weights and scales that one inference reads."""
        return sum(kernel.constant_bytes for kernel in self.kernels)

    @property
    def lost(self) -> tuple[LostInt8, ...]:
        """The layers with weights whose codes are dequantized before them."""
        writer = {tensor.name: kernel for kernel in self.kernels for tensor in kernel.writes}
        found = []
        for kernel in (*self.of_kind("convolution"), *self.of_kind("matmul")):
            # The input is first, then the weights. The skip input of a fused Add comes later, and is float anyway.
            sources = (writer.get(tensor.name) for tensor in kernel.inputs[:2] if tensor.dtype != "int8")
            layers = [layer for source in sources if source and _dequantizes(source) for layer in source.layers]
            if layers:
                node = kernel.name if kernel.name in kernel.layers else ", ".join(kernel.layers)
                found.append(LostInt8(node, tuple(dict.fromkeys(layers))))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        kinds = {kernel.kind: replace(self, kernels=self.of_kind(kernel.kind)) for kernel in self.kernels}
        return {
            "accelerators": list(self.accelerators),
            "portable": self.portable,
            **self._bytes(),
            "kinds": {kind: {"kernels": len(part.kernels), **part._bytes()} for kind, part in kinds.items()},
            "kernels": [kernel.to_dict() for kernel in self.kernels],
            "lost": [asdict(lost) for lost in self.lost],
        }

    def _bytes(self) -> dict[str, int]:
        return {"moved_bytes": self.moved_bytes, "constant_bytes": self.constant_bytes}


def is_engine(data: bytes) -> bool:
    """Whether a file with these first bytes is an engine of TensorRT or TensorRT-RTX."""
    return data[:4] in _MAGIC


def read_program(data: bytes, *, where: object = None) -> Program:
    """The kernels of a serialized RTX engine.

    Raises:
        EngineError: it is no engine, it is damaged, or it is TensorRT's, which lists its kernels on its own GPU only.
    """
    if not is_engine(data):
        raise EngineError("not an engine of TensorRT-RTX", where=where, hint="edgeres engine BUNDLE builds one")
    try:
        parts = [_parse(text) for text in _texts(data)]
        # A kernel that is assembled on the GPU has a program of its own, for any accelerator.
        own = [part for part in parts if part.block("header").list_of("accelerators") != ("*",)]
        if own:
            header, kernels = own[0].block("header"), tuple(kernel for part in own for kernel in _kernels(part))
            portable = header.word("hardware_forward_compatibility") == "1"
            return Program(header.list_of("accelerators"), portable, kernels)
    except ValueError as error:
        what = f"the engine's list of kernels cannot be read ({error})"
        raise EngineError(what, where=where, hint="copy or build the engine again") from error
    hint = "RTX engines can be inspected anywhere, TensorRT's on the GPU they are for"
    raise EngineError("the engine does not say which kernels it runs", where=where, hint=hint)


def in_words(symbol: str) -> str:
    """A generated kernel's operations; one that only moves values is named once in a row.

    >>> in_words("__myl_CastMulMulAddAddReluMulMinMaxRounCastSlicReplReplConcReplReplConcSlic")
    'dequantize, Mul, Add, Add, ReLU, quantize, Slice, Fill, Concat'
    """
    name = re.sub(r"^__myl_|_0x[0-9a-f]+.*$", "", symbol)
    found: list[str] = []
    moves: set[str] = set()
    for match in _STEP.finditer(name):
        word = match.lastgroup or _WORDS.get(match.group(), match.group())
        moves = moves if word in _MOVES else set()
        if word not in moves:
            found.append(word)
        moves |= {word} & _MOVES
    return ", ".join(found)


def _bits(dtype: str) -> int:
    """Bits of a type such as ``int8``, ``bfloat16``, ``fp8_e4m3``; a bool takes a byte."""
    digits = re.search(r"\d+", dtype)
    if digits is None and dtype != "bool":
        raise ValueError(f"no such type: {dtype}")
    return int(digits.group()) if digits else 8


def _dequantizes(kernel: Kernel) -> bool:
    """Whether the kernel's last Q or DQ is a DQ; other operations, such as a Pad, may follow."""
    steps = [word for word in kernel.name.split(", ") if word in {"quantize", "dequantize"}]
    return kernel.kind == "pointwise" and steps[-1:] == ["dequantize"]


@dataclass
class _ProgramBlock:
    """``{ key=value value key { ... } }`` of the program's text; a word without ``=`` has the key ""."""

    entries: list[tuple[str, str | _ProgramBlock]] = field(default_factory=list)

    def find(self, key: str) -> str | _ProgramBlock | None:
        return next((value for name, value in self.entries if name == key), None)

    def block(self, key: str) -> _ProgramBlock:
        found = self.find(key)
        if not isinstance(found, _ProgramBlock):
            raise ValueError(f"{key} is missing")
        return found

    def word(self, key: str) -> str:
        found = self.find(key)
        return found if isinstance(found, str) else ""

    def list_of(self, key: str) -> tuple[str, ...]:
        found = self.find(key)
        entries = found.entries if isinstance(found, _ProgramBlock) else []
        return tuple(value for name, value in entries if not name and isinstance(value, str))


_TOKEN = re.compile(r'"((?:[^"\\]|\\.)*)"|([{}=])|([^\s{}="]+)', re.DOTALL)


def _texts(data: bytes) -> Iterator[str]:
    at = data.find(_TAG)
    while at >= 0:
        start = at + 16
        length = int.from_bytes(data[at + 8 : start], "little")
        if data.startswith(b"header", start):
            if start + length > len(data):
                raise ValueError("the file is cut short")
            yield data[start : start + length].decode(errors="replace")
        at = data.find(_TAG, start)


def _parse(text: str) -> _ProgramBlock:
    """The text as nested blocks; its top level is a block, too."""
    open_blocks = [_ProgramBlock()]
    key, last = "", ""
    for quoted, mark, word in (match.groups() for match in _TOKEN.finditer(text)):
        block = open_blocks[-1]
        if mark == "=":
            if block.entries and block.entries[-1] == ("", last):
                block.entries.pop()
            key = last
        elif mark == "{":
            if not key and block.entries and block.entries[-1] == ("", last):
                block.entries.pop()  # header { ... }
                key = last
            inner = _ProgramBlock()
            block.entries.append((key, inner))
            open_blocks.append(inner)
            key = last = ""
        elif mark == "}":
            if len(open_blocks) == 1:
                raise ValueError("a block ends that did not begin")
            open_blocks.pop()
            key = last = ""
        else:
            last = word if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
            block.entries.append((key, last))
            key = ""
    if len(open_blocks) > 1:
        raise ValueError("it ends in the middle")
    return open_blocks[0]


def _kernels(part: _ProgramBlock) -> Iterator[Kernel]:
    regions = [value for _, value in part.block("header").entries if isinstance(value, _ProgramBlock)]
    on_host = {region.word("name") for region in regions if region.word("place") == "host"}
    tensors = _tensors(part.block("descriptors"), on_host)
    for keyword, body in part.block("main").entries:
        if keyword in _CONTROL or not isinstance(body, _ProgramBlock):
            continue
        inputs = _named(tensors, body.list_of("input_args") or body.list_of("input"))
        writes = _named(tensors, body.list_of("output_args") or body.list_of("output"))
        if writes:
            yield _kernel(keyword, body, inputs, writes)


def _tensors(descriptors: _ProgramBlock, on_host: set[str]) -> dict[str, Tensor]:
    """The tensors in the GPU's memory, by name; a part of a tensor is where the tensor is."""
    found: dict[str, Tensor] = {}
    for keyword, body in descriptors.entries:
        if keyword not in {"tensor", "sub_tensor"} or not isinstance(body, _ProgramBlock):
            continue
        whole = found.get(body.word("base"))
        if body.word("region") in on_host or (body.word("base") and whole is None):
            continue
        kind = body.word("type")
        shape = tuple(int(size) if size.isdecimal() else 1 for size in body.list_of("dims"))
        constant = bool(body.word("const_payload_size")) or (whole is not None and whole.constant)
        tensor = Tensor(body.word("name"), _DTYPES.get(kind, kind), shape, constant)
        _bits(tensor.dtype)
        found[tensor.name] = tensor
    return found


def _named(tensors: dict[str, Tensor], names: Sequence[str]) -> tuple[Tensor, ...]:
    return tuple(tensors[name] for name in names if name in tensors)


def _kernel(keyword: str, body: _ProgramBlock, inputs: tuple[Tensor, ...], writes: tuple[Tensor, ...]) -> Kernel:
    # The separator is a control character; in a network that was built by API, users choose the entries.
    listed = filter(None, body.word("layers").split("\x1f"))
    layers = tuple(layer.removeprefix("[ONNX Layer: ").removesuffix("]") for layer in listed)
    symbol = body.word("name")
    kind = _KINDS.get(keyword, keyword)
    name = layers[0] if symbol.startswith("__mye") and layers else symbol
    name = in_words(symbol) if symbol.startswith("__myl_") else name
    fused = tuple(word for flag, word in _FUSIONS.items() if body.word(flag) == "true")
    return Kernel(kind, name, inputs, writes, fused, layers, symbol)
