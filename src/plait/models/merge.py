"""`plait merge BASE ADAPTER DST`: weights and a LoRA become one model directory.

BASE's files -> each weight + scale * B A, tensor by tensor -> DST (written beside it, then renamed)
"""

from __future__ import annotations

import shutil
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from plait.places import atomic_directory, check_apart
from plait.reading import read_json
from plait.report.tables import markdown_code

if TYPE_CHECKING:
    pass

INDEX = "model.safetensors.index.json"


def merge(base: str | Path, adapter: str | Path, dst: str | Path) -> int:
    """Write a model directory with a LoRA merged into its weights.

    Args:
        base: a model directory, the name of a shipped model, or an official checkpoint.
        adapter: directory of the LoRA. Its names are those of the model directory, or, beside an official
            checkpoint, the official ones.
        dst: does not exist yet; appears whole or not at all.

    Returns:
        The number of weights changed.

    Raises:
        ValueError: where `dst` exists, LoRA and base do not belong together, or numbers are not finite.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    from plait.models import by_name
    from plait.models.auto import from_official, is_model_directory
    from plait.weights.files import check_finite, check_finite_weights, read_checkpoint
    from plait.weights.lora import read_adapter

    base, dst = Path(base), Path(dst)
    base = base if base.exists() else by_name(base) or base
    check_apart(base, dst)  # the files of the one are copied into the other
    with atomic_directory(dst) as out:
        read = read_adapter(adapter)
        checkpoint = read_checkpoint(base)
        if is_model_directory(base):
            if (base / INDEX).is_file():
                index = read_json(base / INDEX)
                files = sorted(set(index["weight_map"].values()))
            elif (base / "model.safetensors").is_file():
                files = ["model.safetensors"]
            else:
                raise ValueError(f"expected safetensors weights in {base}, got none; convert the checkpoint first")
            # lazily: one tensor at a time is read and changed
            merged = read.merged(checkpoint.state, _tied_in(base))
            # configuration, processor and card come along; the weights are written anew below
            shutil.copytree(base, out, dirs_exist_ok=True, ignore=lambda _, names: [n for n in names if n in files])
            for name in files:  # the same tensors in the same files as before
                with safe_open(str(base / name), "pt") as file:
                    keys, metadata = list(file.keys()), file.metadata()
                whole = {key: check_finite(merged[key].contiguous(), f"{key} of {base}") for key in keys}
                save_file(whole, str(out / name), metadata)
        else:
            model, processor = from_official(checkpoint, adapter=read.path)
            check_finite_weights(model, base)
            model.save_pretrained(out)
            processor.save_pretrained(out)
        card = out / "README.md"
        before = card.read_text(encoding="utf-8") if card.is_file() else "# A merged model\n"
        line = f"LoRA {markdown_code(read.path.name)} merged into {markdown_code(base.name)} by `plait merge`.\n"
        card.write_text(f"{before.rstrip()}\n\n{line}", encoding="utf-8")
    return len(read.change)


def _tied_in(base: Path) -> list[set[str]]:
    """Groups of names that are one weight in the model of a directory, whose file holds one of them."""
    import torch
    from transformers import AutoConfig

    from plait.models.auto import FAMILIES
    from plait.nn.contract import tied_names

    config = AutoConfig.from_pretrained(base, trust_remote_code=False)
    if not config.get_text_config().tie_word_embeddings and not config.tie_word_embeddings:
        return []
    with torch.device("meta"):
        model = getattr(import_module(FAMILIES[config.model_type]), (config.architectures or [""])[0])(config)
        model.tie_weights()
    return tied_names(model)
