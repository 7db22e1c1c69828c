"""What a pickle's names turn into: descriptions of tensors, plain containers, and stand-ins that do nothing.

name + arguments -> call() -> LazyTensor | dict | tuple | StandIn

Only the names in `_BUILDERS` (what torch writes into checkpoints) are answered, by functions of this file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

MAX_NAME = 512
"""Characters the name of a class or function may have."""
SMALL_TENSOR = 1 << 24
"""Elements a tensor may have although its storage is smaller (expanded tensors)."""


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
        data, numbers = self.storage.data, (self.offset, *self.shape, *self.stride)
        if data is None or len(data) != self.storage.num_bytes:
            raise PickleError(f"expected {self.storage.num_bytes} bytes of tensor data, got {len(data or b'')}")
        if len(self.shape) != len(self.stride) or not all(type(n) is int and 0 <= n < 1 << 62 for n in numbers):
            raise PickleError(f"expected a shape and a stride, got {self.shape!r:.60} and {self.stride!r:.60}")
        available = self.storage.num_bytes // self.dtype.itemsize
        elements = _product(self.shape)
        last = self.offset + sum((n - 1) * step for n, step in zip(self.shape, self.stride))
        if elements == 0:
            return torch.empty(self.shape, dtype=self.dtype)
        if last >= available or elements > max(available, SMALL_TENSOR):
            raise PickleError(f"expected a tensor inside its {available} elements, got shape {self.shape!r:.60}")
        raw = torch.frombuffer(data, dtype=torch.uint8)
        if raw.data_ptr() % self.dtype.itemsize:
            raw = raw.clone()
        return raw.view(self.dtype).as_strided(self.shape, self.stride, self.offset)


def _product(shape: tuple[int, ...]) -> int:
    """The number of elements, cut off once it is beyond any file."""
    total = 1
    for n in shape:
        total = min(total * n, 1 << 62) if n else 0
    return total if all(shape) else 0


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
    dtype = storage.dtype
    if len(rest) > 2 and isinstance(rest[2], Global):
        found = getattr(torch, rest[2].name.removeprefix("torch."), None)
        if not isinstance(found, torch.dtype):
            raise PickleError(f"expected a torch dtype, got {rest[2].name:.80}")
        dtype = found
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


def plain_key(key: Any) -> Any:
    """`key` if it may be a dictionary key or set member: hashing deep structures is not safe."""
    flat = key if isinstance(key, tuple) else (key,)
    if len(flat) > 16 or not all(isinstance(k, str | int | float | bool | None | Global | StandIn) for k in flat):
        raise PickleError(f"expected plain dictionary keys, got {type(key).__name__}")
    return key
