"""A way per modality: text has a feed-forward network of its own, image and video share one.

Run it: python examples/ways.py
"""

from __future__ import annotations

import torch
from torch import nn

from plait.routing import PerModality, Route

torch.manual_seed(0)
mlp = PerModality(lambda: nn.Linear(8, 8), {"text": ("text",), "visual": ("image", "video")})
print("weights:", *mlp.state_dict())

# Contiguous segments: 3 text tokens, then 5 image tokens, the same in both rows.
x = torch.randn(2, 8, 8)
route = Route.segments({"text": 3, "image": 5})
out = mlp(x, route)
assert torch.allclose(out[:, :3], mlp["text"](x[:, :3]), atol=1e-6)
assert torch.allclose(out[:, 3:], mlp["visual"](x[:, 3:]), atol=1e-6)

# Interleaved tokens: any order, given by the index of each token's modality.
ids = torch.tensor([[0, 1, 1, 0, 2, 2, 0, 1], [1, 1, 0, 0, 0, 2, 1, 1]])
mixed = mlp(x, Route.interleaved(ids, modalities=("text", "image", "video")))
assert torch.allclose(mixed[0, 4], mlp["visual"](x[0, 4]), atol=1e-6)

# A modality that is absent has zero gradients, not none: every process issues the same collectives.
mlp(x, Route.segments({"text": 8}, listed=("image",))).sum().backward()
print("gradient of the absent way:", mlp["visual"].weight.grad.abs().sum().item())
