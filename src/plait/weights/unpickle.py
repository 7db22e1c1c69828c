"""A pickle reader that cannot run anything.

bytes -> PickleReader.load() -> dict, list, tuple, set, scalars, memoryviews, LazyTensor, StandIn

A pickle is a small program. This machine knows its instructions, but no Python function is ever looked up by name or
called: a global is only its name, and calling one gives what `standins.call` makes of it. Byte strings and tensors stay
views of the input. Format: the `pickletools` module of the standard library.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sized
from typing import Any

from plait.weights.standins import Global, PickleError, StandIn, call, plain_key

MAX_STEPS = 5_000_000
"""Instructions one pickle may have."""
MAX_TEXT = 1 << 24
"""Bytes one string may have."""
MAX_NUMBER = 1024
"""Bytes one number may have."""
MARK = object()


class PickleReader:
    """One pickle in `data` from `position` on. `persistent` answers persistent ids; `blob` nested torch files.

    After `load`, `position` is behind the pickle. Raises PickleError on anything malformed or too long.
    """

    def __init__(
        self,
        data: memoryview,
        position: int = 0,
        *,
        persistent: Callable[[Any], Any] | None = None,
        blob: Callable[[Any], Any] | None = None,
    ) -> None:
        self.data, self.position = data, position
        self.persistent, self.blob = persistent, blob
        self.work = 2 * len(data) + 1024
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        for _ in range(MAX_STEPS):
            code = self.take(1)[0]
            if code == ord("."):
                return self.pop()
            step = _STEPS.get(code)
            if step is None:
                raise PickleError(f"expected a pickle instruction, got byte 0x{code:02x} at {self.position - 1}")
            step(self)
        raise PickleError(f"expected at most {MAX_STEPS} instructions, got more")

    # Reading.

    def take(self, size: int) -> memoryview:
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise PickleError(f"expected {size} more bytes at {self.position}, got {len(self.data) - self.position}")
        view = self.data[self.position : end]
        self.position = end
        return view

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size: int, encoding: str = "utf-8") -> str:
        if size > MAX_TEXT:
            raise PickleError(f"expected text of at most {MAX_TEXT} bytes, got {size}")
        try:
            return str(self.take(size), encoding, "surrogatepass" if encoding == "utf-8" else "strict")
        except UnicodeError as error:
            raise PickleError(f"expected {encoding} text at {self.position}, got other bytes") from error

    def line(self, encoding: str = "latin1") -> str:
        for end in range(self.position, min(len(self.data), self.position + MAX_TEXT)):
            if self.data[end] == 10:
                text = self.text(end - self.position, encoding)
                self.position += 1
                return text
        raise PickleError(f"expected a line end after {self.position}, got none")

    def parsed(self, kind: Callable[[str], Any], text: str) -> Any:
        try:
            return kind(text)
        except ValueError as error:
            raise PickleError(f"expected a number, got {text!r:.40}") from error

    def name(self) -> Global:
        return Global(f"{self.line('utf-8')}.{self.line('utf-8')}")

    # Stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack or self.stack[-1] is MARK:
            raise PickleError(f"expected a value on the stack at {self.position}, got none")
        return self.stack.pop()

    def discard(self) -> None:
        """Drop the topmost thing, a mark included."""
        if not self.stack:
            raise PickleError(f"expected something on the stack at {self.position}, got nothing")
        self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is MARK:
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise PickleError(f"expected a mark on the stack at {self.position}, got none")

    def top(self) -> Any:
        value = self.pop()
        self.push(value)
        return value

    def put(self, index: int) -> None:
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise PickleError(f"expected a value remembered as {index}, got none")
        self.push(self.memo[index])

    # Building.

    def call(self, function: Any, args: Any) -> None:
        # Arguments are remembered values: without a bound a short pickle could have a long one copied again and again.
        self.work -= sum(len(arg) for arg in args if isinstance(arg, Sized)) if isinstance(args, tuple) else 0
        if self.work < 0:
            raise PickleError("expected a pickle that uses its values about once, got one that repeats them")
        if isinstance(function, Global) and function.name == "torch.storage._load_from_bytes" and self.blob:
            self.push(self.blob(args[0] if isinstance(args, tuple) and args else None))
        else:
            self.push(call(function, args))

    def pop_call(self) -> None:
        args = self.pop()
        self.call(self.pop(), args)

    def mark_call(self) -> None:
        values = self.pop_to_mark()
        if not values:
            raise PickleError("expected a class to build, got none")
        self.call(values[0], tuple(values[1:]))

    def pop_call_with_names(self) -> None:
        names, args = self.pop(), self.pop()
        self.call(self.pop(), (args, names))

    def stack_global(self) -> None:
        name, module = self.pop(), self.pop()
        if not isinstance(name, str) or not isinstance(module, str):
            raise PickleError("expected the name of a class or function, got something else")
        self.push(Global(f"{module}.{name}"))

    def build(self) -> None:
        """State for an object: kept by stand-ins, of no use to anything else (`_metadata` of a state dict)."""
        state = self.pop()
        if isinstance(owner := self.top(), StandIn):
            owner.state = state

    def extend(self, values: list[Any]) -> None:
        owner = self.top()
        if isinstance(owner, list):
            owner.extend(values)
        elif isinstance(owner, set):
            owner.update(plain_key(value) for value in values)
        elif isinstance(owner, StandIn):
            owner.items.extend(values)
        else:
            raise PickleError(f"expected a list to extend, got {type(owner).__name__}")

    def set_items(self, values: list[Any]) -> None:
        owner = self.top()
        if len(values) % 2:
            raise PickleError("expected keys with values, got an odd number")
        pairs = zip(values[::2], values[1::2])
        if isinstance(owner, dict):
            owner.update((plain_key(key), value) for key, value in pairs)
        elif isinstance(owner, StandIn):
            owner.items.extend(pairs)
        else:
            raise PickleError(f"expected a dictionary to fill, got {type(owner).__name__}")

    def pop_pair(self) -> list[Any]:
        value = self.pop()
        return [self.pop(), value]

    def pop_tuple(self, size: int) -> tuple:
        return tuple(reversed([self.pop() for _ in range(size)]))

    def new_dict(self, values: list[Any]) -> None:
        self.push({})
        self.set_items(values)

    def resolve(self, identity: Any) -> None:
        if self.persistent is None:
            raise PickleError("expected a pickle without persistent ids, got one")
        self.push(self.persistent(identity))

    def long(self, size: int) -> int:
        if size > MAX_NUMBER:
            raise PickleError(f"expected a number of at most {MAX_NUMBER} bytes, got {size}")
        return int.from_bytes(self.take(size), "little", signed=True)


def _int_line(reader: PickleReader) -> None:
    """Protocol 0 writes truth values as the numbers 00 and 01."""
    text = reader.line()
    if text in {"00", "01"}:
        reader.push(text == "01")
    else:
        reader.push(reader.parsed(int, text))


_Step = Callable[[PickleReader], Any]

_STEPS: dict[int, _Step] = {
    # Framing and stack.
    0x80: lambda r: r.take(1),
    0x95: lambda r: r.take(8),
    ord("("): lambda r: r.push(MARK),
    ord("0"): lambda r: r.discard(),
    ord("1"): lambda r: r.pop_to_mark(),
    ord("2"): lambda r: r.push(r.top()),
    # Scalars.
    ord("N"): lambda r: r.push(None),
    0x88: lambda r: r.push(True),
    0x89: lambda r: r.push(False),
    ord("I"): _int_line,
    ord("L"): lambda r: r.push(r.parsed(int, r.line().removesuffix("L"))),
    ord("F"): lambda r: r.push(r.parsed(float, r.line())),
    ord("J"): lambda r: r.push(r.number("<i")),
    ord("K"): lambda r: r.push(r.number("<B")),
    ord("M"): lambda r: r.push(r.number("<H")),
    0x8A: lambda r: r.push(r.long(r.number("<B"))),
    0x8B: lambda r: r.push(r.long(r.number("<i"))),
    ord("G"): lambda r: r.push(r.number(">d")),
    # Text (byte strings of Python 2 count as text) and bytes.
    ord("S"): lambda r: r.push(r.line()[1:-1]),
    ord("T"): lambda r: r.push(r.text(r.number("<i"), "latin1")),
    ord("U"): lambda r: r.push(r.text(r.number("<B"), "latin1")),
    ord("V"): lambda r: r.push(r.line("raw-unicode-escape")),
    ord("X"): lambda r: r.push(r.text(r.number("<I"))),
    0x8C: lambda r: r.push(r.text(r.number("<B"))),
    0x8D: lambda r: r.push(r.text(r.number("<Q"))),
    ord("B"): lambda r: r.push(r.take(r.number("<I"))),
    ord("C"): lambda r: r.push(r.take(r.number("<B"))),
    0x8E: lambda r: r.push(r.take(r.number("<Q"))),
    0x96: lambda r: r.push(r.take(r.number("<Q"))),
    # Containers.
    ord("}"): lambda r: r.push({}),
    ord("]"): lambda r: r.push([]),
    ord(")"): lambda r: r.push(()),
    0x8F: lambda r: r.push(set()),
    ord("d"): lambda r: r.new_dict(r.pop_to_mark()),
    ord("l"): lambda r: r.push(r.pop_to_mark()),
    ord("t"): lambda r: r.push(tuple(r.pop_to_mark())),
    0x85: lambda r: r.push(r.pop_tuple(1)),
    0x86: lambda r: r.push(r.pop_tuple(2)),
    0x87: lambda r: r.push(r.pop_tuple(3)),
    0x91: lambda r: r.push(frozenset(plain_key(value) for value in r.pop_to_mark())),
    ord("a"): lambda r: r.extend([r.pop()]),
    ord("e"): lambda r: r.extend(r.pop_to_mark()),
    0x90: lambda r: r.extend(r.pop_to_mark()),
    ord("s"): lambda r: r.set_items(r.pop_pair()),
    ord("u"): lambda r: r.set_items(r.pop_to_mark()),
    # Memory.
    ord("p"): lambda r: r.put(r.parsed(int, r.line())),
    ord("q"): lambda r: r.put(r.number("<B")),
    ord("r"): lambda r: r.put(r.number("<I")),
    0x94: lambda r: r.put(len(r.memo)),
    ord("g"): lambda r: r.get(r.parsed(int, r.line())),
    ord("h"): lambda r: r.get(r.number("<B")),
    ord("j"): lambda r: r.get(r.number("<I")),
    # Names, calls and objects: nothing here runs.
    ord("c"): lambda r: r.push(r.name()),
    0x93: lambda r: r.stack_global(),
    0x82: lambda r: r.push(Global(f"extension {r.number('<B')}")),
    0x83: lambda r: r.push(Global(f"extension {r.number('<H')}")),
    0x84: lambda r: r.push(Global(f"extension {r.number('<i')}")),
    ord("R"): lambda r: r.pop_call(),
    0x81: lambda r: r.pop_call(),
    0x92: lambda r: r.pop_call_with_names(),
    ord("o"): lambda r: r.mark_call(),
    ord("i"): lambda r: r.call(r.name(), tuple(r.pop_to_mark())),
    ord("b"): lambda r: r.build(),
    ord("P"): lambda r: r.resolve(r.line()),
    ord("Q"): lambda r: r.resolve(r.pop()),
}
