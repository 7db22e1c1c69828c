"""A folder that changes is followed: new, changed, moved and deleted files, and never more than that."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from tiny_embedders import HueModel, HueProcessor, picture, save_clip

from plait import Embedder, Index
from plait.cli import main
from plait.errors import UsageError
from plait.search.watch import Watch

pytest.importorskip("lancedb")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    for n, colour in enumerate(("red", "green", "blue")):
        picture(tmp_path / "photos" / f"{colour}.png", colour, n)
    return tmp_path / "photos"


@pytest.fixture
def index(tmp_path: Path) -> Index:
    made = Index.create(tmp_path / "i", Embedder((HueModel(), HueProcessor())))
    made.add(picture(tmp_path / "elsewhere.png", "red", 40), show_progress=False)
    return made


def counts(watch: Watch) -> tuple[int, int, int]:
    change = watch.look()
    return change.report.added, change.report.replaced, len(change.deleted)


def test_new_changed_moved_and_deleted_files_are_followed(index: Index, folder: Path) -> None:
    watch = Watch(index, folder, still=0)
    assert counts(watch) == (3, 0, 0)
    assert watch.look().is_empty
    picture(folder / "new.png", "red", 9)
    picture(folder / "green.png", "blue", 10)
    (folder / "red.png").rename(folder / "sub" / "red.png")
    (folder / "blue.png").unlink()
    assert counts(watch) == (1, 2, 1)
    held = {Path(row["path"]).name for row in index.list()}
    assert held == {"new.png", "green.png", "red.png", "elsewhere.png"}
    assert watch.look().is_empty


def test_a_file_that_is_being_written_waits(index: Index, folder: Path) -> None:
    now = [os.stat(folder / "red.png").st_mtime]
    watch = Watch(index, folder, still=5, clock=lambda: now[0])
    change = watch.look()
    assert (change.report.added, change.waiting) == (0, 3)
    now[0] += 60
    assert counts(watch) == (3, 0, 0)


def test_a_folder_that_is_gone_deletes_nothing(index: Index, folder: Path) -> None:
    watch = Watch(index, folder, still=0)
    watch.look()
    folder.rename(folder.with_name("away"))
    assert (counts(watch), len(index)) == ((0, 0, 0), 4)
    folder.with_name("away").rename(folder)
    assert watch.look().is_empty
    with pytest.raises(UsageError, match="a folder to watch"):
        Watch(index, folder / "red.png")


def test_rows_of_a_manifest_keep_their_words(index: Index, folder: Path) -> None:
    row = {"id": "one", "image": "red.png", "text": "a ball", "label": "ball"}
    (folder / "manifest.jsonl").write_text(json.dumps(row) + "\n")
    assert counts(Watch(index, folder, still=0)) == (1, 0, 0)
    assert index.list("label = 'ball'")[0]["id"] == "one"


def test_the_command_looks_once(tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = str(tmp_path / "j")
    model = str(save_clip(tmp_path / "clip"))
    assert main(["index", "watch", place, str(folder), "--once", "--still", "0"]) == 2
    assert "--model" in capsys.readouterr().err
    arguments = ["index", "watch", place, str(folder), "--once", "--still", "0", "--json"]
    assert main([*arguments, "--model", model]) == 0
    assert json.loads(capsys.readouterr().out)["added"] == 3
    shutil.rmtree(folder / "sub")
    (folder / "red.png").unlink()
    assert main(arguments) == 0
    assert [Path(path).name for path in json.loads(capsys.readouterr().out)["deleted"]] == ["red.png"]
