"""Pickles read without running anything: what torch wrote becomes tensors and plain containers, the rest stand-ins.

mapped file -> read_zip | read_legacy | read_pickle -> PickleReader.load() -> dict, list, ..., LazyTensor, StandIn
configuration written as omegaconf, argparse, enum or numpy objects -> to_plain -> dict, list, str, int, float, bool

A pickle is a small program. The reader knows its instructions (`pickletools` of the standard library), but no Python
function is ever looked up by name or called: a global is only its name, and calling one gives what `call` makes of it.
Only the names in `_BUILDERS` (what torch writes into checkpoints) are answered, by functions of this file. Byte strings
and tensors stay views of the input.

How torch lays pickles and tensor bytes into one file (`torch/serialization.py`):
- zip (torch 1.6 and newer): `NAME/data.pkl` and one uncompressed entry `NAME/data/KEY` per storage;
- legacy: five pickles (magic number, version, byte order, the object, storage keys), then each storage as a 64-bit
  length and its bytes;
- plain pickle: tensors hold their storage as a legacy file inside a byte string.
"""

from __future__ import annotations

import gc
import io
import re
import struct
import zipfile
from collections.abc import Callable, Sized
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_NAME = 512
"""Characters the name of a class or function may have."""
SMALL_TENSOR = 1 << 24
"""Elements a tensor may have although its storage is smaller (expanded tensors)."""
MAX_AXES = 64
"""Axes a tensor may have: torch itself takes no more."""
MAX_SIZE = 1 << 62
"""Elements, steps and offsets stay below: sums of a few of them fit the 64 bits that torch counts in."""


class PickleError(ValueError):
    """Bytes that are no pickle, or one that this reader does not take."""


@dataclass(frozen=True, slots=True)
class Global:
    """The name of a class or function, not the thing itself."""

    name: str

    def __post_init__(self) -> None:
        if len(self.name) > MAX_NAME:
            raise PickleError(f"expected a name of at most {MAX_NAME} characters, got {len(self.name)}")


@dataclass(eq=False, slots=True)
class StandIn:
    """What would have been an object: the name called, with what, and what was put into it. It does nothing."""

    name: str
    args: tuple = ()
    state: Any = None
    items: list = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Storage:
    """The raw bytes of one or more tensors; `data` is filled in late where bytes follow the pickle."""

    dtype: torch.dtype
    length: int
    data: memoryview | None = None

    @property
    def num_bytes(self) -> int:
        return self.length * self.dtype.itemsize


