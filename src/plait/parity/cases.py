"""Golden cases on disk: directory -> `Case` with inputs, weights and descriptions of its outputs, without their values.

A case is a directory that holds CASE.md or expected.json; its parent names the system. Key lists (`*.json.gz`) that lie
loose in a system form its case `keys`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

DOCUMENTS = ("expected.json", "data.json", "examples.json")
"""JSON files that hold expected values, in the order in which they are looked for."""


class Place(NamedTuple):
    """Where a case lies, sortable by system and name.

    Args:
        system: name of the directory above the case.
        name: of the case; `keys` for key lists that lie loose in a system.
        directory: of the case; for a loose `keys` case that of its system.
    """

    system: str
    name: str
    directory: Path


class OutputSpec(NamedTuple):
    """What a runner may know of a stored output: its shape and type, not its values."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass(frozen=True)
class Settings:
    """How cases run.

    Args:
        attn: attention implementation, `eager` or `sdpa`.
        device: as torch names it.
        dtype: floating-point type of weights and inputs, as torch names it.
        official: with the quirks of the official code, as it computed the stored values; False: as users get it.
    """

    attn: str = "eager"
    device: str = "cpu"
    dtype: str = "float32"
    official: bool = True


@dataclass(frozen=True)
class Case:
    """One golden case as a runner sees it: expected values are hidden (`None` in the same structure).

    A runner that cannot see what is expected cannot pass by copying it.

    Args:
        system, name, path: of the case, as in `Place`.
        settings: how it runs.
        config_outputs: patterns of the entries of config.json that are expected values.
        json_inputs: fields of the JSON document that are inputs; all others are expected values.

    Example:
        >>> place = discover(Path("tests/goldens"))[0]
        >>> case = Case(*place)
        >>> case.inputs, case.outputs
    """

    system: str
    name: str
    path: Path
    settings: Settings = field(default_factory=Settings)
    config_outputs: tuple[str, ...] = ()
    json_inputs: tuple[str, ...] = ()

    @property
    def attn(self) -> str:
        """Attention implementation to run with: "eager" or "sdpa"."""
        return self.settings.attn

    @property
    def official(self) -> bool:
        """Whether to repeat the quirks of the official code."""
        return self.settings.official

    @cached_property
    def device(self) -> torch.device:
        """Device to run on."""
        import torch

        return torch.device(self.settings.device)

    @cached_property
    def dtype(self) -> torch.dtype:
        """Floating-point type to run in."""
        import torch

        return getattr(torch, self.settings.dtype)

    @cached_property
    def config(self) -> dict[str, Any]:
        """config.json with the values of expected entries hidden; empty without the file."""
        config, expected = read_json(self.path / "config.json") or {}, self.config_entries
        return {key: hide(value, ()) if key in expected else value for key, value in config.items()}

    @cached_property
    def config_entries(self) -> list[str]:
        """The entries of config.json that are expected values."""
        config = read_json(self.path / "config.json") or {}
        return [key for key in config if any(fnmatchcase(key, pattern) for pattern in self.config_outputs)]

    @cached_property
    def document(self) -> Any:
        """The JSON document with all but its input fields hidden; None without one."""
        return hide(self.stored_document(), self.json_inputs)

    @cached_property
    def inputs(self) -> dict[str, torch.Tensor]:
        """Tensors stored as `in.NAME`, under NAME: on the device of the run, floating-point values in its type."""
        return {name: self._cast(value) for name, value in self.stored_inputs.items()}

    @cached_property
    def stored_inputs(self) -> dict[str, torch.Tensor]:
        """`inputs` on the CPU with the type they are stored in, for everything that is no model."""
        return self._tensors("in.")

    @cached_property
    def data(self) -> dict[str, torch.Tensor]:
        """Tensors stored as `data.NAME`, under NAME, on the CPU as they are stored."""
        return self._tensors("data.")

    @cached_property
    def outputs(self) -> dict[str, OutputSpec]:
        """Shape and type of every stored `out.*` tensor, under its full name."""
        with self._open() as file:
            # A slice tells shape and type without reading the values.
            slices = {name: file.get_slice(name) for name in file.keys() if name.startswith("out.")}  # noqa: SIM118
            return {name: OutputSpec(tuple(s.get_shape()), _torch_dtype(s.get_dtype())) for name, s in slices.items()}

    @cached_property
    def key_lists(self) -> dict[str, Path]:
        """Key lists of the case: `keys.NAME` -> file."""
        return {f"keys.{_list_name(p)}": p for p in sorted(self.path.glob("*.json.gz"))}

    def weights(self) -> dict[str, torch.Tensor]:
        """The official state dict of the case, on the CPU in float32 as stored.

        Raises:
            ValueError: where the case has no weights.safetensors.
        """
        from safetensors.torch import load_file

        path = self.path / "weights.safetensors"
        if not path.exists():
            raise ValueError(
                f"expected weights.safetensors in case {self.name}, found none; add it or change the runner"
            )
        return load_file(path)

    def file(self, name: str) -> Path | None:
        """A file of the case, or None where this copy of the goldens leaves it out."""
        path = self.path / name
        return path if path.exists() else None

    def stored_document(self) -> Any:
        """The JSON document as stored, for the comparison only."""
        return next((read_json(self.path / name) for name in DOCUMENTS if (self.path / name).exists()), None)

    def _cast(self, value: torch.Tensor) -> torch.Tensor:
        """A tensor on the device of the run; integers and masks keep their type."""
        return value.to(self.device, self.dtype if value.is_floating_point() else value.dtype)

    def _tensors(self, prefix: str) -> dict[str, torch.Tensor]:
        """Stored tensors under `prefix`, by the rest of their names."""
        with self._open() as file:
            return {k.removeprefix(prefix): file.get_tensor(k) for k in file.keys() if k.startswith(prefix)}  # noqa: SIM118

    def _open(self) -> Any:
        """The open file of tensors, or something without keys where the case has none (data cases)."""
        from contextlib import nullcontext

        from safetensors import safe_open

        path = self.path / "tensors.safetensors"
        return safe_open(path, "pt") if path.exists() else nullcontext(_NoTensors())


