"""Files of object stores: fetched where a person names them, within the bounds of local files, never from a file."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plait
from plait.cli import main
from plait.media import kind_of, raised
from plait.media.limits import MediaError
from plait.media.remote import files_under
from plait.reading import address_of, is_gone
from plait.search.moments import add_moments
from plait.search.upkeep import check, prune

fsspec = pytest.importorskip("fsspec")
pytest.importorskip("lancedb")


def picture(color: str) -> bytes:
    """The bytes of a small PNG."""
    out = BytesIO()
    Image.new("RGB", (40, 30), color).save(out, "PNG")
    return out.getvalue()


def fill(store: object, root: str) -> None:
    """Three pictures, one of them in a folder and one under a name that lies, with what is passed over beside them."""
    files = {
        f"{root}/red.png": picture("red"), f"{root}/more/green.png": picture("green"),
        f"{root}/blue.txt": picture("blue"), f"{root}/.hidden.png": picture("white"),
        f"{root}/old.lance/a.png": picture("black"), f"{root}/note.txt": b"words",
        f"{root}/broken.png": b"\x89PNG\r\n\x1a\n", f"{root}/empty.png": b"",
    }  # fmt: skip
    for name, content in files.items():
        store.pipe_file(name, content)  # ty: ignore


@pytest.fixture
def memory() -> Iterator[object]:
    """fsspec's memory as a store, filled, and empty again behind the test."""
    store = fsspec.filesystem("memory")
    fill(store, "/photos")
    yield store
    store.store.clear()
    store.pseudo_dirs[:] = [""]


def test_addresses_are_told_from_paths_also_where_a_path_was_made_of_one() -> None:
    assert address_of(Path("s3://photos/a b.png")) == address_of("s3://photos/a b.png") == "s3://photos/a b.png"
    assert address_of("memory:///x/y") == "memory://x/y"
    for local in (
        "a.png",
        "/a/s3:/b",
        "c:/photos",
        "s3:",
        "s3://",
        "http://a/b",
        "zip::s3://a/b",
        "file:///etc",
        "xs3://a",
    ):
        assert address_of(local) is None
    assert is_gone("/no/such/file") and not is_gone("s3://photos/a.png")


def test_a_folder_of_a_store_is_indexed_and_found_as_one_of_this_machine(memory, tmp_path: Path) -> None:
    index = plait.Index.create(tmp_path / "i", "nano")
    report = index.add("memory://photos", show_progress=False)
    paths = ["memory://photos/blue.txt", "memory://photos/more/green.png", "memory://photos/red.png"]
    assert report.added == 3 and sorted(row["path"] for row in index.list()) == paths
    assert {Path(one.path).name: one.reason for one in report.skipped}.keys() == {"note.txt", "broken.png", "empty.png"}
    (tmp_path / "red.png").write_bytes(picture("red"))
    hit = index.search(tmp_path / "red.png", k=1)[0]
    assert (hit.path, hit.modality, hit.is_gone) == ("memory://photos/red.png", "image", False)
    assert hit.score == pytest.approx(1, abs=1e-5)
    assert index.add("memory://photos", show_progress=False).unchanged == 3
    memory.pipe_file("/photos/red.png", picture("orange"))
    assert index.add("memory://photos/red.png", show_progress=False).replaced == 1


def test_rows_at_addresses_are_neither_gone_nor_moved_nor_asked_for(memory, tmp_path: Path, monkeypatch) -> None:
    index = plait.Index.create(tmp_path / "i", "nano")
    index.add("memory://photos", show_progress=False)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda *_, **__: pytest.fail("a row of an index was fetched"))
    assert check(index, contents=True).whole == 3 and prune(index) == [] and len(index) == 3
    (tmp_path / "red.png").write_bytes(picture("red"))
    assert index.add(tmp_path / "red.png").duplicates  # and no "moved", as from a file that is gone
    plait.search.write_contact_sheet(tmp_path / "page.html", [("red", index.search("red"))], index=index)
    assert "memory://photos" in (tmp_path / "page.html").read_text()
    index.update("path LIKE '%red%'", label="x")
    assert add_moments(index, 5.0).moments == 0


