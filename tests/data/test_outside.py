"""Names in a stranger's data set never lead out of it, and what is unpacked is bounded."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from PIL import Image

from plait.cli import main
from plait.data.annotations import scan_annotations
from plait.data.check import check
from plait.data.manifest import Manifest
from plait.data.shards import Shards
from plait.data.sources import open_samples, pack_data
from plait.errors import UsageError
from plait.search.filters import to_sql

from ..fuzzing import within


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder beside which lie a picture and a secret."""
    (tmp_path / "data").mkdir()
    for place in (tmp_path / "outside.png", tmp_path / "data" / "inside.png"):
        Image.new("RGB", (4, 4)).save(place)
    (tmp_path / "secret").write_text("a secret")
    return tmp_path / "data"


def manifest(data: Path, name: str) -> Path:
    path = data / "manifest.jsonl"
    path.write_text(json.dumps({"id": "a", "image": name}) + "\n")
    return path


@pytest.mark.parametrize("name", ["../outside.png", "../secret", "ABSOLUTE", "link.png", "../../../../etc/passwd"])
def test_pack_takes_nothing_from_outside_the_data_set(name: str, data: Path, tmp_path: Path) -> None:
    (data / "link.png").symlink_to(tmp_path / "outside.png")
    path = manifest(data, name.replace("ABSOLUTE", str(tmp_path / "outside.png")))
    with pytest.raises(ValueError, match="which is outside; pass --outside"):
        pack_data(path, tmp_path / "out", 1 << 20)
    assert not (tmp_path / "out").exists()


def test_check_tells_of_what_is_outside(data: Path) -> None:
    assert not check(manifest(data, "inside.png")).misfits
    report = check(manifest(data, "../outside.png"))
    assert not report.problems and "1 media are outside of" in report.misfits[0] and "row a" in report.misfits[0]


def test_pack_takes_what_is_outside_when_asked_but_media_alone(data: Path, tmp_path: Path) -> None:
    assert main(["data", "pack", str(manifest(data, "../outside.png")), str(tmp_path / "out"), "--outside"]) == 0
    assert main(["data", "pack", str(manifest(data, "../secret")), str(tmp_path / "other"), "--outside"]) == 1
    assert not (tmp_path / "other").exists()


def test_coco_names_stay_inside_the_folder_of_the_files(data: Path) -> None:
    path = data / "annotations.json"
    image, note = {"id": 1, "file_name": "../outside.png"}, {"id": 1, "image_id": 1, "caption": "a square"}
    path.write_text(json.dumps({"images": [image], "annotations": [note]}))
    with pytest.raises(ValueError, match=r"leads outside.*--media"):
        scan_annotations(path)
    path.write_text(json.dumps({"images": [image | {"file_name": "outside.png"}], "annotations": [note]}))
    assert scan_annotations(path, data.parent).samples


def test_shards_and_tables_stay_inside(data: Path, tmp_path: Path) -> None:
    pack_data(manifest(data, "inside.png"), tmp_path / "out", 1 << 20)
    index = next(path for path in (tmp_path / "out").glob("*.json"))
    facts = json.loads(index.read_text())
    facts["shards"][0]["name"] = "../secret"
    index.write_text(json.dumps(facts))
    with pytest.raises(ValueError, match="leads outside"):
        Shards(tmp_path / "out")
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(pyarrow.table({"id": ["a"], "image": ["../outside.png"]}), data / "rows.parquet")
    with pytest.raises(ValueError, match=r"row 0.*leads outside"):
        open_samples(data / "rows.parquet")[0]


def test_a_gzip_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "manifest.jsonl.gz"
    path.write_bytes(gzip.compress((b" " * 4095 + b"\n") * (1 << 15)))
    with within(), pytest.raises(ValueError, match="a hundred times the file"):
        Manifest(path)


@pytest.mark.parametrize(
    "where", ["repeat('a', 1000000000) = caption", "caption = lpad ('a', 99999999)", "REPEAT(id,9)='a'"]
)
def test_a_filter_takes_no_function_that_makes_values_large(where: str) -> None:
    with pytest.raises(UsageError, match="got the function"):
        to_sql(where)


@pytest.mark.parametrize(
    "where", ["label IN ('a(', 'repeat(')", "lower(caption) LIKE '%cat%'", "meta.size > 3 AND (id = 'a')"]
)
def test_a_plain_filter_is_taken(where: str) -> None:
    assert to_sql(where)


def test_a_row_of_a_shard_names_no_file_of_this_machine(data: Path, tmp_path: Path) -> None:
    path = data / "manifest.jsonl"
    path.write_text(json.dumps({"id": "a", "text": "x" * 80}) + "\n")
    pack_data(path, tmp_path / "out", 1 << 20)
    tar = next((tmp_path / "out").glob("*.tar"))
    content, named = tar.read_bytes(), json.dumps({"id": "a", "image": "/etc/passwd"}).encode()
    start = content.index(b'{"id"')
    size = content.index(b"}", start) + 1 - start
    tar.write_bytes(content[:start] + named.ljust(size) + content[start + size :])
    with pytest.raises(ValueError, match=r"row 0: expected the image in the shard, got a path"):
        Shards(tmp_path / "out")[0]


@pytest.mark.parametrize("name", ["../other", "/ABSOLUTE", 3, None])
def test_saved_sets_name_files_and_splits_inside(name: object, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    saved = tmp_path / "saved"
    saved.mkdir()
    (saved / "dataset_dict.json").write_text(json.dumps({"splits": [name]}))
    said = "leads outside" if isinstance(name, str) else "expected names of splits"
    with pytest.raises(ValueError, match=said):
        open_samples(saved)
    (saved / "dataset_dict.json").unlink()
    (saved / "dataset_info.json").write_text("{}")
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    with pytest.raises(ValueError, match=said.replace("names of splits", "the names of arrow files")):
        open_samples(saved)


def test_classes_of_a_table_are_those_that_it_names(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"text": ["a", "b", "c", "d"], "label": [1, -1, 2, -2]})
    for info, said in (
        ({"features": {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}}, ""),
        ([], "features"),
    ):
        notes = {"huggingface": json.dumps({"info": info})}
        parquet.write_table(table.replace_schema_metadata(notes), tmp_path / "rows.parquet")
        if said:
            with pytest.raises(ValueError, match=f"expected {said} as datasets writes them"):
                open_samples(tmp_path)
            continue
        rows = open_samples(tmp_path)
        assert rows[0].label == "yes" and rows[1].label is None  # datasets writes -1 where no label is told
        for number in (2, 3):
            with pytest.raises(ValueError, match=f"row {number}: expected a class of label below 2"):
                rows[number]