class _NoTensors:
    """What `_open` gives of a case without tensors."""

    def keys(self) -> list[str]:
        return []


def discover(root: Path) -> list[Place]:
    """All cases under `root` (itself included), sorted by system and name.

    Args:
        root: of goldens, of one system, or a single case.
    """
    return sorted(_walk(root))


def _walk(directory: Path) -> Iterator[Place]:
    """The cases at and under a directory; nothing inside a case is one."""
    if (directory / "CASE.md").exists() or (directory / "expected.json").exists():
        yield Place(directory.resolve().parent.name, directory.resolve().name, directory)
        return
    if any(directory.glob("*.json.gz")):
        # and its cases follow: the lists lie beside them
        yield Place(directory.resolve().name, "keys", directory)
    for child in sorted(directory.iterdir()):
        if child.is_dir() and not child.name.startswith("."):
            yield from _walk(child)


def hide(value: Any, inputs: tuple[str, ...], under: str = "") -> Any:
    """`value` with every leaf replaced by None, except under the fields named in `inputs`.

    Args:
        value: decoded JSON.
        inputs: `name` is a field at any depth, `parent.name` one directly inside (or in a row of) the field `parent`.
        under: the field that holds `value`.

    Returns:
        The same structure, so that a runner knows how many answers are asked for.
    """
    if isinstance(value, dict):
        return {key: item if is_input(key, under, inputs) else hide(item, inputs, key) for key, item in value.items()}
    if isinstance(value, list):
        return [hide(item, inputs, under) for item in value]
    return None


def is_input(key: str, under: str, inputs: tuple[str, ...]) -> bool:
    """Whether the field `key` of the field `under` is declared as input, by itself or as `under.key`."""
    return key in inputs or f"{under}.{key}" in inputs


def fields_of(document: Any) -> dict[str, Any]:
    """The top-level fields of a JSON document; the rows of a list are the fields "0", "1", ..."""
    return {str(i): row for i, row in enumerate(document)} if isinstance(document, list) else document or {}


def read_json(path: Path) -> Any:
    """A decoded JSON file, or None where it does not exist."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _list_name(path: Path) -> str:
    """`owl2` of keys.owl2.json.gz, keys_owl2.json.gz or owl2.keys.json.gz: the three spellings of golden data."""
    return path.name.removesuffix(".json.gz").removesuffix(".keys").removeprefix("keys_").removeprefix("keys.")


def _torch_dtype(name: str) -> torch.dtype:
    """The torch type that safetensors calls, for instance, "F32" or "BOOL"."""
    import torch

    if name == "BF16":  # the one name whose letters do not follow the pattern below
        return torch.bfloat16
    kinds = {"F": "float", "I": "int", "U": "uint", "B": "bool"}
    return getattr(torch, kinds[name[0]] + name[1:] if name != "BOOL" else "bool")
