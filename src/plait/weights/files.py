"""Checkpoint files of every kind in circulation, read without executing anything or reading what nobody takes.

path -> by content: torch zip | torch legacy | plain pickle | safetensors | shards -> Checkpoint(state, config)
LazyState (names known, tensors not yet read) -> KeyMap.forward -> load_strict(module, state)

Files are mapped into memory privately: tensors are views of them, pages are read when a tensor is used, and changes
never reach the file. torch's own `weights_only` reader is not used: it refuses the objects that published files hold
beside their weights, and it cannot map the older formats.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from plait.reading import check_layers, check_regular
from plait.weights.unpickle import (
    MAX_NAME,
    MAX_NODES,
    LazyTensor,
    NotPlainError,
    PickleError,
    is_legacy,
    read_legacy,
    read_pickle,
    read_zip,
    shown,
    to_plain,
)

LISTED = 20
"""How many keys one error message names before it only counts the rest."""


class LazyState(Mapping[str, Tensor]):
    """A state dict whose tensors are made when asked for.

    Looking at keys reads nothing, so tensors that nobody takes cost no memory. Nothing is cached.
    `{**state, "more": tensor}` or `dict(state)` give an ordinary dict.

    Args:
        readers: key -> function without arguments that gives the tensor.
    """

    def __init__(self, readers: Mapping[str, Callable[[], Tensor]]) -> None:
        self._readers = dict(readers)

    def __getitem__(self, key: str) -> Tensor:
        return self._readers[key]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._readers)

    def __len__(self) -> int:
        return len(self._readers)

    def __contains__(self, key: object) -> bool:
        return key in self._readers

    def select(self, keys: Iterable[str]) -> LazyState:
        """The same state with `keys` only, still unread.

        Raises:
            KeyError: for a key that is not there.
        """
        return LazyState({key: self._readers[key] for key in keys})

    def __repr__(self) -> str:
        return f"LazyState({len(self)} tensors)"


class StateError(ValueError):
    """Keys of a state dict that do not fit; `keys` names all of them, the message the first twenty."""

    def __init__(self, message: str, keys: Sequence[str]) -> None:
        super().__init__(message)
        self.keys = tuple(keys)


def listed(names: Sequence[str]) -> str:
    """`a, b, c`, and how many more there are behind the first twenty."""
    rest = len(names) - LISTED
    return ", ".join(names[:LISTED]) + (f" and {rest} more" if rest > 0 else "")


def load_strict(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    optional: Iterable[str] = (),
    dtype: torch.dtype | None = None,
    assign: bool = False,
) -> tuple[str, ...]:
    """Put `state` into `module`, one tensor at a time; every key and shape must agree.

    Args:
        module: any; transformers models too.
        state: by the module's keys.
        optional: keys of the module that the state may lack; they keep their values.
        dtype: cast floating tensors to it; without it copies take the module's own dtype, assigned
            ones the file's.
        assign: make the tensors themselves the module's parameters (needed for modules on the meta
            device) instead of copying into them.

    Returns:
        The optional keys that were absent, in the module's order.

    Raises:
        StateError: listing missing, unexpected and misshapen keys; the module is unchanged then.
        ValueError: for a module on the meta device without `assign`.

    Example:
        >>> load_strict(nn.Linear(2, 3), {"weight": torch.zeros(3, 2), "bias": torch.zeros(3)})
        ()
    """
    own = module.state_dict()
    absent = [key for key in own if key not in state]
    allowed = set(optional)
    missing = [key for key in absent if key not in allowed]
    unexpected = [key for key in state if key not in own]
    # Shapes are compared only where names agree: reading a tensor is what costs.
    misshapen = {
        key: (tuple(value.shape), tuple(state[key].shape))
        for key, value in own.items()
        if key in state and state[key].shape != value.shape
    }
    parts = []
    if missing:
        parts.append(f"{len(missing)} missing: {listed(missing)}")
    if unexpected:
        parts.append(f"{len(unexpected)} unexpected: {listed(unexpected)}")
    if misshapen:
        shapes = [f"{key} expected {want} got {got}" for key, (want, got) in misshapen.items()]
        parts.append(f"{len(misshapen)} misshapen: {listed(shapes)}")
    if parts:
        message = "expected weights that fit the module, got " + "; ".join(parts)
        raise StateError(
            message + "; check that file and configuration belong together", [*missing, *unexpected, *misshapen]
        )

    def cast(tensor: Tensor) -> Tensor:
        return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

    present = [key for key in own if key in state]
    if assign:
        module.load_state_dict({key: cast(state[key]) for key in present}, strict=False, assign=True)
    elif any(own[key].is_meta for key in present):
        raise ValueError("expected a module with memory, got one on the meta device; pass assign=True")
    else:
        for key in present:
            # one after another: never more than one tensor of the file in memory beside the module
            own[key].copy_(cast(state[key]))
    return tuple(key for key in absent if key in allowed)


def build_strict(
    build: Callable[[], Any], state: Mapping[str, Tensor], *, tied: Sequence[str] = (), dtype: torch.dtype | None = None
) -> Any:
    """A transformers model with exactly the weights of `state`, built without memory of its own.

    Args:
        build: makes the model.
        state: by the model's keys.
        tied: keys that the state may lack, as other weights are theirs.
        dtype: cast floating tensors to it.

    Returns:
        The model.

    Raises:
        StateError: listing missing, unexpected and misshapen keys.
    """
    with torch.device("meta"):  # so that a model never stands in memory twice
        model = build()
    load_strict(model, state, dtype=dtype, assign=True, optional=tied)
    # assigning gave each tied name a tensor of its own, or left it on the meta device
    model.tie_weights()
    model.config.architectures = [type(model).__name__]
    if any(parameter.is_meta for parameter in model.parameters()):
        raise StateError("expected a weight for every parameter, got none for a tied head", list(tied))
    model.generation_config = type(model.generation_config).from_model_config(model.config)
    return model


def load_whole(kind: Any, place: str | Path, *, optional: str = "", **options: Any) -> Any:
    """A model of transformers with all of its weights; it would fill in random ones for those that are missing.

    Args:
        kind: class with `from_pretrained`.
        place: model directory.
        optional: beginning of the names of weights that nobody uses.
        options: for `from_pretrained`.

    Raises:
        StateError: where the directory lacks weights, or some have another shape.
        ValueError: for weights that are not finite.
    """
    model, told = kind.from_pretrained(place, trust_remote_code=False, output_loading_info=True, **options)
    lacking = {str(key) for key in told["missing_keys"] if not optional or not str(key).startswith(optional)}
    wrong = sorted(lacking | {str(key[0]) for key in told.get("mismatched_keys", ())})
    if wrong:
        raise StateError(
            f"expected all weights of {type(model).__name__} in {place}, got {len(wrong)} missing or of another shape: "
            f"{listed(wrong)}; fetch it again, or pass a model of this kind",
            wrong,
        )
    check_finite_weights(model, place)
    return model


def check_finite(tensor: Tensor, what: str) -> Tensor:
    """`tensor`, or ValueError where one of its numbers is NaN or infinite. what: it, in the message."""
    if tensor.is_meta or not tensor.numel() or not tensor.is_floating_point():
        return tensor
    seen = tensor.detach()
    seen = seen.float() if seen.itemsize == 1 else seen  # torch adds no numbers of eight bits
    # One sum tells at the speed of memory. That of finite numbers can be infinite too, but not their extremes.
    if not seen.sum().isfinite() and not all(end.isfinite() for end in seen.aminmax()):
        raise ValueError(f"expected finite numbers in {what}, got NaN or infinity; fetch or train it again")
    return tensor


def check_finite_weights(model: nn.Module, place: str | Path) -> None:
    """Raise ValueError, naming the weight, where a parameter of a model has NaN or infinity. place: its file."""
    for name, parameter in model.named_parameters():
        check_finite(parameter, f"{name} of {place}")


def refuse_branch(branch: Sequence[str] | None, family: str) -> None:
    """Raise ValueError where modalities are named to a family that cannot leave any out.

    branch: as in `plait.load`, None for all; family: its name in the message.
    """
    if branch is not None:
        raise ValueError(f"expected no branch for {family}, whose parts only work together, got {list(branch)}")


STATE_NAMES = ("model", "state_dict", "module")
CONFIG_NAMES = ("cfg", "config", "args")
DIRECTORY_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
ADDED = "model-added-00001-of-00001.safetensors"
"""Weights that joined a model later; the name is one that transformers clears away when it saves anew."""
MAX_INDEX = 1 << 26
"""Bytes a shard index or a config.json may have."""


class CheckpointError(ValueError):
    """A file that is no checkpoint, is damaged, or holds something this reader does not take."""


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint file holds, as far as it matters.

    path: of the file or directory. format: torch zip, torch legacy, pickle, safetensors or shards.
    state: weights, read when asked for, prefix `module.` removed. config: plain data or None.
    container: the key the weights were under, "" at the top. ignored: entries beside weights and
    config. notes: what a reader should know, one line each.
    """

    path: Path
    format: str
    state: LazyState
    config: dict[str, Any] | None = None
    container: str = ""
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def add_file(directory: Path, tensors: Mapping[str, Tensor]) -> None:
    """Put weights into a file of their own, beside those of a model directory that was just saved.

    The other files stay byte for byte what they are without them. That is more than tidy: weights are mapped, and where
    a tensor lies in its file decides how its memory is aligned, and with that the last bits of products.

    Args:
        directory: with model.safetensors, or shards and their index.
        tensors: by the model's keys.
    """
    index = directory / DIRECTORY_FILES[0]
    if index.is_file():
        written = _read_json(index)
    else:
        # transformers would take model.safetensors for the whole
        name = "model-00001-of-00001.safetensors"
        (directory / DIRECTORY_FILES[1]).rename(directory / name)
        with safe_open(str(directory / name), "pt") as file:
            written = {"metadata": {}, "weight_map": dict.fromkeys(file.keys(), name)}
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, directory / ADDED, {"format": "pt"})
    written["weight_map"] |= dict.fromkeys(tensors, ADDED)
    files = [directory / name for name in set(written["weight_map"].values())]
    written["metadata"] = {**written["metadata"], "total_size": sum(file.stat().st_size for file in files)}
    index.write_text(json.dumps(written, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint of any kind, told by its content and not by its name.

    Args:
        path: a .pt, .pth, .bin, .pkl, .safetensors file, a shard index or a directory with one.

    Returns:
        A `Checkpoint`, its tensors unread.

    Raises:
        CheckpointError: one line that names the file. Damage inside a tensor shows when that
            tensor is taken.

    Example:
        >>> checkpoint = read_checkpoint("one-peace.pt")
        >>> len(checkpoint.state), checkpoint.format
    """
    path = Path(path)
    try:
        if not path.is_dir():
            return _read_file(path)
        found = next((path / name for name in DIRECTORY_FILES if (path / name).is_file()), None)
        if found is None:
            raise PickleError(f"a directory without {' or '.join(DIRECTORY_FILES)}")
        inner = _read_file(found)
        written = path / "config.json"
        return replace(inner, path=path, config=_read_json(written) if written.is_file() else inner.config)
    except (ValueError, SafetensorError, OSError, RecursionError) as error:
        raise _unreadable(path, error) from error


def fingerprint(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal: what a report names a checkpoint by.

    Read in pieces, so that a file of many gigabytes needs no memory.
    """
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreadable(path: Path, error: Exception) -> CheckpointError:
    """Any failure to read as one line that names the file and says what to do.

    error: of the system, of safetensors or of our own reader; its text is made one line.
    """
    reason = f"{error.strerror.lower()}" if isinstance(error, OSError) and error.strerror else str(error)
    reason = " ".join(reason.split()) or type(error).__name__
    return CheckpointError(
        f"expected a torch zip, torch legacy, pickle or safetensors checkpoint, got {path}: {reason}; "
        "check the path and that the download is complete"
    )


def _read_file(path: Path) -> Checkpoint:
    """The kind of a file by its first bytes, and the file read as that.

    Names are not looked at: a .pt may be a zip, a plain pickle or a web page that was saved as one.
    """
    check_regular(path)
    with open(path, "rb") as file:
        head = file.read(9)
        if not head:
            raise PickleError("an empty file")
        if head.startswith(b"PK\x03\x04"):
            return _from_pickled(path, "torch zip", read_zip(_mapped(file)))
        # safetensors: the length of a JSON header in eight bytes, then the header
        if len(head) == 9 and head[8:] == b"{" and int.from_bytes(head[:8], "little") < 1 << 32:
            return _from_safetensors(path)
        if head.lstrip().startswith(b"{"):
            return _from_index(path)
        # what a failed download leaves
        if head.startswith((b"<", b"version ")):
            raise PickleError("text: a web page or a Git LFS pointer in place of the file")
        data = _mapped(file)
        if is_legacy(data):
            return _from_pickled(path, "torch legacy", read_legacy(data))
        return _from_pickled(path, "pickle", read_pickle(data))


def _mapped(file: Any) -> memoryview:
    """The file in memory, privately: pages are read when used, and changes never reach the file."""
    # a private copy on write: torch may write to tensors made of it, the file stays as it is
    return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))


