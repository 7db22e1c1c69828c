"""Batches in memory: concepts are distinct, draws follow the seed, and augmentation does what it says."""

import numpy as np
import pytest
import torch
from PIL import Image

from plait.data.pairs import PicturesWithWords, SoundsWithWords, augment
from plait.types import Sample


def tokenize(texts):
    tokenize.seen = list(texts)
    return {"input_ids": torch.tensor([[len(text), 2] for text in texts])}


def pictures(tmp_path, concepts=6, styles=2, **options) -> PicturesWithWords:
    samples = []
    for c in range(concepts):
        for s in range(styles):
            path = tmp_path / f"{c}-{s}.png"
            Image.new("RGB", (16, 16), (40 * c, 100 * s, 7)).save(path)
            row = {"id": path.stem, "image": path, "text": f"thing {c}", "label": f"c{c}", "captions": ["red", "old"]}
            samples.append(Sample.from_row(row))
    return PicturesWithWords(samples, tokenize, 16, mean=(0, 0, 0), std=(1, 1, 1), **options)


def sounds(tmp_path, counts=(6, 3), **options) -> SoundsWithWords:
    import soundfile

    samples = []
    for c, count in enumerate(counts):
        for i in range(count):
            path = tmp_path / f"{c}-{i}.wav"
            soundfile.write(path, 0.1 * (c + 1) * np.ones(400 + 10 * i, np.float32), 16000)
            samples.append(Sample.from_row({"id": path.stem, "audio": path, "text": f"sound {c}", "label": f"c{c}"}))
    return SoundsWithWords(samples, tokenize, sampling_rate=16000, prepare=lambda x: x, **options)


def test_a_batch_holds_every_concept_once(tmp_path):
    source = pictures(tmp_path)
    batch = source.load(source.rows(0, 3, 6), np.random.default_rng(0))
    assert sorted(batch["ids"].tolist()) == list(range(6))
    assert batch["pixel_values"].shape == (6, 3, 16, 16)


def test_rows_follow_seed_and_step_alone(tmp_path):
    source = pictures(tmp_path)
    assert source.rows(0, 5, 4) == source.rows(0, 5, 4)
    assert source.rows(0, 5, 4) != source.rows(1, 5, 4) or source.rows(0, 6, 4) != source.rows(0, 5, 4)


def test_a_batch_larger_than_the_concepts_says_which_rows_belong_together(tmp_path):
    source = pictures(tmp_path, concepts=3)
    ids = source.load(source.rows(0, 0, 7), np.random.default_rng(0))["ids"]
    assert torch.bincount(ids).tolist() == [3, 2, 2] or sorted(torch.bincount(ids).tolist()) == [2, 2, 3]


def test_composed_rows_name_both_things_and_stand_alone(tmp_path):
    source = pictures(tmp_path, composed=1.0, bare_names=1.0)
    ids = source.load(source.rows(0, 0, 6), np.random.default_rng(0))["ids"]
    joint = [text for text in tokenize.seen if " and " in text]
    assert joint and len(joint) == (ids < 0).sum()
    assert len(set(ids.tolist())) == 6


def test_held_out_pairs_are_never_composed(tmp_path):
    held_out = [("c0", f"c{i}") for i in range(1, 6)]
    source = pictures(tmp_path, composed=1.0, bare_names=1.0, held_out=held_out)
    for step in range(30):
        source.load(source.rows(0, step, 6), np.random.default_rng(step))
        assert not any("thing 0 and" in text or "and thing 0" in text for text in tokenize.seen)


def test_captions_add_keywords_only_where_asked(tmp_path):
    source = pictures(tmp_path, bare_names=0.0)
    source.load(source.rows(0, 0, 6), np.random.default_rng(0))
    assert all("red" in text or "old" in text for text in tokenize.seen)
    source = pictures(tmp_path, bare_names=1.0)
    source.load(source.rows(0, 0, 6), np.random.default_rng(0))
    assert all(text.count(",") == 0 for text in tokenize.seen)


def test_augmentation_of_strength_zero_is_the_picture(tmp_path):
    source = pictures(tmp_path, augmentation=0.0)
    rows = source.rows(0, 0, 6)
    plain = [np.asarray(Image.open(source.samples[row].image)) / 255.0 for row in rows]
    found = source.load(rows, np.random.default_rng(0))["pixel_values"]
    torch.testing.assert_close(found, torch.tensor(np.stack(plain)).permute(0, 3, 1, 2).float())


def test_augmented_pictures_stay_in_range_and_on_white_ground():
    images = torch.zeros(8, 3, 32, 32)
    out = augment(images, 1.0, np.random.default_rng(0))
    assert out.min() >= 0
    assert out.max() <= 1
    assert out[:, :, 0, 0].max() > 0.9


def test_sounds_are_balanced_over_concepts(tmp_path):
    source = sounds(tmp_path)
    batch = source.load(source.rows(0, 0, 8), np.random.default_rng(0))
    assert torch.bincount(batch["ids"]).tolist() == [4, 4]
    assert batch["audio_mask"].sum(1).max() == batch["input_values"].shape[1]


def test_shuffled_sounds_keep_every_text_as_often_but_mix_them(tmp_path):
    plain, mixed = sounds(tmp_path), sounds(tmp_path, shuffle_seed=0)
    before, after = ([sample.text for sample in one.samples] for one in (plain, mixed))
    assert sorted(before) == sorted(after) and before != after
    assert [sample.audio for sample in plain.samples] == [sample.audio for sample in mixed.samples]


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="got none"):
        SoundsWithWords([], tokenize, sampling_rate=16000, prepare=lambda x: x)
