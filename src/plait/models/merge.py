"""`plait merge BASE ADAPTER DST`: weights and a LoRA become one model directory, and adapters applied while loading.

BASE's files -> each weight + scale * B A, tensor by tensor -> DST (written beside it, then renamed)
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from plait.places import atomic_directory

if TYPE_CHECKING:
    from plait.weights.lora import Adapter

INDEX = "model.safetensors.index.json"


def merge(base: str | Path, adapter: str | Path, dst: str | Path) -> int:
    """Write the model directory `dst`: `base` with the LoRA in the directory `adapter`; the number of weights changed.

    The adapter's names are those of the model directory, or, beside an official checkpoint, the official ones.
    Whole or not at all. Raises ValueError where `dst` exists or adapter and base do not belong together.
    """
    from plait.models import shipped
    from plait.models.auto import is_model_directory
    from plait.weights.lora import read_adapter

    with atomic_directory(dst) as out:
        base = Path(base)
        base = base if base.exists() else shipped(base) or base
        read = read_adapter(adapter)
        if is_model_directory(base):
            _merge_directory(base, read, out)
        else:
            _merge_official(base, read, out)
        _note(out, base, read)
    return len(read.change)


def _merge_directory(base: Path, adapter: Adapter, out: Path) -> None:
    """Copy a model directory, file by file, with the weights of the adapter changed."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    from plait.weights.files import read_checkpoint

    merged = adapter.merged(read_checkpoint(base).state)
    files = _weight_files(base)
    shutil.copytree(base, out, dirs_exist_ok=True, ignore=lambda _, names: [name for name in names if name in files])
    for name in files:
        with safe_open(str(base / name), "pt") as file:
            keys, metadata = list(file.keys()), file.metadata()
        save_file({key: merged[key].contiguous() for key in keys}, str(out / name), metadata)


def _weight_files(base: Path) -> list[str]:
    """Names of the safetensors files of a model directory. Raises ValueError without any."""
    if (base / INDEX).is_file():
        return sorted(set(json.loads((base / INDEX).read_text(encoding="utf-8"))["weight_map"].values()))
    if not (base / "model.safetensors").is_file():
        raise ValueError(f"expected safetensors weights in {base}, got none; convert the checkpoint first")
    return ["model.safetensors"]


def _merge_official(base: Path, adapter: Adapter, out: Path) -> None:
    """Convert an official checkpoint with the adapter merged under official names."""
    from plait.models import auto
    from plait.weights.files import read_checkpoint

    checkpoint = read_checkpoint(base)
    model, processor = auto.from_official(checkpoint, adapter=adapter.path)
    model.save_pretrained(out)
    processor.save_pretrained(out)


def _note(out: Path, base: Path, adapter: Adapter) -> None:
    """Say in the card what was merged."""
    card = out / "README.md"
    before = card.read_text(encoding="utf-8") if card.is_file() else "# A merged model\n"
    line = f"LoRA `{adapter.path.name}` merged into `{base.name}` by `plait merge`.\n"
    card.write_text(f"{before.rstrip()}\n\n{line}", encoding="utf-8")
