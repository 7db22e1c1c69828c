"""Small files that promise much cost little: each part may be within its limit, and all together are not."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest

from plait.data.tables import read_parquet
from plait.media.audio import load_audio, resample
from plait.media.limits import MediaError

from .fuzzing import bounded_memory, within

pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")
soundfile = pytest.importorskip("soundfile")


def once(value: str | bytes, rows: int) -> object:
    """A column of equal values, which a dictionary holds once."""
    return pa.DictionaryArray.from_arrays(pa.array(np.zeros(rows, np.int32)), pa.array([value]))


@pytest.mark.parametrize("column", ["text", "image", "captions", "meta"])
def test_a_parquet_of_equal_values_is_not_unfolded(column: str, tmp_path: Path) -> None:
    rows, value = 2_000, "x" * 1_000_000
    cells = {
        "text": lambda: once(value, rows),
        "image": lambda: once(value.encode(), rows),
        "captions": lambda: pa.ListArray.from_arrays(pa.array(np.arange(rows + 1, dtype=np.int32)), once(value, rows)),
        "meta": lambda: pa.StructArray.from_arrays([once(value, rows)], ["note"]),
    }
    path = tmp_path / "small.parquet"
    table = pa.table({"id": [str(n) for n in range(rows)], column: cells[column]()})
    parquet.write_table(table, path, compression="zstd", store_schema=False)
    assert path.stat().st_size < 100_000
    with within(), bounded_memory(256):
        found = read_parquet(path)
        assert len(found) == rows
        if column in ("text", "image"):
            held = found[rows - 1].text if column == "text" else found[rows - 1].image.read()
            assert len(held) == len(value)


def test_a_parquet_of_many_rows_in_few_bytes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.parquet"
    zeros = pa.array(np.zeros(20_000_000, np.int8))
    parquet.write_table(pa.table({"id": zeros.cast(pa.int32()), "label": zeros}), path, compression="zstd")
    assert path.stat().st_size < 1_000_000
    with within(), pytest.raises(ValueError, match=r"small\.parquet: .* bytes unpacked, more than"):
        read_parquet(path)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_pages_that_unpack_to_more_than_the_file_says_are_refused_unread(version: str, tmp_path: Path) -> None:
    path = tmp_path / "small.parquet"
    table = pa.table({"id": ["a"], "text": ["x" * 5_000_000], "image": [b"y"], "captions": [["b", "c"]]})
    how = {"use_dictionary": False, "data_page_version": version, "compression": "zstd", "store_schema": False}
    parquet.write_table(table, path, **how)
    assert len(read_parquet(path)[0].text) == 5_000_000
    content = path.read_bytes()
    start = parquet.read_metadata(path).row_group(0).column(1).data_page_offset
    assert content[start + 2] == 0x15 and content[start + 6] < 128 <= content[start + 5]  # a number of four bytes
    path.write_bytes(content[: start + 3] + b"\xfe\xff\xff\x7f" + content[start + 7 :])
    with (
        within(),
        bounded_memory(100),
        pytest.raises(ValueError, match=r"text has pages of 1342\d+ bytes unpacked where"),
    ):
        read_parquet(path)
    path.write_bytes(content[:start] + b"\x19" * 40 + content[start + 40 :])
    with pytest.raises(ValueError, match="with a damaged page"):
        read_parquet(path)


def header_only(rate: int, channels: int, seconds: float) -> bytes:
    """FLAC of silence, whose first block says how much there is."""
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros((4096, channels), np.int16), rate, format="FLAC", subtype="PCM_16")
    data = bytearray(stream.getvalue())
    total = int(rate * seconds)
    data[21] = data[21] & 0xF0 | total >> 32
    data[22:26] = (total & 0xFFFF_FFFF).to_bytes(4, "big")
    return bytes(data)


@pytest.mark.parametrize(("rate", "channels", "seconds"), [(655_350, 8, 590), (655_350, 1, 590), (48_000, 8, 599.0)])
def test_rate_channels_and_seconds_are_bounded_together(rate: int, channels: int, seconds: float) -> None:
    allowed = rate * seconds < 1 << 26
    with within(), bounded_memory(256), pytest.raises(MediaError, match="truncated" if allowed else "too many"):
        load_audio(header_only(rate, channels, seconds))


def test_a_long_wav_of_a_high_rate_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "a.wav"
    soundfile.write(path, np.zeros(8, np.int16), 768_000, subtype="PCM_U8")
    size = 768_000 * 590
    content = bytearray(path.read_bytes())
    content[4:8], content[40:44] = (36 + size).to_bytes(4, "little"), size.to_bytes(4, "little")
    with path.open("wb") as file:
        file.write(content[:44])
        file.truncate(44 + size)
    with within(), bounded_memory(64), pytest.raises(MediaError, match="768000 a second, 1 channels"):
        load_audio(path)


@pytest.mark.parametrize("hertz", [float("nan"), float("inf"), 0, -1, 10**9])
def test_a_rate_that_none_has_is_refused(hertz: float) -> None:
    with within(), pytest.raises(ValueError, match="expected a sampling_rate of"):
        resample(np.zeros(10, np.float32), 16_000, hertz)  # ty: ignore[invalid-argument-type]
