from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from plait.training.optim import AdamW, LossScale, clip_gradients, parameter_groups


def tiny() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


def test_matches_torch_where_eps_does_not_matter() -> None:
    ours, theirs = tiny(), tiny()
    train(ours, AdamW(ours.parameters(), 1e-2, eps=1e-12, weight_decay=0.1), 5)
    theirs_optimizer = torch.optim.AdamW(theirs.parameters(), 1e-2, betas=(0.9, 0.98), eps=1e-12, weight_decay=0.1)
    train(theirs, theirs_optimizer, 5)
    torch.testing.assert_close(list(ours.parameters()), list(theirs.parameters()), atol=1e-6, rtol=1e-4)


def test_eps_meets_the_uncorrected_variance() -> None:
    p = nn.Parameter(torch.tensor([0.0]))
    p.grad = torch.tensor([1e-3])
    AdamW([p], 1.0, betas=(0.9, 0.98), eps=1e-3, weight_decay=0.0).step()
    m, v = 0.1 * 1e-3, 0.02 * 1e-6
    assert p.item() == pytest.approx(-math.sqrt(0.02) / 0.1 * m / (math.sqrt(v) + 1e-3), rel=1e-5)


def test_a_reloaded_optimiser_continues_exactly() -> None:
    model = tiny()
    optimizer = AdamW(model.parameters(), 1e-2)
    train(model, optimizer, 2)
    twin = copy.deepcopy(model)
    again = AdamW(twin.parameters(), 1e-2)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(model, optimizer, 2)
    train(twin, again, 2)
    for a, b in zip(model.parameters(), twin.parameters(), strict=True):
        assert torch.equal(a, b)


def test_parameters_without_gradient_stay_and_may_join_later() -> None:
    a, b = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))
    optimizer = AdamW([a, b], 0.1)
    a.grad = torch.ones(2)
    optimizer.step()
    assert torch.equal(b, torch.ones(2))
    b.grad = torch.ones(2)
    optimizer.step()
    assert (optimizer.state[a]["step"], optimizer.state[b]["step"]) == (2, 1)
    assert b[0] < 1


def test_bad_settings_are_an_error() -> None:
    with pytest.raises(ValueError, match="betas in"):
        AdamW(tiny().parameters(), betas=(0.9, 1.0))


def test_groups_hold_every_trainable_parameter_once_with_its_decay_and_scale() -> None:
    model = tiny()
    model[0].bias.requires_grad_(False)
    depth = {"0": 0, "1": 1, "2": 3}
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=0.05,
        layer_id=lambda name: depth[name[0]],
        num_layers=2,
        layer_decay=0.9,
    )
    found = {n: (g["weight_decay"], round(g["lr_scale"], 6)) for g in groups for n in g["names"]}
    assert found == {
        "0.weight": (0.05, 0.729),
        "1.weight": (0.0, 0.81),
        "1.bias": (0.0, 0.81),
        "2.weight": (0.05, 1.0),
        "2.bias": (0.0, 1.0),
    }
    assert sum(len(g["params"]) for g in groups) == 5
    AdamW(groups, 1e-3)


def test_exemptions_replace_the_default_rule() -> None:
    groups = parameter_groups(tiny().named_parameters(), weight_decay=0.1, no_decay=lambda name, p: name == "0.weight")
    assert [g["names"] for g in groups if g["weight_decay"] == 0] == [["0.weight"]]


def test_a_loss_scale_halves_on_overflow_and_doubles_after_good_steps() -> None:
    scale = LossScale(True, value=8.0, interval=3)
    assert not scale.takes(torch.tensor(float("inf"))) and scale.value == 4.0
    assert [scale.takes(torch.tensor(1.0)) for _ in range(3)] == [True] * 3 and scale.value == 8.0
    for _ in range(40):
        taken = scale.takes(torch.tensor(float("nan")))
    assert taken and scale.value == scale.smallest  # nothing is forgiven any more: the loop says what is wrong
    assert LossScale(False).factor == 1.0 and LossScale(False).takes(torch.tensor(float("nan")))


def test_gradients_are_unscaled_before_they_are_clipped() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.tensor([3.0, 4.0]) * 16
    assert float(clip_gradients([parameter], 1.0, 16.0)) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([0.6, 0.8]), atol=1e-5, rtol=1e-5)
    parameter.grad = torch.tensor([3.0, 4.0]) * 16
    assert float(clip_gradients([parameter], 0.0, 16.0)) == pytest.approx(5.0)
    torch.testing.assert_close(parameter.grad, torch.tensor([3.0, 4.0]))


def test_layers_nearer_to_the_input_learn_more_slowly() -> None:
    model = nn.ModuleList(nn.Linear(2, 2) for _ in range(3))
    depth = {"0": 0, "1": 1, "2": 3}
    groups = parameter_groups(
        model.named_parameters(), weight_decay=0.1, layer_id=lambda name: depth[name[0]], num_layers=2, layer_decay=0.5
    )
    scales = {name: group["lr_scale"] for group in groups for name in group["names"]}
    assert scales == {f"{n}.{kind}": 0.5 ** (3 - depth[n]) for n in "012" for kind in ("weight", "bias")}
