"""The builder's parts on made-up clips and drawings: no copies, no look-alikes, no leaks."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plait.types import Sample
from plait_studies.build.builder import _split_of_style, build, emoji, sounds, without_copied_drawings
from plait_studies.build.sounds import (
    Clip,
    decimate,
    ink_difference,
    is_held_out,
    normalise,
    peak_correlations,
    split_by_hash,
    split_clips,
    spread,
    without_copies,
)

LENGTH = 2000


def noise(*seed):
    return np.random.default_rng(seed).standard_normal(LENGTH).astype(np.float32) * 0.1


def clip(note, samples, velocity=100, concept="bell", program=0):
    return Clip(concept, sounds.FONTS[0], 0, program, note, velocity, samples)


def test_correlation_sees_shifted_louder_and_inverted_copies_and_not_strangers():
    signal = noise(0)
    shifted = np.roll(signal, 0) * -3
    shifted = np.concatenate((np.zeros(100, np.float32), shifted))[:LENGTH]
    values = peak_correlations([signal], [signal, shifted, noise(1)])
    assert values.shape == (1, 3)
    assert values[0, 0] == pytest.approx(1, abs=1e-4)
    assert values[0, 1] > 0.95 and values[0, 2] < 0.2
    assert peak_correlations([], [signal]).shape == (0, 1)


def test_copies_and_strokes_that_differ_in_loudness_are_dropped():
    a, b = noise(1), noise(2)
    clips = [clip(60, a), clip(61, a), clip(62, b, 60), clip(62, b * 1.5, 110), clip(62, noise(3), 80)]
    kept = without_copies(clips)
    assert [(c.note, c.velocity) for c in kept] == [(60, 100), (62, 110), (62, 80)]


def test_spread_takes_turns_between_programs_and_starts_loud():
    clips = [clip(n, noise(n, v, p), v, program=p) for n in range(4) for v in (50, 100) for p in (0, 1)]
    chosen = spread(clips, 6, np.random.default_rng(0))
    assert [c.program for c in chosen] == [0, 1] * 3
    assert {c.velocity for c in chosen} == {100}


def test_test_clips_that_sound_like_training_clips_are_removed_and_poor_concepts_dropped():
    clean = [clip(n, noise(n), concept="clean") for n in range(48)]
    leak = np.concatenate((np.zeros(10, np.float32), noise(0)))[:LENGTH]
    leaky = [clip(8, leak, velocity=90, concept="clean")]
    poor = [clip(n, noise(99, n), concept="poor") for n in range(12)]
    chosen, report = split_clips([*clean, *leaky, *poor], max_train=100, max_test=100)
    assert report.removed["clean"] == 1 and report.dropped == {"poor": 2}
    assert report.worst_left["clean"] < 0.5
    assert all(is_held_out(c.note) == (split == "test") for c, split in chosen)
    assert {c.concept for c, _ in chosen} == {"clean"}
    assert not any(c is leaky[0] for c, _ in chosen)


def test_rendered_samples_are_brought_to_one_peak_and_silence_is_none():
    assert normalise(np.zeros(100)) is None
    assert abs(normalise(noise(5))).max() == pytest.approx(sounds.PEAK)


def test_decimation_keeps_low_tones_and_removes_those_that_would_fold():
    time = np.arange(48000) / sounds.RENDER_RATE
    low, high = (decimate(np.sin(2 * np.pi * f * time))[1000:-1000] for f in (440, 9000))
    assert len(decimate(time)) == 16000
    expected = np.sin(2 * np.pi * 440 * np.arange(16000) / 16000)[1000:-1000]
    assert np.abs(low - expected).max() < 1e-3
    assert np.abs(high).max() < 0.01


def test_held_out_drawings_that_equal_a_training_drawing_are_removed(tmp_path):
    def draw(name, box, split):
        path = tmp_path / f"{name}.webp"
        page = Image.new("RGB", (32, 32), "white")
        page.paste((200, 30, 30), box)
        page.save(path, lossless=True)
        return Sample(name, image=path.name, label="thing", split=split)

    train = draw("train", (4, 4, 28, 28), "train")
    same, new = draw("same", (4, 4, 28, 27), "test"), draw("new", (12, 0, 20, 32), "test")
    kept, removed = without_copied_drawings([train, same, new], tmp_path)
    assert removed == ["same"] and kept == [train, new]
    assert not (tmp_path / "same.webp").exists() and (tmp_path / "new.webp").exists()


def test_ink_difference_is_zero_for_equal_and_one_for_disjoint_drawings():
    left, right = np.ones((4, 4, 3)), np.ones((4, 4, 3))
    left[:2], right[2:] = 0, 0
    assert ink_difference(left, left) == 0
    assert ink_difference(left, right) == pytest.approx(1)


def test_icons_are_found_by_name_or_code_point_but_not_mirrored():
    icons = emoji.IconSet.__new__(emoji.IconSet)
    icons.style = "toy"
    icons._data = {
        "icons": {"red-hat": {"body": "x"}},
        "aliases": {"cap": {"parent": "red-hat"}, "flipped": {"parent": "red-hat", "hFlip": True}},
    }
    icons._by_codepoints = {"1f452": "cap"}
    find = {name: icons.find(emoji.Concept(char, name, (), "g")) for char, name in (("a", "Red Hat"), ("b", "flipped"))}
    assert find == {"Red Hat": "red-hat", "flipped": None}
    assert icons.find(emoji.Concept("\U0001f452", "Lady’s hat", (), "g")) == "cap"


def test_icons_are_drawn_whole_on_white():
    pytest.importorskip("resvg_py", reason="needs plait[build]")
    wide = np.asarray(emoji.rasterise('<rect width="20" height="10" fill="#f00"/>', 20, 10, 40))
    red = (wide == (255, 0, 0)).all(-1)
    assert wide.shape == (40, 40, 3) and (wide[0] == 255).all()
    rows, columns = red.any(1).sum(), red.any(0).sum()
    assert 16 <= rows <= 20 and 34 <= columns <= 38
    assert emoji.slugify("Rescue worker’s HELMET") == "rescue-workers-helmet"


def test_mini_concepts_are_300_different_names_and_the_sounding_ones_are_among_them():
    names = emoji.mini_names()
    assert len(names) == len(set(names)) == 300
    assert set(sounds.VOICES) <= set(names)
    splits = {name: [_split_of_style(style, name) for style in emoji.STYLES[:3]] for name in ("guitar", "accordion")}
    assert emoji.STYLES[:3] == ("noto", "noto-v1", "twemoji")
    assert splits == {"guitar": ["validation", "test", "train"], "accordion": ["test", "train", "train"]}


def test_builds_do_not_overwrite_and_know_their_names(tmp_path):
    with pytest.raises(ValueError, match="expected data set 'mini' or 'full', got 'nano'"):
        build("nano", tmp_path / "x")
    (tmp_path / "mine").write_text("x")
    with pytest.raises(ValueError, match="expected a new or empty directory"):
        build("mini", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_tenth_of_the_stamps_tests_whatever_their_order():
    splits = [split_by_hash(f"stamp{i}".encode()) for i in range(2000)]
    assert 150 < splits.count("test") < 250
    assert split_by_hash(b"stamp7") == splits[7]
