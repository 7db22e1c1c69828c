from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from plait.training import checkpoint
from plait.training.checkpoint import CheckpointStore, Position
from plait.training.optim import AdamW


def trained() -> tuple[nn.Module, AdamW]:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = AdamW([{"params": model.parameters(), "lr_scale": 0.5, "names": ["all"]}], 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.randn(5, 3)).square().mean().backward()
        optimizer.step()
    return model, optimizer


def test_model_buffers_optimizer_and_position_come_back(tmp_path: Path) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path)
    position = Position(1, 2, 12, 3.5, 7)
    store.save(model, optimizer, position)
    other, other_optimizer = trained()
    assert store.latest() == 12
    assert store.position(12) == position
    store.load_model(12, other)
    assert store.load_optimizer(12, other, other_optimizer)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    assert str(other_optimizer.state_dict()) == str(optimizer.state_dict())
    store.save(model, None, Position(2, 0, 13))
    assert not store.load_optimizer(13, other, other_optimizer)


def test_tied_weights_stay_tied(tmp_path: Path) -> None:
    model, store = nn.ModuleList([nn.Linear(3, 3), nn.Linear(3, 3)]), CheckpointStore(tmp_path)
    model[1].weight = model[0].weight
    store.save(model, None, Position(total=1))
    wanted = model[0].weight.detach().clone()
    nn.init.zeros_(model[0].weight)
    store.load_model(1, model)
    assert torch.equal(model[1].weight, wanted)


def test_only_the_last_ones_are_kept(tmp_path: Path) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path, keep_last=2)
    for step in (1, 2, 3, 30):
        store.save(model, optimizer, Position(total=step))
    assert store.steps() == [3, 30]
    with pytest.raises(ValueError, match="keep_last of at least 1, got 0"):
        CheckpointStore(tmp_path, keep_last=0)


def test_an_unfinished_checkpoint_counts_for_nothing(tmp_path: Path) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path)
    assert store.latest() is None
    store.save(model, optimizer, Position(total=4))
    (store.save(model, optimizer, Position(total=8)) / "COMPLETE").unlink()
    (tmp_path / ".writing-step-00000009").mkdir()
    assert store.latest() == 4
    store.save(model, optimizer, Position(total=9))
    assert not list(tmp_path.glob(".writing-*"))


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_checkpoint_is_an_error(tmp_path: Path, damage: str) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path)
    path = store.save(model, optimizer, Position(total=4)) / "optimizer-00000-of-00001.safetensors"
    if damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-1])
    said = r"expected \d+ bytes in .*optimizer-00000-of-00001.safetensors, got .*; remove .*step-00000004"
    with pytest.raises(ValueError, match=said):
        store.latest()


def test_a_full_disk_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path, keep_last=1)
    store.save(model, optimizer, Position(total=4))

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync", full)
        with pytest.raises(OSError, match=r"expected to write a checkpoint in .*No space left.*are intact"):
            store.save(model, optimizer, Position(total=8))
    assert (store.latest(), [path.name for path in tmp_path.iterdir()]) == (4, ["step-00000004"])


def test_another_model_is_refused(tmp_path: Path) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path)
    store.save(model, optimizer, Position(total=4))
    with pytest.raises(ValueError, match="to hold this model, got other tensors"):
        store.load_model(4, nn.Linear(3, 4))


def test_the_best_is_kept_beside_the_last_ones(tmp_path: Path) -> None:
    (model, optimizer), store = trained(), CheckpointStore(tmp_path, keep_last=2)
    for step, score in ((1, 3.0), (2, 0.5), (3, 2.0), (4, 0.9), (5, 1.0)):
        store.save(model, optimizer, Position(total=step, score=score))
    assert store.steps() == [2, 4, 5]
    store.save(model, optimizer, Position(total=6, score=0.1))
    assert store.steps() == [5, 6]
