from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from plait.training.logging import read_metrics
from plait.training.parallel import current_world, gather_rows, map_tensors, process_group


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """Two processes with the environment that torchrun sets; what each of them saw."""
    run_dir, port = tmp_path_factory.mktemp("world"), free_port()
    script = Path(__file__).with_name("tiny_run.py")
    processes = []
    for rank in range(2):
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        env = {**os.environ, **{name: str(value) for name, value in place.items()}, "OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(script), str(run_dir), "world"]
        processes.append(subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    for process in processes:
        try:
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
        assert process.returncode == 0, errors
    return run_dir, [json.loads((run_dir / f"rank{rank}.json").read_text()) for rank in range(2)]


def test_rows_of_all_processes_are_gathered_without_gradient(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    for rank, seen in enumerate(launched[1]):
        assert seen["gathered"] == [0.0, 0.0, 1.0, 1.0]
        assert seen["offset"] == 2 * rank
        assert not seen["requires_grad"]
        assert seen["mean"] == [0.5, 4.0]


def test_two_processes_equal_one_with_the_whole_batch(
    tiny: ModuleType, launched: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    run_dir, seen = launched
    model = tiny.build(dropout=0.0)
    tiny.run(tmp_path, model, stages=[tiny.pair_stage(tiny.still(tiny.pair_loss))])
    together, alone = (read_metrics(path / "metrics.jsonl") for path in (run_dir / "pairs", tmp_path))
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    assert [row["gradient_norm"] for row in together] == pytest.approx(
        [row["gradient_norm"] for row in alone], rel=1e-4
    )
    for name, value in model.state_dict().items():
        for rank in range(2):
            torch.testing.assert_close(torch.tensor(seen[rank]["weights"][name]), value, atol=1e-6, rtol=1e-4)


def test_ranks_with_different_modalities_go_on_and_stop_together(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [seen["lonely"] for seen in launched[1]] == [[5, 15], [5, 15]]  # rank 1 alone was sent SIGTERM
    assert len(read_metrics(launched[0] / "lonely" / "metrics.jsonl")) == 5


def test_one_process_is_a_world_of_its_own() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    gathered, offset = gather_rows(x)
    assert torch.equal(gathered, x)
    assert (offset, gathered.requires_grad) == (0, False)
    assert current_world().mean([1.5], x.device) == [1.5]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error of a machine without a GPU")
def test_a_missing_gpu_is_one_line() -> None:
    with pytest.raises(ValueError, match="got 'cuda' without a GPU; pass --device cpu"), process_group("cuda"):
        pass


def test_tensors_in_any_nest_are_reached() -> None:
    batch = {"a": torch.ones(1), "b": [torch.ones(1), "text"], "c": (3, {"d": torch.ones(1)})}
    moved = map_tensors(batch, lambda x: x + 1)
    assert [moved["a"].item(), moved["b"][0].item(), moved["c"][1]["d"].item()] == [2, 2, 2]
    assert (moved["b"][1], moved["c"][0]) == ("text", 3)
