"""Clips of animated emoji: whole loops, on white, with names; too short or nameless ones are left out."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from plait.data.packages import Package
from plait.media.video import load_video
from plait_studies.build import emoji
from plait_studies.build.emoji import Concept


def concept(char, name):
    return Concept(char, name, ("round",), "Animals & Nature")


def animation(path, num_frames):
    """A square that turns from black to red over transparency."""
    frames = []
    for index in range(num_frames):
        page = Image.new("RGBA", (40, 40))
        page.paste((255 * index // num_frames, 0, 0, 255), (10, 10, 30, 30))
        frames.append(page)
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=40, lossless=True)


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """A package with a long animation, a short one and one whose name nobody knows."""
    folder = tmp_path / "package" / "assets"
    folder.mkdir(parents=True)
    for stem, num_frames in {"1f436": 32, "1f431": 5, "1f9ff": 32}.items():
        animation(folder / f"{stem}.webp", num_frames)
    pinned = Package(emoji.PACKAGE, "npm", "1", "MIT", "somebody", {})
    monkeypatch.setattr(emoji, "lock", lambda: {emoji.PACKAGE: pinned})
    monkeypatch.setattr(emoji, "unpacked", lambda name: tmp_path)
    monkeypatch.setattr(emoji, "concepts", lambda: {c.slug: c for c in (concept("🐶", "dog"), concept("🐱", "cat"))})


def test_a_long_named_animation_becomes_a_clip_over_its_whole_loop(packed, tmp_path):
    (sample,) = emoji.samples(tmp_path / "out", size=32, num_frames=8)
    assert (sample.text, sample.label, sample.captions) == ("dog", "dog", ["round"])
    frames = np.stack(list(load_video(tmp_path / "out" / sample.video, 8).frames))
    assert frames.shape == (8, 32, 32, 3)
    assert frames[:, 0, 0].min() > 240  # white where the drawing is transparent
    red = frames[:, 16, 16, 0].astype(int)
    assert red[0] < 30 and red[-1] > 190 and (np.diff(red) > 0).all()
