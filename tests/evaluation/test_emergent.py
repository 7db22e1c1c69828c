"""The emergent evaluation on planted answers: perfect is 1, noise is chance, and the definitions are what they say."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from plait.cli.evaluate import evaluate
from plait.errors import UsageError
from plait.evaluation.emergent import NAMES, ComposedSet, HeldOut, evaluate_emergent, file_name, fuse, score

from ..planted import NOTES, SOUNDING, WORDS, Planted, slug, write_data


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


def test_a_perfect_model_finds_everything_that_names_one_thing(data: Path) -> None:
    scores = evaluate_emergent(Planted(), data).scores
    assert tuple(scores) == NAMES
    for name, found in scores.items():
        if name.startswith("unseen_font"):
            assert found is None
        elif "only" not in name:
            assert found is not None
            assert found.value == 1.0, name


def test_one_part_of_a_pair_finds_it_less_often_than_both(data: Path) -> None:
    scores = evaluate_emergent(Planted(noise=0.02), data).scores
    pairs = len(ComposedSet.draw(HeldOut.read(data)).pairs)
    assert pairs == len(SOUNDING) * (len(WORDS) - len(SOUNDING))
    for name in ("audio_only_to_image_r5", "text_only_to_image_r5", "image_only_to_image_r5"):
        found = scores[name]
        assert found is not None
        assert found.gallery == pairs
        assert 5 / pairs < found.value < 1.0 or name != "audio_only_to_image_r5"
    audio, both = scores["audio_only_to_image_r5"], scores["fused_to_image_r5"]
    assert audio is not None and both is not None
    assert audio.value < 0.9 < both.value
    assert audio.chance == both.chance == pytest.approx(5 / pairs)


def test_noise_lands_on_chance_and_chance_is_that_of_the_gallery(data: Path) -> None:
    runs = [evaluate_emergent(Planted(noise=1e6, seed=seed), data).scores for seed in range(40)]
    for name in ("image_to_text_r1", "audio_to_text_r1", "audio_to_image_r5", "image_to_audio_r1", "fused_to_image_r5"):
        found = [scores[name] for scores in runs]
        values = [one.value for one in found if one is not None]
        first = found[0]
        assert first is not None and len(values) == 40
        assert abs(np.mean(values) - first.chance) < 4 * np.std(values) / np.sqrt(40) + 1e-9, name
    chances = {name: found.chance for name, found in runs[0].items() if found is not None}
    assert chances["image_to_text_r1"] == pytest.approx(1 / 12)
    assert chances["audio_to_image_r1"] == pytest.approx(1 / 4)
    assert chances["audio_to_all_images_r5"] == pytest.approx(5 / 12)
    assert chances["image_to_audio_r1"] == pytest.approx(NOTES / (NOTES * 4))


def test_audio_counts_every_sound_once(data: Path) -> None:
    found = evaluate_emergent(Planted(), data).scores["audio_to_image_r1"]
    assert found is not None
    assert set(found.units) == {slug(word) for word in SOUNDING}
    assert (found.queries, found.gallery) == (NOTES * 4, 4)


def test_an_unseen_font_is_measured_where_there_is_one(tmp_path: Path) -> None:
    scores = evaluate_emergent(Planted(), write_data(tmp_path, unseen_font=True)).scores
    found = scores["unseen_font_audio_to_image_r1"]
    assert found is not None and found.value == 1.0


def test_without_sounds_only_pictures_and_words_are_measured(tmp_path: Path) -> None:
    result = evaluate_emergent(Planted(), write_data(tmp_path, sounds=False))
    measured = {name for name, found in result.scores.items() if found is not None}
    assert measured == {"image_to_text_r1", "image_to_text_r5", "text_to_image_r1", "text_to_image_r5"}


def test_data_without_held_out_pictures_is_refused(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "text": "a", "split": "test"}\n')
    with pytest.raises(ValueError, match="expected pictures of split 'test'"):
        evaluate_emergent(Planted(), tmp_path)


def test_a_fused_query_is_the_unit_sum_of_its_parts() -> None:
    parts = np.random.default_rng(0).standard_normal((2, 5, 8))
    fused = fuse(*parts)
    np.testing.assert_allclose(np.linalg.norm(fused, axis=1), 1)
    np.testing.assert_allclose(fused * np.linalg.norm(parts.sum(0), axis=1, keepdims=True), parts.sum(0))


def test_a_score_tells_value_chance_and_interval() -> None:
    gallery = np.eye(4)
    queries = np.eye(4)[[0, 0, 1, 2]]
    targets = np.array([[1, 0, 0, 0]] * 3 + [[0, 0, 1, 0]], dtype=bool)
    stored = score(queries, gallery, targets, 1, ["a", "a", "a", "b"]).to_json()
    assert stored["value"] == pytest.approx((2 / 3 + 1) / 2)
    assert stored["chance"] == pytest.approx(0.25)
    assert stored["interval"][0] <= stored["value"] <= stored["interval"][1]
    assert (stored["queries"], stored["gallery"]) == (4, 4)


def test_what_is_saved_can_be_read_and_searched_again(data: Path, tmp_path: Path) -> None:
    result = evaluate_emergent(Planted(), data, gallery=tmp_path / "gallery")
    stored = json.loads(result.save(tmp_path).read_text())
    assert stored["metrics"]["audio_to_image_r1"]["value"] == 1.0
    assert [example["label"] for example in stored["examples"]["audio_to_image"]] == [slug(w) for w in SOUNDING]
    best = stored["examples"]["fused_to_image"][0]["hits"][0]
    assert best["right"] and (tmp_path / "gallery" / best["image"]).is_file()
    with np.load(tmp_path / "vectors.npz") as vectors:
        assert {name: len(vectors[name]) for name in vectors.files} == {"text": 12, "image": 12, "audio": 12}
    pairs = ComposedSet.draw(HeldOut.read(data)).pairs
    assert {file_name(pair) for pair in pairs} == {path.name for path in (tmp_path / "gallery").glob("*.webp")}
    from plait.data.manifest import read_manifest

    rows = read_manifest(tmp_path / "gallery")
    assert len(rows) == 12 + 12 + len(pairs)
    assert all(Path(row.image or row.audio).is_file() for row in rows)


def test_an_unknown_task_is_named() -> None:
    with pytest.raises(ValueError, match=r"expected a task .*got 'vqa'; similar: .*vqav2"):
        evaluate("vqa", "model", Path("data"))


def test_vectors_of_another_making_are_not_replaced(data: Path, tmp_path: Path) -> None:
    found = evaluate_emergent(Planted(noise=0.1), data)
    (tmp_path / "vectors.npz").write_bytes(b"a person's own")
    with pytest.raises(UsageError, match=r"expected no vectors\.npz of another making"):
        found.save(tmp_path)
    assert (tmp_path / "vectors.npz").read_bytes() == b"a person's own"
    found.save(tmp_path / "new")
    found.save(tmp_path / "new")  # its own is replaced
