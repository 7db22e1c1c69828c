"""Universal layers: one stack called for text and for vision, or one each at equal parameters."""

from __future__ import annotations

import pytest
import torch

from plait.nn.attention import attention_function
from plait.nn.encoder import Sharing, UniversalLayers, apart_mlp_dim

ATTEND = attention_function("sdpa")


def layers(count: int = 2, *, sharing: Sharing = "shared", **changes) -> UniversalLayers:
    torch.manual_seed(0)
    return UniversalLayers(8, 2, 20, count, num_latents=3, sharing=sharing, **changes).eval()


@torch.no_grad()
def test_vision_passes_through_latents_and_back() -> None:
    stack, x, hidden = layers(3), torch.randn(2, 5, 8), []
    out = stack.see(x, ATTEND, hidden)
    assert [tuple(state.shape) for state in hidden] == [(2, 3, 8), (2, 3, 8), (2, 5, 8)]
    assert stack.norm is not None
    assert torch.allclose(out, stack.norm(x + hidden[-1]))


@torch.no_grad()
def test_a_single_layer_reads_the_raw_latents() -> None:
    stack, x, hidden = layers(1), torch.randn(2, 5, 8), []
    stack.see(x, ATTEND, hidden)
    only = stack.layers("visual")[0]
    assert only.cross_attn is not None and stack.latents is not None
    keys = only.cross_attn.project(stack.latents.expand(2, -1, -1))
    assert torch.allclose(hidden[0], only(x, ATTEND, other=keys))


def test_both_modalities_train_the_same_layers_when_shared() -> None:
    text, vision = torch.randn(2, 4, 8), torch.randn(2, 5, 8)
    for sharing, expected in (("shared", True), ("apart", False)):
        stack = layers(sharing=sharing)
        stack.read(text, None, ATTEND).sum().backward()
        trained = {name for name, p in stack.named_parameters() if p.grad is not None}
        stack.zero_grad()
        stack.see(vision, ATTEND).sum().backward()
        also = {name for name, p in stack.named_parameters() if p.grad is not None}
        assert bool(trained & also) is expected
        assert not any("cross_attn" in name for name in trained)


def test_apart_costs_what_shared_costs() -> None:
    dim, mlp_dim = 64, 256
    width = apart_mlp_dim(dim, mlp_dim)
    assert 2 * (4 * dim * dim + 2 * dim * width) == 4 * dim * dim + 2 * dim * mlp_dim
    with pytest.raises(ValueError, match="expected mlp_dim over 128 for layers apart"):
        apart_mlp_dim(64, 100)


def test_a_reader_that_is_not_there_is_an_error() -> None:
    stack = layers(readers=("text",))
    assert stack.latents is None
    assert not any("cross_attn" in name for name, _ in stack.named_parameters())
    with pytest.raises(ValueError, match="expected universal layers for visual, got some without"):
        stack.see(torch.zeros(1, 2, 8), ATTEND)
