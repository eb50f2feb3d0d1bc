"""TensorRT's Python bindings without TensorRT: the vendor's classes, in versions that cannot be installed here.

The bindings are on PyPI, but not the libraries that they bind. With a stub that defines every function they need, they
can be imported, and show their classes, members, and the types that calls return. No function is ever called.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

# The versions of JetPack 6.1, 7.0 and 7.2, and the newest.
VERSIONS = {
    "10.3.0": "tensorrt-cu12-bindings",
    "10.13.3.9.post1": "tensorrt-cu13-bindings",
    "10.16.1.11": "tensorrt-cu13-bindings",
    "11.4.0.106": "tensorrt-cu13-bindings",
}
CACHE = Path(os.environ.get("EDGERES_TEST_CACHE") or Path.home() / ".cache" / "edgeres-tests") / "bindings"

_LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
_DESCRIBE = """
import inspect, json, re, sys
from importlib import import_module

def described(cls, path, found):
    members = {}
    for name in dir(cls):
        member = inspect.getattr_static(cls, name)
        if isinstance(member, type) and member.__module__ == cls.__module__:
            described(member, f"{path}.{name}", found)
        doc = getattr(member.fget, "__doc__", "") if isinstance(member, property) else getattr(member, "__doc__", "")
        returns = re.findall(r"-> (.+)", doc or "") if not isinstance(member, type) else []
        members[name] = [type(member).__name__, " ".join(returns)]
    found[path] = members

trt = import_module(sys.argv[1])
found = {"": {name: [type(getattr(trt, name)).__name__, ""] for name in dir(trt)}}
for name in dir(trt):
    if isinstance(getattr(trt, name), type):
        described(getattr(trt, name), name, found)
print(json.dumps({"version": trt.__version__, "members": found}))
"""


@dataclass(frozen=True)
class Api:
    """The API of one version: by class (``""``: the module) its members, each with its kind and the type it returns."""

    version: str
    members: Mapping[str, Mapping[str, list[str]]]

    def type_of(self, owner: str, name: str) -> str | None:
        """The class that ``owner.name`` is (``type X``), holds or returns; None where it is no class of the vendor."""
        path = f"{owner}.{name}".strip(".")
        if path in self.members:
            return f"type {path}"
        _, returns = self.members.get(owner, {}).get(name, ["", ""])
        words = re.findall(r"\w+", returns)
        bare = [name for word in words for name in (word, word.removeprefix("I"))]  # C++'s names among them
        return next((name for name in reversed(bare) if name in self.members), None)

    def __contains__(self, use: tuple[str, str]) -> bool:
        return use[1] in self.members.get(use[0], {})


@cache
def bindings(version: str) -> Api:
    """The API of one version; the calling test is skipped with a reason where it is not available."""
    tag = f"cp{sys.version_info[0]}{sys.version_info[1]}"
    kept = CACHE / f"{version}-{tag}-{os.uname().machine}.json"
    if not kept.is_file():
        if sys.platform != "linux" or not (shutil.which("cc") and shutil.which("nm")):
            pytest.skip("the vendor's bindings are imported on Linux with a C compiler")
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(_describe(version))
    return Api(**json.loads(kept.read_text()))


def rtx() -> Api:
    """The API of the TensorRT-RTX that is installed."""
    pytest.importorskip("tensorrt_rtx", reason="RTX has names of its own")
    return Api(**json.loads(_run([sys.executable, "-c", _DESCRIBE, "tensorrt_rtx"])))


def _describe(version: str) -> str:
    folder = CACHE / version
    shutil.rmtree(folder, ignore_errors=True)
    try:
        _run([sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder),
              f"{VERSIONS[version]}=={version}"])  # fmt: skip
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder)
        (module,) = folder.glob("tensorrt_bindings/tensorrt*.so")
        _stub(module, folder / "libs")
        env = {**os.environ, "LD_LIBRARY_PATH": str(folder / "libs"), "PYTHONPATH": str(folder)}
        return _run([sys.executable, "-c", _DESCRIBE, "tensorrt_bindings"], env)
    except (subprocess.CalledProcessError, ValueError) as error:
        told = getattr(error, "stderr", "") or str(error)
        return pytest.skip(f"the bindings of TensorRT {version} cannot be had: {told.strip().splitlines()[-1]}")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _stub(module: Path, folder: Path) -> None:
    """Libraries under the vendor's names that define what the bindings import from them."""
    wanted = [
        line.split()[1] for line in _run(["nm", "-D", "--undefined-only", str(module)]).splitlines() if " U " in line
    ]
    ours = [name for name in wanted if "@" not in name and not name.startswith(("Py", "_Py", "dl"))]
    folder.mkdir()
    source, built = folder / "stub.c", folder / "stub.so"
    source.write_text("".join(f"void {name}(void) {{}}\n" for name in ours))
    _run(["cc", "-w", "-shared", "-fPIC", "-o", str(built), str(source)])
    for major in (10, 11):
        for library in _LIBRARIES:
            (folder / f"lib{library}.so.{major}").symlink_to(built)


