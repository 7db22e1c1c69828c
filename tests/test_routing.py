"""Routes and ways: every token passes the weights of its modality, and nothing else changes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from plait.routing import PerModality, Route, partition

WAYS = {"text": ("text",), "visual": ("image", "video"), "audio": ("audio",)}
MODALITIES = ("text", "image", "video", "audio")
OUT = 5


def make(ways=WAYS) -> PerModality:
    torch.manual_seed(0)
    return PerModality(lambda: nn.Linear(6, OUT), ways)


def select_by_mask(module: PerModality, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
    """The slow definition: every way on all tokens, then the one that owns each token."""
    out = torch.zeros(*x.shape[:2], OUT)
    for i, modality in enumerate(MODALITIES):
        out = torch.where((ids == i)[..., None], module.of(modality)(x), out)
    return out


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 9), st.integers(0, 2**31), st.booleans())
def test_interleaved_tokens_get_what_selecting_by_mask_gives(batch, seq, seed, training):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, 4, (batch, seq), generator=g)
    x = torch.randn(batch, seq, 6, generator=g)
    module = make().train(training)
    out = module(x, Route.interleaved(ids))
    torch.testing.assert_close(out, select_by_mask(module, x, ids))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 5), min_size=4, max_size=4), st.booleans())
def test_segments_get_what_selecting_by_mask_gives(lengths, training):
    if not sum(lengths):
        return
    ids = torch.repeat_interleave(torch.arange(4), torch.tensor(lengths)).expand(3, -1)
    x = torch.randn(3, sum(lengths), 6, generator=torch.Generator().manual_seed(1))
    module = make().train(training)
    out = module(x, Route.segments(dict(zip(MODALITIES, lengths))))
    torch.testing.assert_close(out, select_by_mask(module, x, ids))


@pytest.mark.parametrize("interleaved", [False, True])
def test_gradients_are_those_of_selecting_by_mask(interleaved):
    ids = (
        torch.tensor([[0, 0, 1, 1, 3]]).expand(2, -1)
        if not interleaved
        else torch.tensor([[3, 0, 1, 0, 1], [1, 1, 0, 3, 0]])
    )
    route = Route.interleaved(ids) if interleaved else Route.segments({"text": 2, "image": 2, "audio": 1})
    x = torch.randn(2, 5, 6, requires_grad=True)
    module = make()
    weight = torch.randn(2, 5, 5)
    expected = torch.autograd.grad((select_by_mask(module, x, ids) * weight).sum(), [x, *module.parameters()])
    got = torch.autograd.grad((module(x, route) * weight).sum(), [x, *module.parameters()])
    for a, b in zip(got, expected):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("interleaved", [False, True])
def test_absent_modality_gets_zero_gradient_in_training(interleaved):
    module = make().train()
    route = (
        Route.interleaved(torch.zeros(2, 3, dtype=torch.long))
        if interleaved
        else Route.segments({"text": 3}, listed=MODALITIES)
    )
    module(torch.randn(2, 3, 6), route).sum().backward()
    gradients = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    assert gradients.keys() == dict(module.named_parameters()).keys()
    assert gradients["audio.weight"].abs().max() == 0
    assert gradients["text.weight"].abs().max() > 0


def test_modalities_of_one_way_run_in_one_call():
    calls = []
    module = make()
    module["visual"].register_forward_hook(lambda *_: calls.append(1))
    module.eval()(torch.randn(1, 5, 6), Route.segments({"text": 1, "image": 2, "video": 2}))
    assert len(calls) == 1


def test_one_shared_way_equals_the_bare_module():
    module = make(partition(MODALITIES, shared=True))
    x = torch.randn(2, 4, 6)
    torch.testing.assert_close(module(x, Route.segments({"text": 1, "audio": 3})), module["shared"](x))


@pytest.mark.parametrize("interleaved", [False, True])
def test_compiles_into_one_graph(interleaved):
    module = make().eval()
    route = (
        Route.interleaved(torch.tensor([[0, 1, 1, 3]]))
        if interleaved
        else Route.segments({"text": 1, "image": 2, "audio": 1})
    )
    x = torch.randn(1, 4, 6)
    compiled = torch.compile(lambda t: module(t, route), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), module(x, route))


def test_state_dict_keys_carry_the_way():
    assert "visual.weight" in make().state_dict()


def test_a_modality_without_a_way_is_named():
    module = make({"text": ("text",)})
    with pytest.raises(ValueError, match="got 'audio'"):
        module(torch.randn(1, 2, 6), Route.segments({"text": 1, "audio": 1}))


def test_a_modality_in_two_ways_is_refused():
    with pytest.raises(ValueError, match="every modality in one way"):
        make({"a": ("text",), "b": ("text", "image")})


def test_ids_out_of_range_are_refused():
    with pytest.raises(ValueError, match="modality ids in"):
        Route.interleaved(torch.tensor([[0, 7]]))


def test_the_inverse_puts_tokens_back():
    ids = torch.tensor([[2, 0, 1, 0, 3, 1, 2]])
    route = Route.interleaved(ids)
    assert torch.equal(ids.flatten()[route.order][route.inverse], ids.flatten())
    assert route.order.tolist() != route.inverse.tolist()