def _read_json(path: Path) -> dict[str, Any]:
    """A JSON object, refused above `MAX_INDEX` bytes: an index names files, it holds no weights."""
    if path.stat().st_size > MAX_INDEX:
        raise PickleError(f"a JSON file of more than {MAX_INDEX} bytes")
    try:
        value = json.loads(path.read_bytes())
    except ValueError as error:
        raise PickleError(f"text that is no JSON ({error})") from error
    if not isinstance(value, dict):
        raise PickleError("JSON that is no object")
    return value


def _from_safetensors(path: Path) -> Checkpoint:
    """A safetensors file, its tensors unread. Every key is a tensor, so there is no config."""
    file = safe_open(path, framework="pt")

    def read(key: str) -> Tensor:
        try:
            return file.get_tensor(key)
        except SafetensorError as error:
            raise _unreadable(path, error) from error

    readers = {key: partial(read, key) for key in file.keys()}  # noqa: SIM118
    return _checkpoint(path, "safetensors", readers)


def _from_index(path: Path) -> Checkpoint:
    """Shards named by `weight_map` in the file's own directory."""
    weights = _read_json(path).get("weight_map")
    if not isinstance(weights, dict) or not weights:
        raise PickleError("a JSON file without a weight_map")
    shards: dict[str, Checkpoint] = {}
    readers: dict[str, Callable[[], Tensor]] = {}
    for key, name in weights.items():
        # a name only: a path could lead out of the directory
        if not isinstance(name, str) or Path(name).name != name:
            raise PickleError(f"a shard index with something else than file names: {name!s:.80}")
        if name not in shards:
            if name.endswith(".json"):  # which could name itself
                raise PickleError(f"a shard index that names another index, {name}")
            shards[name] = _read_file(path.parent / name)
        if key not in shards[name].state:
            raise PickleError(f"a shard index that promises {key:.80} in {name}, where it is not")
        readers[key] = partial(shards[name].state.__getitem__, key)
    return _checkpoint(path, "shards", readers)


