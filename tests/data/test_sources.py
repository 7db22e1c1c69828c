"""The same rows come out of a manifest, of tar shards, of parquet and of a saved data set."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.cli import main
from plait.data.check import check
from plait.data.manifest import read_manifest
from plait.data.shards import Shards, pack
from plait.data.sources import open_samples
from plait.media.image import load_image
from plait.media.limits import MediaError
from plait.types import Sample

COLOURS = ("red", "green", "blue", "white", "black")


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("manifest")
    rows = []
    for number, name in enumerate(COLOURS):
        Image.new("RGB", (8 + number, 8), name).save(root / f"{name}.png")
        rows.append({"id": name, "image": f"{name}.png", "text": f"ein {name}", "split": "train", "label": name})
    rows.append({"id": "alone", "text": "Bär", "split": "test", "captions": ["a", "b"], "style": {"of": 1}})
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return root


def plain(sample: Sample) -> dict:
    """A sample with its picture decoded."""
    row = sample.to_row()
    if "image" in row:
        picture = load_image(row["image"])
        row["image"] = (picture.size, picture.getpixel((0, 0)))
    return row


@pytest.mark.parametrize("shard_bytes", [1, 4000, 1 << 20])
def test_shards_hold_the_rows_of_the_manifest(manifest, tmp_path, shard_bytes):
    wanted = read_manifest(manifest)
    assert pack(wanted, tmp_path / "shards", shard_bytes) == 6
    found = open_samples(tmp_path / "shards")
    assert isinstance(found, Shards) and len(found) == 6
    assert [plain(s) for s in found] == [plain(s) for s in wanted]
    assert [s.id for s in found[1:3]] == ["green", "blue"] and found[-1].id == "alone"
    assert len(list((tmp_path / "shards").glob("*.tar"))) == {1: 6, 4000: 3, 1 << 20: 1}[shard_bytes]
    assert pack(found, tmp_path / "again", shard_bytes) == 6  # from shards to shards, the bytes stay
    assert [plain(s) for s in open_samples(tmp_path / "again")] == [plain(s) for s in wanted]


def test_webdataset_reads_the_shards(manifest, tmp_path):
    webdataset = pytest.importorskip("webdataset")
    pack(read_manifest(manifest), tmp_path / "shards")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        rows = list(webdataset.WebDataset(str(tmp_path / "shards" / "shard-00000.tar"), shardshuffle=False))
    assert [json.loads(row["json"])["id"] for row in rows] == [*COLOURS, "alone"]
    assert rows[0]["image.png"] == (manifest / "red.png").read_bytes()


def test_a_missing_or_cut_shard_is_one_line(manifest, tmp_path):
    pack(read_manifest(manifest), tmp_path / "shards", 1)
    shard = tmp_path / "shards" / "shard-00003.tar"
    content = shard.read_bytes()
    shard.write_bytes(content[:-512])
    with pytest.raises(ValueError, match=r"expected 10240 bytes in shard .*shard-00003\.tar, got 9728 bytes; copy it"):
        open_samples(tmp_path / "shards")
    shard.unlink()
    with pytest.raises(ValueError, match=r"shard-00003\.tar, got no such file"):
        open_samples(tmp_path / "shards")
    shard.write_bytes(content)
    picture = open_samples(tmp_path / "shards")[3].image
    shard.unlink()
    with pytest.raises(MediaError, match=r"shard-00003\.tar, row 3, image: No such file"):
        load_image(picture)
    (tmp_path / "shards" / "index.json").write_text("{}")
    with pytest.raises(ValueError, match="expected an index of shards"):
        open_samples(tmp_path / "shards")


def test_packing_is_whole_or_nothing(manifest, tmp_path):
    rows = [*read_manifest(manifest), Sample("gone", image=str(tmp_path / "gone.png"))]
    with pytest.raises(ValueError, match=r"sample 'gone': expected the image .*gone\.png, got No such file"):
        pack(rows, tmp_path / "shards")
    assert not list(tmp_path.iterdir())
    pack(rows[:1], tmp_path / "shards")
    with pytest.raises(ValueError, match="a directory that does not exist yet"):
        pack(rows[:1], tmp_path / "shards")
    with pytest.raises(ValueError, match="expected rows to pack, got none"):
        pack([], tmp_path / "empty")


def test_opening_shards_reads_no_rows(tmp_path):
    count = 2000
    pack((Sample(f"r{i}", text="x") for i in range(count)), tmp_path / "shards")
    found = Shards(tmp_path / "shards")
    assert isinstance(found.table, np.memmap) and found.table.nbytes == count * 72
    assert found[1234].id == "r1234"


@pytest.fixture
def saved(manifest, tmp_path):
    """The rows of the manifest with pictures as parquet and as saved splits, bytes inside."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"id": datasets.Value("string"), "text": datasets.Value("string"), "image": datasets.Image(),
         "label": datasets.ClassLabel(names=sorted(COLOURS))}
    )  # fmt: skip
    rows = [s for s in read_manifest(manifest) if s.image]
    columns = {
        "id": [s.id for s in rows],
        "text": [s.text for s in rows],
        "image": [{"bytes": Path(s.image).read_bytes(), "path": None} for s in rows],
        "label": [s.label for s in rows],
    }
    made = datasets.Dataset.from_dict(columns, features=features)
    (tmp_path / "parquet").mkdir()
    made.to_parquet(str(tmp_path / "parquet" / "train-00000.parquet"), batch_size=2)
    datasets.DatasetDict({"train": made}).save_to_disk(str(tmp_path / "saved"))
    made.save_to_disk(str(tmp_path / "one"))
    return tmp_path


