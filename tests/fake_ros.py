"""ROS 2 without ROS: the parts of rclpy and of messages that a Python node uses, with the checks of rclpy and rosidl.

Messages are made of the fields that Humble and Jazzy define (sensor_msgs 4 and 5, vision_msgs 4, std_msgs,
builtin_interfaces): a field that does not exist, or a value of another type, is an AssertionError, as in the classes
that rosidl generates. Functions accept only the arguments that rclpy's accept.
"""

from __future__ import annotations

import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from types import ModuleType
from typing import Any

DEFINITIONS = {
    "builtin_interfaces/Time": "int32 sec\nuint32 nanosec",
    "std_msgs/Header": "builtin_interfaces/Time stamp\nstring frame_id",
    "sensor_msgs/Image": "std_msgs/Header header\nuint32 height\nuint32 width\nstring encoding\nuint8 is_bigendian\n"
    "uint32 step\nuint8[] data",
    "vision_msgs/ObjectHypothesis": "string class_id\nfloat64 score",
    "vision_msgs/Classification": "std_msgs/Header header\nvision_msgs/ObjectHypothesis[] results",
}
_UNSIGNED = {"uint8": 8, "uint32": 32}


class Message:
    """The base of all messages."""

    _fields: dict[str, str]

    def __init__(self, **values: Any) -> None:
        unknown = values.keys() - self._fields.keys()
        assert not unknown, f"Invalid arguments passed to constructor: {sorted(unknown)}"
        for name, kind in self._fields.items():
            setattr(self, name, values.get(name, _default(kind)))

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in self._fields:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        assert _fits(value, self._fields[name]), f"The {name!r} field must be of type {self._fields[name]!r}: {value!r}"
        if self._fields[name] == "uint8[]":
            value = array("B", value)
        object.__setattr__(self, name, value)


def _default(kind: str) -> Any:
    if kind.endswith("[]"):
        return array("B") if kind == "uint8[]" else []
    if kind in MESSAGES:
        return MESSAGES[kind]()
    return {"string": "", "float64": 0.0}.get(kind, 0)


def _fits(value: Any, kind: str) -> bool:
    if kind == "uint8[]":
        return isinstance(value, bytes | array)
    if kind.endswith("[]"):
        return isinstance(value, list | tuple) and all(_fits(one, kind[:-2]) for one in value)
    if kind in MESSAGES:
        return isinstance(value, MESSAGES[kind])
    if kind in ("string", "float64"):
        return isinstance(value, {"string": str, "float64": float}[kind])
    low, high = (0, 1 << _UNSIGNED[kind]) if kind in _UNSIGNED else (-(1 << 31), 1 << 31)
    return isinstance(value, int) and low <= value < high


def _message(name: str, text: str) -> type[Message]:
    fields = dict(reversed(line.split()) for line in text.splitlines())
    return type(name.split("/")[1], (Message,), {"_fields": fields})


MESSAGES: dict[str, type[Message]] = {}
for _name, _text in DEFINITIONS.items():
    MESSAGES[_name] = _message(_name, _text)


class HistoryPolicy(Enum):
    KEEP_LAST = 1
    KEEP_ALL = 2


class ReliabilityPolicy(Enum):
    RELIABLE = 1
    BEST_EFFORT = 2


class QoSProfile:
    def __init__(self, *, history: HistoryPolicy, depth: int, reliability: ReliabilityPolicy) -> None:
        assert isinstance(history, HistoryPolicy) and isinstance(reliability, ReliabilityPolicy)
        self.history, self.depth, self.reliability = history, depth, reliability


class ExternalShutdownException(Exception):
    pass


class MutuallyExclusiveCallbackGroup:
    pass


@dataclass
class Parameter:
    name: str
    value: Any


@dataclass
class Publisher:
    msg_type: type[Message]
    topic: str
    qos_profile: Any
    sent: list[Message] = field(default_factory=list)

    def publish(self, msg: Message) -> None:
        assert type(msg) is self.msg_type
        self.sent.append(msg)


class Subscription:
    """Keeps the newest ``depth`` messages, as the middleware does."""

    def __init__(self, msg_type: type[Message], topic: str, callback: Callable[[Any], None], qos: QoSProfile) -> None:
        assert qos.history is HistoryPolicy.KEEP_LAST
        self.msg_type, self.topic, self.callback, self.qos = msg_type, topic, callback, qos
        self.waiting: deque[Message] = deque(maxlen=qos.depth)

    def arrives(self, message: Message) -> None:
        assert type(message) is self.msg_type
        self.waiting.append(message)