def _from_pickled(path: Path, kind: str, value: Any) -> Checkpoint:
    """What was unpickled as data, its tensors unread: weights, config and the rest apart."""
    container, entries = _find_state(value)

    def read(key: str, tensor: LazyTensor) -> Tensor:
        try:
            return tensor.read()
        except (PickleError, RuntimeError) as error:
            raise CheckpointError(f"expected a whole tensor {key} in {path}: {error}") from error

    readers: dict[str, Callable[[], Tensor]] = {}
    ignored = []
    for key, entry in entries.items():
        if isinstance(key, str) and isinstance(entry, LazyTensor):
            readers[key] = partial(read, key, entry)
        else:
            ignored.append(shown(key))
    notes: list[str] = []
    config = None
    if container:
        config, name = _find_config(value, notes)
        ignored += [shown(key) for key in value if key not in {container.partition(".")[0], name}]
    return _checkpoint(path, kind, readers, config, container, tuple(ignored), tuple(notes))


def _find_state(value: Any) -> tuple[str, Mapping[Any, Any]]:
    """Where the weights are: under one of STATE_NAMES, at most three deep, otherwise the value itself.

    Returns the container's path and the entries. Raises PickleError where there are no tensors.
    """
    if not isinstance(value, dict):
        raise PickleError(f"a pickle of {getattr(value, 'name', type(value).__name__):.80} instead of a state dict")
    found = _search_state(value, depth=3) or _nested_state(value)
    if found is None:
        keys = ", ".join(f"{key!s:.40}" for key in list(value)[:8] if isinstance(key, str))
        raise PickleError(f"no tensors under {', '.join(STATE_NAMES)} or at the top; keys: {keys or 'none'}")
    return found