@pytest.mark.parametrize("kind", ["parquet", "saved", "parquet/train-00000.parquet"])
def test_tables_hold_the_rows_of_the_manifest(manifest, saved, kind):
    wanted = [s for s in read_manifest(manifest) if s.image]
    found = open_samples(saved / kind)
    assert len(found) == 5
    assert [plain(s) for s in found] == [plain(s) for s in wanted]
    assert found[-1].id == "black" and [s.label for s in found[:2]] == ["red", "green"]
    assert pack(found, saved / "shards") == 5
    assert [plain(s) for s in open_samples(saved / "shards")] == [plain(s) for s in wanted]


def test_one_saved_split_has_no_split(saved):
    assert {s.split for s in open_samples(saved / "one")} == {None}


def test_paths_in_a_table_are_beside_it(manifest, tmp_path):
    import pyarrow
    import pyarrow.parquet

    (tmp_path / "red.png").write_bytes((manifest / "red.png").read_bytes())
    table = pyarrow.table(
        {"image": ["red.png", None], "text": ["a", "b"], "answers": [["x"], None], "label": [3, None]}
    )
    pyarrow.parquet.write_table(table, tmp_path / "data.parquet")
    first, second = open_samples(tmp_path / "data.parquet")
    assert (first.id, second.id) == ("data-0", "data-1")
    assert load_image(first.image).size == (8, 8) and second.image is None
    held = pyarrow.table({"image": [(manifest / "red.png").read_bytes(), None], "text": ["a", "b"]})
    pyarrow.parquet.write_table(held, tmp_path / "held.parquet")
    inside = open_samples(tmp_path / "held.parquet")
    assert load_image(inside[0].image).size == (8, 8) and inside[1].image is None
    assert (first.answers, first.label, second.label) == (["x"], "3", None)


def test_bad_rows_of_a_table_name_file_and_row(tmp_path):
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(pyarrow.table({"id": ["a", ""], "text": ["x", "y"]}), tmp_path / "d.parquet")
    rows = open_samples(tmp_path / "d.parquet")
    assert rows[0].text == "x"
    with pytest.raises(ValueError, match=r"d\.parquet, row 1: field 'id': expected a unique name"):
        rows[1]
    (tmp_path / "d.parquet").write_bytes(b"PAR1 no table")
    with pytest.raises(ValueError, match="expected a parquet file"):
        open_samples(tmp_path / "d.parquet")


