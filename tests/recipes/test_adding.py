"""A modality of the user's own learns beside a frozen model, in full and lightly."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import plait
from plait import modalities
from plait.models.one_peace import OnePeaceConfig, OnePeaceModel, OnePeaceProcessor
from plait.recipes import find_recipe
from plait.training.run import run_recipe
from plait.training.stages import Options
from plait_studies.midi import write_notes

EXAMPLES = Path(__file__).parents[2] / "examples"
SIZES = {
    "dim": 32, "num_heads": 2, "num_layers": 2, "mlp_dim": 64, "text_bucket_size": 8, "image_bucket_size": 2,
    "image_rel_bucket_size": 2, "audio_bucket_size": 16, "audio_conv_spec": ((8, 10, 5), (8, 3, 2), (8, 2, 2)),
    "audio_position_groups": 4, "layer_scale": 0.3, "vocab_size": 50264, "init_std": 0.2,
}  # fmt: skip


@pytest.fixture
def added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Both examples, used for one test."""
    monkeypatch.setattr(modalities, "_REGISTRY", {})
    found = [plait.use(EXAMPLES / name) for name in ("midi_modality.py", "animation_modality.py")]
    yield
    for module in found:
        del sys.modules[module.__name__]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts and pictures, and rows of tunes and films with words."""
    torch.manual_seed(0)
    place = tmp_path_factory.mktemp("adding")
    config = OnePeaceConfig(modalities=["text", "image"], **SIZES)
    OnePeaceModel(config).save_pretrained(place / "model")
    OnePeaceProcessor.from_config(config).save_pretrained(place / "model")
    rows = []
    for i in range(8):
        write_notes(place / f"{i}.mid", [(40 + 30 * (i % 2) + k + i, 0.25 * k, 0.2, 64) for k in range(6)])
        np.save(place / f"{i}.npy", np.full((6, 32, 32, 3), 40 + 150 * (i % 2) + i, np.uint8))
        row = {"id": str(i), "midi": f"{i}.mid", "animation": f"{i}.npy", "text": ("low", "high")[i % 2]}
        rows.append(row | {"label": row["text"], "split": "train" if i < 6 else "test"})
    (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def trained(place: Path, out: Path, **settings: object) -> tuple[OnePeaceModel, dict[str, object]]:
    recipe = find_recipe("one_peace.add_modality")
    chosen = {"data": str(place), "init": str(place / "model"), "steps": 6, "batch_size": 4, "lr": 1e-2} | settings
    run_recipe(lambda: recipe(**chosen), out, options=Options(progress=False))
    return plait.load(out / "model")[0], json.loads((out / "model" / "training.json").read_text())


@pytest.mark.parametrize("train", ["all", "projector"])
def test_all_that_the_model_had_stays_bit_for_bit(added, place: Path, tmp_path: Path, train: str) -> None:
    before, _ = plait.load(place / "model")
    like = {"like": "image"} if train == "projector" else {}
    model, card = trained(place, tmp_path, name="midi", train=train, **like)
    old, new = before.state_dict(), model.state_dict()
    assert all(torch.equal(new[key], value) for key, value in old.items())
    assert {model.modality_of(key) for key in new if key not in old} == {"midi"}
    if train == "projector":
        assert 0 < card["trained"] < 0.01 * card["parameters"]
        layer = model.trunk.layers[0].mlp
        assert torch.equal(layer["midi"].up_proj.weight, layer["image"].up_proj.weight)
    ids = torch.tensor([[5, 6, 2], [7, 2, 1]])
    with torch.no_grad():
        assert torch.equal(model.get_text_features(ids), before.get_text_features(ids))


def test_it_learns_against_pictures_too_and_starts_from_their_stem(added, place: Path, tmp_path: Path) -> None:
    recipe = find_recipe("one_peace.add_modality")
    built = recipe(name="animation", data=str(place), init=str(place / "model"), like="image")
    model = built.model_builder()
    assert torch.equal(model.adapters["animation"].picture.cls_embedding, model.adapters["image"].cls_embedding)
    run = tmp_path / "run"
    trained(place, run, name="animation", like="image", steps=30, lr=3e-3)
    losses = [json.loads(line).get("loss") for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [loss for loss in losses if loss is not None]
    assert losses[-1] < losses[0]
    vectors = plait.Embedder(run / "model").embed([{"animation": place / f"{i}.npy"} for i in (6, 7)])
    texts = plait.Embedder(run / "model").embed(["low", "high"])
    assert np.argmax(vectors @ texts.T, axis=1).tolist() == [0, 1]


def test_wrong_settings_are_one_line(added, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = find_recipe("one_peace.add_modality")
    for settings, words in (
        ({"name": "smell"}, r"a modality that was added \(midi, animation\), got 'smell'"),
        ({"name": "midi", "train": "some"}, "expected train all or projector, got 'some'"),
        ({"name": "midi", "to": "audio"}, "midi and audio"),
    ):
        with pytest.raises(ValueError, match=words):
            recipe(**{"data": str(place), "init": str(place / "model")} | settings)
    monkeypatch.setattr("plait.recipes.adding.LIGHT", 1e-4)
    with pytest.raises(ValueError, match=r"under 0% of the .* weights to train with train=projector, got"):
        trained(place, tmp_path, name="midi", train="projector")
