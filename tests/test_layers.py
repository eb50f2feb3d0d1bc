"""Imports point one way, heavy packages stay where they belong, and a robot's install runs everything meant for it."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from graphlib import TopologicalSorter
from importlib import import_module
from pathlib import Path
from typing import TypeVar

import click
import pytest

import edgeres
from edgeres.cli import COMMANDS

Definition = TypeVar("Definition", ast.FunctionDef, ast.ClassDef)

ROOT = Path(edgeres.__file__).parent
README = ROOT.parent / "README.md"

# From the ground up: folders and the files beside them. Those of one line never import each other.
FLOORS = (
    ("_version", "words", "inert"),
    ("errors", "files"),
    ("documents",),
    ("progress", "records"),
    ("reports",),
    ("device", "data"),
    ("graph",),
    ("bundle",),
    ("signing",),
    ("made",),
    ("zoo", "calibrate", "runtime"),
    ("quantize",),
    ("refine",),
    ("engine",),
    ("verify",),
    ("judge",),
    ("task",),
    ("report",),
    ("bench", "deploy", "hub", "live", "profiling"),
    ("pipeline",),
    ("doctor", "remote"),
    ("edgeres", "cli"),
    ("__main__",),
)
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}

# What may import a heavy package when it is imported itself. Everything else is part of the base install.
GRAPHS = ("edgeres.graph", "edgeres.quantize", "edgeres.refine", "edgeres.zoo.export", "edgeres.calibrate.forward")
CHECKPOINTS = tuple(
    f"edgeres.zoo.{name}"
    for name in ("checkpoint", "heads", "hf_folder", "match", "modules", "resnet", "sources", "state_dict")
)
ROS = ("edgeres.deploy.ros2_node",)
HEAVY = {
    "torch": (*CHECKPOINTS, "edgeres.zoo.export", "edgeres.refine"),
    "safetensors": CHECKPOINTS,
    "onnx": GRAPHS,
    "onnxruntime": (),
    "msgspec": (),
    "tensorrt": (),
    "tensorrt_rtx": (),
    "cuda": (),
    "pycuda": (),
    "rclpy": ROS,
}
BLOCKED = tuple(name for name in HEAVY if name not in ("onnxruntime", "msgspec"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): ast.parse(path.read_text(encoding="utf-8")) for path in sorted(ROOT.rglob("*.py"))}
BASE = [name for name in MODULES if not name.startswith((*GRAPHS, *CHECKPOINTS, *ROS))]


def imports(tree: ast.AST, *, deep: bool) -> Iterator[str]:
    """Modules that are imported; inside functions and for the type checker alone, too, where ``deep``."""
    for node in ast.iter_child_nodes(tree):
        if not deep and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute here"
            assert node.module
            full = [f"{node.module}.{alias.name}" for alias in node.names]
            yield from (name if name in MODULES else node.module for name in full)
        elif deep or not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield from imports(node, deep=deep)


def floor(name: str) -> str:
    """The folder of a module, or the file itself where it lies beside the folders."""
    return name.split(".")[1] if "." in name else name


OURS = {name: set(imports(tree, deep=True)) & MODULES.keys() for name, tree in MODULES.items()}


@pytest.mark.parametrize("name", MODULES)
def test_imports_point_down(name: str) -> None:
    here = floor(name)
    wrong = [other for other in OURS[name] if floor(other) != here and RANK[floor(other)] >= RANK[here]]
    assert wrong == []


def test_every_floor_is_there() -> None:
    assert {floor(name) for name in MODULES} == set(RANK)


def test_neither_files_nor_folders_import_each_other_in_a_circle() -> None:
    """Imports for the type checker and inside functions count."""
    assert len(list(TopologicalSorter(OURS).static_order())) == len(MODULES)  # raises CycleError
    folders: dict[str, set[str]] = {}
    for name, others in OURS.items():
        folders.setdefault(floor(name), set()).update({floor(other) for other in others} - {floor(name)})
    assert len(list(TopologicalSorter(folders).static_order())) == len(RANK)


def importers(folder: str, allowed: Callable[[str], bool]) -> set[str]:
    """Modules of a folder that import one of ours that is not allowed there."""
    ours = {name: others for name, others in OURS.items() if floor(name) == folder}
    return {name.split(".")[-1] for name, others in ours.items() if not all(map(allowed, others))}


def test_the_report_only_renders() -> None:
    allowed = ("edgeres.errors", "edgeres.records", "edgeres.report", "edgeres.judge.document", "edgeres.words")
    assert importers("report", lambda name: name.startswith(allowed)) == set()


def test_verification_takes_any_runner() -> None:
    """It opens none itself: of the runtime it uses the contract of runners and of their images alone."""
    contract = {"edgeres.runtime.runner", "edgeres.runtime.prepared"}
    assert importers("verify", lambda name: floor(name) != "runtime" or name in contract) == set()


def defined(kind: type[Definition]) -> list[tuple[str, Definition]]:
    """Functions or classes, methods and nested ones too, by the names of their modules and their own."""
    return [
        (f"{module}.{node.name}".removeprefix("edgeres."), node)
        for module, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, kind)
    ]


FUNCTIONS = defined(ast.FunctionDef)
CLASSES = defined(ast.ClassDef)


def test_every_function_fits_a_screen() -> None:
    lines = [(name, (node.end_lineno or 0) - node.lineno + 1) for name, node in FUNCTIONS]
    assert len(lines) > 1000
    assert {name for name, count in lines if count > 60} == set()


def test_no_function_takes_more_than_six_parameters() -> None:
    def parameters(of: ast.arguments) -> list[str]:
        names = [one.arg for one in (*of.posonlyargs, *of.args, *of.kwonlyargs)]
        return [name for name in names if name not in ("self", "cls")]

    found = {name for name, node in FUNCTIONS if len(parameters(node.args)) > 6}
    assert found == set()


def test_no_record_has_more_than_ten_fields() -> None:
    """Fields that are inherited within edgeres count. The keyword arguments of all records of a build are no record."""
    by_name = {node.name: node for _, node in CLASSES}

    def fields(node: ast.ClassDef) -> set[str]:
        own = {
            ast.unparse(line.target)
            for line in node.body
            if isinstance(line, ast.AnnAssign) and "ClassVar" not in ast.unparse(line.annotation)
        }
        bases = {ast.unparse(base).split("[")[0].split(".")[-1] for base in node.bases}
        return own.union(*(fields(by_name[base]) for base in bases & by_name.keys() - {node.name}))

    assert len(fields(by_name["TensorRange"])) == 5  # it counts what we think it does
    records = [(name, node) for name, node in CLASSES if not name.startswith("pipeline.keywords.")]
    assert {name for name, node in records if len(fields(node)) > 10} == set()


def test_a_class_name_means_one_thing() -> None:
    """The two libraries of CUDA's memory share names with the contract that they fulfil."""
    memory = re.compile(r"(runtime\.memory)\.\w+")
    where = {(node.name.lstrip("_"), memory.sub(r"\1", name.rpartition(".")[0])) for name, node in CLASSES}
    count = Counter(name for name, _ in where)
    assert {name for name, times in count.items() if times > 1} == set()