@dataclass(eq=False, slots=True)
class LazyTensor:
    """A tensor described and not yet read: elements from `offset` of `storage`, with `shape` and `stride`."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def read(self) -> Tensor:
        """The tensor, a view of the input where alignment allows. Raises PickleError where it leaves its storage."""
        data = self.storage.data
        if data is None or len(data) != self.storage.num_bytes:
            raise PickleError(f"expected {self.storage.num_bytes} bytes of tensor data, got {len(data or b'')}")
        available = self.storage.num_bytes // self.dtype.itemsize
        elements = 1
        for n in self.shape:  # cut off once it is beyond any file: a product of many sizes takes memory itself
            elements = min(elements * n, MAX_SIZE)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride))
        if elements == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if last >= available or elements > max(available, SMALL_TENSOR):
            raise PickleError(f"expected a tensor inside its {available} elements, got shape {self.shape!r:.60}")
        raw = torch.frombuffer(data, dtype=torch.uint8)
        if raw.data_ptr() % self.dtype.itemsize:  # legacy files align nothing, and a view needs alignment
            raw = raw.clone()
        return raw.view(self.dtype).as_strided(self.shape, self.stride, self.offset)


_DTYPES = {
    f"torch.{name}": getattr(torch, name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8", "uint8", "bool"),
        *("uint16", "uint32", "uint64", "complex64", "complex128", "float8_e4m3fn", "float8_e5m2"),
    )
}
"""Names of element types. A fixed table: asking torch for a name from a file would import the module of that name."""

_STORAGES = {
    f"{name}Storage": dtype
    for name, dtype in {
        "Double": torch.float64,
        "Float": torch.float32,
        "Half": torch.float16,
        "BFloat16": torch.bfloat16,
        "Long": torch.int64,
        "Int": torch.int32,
        "Short": torch.int16,
        "Char": torch.int8,
        "Byte": torch.uint8,
        "Bool": torch.bool,
        "ComplexFloat": torch.complex64,
        "ComplexDouble": torch.complex128,
        "Untyped": torch.uint8,
    }.items()
}


def storage_dtype(kind: Any) -> torch.dtype:
    """The element type of a storage class such as `torch.FloatStorage`. Raises PickleError for any other global."""
    name = kind.name if isinstance(kind, Global) else ""
    module, _, cls = name.rpartition(".")
    if module not in {"torch", "torch.cuda", "torch.storage"} or cls not in _STORAGES:
        raise PickleError(f"expected a torch storage class, got {name or type(kind).__name__:.80}")
    return _STORAGES[cls]


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any, *rest: Any) -> LazyTensor:
    """torch._utils._rebuild_tensor, _v2 and _v3 (whose last argument is the element type)."""
    if not isinstance(storage, Storage) or not isinstance(shape, tuple) or not isinstance(stride, tuple):
        raise PickleError("expected a tensor made of a storage, a shape and a stride")
    # Checked before anything shows them: a few hundred bytes of tuples in tuples unfold into an endless text.
    if len(shape) != len(stride) or len(shape) > MAX_AXES:
        raise PickleError(
            f"expected a tensor of at most {MAX_AXES} sizes and as many steps, got {len(shape)} and {len(stride)}"
        )
    if not all(type(n) is int and 0 <= n < MAX_SIZE for n in (offset, *shape, *stride)):
        raise PickleError(f"expected a tensor with an offset, sizes and steps from 0 to {MAX_SIZE}, got others")
    dtype = storage.dtype
    if len(rest) > 2 and isinstance(rest[2], Global):
        if rest[2].name not in _DTYPES:
            raise PickleError(f"expected a torch dtype, got {rest[2].name:.80}")
        dtype = _DTYPES[rest[2].name]
    return LazyTensor(storage, offset, shape, stride, dtype)


def _typed_tensor(function: Any, cls: Any, args: Any, state: Any) -> Any:
    """torch._tensor._rebuild_from_type_v2: a tensor that had Python attributes, which are left behind."""
    if isinstance(function, Global) and function.name == "torch._tensor._rebuild_from_type_v2":
        raise PickleError("expected a tensor, got a typed tensor inside a typed tensor")
    return call(function, args)


def _ordered_dict(pairs: Any = ()) -> dict:
    made: dict = {}
    if not isinstance(pairs, list | tuple):
        raise PickleError("expected a list of pairs for an OrderedDict")
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise PickleError("expected pairs for an OrderedDict")
        made[plain_key(pair[0])] = pair[1]
    return made


def _encode(text: Any, encoding: Any = "latin1") -> memoryview:
    """How byte strings are written by pickle protocol 2."""
    if not isinstance(text, str) or encoding != "latin1":
        raise PickleError("expected latin-1 text for a byte string")
    try:
        return memoryview(bytearray(text, "latin1"))
    except UnicodeEncodeError as error:
        raise PickleError("expected latin-1 text for a byte string, got other characters") from error


_BUILDERS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "collections.defaultdict": lambda factory=None, pairs=(): _ordered_dict(pairs),
    "_codecs.encode": _encode,
    "torch.Size": lambda shape: shape,
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch._utils._rebuild_parameter": lambda data, requires_grad, hooks: data,
    "torch._utils._rebuild_parameter_with_state": lambda data, requires_grad, hooks, state: data,
    "torch._tensor._rebuild_from_type_v2": _typed_tensor,
    "copyreg._reconstructor": lambda cls, base, state: call(cls, ()),
    "copy_reg._reconstructor": lambda cls, base, state: call(cls, ()),
}


def call(function: Any, args: Any) -> Any:
    """What calling `function` gives: one of this file's builders, otherwise a stand-in that records the call."""
    if not isinstance(args, tuple):
        args = (args,)
    if isinstance(function, StandIn):
        return StandIn(f"{function.name.removesuffix('()')}()", args)
    if not isinstance(function, Global):
        raise PickleError(f"expected a named class or function to build with, got {type(function).__name__}")
    builder = _BUILDERS.get(function.name)
    if builder is None:
        return StandIn(function.name, args)
    try:
        return builder(*args)
    except TypeError as error:
        raise PickleError(f"expected arguments that {function.name} takes, got {len(args)} others") from error


MAX_KEY = 3
"""Values in a tuple that is a dictionary key."""


