"""What is in a model directory, and which models there are, without loading a weight.

config.json + safetensors headers + README.md -> ModelInfo (`plait info`)
official.json + folders + the hub's cache -> rows of (family, name, size, memory, licence, what it does)
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from safetensors import SafetensorError, safe_open

from plait.errors import UsageError
from plait.models import SHIPPED, by_name, cached_model, official_rows, shipped
from plait.reading import read_json
from plait.types import MODALITIES

DEPTH = 5
"""Folders below a given one that are searched for model directories: runs/NAME/seed-0/stage2/model."""
BYTES = {"bfloat16": 2, "float32": 4}
UNKNOWN = "not stated: ask its authors"


@dataclass(frozen=True)
class ModelInfo:
    """Facts of a model directory.

    Attributes:
        path, family, architectures, modalities: as config.json tells them.
        parameters: number of all.
        parts: parameters by part of the model, largest first, see `part_of`.
        dtypes: parameters by dtype, as safetensors names it.
        bytes: of the weights on disk.
        license: from the front matter of README.md, None without.
    """

    path: str
    family: str
    architectures: list[str]
    modalities: list[str]
    parameters: int
    parts: dict[str, int]
    dtypes: dict[str, int]
    bytes: int
    license: str | None


def model_info(path: str | Path) -> ModelInfo:
    """Read the facts of a model directory; headers alone, no weight.

    Args:
        path: of the directory, or the name of a shipped model.

    Raises:
        ValueError: where it is no model directory, or damaged.

    Example:
        >>> model_info("nano").modalities
        ['text', 'image', 'audio']
    """
    path = Path(path) if Path(path).exists() else by_name(path) or Path(path)
    if path.is_file():
        raise ValueError(f"expected a model directory, got the file {path}; plait convert makes a directory of it")
    config_file, weights = path / "config.json", sorted(path.glob("*.safetensors"))
    if not config_file.is_file() or not weights:
        raise ValueError(f"expected config.json and *.safetensors in {path}, got no such files; pass a model directory")
    config = read_json(config_file)
    parts: Counter[str] = Counter()
    dtypes: Counter[str] = Counter()
    for file in weights:
        for name, shape, dtype in _tensors(file):
            count = prod(shape)
            parts[part_of(name)] += count
            dtypes[dtype] += count
    card = path / "README.md"
    front = re.match(r"---\n(.*?)\n---", card.read_text(encoding="utf-8"), re.DOTALL) if card.is_file() else None
    # one line of the YAML front matter that the hub asks for; a YAML reader would be a dependency for it
    license = re.search(r"^license:\s*(\S+)", front[1], re.MULTILINE) if front else None
    return ModelInfo(
        path=str(path),
        family=config.get("model_type", "unknown"),
        architectures=list(config.get("architectures") or []),
        modalities=list(config.get("modalities") or []),
        parameters=parts.total(),
        parts=dict(parts.most_common()),
        dtypes=dict(dtypes.most_common()),
        bytes=sum(file.stat().st_size for file in weights),
        license=license[1] if license else None,
    )


def _tensors(file: Path) -> Iterator[tuple[str, list[int], str]]:
    """(name, shape, dtype) of every tensor in a file. Raises ValueError for a damaged one."""
    try:
        with safe_open(file, framework="numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a dict)
                view = tensors.get_slice(name)
                yield name, view.get_shape(), view.get_dtype()
    except SafetensorError as error:
        raise ValueError(f"expected a whole safetensors file, got {file}: {error}; fetch or write it again") from error


def part_of(name: str) -> str:
    """The part a parameter belongs to, layers taken together.

    Args:
        name: dotted, with or without a leading "model.".

    Returns:
        Down to the name of a modality where there is one, else two levels.

    Example:
        >>> part_of("trunk.layers.3.mlp.audio.up_proj.weight"), part_of("trunk.layers.3.attn.q_proj.weight")
        ('trunk.mlp.audio', 'trunk.attn')
    """
    levels = [level for level in name.removeprefix("model.").split(".") if level != "layers" and not level.isdigit()]
    owner = levels[:-1] or levels
    depth = next((i + 1 for i, level in enumerate(owner) if level in (*MODALITIES, "visual")), 2)
    return ".".join(owner[:depth])


@dataclass(frozen=True)
class Listed:
    """A checkpoint that there is.

    Attributes:
        family, name, license: as its authors call them.
        parameters: number of all.
        memory: bytes of its weights by dtype; activations come on top.
        does: what it takes or does, in words.
        where: to get or find it.
    """

    family: str
    name: str
    parameters: int
    memory: dict[str, int]
    license: str
    does: str
    where: str


def official() -> list[Listed]:
    """What the authors published.

    Parameters come from key lists and configurations, without momentum copies; licences from the authors'
    repositories (read 2026-11-30), those of base models from memory.
    """
    return [replace(_listed(**row), name=name) for name, row in official_rows().items()]


def local(folders: Sequence[Path] = ()) -> list[Listed]:
    """Model directories on this machine: shipped ones, those that `plait get` made, the hub's cache, and folders.

    Directories of other libraries (CLIP, sentence-transformers, ...) are listed too; what cannot be read is
    left out.

    Args:
        folders: searched five levels deep.

    Raises:
        UsageError: for a folder that does not exist.
    """
    from huggingface_hub.constants import HF_HUB_CACHE

    found = [(name, place) for name in SHIPPED if (place := shipped(name))]
    found += [(name, place) for name in ("smollm2", *official_rows()) if (place := cached_model(name))]
    for folder in folders:
        if not folder.is_dir():
            raise UsageError(f"expected a folder to look for models in, got {folder}; pass one that exists")
        found += [(str(place), place) for place in _directories(folder)]
    for repository in sorted(Path(HF_HUB_CACHE).glob("models--*")):
        name = repository.name.removeprefix("models--").replace("--", "/")
        # the cache keeps a folder per revision: one of them stands for the model
        newest = sorted(path.parent for path in repository.glob("snapshots/*/config.json"))[-1:]
        found += [(name, place) for place in newest]
    rows = []
    for name, place in found:
        try:
            facts = model_info(place)
        except (ValueError, OSError):
            continue
        does = f"takes {', '.join(facts.modalities)}" if facts.modalities else "-"
        rows.append(
            _listed(facts.family, name, facts.parameters, facts.license or "none in its README.md", does, str(place))
        )
    return rows


def _listed(family: str, name: str, parameters: int, license: str | None, does: str, where: str) -> Listed:
    """A row with the memory that its parameters take by dtype."""
    memory = {dtype: parameters * size for dtype, size in BYTES.items()}
    return Listed(family, name, parameters, memory, license or UNKNOWN, does, where)


def _directories(folder: Path) -> Iterator[Path]:
    """Directories with config.json and weights, in order of their names; nothing below one of them is looked at."""
    for place, names, files in os.walk(folder):
        here = Path(place)
        if "config.json" in files and any(name.endswith(".safetensors") for name in files):
            names.clear()
            yield here
        elif len(here.relative_to(folder).parts) >= DEPTH:
            names.clear()
        names[:] = sorted(name for name in names if not name.startswith("."))
