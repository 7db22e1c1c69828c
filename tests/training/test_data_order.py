from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from plait.data.order import permuted, rows_of_step
from plait.data.reader import Reader, as_it_is
from plait.training.data_order import ahead, step_loader, use_idle_cores


@settings(max_examples=60, deadline=None)
@given(length=st.integers(1, 700), seed=st.integers(0, 2**40), epoch=st.integers(0, 10**6))
def test_every_order_is_a_permutation(length: int, seed: int, epoch: int) -> None:
    assert sorted(permuted(length, np.arange(length), seed, epoch)) == list(range(length))


def test_any_place_can_follow_any_other() -> None:
    """Chi-square of (position, number) over 3000 orders of 8; 49 degrees of freedom, 99.9th percentile 85.4."""
    counts = np.zeros((8, 8))
    for seed in range(3000):
        counts[np.arange(8), permuted(8, np.arange(8), seed, 0)] += 1
    assert ((counts - 375) ** 2 / 375).sum() < 85.4
    assert permuted(50, np.arange(50), 0, 0).tolist() != permuted(50, np.arange(50), 0, 1).tolist()


def test_a_position_is_found_without_the_others() -> None:
    whole = permuted(1000, np.arange(1000), 7, 3)
    assert permuted(1000, np.array([999, 0, 512]), 7, 3).tolist() == whole[[999, 0, 512]].tolist()
    assert 0 <= rows_of_step(10**12, 4, 0, 10**6).min() < 10**12


def test_an_epoch_meets_every_sample_at_most_once() -> None:
    epoch = np.concatenate([rows_of_step(103, 10, 5, step) for step in range(10)])
    following = np.concatenate([rows_of_step(103, 10, 5, step) for step in range(10, 20)])
    assert len(set(epoch.tolist())) == len(set(following.tolist())) == 100
    assert epoch.tolist() != following.tolist()
    with pytest.raises(ValueError, match="at least 10 samples for one batch, got 9"):
        rows_of_step(9, 10, 0, 0)


@pytest.mark.parametrize(("world_size", "accumulation"), [(1, 1), (2, 1), (1, 3), (4, 3), (12, 1)])
def test_the_global_batch_is_the_same_however_it_is_split(world_size: int, accumulation: int) -> None:
    source = Reader([f"s{n}" for n in range(40)], lambda samples, rng: (samples, rng.integers(1 << 60)), as_it_is)
    read, draws = [], []
    for rank in range(world_size):
        load = step_loader(source, (3, 0), batch_size=12, accumulation=accumulation, rank=rank, world_size=world_size)
        rows, parts = load(5)
        for start, (samples, draw) in parts:
            assert start == len(read)
            read += samples
            draws.append(draw)
    assert read == [f"s{n}" for n in rows_of_step(40, 12, 3, 5)]
    assert read == [f"s{n}" for n in rows]
    assert len(set(draws)) == world_size * accumulation


def test_loading_ahead_keeps_the_order_and_the_depth() -> None:
    asked: list[int] = []

    def load(step: int) -> int:
        asked.append(step)
        return step * step

    with ahead(load, range(100), depth=2) as results:
        assert [next(results) for _ in range(10)] == [n * n for n in range(10)]
    assert asked == sorted(asked)
    assert len(asked) <= 12
    with ahead(load, range(4), depth=2) as results:
        assert list(results) == [0, 1, 4, 9]


def test_the_loading_thread_keeps_to_one_core() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with ahead(lambda _: torch.get_num_threads(), range(3), depth=1) as seen:
            assert list(seen) == [1, 1, 1]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_batches_filled_to_a_budget_are_split_over_all_processes() -> None:
    class Filled(Reader):
        def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
            return list(range(batch_size * (step + 1)))

    source = Filled(list(range(40)), lambda samples, rng: samples, as_it_is)
    for step in range(3):
        parts = [step_loader(source, (0, 0), batch_size=4, rank=rank, world_size=2)(step)[1] for rank in range(2)]
        assert [row for part in parts for _, batch in part for row in batch] == list(range(4 * (step + 1)))
    with pytest.raises(ValueError, match="expected batches of a multiple of 4 rows from the source, got 3"):
        source.rows = lambda *_: [1, 2, 3]  # ty: ignore[invalid-assignment]
        step_loader(source, (0, 0), batch_size=4, world_size=2)(0)


@pytest.mark.parametrize(
    ("load", "own", "threads"), [(0.0, 0, 4), (1.2, 0, 3), (3.9, 2, 2), (9.0, 1, 1), (2.0, 4, 4), (4.0, 4, 4)]
)
def test_busy_cores_are_left_to_others(monkeypatch: pytest.MonkeyPatch, load: float, own: int, threads: int) -> None:
    before = torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("plait.training.data_order._threads_at_first", lambda: 4)
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(4)), raising=False)
    monkeypatch.setattr("os.getloadavg", lambda: (load, 0.0, 0.0), raising=False)
    try:
        use_idle_cores(own)
        assert torch.get_num_threads() == threads
        monkeypatch.setattr("plait.training.data_order._threads_at_first", lambda: 2)
        use_idle_cores(own)
        assert torch.get_num_threads() == min(threads, 2)  # never more than torch itself would take
        torch.set_num_threads(2)
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        use_idle_cores(own)
        assert torch.get_num_threads() == 2  # what a person says holds
    finally:
        torch.set_num_threads(before)