def _run(argv: list[str], env: Mapping[str, str] | None = None) -> str:
    return subprocess.run(argv, env=env, capture_output=True, text=True, check=True, timeout=300).stdout


# --- uses in our code ----------------------------------------------------------------------------------------------

# Parameters that hold an object of the vendor (whose type is Any), by the names they have in our code; the module is
# whatever is called trt.
PARAMETERS = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "config": "IBuilderConfig",
    "parser": "OnnxParser",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
}


@dataclass
class Uses(ast.NodeVisitor):
    """Names of the vendor's API in one file: ``(class, member)``, class ``""`` for the module itself.

    Types are followed from the module through calls and attributes, by the vendor's signatures.
    """

    api: Api
    found: dict[tuple[str, str], int] = field(default_factory=dict)
    types: dict[str, str | None] = field(default_factory=dict)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        outer = dict(self.types)
        for parameter in (*node.args.args, *node.args.kwonlyargs):
            ours = parameter.annotation is not None and ast.unparse(parameter.annotation) != "Any"
            self.types[parameter.arg] = None if ours else PARAMETERS.get(parameter.arg)
        for _ in range(2):  # a comprehension names its variable behind the place where it is used
            self.generic_visit(node)
        self.types = {**outer, **{name: held for name, held in self.types.items() if name.startswith("self.")}}

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        for base in node.bases:
            held = self.type_of(base)
            if held and held.startswith("type "):
                for method in node.body:
                    if isinstance(method, ast.FunctionDef):
                        self.found[held[5:], method.name] = method.lineno
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self._bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self._bind(node.target, node.value)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_comprehension(self, node: ast.comprehension) -> None:
        self._bind(node.target, node.iter)
        self.generic_visit(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.type_of(node)
        self.generic_visit(node)

    def _bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for one, held in zip(target.elts, value.elts, strict=False):
                self._bind(one, held)
        elif isinstance(target, ast.Name | ast.Attribute):
            self.types[ast.unparse(target)] = self.type_of(value)

    def type_of(self, node: ast.expr) -> str | None:
        """The vendor's class of an expression; None: unknown."""
        name = ast.unparse(node) if isinstance(node, ast.Name | ast.Attribute) else ""
        if name.rpartition(".")[2] == "trt":
            return ""
        if name in self.types:
            return self.types[name]
        if isinstance(node, ast.Attribute):
            owner = self.type_of(node.value)
            if owner is None:
                return None
            owner = owner.removeprefix("type ")
            self.found[owner, node.attr] = node.lineno
            return self.api.type_of(owner, node.attr)
        if isinstance(node, ast.Call):
            held = self.type_of(node.func)
            return held.removeprefix("type ") if held else None
        if isinstance(node, ast.GeneratorExp | ast.ListComp):
            for generator in node.generators:
                self.visit_comprehension(generator)
            return self.type_of(node.elt)
        return None


def uses(source: str, api: Api) -> dict[tuple[str, str], int]:
    """The vendor's names that a file uses, with the lines."""
    visitor = Uses(api)
    visitor.visit(ast.parse(source))
    return visitor.found


def missing(source: str, typed_by: Api, api: Api) -> Iterator[tuple[str, str, int]]:
    """The names that a file uses and ``api`` does not have."""
    for (owner, name), line in uses(source, typed_by).items():
        if (owner, name) not in api:
            yield owner, name, line


def loosely(source: str) -> set[str]:
    """Every attribute name of a file."""
    tree = ast.parse(source)
    return {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}


__all__: list[Any] = ["VERSIONS", "Api", "bindings", "loosely", "missing", "rtx", "uses"]
