"""Reads pickles of dictionaries, lists, numbers, strings and NumPy arrays without executing them.

A pickle is a program for a stack machine. Here `pickletools` lists its instructions, and those that
build plain values are interpreted on a stack of our own. Of all functions that a pickle may call,
only three of NumPy's and `_codecs.encode` are accepted, and their results are built here without a
call; a file with any other call is refused. No module that a file names is imported, and no object
of its classes is made.
"""

from __future__ import annotations

import pickletools
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from fedcli.dataclass import dataclass
from fedcli.files import open_regular

MAX_BYTES = 256 << 20  # CIFAR-100's train file has 155 MB
_MAX_STEPS = 4 << 20
_MARK = object()
_DTYPES: dict[str, type[np.generic]] = {
    "u1": np.uint8,
    "i1": np.int8,
    "i4": np.int32,
    "i8": np.int64,
    "f4": np.float32,
}
_DTYPES |= {"f8": np.float64, "u2": np.uint16, "i2": np.int16, "b1": np.bool_}
_BYTE_ORDERS = ("|", "<", "=")


@dataclass(frozen=True)
class _Name:
    """A function or class that a pickle names, as module and attribute."""

    text: str


class _Array:
    """An array whose contents the instruction `BUILD` will set."""

    def __init__(self) -> None:
        self.values: NDArray[Any] | None = None


@dataclass(frozen=True)
class _Type:
    """A NumPy dtype, by its short name."""

    name: str


def read(path: Path) -> Any:
    """Returns what a pickle holds: dict, list, tuple, str, bytes, numbers, None and arrays.

    Raises:
        ValueError: It is damaged, too large, or contains other values. The message says what is
            wrong.
        OSError: The file cannot be read.
    """
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"has more than {MAX_BYTES >> 20} MB")
    with open_regular(path) as file:
        return read_stream(file)


def read_stream(file: IO[bytes], *, has_object: bool = False) -> Any:
    """Returns what a pickle in an open file holds; see `read`.

    Args:
        file: The file, at the beginning of the pickle; its size must be bounded.
        has_object: Whether the pickle is a NumPy array that holds one object, as `numpy.save`
            writes a dictionary. Then that object is returned.

    Raises:
        ValueError: See `read`.
        OSError: See `read`.
    """
    machine = _Machine(has_object=has_object)
    for step, (name, argument) in enumerate(_instructions(file)):
        if step > _MAX_STEPS:
            raise ValueError(f"has more than {_MAX_STEPS:,} instructions")
        if name == "STOP":
            return _finished(machine.pop())
        machine.do(name, argument)
    raise ValueError("ends too early")


def _instructions(file: Any) -> Iterator[tuple[str, Any]]:
    try:
        for opcode, argument, _ in pickletools.genops(file):
            yield opcode.name, argument
    except (ValueError, UnicodeDecodeError, EOFError, OverflowError, MemoryError) as err:
        raise ValueError(f"is damaged ({' '.join(str(err).split())[:80]})") from err


class _Machine:
    """The stack and the memo of the pickle machine."""

    def __init__(self, *, has_object: bool) -> None:
        self._stack: list[Any] = []
        self._memory: dict[int, Any] = {}
        self._has_object = has_object

    def pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("is damaged (it takes a value from an empty stack)")
        return self._stack.pop()

    def do(self, name: str, argument: Any) -> None:
        """Interprets one instruction."""
        if name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name])
        elif name in _NEW:
            self._stack.append(_NEW[name]())
        elif name in _TEXTS or name in _NUMBERS:
            self._stack.append(argument)
        elif name == "MARK":
            self._stack.append(_MARK)
        elif name in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memory[int(argument)] = self._top()
        elif name == "MEMOIZE":
            self._memory[len(self._memory)] = self._top()
        elif name in ("BINGET", "LONG_BINGET", "GET"):
            self._push_stored(int(argument))
        elif name not in ("PROTO", "FRAME"):
            self._build(name, argument)

    def _build(self, name: str, argument: Any) -> None:
        """Interprets an instruction that makes one value from others."""
        if name in ("APPEND", "APPENDS"):
            items = [self.pop()] if name == "APPEND" else self._pop_to_mark()
            self._top(list).extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            self._set_items([self.pop(), self.pop()][::-1] if name == "SETITEM" else None)
        elif name in ("TUPLE", "LIST"):
            items = self._pop_to_mark()
            self._stack.append(tuple(items) if name == "TUPLE" else items)
        elif name in ("TUPLE1", "TUPLE2", "TUPLE3"):
            items = [self.pop() for _ in range(int(name[-1]))]
            self._stack.append(tuple(items[::-1]))
        elif name == "GLOBAL":
            self._stack.append(_Name(".".join(str(argument).split(" "))))
        elif name == "STACK_GLOBAL":
            attribute, module = self.pop(), self.pop()
            self._stack.append(_Name(f"{module}.{attribute}"))
        elif name == "REDUCE":
            arguments, function = self.pop(), self.pop()
            self._stack.append(_called(function, arguments))
        elif name == "BUILD":
            state = self.pop()
            self._stack.append(_with_state(self.pop(), state, has_object=self._has_object))
        else:
            raise ValueError(f"holds more than plain values (instruction {name})")

    def _top(self, kind: type = object) -> Any:
        if not self._stack or not isinstance(self._stack[-1], kind):
            raise ValueError("is damaged (it adds a value to something that is not a container)")
        return self._stack[-1]

    def _push_stored(self, place: int) -> None:
        if place not in self._memory:
            raise ValueError("is damaged (it reads a value that it never stored)")
        self._stack.append(self._memory[place])

    def _pop_to_mark(self) -> list[Any]:
        items: list[Any] = []
        while self._stack and self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        if not self._stack:
            raise ValueError("is damaged (a list has no beginning)")
        self._stack.pop()
        return items[::-1]

    def _set_items(self, items: list[Any] | None) -> None:
        items = self._pop_to_mark() if items is None else items
        target = self._top(dict)
        if len(items) % 2:
            raise ValueError("is damaged (a key has no value)")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, str | bytes | int):
                raise ValueError("has a key that is not text")  # noqa: TRY004 - bad content
            target[key] = value


