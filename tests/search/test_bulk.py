"""Several processes fill one index: blocks are made once, and who is killed loses and doubles no row."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_embedders import picture, save_clip

from plait import Embedder, Index
from plait.cli import main
from plait.errors import UsageError
from plait.search import bulk
from plait.search.bulk import add_with, name_of
from plait.search.ledger import AddReport

pytest.importorskip("lancedb")

FILES = 24


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos").mkdir()
    for n in range(FILES):
        picture(tmp_path / "photos" / f"{n}.png", ("red", "green", "blue")[n % 3], n)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no picture")
    return tmp_path / "photos"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    return Index.create(tmp_path / "i", Embedder(save_clip(tmp_path / "clip")))


def whole(index: Index) -> bool:
    """Whether every file has one row."""
    paths = [row["path"] for row in index.list()]
    return len(paths) == len(set(paths)) == FILES


def test_ranks_share_the_blocks_and_the_first_commits(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 5)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    assert add_with(index.path, folder, "torchrun") == AddReport()
    made = list((index.path / "bulk").rglob("*.arrow"))
    assert len(made) == 2 and len(index) == 0
    before = {place: place.stat().st_mtime_ns for place in made}
    add_with(index.path, folder, "torchrun")  # what is made is not made again
    assert {place: place.stat().st_mtime_ns for place in made} == before
    monkeypatch.setenv("RANK", "0")
    report = add_with(index.path, folder, "torchrun")
    assert (report.added, len(report.skipped), whole(index)) == (FILES, 1, True)
    assert list((index.path / "bulk").rglob("*.arrow")) == []
    alone = Index.create(index.path.with_name("alone"), index.embedder)
    alone.add(folder, show_progress=False)
    wanted = {row["id"]: row for row in alone.list()}
    assert {row["id"]: row for row in index.list()} == wanted
    monkeypatch.setenv("WORLD_SIZE", "1")
    (folder / "0.png").rename(folder / "moved.png")
    picture(folder / "1.png", "blue", 99)
    again = add_with(index.path, folder, "torchrun")
    assert (again.added, again.replaced, again.unchanged, whole(index)) == (0, 2, FILES - 2, True)


def test_a_committer_that_dies_goes_on(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "BLOCK", 5)
    monkeypatch.setattr(bulk, "_COMMITTED", 2)
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setenv("RANK", "0")
    real, calls = bulk._upsert, []

    def dies(index: Index, rows: Any) -> None:
        real(index, rows)
        calls.append(1)
        if len(calls) == 2:  # rows are written, their blocks not yet deleted
            raise KeyboardInterrupt

    monkeypatch.setattr(bulk, "_upsert", dies)
    with pytest.raises(KeyboardInterrupt):
        add_with(index.path, folder, "torchrun")
    assert 0 < len(index) < FILES
    report = add_with(index.path, folder, "torchrun")
    assert report.added + report.unchanged == FILES and whole(index)


def test_what_no_worker_can_take_is_said(index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    with pytest.raises(UsageError, match="start it by torchrun"):
        add_with(index.path, folder, "torchrun")
    odd: Any = "dask"
    with pytest.raises(UsageError, match="ray, torchrun"):
        add_with(index.path, folder, odd)
    assert main(["index", "add", str(index.path), str(folder), "--engine", "dask"]) == 2
    assert name_of([{"path": "a", "stamp": [1, 2]}]) != name_of([{"path": "a", "stamp": [1, 3]}])


def workers_of_ray() -> list[int]:
    """Processes of Ray's actors that embed; Ray names a process by what it runs."""
    found = []
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            name = place.read_bytes().decode(errors="replace")
            if name.startswith("ray::") and "MapBatches(Embeds)" in name:
                found.append(int(place.parent.name))
    return found


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_killed_worker_of_ray_loses_and_doubles_no_row(
    index: Index, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray", reason="needs the extra ray")
    pytest.importorskip("ray.data", reason="needs the extra ray")
    monkeypatch.setattr(bulk, "BLOCK", 1)
    killed: list[int] = []

    def kill_one() -> None:
        while not list((index.path / "bulk").rglob("*.arrow")):
            time.sleep(0.005)
        killed.extend(workers_of_ray()[:1])
        for process in killed:
            os.kill(process, signal.SIGKILL)

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        killer = threading.Thread(target=kill_one, daemon=True)
        killer.start()
        report = add_with(index.path, folder, "ray", workers=2)
        killer.join(5)
    finally:
        ray.shutdown()
    assert len(killed) == 1
    assert (report.added, len(report.skipped), whole(index)) == (FILES, 1, True)


RANK = """
import os, signal, sys
from plait.search import bulk
bulk.BLOCK = 2
made, is_last = [], sys.argv.pop() == "die"
if os.environ["RANK"] == "1" and is_last:
    write = bulk.write_block
    def dies(*given):
        write(*given)
        made.append(1)
        if len(made) == 2:
            os.kill(os.getpid(), signal.SIGKILL)
    bulk.write_block = dies
from plait.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_killed_rank_of_torchrun_loses_and_doubles_no_row(index: Index, folder: Path, tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    command = [
        sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", "0",
        str(tmp_path / "rank.py"), "index", "add", str(index.path), str(folder), "--engine", "torchrun", "--json",
    ]  # fmt: skip
    first = subprocess.run([*command, "die"], capture_output=True, text=True, check=False, timeout=300)
    assert first.returncode != 0
    assert len(index) == 0 and list((index.path / "bulk").rglob("*.arrow"))
    second = subprocess.run([*command, "live"], capture_output=True, text=True, check=False, timeout=300)
    assert second.returncode == 0, second.stderr[-2000:]
    told = json.loads(second.stdout[second.stdout.index("{") : second.stdout.rindex("}") + 1])
    assert told["added"] == FILES and whole(index)
