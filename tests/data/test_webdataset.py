"""Plain webdataset tars, as img2dataset and others write them, are read like any data set."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from plait.cli import main
from plait.data.check import check
from plait.data.sources import open_samples, pack_data
from plait.media.image import load_image


def png(color: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(stream, "PNG")
    return stream.getvalue()


def write(path: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:  # ty: ignore[no-matching-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


def test_members_of_one_name_are_a_row(tmp_path: Path) -> None:
    facts = {"caption": "a red one", "url": "https://example.com/a", "width": 6, "image": "elsewhere.png", "label": 3}
    write(
        tmp_path / "00000.tar",
        {
            "./a.b/000.PNG": png("red"),
            "./a.b/000.json": json.dumps(facts).encode(),
            "./a.b/000.npy": b"not opened",
            "./a.b/001.png": png("blue"),
            "./a.b/001.txt": "\ufeffa blue one\n".encode(),
            "./a.b/001.cls": b"7",
        },
    )
    write(tmp_path / "00001.tar", {"a.b/000.seg.jpg": png("green"), "a.b/000.txt": b"green"})
    samples = open_samples(tmp_path)
    assert [sample.id for sample in samples] == ["00000/a.b/000", "00000/a.b/001", "00001/a.b/000"]
    assert [sample.text for sample in samples] == ["a red one", "a blue one", "green"]
    assert [sample.label for sample in samples] == ["3", "7", None]
    assert samples[0].meta["url"] == "https://example.com/a"
    assert load_image(samples[-1].image).getpixel((0, 0)) == (0, 128, 0)
    assert open_samples(tmp_path / "00001.tar")[0].text == "green"
    assert check(tmp_path).unread == ["column '.npy' holds files and is not read; call it image, audio or video"]


def test_they_can_be_packed_and_checked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "wds"
    source.mkdir()
    write(source / "0.tar", {f"{n}.png": png(color) for n, color in enumerate(("red", "blue"))})
    assert main(["data", "check", str(source)]) == 0
    assert "2 rows" in capsys.readouterr().out
    assert pack_data(source, tmp_path / "packed", 1 << 20) == (2, [])
    assert [one.id for one in open_samples(tmp_path / "packed")] == ["0/0", "0/1"]


def test_other_tars_are_named(tmp_path: Path) -> None:
    for name, content in {"zip.tar": b"PK\x03\x04" * 300, "empty.tar": b""}.items():
        (tmp_path / name).write_bytes(content)
    write(tmp_path / "packed.tar", {"a.png": png("red")}, "w:gz")
    write(tmp_path / "code.tar", {"a.py": b"1"})
    cut = write(tmp_path / "cut.tar", {"a.txt": b"a" * 2000}).read_bytes()
    (tmp_path / "cut.tar").write_bytes(cut[:1200])
    for name in ("zip.tar", "empty.tar", "packed.tar", "code.tar", "cut.tar"):
        with pytest.raises(ValueError, match=f"expected .*webdataset.*{name}"):
            open_samples(tmp_path / name)


def test_a_bad_row_is_named_by_its_tar_and_name(tmp_path: Path) -> None:
    path = write(tmp_path / "0.tar", {"a.png": png("red"), "a.json": b'{"score": NaN}'})
    with pytest.raises(ValueError, match=r"0\.tar, 0/a: .*not finite"):
        open_samples(path)[0]