_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_NEW: dict[str, Any] = {"EMPTY_DICT": dict, "EMPTY_LIST": list}
_TEXTS = {
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BINUNICODE8", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_NUMBERS = {"INT", "LONG", "LONG1", "LONG4", "BININT", "BININT1", "BININT2", "FLOAT", "BINFLOAT"}


def _called(function: Any, arguments: Any) -> Any:
    """Returns the value that a call would return; nothing is called."""
    name = function.text if isinstance(function, _Name) else type(function).__name__
    if not isinstance(arguments, tuple):
        raise ValueError("is damaged (a call has no arguments)")  # noqa: TRY004 - bad content
    if name in ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct"):
        return _Array()
    if name == "numpy.dtype" and arguments and isinstance(_text(arguments[0]), str):
        return _Type(_text(arguments[0]))
    if name == "_codecs.encode" and arguments and isinstance(arguments[0], str):
        return _raw(arguments[0])
    if name in ("numpy.core.numeric._frombuffer", "numpy._core.numeric._frombuffer"):
        values, kind, shape, order = (*arguments, "C")[:4] if len(arguments) > 2 else (None,) * 4
        return _array(shape, kind, order == "F", values)
    raise ValueError(f"holds more than plain values ({name})")


def _with_state(thing: Any, state: Any, *, has_object: bool) -> Any:
    """Completes an array or a type with the state that `BUILD` gives."""
    if isinstance(thing, _Type) and isinstance(state, tuple) and len(state) > 1:
        if _text(state[1]) not in _BYTE_ORDERS:
            raise ValueError(f"has values in the unknown byte order {state[1]!r}")
        return thing
    if isinstance(thing, _Array) and isinstance(state, tuple) and len(state) == 5:
        _, shape, kind, is_fortran, content = state
        is_object = isinstance(kind, _Type) and kind.name == "O8"
        if has_object and is_object and isinstance(content, list) and len(content) == 1:
            return content[0]
        thing.values = _array(shape, kind, bool(is_fortran), content)
        return thing
    raise ValueError("holds an object that is not an array")


def _array(shape: Any, kind: Any, is_fortran: bool, content: Any) -> NDArray[Any]:
    """An array of a shape and type with contents as bytes."""
    dtype = _DTYPES.get(kind.name) if isinstance(kind, _Type) else None
    raw = _raw(content) if isinstance(content, str) else content
    is_shape = isinstance(shape, tuple) and all(isinstance(side, int) for side in shape)
    if dtype is None or not isinstance(raw, bytes | bytearray) or not is_shape:
        raise ValueError("holds an array that is not of plain numbers")
    values: NDArray[Any] = np.frombuffer(bytes(raw), dtype)
    if min(shape, default=0) < 0 or int(np.prod(shape, dtype=object)) != len(values):
        raise ValueError(f"has {len(values)} values for an array of shape {list(shape)}")
    return values.reshape(shape, order="F" if is_fortran else "C")


def _raw(text: str) -> bytes:
    """The bytes that a pickle holds as text: Python 2's strings, or bytes written as Latin-1."""
    try:
        return text.encode("latin-1")
    except UnicodeEncodeError as err:
        raise ValueError("has text where bytes are expected") from err


def _text(value: Any) -> Any:
    return value.decode("latin-1") if isinstance(value, bytes) else value


def _finished(value: Any) -> Any:
    """Returns a value in which array descriptions are replaced by arrays."""
    if isinstance(value, _Array):
        if value.values is None:
            raise ValueError("holds an array without contents")
        return value.values
    if isinstance(value, dict):
        return {_text(key): _plain(each) for key, each in value.items()}
    return value


def _plain(value: Any) -> Any:
    return _finished(value) if isinstance(value, _Array) else value
