"""All attention functions compute the same thing, with any combination of bias and key mask."""

import pytest
import torch
from transformers import AttentionInterface

from plait.nn.attention import (
    SelfAttention,
    attention_function,
    eager_attention,
    lengths_to_mask,
    sdpa_attention,
)


def inputs(batch=3, heads=2, seq=7, dim=8):
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(batch, heads, seq, dim, generator=g) for _ in range(3))
    mask = torch.arange(seq) < torch.tensor([seq, seq - 2, 1])[:, None]
    return q, k, v, torch.randn(1, heads, seq, seq, generator=g), mask


@pytest.mark.parametrize("with_bias", ["none", "shared", "per row"])
@pytest.mark.parametrize("with_mask", [False, True])
def test_sdpa_equals_eager(with_bias, with_mask):
    q, k, v, bias, mask = inputs()
    bias = {"none": None, "shared": bias, "per row": bias * torch.tensor([1.0, 2, 3])[:, None, None, None]}[with_bias]
    args = (q, k, v, bias, mask if with_mask else None)
    torch.testing.assert_close(sdpa_attention(*args), eager_attention(*args), atol=1e-5, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the compiler
def test_flex_equals_eager():
    q, k, v, bias, mask = inputs()
    want = eager_attention(q, k, v, bias, mask)
    torch.testing.assert_close(attention_function("flex_attention")(q, k, v, bias, mask), want, atol=1e-5, rtol=1e-4)


def test_masked_keys_are_never_attended_to():
    q, k, v, bias, mask = inputs()
    for attend in (eager_attention, sdpa_attention):
        before = attend(q, k, v, bias, mask)
        noise = torch.where(mask[:, None, :, None], 0.0, 1e3)
        torch.testing.assert_close(attend(q, k + noise, v + noise, bias, mask), before)


@pytest.mark.parametrize("name", ["eager", "sdpa"])
def test_bias_gets_the_same_gradient(name):
    q, k, v, bias, mask = inputs()
    want = torch.autograd.grad(eager_attention(q, k, v, bias.requires_grad_(), mask).square().sum(), bias)[0]
    got = torch.autograd.grad(attention_function(name)(q, k, v, bias, mask).square().sum(), bias)[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=1e-4)


def test_functions_registered_with_transformers_are_found():
    seen = []

    def mine(module, query, key, value, attention_mask, scaling=None, **_):
        seen.append(attention_mask.shape)
        scores = query @ key.transpose(-1, -2) * scaling + attention_mask
        return (scores.softmax(-1) @ value).transpose(1, 2), None

    AttentionInterface.register("mine", mine)
    q, k, v, bias, mask = inputs()
    torch.testing.assert_close(attention_function("mine")(q, k, v, bias, mask), eager_attention(q, k, v, bias, mask))
    assert seen


@pytest.mark.parametrize("name", ["nonsense", "flash_attention_2"])
def test_attention_that_cannot_work_is_refused_in_one_line(name):
    with pytest.raises(ValueError, match=f"got '{name}'"):
        attention_function(name)


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="divisible"):
        SelfAttention(10, 3)


def test_lengths_say_which_positions_are_read():
    expected = torch.tensor([[True, True, False], [False, False, False], [True, True, True]])
    assert torch.equal(lengths_to_mask(torch.tensor([2, 0, 3]), 3), expected)
