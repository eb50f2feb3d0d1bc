"""The ROS 2 package of a bundle: its files against each other, its node on a stand-in for rclpy, and colcon's build.

colcon and catkin_pkg are tried where they are installed: ``pip install colcon-ros colcon-python-setup-py``. ROS, which
would start the launch file, is not on PyPI.
"""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import fake_ros
import numpy as np
import pytest
import yaml
from bundles import classifier, write_bundle
from click.testing import CliRunner
from fake_ros import MESSAGES, Ros
from hypothesis import given
from hypothesis import strategies as st

from edgeres.bundle import FP32
from edgeres.cli.deploy import command
from edgeres.deploy.ros2 import package_name
from edgeres.errors import UsageError
from edgeres.graph.forms import FORMS
from edgeres.pipeline.deploy import deploy
from edgeres.runtime import Classifier

NAME = "edgeres_my_robot_v2"


def bundle_at(path: Path) -> Path:
    return write_bundle(path, files={FP32: classifier(), FORMS["cpu"].file: classifier()})


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return bundle_at(tmp_path / "My Robot-v2.edgeres")


@pytest.fixture
def package(path: Path, tmp_path: Path) -> Path:
    deploy(path, "ros2", tmp_path / "package")
    return tmp_path / "package"


def run(file: Path, monkeypatch: pytest.MonkeyPatch, **stubs: Any) -> dict[str, Any]:
    """Execute a file of the package with stand-ins for the modules that it imports; returns its names."""
    for name, content in stubs.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name.replace("__", "."), module)
    names: dict[str, Any] = {}
    exec(compile(file.read_text(), str(file), "exec"), names)
    return names


