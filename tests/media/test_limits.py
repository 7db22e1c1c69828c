"""Limits on media: in force for the process, raised by whoever calls and by every verb that reads media."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
from PIL import Image

from plait.cli import main
from plait.cli import verbs as all_verbs
from plait.media import MediaError, raised
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.media.limits import IN_FORCE, Limits, Packed, open_media


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    soundfile.write(tmp_path / "long.wav", np.zeros(8000 * 3, np.float32) + 0.1, 8000)
    return tmp_path / "long.wav"


def test_limits_are_raised_for_a_block_and_come_back(clip: Path) -> None:
    with raised(max_seconds=2):
        with pytest.raises(MediaError, match=r"3\.0 s, more than 2 s; cut it, or raise max_seconds \(--limit max_sec"):
            load_audio(clip)
        with raised(max_seconds=4):
            assert len(load_audio(clip, 8000)) == 24_000
        with pytest.raises(ValueError, match="2"), raised(max_seconds=1):
            load_audio(clip, max_seconds=2)  # a caller's own limit counts
    assert Limits() == IN_FORCE


@pytest.mark.parametrize("wrong", [{"max_hours": 3}, {"max_pixels": 0}, {"max_seconds": float("nan")}])
def test_other_limits_are_refused_and_change_nothing(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="expected"), raised(**{"max_bytes": 5, **wrong}):
        pass
    assert Limits() == IN_FORCE


def test_the_limits_are_these() -> None:
    limits = Limits()
    assert (limits.max_bytes, limits.max_pixels) == (1 << 30, 64_000_000)
    assert (limits.max_seconds, limits.max_frames) == (600.0, 100_000)


class Large(Packed):
    """A file of a gibibyte and a byte inside another, which says its size or does not."""

    def __init__(self, tells: bool) -> None:
        self.tells, self.name_ = tells, "shard.tar:large.png"

    @property
    def name(self) -> str:
        return self.name_

    def size(self) -> int | None:
        return (1 << 30) + 1 if self.tells else None

    def read(self) -> bytes:
        assert not self.tells, "read although it is too large"
        return bytes(11)


def test_a_packed_file_is_not_read_where_it_is_too_large() -> None:
    with pytest.raises(MediaError, match=r"shard\.tar:large\.png: 1073741825 bytes, more than 1073741824"):
        load_image(Large(tells=True))
    with pytest.raises(MediaError, match="11 bytes, more than 10"), open_media(Large(tells=False), "image", 10):
        pass


@pytest.mark.parametrize("scheme", ["http", "https", "ftp", "s3"])
def test_addresses_are_no_paths(scheme: str) -> None:
    with pytest.raises(MediaError, match="an address, which is never opened; download it"):
        load_image(f"{scheme}://example.org/a.png")


def test_pillows_own_limit_follows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Image.new("RGB", (50, 20)).save(tmp_path / "large.png")
    with pytest.raises(MediaError, match="1000 pixels, more than 200; scale it down, or raise max_pixels"):
        load_image(tmp_path / "large.png", max_pixels=150)
    assert load_image(tmp_path / "large.png", max_pixels=2000).size == (50, 20)
    assert Image.MAX_IMAGE_PIXELS == 100


def test_every_verb_that_reads_media_can_raise_them() -> None:
    # `plait eval` takes both under one name: --limit 20 items, --limit max_seconds=60
    assert "limit" in inspect.signature(all_verbs()["eval"].load()).parameters
    reads = ["embed", "search", "caption", "answer", "ground", "classify", "chat", "train", "quickstart"]
    table = all_verbs()
    functions = [table[name].load() for name in reads]
    rooms = {"plait.cli.search": ["add"], "plait.cli.data": ["check", "from_folder", "pack"]}
    functions += [getattr(import_module(room), name) for room, names in rooms.items() for name in names]
    for function in functions:
        assert "limits" in inspect.signature(function).parameters, function


def test_a_verb_raises_them_for_itself_alone(
    clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(IN_FORCE, "max_seconds", 2.0)
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "audio": "long.wav"}\n')
    assert main(["data", "check", str(tmp_path)]) == 1
    assert "raise max_seconds" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path), "--limit", "max_seconds=5"]) == 0
    assert IN_FORCE.max_seconds == 2.0
    capsys.readouterr()
    for wrong in ("max_hours=5", "max_seconds", "max_seconds=long", "max_seconds=-1"):
        assert main(["data", "check", str(tmp_path), "--limit", wrong]) == 2
        assert "write --limit max_seconds=3600" in capsys.readouterr().err
