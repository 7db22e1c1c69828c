from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from plait.errors import UsageError
from plait.training.checkpoint import Pieces
from plait.training.logging import read_metrics
from plait.training.parallel import current_world, gather_rows, map_tensors, process_group


@pytest.fixture(scope="module")
def launched(tiny: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """One torchrun launch of two processes; what each of them saw."""
    run_dir = tmp_path_factory.mktemp("world")
    stage = tiny.pair_stage(tiny.still(tiny.pair_loss), after_step=(tiny.stops_at(4),))
    tiny.run(run_dir / "one-to-two", tiny.build_deep(), stages=[stage])
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command = [*torchrun, str(Path(__file__).with_name("tiny_run.py")), str(run_dir), "world"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=240)
    assert done.returncode == 0, done.stderr[-4000:]
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


def test_one_process_plans_without_the_others(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [seen.get("planned", 0) > 0 for seen in launched[1]] == [True, False]


def test_ranks_with_different_modalities_go_on_and_stop_together(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    assert [seen["lonely"] for seen in launched[1]] == [[5, 15], [5, 15]]  # rank 1 alone was sent SIGTERM
    assert len(read_metrics(launched[0] / "lonely" / "metrics.jsonl")) == 5


@pytest.mark.parametrize(
    ("name", "loss", "stages"),
    [
        ("fsdp-pairs", "pair_loss", [{}]),
        ("fsdp-accumulated", "mixed_loss", [{}]),
        ("fsdp-mixed", "mixed_loss", [{}]),
        ("ddp-mixed", "mixed_loss", [{}]),
        ("fsdp-frozen", "pair_loss", [{}, {"trainable": ("audio.*", "layers.*.audio.*", "scale")}]),
        ("two-to-one", "pair_loss", [{}]),
        ("one-to-two", "pair_loss", [{}]),
    ],
)
def test_two_processes_equal_one_in_any_way_of_sharing(
    tiny: ModuleType,
    launched: tuple[Path, list[dict[str, Any]]],
    tmp_path: Path,
    name: str,
    loss: str,
    stages: list[dict[str, Any]],
) -> None:
    """Sharded or not, with other modalities in every process, and from a checkpoint that another world wrote."""
    model, objective = tiny.build_deep(), tiny.still(getattr(tiny, loss))
    tiny.run(tmp_path, model, stages=[tiny.pair_stage(objective, **changes) for changes in stages])
    weights = launched[1][0][name]
    if name == "two-to-one":
        resumed = tiny.build_deep()
        tiny.run(launched[0] / name, resumed, stages=[tiny.pair_stage(objective)])
        weights = {key: value.tolist() for key, value in resumed.state_dict().items()}
    together, alone = (read_metrics(path / "metrics.jsonl") for path in (launched[0] / name, tmp_path))
    assert [row["loss"] for row in together] == pytest.approx([row["loss"] for row in alone], rel=1e-5)
    norms = [[row["gradient_norm"] for row in rows] for rows in (together, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)
    for key, value in model.state_dict().items():
        torch.testing.assert_close(torch.tensor(weights[key]), value, atol=1e-6, rtol=1e-4)


def test_a_recipe_is_spread_from_one_process_and_saved_whole(
    tiny: ModuleType, launched: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    """Process 1 builds shapes alone, and the model that is saved is another than the one that was spread."""
    model = tiny.build_deep()
    tiny.run(tmp_path, model, stages=[tiny.pair_stage(tiny.still(tiny.pair_loss))])
    assert [seen["recipe"] for seen in launched[1]] == ["cpu", "meta"]
    saved = json.loads((launched[0] / "recipe" / "model" / "weights.json").read_text())
    assert saved.keys() == model.state_dict().keys()
    for key, value in model.state_dict().items():
        torch.testing.assert_close(torch.tensor(saved[key]), value, atol=1e-6, rtol=1e-4)


def test_nodes_that_share_no_directory_are_told_so(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    for seen in launched[1]:
        assert "on a file system that all nodes share, got 1 of 2 processes that see it" in seen["unshared"]


def test_a_sharded_checkpoint_has_a_file_per_process(launched: tuple[Path, list[dict[str, Any]]]) -> None:
    names = {path.name for path in (launched[0] / "fsdp-pairs" / "checkpoints" / "step-00000004").iterdir()}
    assert {f"{kind}-0000{r}-of-00002.safetensors" for kind in ("model", "optimizer") for r in (0, 1)} <= names
    counts = []
    for name in ("fsdp-pairs", "one-to-two"):
        with Pieces(launched[0] / name / "checkpoints" / "step-00000004", "model") as pieces:
            counts.append({key: tuple(pieces.read(key).shape) for key in pieces.shapes})
        stored = [load_file(path) for path in (launched[0] / name).glob("checkpoints/step-00000004/model-*")]
        counts.append(sum(value.numel() for file in stored for value in file.values()))
    assert counts[:2] == counts[2:]  # parts of the whole, none stored twice


def test_one_peace_goes_on_when_one_process_has_text_and_the_other_images(
    tiny: ModuleType, launched: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    tiny.run(tmp_path, tiny.one_peace(), stages=[tiny.pair_stage(tiny.text_or_image_loss, steps=3)])
    alone = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    for name in ("one-peace-fsdp", "one-peace-ddp"):
        together = [row["loss"] for row in read_metrics(launched[0] / name / "metrics.jsonl")]
        assert together == pytest.approx(alone, rel=1e-4), name


def test_one_process_is_a_world_of_its_own() -> None:
    x = torch.randn(3, 2, requires_grad=True)
    gathered, offset = gather_rows(x)
    assert torch.equal(gathered, x)
    assert (offset, gathered.requires_grad) == (0, False)
    assert current_world().mean([1.5], x.device) == [1.5]


def test_a_device_that_torch_does_not_know_is_one_line() -> None:
    with pytest.raises(UsageError, match="got 'abacus'; pass one of them"), process_group("abacus"):
        pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="the error of a machine without a GPU")
def test_a_missing_gpu_is_one_line() -> None:
    with pytest.raises(ValueError, match="got 'cuda' without a GPU; pass --device cpu"), process_group("cuda"):
        pass


def test_tensors_in_any_nest_are_reached() -> None:
    batch = {"a": torch.ones(1), "b": [torch.ones(1), "text"], "c": (3, {"d": torch.ones(1)})}
    moved = map_tensors(batch, lambda x: x + 1)
    assert [moved["a"].item(), moved["b"][0].item(), moved["c"][1]["d"].item()] == [2, 2, 2]
    assert (moved["b"][1], moved["c"][0]) == ("text", 3)
