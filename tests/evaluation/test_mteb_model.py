"""The mteb encoder: batches of lists in, unit vectors out; run by mteb itself where that is installed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_peers import clip

from plait.embedder import Embedder
from plait.evaluation.mteb import MtebEncoder, items_of

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> MtebEncoder:
    place = tmp_path_factory.mktemp("clip")
    clip(place)
    return MtebEncoder(Embedder(place))


def test_batches_become_unit_vectors_in_order(encoder: MtebEncoder) -> None:
    pictures = [Image.new("RGB", (9, 9), colour) for colour in ("red", "blue")]
    made = encoder.encode([{"image": pictures}, {"text": ["a"]}], task_metadata=None, hf_split="test", hf_subset="en")
    alone = encoder.embedder.embed([{"image": pictures[0]}, {"image": pictures[1]}, {"text": "a"}])
    assert made == pytest.approx(alone, abs=1e-6)
    assert encoder.similarity(made, made).shape == (3, 3)
    assert encoder.similarity_pairwise(made, made).numpy() == pytest.approx(np.ones(3), abs=1e-5)


def test_several_modalities_of_one_item_are_fused_and_sounds_keep_their_rate() -> None:
    clip_ = {"array": np.zeros((2, 8), np.float32), "sampling_rate": 4000}
    (item,) = items_of({"text": ["a"], "audio": [clip_]})
    assert item["text"] == "a"
    assert item["audio"][0].shape == (8,)
    assert item["audio"][1] == 4000
    with pytest.raises(ValueError, match="expected a batch with one of text, image, video, audio, got title"):
        items_of({"title": ["a"]})


def test_films_are_frames_or_decoders_and_rows_may_lack_a_modality(encoder: MtebEncoder) -> None:
    frames = torch.stack([torch.full((3, 9, 9), 16 * i, dtype=torch.uint8) for i in range(16)])

    class Decoder:
        metadata = SimpleNamespace(num_frames=16)

        def get_frames_at(self, numbers: list[int]) -> SimpleNamespace:
            return SimpleNamespace(data=frames[numbers])

    made = encoder.encode([{"video": [frames, Decoder(), None], "text": ["a", "a", "b"]}])
    assert made[0] == pytest.approx(made[1], abs=1e-6)
    assert made[2] == pytest.approx(encoder.embedder.embed_one("b"), abs=1e-6)


def test_mteb_runs_one_peace_on_tiny_data(tmp_path: Path) -> None:
    mteb: Any = pytest.importorskip("mteb", reason="mteb is not installed; pip install 'plait[mteb]'")
    from tiny_families import FAMILIES

    FAMILIES["one_peace"](tmp_path / "one-peace")
    encoder = mteb.get_model(str(tmp_path / "one-peace"))
    assert isinstance(encoder, MtebEncoder)
    assert isinstance(encoder, mteb.models.EncoderProtocol)
    tasks = [colours(mteb), sentences(mteb)]
    found = mteb.evaluate(encoder, tasks=tasks, cache=None, co2_tracker=False, show_progress_bar=False)
    assert found.model_name == "plait/one-peace"
    assert found.model_revision == encoder.embedder.fingerprint
    scores = {result.task_name: result.get_score() for result in found.task_results}
    pictures, names = [{"image": Image.new("RGB", (9, 9), c)} for c in COLOURS], [{"text": c} for c in ("red", "blue")]
    nearest = (encoder.embedder.embed(pictures) @ encoder.embedder.embed(names).T).argmax(axis=1)
    assert scores["TinyColours"] == pytest.approx((nearest == [0, 1, 0]).mean())
    assert -1 <= scores["TinySentences"] <= 1


COLOURS = ("red", "blue", "darkred")


def about(mteb: Any, name: str, kind: str, modalities: list[str], category: str, score: str) -> Any:
    """What mteb wants to know of a task."""
    return mteb.TaskMetadata(
        name=name, description="tiny", type=kind, modalities=modalities, category=category, main_score=score,
        dataset={"path": "tiny/tiny", "revision": "1"}, eval_langs=["eng-Latn"], eval_splits=["test"],
    )  # fmt: skip


def colours(mteb: Any) -> Any:
    """Three pictures to be named: a task of mteb with its data in memory."""
    from datasets import Dataset, DatasetDict

    class TinyColours(mteb.abstasks.AbsTaskZeroShotClassification):
        metadata = about(mteb, "TinyColours", "ZeroShotClassification", ["image", "text"], "i2t", "accuracy")

        def load_data(self, **_: Any) -> None:
            rows = {"image": [Image.new("RGB", (9, 9), colour) for colour in COLOURS], "label": [0, 1, 0]}
            self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_dict(rows)), True

        def get_candidate_labels(self) -> list[str]:
            return ["red", "blue"]

    return TinyColours()


def sentences(mteb: Any) -> Any:
    """Three pairs of sentences."""
    from datasets import Dataset, DatasetDict

    class TinySentences(mteb.abstasks.AbsTaskSTS):
        metadata = about(mteb, "TinySentences", "STS", ["text"], "t2t", "cosine_spearman")

        def load_data(self, **_: Any) -> None:
            first, second = ["a dog runs", "snow falls", "two birds"], ["a dog is running", "a red car", "a bird sings"]
            rows = {"sentence1": first, "sentence2": second, "score": [5.0, 0.0, 2.0]}
            self.dataset, self.data_loaded = DatasetDict(test=Dataset.from_dict(rows)), True

    return TinySentences()
