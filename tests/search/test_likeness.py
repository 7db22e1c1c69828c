"""Copies and series are told from files that only look alike to a model; nothing is ever deleted."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw
from tiny_embedders import RATE, HueModel, HueProcessor, picture, save_clip, tone

from plait import Embedder, Index, Sample
from plait.cli import main
from plait.errors import UsageError
from plait.search import likeness
from plait.search.likeness import duplicates, near_pairs, similar

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder((HueModel(), HueProcessor()))


def scene(seed: int, size: int = 96) -> Image.Image:
    """A drawing of some shapes on red, which this model cannot tell from another."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (size, size), (230, 20, 20))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        x, y, side = rng.integers(0, 70, 3) * size // 96
        draw.rectangle((x, y, x + side // 2 + 9, y + side // 2 + 9), fill=(int(rng.integers(150, 255)), 60, 60))
    return image


def film(path: Path, shows: Callable[[int], Image.Image], frames: int = 40) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        for n in range(frames):
            for packet in stream.encode(av.VideoFrame.from_image(shows(n).resize((64, 64)))):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def indexed(tmp_path: Path, embedder: Embedder, folder: str = "media") -> Index:
    index = Index.create(tmp_path / "i", embedder)
    index.add(tmp_path / folder, show_progress=False)
    return index


def groups(index: Index, within: float = 0.1) -> list[tuple[str, list[str]]]:
    return [(one.kind, [Path(path).name for path in one.paths]) for one in duplicates(index, within)]


def test_pictures_made_smaller_lighter_or_anew_are_copies_and_others_are_not(
    tmp_path: Path, embedder: Embedder
) -> None:
    (tmp_path / "media").mkdir()
    scene(1).save(tmp_path / "media" / "a.png")
    scene(1).resize((50, 50)).save(tmp_path / "media" / "a-small.jpg", quality=60)
    scene(1).point(lambda level: min(255, int(level * 1.1))).save(tmp_path / "media" / "a-light.webp")
    scene(2).save(tmp_path / "media" / "b.png")
    Image.new("RGB", (40, 40), "red").save(tmp_path / "media" / "flat.png")
    Image.new("RGB", (41, 41), "red").save(tmp_path / "media" / "flat2.png")
    index = indexed(tmp_path, embedder)
    before = sorted(path.name for path in (tmp_path / "media").iterdir())
    assert groups(index, 0.5) == [("copy", ["a-light.webp", "a-small.jpg", "a.png"])]
    assert groups(index, 0.0) == []
    assert sorted(path.name for path in (tmp_path / "media").iterdir()) == before and len(index) == 6


def test_pictures_of_one_moment_are_a_series_and_no_copies(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "media").mkdir()
    for n, second in enumerate(("00", "03", "09")):
        image = scene(n)
        image.getexif().get_ifd(0x8769)[0x9003] = f"2024:07:14 18:03:{second}"
        image.save(tmp_path / "media" / f"{n}.jpg", exif=image.getexif())
    later = scene(7)
    later.getexif().get_ifd(0x8769)[0x9003] = "2024:07:15 18:03:00"
    later.save(tmp_path / "media" / "later.jpg", exif=later.getexif())
    assert groups(indexed(tmp_path, embedder), 0.5) == [("series", ["0.jpg", "1.jpg", "2.jpg"])]


def test_clips_are_copies_only_where_several_frames_and_the_length_agree(tmp_path: Path, embedder: Embedder) -> None:
    black = Image.new("RGB", (64, 64))
    media = tmp_path / "media"
    media.mkdir()
    film(media / "a.mp4", lambda n: scene(n // 8))
    film(media / "a.avi", lambda n: scene(n // 8))
    film(media / "longer.mp4", lambda n: scene(n // 8), 60)
    film(media / "begins-alike.mp4", lambda n: scene(n // 8 if n < 16 else 40 + n // 8))
    film(media / "black1.mp4", lambda n: black if n < 30 else scene(50))
    film(media / "black2.mp4", lambda n: black if n < 30 else scene(50).rotate(3))
    assert groups(indexed(tmp_path, embedder), 2.0) == [("copy", ["a.avi", "a.mp4"])]


def test_sounds_are_copies_where_they_sound_alike_all_along(tmp_path: Path, embedder: Embedder) -> None:
    media = tmp_path / "media"
    media.mkdir()
    song = np.concatenate([tone(name, 0.4) * loud for name, loud in (("red", 1), ("green", 0.3), ("red", 0.6))])
    soundfile.write(media / "a.wav", song, RATE)
    soundfile.write(media / "a.flac", song * 0.5, RATE)
    soundfile.write(media / "other.wav", np.concatenate([song[len(song) // 3 :], song[: len(song) // 3]]), RATE)
    soundfile.write(media / "cut.wav", song[: len(song) * 2 // 3], RATE)
    assert groups(indexed(tmp_path, embedder), 2.0) == [("copy", ["a.flac", "a.wav"])]


def test_pairs_of_a_large_index_are_found_by_search(
    tmp_path: Path, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "media").mkdir()
    for n in range(9):
        picture(tmp_path / "media" / f"{n}.png", ("red", "green", "blue")[n % 3], n)
    index = indexed(tmp_path, embedder)
    whole = {tuple(sorted(pair[:2])) for pair in near_pairs(index, 0.99)}
    assert len(whole) == 9
    monkeypatch.setattr(likeness, "_ALL_PAIRS", 2)
    assert {tuple(sorted(pair[:2])) for pair in near_pairs(index, 0.99)} == whole


def test_what_is_like_a_file_leaves_the_file_itself_out(tmp_path: Path, embedder: Embedder) -> None:
    (tmp_path / "media").mkdir()
    for n in range(6):
        picture(tmp_path / "media" / f"{n}.png", ("red", "green")[n % 2], n)
    index = indexed(tmp_path, embedder)
    index.add(Sample(id="words", text="red"), show_progress=False)
    alike = similar(index, tmp_path / "media" / "0.png", k=3).hits
    assert {Path(hit.path or hit.id).name for hit in alike} == {"2.png", "4.png", "words"}
    assert len(similar(index, tmp_path / "media" / "0.png", within=0.2, modality="image").hits) == 2
    fresh = picture(tmp_path / "new.png", "green", 50)
    assert Path(similar(index, fresh, k=1, modality="image").hits[0].path or "").name in {"1.png", "3.png", "5.png"}
    with pytest.raises(ValueError, match=r"gone\.png"):
        similar(index, tmp_path / "gone.png")
    with pytest.raises(UsageError, match="from 0 to 2"):
        duplicates(index, -0.1)
    with pytest.raises(UsageError, match="image, video or audio"):
        duplicates(index, modality="text")


def test_commands_list_copies_and_likeness(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "media").mkdir()
    scene(1).save(tmp_path / "media" / "a.png")
    scene(1).save(tmp_path / "media" / "a.jpg")
    index = str(tmp_path / "i")
    assert main(["index", "add", index, str(tmp_path / "media"), "--model", str(save_clip(tmp_path / "clip"))]) == 0
    capsys.readouterr()
    assert main(["index", "duplicates", index]) == 0
    told = capsys.readouterr().out
    assert "copy, 2 files" in told and "1 group of copies, 0 series; nothing was deleted" in told
    assert main(["index", "duplicates", index, "--json"]) == 0
    assert [len(row["bytes"]) for row in json.loads(capsys.readouterr().out)] == [2]
    assert main(["index", "similar", index, str(tmp_path / "media" / "a.png"), "--json"]) == 0
    assert [Path(row["path"]).name for row in json.loads(capsys.readouterr().out)] == ["a.jpg"]