def setup_of(package: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    given: dict[str, Any] = {}
    run(package / "setup.py", monkeypatch, setuptools={"setup": lambda **keywords: given.update(keywords)})
    return given


def test_one_name_in_all_files_and_every_file_is_installed(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = ElementTree.parse(package / "package.xml").getroot()
    assert (root.tag, root.attrib, root.findtext("name")) == ("package", {"format": "3"}, NAME)
    order = [child.tag for child in root]
    assert order[:5] == ["name", "version", "description", "maintainer", "license"] and order[-1] == "export"
    assert root.findtext("export/build_type") == "ament_python"
    assert {one.text for one in root.iter("exec_depend")} >= {"rclpy", "sensor_msgs", "vision_msgs", "launch_ros"}
    made = setup_of(package, monkeypatch)
    assert (made["name"], made["version"]) == (NAME, root.findtext("version"))
    installed = {file for _, files in made["data_files"] for file in files}
    assert ("share/ament_index/resource_index/packages", [f"resource/{NAME}"]) in made["data_files"]
    here = {p.relative_to(package).as_posix() for p in package.rglob("*") if p.is_file()}
    assert here == installed | {"setup.py", "setup.cfg", f"{NAME}/__init__.py", f"{NAME}/classifier.py"}
    assert f"install_scripts=$base/lib/{NAME}" in (package / "setup.cfg").read_text()


def test_catkin_pkg_takes_the_package(package: Path) -> None:
    catkin_pkg = pytest.importorskip("catkin_pkg.package", reason="pip install catkin_pkg")
    warnings: list[str] = []
    found = catkin_pkg.parse_package(str(package), warnings=warnings)
    assert (found.name, found.get_build_type(), warnings) == (NAME, "ament_python", [])
    found.validate()


def test_the_launch_file_starts_the_node_with_its_parameters(
    package: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def action(kind: str) -> Any:
        return lambda *given, **keywords: SimpleNamespace(kind=kind, given=given, **keywords)

    names = run(
        package / "launch/classifier.launch.py",
        monkeypatch,
        ament_index_python={},
        ament_index_python__packages={"get_package_share_directory": lambda name: {NAME: str(package)}[name]},
        launch={"LaunchDescription": lambda actions: actions},
        launch__actions={"DeclareLaunchArgument": action("argument")},
        launch__substitutions={"LaunchConfiguration": lambda name: f"<{name}>"},
        launch_ros={},
        launch_ros__actions={"Node": action("node")},
        launch_ros__parameter_descriptions={"ParameterValue": lambda value, value_type: (value, value_type)},
    )
    *arguments, node = names["generate_launch_description"]()
    assert {one.given[0]: one.default_value for one in arguments} == {
        "bundle": str(path),
        "params_file": str(package / "config/classifier.yaml"),
    }
    assert (package / "config/classifier.yaml").is_file()
    (script,) = setup_of(package, monkeypatch)["entry_points"]["console_scripts"]
    assert (node.package, node.executable) == (NAME, script.partition(" = ")[0])
    assert node.parameters == ["<params_file>", {"bundle": ("<bundle>", str)}]


def test_a_bundle_below_the_home_folder_is_found_below_that_of_the_robots_user(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    deploy(bundle_at(tmp_path / "models/it's.edgeres"), "ros2", tmp_path / "package")
    text = (tmp_path / "package/launch/classifier.launch.py").read_text()
    assert """os.path.expanduser("~/models/it's.edgeres")""" in text and str(tmp_path) not in text


def test_a_frame_gives_an_answer_and_parameters_have_the_nodes_names_and_types(
    package: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parameters = yaml.safe_load((package / "config/classifier.yaml").read_text())["/**"]["ros__parameters"]
    ros = Ros({**parameters, "bundle": str(path), "backend": "cpu", "threads": 1})
    pixels = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    image = MESSAGES["sensor_msgs/Image"](height=20, width=30, encoding="rgb8", step=90, data=pixels.tobytes())

    def stop(node: Any) -> None:
        ros.running = False

    ros.events.extend([lambda node: node.subscriptions_made[0].arrives(image), stop])
    with fake_ros.installed(monkeypatch, ros):
        monkeypatch.syspath_prepend(str(package))
        node = importlib.import_module(f"{NAME}.classifier")
        assert {"bundle": "", **parameters, "topic": "image"} == node.DEFAULTS
        assert node.main([]) == 0
    (made,) = ros.nodes
    (answer,) = made.publishers_made[0].sent
    assert type(answer).__name__ == "Classification" and made.subscriptions_made[0].topic == "/camera/image_raw"
    with Classifier(path, threads=1) as classify:
        assert [(one.class_id, one.score) for one in answer.results] == classify(pixels).top(5)


def test_colcon_builds_it_and_its_program_starts_in_the_active_python(package: Path, tmp_path: Path) -> None:
    colcon = shutil.which("colcon")
    if colcon is None:
        pytest.skip("colcon is not installed: pip install colcon-ros colcon-python-setup-py")
    shutil.copytree(package, tmp_path / "ws/src" / NAME)
    done = subprocess.run([colcon, "build"], cwd=tmp_path / "ws", capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    base = tmp_path / "ws/install" / NAME
    program = base / "lib" / NAME / "classifier"
    assert program.read_text().startswith("#!/usr/bin/env python3\n") and program.stat().st_mode & 0o100
    share = base / "share" / NAME
    assert (share / "launch/classifier.launch.py").is_file() and (share / "config/classifier.yaml").is_file()
    assert (base / "share/ament_index/resource_index/packages" / NAME).is_file()


def test_the_command_tells_what_to_do_with_it(path: Path, tmp_path: Path) -> None:
    made = CliRunner().invoke(command, [str(path), "--to", "ros2", "-o", str(tmp_path / "out")], catch_exceptions=False)
    assert f"colcon build --packages-select {NAME}" in made.output and "placeholder" in made.output
    with pytest.raises(UsageError, match="classifies one image at a time; leave it out"):
        deploy(path, "ros2", tmp_path / "other", 4)


def test_python_that_is_written_is_clean(package: Path) -> None:
    ruff = [sys.executable, "-m", "ruff", "check", "--isolated", "--select", "E,F,W,B", "--ignore", "E501", "."]
    done = subprocess.run(ruff, cwd=package, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@given(st.text(max_size=30))
def test_names_are_those_that_rep_144_allows(name: str) -> None:
    assert re.fullmatch(r"edgeres(_[a-z0-9]+)+", package_name(name))
