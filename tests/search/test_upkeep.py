"""An index and its files kept together: what is gone or changed is told, forgotten, or followed to its new place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from tiny_embedders import HueModel, HueProcessor, picture, save_clip

from plait import Embedder, Index, Sample
from plait.cli import main
from plait.search.page import table, to_json
from plait.search.upkeep import check, move, prune

pytest.importorskip("lancedb")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for colour in ("red", "green", "blue"):
        (tmp_path / "photos" / "sub").mkdir(parents=True, exist_ok=True)
        picture(tmp_path / "photos" / ("sub" if colour == "blue" else "") / f"{colour}.png", colour)
    return tmp_path / "photos"


@pytest.fixture
def index(photos: Path, tmp_path: Path) -> Index:
    made = Index.create(tmp_path / "photos.lance", Embedder((HueModel(), HueProcessor())))
    made.add(photos, show_progress=False)
    made.add(Sample(id="words", text="red"), show_progress=False)
    return made


def test_gone_and_changed_files_are_found(index: Index, photos: Path) -> None:
    assert check(index, contents=True).whole == 4
    (photos / "red.png").unlink()
    picture(photos / "green.png", "blue")
    state = check(index, contents=True)
    assert (state.whole, state.gone, state.changed) == (2, [str(photos / "red.png")], [str(photos / "green.png")])
    assert check(index).changed == []
    assert prune(index) == [str(photos / "red.png")]
    assert len(index) == 3
    assert prune(index) == []


def test_hits_say_that_their_file_is_gone(index: Index, photos: Path) -> None:
    (photos / "red.png").unlink()
    hits = index.search("red", k=4)
    gone = {hit.path: hit.is_gone for hit in hits}
    assert gone == {
        str(photos / "red.png"): True, str(photos / "green.png"): False,
        str(photos / "sub" / "blue.png"): False, None: False,
    }  # fmt: skip
    assert table(hits).count("red.png  (the file is gone)") == 1
    assert [to_json(hit)["is_gone"] for hit in hits].count(True) == 1


def test_rows_follow_a_folder_and_keep_their_words_and_vectors(index: Index, photos: Path) -> None:
    index.update({"path": str(photos / "red.png")}, caption="rouge", label="r", meta={"year": 2024})
    before = {hit.path: hit.score for hit in index.search("red", k=4)}
    shutil.move(photos, photos.with_name("pictures"))
    moved = photos.with_name("pictures")
    assert move(index, photos, moved) == 3
    assert check(index, contents=True).whole == 4
    after = {hit.path: hit.score for hit in index.search("red", k=4)}
    assert after == {path and path.replace(str(photos), str(moved)): score for path, score in before.items()}
    (row,) = index.list({"caption": "rouge"})
    assert (row["id"], row["label"], row["meta"]) == (str(moved / "red.png"), "r", {"year": 2024})
    assert index.add(moved, show_progress=False).unchanged == 3
    shutil.move(moved / "sub" / "blue.png", moved / "navy.png")
    assert move(index, moved / "sub" / "blue.png", moved / "navy.png") == 1


def test_rows_of_a_manifest_keep_their_ids(photos: Path, tmp_path: Path) -> None:
    made = Index.create(tmp_path / "i.lance", Embedder((HueModel(), HueProcessor())))
    made.add(Sample(id="mine", image=str(photos / "red.png"), text="red"), show_progress=False)
    shutil.move(photos, photos.with_name("pictures"))
    assert move(made, photos, photos.with_name("pictures")) == 1
    assert [(row["id"], row["path"]) for row in made.list()] == [
        ("mine", str(photos.with_name("pictures") / "red.png"))
    ]


def test_what_cannot_be_moved_is_refused(index: Index, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"expected a file or folder at .*nowhere, got none"):
        move(index, photos, tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"expected rows of .*other in .*, got none"):
        move(index, tmp_path / "other", photos)
    with pytest.raises(ValueError, match=r"expected a place that no row has yet, got .*green.png"):
        move(index, photos / "red.png", photos / "green.png")


def test_the_verbs(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    index = str(tmp_path / "clip.lance")
    assert main(["index", "add", index, str(photos), "--model", str(save_clip(tmp_path / "clip"))]) == 0
    assert main(["index", "check", index, "--contents"]) == 0
    assert main(["index", "delete", index, str(tmp_path / "elsewhere")]) == 0
    assert "0 deleted, 3 left; no row is of" in capsys.readouterr().out
    (photos / "red.png").rename(tmp_path / "rot.png")
    assert main(["index", "check", index]) == 1
    said = capsys.readouterr()
    assert "2 rows are whole, 1 gone, 0 changed" in said.out
    assert "gone: " in said.err and "plait index move tells where" in said.err
    assert main(["index", "move", index, str(photos / "red.png"), str(tmp_path / "rot.png")]) == 0
    assert "1 rows moved" in capsys.readouterr().out
    (tmp_path / "rot.png").unlink()
    assert main(["index", "prune", index, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"deleted": [str(tmp_path / "rot.png")], "rows": 2}
