"""Read a pickle as data: no import, no call, no method of an object in the file.

    opcodes -> numbers, texts, lists, dicts, and :class:`Inert` for every object of a class

A pickle is a program for a stack machine. Python's own unpickler imports what the program names and calls it. This one
only records which class or function the program names, and with which values. A caller may give functions of its own
for some names, such as the one that makes a tensor of a storage.

What a program may do is limited: its opcodes, and the values that it copies, since a few bytes can ask for copies of
everything before them.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable, Mapping
from typing import IO, Any

Make = Callable[..., Any]
PersistentLoad = Callable[[Any], Any]

# What may be a key as it is. The hash of a tuple takes exponential time where the tuple holds another one twice.
_KEYS = (str, int, float, bytes, type(None))
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "BINBYTES8", "SHORT_BINBYTES", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, Callable[[], Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PLAIN_DICTS = {"collections.OrderedDict", "collections.defaultdict", "collections.Counter", "builtins.dict"}
_RECONSTRUCTORS = {"copy_reg._reconstructor", "copyreg._reconstructor", "copyreg.__newobj__", "copyreg.__newobj_ex__"}


MOST_STEPS = 4_000_000  # opcodes, and values that they move; a checkpoint with an optimizer's state has some 100,000
_LONGEST_NUMBER = 64  # bytes of an integer
_CHUNK = 1 << 20


class DamagedPickle(ValueError):
    """The bytes are no complete pickle."""


class Inert:
    """What the file says about an object, without the object.

    Attributes:
        path: module and name of its class, or of the function that would make it.
        args: what that would be called with; None: the class or function itself.
        state: what would become its attributes; None: nothing.
        items: what would be put into it as a dictionary.
        members: what would be put into it as a list or a set.
    """

    __slots__ = ("args", "items", "members", "path", "state")

    def __init__(self, path: str, args: tuple[Any, ...] | None = None) -> None:
        self.path, self.args = path, args
        self.state: Any = None
        self.items: dict[Any, Any] = {}
        self.members: list[Any] = []

    def __repr__(self) -> str:
        return f"<{self.path}>"


def read_pickle(stream: IO[bytes], makers: Mapping[str, Make], persistent: PersistentLoad) -> Any:
    """Read one pickle from the stream, which then stands behind it.

    Args:
        makers: functions by the path of the class or function that a pickle names; they get its arguments, which the
            file chose. They have to check them.
        persistent: gives the object of a persistent identifier.

    Raises:
        DamagedPickle: the bytes are no pickle. What ``makers`` and ``persistent`` raise.
    """
    machine = _Stack(makers, persistent)
    try:
        for opcode, argument, _ in pickletools.genops(_Bounded(stream)):  # type: ignore[arg-type]
            if opcode.name == "STOP":
                return machine.stack.pop()
            machine.spend(1)
            machine.step(opcode.name, argument)
    except DamagedPickle:
        raise
    except (OSError, MemoryError):
        raise
    except Exception as error:  # whatever an opcode meets that its arguments do not fit
        raise DamagedPickle(str(error) or type(error).__name__) from error
    raise DamagedPickle("it ends in the middle")


class _Bounded:
    """A stream whose reads take no memory for bytes that are not there; a pickle states lengths of its own."""

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self.readline = stream.readline
        self.tell = stream.tell

    def read(self, size: int) -> bytes:
        if size <= _CHUNK:
            return self._stream.read(size)
        parts = []
        while size > 0 and (part := self._stream.read(min(size, _CHUNK))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class _Stack:
    """The stack, the memo and the marks of one pickle."""

    def __init__(self, makers: Mapping[str, Make], persistent: PersistentLoad) -> None:
        self.makers, self.persistent = makers, persistent
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.left = MOST_STEPS

    def spend(self, steps: int) -> None:
        """Count work before it is done.

        Raises:
            DamagedPickle: it would be more than any checkpoint needs.
        """
        self.left -= steps
        if self.left < 0:
            raise DamagedPickle(f"it asks for more than {MOST_STEPS:,} steps")

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _LITERALS:
            if isinstance(argument, int) and argument.bit_length() > 8 * _LONGEST_NUMBER:
                raise DamagedPickle("an integer is too large")
            self.stack.append(argument)
        elif name in _CONSTANTS:
            self.stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop_many(_TUPLES[name])))
        elif name in _EMPTY:
            self.stack.append(_EMPTY[name]())
        elif name in ("MEMOIZE", "PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[len(self.memo) if name == "MEMOIZE" else argument] = self.stack[-1]
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name not in ("PROTO", "FRAME"):
            self._structure(name, argument)

    def _structure(self, name: str, argument: Any) -> None:
        match name:
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "POP_MARK":
                self._pop_marked()
            case "POP":
                self.stack.pop()
            case "DUP":
                self.stack.append(self.stack[-1])
            case "SETITEM" | "SETITEMS":
                flat = self._pop_many(2) if name == "SETITEM" else self._pop_marked()
                _fill(self.stack[-1], flat)
            case "APPEND" | "APPENDS" | "ADDITEMS":
                items = self._pop_many(1) if name == "APPEND" else self._pop_marked()
                _extend(self.stack[-1], items)
            case "TUPLE" | "LIST" | "FROZENSET" | "DICT":
                parts = self._pop_marked()
                plain = tuple(parts) if name == "TUPLE" else parts
                self.stack.append(_fill({}, parts) if name == "DICT" else plain)
            case _:
                self._object(name, argument)

    def _object(self, name: str, argument: Any) -> None:
        match name:
            case "GLOBAL":
                made = _named(*argument.split(" ", 1))
            case "STACK_GLOBAL":
                made = _named(*self._pop_many(2))
            case "REDUCE" | "NEWOBJ":
                made = self._made(*self._pop_many(2))
            case "NEWOBJ_EX":
                made = self._made(*self._pop_many(3)[:2])
            case "INST":
                made = self._made(_named(*argument.split(" ", 1)), tuple(self._pop_marked()))
            case "OBJ":
                kind, *args = self._pop_marked()
                made = self._made(kind, tuple(args))
            case "BUILD":
                state, made = self.stack.pop(), self.stack.pop()
                _build(made, state)
            case "PERSID" | "BINPERSID":
                made = self.persistent(argument if name == "PERSID" else self.stack.pop())
            case "EXT1" | "EXT2" | "EXT4":
                made = Inert(f"extension {argument}")
            case _:
                raise DamagedPickle(f"opcode {name} is not expected in a checkpoint")
        self.stack.append(made)

    def _made(self, made: Any, args: Any) -> Any:
        """What stands for the result of a call: plain data, what a maker gives, else an inert object."""
        path = made.path if isinstance(made, Inert) and made.args is None else f"an object of {_kind(made)}"
        args = args if isinstance(args, tuple) else (args,)
        if path in _PLAIN_DICTS:
            given = args[0] if args else ()
            pairs = given.items() if isinstance(given, dict) else given if isinstance(given, list | tuple) else ()
            self.spend(len(pairs))
            return _fill({}, [part for key, value in pairs for part in (key, value)])
        if path in _RECONSTRUCTORS and args and isinstance(args[0], Inert):
            return Inert(args[0].path, args[1:])
        self.spend(sum(len(arg) for arg in args if isinstance(arg, list | tuple | dict)))
        make = self.makers.get(path)
        return make(*args) if make else Inert(path, args)

    def _pop_many(self, count: int) -> list[Any]:
        start = len(self.stack) - count
        if start < 0:
            raise DamagedPickle("the stack is empty")
        popped = self.stack[start:]
        del self.stack[start:]
        return popped

    def _pop_marked(self) -> list[Any]:
        popped, self.stack = self.stack, self.marked.pop()
        self.spend(len(popped))
        return popped


def _named(module: Any, name: Any) -> Inert:
    if not (isinstance(module, str) and isinstance(name, str)):
        raise DamagedPickle("the name of a class is no text")
    if len(module) + len(name) > 1000:
        raise DamagedPickle("the name of a class is too long")
    # Python 2 called this module differently.
    return Inert(f"{'builtins' if module == '__builtin__' else module}.{name}")


def _kind(made: Any) -> str:
    return made.path if isinstance(made, Inert) else type(made).__name__


def _fill(target: Any, flat: list[Any]) -> Any:
    """Put keys and values, which follow each other, into a dictionary or an object that stands for one."""
    entries = target.items if isinstance(target, Inert) else target
    if not isinstance(entries, dict) or len(flat) % 2:
        raise DamagedPickle("items for what is no dictionary")
    for key, value in zip(flat[::2], flat[1::2], strict=True):
        entries[key if isinstance(key, _KEYS) else Inert(_kind(key), (key,))] = value
    return target


def _extend(target: Any, items: list[Any]) -> None:
    members = target.members if isinstance(target, Inert) else target
    if not isinstance(members, list):
        raise DamagedPickle("members for what is no list")
    members.extend(items)


def _build(target: Any, state: Any) -> None:
    """Record the state of an object. Dictionaries and tensors have attributes that carry no weights."""
    if isinstance(target, Inert):
        target.state = state
    elif hasattr(target, "take_state"):
        target.take_state(state)
