"""A writer that is killed at any moment leaves an index that opens, holds every committed row and can go on."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from tiny_embedders import HueModel, HueProcessor, picture

from plait import Embedder, Index

pytest.importorskip("lancedb")

FILES = 40

WRITER = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny_embedders import HueModel, HueProcessor
from plait import Embedder, Index

embedder = Embedder((HueModel(delay=0.004), HueProcessor()), batch_size=1)
print("ready", flush=True)
Index.open(sys.argv[2], embedder).add(sys.argv[3], commit_rows=2, show_progress=False)
"""


def kill_while_adding(index: Index, folder: Path, seconds: float) -> int:
    """Start a writer, kill it `seconds` after its first new row; returns the rows that were seen committed before."""
    here = str(Path(__file__).parent)
    arguments = [sys.executable, "-c", WRITER, here, str(index.path), str(folder)]
    before = len(index)
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as writer:
        deadline = time.monotonic() + 120
        while len(index) == before and writer.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(seconds)
        seen = len(index)
        writer.kill()
    return seen


def check_kills(tmp_path: Path, kills: int) -> None:
    embedder = Embedder((HueModel(), HueProcessor()))
    rng = random.Random(0)
    for round_ in range(kills):
        folder = tmp_path / f"media{round_}"
        folder.mkdir()
        for n in range(FILES):
            picture(folder / f"{n}.png", ("red", "green", "blue")[n % 3], n)
        index = Index.create(tmp_path / f"{round_}.lance", embedder)
        seen = kill_while_adding(index, folder, rng.random() * 0.1)
        assert seen > 0
        again = Index.open(index.path, embedder)
        assert seen <= len(again) <= FILES
        hits = again.search("red", k=FILES)
        assert len(hits) == len(again)
        expected = embedder.embed([Path(hit.path or "") for hit in hits]) @ embedder.embed(["red"])[0]
        assert np.allclose([hit.score for hit in hits], expected, atol=1e-5)
        report = again.add(folder)
        assert report.added + report.unchanged == FILES
        assert len(again) == len({row["path"] for row in again.list()}) == FILES


def test_three_kills_lose_no_committed_row(tmp_path: Path) -> None:
    check_kills(tmp_path, 3)


@pytest.mark.slow
def test_twenty_kills_lose_no_committed_row(tmp_path: Path) -> None:
    check_kills(tmp_path, 20)
