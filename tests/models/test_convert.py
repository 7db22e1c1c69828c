"""`plait convert`: an official file becomes a model directory with the same weights, or nothing is left behind."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from plait.cli import main
from plait.models.auto import load
from plait.models.convert import convert
from plait.weights.files import CheckpointError, fingerprint

GOLDEN = Path(__file__).parents[1] / "goldens" / "one_peace" / "embeddings_val"
VERSION = "encoder_wrapper.fusion_model.version"


@pytest.fixture(scope="module")
def official(tmp_path_factory) -> Path:
    """A small file in the container of the published ones, with an object that a weights-only load refuses."""
    path = tmp_path_factory.mktemp("official") / "tiny.pt"
    state = {f"module.{key}": value for key, value in load_file(GOLDEN / "weights.safetensors").items()}
    config = json.loads((GOLDEN / "config.json").read_text())
    torch.save({"args": argparse.Namespace(x=1), "cfg": {"model": config}, "model": state}, path)
    return path


def weights_and_vector(path: Path) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    model, _ = load(path)
    with torch.no_grad():
        return model.state_dict(), model.eval().get_text_features(torch.tensor([[5, 6, 2]]))


def test_the_directory_holds_the_same_weights_and_says_where_it_comes_from(official, tmp_path):
    done = convert(official, tmp_path / "made")
    (weights, vector), (expected, wanted) = weights_and_vector(tmp_path / "made"), weights_and_vector(official)
    assert set(weights) == set(expected)
    assert all(torch.equal(weights[key], expected[key]) for key in expected)
    assert torch.allclose(vector, wanted, rtol=0, atol=1e-6)  # kernels round by the alignment of the weights
    assert done.model_type == "one_peace"
    assert done.sources == {"tiny.pt": fingerprint(official)}
    assert done.dropped == {VERSION: "a constant layout version, 3.0"}
    card = (tmp_path / "made" / "README.md").read_text()
    assert fingerprint(official) in card
    assert f"`{VERSION}`" in card
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made"]


def test_one_branch_lists_what_was_left_out(official, tmp_path, capsys):
    assert (
        main(["convert", str(official), str(tmp_path / "made"), "--branch", "image", "--dtype", "bf16", "--json"]) == 0
    )
    done = json.loads(capsys.readouterr().out)
    assert done["dtype"] == "bfloat16"
    assert done["dropped"]["text_proj.weight"] == "belongs to a branch or head that was not kept"
    assert not any("image" in key for key in done["dropped"])
    model, _ = load(tmp_path / "made")
    assert tuple(model.modalities) == ("image",)


def test_what_exists_is_never_overwritten(official, tmp_path, capsys):
    (tmp_path / "made").mkdir()
    assert main(["convert", str(official), str(tmp_path / "made")]) == 2
    assert "expected a directory that does not exist yet" in capsys.readouterr().err
    assert list((tmp_path / "made").iterdir()) == []


def test_a_failure_while_writing_leaves_nothing(official, tmp_path, monkeypatch):
    def fail(done):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("plait.models.convert.card", fail)
    with pytest.raises(OSError, match="No space left"):
        convert(official, tmp_path / "made")
    assert list(tmp_path.iterdir()) == []


def test_files_that_are_no_checkpoint_of_a_known_family_are_refused(tmp_path, capsys):
    (tmp_path / "a.pt").write_bytes(b"not a checkpoint")
    with pytest.raises(CheckpointError):
        convert(tmp_path / "a.pt", tmp_path / "made")
    torch.save({"model": {"stranger.weight": torch.ones(1)}}, tmp_path / "b.pt")
    assert main(["convert", str(tmp_path / "b.pt"), str(tmp_path / "made")]) == 1
    assert "expected an official checkpoint of mplug2, mplug_owl" in capsys.readouterr().err
    assert not (tmp_path / "made").exists()


def test_a_bad_official_config_is_the_commands_fault(official, tmp_path, capsys):
    (tmp_path / "cfg.json").write_text("[1]")
    arguments = ["convert", str(official), str(tmp_path / "made"), "--official-config", str(tmp_path / "cfg.json")]
    assert main(arguments) == 2
    assert "expected an object" in capsys.readouterr().err
