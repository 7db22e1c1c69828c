"""The mteb encoder: batches of lists in, unit vectors out; run by mteb itself where that is installed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_peers import clip

from plait.embedder import Embedder
from plait.evaluation.mteb_model import MtebEncoder, items_of

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


def test_mteb_runs_it(encoder: MtebEncoder, tmp_path: Path) -> None:
    mteb = pytest.importorskip("mteb", reason="mteb is not installed; pip install 'plait[mteb]'")
    from mteb.models import EncoderProtocol

    assert isinstance(encoder, EncoderProtocol)
    assert encoder.mteb_model_meta.name == "plait/embedder"
    loader = pytest.importorskip("mteb._create_dataloaders")
    from datasets import Dataset

    rows = Dataset.from_dict({"text": ["red", "blue", "green"]})
    task = mteb.get_task("STS12")
    batches = loader.create_dataloader(rows, task_metadata=task.metadata, batch_size=2)
    made = encoder.encode(batches, task_metadata=task.metadata, hf_split="test", hf_subset="default")
    assert made.shape == (3, 8)
