"""BERT's parts: published numbers, caches, shared keys, masks and dropout."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from plait.nn.attention import attention_function
from plait.nn.bert import BertAttention, BertEmbeddings, BertLayer, Cache, KeysValues, LMHead, causal_bias

ATTEND = attention_function("sdpa")


def layer(**changes) -> BertLayer:
    torch.manual_seed(0)
    return BertLayer(8, 2, 12, **changes).eval()


@torch.no_grad()
def test_a_layer_is_that_of_transformers() -> None:
    from transformers import BertConfig
    from transformers.models.bert.modeling_bert import BertLayer as Theirs

    config = BertConfig(
        hidden_size=8, num_attention_heads=2, intermediate_size=12, layer_norm_eps=1e-12, hidden_act="gelu"
    )
    config._attn_implementation = "eager"
    theirs, ours = Theirs(config).eval(), layer()
    parts = {
        "attention.self.query": ours.attn.q_proj, "attention.self.key": ours.attn.k_proj,
        "attention.self.value": ours.attn.v_proj, "attention.output.dense": ours.attn.out_proj,
        "attention.output.LayerNorm": ours.attn.norm, "intermediate.dense": ours.fc1, "output.dense": ours.fc2,
        "output.LayerNorm": ours.mlp_norm,
    }  # fmt: skip
    for name, module in parts.items():
        theirs.get_submodule(name).load_state_dict(module.state_dict())
    x = torch.randn(2, 5, 8)
    out = theirs(x)
    assert torch.allclose(ours(x, ATTEND), out[0] if isinstance(out, tuple) else out, atol=1e-6)


@torch.no_grad()
def test_hidden_keys_are_as_good_as_absent() -> None:
    one, x = layer(), torch.randn(2, 5, 8)
    mask = torch.tensor([[True] * 3 + [False] * 2] * 2)
    assert torch.allclose(one(x, ATTEND, key_mask=mask)[:, :3], one(x[:, :3], ATTEND), atol=1e-6)


@torch.no_grad()
def test_neighbours_share_keys_as_if_they_were_copied() -> None:
    one, x, states = layer(cross=True), torch.randn(6, 4, 8), torch.randn(2, 7, 8)
    mask = torch.tensor([[True] * 7, [True] * 4 + [False] * 3])
    assert one.cross_attn is not None
    shared = one(x, ATTEND, other=one.cross_attn.project(states), other_mask=mask)
    copied = one(
        x, ATTEND, other=one.cross_attn.project(states.repeat_interleave(3, 0)), other_mask=mask.repeat_interleave(3, 0)
    )
    assert torch.allclose(shared, copied, atol=1e-6)
    assert torch.equal(shared, one(x, ATTEND, other=states, other_mask=mask))  # the keys are made inside


@torch.no_grad()
def test_a_cache_gives_what_whole_texts_give() -> None:
    one, x = layer(), torch.randn(3, 6, 8)
    whole = one(x, ATTEND, bias=causal_bias(6, 6, x))
    cache, out = Cache(1, 6), []
    for start, stop in ((0, 2), (2, 3), (3, 6)):
        part = x[:, start:stop]
        own = cache.append(0, one.attn.project(part))
        out.append(one(part, ATTEND, bias=causal_bias(stop - start, stop, x), own=own))
    assert torch.allclose(torch.cat(out, 1), whole, atol=1e-6)
    assert cache.length == 6


def test_a_cache_is_reordered_and_bounded() -> None:
    cache = Cache(2, 3)
    keys = torch.arange(3.0).view(3, 1, 1, 1).expand(3, 1, 2, 1)
    for index in range(2):
        cache.append(index, KeysValues(keys, keys + 10))
    cache.reorder(torch.tensor([2, 2, 0]))
    assert all(held is not None and held.keys[:, 0, 0, 0].tolist() == [2, 2, 0] for held in cache.layers)
    assert all(held is not None and held.values[:, 0, 1, 0].tolist() == [12, 12, 10] for held in cache.layers)
    with pytest.raises(ValueError, match="expected at most 3 positions in the cache, got 4"):
        cache.append(0, KeysValues(keys, keys))


def test_a_single_query_needs_no_causal_bias() -> None:
    x = torch.zeros(1)
    assert causal_bias(1, 4, x) is None
    bias = causal_bias(2, 4, x)
    assert bias is not None
    assert (bias == 0)[0, 0].tolist() == [[True, True, True, False], [True] * 4]


def test_dropout_on_probabilities_acts_in_training_only() -> None:
    torch.manual_seed(0)
    attention = BertAttention(8, 2, attention_dropout=0.5)
    x, mask = torch.randn(2, 5, 8), torch.tensor([[True] * 3 + [False] * 2] * 2)

    def out(values: Tensor) -> Tensor:
        return attention(values, attention.project(values), causal_bias(5, 5, x), mask, ATTEND)

    attention.eval()
    assert torch.equal(out(x), out(x))
    attention.train()
    assert not torch.equal(out(x), out(x))
    changed = x.clone()
    changed[:, 3:] += 1  # hidden keys stay hidden under dropout
    torch.manual_seed(1)
    first = out(x)[:, :3]
    torch.manual_seed(1)
    assert torch.allclose(first, out(changed)[:, :3], atol=1e-6)


def test_embeddings_count_positions_from_the_start_they_are_given() -> None:
    torch.manual_seed(0)
    table = BertEmbeddings(10, 4, 6).eval()
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(table(ids)[:, 2:], table(ids[:, 2:], start=2))
    assert torch.equal(table(ids), table(ids, torch.zeros_like(ids)))
    assert not torch.equal(table(ids), table(ids, torch.ones_like(ids)))
    with pytest.raises(ValueError, match="expected at most 6 tokens, got 7"):
        table(ids, start=4)


def test_wrong_shapes_are_one_line() -> None:
    with pytest.raises(ValueError, match="expected a width divisible by the number of heads, got 9 and 2"):
        BertAttention(9, 2)
    with pytest.raises(ValueError, match="expected a layer with cross-attention"):
        x = torch.zeros(1, 2, 8)
        layer()(x, ATTEND, other=KeysValues(x, x))


def test_the_head_reads_the_table_it_is_given() -> None:
    torch.manual_seed(0)
    head, table = LMHead(4, 7), torch.randn(7, 4, requires_grad=True)
    logits = head(torch.randn(2, 3, 4), table)
    assert logits.shape == (2, 3, 7)
    logits.sum().backward()
    assert table.grad is not None
