"""`plait upcycle LLAMA_DIR DST`: any model of the Llama family becomes an mPLUG-Owl2 with a way per modality.

LLAMA_DIR -> norms, keys and values copied into each way -> DST, whose text logits equal the source's
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from plait.errors import UsageError


def upcycle(
    src: str | Path,
    dst: str | Path,
    *,
    vision: str | Path | None = None,
    image_size: int | None = None,
    num_queries: int = 64,
    small_vision: bool = False,
    **options: Any,
) -> int:
    """Write the upcycled model directory `dst`, whole or not at all; returns its number of parameters.

    options: of `plait.models.mplug_owl2.upcycle.upcycle`. Raises ValueError where `dst` exists or `src` is no Llama.
    """
    dst = Path(dst)
    if os.path.lexists(dst):
        raise UsageError(f"expected a directory that does not exist yet, got {dst}; remove it or choose another")
    from plait.models.mplug_owl2.config import AbstractorConfig, VisionConfig
    from plait.models.mplug_owl2.upcycle import upcycle as build
    from plait.nn.vit import clip_tower

    small = {"dim": 192, "num_heads": 6, "num_layers": 4, "mlp_dim": 768, "patch_size": 16}
    if vision is None:
        fields: dict[str, Any] = {**small, "image_size": image_size or 128} if small_vision else {}
        fields |= {"image_size": image_size} if image_size else {}
        tower: Any = VisionConfig(**fields)
        sizes = tower
    else:
        tower, sizes = vision, VisionConfig(**clip_tower(Path(vision), image_size)[0])
    heads = max(1, sizes.dim // 64)
    reader = AbstractorConfig(
        num_queries=num_queries,
        num_heads=heads if sizes.dim % heads == 0 else 1,
        num_layers=2 if small_vision else 6,
        mlp_dim=sizes.dim * 8 // 3 // 64 * 64 + 64,
        grid_size=sizes.grid,
    )
    model, processor = build(src, vision=tower, abstractor=reader, image_size=image_size, **options)
    partial = dst.with_name(f".{dst.name}.{os.getpid()}.partial")
    try:
        dst.parent.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        partial.rename(dst)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return sum(p.numel() for p in model.parameters())