def test_a_directory_without_data_says_what_it_could_hold(tmp_path):
    with pytest.raises(ValueError, match=r"with manifest\.jsonl, tar shards, parquet or a saved set, got"):
        open_samples(tmp_path)


def test_the_pack_verb_writes_shards_and_lists_what_it_left_out(manifest, tmp_path, capsys):
    assert main(["data", "pack", str(manifest), str(tmp_path / "shards"), "--shard-mb", "1"]) == 0
    assert "6 rows in 1 shards" in capsys.readouterr().out
    assert main(["data", "check", str(tmp_path / "shards")]) == 0
    assert "every file decodes" in capsys.readouterr().out
    row = {"id": "gone", "image": "gone.png", "text": "x"}
    whole = (manifest / "manifest.jsonl").read_text("utf-8")
    bad = manifest / "bad.jsonl"
    bad.write_text(whole + json.dumps(row) + "\n{}\n", "utf-8")
    assert main(["data", "pack", str(bad), str(tmp_path / "strict")]) == 1
    assert "line 8" in capsys.readouterr().err
    assert main(["data", "pack", str(bad), str(tmp_path / "lenient"), "--on-bad", "skip"]) == 0
    said = capsys.readouterr().out
    assert "left out 2" in said and "gone.png" in said
    assert len(open_samples(tmp_path / "lenient")) == 6
    assert main(["data", "pack", str(bad), str(tmp_path / "x"), "--on-bad", "ask"]) == 2


def test_a_leak_and_a_damaged_file_are_found_in_shards_too(manifest, tmp_path):
    rows = read_manifest(manifest)
    (tmp_path / "bad.png").write_bytes(b"no picture")
    rows += [Sample("copy", image=rows[0].image, split="test"), Sample("bad", image=str(tmp_path / "bad.png"))]
    pack(rows, tmp_path / "shards")
    report = check(tmp_path / "shards")
    assert report.leaks == ["copy (test) is the same file as red (train)"]
    assert len(report.damaged) == 1 and "row 7, image" in report.damaged[0]


def test_the_card_of_a_data_set_has_sizes_and_lengths(manifest, tmp_path, capsys):
    soundfile = pytest.importorskip("soundfile")
    soundfile.write(tmp_path / "a.wav", np.zeros(8000, np.float32), 16000)
    (tmp_path / "manifest.jsonl").write_text(json.dumps({"id": "a", "audio": "a.wav"}) + "\n", "utf-8")
    report = check(tmp_path)
    assert report.seconds == {"audio": 0.5} and report.bytes == {"audio": (tmp_path / "a.wav").stat().st_size}
    assert main(["data", "check", str(tmp_path)]) == 0
    assert "audio 0.5 s" in capsys.readouterr().out
    assert check(manifest).pixels == {"image": [8, 8, 12, 8]}


def test_columns_of_words_are_mapped_not_held(tmp_path: Path) -> None:
    """Twenty times as many rows take no more of Arrow's memory, read in any order and after the file's name is gone."""
    import pyarrow
    import pyarrow.parquet

    held = []
    for count in (1_000, 20_000):
        words = [f"told at length {number} " * 20 for number in range(count)]
        table = pyarrow.table({"id": [str(n) for n in range(count)], "text": words, "image": [b"x"] * count})
        pyarrow.parquet.write_table(table, tmp_path / f"{count}.parquet", row_group_size=500)
        del table
        before = pyarrow.total_allocated_bytes()
        rows = open_samples(tmp_path / f"{count}.parquet")
        assert [rows[n].text for n in (0, 499, 500, count - 1)] == [words[n] for n in (0, 499, 500, count - 1)]
        assert len(rows) == count
        assert rows[777].image.read() == b"x"
        held.append(pyarrow.total_allocated_bytes() - before)
    assert held[1] - held[0] < 8 * 19_000, held