def plain_key(key: Any) -> Any:
    """`key` if it may be a dictionary key or set member: hashing deep structures is not safe.

    Tuples are short since -1 and -2 have one hash: sixteen of them give 65,536 keys that collide, and every one more
    is compared with all before it. Integers collide where they differ by 2**61 - 1, so few of 64 bits do.
    """
    flat = key if isinstance(key, tuple) else (key,)
    if len(flat) > MAX_KEY or not all(isinstance(k, str | int | float | bool | None | Global | StandIn) for k in flat):
        raise PickleError(f"expected plain dictionary keys, got {type(key).__name__}")
    return key


def shown(key: Any) -> str:
    """A dictionary key as text; what is no plain value only by its type, since its content may unfold without end."""
    if isinstance(key, str | int | float | bool | None):
        return str(key)
    return key.name if isinstance(key, Global | StandIn) else f"a {type(key).__name__}"


MAX_STEPS = 1_000_000
"""Instructions one pickle may have, and so the values in it: seconds and 250 MB at worst."""
MAX_TEXT = 1 << 24
"""Bytes one string may have."""
MAX_NUMBER = 1024
"""Bytes one number may have; above 64 bits it is a stand-in: nothing of ours needs it, and counting with it hangs."""
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
MARK = object()


class PickleReader:
    """One pickle in `data` from `position` on. `persistent` answers persistent ids; `blob` nested torch files;
    `steps` is the most instructions it may have.

    After `load`, `position` is behind the pickle. Raises PickleError on anything malformed or too long.
    """

    def __init__(
        self,
        data: memoryview,
        position: int = 0,
        *,
        persistent: Callable[[Any], Any] | None = None,
        blob: Callable[[Any], Any] | None = None,
        steps: int = MAX_STEPS,
    ) -> None:
        self.data, self.position = data, position
        self.persistent, self.blob, self.steps = persistent, blob, steps
        self.work = 2 * len(data) + 1024  # see `call`
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The value of the pickle. Raises PickleError for an instruction that is none, and beyond `steps`."""
        collects = gc.isenabled()
        gc.disable()  # nothing is freed here, and looking for it among a million new values takes longer than all else
        try:
            for _ in range(self.steps):
                if self.position >= len(self.data):
                    self.take(1)  # says what is missing
                code = self.data[self.position]
                self.position += 1
                if code == ord("."):
                    return self.pop()
                step = _STEPS.get(code)
                if step is None:
                    raise PickleError(f"expected a pickle instruction, got byte 0x{code:02x} at {self.position - 1}")
                step(self)
        finally:
            if collects:
                gc.enable()
        raise PickleError(f"expected at most {self.steps} instructions, got more")

    # Reading.

    def take(self, size: int) -> memoryview:
        """The next `size` bytes, a view of the input. Raises PickleError where they end."""
        end = self.position + size
        if size < 0 or end > len(self.data):
            raise PickleError(f"expected {size} more bytes at {self.position}, got {len(self.data) - self.position}")
        view = self.data[self.position : end]
        self.position = end
        return view

    def number(self, layout: str) -> Any:
        """The next number, in a layout of `struct`."""
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def text(self, size: int, encoding: str = "utf-8") -> str:
        """Text in the next `size` bytes; torch's UTF-8 may hold lone surrogates."""
        if size > MAX_TEXT:
            raise PickleError(f"expected text of at most {MAX_TEXT} bytes, got {size}")
        try:
            return str(self.take(size), encoding, "surrogatepass" if encoding == "utf-8" else "strict")
        except UnicodeError as error:
            raise PickleError(f"expected {encoding} text at {self.position}, got other bytes") from error

    def line(self, encoding: str = "latin1") -> str:
        """Text up to the next line end, sought in pieces: a line without one is not searched to the end of the file."""
        for start in range(self.position, min(len(self.data), self.position + MAX_TEXT), 4096):
            if (found := bytes(self.data[start : start + 4096]).find(b"\n")) >= 0:
                text = self.text(start + found - self.position, encoding)
                self.position += 1
                return text
        raise PickleError(f"expected a line end after {self.position}, got none")

    def parsed(self, kind: Callable[[str], Any], text: str) -> Any:
        """`kind(text)`; PickleError where that is no number."""
        try:
            return kind(text)
        except ValueError as error:
            raise PickleError(f"expected a number, got {text!r:.40}") from error

    def int_line(self) -> Any:
        """Protocol 0 writes truth values as the numbers 00 and 01."""
        text = self.line()
        return text == "01" if text in {"00", "01"} else self.integer(self.parsed(int, text.removesuffix("L")))

    def integer(self, value: int) -> Any:
        """`value` as it is up to 64 bits, else what stands for it."""
        return value if -(1 << 63) <= value < 1 << 64 or value == LEGACY_MAGIC else StandIn("builtins.int")

    def name(self) -> Global:
        """A class or function in two lines, module and name."""
        return Global(f"{self.line('utf-8')}.{self.line('utf-8')}")

    # Stack.

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        """The topmost value. Raises PickleError at a mark or on an empty stack."""
        if not self.stack or self.stack[-1] is MARK:
            raise PickleError(f"expected a value on the stack at {self.position}, got none")
        return self.stack.pop()

    def discard(self) -> None:
        """Drop the topmost thing, a mark included."""
        if not self.stack:
            raise PickleError(f"expected something on the stack at {self.position}, got nothing")
        self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """The values above the topmost mark, in the order in which they were pushed; the mark goes too."""
        for start in range(len(self.stack) - 1, -1, -1):
            if self.stack[start] is MARK:
                values = self.stack[start + 1 :]
                del self.stack[start:]
                return values
        raise PickleError(f"expected a mark on the stack at {self.position}, got none")

    def top(self) -> Any:
        """The topmost value, which stays."""
        value = self.pop()
        self.push(value)
        return value

    def put(self, index: int) -> None:
        """Remember the topmost value under a number."""
        if not 0 <= index < 1 << 32:  # numbers of any size could be chosen to collide, each compared with all before
            raise PickleError("expected a value remembered under a number of 32 bits, got another")
        self.memo[index] = self.top()

    def get(self, index: int) -> None:
        """Push the value that is remembered under a number."""
        if index not in self.memo:
            raise PickleError(f"expected a value remembered as {index}, got none")
        self.push(self.memo[index])

    # Building.

    def call(self, function: Any, args: Any) -> None:
        """Push what stands for function(*args): nothing is called, `call` looks the name up among our own builders."""
        # Arguments are remembered values: without a bound a short pickle could have a long one copied again and again.
        self.work -= sum(len(arg) for arg in args if isinstance(arg, Sized)) if isinstance(args, tuple) else 0
        if self.work < 0:
            raise PickleError("expected a pickle that uses its values about once, got one that repeats them")
        if isinstance(function, Global) and function.name == "torch.storage._load_from_bytes" and self.blob:
            self.push(self.blob(args[0] if isinstance(args, tuple) and args else None))
        else:
            self.push(call(function, args))

    def pop_call(self) -> None:
        """Call with a tuple of arguments from the stack."""
        args = self.pop()
        self.call(self.pop(), args)

    def mark_call(self) -> None:
        """Call with everything above the mark, the class first."""
        values = self.pop_to_mark()
        if not values:
            raise PickleError("expected a class to build, got none")
        self.call(values[0], tuple(values[1:]))

    def pop_call_with_names(self) -> None:
        """Call with arguments by place and by name, kept as a pair."""
        names, args = self.pop(), self.pop()
        self.call(self.pop(), (args, names))

    def stack_global(self) -> None:
        """A class or function whose module and name lie on the stack."""
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
        """Put values into the topmost list, set or stand-in."""
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
        """Put keys and values, which alternate, into the topmost dictionary or stand-in."""
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
        """Push what a persistent id stands for: in torch files a storage."""
        if self.persistent is None:
            raise PickleError("expected a pickle without persistent ids, got one")
        self.push(self.persistent(identity))

    def long(self, size: int) -> Any:
        if size > MAX_NUMBER:
            raise PickleError(f"expected a number of at most {MAX_NUMBER} bytes, got {size}")
        return self.integer(int.from_bytes(self.take(size), "little", signed=True))


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
    ord("I"): lambda r: r.push(r.int_line()),
    ord("L"): lambda r: r.push(r.int_line()),
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


