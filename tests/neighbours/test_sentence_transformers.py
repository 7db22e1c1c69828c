"""sentence-transformers opens a ONE-PEACE directory by its name after `import plait`, trains it and saves it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import plait

from ..models.test_export import saved_one_peace

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MISSING = "sentence-transformers is not installed; pip install 'plait[neighbours]'"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_one_peace(tmp_path_factory.mktemp("models") / "one-peace")


@pytest.fixture(scope="module")
def theirs(place: Path) -> Any:
    return pytest.importorskip("sentence_transformers", reason=MISSING).SentenceTransformer(str(place), device="cpu")


def wave(pitch: float) -> np.ndarray:
    return np.sin(np.arange(3000) * pitch).astype(np.float32)


def test_every_modality_and_every_mixture_equals_the_embedder(place: Path, theirs: Any) -> None:
    ours = plait.Embedder(place)
    pictures = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    sounds = [wave(0.3), wave(0.7)]
    rate = ours.sampling_rate
    assert theirs.encode(["a dog", "snow falls"]) == pytest.approx(ours.embed(["a dog", "snow falls"]), abs=1e-5)
    assert theirs.encode(pictures) == pytest.approx(ours.embed(pictures), abs=1e-5)
    heard = theirs.encode([{"array": one, "sampling_rate": rate} for one in sounds])
    assert heard == pytest.approx(ours.embed([{"audio": one} for one in sounds]), abs=1e-5)
    for item in (
        {"text": "a dog", "image": pictures[0]},
        {"text": "a dog", "audio": sounds[0]},
        {"image": pictures[0], "audio": sounds[0]},
        {"text": "a dog", "image": pictures[0], "audio": sounds[0]},
    ):
        given = {k: {"array": v, "sampling_rate": rate} if k == "audio" else v for k, v in item.items()}
        assert theirs.encode([given]) == pytest.approx(ours.embed([item]), abs=1e-5)


def test_it_trains_with_the_ranking_loss_and_the_embedder_opens_what_it_saves(theirs: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    rows = {"anchor": ["a dog", "snow", "a bird", "rain"], "positive": ["dogs", "snowing", "birds", "raining"]}
    before = theirs.encode(rows["anchor"])
    args = SentenceTransformerTrainingArguments(
        str(tmp_path / "run"), max_steps=2, per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(theirs)
    SentenceTransformerTrainer(theirs, args, train_dataset=Dataset.from_dict(rows), loss=loss).train()
    after = theirs.encode(rows["anchor"])
    assert np.abs(after - before).max() > 1e-3
    theirs.save_pretrained(str(tmp_path / "tuned"))
    assert plait.Embedder(tmp_path / "tuned").embed(rows["anchor"]) == pytest.approx(after, abs=1e-5)
    assert [one.name for one in (tmp_path / "tuned").glob("*.py")] in ([], ["plait_model.py"])