def test_verbs_take_addresses(memory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", "add", str(tmp_path / "i"), "memory://photos", "--model", "nano"]) == 0
    printed = capsys.readouterr()
    assert "3 added" in printed.out and "skipped: memory://photos/broken.png: " in printed.err
    assert main(["embed", "nano", "memory://photos/red.png", "--out", str(tmp_path / "v.npy")]) == 0
    (tmp_path / "red.png").write_bytes(picture("red"))
    wanted = plait.Embedder("nano").embed([tmp_path / "red.png"])
    np.testing.assert_allclose(np.load(tmp_path / "v.npy"), wanted, atol=1e-6)
    capsys.readouterr()
    assert main(["index", "add", str(tmp_path / "new"), "memory://nowhere", "--model", "nano"]) == 1
    assert not (tmp_path / "new").exists()  # asked before anything is made
    said = capsys.readouterr().err
    assert "memory://nowhere: nothing there; check the address" in said and said.count("\n") == 1
    assert main(["index", "add", str(tmp_path / "i"), "memory://photos", "--engine", "ray"]) == 2
    assert main(["search", str(tmp_path / "i"), "--image", "memory://photos/red.png"]) == 2
    assert main(["index", "create", "memory://i", "--model", "nano"]) == 2


def test_no_file_is_larger_than_allowed_whatever_the_store_lists(memory, monkeypatch) -> None:
    size = len(picture("red"))
    with raised(max_bytes=size - 1), pytest.raises(MediaError, match=r"memory://photos/red.png: .* more than"):
        next(files_under("memory://photos/red.png")).copy()
    for listed in (None, 1):
        monkeypatch.setattr(
            type(memory), "info", lambda self, path, size=listed: {"type": "file", "size": size, "name": path}
        )
        with raised(max_bytes=size - 1), pytest.raises(MediaError, match="more than"):
            next(files_under("memory://photos/red.png")).copy()
        assert kind_of(next(files_under("memory://photos/red.png")).copy()) == "image"


def test_a_copy_goes_with_what_was_fetched(memory) -> None:
    file = next(files_under("memory://photos/red.png"))
    place = file.copy()
    assert place == file.copy() and place.is_file()
    del file
    assert not place.exists()


def test_data_sets_and_addresses_in_manifests_are_never_fetched(memory, tmp_path: Path) -> None:
    memory.pipe_file("/set/manifest.jsonl", b'{"id": "a", "image": "memory://photos/red.png"}')
    for address in ("memory://set", "memory://set/manifest.jsonl"):
        with pytest.raises(ValueError, match="a data set, whose rows name files; copy it here"):
            list(files_under(address))
    (tmp_path / "manifest.jsonl").write_bytes(memory.cat_file("/set/manifest.jsonl"))
    index = plait.Index.create(tmp_path / "i", "nano")
    with pytest.raises(ValueError, match="field 'image': expected a path, got a URL"):
        index.add(tmp_path)
    report = index.add(plait.Sample("a", image="memory://photos/red.png"))
    assert report.added == 0 and len(report.skipped) == 1


def test_a_store_that_refuses_is_one_line(memory, monkeypatch) -> None:
    class RefusedError(Exception):
        """As those of stores, which are no OSError."""

    def refuse(*_: object, **__: object) -> None:
        raise RefusedError("InvalidAccessKeyId:\nthe key does not exist")

    monkeypatch.setattr(type(memory), "open", refuse)
    with pytest.raises(MediaError, match=r"memory://photos/red.png: InvalidAccessKeyId: the key does not exist; check"):
        next(files_under("memory://photos/red.png")).copy()


@pytest.mark.slow
def test_an_s3_store_is_indexed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{port}")
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/moto-api/", timeout=5)
                break
            except OSError:
                time.sleep(0.2)
        store = fsspec.filesystem("s3")
        store.mkdir("photos")
        fill(store, "photos")
        assert main(["index", "add", str(tmp_path / "i"), "s3://photos", "--model", "nano", "--json"]) == 0
        rows = plait.Index.open(tmp_path / "i").list()
        assert {row["path"] for row in rows} == {
            "s3://photos/blue.txt", "s3://photos/more/green.png", "s3://photos/red.png"
        }  # fmt: skip
        assert json.dumps(sorted(row["modality"] for row in rows)) == '["image", "image", "image"]'
        with pytest.raises(MediaError, match=r"s3://photos/no\.png: nothing there"):
            next(files_under("s3://photos/no.png"))
    finally:
        server.terminate()
        server.wait(10)
