"""Mixtures keep their weights, budgets are never exceeded, and both are functions of seed and step."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.mixture import Mixture, shares_of
from plait.data.order import Budgeted, Grouped, Shuffled, Spread, rows_of_step
from plait.data.reader import Reader, Reading


class Numbers:
    """A source of `count` numbers."""

    def __init__(self, count: int, name: str = "n") -> None:
        self.count, self.name = count, name

    def __len__(self) -> int:
        return self.count

    def rows(self, seed: int, step: int, batch_size: int) -> Any:
        return rows_of_step(self.count, batch_size, seed, step)

    def load(self, rows: Any, rng: Any) -> dict[str, Any]:
        return {"rows": list(rows), "of": self.name}

    def names(self, rows: Any) -> list[str]:
        return [f"{self.name}{row}" for row in rows]


def mixture(**weights: float) -> Mixture:
    sources = {name: Numbers(10 * (i + 1), name) for i, name in enumerate(weights)}
    return Mixture(sources, weights)


def test_a_step_has_the_batch_of_one_task() -> None:
    mixed, rng = mixture(text=1, image=2, audio=1), np.random.default_rng(0)
    seen = Counter()
    for step in range(40):
        rows = mixed.rows(3, step, 5)
        batch = mixed.load(rows, rng)
        assert batch["task"] == batch["of"] and mixed.names(rows) == [f"{batch['of']}{r}" for r in batch["rows"]]
        seen[batch["task"]] += 1
    assert seen == {"text": 10, "image": 20, "audio": 10}


def test_every_source_goes_through_its_own_epochs() -> None:
    mixed, rng = mixture(a=1, b=3), np.random.default_rng(0)
    own: dict[str, list[list[int]]] = {"a": [], "b": []}
    for step in range(32):
        batch = mixed.load(mixed.rows(1, step, 5), rng)
        own[batch["task"]].append(batch["rows"])
    for name, count in (("a", 10), ("b", 20)):
        wanted = [rows_of_step(count, 5, 1, turn).tolist() for turn in range(len(own[name]))]
        assert own[name] == wanted


def test_the_order_of_turns_is_a_function_of_seed_and_step() -> None:
    turns = [[mixture(a=1, b=1.5).turn(seed, step)[0] for step in range(50)] for seed in (0, 0, 1)]
    assert turns[0] == turns[1] != turns[2]


@settings(max_examples=40, deadline=None)
@given(weights=st.lists(st.floats(0.05, 1), min_size=1, max_size=5))
def test_shares_are_close_to_the_weights(weights: list[float]) -> None:
    shares = np.array(shares_of(weights))
    assert shares.min() >= 1 and shares.sum() <= 1005
    np.testing.assert_allclose(shares / shares.sum(), np.array(weights) / sum(weights), rtol=0.02, atol=0.001)


def test_sources_take_turns_in_order_where_that_is_asked_for() -> None:
    mixed = Mixture({"a": Numbers(10, "a"), "b": Numbers(20, "b")}, {"a": 1, "b": 2}, turns="in order", named=False)
    seen = [mixed.load(mixed.rows(0, step, 5), np.random.default_rng(0)) for step in range(6)]
    assert [batch["of"] for batch in seen] == list("abbabb") and all("task" not in batch for batch in seen)
    wanted = [rows_of_step(20, 5, 0, turn).tolist() for turn in range(4)]
    assert [batch["rows"] for batch in seen if batch["of"] == "b"] == wanted


def test_wrong_mixtures_are_one_line() -> None:
    for weights in ({"a": 1.0}, {"a": 1.0, "b": 0.0}, {"a": 1.0, "c": 1.0}):
        with pytest.raises(ValueError, match="expected a weight above 0 for each of a, b"):
            Mixture({"a": Numbers(5), "b": Numbers(5)}, weights)
    with pytest.raises(ValueError, match="expected at least one source"):
        Mixture({})


@settings(max_examples=40, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=8, max_size=80),
    unit=st.sampled_from([1, 2, 4]),
    slack=st.integers(0, 200),
    seed=st.integers(0, 9),
)
def test_no_batch_exceeds_its_budget_and_none_repeats_a_sample(
    lengths: list[int], unit: int, slack: int, seed: int
) -> None:
    budget = max(lengths) * unit + slack
    source = Budgeted(lengths, budget, unit)
    steps = len(source) // unit
    for epoch in range(2):
        seen: list[int] = []
        for step in range(epoch * steps, (epoch + 1) * steps):
            rows = source.rows(seed, step, unit)
            assert len(rows) % unit == 0 and len(rows) * max(lengths[row] for row in rows) <= budget
            assert rows == source.rows(seed, step, unit)
            seen += rows
        assert len(seen) == len(set(seen)) and len(seen) > len(lengths) - unit


def test_short_samples_share_larger_batches_and_epochs_differ() -> None:
    lengths = [2] * 40 + [20] * 8
    source = Budgeted(lengths, 80, 4)
    sizes = Counter(len(source.rows(0, step, 4)) for step in range(len(source) // 4))
    assert sizes == {4: 2, 40: 1}
    first, second = ([sorted(source.rows(0, step, 4)) for step in range(e * 3, e * 3 + 3)] for e in (0, 1))
    assert sorted(map(len, first)) == sorted(map(len, second))
    assert {tuple(b) for b in first if len(b) == 4} != {tuple(b) for b in second if len(b) == 4}


def test_a_budget_that_the_longest_do_not_fit_is_one_line() -> None:
    with pytest.raises(ValueError, match="expected a budget of at least 2 x 9 for the longest sample, got 17"):
        Budgeted([1, 9, 2], 17, 2)
    with pytest.raises(ValueError, match="expected lengths of at least 3 samples, got 2"):
        Budgeted([1, 9], 17, 3)
    with pytest.raises(ValueError, match="expected the batch_size 2 that the budget was made for, got 4"):
        Budgeted([1, 9, 2], 18, 2).rows(0, 0, 4)


def test_what_the_sources_of_a_mixture_skip_is_listed() -> None:
    def decode(sample: int, rng: Any) -> int:
        if sample == 1:
            raise ValueError("expected another number, got 1")
        return sample

    reader = Reader([0, 1, 2, 3], lambda parts, rng: {"parts": parts}, decode, reading=Reading(0, "skip"))
    mixed = Mixture({"a": reader})
    assert mixed.load([0, 1], np.random.default_rng(0))["parts"] == [0, 2]
    assert mixed.bad == ["1: expected another number, got 1"]


@pytest.mark.parametrize("order", [Shuffled(40), Grouped(np.arange(1, 41)), Budgeted(np.full(40, 7), 56, 8)])
def test_every_epoch_has_an_order_of_its_own(order: Any) -> None:
    epochs = [[tuple(order.rows(3, 5 * epoch + step, 8)) for step in range(5)] for epoch in range(3)]
    assert all(sorted(row for batch in batches for row in batch) == list(range(40)) for batches in epochs)
    assert len({tuple(batches) for batches in epochs}) == 3


def test_no_concept_comes_twice_in_a_batch_that_all_fit_into() -> None:
    concepts = np.repeat(np.arange(12), np.arange(1, 13))
    order = Spread(concepts)
    for step in range(40):
        assert len({int(concepts[row]) for row in order.rows(0, step, 9)}) == 9
        counts = Counter(int(concepts[row]) for row in order.rows(0, step, 30))
        assert len(counts) == 12 and max(counts.values()) - min(counts.values()) <= 1