MAX_ENTRIES = 200_000
"""Entries a zip file may have."""
MAX_DIRECTORY = 1 << 24
"""Bytes the list of its entries may have: the standard library reads it in one piece before it counts."""


class _Storages:
    """Answers torch's persistent ids with storages, one per key."""

    def __init__(self) -> None:
        self.by_key: dict[str, Storage] = {}

    def __call__(self, identity: Any) -> Storage:
        if not isinstance(identity, tuple) or len(identity) not in {5, 6} or identity[0] != "storage":
            raise PickleError("expected a persistent id of a torch storage, got another")
        _, kind, key, _, length, *view = identity
        if not isinstance(key, str) or type(length) is not int or not 0 <= length < 1 << 60:
            raise PickleError("expected a torch storage with a key and a length, got another")
        if view not in ([], [None]):
            raise PickleError("expected a whole torch storage, got a view of one")
        storage = Storage(storage_dtype(kind), length)
        known = self.by_key.setdefault(key, storage)
        if (known.dtype, known.length) != (storage.dtype, storage.length):
            raise PickleError(f"expected one type and length for storage {key:.40}, got two")
        return known


def read_pickle(data: memoryview) -> Any:
    """A plain pickle. Raises PickleError."""

    def nested(blob: Any) -> Any:
        """torch.storage._load_from_bytes: a legacy file in a byte string."""
        if not isinstance(blob, memoryview):
            raise PickleError("expected bytes of a nested torch file, got something else")
        return read_legacy(blob)

    return PickleReader(data, blob=nested).load()