class Logger:
    def __init__(self) -> None:
        self.lines: list[tuple[str, str]] = []

    def info(self, message: str) -> None:
        self.lines.append(("info", message))

    def error(self, message: str, *, throttle_duration_sec: float = 0.0) -> None:
        self.lines.append(("error", message))


@dataclass
class Ros:
    """The middleware: the nodes that run, and the events while a node spins.

    Attributes:
        parameters: given on the command line.
        events: called one after the other with the node when no message waits; an exception ends the spin.
    """

    parameters: dict[str, Any] = field(default_factory=dict)
    events: deque[Callable[[Any], None]] = field(default_factory=deque)
    nodes: list[Any] = field(default_factory=list)
    running: bool = False
    history: list[str] = field(default_factory=list)

    def modules(self) -> dict[str, ModuleType]:
        """The modules by their import names."""
        contents: dict[str, dict[str, Any]] = {
            "rclpy": {"init": self._init, "try_shutdown": self._try_shutdown},
            "rclpy.node": {"Node": _node_class(self)},
            "rclpy.qos": {
                "HistoryPolicy": HistoryPolicy,
                "QoSProfile": QoSProfile,
                "ReliabilityPolicy": ReliabilityPolicy,
            },
            "rclpy.executors": {
                "ExternalShutdownException": ExternalShutdownException,
                "MultiThreadedExecutor": _executor_class(self),
            },
            "rclpy.callback_groups": {"MutuallyExclusiveCallbackGroup": MutuallyExclusiveCallbackGroup},
        }
        for name, made in MESSAGES.items():
            package = name.split("/")[0]
            contents.setdefault(package, {})
            contents.setdefault(f"{package}.msg", {})[made.__name__] = made
        modules = {}
        for name, names in contents.items():
            modules[name] = ModuleType(name)
            modules[name].__dict__.update(names)
        return modules

    def _init(self, *, args: list[str] | None = None) -> None:
        self.running = True

    def _try_shutdown(self) -> None:
        self.running = False
        self.history.append("try_shutdown")


def _node_class(ros: Ros) -> type[Any]:
    class Node:
        def __init__(self, node_name: str) -> None:
            assert ros.running, "rclpy.init() has not been called"
            self.node_name, self.logger, self.destroyed = node_name, Logger(), False
            self.publishers_made: list[Publisher] = []
            self.subscriptions_made: list[Subscription] = []
            ros.nodes.append(self)

        def declare_parameter(self, name: str, value: Any) -> Parameter:
            given = ros.parameters.get(name, value)
            assert type(given) is type(value), f"InvalidParameterTypeException: {name}"
            return Parameter(name, given)

        def get_logger(self) -> Logger:
            return self.logger

        def create_publisher(self, msg_type: type[Message], topic: str, qos_profile: Any) -> Publisher:
            self.publishers_made.append(Publisher(msg_type, topic, qos_profile))
            return self.publishers_made[-1]

        def create_subscription(
            self,
            msg_type: type[Message],
            topic: str,
            callback: Callable[[Any], None],
            qos_profile: QoSProfile,
            *,
            callback_group: Any = None,
        ) -> Subscription:
            self.subscriptions_made.append(Subscription(msg_type, topic, callback, qos_profile))
            return self.subscriptions_made[-1]

        def destroy_node(self) -> None:
            assert not self.destroyed
            self.destroyed = True
            ros.history.append("destroy_node")

    return Node


def _executor_class(ros: Ros) -> type[Any]:
    class MultiThreadedExecutor:
        def __init__(self, num_threads: int | None = None) -> None:
            self.nodes: list[Any] = []

        def add_node(self, node: Any) -> bool:
            self.nodes.append(node)
            return True

        def spin(self) -> None:
            while ros.running:
                for subscription in self.nodes[0].subscriptions_made:
                    while subscription.waiting:
                        subscription.callback(subscription.waiting.popleft())
                ros.events.popleft()(self.nodes[0])
            raise ExternalShutdownException

        def shutdown(self, timeout_sec: float | None = None) -> bool:
            ros.history.append("executor.shutdown")
            return True

    return MultiThreadedExecutor


@contextmanager
def installed(monkeypatch: Any, ros: Ros) -> Iterator[Ros]:
    """Simulate that ROS is installed and sourced."""
    with monkeypatch.context() as patch:
        for name, module in ros.modules().items():
            patch.setitem(sys.modules, name, module)
        yield ros
