"""Bulk embedding: every format holds the same rows, and a killed run continues where it stood."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tiny_embedders import HueModel, HueProcessor, picture

from plait import Embedder
from plait.errors import UsageError
from plait.search import vectors as vectors_module
from plait.search.vectors import check_output, embed_to_file

pq = pytest.importorskip("pyarrow.parquet")
lancedb = pytest.importorskip("lancedb")


@pytest.fixture
def embedder() -> Embedder:
    return Embedder((HueModel(), HueProcessor()))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    folder.mkdir()
    for n in range(7):
        picture(folder / f"{n}.png", "red", n)
    (folder / "x.png").write_bytes(b"no picture")
    return folder


def test_every_format_holds_the_same_rows(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    expected = embedder.embed([*(folder / f"{n}.png" for n in range(7)), "blue"])
    for suffix in ("npy", "parquet", "lance"):
        out = tmp_path / f"vectors.{suffix}"
        report = embed_to_file(embedder, folder, out, texts=["blue"])
        assert report.added == 8
        assert [Path(problem.path).name for problem in report.skipped] == ["x.png"]
        if suffix == "npy":
            found = np.load(out)
            rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
        else:
            table = (
                pq.read_table(out)
                if suffix == "parquet"
                else lancedb.connect(tmp_path).open_table("vectors").to_arrow()
            )
            found, rows = np.stack(table["vector"].to_numpy()), table.to_pylist()
        assert np.allclose(found, expected)
        assert [Path(row["path"]).name for row in rows[:7]] == [f"{n}.png" for n in range(7)]
        assert (rows[7]["caption"], rows[7]["modality"]) == ("blue", "text")
        assert not Path(f"{out}.partial").exists()


def test_an_interrupted_run_continues(
    embedder: Embedder, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vectors_module, "CHUNK", 2)
    out, embed = tmp_path / "v.npy", embedder.embed_readable
    calls: list[int] = []
    assert embedder.dim == 8  # found here, so that every call below is a chunk

    def dies_in_the_third_chunk(items: list[object], **options: object) -> object:
        calls.append(len(items))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return embed(items, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(embedder, "embed_readable", dies_in_the_third_chunk)
    with pytest.raises(KeyboardInterrupt):
        embed_to_file(embedder, folder, out)
    partial = Path(f"{out}.partial")
    with (partial / "rows.jsonl").open("ab") as rows, (partial / "vectors.f32").open("ab") as vectors:
        rows.write(b'{"id": "torn')  # what a kill in the middle of a write leaves
        vectors.write(b"torn")
    report = embed_to_file(embedder, folder, out)
    assert (report.unchanged, report.added) == (4, 3)
    assert np.allclose(np.load(out), embed([folder / f"{n}.png" for n in range(7)]).vectors)


def test_wrong_outputs_are_refused(embedder: Embedder, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ending in .npy, .parquet, .lance, got v.csv"):
        embed_to_file(embedder, folder, tmp_path / "v.csv")
    embed_to_file(embedder, folder, tmp_path / "v.npy")
    with pytest.raises(ValueError, match="expected no file"):
        embed_to_file(embedder, folder, tmp_path / "v.npy")
    assert embed_to_file(embedder, folder, tmp_path / "v.npy", overwrite=True).added == 7
    with pytest.raises(ValueError, match=r"x\.png: content of no kind known here; convert it"):
        embed_to_file(embedder, folder / "x.png", tmp_path / "w.npy")
    other = Embedder((HueModel(seed=1), HueProcessor()))
    (tmp_path / "u.npy.partial").mkdir()
    (tmp_path / "u.npy.partial" / "header.json").write_text('{"fingerprint": "0", "dim": 8}')
    with pytest.raises(ValueError, match="another's"):
        embed_to_file(other, folder, tmp_path / "u.npy")


@pytest.mark.parametrize("name", ["mine.lance", "mine.npy"])
def test_a_directory_that_no_embedding_wrote_survives_overwrite(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "photo.jpg").write_bytes(b"mine")
    with pytest.raises(UsageError, match="got another directory"):
        check_output(tmp_path / name, overwrite=True)
    assert (tmp_path / name / "photo.jpg").read_bytes() == b"mine"


def test_a_table_that_was_written_before_may_be_replaced(tmp_path: Path) -> None:
    for part in ("data", "_versions", "_transactions"):
        (tmp_path / "table.lance" / part).mkdir(parents=True)
    check_output(tmp_path / "table.lance", overwrite=True)
