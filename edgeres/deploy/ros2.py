"""A bundle as a ROS 2 package (ament_python): the node of ``ros2_node.py``, a launch file, parameters."""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import escape

from edgeres.deploy.network import Deployable, Deployed
from edgeres.errors import ModelError, UsageError

# The node's parameters but for the bundle, which the launch file gives. ROS takes no 0 where the node declares 0.0.
_PARAMETERS = {
    "topic": ("/camera/image_raw", "images: sensor_msgs/Image"),
    "backend": ("auto", "auto, tensorrt, rtx, cuda or cpu"),
    "top_k": (5, "classes in a message"),
    "min_score": (0.0, "classes below this probability are left out"),
    "threads": (0, "on the CPU; 0: every core"),
}
_PACKAGE = """<?xml version="1.0"?>
<?xml-model href="http://download.ros.org/schema/package_format3.xsd" schematypens="http://www.w3.org/2001/XMLSchema"?>
<package format="3">
  <name>{name}</name>
  <version>0.0.0</version>
  <description>{description}</description>
  <maintainer email="you@example.com">you</maintainer>
  <license>Apache-2.0</license>

  <exec_depend>rclpy</exec_depend>
  <exec_depend>sensor_msgs</exec_depend>
  <exec_depend>vision_msgs</exec_depend>
  <exec_depend>launch</exec_depend>
  <exec_depend>launch_ros</exec_depend>

  <export>
    <build_type>ament_python</build_type>
  </export>
</package>
"""
_SETUP = """from setuptools import setup

NAME = "{name}"

setup(
    name=NAME,
    version="0.0.0",
    packages=[NAME],
    data_files=[
        ("share/ament_index/resource_index/packages", ["resource/" + NAME]),
        ("share/" + NAME, ["package.xml"]),
        ("share/" + NAME + "/launch", ["launch/classifier.launch.py"]),
        ("share/" + NAME + "/config", ["config/classifier.yaml"]),
    ],
    zip_safe=True,
    maintainer="you",
    maintainer_email="you@example.com",
    description="{description}",
    license="Apache-2.0",
    entry_points={{"console_scripts": ["classifier = " + NAME + ".classifier:main"]}},
)
"""
# The node runs in the Python that is active when it starts, so that it finds edgeres in a virtual environment.
_SETUP_CFG = """[develop]
script_dir=$base/lib/{name}
[install]
install_scripts=$base/lib/{name}
[build_scripts]
executable = /usr/bin/env python3
"""
_LAUNCH = '''"""Start the classifier.

ros2 launch {name} classifier.launch.py bundle:=/path/of/the/bundle
"""

import os

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

NAME = "{name}"
BUNDLE = {bundle}  # where it was when this package was written


def generate_launch_description():
    bundle = {{"bundle": ParameterValue(LaunchConfiguration("bundle"), value_type=str)}}
    parameters = os.path.join(get_package_share_directory(NAME), "config", "classifier.yaml")
    return LaunchDescription(
        [
            DeclareLaunchArgument("bundle", default_value=BUNDLE, description="a directory"),
            DeclareLaunchArgument("params_file", default_value=parameters, description="YAML"),
            Node(
                package=NAME,
                executable="classifier",
                name="edgeres_classifier",
                output="screen",
                parameters=[LaunchConfiguration("params_file"), bundle],
            ),
        ]
    )
'''


def ros2(network: Deployable, max_batch: int | None) -> Deployed:
    """A package that ``colcon build`` takes; the bundle stays where it is, and engines may still be added to it.

    Raises:
        UsageError: ``max_batch`` is given, and the node classifies one image at a time.
        ModelError: the answers are no classes.
    """
    if max_batch not in (None, 1):
        raise UsageError("a ROS 2 node classifies one image at a time", where="--max-batch", hint="leave it out")
    if network.model.heads:
        what = f"the node publishes classes, and the network's task is {network.model.heads[0].task}"
        raise ModelError(what, hint="call edgeres.load in a node of your own")
    name = package_name(network.name)
    words = f"Classifies camera images with {network.name} ({network.model.num_classes} classes)"
    source = Path(__file__).with_name("ros2_node.py").read_text(encoding="utf-8")
    files = {
        "package.xml": _PACKAGE.format(name=name, description=escape(words)),
        "setup.py": _SETUP.format(name=name, description=words),
        "setup.cfg": _SETUP_CFG.format(name=name),
        f"resource/{name}": "",
        f"{name}/__init__.py": "",
        f"{name}/classifier.py": source.replace("-m edgeres.deploy.ros2_node", f"-m {name}.classifier"),
        "launch/classifier.launch.py": _LAUNCH.format(name=name, bundle=_place(network.path)),
        "config/classifier.yaml": _yaml(),
    }
    notes = [
        f"put the folder into a workspace's src and run colcon build --packages-select {name}; then, in the environment"
        f" that has edgeres (made with --system-site-packages): ros2 launch {name} classifier.launch.py bundle:=PATH",
        "the bundle is not in the package: engines are added to it on the robot, by edgeres engine BUNDLE",
        "maintainer in package.xml and setup.py is a placeholder; vision_msgs comes with apt: ros-<distro>-vision-msgs",
    ]
    return Deployed({path: text.encode() for path, text in files.items()}, tuple(notes))


def package_name(name: str) -> str:
    """A name that REP 144 allows: lower case, digits, single underscores, a letter first.

    >>> package_name("My Robot-v2")
    'edgeres_my_robot_v2'
    """
    return "_".join(["edgeres", *(re.findall("[a-z0-9]+", name.lower()) or ["network"])])


def _place(bundle: Path) -> str:
    """The bundle's path as a Python expression; below the home folder it is that of whoever starts the node."""
    home = Path.home()
    if bundle.is_relative_to(home) and home != Path(home.anchor):
        return f"os.path.expanduser({str(Path('~') / bundle.relative_to(home))!r})"
    return repr(str(bundle))


def _yaml() -> str:
    lines = ["/**:", "  ros__parameters:"]
    for name, (value, meaning) in _PARAMETERS.items():
        lines.append(f"    {name}: {value}  # {meaning}")
    return "\n".join([*lines, ""])