def is_legacy(data: memoryview) -> bool:
    """Whether `data` starts with the pickled magic number of torch's older format."""
    try:
        return PickleReader(data[:64]).load() == LEGACY_MAGIC
    except PickleError:
        return False


def read_legacy(data: memoryview) -> Any:
    """A file of torch 1.5 and older, or of `_use_new_zipfile_serialization=False`. Raises PickleError."""
    storages, position, parts = _Storages(), 0, []
    for _ in range(5):
        reader = PickleReader(data, position, persistent=storages)
        parts.append(reader.load())
        position = reader.position
    magic, _, system, value, keys = parts
    if magic != LEGACY_MAGIC:
        raise PickleError("expected the magic number of a torch file, got another")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise PickleError("expected a little-endian torch file, got another byte order")
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys) or set(keys) != set(storages.by_key):
        raise PickleError("expected a list of the storages in use, got another")
    for key in keys:
        storage = storages.by_key[key]
        end = position + 8 + storage.num_bytes
        if end > len(data):
            raise PickleError(
                f"expected {storage.num_bytes} bytes for storage {key:.40}, got {len(data) - position - 8}"
            )
        if struct.unpack("<q", data[position : position + 8])[0] != storage.length:
            raise PickleError(f"expected {storage.length} elements in storage {key:.40}, got another number")
        storage.data = data[position + 8 : end]
        position = end
    return value


def read_zip(data: memoryview) -> Any:
    """A zip file of torch 1.6 and newer. Raises PickleError."""
    entries = _entries(data)
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl") or name == "data.pkl"]
    if len(roots) != 1:
        raise PickleError(f"expected a zip file with one data.pkl, as torch writes it, got {len(roots)}")
    root = roots[0]
    order = entries.get(f"{root}byteorder")
    if order is not None and bytes(order[:16]) != b"little":
        raise PickleError("expected a little-endian torch file, got another byte order")
    storages = _Storages()
    value = PickleReader(entries[f"{root}data.pkl"], persistent=storages).load()
    for key, storage in storages.by_key.items():
        found = entries.get(f"{root}data/{key}")
        if found is None or len(found) < storage.num_bytes:
            raise PickleError(f"expected {storage.num_bytes} bytes for storage {key:.40}, got {len(found or b'')}")
        storage.data = found[: storage.num_bytes]
    return value


def _entries(data: memoryview) -> dict[str, memoryview]:
    """The bytes of every entry, uncompressed and inside the file, without copying."""
    try:
        with zipfile.ZipFile(_Window(data)) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, struct.error, OSError, EOFError) as error:
        raise PickleError(f"expected a whole zip file, got a damaged one ({error})") from error
    if len(infos) > MAX_ENTRIES:
        raise PickleError(f"expected at most {MAX_ENTRIES} entries in a zip file, got {len(infos)}")
    found = {}
    for info in infos:
        name, start = info.filename, info.header_offset
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != info.compress_size or info.flag_bits & 1:
            raise PickleError(f"expected uncompressed entries, as torch writes them, got {name!r:.60} compressed")
        if start + 30 > len(data) or bytes(data[start : start + 4]) != b"PK\x03\x04":
            raise PickleError(f"expected entry {name!r:.60} at {start}, got other bytes")
        # The local header has lengths of its own: torch pads there, so that tensors begin at multiples of 64 bytes.
        name_length, extra_length = struct.unpack("<HH", data[start + 26 : start + 30])
        start += 30 + name_length + extra_length
        if start + info.file_size > len(data):
            raise PickleError(f"expected {info.file_size} bytes in entry {name!r:.60}, got a shorter file")
        found[name] = data[start : start + info.file_size]
    return found


