"""A writer that is killed at any moment leaves an index that opens, holds every committed row and can go on."""

from __future__ import annotations

import random
import time
from pathlib import Path

import numpy as np
import pytest
import slow_writer
from tiny_embedders import HueModel, HueProcessor, picture

from plait import Embedder, Index

pytest.importorskip("lancedb")

FILES = 40


def kill_while_adding(index: Index, folder: Path, rows: int, seconds: float) -> int:
    """Kill a writer `seconds` after `rows` rows were seen committed; returns how many were seen at last."""
    writer = slow_writer.start(str(index.path), str(folder))
    deadline = time.monotonic() + 300
    while len(index) < rows:
        assert writer.is_alive() and time.monotonic() < deadline
        time.sleep(0.01)
    time.sleep(seconds)
    seen = len(index)
    writer.kill()
    writer.join()
    return seen


def check_kills(tmp_path: Path, kills: int) -> None:
    embedder = Embedder((HueModel(), HueProcessor()))
    rng, whole = random.Random(0), 0
    for round_ in range(kills):
        folder = tmp_path / f"media{round_}"
        folder.mkdir()
        for n in range(FILES):
            picture(folder / f"{n}.png", ("red", "green", "blue")[n % 3], n)
        index = Index.create(tmp_path / f"{round_}.lance", embedder)
        seen = kill_while_adding(index, folder, rng.randrange(0, FILES - 6), rng.random() * 0.03)
        again = Index.open(index.path, embedder)
        assert seen <= len(again) <= FILES
        assert len(again) % slow_writer.COMMIT_ROWS == 0  # a commit is there whole or not at all
        whole += len(again) == FILES
        hits = again.search("red", k=FILES)
        assert len(hits) == len(again)
        if hits:
            expected = embedder.embed([Path(hit.path or "") for hit in hits]) @ embedder.embed(["red"])[0]
            assert np.allclose([hit.score for hit in hits], expected, atol=1e-5)
        report = again.add(folder)
        assert report.added + report.unchanged == FILES
        assert len(again) == len({row["path"] for row in again.list()}) == FILES
    assert whole <= kills // 4  # nearly every writer died at work


def test_three_kills_lose_no_committed_row(tmp_path: Path) -> None:
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_lose_no_committed_row(tmp_path: Path) -> None:
    check_kills(tmp_path, 20)