@pytest.mark.parametrize("package", HEAVY)
def test_heavy_packages_are_imported_at_module_level_only_where_allowed(package: str) -> None:
    found = {name for name, tree in MODULES.items() if package in {i.split(".")[0] for i in imports(tree, deep=False)}}
    assert {name for name in found if not name.startswith(HEAVY[package] or ("nowhere",))} == set()


def test_every_session_of_onnx_runtime_says_how_many_threads() -> None:
    """Left at 0, it pins threads to cores that a container or a Jetson's power mode may have taken away."""
    opened = Counter(
        (name, node.func.attr)
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    )
    said = {name: ast.unparse(tree).count("intra_op_num_threads") for name, tree in MODULES.items()}
    made = {name: count for (name, what), count in opened.items() if what == "SessionOptions"}
    assert len(made) > 4 and {name: said[name] for name in made} == made
    assert {name for name, what in opened if what == "InferenceSession"} == made.keys()


def in_new_python(code: str, *arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


BLOCKER = """
import sys
from importlib import import_module
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in BLOCKED:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
BLOCKED = sys.argv[1].split()
sys.meta_path.insert(0, Blocker())
"""


def test_the_base_install_imports_everything_but_the_stages_that_need_more() -> None:
    assert "edgeres.pipeline.take" in BASE  # the list is what we think it is
    assert "edgeres.verify.measure" in BASE
    code = BLOCKER + "for name in sys.argv[2:]: import_module(name)\nprint(set(BLOCKED) & set(sys.modules))"
    assert in_new_python(code, " ".join(BLOCKED), *BASE) == "set()\n"


def test_every_command_shows_its_help_in_the_base_install() -> None:
    code = BLOCKER + (
        "from edgeres.cli import cli\n"
        "for name in sys.argv[2:]:\n"
        "    cli.main([name, '--help'], prog_name='edgeres', standalone_mode=False)\n"
    )
    shown = in_new_python(code, " ".join(BLOCKED), *COMMANDS)
    assert all(f"Usage: edgeres {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["export", "--model", "resnet20", "--weights", "random", "-o", "x.onnx"], "onnx"),
        (["build", "--model", "resnet20"], "onnx"),
        (["quantize", "x.onnx", "--calibration", "signs:4", "-o", "y.onnx"], "onnx"),
        (["inspect", "x.onnx"], "onnx"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_the_base_install_says_what_a_step_needs(command: list[str], extra: str) -> None:
    code = BLOCKER + (
        "from edgeres.cli import main\n"
        "sys.stderr = sys.stdout\n"
        "sys.argv = ['edgeres', *sys.argv[2:]]\n"
        "try: main()\n"
        "except SystemExit as stop: print(stop.code)\n"
    )
    lines = in_new_python(code, " ".join(BLOCKED), *command).splitlines()
    wanted = f"edgeres: this step needs {extra}, which is not installed; pip install 'edgeres[export]'"
    assert [line for line in lines if not line.startswith("1/")] == [wanted, "3"]


def test_the_runtime_brings_numpy_alone() -> None:
    code = (
        "import sys; before = set(sys.modules)\n"
        "import edgeres.runtime\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(n for n in new - set(sys.stdlib_module_names) if not n.startswith('_')))"
    )
    assert in_new_python(code).split() == ["edgeres", "numpy"]


def test_the_list_of_commands_loads_none_of_them() -> None:
    """What keeps ``edgeres --help`` fast: not even NumPy is imported."""
    code = (
        "import sys\nfrom edgeres.cli import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "print([n for n in sys.modules if n.startswith(('edgeres.cli.', 'numpy', 'rich'))])"
    )
    shown = in_new_python(code)
    assert shown.endswith("[]\n")
    assert all(f"  {name} " in shown for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_show_an_example_and_are_documented(name: str) -> None:
    command: click.Command = import_module(f"edgeres.cli.{COMMANDS[name][0]}").command
    assert command.name == name
    example = f"edgeres {name}"
    assert any(f"{line} ".startswith(f"{example} ") for line in inspect.cleandoc(command.help or "").splitlines())
    assert [p.name for p in command.params if isinstance(p, click.Option) and not p.help] == []
    assert "--json" in {option for parameter in command.params for option in parameter.opts}
    assert example in README.read_text(encoding="utf-8")
