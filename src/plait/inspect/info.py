"""What is in a model directory, read from config.json and the safetensors headers: no weight is loaded."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from plait.models import shipped
from plait.types import MODALITIES


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model directory. `parts`: parameters by part of the model, largest first; `bytes` on disk."""

    path: str
    family: str
    architectures: list[str]
    modalities: list[str]
    parameters: int
    parts: dict[str, int]
    dtypes: dict[str, int]
    bytes: int
    license: str | None

    def to_dict(self) -> dict[str, Any]:
        """The facts as plain data."""
        return asdict(self)


def model_info(path: str | Path) -> ModelInfo:
    """Read the facts of the model directory `path`, or of a shipped one by name. ValueError where it is none."""
    path = Path(path) if Path(path).exists() else shipped(path) or Path(path)
    if path.is_file():
        raise ValueError(f"expected a model directory, got the file {path}; plait convert makes a directory of it")
    config_file, weights = path / "config.json", sorted(path.glob("*.safetensors"))
    if not config_file.is_file() or not weights:
        raise ValueError(f"expected config.json and *.safetensors in {path}, got no such files; pass a model directory")
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"expected JSON in {config_file}, got {error}") from error
    parts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for file in weights:
        for name, shape, dtype in _tensors(file):
            count = prod(shape)
            parts[part_of(name)] += count
            dtypes[dtype] += count
    return ModelInfo(
        path=str(path),
        family=config.get("model_type", "unknown"),
        architectures=list(config.get("architectures") or []),
        modalities=list(config.get("modalities") or []),
        parameters=parts.total(),
        parts=dict(parts.most_common()),
        dtypes=dict(dtypes.most_common()),
        bytes=sum(file.stat().st_size for file in weights),
        license=_license(path / "README.md"),
    )


def _tensors(file: Path) -> Iterator[tuple[str, list[int], str]]:
    """(name, shape, dtype) of every tensor. ValueError for a damaged file."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                view = tensors.get_slice(name)
                yield name, view.get_shape(), view.get_dtype()
    except SafetensorError as error:
        raise ValueError(f"expected a whole safetensors file, got {file}: {error}; fetch or write it again") from error


def part_of(name: str) -> str:
    """The part a parameter belongs to, layers taken together.

    Down to the name of a modality where there is one: `trunk.mlp.audio` for `trunk.layers.3.mlp.audio.up_proj.weight`,
    else two levels: `trunk.attn` for `trunk.layers.3.attn.q_proj.weight`.
    """
    levels = [level for level in name.removeprefix("model.").split(".") if level != "layers" and not level.isdigit()]
    owner = levels[:-1] or levels
    depth = next((i + 1 for i, level in enumerate(owner) if level in (*MODALITIES, "visual")), 2)
    return ".".join(owner[:depth])


def _license(card: Path) -> str | None:
    """The licence a model card names in its front matter."""
    if not card.is_file():
        return None
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL)
    line = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
    return line[1] if line else None
