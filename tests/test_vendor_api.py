"""Every name of TensorRT's API that the code uses exists in every TensorRT that it claims to work with."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

import pytest
from vendor_bindings import VERSIONS, bindings, loosely, missing, rtx, uses

import edgeres
from edgeres.engine.builder import BuildRequest

ROOT = Path(edgeres.__file__).parent
FILES = sorted(
    path
    for path in [*ROOT.glob("device/*.py"), *ROOT.glob("engine/*.py"), *ROOT.glob("runtime/*.py")]
    if re.search(r"\btrt\.|def \w+\(self, config: Any\)", path.read_text(encoding="utf-8"))
)
# Used only for TensorRT-RTX, after a check of the runtime or the module.
RTX_ALONE = {
    ("IBuilderConfig", "num_compute_capabilities"),
    ("IBuilderConfig", "set_compute_capability"),
    ("", "ComputeCapability"),
}


def test_the_files_are_found_and_what_they_use() -> None:
    assert {"builder.py", "timing.py", "libraries.py"} <= {path.name for path in FILES}
    api = bindings("10.3.0")
    found = {use for path in FILES for use in uses(path.read_text(encoding="utf-8"), api)}
    assert {
        ("", "Builder"),
        ("Builder", "create_network"),
        ("NetworkDefinitionCreationFlag", "STRONGLY_TYPED"),
        ("ITensor", "shape"),
        ("ParserError", "desc"),
        ("IOptimizationProfile", "set_shape"),
        ("IProgressMonitor", "step_complete"),
        ("ILogger.Severity", "INTERNAL_ERROR"),
        ("IBuilderConfig", "set_timing_cache"),
        ("ITimingCache", "serialize"),
    } <= found
    assert len(found) > 40


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_name_exists_in_tensorrt(version: str, path: Path) -> None:
    api = bindings(version)
    source = path.read_text(encoding="utf-8")
    lost = [
        f"{path.name}:{line} {owner or 'trt'}.{name}"
        for owner, name, line in missing(source, api, api)
        if (owner, name) not in RTX_ALONE
    ]
    assert lost == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_name_exists_in_rtx(path: Path) -> None:
    api = rtx()
    assert list(missing(path.read_text(encoding="utf-8"), api, api)) == []


@pytest.mark.parametrize("version", VERSIONS)
def test_names_that_one_version_has_are_not_used_unseen(version: str) -> None:
    """For objects of unknown type: no attribute that only some versions of TensorRT have."""
    names = {name: {m for members in api.members.values() for m in members} for name, api in _all().items()}
    shaky = set().union(*names.values()) - names[version]
    ours = {one.name for one in fields(BuildRequest)}
    allowed = {name for _, name in RTX_ALONE} | _behind_a_look() | ours
    assert {path.name: loosely(path.read_text(encoding="utf-8")) & shaky - allowed for path in FILES} == {
        path.name: set() for path in FILES
    }


def _all() -> dict[str, object]:
    return {version: bindings(version) for version in VERSIONS}


def _behind_a_look() -> set[str]:
    """Names that a file checks first: ``hasattr(engine, "name")`` and ``getattr(engine, "name", None)``."""
    text = "".join(path.read_text(encoding="utf-8") for path in FILES)
    return set(re.findall(r"(?:hasattr|getattr)\([\w.]+, \"(\w+)\"", text))


def test_only_rtx_has_what_is_said_to_be_its_alone() -> None:
    assert [use for use in RTX_ALONE if use not in rtx()] == []
    assert [use for use in RTX_ALONE if all(use in bindings(version) for version in VERSIONS)] == []


@pytest.mark.parametrize(
    ("code", "version", "lost"),
    [  # names that changed between these versions
        ("def f(trt):\n    return trt.NetworkDefinitionCreationFlag.EXPLICIT_BATCH", "11.4.0.106", "EXPLICIT_BATCH"),
        ("def f(trt, config):\n    config.set_flag(trt.BuilderFlag.INT8)", "11.4.0.106", "INT8"),
        ("def f(engine):\n    return engine.device_memory_size", "11.4.0.106", "device_memory_size"),
        ("def f(engine):\n    return engine.create_runtime_config()", "10.3.0", "create_runtime_config"),
        ("def f(engine):\n    c = engine.create_execution_context()\n    c.enqueue_v2(0)", "10.3.0", "enqueue_v2"),
        ("def f(trt):\n    return trt.Bilder", "10.3.0", "Bilder"),
    ],
)  # fmt: skip
def test_a_name_that_is_missing_is_found(code: str, version: str, lost: str) -> None:
    api = bindings(version)
    assert [name for _, name, _ in missing(code, api, api)] == [lost]
