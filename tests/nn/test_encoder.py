"""The encoder that ONE-PEACE's modalities share."""

import pytest
import torch

from plait.nn.attention import attention_function
from plait.nn.encoder import RoutedEncoder
from plait.routing import Route

WAYS = {"text": ("text",)}


def encoder(layers: int = 3) -> RoutedEncoder:
    torch.manual_seed(0)
    return RoutedEncoder(8, 2, 12, layers, mlp_ways=WAYS, norm_ways=WAYS).eval()


def run(model, x, biases, **options):
    return model(x, Route.segments({"text": x.shape[1]}), biases, None, attention_function("eager"), **options)


def test_a_layer_takes_its_own_bias_or_that_of_all():
    model, x = encoder(), torch.randn(1, 4, 8)
    bias = torch.randn(1, 2, 4, 4)
    one = run(model, x, [bias])
    torch.testing.assert_close(one, run(model, x, [bias] * 3))
    zero = torch.zeros_like(bias)
    torch.testing.assert_close(run(model, x, []), run(model, x, [zero]))
    assert not torch.allclose(run(model, x, [bias, zero, zero]), run(model, x, [zero, zero, bias]))
    for wrong in ([bias] * 2, [bias] * 4):
        with pytest.raises(ValueError, match=f"expected 0, 1 or 3 attention biases, got {len(wrong)}"):
            run(model, x, wrong)


def test_outputs_of_all_layers_are_kept_where_asked():
    model, x = encoder(), torch.randn(1, 4, 8)
    hidden: list[torch.Tensor] = []
    out = run(model, x, [], hidden=hidden)
    assert len(hidden) == 3 and torch.equal(out, model.norm(hidden[-1], Route.segments({"text": 4})))
    assert torch.equal(run(model, x, []), out)
