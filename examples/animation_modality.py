"""Films with time: frames through the model's own picture stem, places of a picture and moments of time in front.

Run it: plait train one_peace.add_modality --plugin examples/animation_modality.py --set name=animation --set like=image
--set data=DIR
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import plait
from plait.nn.adapters import Adapted, ImageAdapter
from plait.processing.images import CLIP_MEAN, CLIP_STD

FRAMES = 4


@plait.modality("animation", suffixes=(".npy",))
class Animation(nn.Module):
    """Frames (batch, frames, 3, side, side) -> [cls ; patches of all frames] + place + moment."""

    projector = ("time",)  # what trains of it under train=projector, beside the projection

    def __init__(self, config: Any) -> None:
        super().__init__()
        sizes = {"bucket_size": config.image_bucket_size, "rel_bucket_size": config.image_rel_bucket_size}
        self.picture: Any = ImageAdapter(config.dim, config.num_heads, stem=config.image_stem, **sizes)
        self.time = nn.Parameter(torch.randn(FRAMES, 1, config.dim) * 0.1)

    def begin_from(self, model: Any) -> None:
        """Take over what the pictures' adapter learned."""
        self.picture = copy.deepcopy(model.adapters["image"])

    @staticmethod
    def load(value: Any) -> Tensor:
        """A `.npy` file, or an array: (frames, side, side, 3) uint8, of which four are taken evenly."""
        clip = np.load(value, allow_pickle=False) if not hasattr(value, "__array__") else value
        chosen = np.linspace(0, len(clip) - 1, FRAMES).round().astype(int)
        pixels = torch.as_tensor(np.asarray(clip)[chosen]).permute(0, 3, 1, 2).float() / 255
        mean, std = (torch.tensor(values)[:, None, None] for values in (CLIP_MEAN, CLIP_STD))
        return (pixels - mean) / std

    @staticmethod
    def process(clips: Any) -> dict[str, Tensor]:
        return {"frames": torch.stack(list(clips))}

    def forward(self, frames: Tensor) -> Adapted:
        batch = len(frames)
        x = self.picture(frames.flatten(0, 1)).x.unflatten(0, (batch, FRAMES))  # (batch, frames, 1 + patches, dim)
        moments = (x[:, :, 1:] + self.time).flatten(1, 2)
        return Adapted(torch.cat([x[:, 0, :1], moments], dim=1), None)