def _search_state(value: dict[Any, Any], depth: int) -> tuple[str, Mapping[Any, Any]] | None:
    """The container path and the weights in `value`, at most `depth` containers deep.

    None where there are no tensors.
    """
    for name in STATE_NAMES if depth else ():
        inner = _search_state(value[name], depth - 1) if isinstance(value.get(name), dict) else None
        if inner is not None:
            return f"{name}.{inner[0]}".removesuffix("."), inner[1]
    return ("", value) if any(isinstance(entry, LazyTensor) for entry in value.values()) else None


def _nested_state(value: dict[Any, Any]) -> tuple[str, Mapping[Any, Any]] | None:
    """Weights in dictionaries of dictionaries under `model`, as Megatron stores them: their keys joined by dots."""
    inner = value.get("model")
    flat: dict[str, Any] = {}
    # one dictionary may be shared by all that hold it: six levels of a hundred are 10**12 visits
    left = MAX_NODES

    def collect(entries: Mapping[Any, Any], prefix: str, depth: int) -> None:
        nonlocal left
        for key, entry in entries.items():
            left -= 1
            name = f"{prefix}{shown(key)}"
            if left < 0 or len(name) > MAX_NAME:
                raise PickleError(
                    f"weights in dictionaries of more than {MAX_NODES} entries or {MAX_NAME} characters of a name"
                )
            if isinstance(entry, LazyTensor):
                flat[name] = entry
            elif isinstance(entry, dict) and depth:
                collect(entry, f"{name}.", depth - 1)

    if isinstance(inner, dict):
        collect(inner, "", 6)
    return ("model", flat) if flat else None


def _find_config(value: dict[Any, Any], notes: list[str]) -> tuple[dict[str, Any] | None, str]:
    """The first of CONFIG_NAMES that decodes to a dictionary of plain data, and its name.

    What does not decode is noted and left: weights are of use without it.
    """
    for name in CONFIG_NAMES:
        if value.get(name) is None:
            continue
        try:
            config = to_plain(value[name])
        except NotPlainError as error:
            notes.append(f"{name} was left out: {error}")
            continue
        if isinstance(config, dict):
            check_layers(config, name)
            return config, name
        notes.append(f"{name} was left out: expected a dictionary, got {type(config).__name__}")
    return None, ""


def _checkpoint(path: Path, kind: str, readers: Mapping[str, Callable[[], Tensor]], *rest: Any) -> Checkpoint:
    """A checkpoint of these readers, without the prefix that wrappers for parallel training put on.

    They wrap more than once, so it is stripped as long as every key has it.
    """
    # every key, or none: a single "module." may be a name of the model's own
    while readers and all(key.startswith("module.") for key in readers):
        readers = {key.removeprefix("module."): read for key, read in readers.items()}
    return Checkpoint(path, kind, LazyState(readers), *rest)
