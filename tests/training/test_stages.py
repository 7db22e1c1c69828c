from __future__ import annotations

from typing import Any

import pytest
from torch import nn

from plait.training.stages import Stage, freeze


def model() -> nn.Module:
    towers = nn.ModuleDict({"image": nn.Linear(2, 2), "audio": nn.Linear(2, 2)})
    return nn.ModuleDict({"shared": nn.Linear(2, 2), "towers": towers})


def test_only_what_matches_trains() -> None:
    net = model()
    trainable, frozen = freeze(net, ("*.audio.*", r"re:^shared\.b"))
    assert trainable == ["shared.bias", "towers.audio.weight", "towers.audio.bias"]
    assert frozen == ["shared.weight", "towers.image.weight", "towers.image.bias"]
    assert [name for name, p in net.named_parameters() if p.requires_grad] == trainable


def test_no_pattern_trains_everything_again() -> None:
    net = model()
    freeze(net, ("*.audio.*",))
    trainable, frozen = freeze(net, ())
    assert (len(trainable), frozen) == (6, [])
    assert all(p.requires_grad for p in net.parameters())


def test_a_pattern_that_matches_nothing_names_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"'towers.audoi.weight' to match a parameter, got none.*'towers.audio.weight'"
    ):
        freeze(model(), ("towers.audoi.weight",))


def stage(**changes: Any) -> Stage:
    return Stage(**{"name": "s", "objective": None, "batches": None, "batch_size": 8, "steps": 50, **changes})


def test_length_in_epochs_and_warmup_as_fraction() -> None:
    assert stage().total_steps(1000) == 50
    assert stage(steps=None, epochs=2.5).total_steps(103) == 30
    assert [stage(warmup=value).warmup_steps(50) for value in (0, 0.1, 7)] == [0, 5, 7]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"steps": None}, "expected steps or epochs for stage 's', got None and None"),
        ({"epochs": 1}, "expected steps or epochs"),
        ({"batch_size": 0}, "expected a positive batch_size for stage 's', got 0"),
        ({"layer_decay": 0.9}, "expected layer_id beside layer_decay"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stage(**changes)
