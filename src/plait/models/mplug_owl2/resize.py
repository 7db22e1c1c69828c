"""A checkpoint for images of another size, or with another number of queries, that answers nearly as before.

position table: bicubic; queries: the nearest ones; sine tables: stretched to the grid they were trained on
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from plait.models.mplug_owl2.abstractor import stretched
from plait.models.mplug_owl2.loading import assemble
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.nn.positions import resize_absolute


def resized(
    model: MPlugOwl2ForConditionalGeneration, *, image_size: int | None = None, num_queries: int | None = None
) -> MPlugOwl2ForConditionalGeneration:
    """A new model for square images of `image_size` pixels and `num_queries` queries per image.

    Towers without class position store a 16 x 16 table whatever the image size, so only their configuration changes.
    Make a new processor with `MPlugOwl2Processor.from_config`. Raises ValueError for a size that is no multiple of the
    patch.
    """
    config = type(model.config).from_dict(model.config.to_dict())
    vision, reader = config.vision_sizes, config.abstractor_sizes
    side, count = image_size or vision.image_size, num_queries or reader.num_queries
    if side % vision.patch_size or side <= 0 or count <= 0:
        raise ValueError(
            f"expected a positive multiple of {vision.patch_size} pixels and some queries, got {side} and {count}"
        )
    vision = replace(vision, image_size=side)
    config.vision = vars(vision)
    config.abstractor = vars(replace(reader, num_queries=count, query_span=reader.query_span or reader.num_queries))
    state: dict[str, Tensor] = {name: value.detach() for name, value in model.state_dict().items()}
    if config.tie_word_embeddings:
        del state["lm_head.weight"]
    table, queries = "model.vision.position_embedding", "model.abstractor.queries"
    if vision.use_cls_token:
        state[table] = resize_absolute(state[table][0], vision.grid)[None]
    state[queries] = _nearest(state[queries][0], count)[None]
    return assemble(config, state)


def _nearest(rows: Tensor, count: int) -> Tensor:
    """(old, dim) -> (count, dim), the old row nearest to each new centre.

    Learned queries are no smooth curve: a mean of neighbours reads features that the language model never saw, a copy
    reads known ones. Copies differ in their sine position, so that training can part them.
    """
    at = torch.from_numpy(stretched(count, len(rows))).round().long()
    return rows[at.clamp(0, len(rows) - 1)]
