"""Interpreter of pickles that calls nothing named in them.

A pickle is a program: it can import and call any function, hash values nested without bound, and ask for memory by a
number in four bytes. This interpreter knows the opcodes alone. Names stay names, unknown objects become `Record`s, and
the time and memory it needs are bounded by the number of operations.
"""

import io
import pickletools
from collections.abc import Callable
from typing import Any, NamedTuple

# A state dict needs about 20 operations for each array; a million takes about one second.
MAX_OPERATIONS = 2_000_000

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS = (
    "INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT", "STRING", "BINSTRING",
    "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES",
    "BINBYTES8", "BYTEARRAY8",
)  # fmt: skip


class Symbol(NamedTuple):
    """Name of a class or function, which is never imported."""

    module: str
    name: str


class Record(dict[str, Any]):
    """Any object that is not a plain value, with its items under strings; attributes and other keys are dropped."""


class _Mark:
    """Position on the stack where the arguments of an operation begin."""


_MARK = _Mark()
Reduce = Callable[[Symbol, tuple[Any, ...]], Any]
Persistent = Callable[[Any], Any]


def load(file: io.BytesIO, reduce: Reduce, persistent: Persistent) -> Any:
    """Interpret one pickle, and leave the file behind it.

    Args:
        file: stream, which does not reserve memory for bytes that it lacks.
        reduce: function of a symbol and arguments that gives the object which a call would return. Its arguments may
            be nested without bound, so it looks at the upper levels only.
        persistent: function that gives the object of a persistent id.

    Returns:
        The value: numbers, strings, bytes, tuples and lists as they are, dictionaries and other objects as `Record`.

    Raises:
        ValueError: the stream is no pickle, ends early, or needs more than `MAX_OPERATIONS`.
    """
    return _Machine(reduce, persistent).run(file)


class _Machine:
    def __init__(self, reduce: Reduce, persistent: Persistent):
        self._reduce, self._persistent = reduce, persistent
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._left = MAX_OPERATIONS

    def run(self, file: io.BytesIO) -> Any:
        for opcode, arg, _ in pickletools.genops(file):
            self._charge(1)
            if opcode.name == "STOP":
                return self._pop()
            self._step(opcode.name, arg)
        raise ValueError("a pickle without an end")

    def _charge(self, count: int) -> None:
        self._left -= count
        if self._left < 0:
            raise ValueError(f"a pickle of more than {MAX_OPERATIONS:,} operations")

    def _pop(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise ValueError("a pickle that takes more values than it gave")
        return self._stack.pop()

    def _pop_mark(self) -> list[Any]:
        items = []
        while self._stack and self._stack[-1] is not _MARK:
            items.append(self._stack.pop())
        if not self._stack:
            raise ValueError("a pickle that takes more values than it gave")
        self._stack.pop()
        return items[::-1]

    def _step(self, name: str, arg: Any) -> None:
        stack = self._stack
        if name in _LITERALS:
            stack.append(arg)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in _TUPLES:
            stack.append(tuple([self._pop() for _ in range(_TUPLES[name])][::-1]))
        elif name == "MARK":
            stack.append(_MARK)
        elif name in ("PUT", "BINPUT", "LONG_BINPUT", "MEMOIZE"):
            self._memo[len(self._memo) if arg is None else arg] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            if arg not in self._memo:
                raise ValueError("a pickle that names a value it did not give")
            stack.append(self._memo[arg])
        elif name in ("EMPTY_DICT", "EMPTY_SET"):
            stack.append(Record())
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name in ("TUPLE", "LIST", "DICT", "FROZENSET"):
            items = self._pop_mark()
            stack.append(_collection(name, items))
        elif name in ("APPEND", "APPENDS", "ADDITEMS"):
            items = [self._pop()] if name == "APPEND" else self._pop_mark()
            target = self._top()
            if isinstance(target, list):
                target.extend(items)
        elif name in ("SETITEM", "SETITEMS"):
            items = [self._pop(), self._pop()][::-1] if name == "SETITEM" else self._pop_mark()
            _set_items(self._top(), items)
        elif name in ("POP", "POP_MARK", "DUP"):
            self._shuffle(name)
        elif name not in ("PROTO", "FRAME"):
            self._object(name, arg)

    def _top(self) -> Any:
        value = self._pop()
        self._stack.append(value)
        return value

    def _shuffle(self, name: str) -> None:
        if name == "DUP":
            self._stack.append(self._top())
        elif name == "POP" and self._stack:
            self._stack.pop()  # also a mark
        else:
            self._pop_mark()

    def _object(self, name: str, arg: Any) -> None:
        """Interpret an operation on names and objects."""
        stack = self._stack
        if name == "GLOBAL":
            module, _, attribute = arg.partition(" ")
            stack.append(Symbol(module, attribute))
        elif name == "STACK_GLOBAL":
            attribute, module = self._pop(), self._pop()
            stack.append(Symbol(module, attribute) if isinstance(module, str) and isinstance(attribute, str) else None)
        elif name == "REDUCE":
            args, function = self._pop(), self._pop()
            # A call may copy its arguments, and a file may pass the same ones again and again.
            self._charge(sum(len(x) for x in args if isinstance(x, list | tuple)) if isinstance(args, tuple) else 0)
            known = isinstance(function, Symbol) and isinstance(args, tuple)
            stack.append(self._reduce(function, args) if known else Record())
        elif name in ("NEWOBJ", "NEWOBJ_EX", "INST", "OBJ"):
            if name in ("INST", "OBJ"):
                self._pop_mark()
            else:
                for _ in range(2 if name == "NEWOBJ" else 3):
                    self._pop()
            stack.append(Record())
        elif name == "BUILD":
            self._pop()
            self._top()
        elif name == "BINPERSID":
            stack.append(self._persistent(self._pop()))
        else:  # PERSID, EXT1, NEXT_BUFFER, ...
            raise ValueError(f"a pickle with the operation {name}")


def _collection(name: str, items: list[Any]) -> Any:
    if name == "TUPLE":
        return tuple(items)
    if name == "LIST":
        return items
    record = Record()
    if name == "DICT":
        _set_items(record, items)
    return record


def _set_items(target: Any, items: list[Any]) -> None:
    """Set alternating keys and values; keys that are no strings are dropped, because hashing others is not bounded."""
    if isinstance(target, Record):
        target.update((key, value) for key, value in zip(items[::2], items[1::2]) if isinstance(key, str))
