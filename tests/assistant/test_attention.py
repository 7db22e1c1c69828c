"""Where an answer looked: weights known by construction, and a model that stays as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from plait import Assistant, Sample
from plait.nn.attention import eager_attention, sdpa_attention, watching
from plait.nn.bert import BertAttention

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"
OWLS = pytest.mark.parametrize("name", ["mplug_owl", "mplug_owl2"])


def picture(seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (40, 60, 3), dtype=np.uint8))


def silence(*layers: nn.Linear) -> None:
    for layer in layers:
        nn.init.zeros_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def pointing(attention: Any, direction: Tensor) -> None:
    """All heads ask for `direction`, which keys carry as they are."""
    silence(attention.q_proj, attention.k_proj)
    nn.init.eye_(attention.k_proj.weight)
    attention.q_proj.bias.data.copy_(direction)


def owl_parts(model: Any) -> tuple[Any, Any, list[Any]]:
    """The module that has tower and abstractor, the abstractor, and query projections of the language model."""
    inner = getattr(model, "model", model)
    asks = [m for key, m in model.named_modules() if key.endswith("q_proj") and ".layers." in key]
    asks = [m for m in asks if not any(m is other for other in [*inner.abstractor.modules(), *inner.vision.modules()])]
    return inner, inner.abstractor, asks


@pytest.mark.parametrize("attend", [eager_attention, sdpa_attention])
def test_watched_weights_are_those_that_are_computed_and_outputs_stay_bit_equal(attend: Any) -> None:
    torch.manual_seed(0)
    module = BertAttention(8, 2).eval()
    x, to, mask = torch.randn(2, 3, 8), torch.randn(2, 5, 8), torch.tensor([[True] * 5, [True] * 3 + [False] * 2])
    plain = module(x, module.project(to), None, mask, attend)
    with watching([module]) as seen:
        assert torch.equal(module(x, module.project(to), None, mask, attend=attend), plain)
    module(x, module.project(to), None, mask, attend)
    (weights,) = seen  # the hook is gone
    q, k = (p(t).unflatten(-1, (2, 4)).transpose(1, 2) for p, t in ((module.q_proj, x), (module.k_proj, to)))
    scores = (q @ k.transpose(-1, -2) / 2).masked_fill(~mask[:, None, None], -torch.inf)
    torch.testing.assert_close(weights, scores.softmax(-1).mean(1))


def test_a_decoder_that_asks_for_nothing_looks_everywhere_alike() -> None:
    assistant = Assistant(SAVED / "mplug2_captions")
    for layer in assistant.model.model.decoder.layers:
        silence(layer.cross_attn.q_proj)
    grid = assistant.model.config.vision_sizes.grid
    still = assistant.attention(picture(), "a dog")
    film = assistant.attention((picture(1), picture(2)), "a dog")
    asked = assistant.attention(picture(), "a dog", "what is this?")
    words = assistant.processor.tokenize(["what is this?"])["input_ids"].shape[1]
    assert len(still.pieces) == len(still.maps) and still.pieces == assistant.processor.tokenizer.tokenize("a dog")
    for looked, frames, others in ((still, 1, 1), (film, 2, 1), (asked, 1, 1 + words)):
        assert looked.maps.shape[1:] == (frames, grid, grid)
        np.testing.assert_allclose(looked.maps, 1 / (frames * grid**2 + others), rtol=1e-5)


def test_a_decoder_that_asks_for_one_patch_is_seen_to_look_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assistant = Assistant(SAVED / "mplug2_captions")
    network, grid = assistant.model.model, assistant.model.config.vision_sizes.grid
    states = torch.zeros(1, 1 + 2 * grid**2, assistant.model.config.dim)
    heads = network.decoder.layers[0].cross_attn.num_heads
    direction = torch.zeros(assistant.model.config.dim)
    direction[:: assistant.model.config.dim // heads] = 30.0  # a channel of every head
    states[0, 1 + grid**2 + grid + 2] = direction  # frame 1, row 1, column 2
    monkeypatch.setattr(network, "see", lambda *_: states)
    for layer in network.decoder.layers:
        pointing(layer.cross_attn, direction)
    maps = assistant.attention((picture(1), picture(2)), "a dog").maps
    expected = np.zeros_like(maps)
    expected[:, 1, 1, 2] = 1
    np.testing.assert_allclose(maps, expected, atol=1e-6)


@OWLS
def test_owls_compose_what_words_read_with_what_queries_read(name: str) -> None:
    assistant = Assistant(SAVED / name)
    inner, abstractor, asks = owl_parts(assistant.model)
    assert asks
    for layer in [*asks, *(layer.q_proj for layer in abstractor.layers)]:
        silence(layer)
    image, text, question = picture(), "a dog", "what is this?"
    looked = assistant.attention(image, text, question)
    skills: Any = assistant.skills
    rows = skills.answered("image", image, skills.asked("image", image, question), [text])
    first = int((rows["labels"][0] != -100).nonzero()[0])
    queries, cells = abstractor.sizes.num_queries, looked.maps[0].size
    for nth, one in enumerate(looked.maps):
        # uniform over the positions so far, of which the queries stand for patches, uniform as well
        positions = cells + (inner.vision.cls_embedding is not None)
        np.testing.assert_allclose(one, queries / (first + nth) / (queries + positions), rtol=1e-4)


@OWLS
def test_the_patch_that_queries_read_is_the_one_that_an_owl_looked_at(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assistant = Assistant(SAVED / name)
    inner, abstractor, _ = owl_parts(assistant.model)
    grid = inner.config.vision_sizes.grid
    dim = abstractor.queries.shape[-1]
    has_cls = inner.vision.cls_embedding is not None
    features = torch.zeros(1, has_cls + grid**2, dim)
    features[0, has_cls + 2 * grid + 1] = torch.eye(dim)[0]  # row 2, column 1
    monkeypatch.setattr(inner.vision, "forward", lambda *_: features)
    if hasattr(abstractor, "tables"):
        none = torch.zeros(abstractor.sizes.num_queries, dim), torch.zeros(features.shape[1], dim)
        monkeypatch.setattr(abstractor, "tables", lambda _: none)
    for layer in abstractor.layers:
        for norm in (layer.query_norm, layer.key_norm):
            nn.init.zeros_(norm.bias)
        nn.init.zeros_(layer.query_norm.weight)
        nn.init.ones_(layer.key_norm.weight)
        pointing(layer, 100 * layer.key_norm(features[0, has_cls + 2 * grid + 1]).detach())
    maps = assistant.attention(picture(), "a dog").maps
    assert maps.shape[1:] == (1, grid, grid) and (maps[:, 0, 2, 1] > 0).all()
    np.testing.assert_allclose(maps.sum((1, 2, 3)), maps[:, 0, 2, 1], rtol=1e-4)


@pytest.mark.parametrize("name", ["mplug2_captions", "mplug_owl", "mplug_owl2"])
def test_looking_changes_neither_model_nor_answers(name: str) -> None:
    assistant = Assistant(SAVED / name)
    before = {key: value.clone() for key, value in assistant.model.state_dict().items()}
    chosen, hooks = assistant.model.config._attn_implementation, _hooks(assistant.model)
    said = assistant.answer(picture(), "what is this?", max_new_tokens=6)
    first = assistant.attention(picture(), "a dog", "what is this?")
    second = assistant.attention(picture(), "a dog", "what is this?")
    np.testing.assert_array_equal(first.maps, second.maps)
    assert assistant.answer(picture(), "what is this?", max_new_tokens=6) == said
    assert assistant.model.config._attn_implementation == chosen and _hooks(assistant.model) == hooks
    assert all(torch.equal(value, before[key]) for key, value in assistant.model.state_dict().items())


def _hooks(model: nn.Module) -> int:
    return sum(len(module._forward_pre_hooks) for module in model.modules())


@pytest.mark.parametrize("name", ["mplug2_captions", "mplug_owl", "mplug_owl2"])
def test_what_cannot_be_looked_at_is_one_line(name: str) -> None:
    assistant = Assistant(SAVED / name)
    with pytest.raises(ValueError, match="a text with words"):
        assistant.attention(picture(), "")
    with pytest.raises(ValueError, match="image"):
        assistant.attention(Sample(id="a", text="words"), "a dog")
    with pytest.raises(ValueError, match="a model that can caption"):
        Assistant(SAVED / "mplug2_grounding").attention(picture(), "a dog")
