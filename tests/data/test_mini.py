"""The shipped data set: small, whole, attributed, and nothing of its test side is in its training side."""

from __future__ import annotations

import hashlib
import json

import pytest

pytest.importorskip("soundfile", reason="the clips are Ogg Vorbis; pip install 'plait[media]'")

from plait.data.check import check
from plait.data.manifest import read_manifest
from plait.data.mini import STAMP, packed_dir, unpack_mini
from plait_studies.build import emoji
from plait_studies.build.shipped import pack
from plait_studies.build.sounds import VOICES, is_held_out

LIMIT = 10_000_000


@pytest.fixture(scope="module")
def mini(tmp_path_factory):
    return unpack_mini(tmp_path_factory.mktemp("data") / "mini")


@pytest.fixture(scope="module")
def samples(mini):
    return read_manifest(mini)


def digest_of_tree(folder):
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{path.relative_to(folder)} {hashlib.sha256(path.read_bytes()).hexdigest()}" for path in files]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def test_packed_files_stay_under_ten_megabytes():
    assert 1_000_000 < sum(path.stat().st_size for path in packed_dir().rglob("*") if path.is_file()) <= LIMIT


def test_packed_files_are_the_ones_in_the_index():
    content = json.loads((packed_dir() / "index.json").read_text("utf-8"))["content"]
    found = {path.relative_to(packed_dir()).as_posix() for path in packed_dir().rglob("*") if path.is_file()}
    assert found - {"index.json"} == set(content)
    for name, digest in content.items():
        assert hashlib.sha256((packed_dir() / name).read_bytes()).hexdigest() == digest


def test_unpacking_twice_gives_the_same_files_and_the_second_time_keeps_them(mini, tmp_path):
    again = unpack_mini(tmp_path / "again")
    assert digest_of_tree(again) == digest_of_tree(mini)
    before = (again / "manifest.jsonl").stat()
    assert unpack_mini(again) == again
    assert (again / "manifest.jsonl").stat().st_mtime_ns == before.st_mtime_ns
    assert [path.name for path in tmp_path.iterdir()] == ["again"]


def test_an_older_version_is_replaced_and_a_foreign_directory_is_not(mini, tmp_path):
    old = tmp_path / "old"
    old.mkdir()
    (old / STAMP).write_text("an older version")
    (old / "stale.txt").write_text("stale")
    assert not (unpack_mini(old) / "stale.txt").exists()
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="expected a new or empty directory"):
        unpack_mini(foreign)
    assert (foreign / "mine.txt").read_text() == "mine"


def test_every_file_decodes_and_no_test_file_is_a_training_file(mini):
    report = check(mini)
    assert report.problems == []
    assert report.counts["test"]["image"] == 300 and report.counts["train"]["audio"] > 1000


def test_there_are_300_concepts_with_one_held_out_drawing_each(samples):
    held = [s for s in samples if s.image and s.split == "test"]
    assert len(held) == len({s.label for s in held}) == len({s.label for s in samples}) == 300
    assert {s.text for s in held} == set(emoji.mini_names())


def test_the_held_out_style_never_trains_and_its_substitutes_do_not_leak(samples):
    training = {(s.meta["style"], s.label) for s in samples if s.image and s.split == "train"}
    # two versions of one font: neither trains
    assert not {emoji.HELD_OUT_STYLE, emoji.SECOND_HELD_OUT_STYLE} & {style for style, _ in training}
    chosen_by = {s.meta["style"] for s in samples if s.split == "validation"}
    assert chosen_by == {emoji.SECOND_HELD_OUT_STYLE}
    held = {(s.meta["style"], s.label) for s in samples if s.image and s.split == "test"}
    assert not held & training
    substitutes = {label for style, label in held if style != emoji.HELD_OUT_STYLE}
    assert substitutes == {emoji.slugify(name) for name in emoji.NOT_IN_HELD_OUT_STYLE}


def test_held_out_notes_never_train(samples):
    clips = [s for s in samples if s.audio]
    assert all(is_held_out(s.meta["note"]) == (s.split == "test") for s in clips)
    assert {s.meta["font"] for s in clips} == {"MuseScore_General_Lite", "FluidR3Mono"}


def test_every_sound_has_training_clips_test_clips_and_a_held_out_drawing(samples, mini):
    card = json.loads((mini / "card.json").read_text("utf-8"))
    drawn = {s.label for s in samples if s.image and s.split == "test"}
    for split, least in (("train", 40), ("test", 8)):
        labels = [s.label for s in samples if s.audio and s.split == split]
        assert set(labels) == set(card["sounding"]) <= drawn
        assert min(labels.count(label) for label in set(labels)) >= least
    assert set(card["sounding"]) <= {emoji.slugify(name) for name in VOICES}


def test_clips_are_one_second_audible_and_unclipped(samples):
    from plait.media.audio import load_audio

    for sample in [s for s in samples if s.audio][::7]:
        clip = load_audio(sample.audio)
        assert clip.shape == (16000,)
        assert 0.2 < abs(clip).max() < 0.99, sample.id
        assert float((clip**2).mean()) ** 0.5 > 0.01, sample.id


def test_every_row_is_licensed_permissively_and_attributed(samples, mini):
    text = (mini / "ATTRIBUTION.md").read_text("utf-8")
    assert {s.license for s in samples} <= {"Apache-2.0", "MIT", "CC-BY-4.0", "CC-BY-3.0"}
    for source, author, license_ in {(s.source, s.author, s.license) for s in samples}:
        assert f"| {source} | {author} | {license_} |" in text
    assert "Unicode, Inc." in text and "Permission is hereby granted" in text


def test_the_card_counts_what_is_there(samples, mini):
    card = json.loads((mini / "card.json").read_text("utf-8"))
    for split, counts in card["counts"].items():
        for modality, count in counts.items():
            assert count == sum(s.split == split and getattr(s, modality) is not None for s in samples)
    assert max(card["leak_check"]["worst_left"].values()) < card["leak_check"]["max_correlation_allowed"]


def test_packing_replaces_nothing_and_gives_the_pictures_back(mini, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        pack(mini, tmp_path / "mine")
    assert (tmp_path / "mine" / "photo.jpg").read_bytes() == b"mine"
    packed = pack(mini, tmp_path / "packed")
    assert (packed / "images.tar.gz").read_bytes() == (packed_dir() / "images.tar.gz").read_bytes()
    written, shipped = (json.loads((place / "index.json").read_text()) for place in (packed, packed_dir()))
    assert written["files"] == shipped["files"]
