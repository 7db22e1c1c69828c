"""Retrieval metrics against brute force, stored values and the properties they promise."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

from plait.metrics import retrieval


def planted(queries: int, gallery: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    targets = rng.random((queries, gallery)) < 0.3
    targets[np.arange(queries), rng.integers(0, gallery, queries)] = True
    return rng.standard_normal((queries, gallery)), targets


def test_ranks_equal_a_search_through_the_sorted_gallery() -> None:
    similarity, targets = planted(40, 11, seed=0)
    expected = [1 + next(i for i, item in enumerate(np.argsort(-row)) if right[item])
                for row, right in zip(similarity, targets)]  # fmt: skip
    assert retrieval.ranks(similarity, targets).tolist() == expected
    for k in (1, 3, 11):
        assert retrieval.recall_at_k(similarity, targets, k) == pytest.approx(np.mean(np.array(expected) <= k))
    assert retrieval.median_rank(similarity, targets) == np.median(expected)


def test_ties_count_against_the_model() -> None:
    assert retrieval.ranks(np.zeros((1, 4)), np.array([[False, True, False, False]])).tolist() == [4]
    assert retrieval.ranks(np.zeros((1, 3)), np.array([[True, True, False]])).tolist() == [2]


def test_order_of_the_gallery_does_not_matter() -> None:
    similarity, targets = planted(20, 9, seed=1)
    order = np.random.default_rng(2).permutation(9)
    np.testing.assert_array_equal(
        retrieval.ranks(similarity, targets), retrieval.ranks(similarity[:, order], targets[:, order])
    )


@pytest.mark.parametrize(("right", "gallery", "k"), [(1, 5, 1), (1, 5, 3), (2, 6, 2), (3, 6, 5), (0, 4, 2), (2, 4, 9)])
def test_chance_equals_a_walk_through_all_orders(right: int, gallery: int, k: int) -> None:
    found = [min(order[:right], default=gallery) < k for order in permutations(range(gallery))]
    assert retrieval.chance_at_k(right, gallery, k) == pytest.approx(np.mean(found))


def test_random_similarities_land_on_the_expected_chance() -> None:
    rng = np.random.default_rng(3)
    _, targets = planted(4000, 12, seed=3)
    for k in (1, 5):
        chance = retrieval.expected_chance(targets, k)
        measured = retrieval.recall_at_k(rng.standard_normal(targets.shape), targets, k)
        assert abs(measured - chance) < 4 * np.sqrt(chance * (1 - chance) / len(targets))


def test_every_class_counts_once() -> None:
    similarity = np.array([[1.0, 0.0]] * 9 + [[1.0, 0.0]])
    targets = np.array([[True, False]] * 9 + [[False, True]])
    classes = ["many"] * 9 + ["one"]
    assert retrieval.recall_at_k(similarity, targets, 1) == pytest.approx(0.9)
    assert retrieval.class_balanced_recall(similarity, targets, 1, classes) == pytest.approx(0.5)
    assert retrieval.class_means(retrieval.hits_at_k(similarity, targets, 1), classes) == {"many": 1.0, "one": 0.0}
    assert retrieval.expected_chance(targets, 1, classes) == pytest.approx(0.5)


def test_bootstrap_gives_the_stored_interval_for_stored_draws() -> None:
    """64-bit LCG draws, so that the interval is defined without numpy's generator; expected values by hand."""
    values, state, draws = [0.0, 1.0, 1.0, 4.0], 7, []
    for _ in range(50 * 4):
        state = (6364136223846793005 * state + 1442695040888963407) % 2**64
        draws.append((state >> 32) * 4 >> 32)
    indices = np.array(draws).reshape(50, 4)
    means = sorted(sum(values[i] for i in row) / 4 for row in indices)
    position = 0.05 * 49
    low = means[2] + (position - 2) * (means[3] - means[2])
    assert retrieval.bootstrap_interval(values, level=0.9, indices=indices)[0] == pytest.approx(low)


def test_bootstrap_covers_the_mean_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(4)
    covered = 0
    for trial in range(200):
        low, high = retrieval.bootstrap_interval(rng.random(60) < 0.4, resamples=300, seed=trial)
        covered += low <= 0.4 <= high
    assert 0.88 <= covered / 200 <= 0.99


def test_a_constant_has_an_interval_of_no_width() -> None:
    assert retrieval.bootstrap_interval([0.25] * 7) == (0.25, 0.25)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: retrieval.ranks(np.zeros((2, 3)), np.ones((3, 2))), "one shape"),
        (lambda: retrieval.ranks(np.zeros((1, 2)), np.zeros((1, 2))), "at least one right item"),
        (lambda: retrieval.ranks(np.full((1, 2), np.nan), np.ones((1, 2))), "NaN"),
        (lambda: retrieval.hits_at_k(np.zeros((1, 2)), np.ones((1, 2)), 0), "k of at least 1"),
        (lambda: retrieval.chance_at_k(3, 2, 1), "num_right <= gallery"),
        (lambda: retrieval.class_means(np.zeros(2), ["a"]), "one class for each"),
        (lambda: retrieval.bootstrap_interval([]), "at least one value"),
    ],
)
def test_wrong_arguments_are_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
