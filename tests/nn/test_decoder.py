"""The routed decoder: any partition, any order of tokens, caches, and gradients that exist for every way."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import DynamicCache, StaticCache

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.nn.decoder import ROUTABLE, Pass, RoutedDecoder, eager_attention
from plait.nn.positions import inverse_frequencies, log_n_scale, ntk_alpha, rotary_tables
from plait.routing import PerModality, Route
from plait.types import MODALITIES

TWO = {"text": ("text",), "visual": ("image", "video")}
THREE = {**TWO, "audio": ("audio",)}


def decoder(ways=TWO, routed=("norm", "k", "v"), **options) -> RoutedDecoder:
    built = RoutedDecoder(16, 4, 24, 2, ways, routed, **{"num_kv_heads": 2, **options}).eval()
    for parameter in built.parameters():
        nn.init.normal_(parameter, std=0.5)
    return built


def run_of(seq: int, batch: int, start: int = 0, cache=None) -> Pass:
    cos, sin = rotary_tables(torch.arange(start, start + seq)[None], inverse_frequencies(4, 10000.0), torch.float32)
    visible = torch.ones(seq, start + seq, dtype=torch.bool).tril(start)
    mask = torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]
    return Pass((batch, seq), cos, sin, eager_attention, mask=mask, cache=cache)


def token_by_token(model: RoutedDecoder, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The same decoder without grouping: every position through the copies of its own modality, one at a time."""
    caches = [DynamicCache() for _ in x]
    rows = []
    for row, cache in enumerate(caches):
        steps = [
            model(x[row : row + 1, i : i + 1], Route.only(MODALITIES[ids[row, i]]), run_of(1, 1, i, cache))
            for i in range(x.shape[1])
        ]
        rows.append(torch.cat(steps, dim=1))
    return torch.cat(rows)


@pytest.mark.parametrize("ways", [TWO, THREE, {"words": ("text", "audio"), "visual": ("image", "video")}])
@pytest.mark.parametrize("routed", [("norm", "k", "v"), ROUTABLE, ("mlp",), ()])
def test_interleaved_tokens_equal_one_by_one(ways, routed) -> None:
    model = decoder(ways, routed)
    ids = torch.randint(0, 4 if any("audio" in cell for cell in ways.values()) else 3, (3, 11))
    x = torch.randn(3, 11, 16)
    torch.testing.assert_close(
        model(x, Route.interleaved(ids), run_of(11, 3)), token_by_token(model, x, ids), atol=1e-4, rtol=1e-4
    )


def test_shared_parts_exist_once_and_routed_parts_once_per_way() -> None:
    model = decoder(THREE, ("q", "out"))
    layer = model.layers[0]
    assert isinstance(layer.attn.q_proj, PerModality) and list(layer.attn.q_proj) == ["text", "visual", "audio"]
    assert isinstance(layer.attn.k_proj, nn.Linear) and isinstance(layer.mlp_norm, nn.Module)
    assert "layers.0.attn.q_proj.audio.weight" in model.state_dict()


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected routed parts among norm, k?"):
        decoder(routed=("ffn",))


def test_tokens_without_a_way_are_refused() -> None:
    with pytest.raises(ValueError, match="'audio'; give that modality a way"):
        decoder(TWO)(torch.randn(1, 2, 16), Route.interleaved(torch.tensor([[0, 3]])), run_of(2, 1))


def test_a_text_step_reads_no_other_way() -> None:
    model = decoder()
    for name, parameter in model.named_parameters():
        if ".visual." in name:
            parameter.data.fill_(float("nan"))
    assert model(torch.randn(2, 1, 16), Route.only("text"), run_of(1, 2)).isfinite().all()
    assert (
        model(torch.randn(2, 5, 16), Route.interleaved(torch.zeros(2, 5, dtype=torch.long)), run_of(5, 2))
        .isfinite()
        .all()
    )


@pytest.mark.parametrize("ids", [torch.zeros(2, 5, dtype=torch.long), None])
def test_absent_modality_gets_zero_gradient(ids) -> None:
    model = decoder(THREE).train()
    route = Route.segments({"text": 5}, listed=MODALITIES) if ids is None else Route.interleaved(ids)
    model(torch.randn(2, 5, 16), route, run_of(5, 2)).sum().backward()
    grads = {name: p.grad for name, p in model.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    silent = [name for name in grads if ".visual." in name or ".audio." in name]
    assert silent and all((grads[name] == 0).all() for name in silent)
    assert any((grads[name] != 0).any() for name in grads if ".text." in name)


def test_checkpointing_changes_no_gradient() -> None:
    model, x = decoder().train(), torch.randn(2, 6, 16)
    route, grads = Route.interleaved(torch.randint(0, 2, (2, 6))), []
    for model.gradient_checkpointing in (False, True):
        model.zero_grad()
        model(x, route, run_of(6, 2)).square().sum().backward()
        grads.append([p.grad.clone() for p in model.parameters()])
    for a, b in zip(*grads):
        torch.testing.assert_close(a, b)


def test_a_static_cache_gives_what_a_dynamic_one_gives() -> None:
    model, x = decoder(), torch.randn(2, 4, 16)
    config = MPlugOwl2Config(num_layers=2, num_heads=4, num_kv_heads=2, dim=16, vocab_size=9)
    static, dynamic = StaticCache(config, max_cache_len=4), DynamicCache()
    outs = []
    for cache in (dynamic, static):
        run = run_of(4, 2, 0, cache)
        outs.append(model(x, Route.only("text"), run))
    torch.testing.assert_close(*outs)


@pytest.mark.parametrize(("length", "alpha"), [(1, 1), (16, 1), (17, 3), (32, 3), (33, 7), (64, 7), (65, 15)])
def test_ntk_factor_grows_by_octaves(length: int, alpha: int) -> None:
    assert ntk_alpha(torch.tensor([length]), 16).item() == alpha


def test_log_n_sets_in_behind_the_trained_length() -> None:
    scale = log_n_scale(torch.tensor([[0, 15, 16, 255]]), 16).flatten().tolist()
    assert scale[:2] == [1.0, 1.0]
    assert scale[2] == pytest.approx(1.0218649)
    assert scale[3] == pytest.approx(2.0)
