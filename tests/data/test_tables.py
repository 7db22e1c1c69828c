"""Tables of other tools: columns that are not read are named, missing pictures are missing, values become JSON."""

from __future__ import annotations

import io
import json
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from plait.data.check import check
from plait.data.manifest import read_manifest, write_manifest
from plait.data.sources import open_samples, pack_data
from plait.types import Sample, plain

CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(color: str = "red") -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (6, 4), color).save(stream, "PNG")
    return stream.getvalue()


def saved(folder: Path, columns: dict[str, Any]) -> Path:
    parquet.write_table(pa.table(columns), folder / "rows.parquet")
    return folder / "rows.parquet"


def test_columns_that_look_like_media_or_words_are_named(tmp_path: Path) -> None:
    held = {"bytes": picture(), "path": "a.png"}
    columns = {
        "jpg": pa.array([held], CELL),
        "images": pa.array([[held]], pa.list_(CELL)),
        "raw": pa.array([picture()], pa.binary()),
        "caption": ["a"],
        "img_path": ["x/a.jpg"],
        "camera": ["x100"],
    }
    report = check(saved(tmp_path, columns))
    named = {line.split("'")[1] for line in report.unread}
    assert named == {"jpg", "images", "raw", "caption", "img_path"}
    assert set(open_samples(tmp_path / "rows.parquet")[0].meta) == {"caption", "img_path", "camera"}
    assert not check(saved(tmp_path, columns | {"text": ["a"], "image": pa.array([held], CELL)})).unread[3:]


def test_a_manifest_in_other_words_is_named(tmp_path: Path) -> None:
    (tmp_path / "manifest.jsonl").write_text('{"id": 0, "file_name": "a.webp", "caption": "a"}\n')
    assert check(tmp_path).unread == [
        "column 'file_name' looks like image in 1 rows and is not read; call it 'image'",
        "column 'caption' looks like text in 1 rows and is not read; call it 'text'",
    ]


def test_missing_pictures_are_missing(tmp_path: Path) -> None:
    cells = [{"bytes": picture(), "path": None}, None, {"bytes": None, "path": None}, {"bytes": None, "path": "b.png"}]
    (tmp_path / "b.png").write_bytes(picture("blue"))
    table = {"image": pa.array(cells, CELL), "text": list("abcd"), "audio": pa.array([None] * 4, pa.binary())}
    samples = open_samples(saved(tmp_path, table))
    assert [sample.modalities for sample in samples] == [("text", "image"), ("text",), ("text",), ("text", "image")]
    assert str(samples[3].image) == str(tmp_path / "b.png")
    assert check(tmp_path / "rows.parquet").counts == {"none": {"text": 4, "image": 2}}


def test_values_of_other_libraries_become_json(tmp_path: Path) -> None:
    when = datetime(2024, 5, 1, 12, tzinfo=UTC)
    values = {
        "day": date(2024, 5, 1), "when": when, "took": timedelta(seconds=90), "price": Decimal("1.50"),
        "count": np.int64(3), "share": np.float32(0.5), "flag": np.bool_(True), "many": np.arange(3),
        "tuple": (1, Path("a")), "name": "é".encode(), "raw": b"\xff\x00", "key": UUID(int=1),
    }  # fmt: skip
    expected = {
        "day": "2024-05-01", "when": "2024-05-01T12:00:00+00:00", "took": 90.0, "price": 1.5, "count": 3,
        "share": 0.5, "flag": True, "many": [0, 1, 2], "tuple": [1, "a"], "name": "é", "raw": "/wA=",
        "key": "00000000-0000-0000-0000-000000000001",
    }  # fmt: skip
    assert plain(values) == expected
    write_manifest(tmp_path / "manifest.jsonl", [Sample("a", text="a", meta=values)])
    assert read_manifest(tmp_path)[0].meta == expected
    columns = {"id": ["a"], "text": ["a"], "day": [date(2024, 5, 1)], "price": [Decimal("1.50")]}
    path = saved(tmp_path, columns)
    assert open_samples(path)[0].meta == {"day": "2024-05-01", "price": 1.5}
    assert pack_data(path, tmp_path / "packed", 1 << 20)[0] == 1


@pytest.mark.parametrize("value", [float("nan"), np.float32("inf"), Decimal("NaN"), [1.0, float("-inf")], object()])
def test_what_json_cannot_hold_is_refused_by_name(tmp_path: Path, value: Any) -> None:
    with pytest.raises(ValueError, match="sample 'a': field 'score': expected"):
        write_manifest(tmp_path / "manifest.jsonl", [Sample("a", text="a", meta={"score": value})])
    assert not (tmp_path / "manifest.jsonl").exists()


def test_a_number_that_is_not_finite_is_refused_where_it_is_read(tmp_path: Path) -> None:
    path = saved(tmp_path, {"text": ["a"], "score": pa.array([float("nan")])})
    with pytest.raises(ValueError, match=r"rows\.parquet, row 0: field 'score': expected a finite number"):
        open_samples(path)[0]


@pytest.mark.parametrize(
    ("written", "said"),
    [
        ("https://example.com/a.png", "a URL"),
        ("s3://bucket/a.png", "a URL"),
        ("data:image/png;base64,iVBORw0KGgo=", "a data URI"),
        ("file:///tmp/a.png", "a file: URI"),
    ],
)
def test_addresses_are_named_for_what_they_are(tmp_path: Path, written: str, said: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "a", "image": written}) + "\n")
    with pytest.raises(ValueError, match=f"line 1: field 'image': expected a path, got {said} .*; save the file"):
        read_manifest(tmp_path)
    with pytest.raises(ValueError, match=f"row 0: expected the name of a file, got {said}"):
        open_samples(saved(tmp_path, {"image": [written]}))[0]


@pytest.mark.parametrize("written", ["sub\\a.png", "C:\\photos\\a.png", "D:/photos/a.png"])
def test_paths_of_windows_are_named_for_what_they_are(tmp_path: Path, written: str) -> None:
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "a", "image": written}) + "\n")
    assert "backslashes or a drive, as Windows has; write /" in check(tmp_path).missing[0]