class _Window(io.RawIOBase):
    """A seekable file over `data` that copies only what is read."""

    def __init__(self, data: memoryview) -> None:
        self._data, self._position = data, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        position = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: len(self._data)}[whence]
        if position < 0:
            raise OSError(f"expected a position inside the file, got {position}")
        self._position = position
        return position

    def read(self, size: int | None = -1) -> bytes:
        if size is not None and size > MAX_DIRECTORY:
            raise OSError(f"expected a list of entries of at most {MAX_DIRECTORY} bytes, got {size}")
        # Never more than there is: the size comes from the file.
        end = len(self._data) if size is None or size < 0 else min(len(self._data), self._position + size)
        part = bytes(self._data[self._position : end])
        self._position += len(part)
        return part


MAX_NODES = 100_000
MAX_DEPTH = 64
MAX_PARTS = 64
"""Parts of a path: it is joined anew wherever it is shared."""
_SCALAR = str | int | float | bool | None


class NotPlainError(ValueError):
    """A value that has no plain form."""


def to_plain(value: Any) -> Any:
    """`value` with every stand-in replaced by the data it held.

    omegaconf nodes give their content, argparse.Namespace its attributes, enum members their value, paths their text,
    numpy scalars a number. Raises NotPlainError for anything else, naming its class, and for values too deep or large.
    """
    left = MAX_NODES  # shared values are visited once per use: unbounded, a short pickle could unfold into a huge one

    def convert(value: Any, depth: int) -> Any:
        nonlocal left
        left -= 1
        if left < 0 or depth < 0:
            raise NotPlainError(f"expected at most {MAX_NODES} values and {MAX_DEPTH} levels, got more")
        if isinstance(value, _SCALAR):
            return value
        if isinstance(value, dict):
            if not all(isinstance(key, _SCALAR) for key in value):
                raise NotPlainError("expected plain keys, got others")
            return {str(key): convert(item, depth - 1) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [convert(item, depth - 1) for item in value]
        if not isinstance(value, StandIn):
            raise NotPlainError(f"expected plain data, got {getattr(value, 'name', type(value).__name__):.80}")
        state = value.state[0] if isinstance(value.state, tuple) and value.state else value.state
        if isinstance(state, dict) and value.name.startswith("omegaconf."):
            for content in ("_content", "_val"):  # of containers, of leaves
                if content in state:
                    return convert(state[content], depth - 1)
        if isinstance(state, dict) and value.name == "argparse.Namespace":
            return convert(state, depth - 1)
        if value.name.startswith("pathlib.") and all(isinstance(arg, str) for arg in value.args):
            left -= len(value.args) + sum(len(arg) for arg in value.args) // MAX_PARTS
            if left < 0 or len(value.args) > MAX_PARTS:
                raise NotPlainError(f"expected paths of at most {MAX_PARTS} parts, got more")
            return str(PurePosixPath(*value.args))
        if value.name.endswith("multiarray.scalar"):
            return _numpy_scalar(value)
        # An enum member is its class called with its value.
        if len(value.args) == 1 and state is None and not value.items and isinstance(value.args[0], _SCALAR):
            return value.args[0]
        raise NotPlainError(f"expected plain data, got an object of {value.name:.80}")

    return convert(value, MAX_DEPTH)


def _numpy_scalar(value: StandIn) -> Any:
    kind = value.args[0] if value.args else None
    code = kind.args[0] if isinstance(kind, StandIn) and kind.name == "numpy.dtype" and kind.args else None
    raw = value.args[1] if len(value.args) > 1 else None
    if not isinstance(code, str) or not re.fullmatch("[fiu][1248]|b1", code) or not isinstance(raw, memoryview):
        raise NotPlainError("expected a numpy number, got another numpy object")
    if code == "f1" or len(raw) != np.dtype(code).itemsize:
        raise NotPlainError("expected the bytes of a numpy number, got another length")
    return np.frombuffer(raw, np.dtype(code).newbyteorder("<"))[0].item()
