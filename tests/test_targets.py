"""The table of targets: complete, consistent, and with helpful errors for wrong names."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from edgeres.device.targets import RTX_COMPUTE_CAPABILITIES, RTX_PORTABLE, TARGETS, get_target, target_of_board
from edgeres.errors import UsageError

JETSONS = [name for name in TARGETS if name.startswith("jetson-")]


def version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("."))


def test_all_promised_targets_are_there() -> None:
    assert list(TARGETS) == [
        "cpu",
        "rtx",
        "tensorrt",
        "jetson-xavier-nx",
        "jetson-agx-xavier",
        "jetson-orin-nano",
        "jetson-orin-nx",
        "jetson-agx-orin",
        "jetson-thor",
        "jetson-nano",
    ]


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_is_consistent(name: str) -> None:
    target = TARGETS[name]
    assert target.name == name
    assert (target.style == "cpu") == (target.runtime == "onnxruntime")
    for versions in (target.board.jetpack, target.tensorrt):
        assert versions is None or version(versions[0]) <= version(versions[1])
    assert (target.board.jetpack is None) == (name not in JETSONS)
    assert target.board.dla[0] <= target.board.dla[1]
    assert target.title and target.where


@pytest.mark.parametrize(
    ("name", "sm", "dla", "memory_gb"),
    [
        ("jetson-nano", "5.3", (0, 0), (4,)),
        ("jetson-xavier-nx", "7.2", (2, 2), (8, 16)),
        ("jetson-agx-xavier", "7.2", (2, 2), (32, 64)),
        ("jetson-orin-nano", "8.7", (0, 0), (4, 8)),
        ("jetson-orin-nx", "8.7", (1, 2), (8, 16)),
        ("jetson-agx-orin", "8.7", (2, 2), (32, 64)),
        ("jetson-thor", "11.0", (0, 0), (64, 128)),
    ],
)
def test_jetsons_as_their_data_sheets_have_them(name: str, sm: str, dla: object, memory_gb: object) -> None:
    target = TARGETS[name]
    assert (target.sm, target.board.dla, target.board.memory_gb) == ((sm,), dla, memory_gb)


def test_a_target_does_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        TARGETS["rtx"].style = "cpu"  # type: ignore[misc]


def test_jetson_nano_is_refused_with_the_reason() -> None:
    assert not TARGETS["jetson-nano"].int8
    with pytest.raises(UsageError, match=r"Jetson Nano cannot be a target: .*SM 5\.3.* no INT8"):
        get_target("jetson-nano")


@pytest.mark.parametrize(
    ("typed", "meant"),
    [("rtxx", "rtx"), ("orin-nano", "jetson-orin-nano"), ("xavier", "jetson-agx-xavier"), ("trt", "rtx")],
)
def test_a_wrong_name_gets_the_near_ones(typed: str, meant: str) -> None:
    with pytest.raises(UsageError) as caught:
        get_target(typed)
    assert caught.value.exit_code == 2
    assert meant in str(caught.value)


def test_every_other_name_gives_its_target() -> None:
    assert all(get_target(name) is TARGETS[name] for name in TARGETS if name != "jetson-nano")


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super", "jetson-orin-nano"),
        ("NVIDIA Orin Nano Developer Kit", "jetson-orin-nano"),
        ("NVIDIA Jetson Orin NX Engineering Reference Developer Kit", "jetson-orin-nx"),
        ("NVIDIA Jetson AGX Orin Developer Kit", "jetson-agx-orin"),
        ("NVIDIA Jetson Xavier NX Developer Kit", "jetson-xavier-nx"),
        ("NVIDIA Jetson AGX Thor Developer Kit", "jetson-thor"),
        ("NVIDIA Jetson Nano Developer Kit", "jetson-nano"),
        ("Raspberry Pi 5 Model B Rev 1.0", None),
        ("", None),
    ],
)
def test_boards_are_recognised_by_their_device_tree(model: str, name: str | None) -> None:
    target = target_of_board(model)
    assert (target and target.name) == name


def test_where_an_engine_can_be_built() -> None:
    assert TARGETS["jetson-agx-orin"].accepts("8.7")
    assert not TARGETS["jetson-agx-orin"].accepts("8.6")
    assert TARGETS["tensorrt"].accepts("9.0")
    assert not TARGETS["rtx"].accepts("9.0")


def test_rtx_builds_for_what_its_module_lists() -> None:
    rtx = pytest.importorskip("tensorrt_rtx", reason="needs the vendor's list of compute capabilities")
    listed = {name for name in rtx.ComputeCapability.__members__ if name.startswith("SM")}
    assert {"SM" + capability.replace(".", "") for capability in RTX_COMPUTE_CAPABILITIES} == listed
    assert set(RTX_COMPUTE_CAPABILITIES) - set(RTX_PORTABLE) == {"7.5"}


def test_the_table_needs_no_vendor_package() -> None:
    heavy = {"tensorrt", "tensorrt_rtx", "onnx", "onnxruntime", "torch"}
    code = f"import sys, edgeres.device.targets; sys.exit(bool({heavy} & sys.modules.keys()))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
