"""`plait get`: whole and checked or not at all, from a host on the loopback that breaks off and changes its mind."""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import socket
import threading
import urllib.error
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import plait
from plait import models
from plait.cli import main
from plait.errors import UsageError
from plait.models import fetch, locate

GOLDEN = Path(__file__).parents[1] / "goldens" / "one_peace" / "embeddings_val"


class Host(BaseHTTPRequestHandler):
    """Serves `content`; after `breaks` bytes of a connection it hangs up."""

    content = b""
    breaks: int | None = None
    ranges = True
    etag = '"one"'
    status = 200
    length: int | None = None
    asked: list[str | None] = []  # noqa: RUF012

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.asked.append(wanted)
        kind = type(self)
        if kind.status != 200:
            self.send_error(kind.status)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted and kind.ranges else 0
        if self.headers.get("If-Range", kind.etag) != kind.etag:
            start = 0
        total = len(self.content) if kind.length is None else kind.length
        if start and start >= total:
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{total}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{total - 1}/{total}")
        self.send_header("Content-Length", str(total - start))
        self.send_header("ETag", kind.etag)
        self.end_headers()
        body = self.content[start:]
        self.wfile.write(body if kind.breaks is None else body[: kind.breaks])

    def log_message(self, *_: Any) -> None:
        pass


class Place(NamedTuple):
    host: type[Host]
    url: str
    target: Path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    host = type("OneHost", (Host,), {"content": bytes(range(256)) * 1000, "asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    monkeypatch.setattr(fetch, "WAIT", 0.001)
    yield Place(host, f"http://127.0.0.1:{server.server_port}/a.pt", tmp_path / "cache" / "files" / "a.pt")
    server.shutdown()
    server.server_close()


def only(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_a_file_comes_whole_and_is_recorded(place: Place) -> None:
    assert fetch.fetch_file(place.url, place.target).read_bytes() == place.host.content
    record = json.loads((place.target.parent / "records.json").read_text())["a.pt"]
    assert record["sha256"] == hashlib.sha256(place.host.content).hexdigest() and record["size"] == 256_000
    assert only(place.target.parent) == {"a.pt", "records.json"}
    fetch.fetch_file(place.url, place.target)
    assert place.host.asked == [None]  # the second call asked nobody


def test_broken_connections_are_gone_on_with(place: Place) -> None:
    place.host.breaks = 30_000
    assert fetch.fetch_file(place.url, place.target).read_bytes() == place.host.content
    assert place.host.asked[:3] == [None, "bytes=30000-", "bytes=60000-"]


def test_a_host_that_gives_nothing_more_is_given_up_and_the_part_stays(place: Place) -> None:
    part = place.target.with_name("a.pt.part")
    place.host.breaks = 0
    with pytest.raises(ValueError, match="connection that broke 5 times; run the same command again"):
        fetch.fetch_file(place.url, place.target)
    assert not place.target.exists()
    place.host.breaks = None
    assert fetch.fetch_file(place.url, place.target).read_bytes() == place.host.content and not part.exists()


def test_a_killed_fetch_is_resumed(place: Place) -> None:
    place.target.parent.mkdir(parents=True)
    part = place.target.with_name("a.pt.part")
    part.write_bytes(place.host.content[:70_000])
    place.target.with_name("a.pt.part.json").write_text(json.dumps({"url": place.url, "etag": '"one"'}))
    fetch.fetch_file(place.url, place.target)
    assert place.host.asked == ["bytes=70000-"] and place.target.read_bytes() == place.host.content


@pytest.mark.parametrize("change", [{"etag": '"two"'}, {"ranges": False}, {"content": bytes(50_000)}])
def test_a_part_of_another_version_is_begun_anew(place: Place, change: dict[str, Any]) -> None:
    place.target.parent.mkdir(parents=True)
    place.target.with_name("a.pt.part").write_bytes(bytes(70_000))
    place.target.with_name("a.pt.part.json").write_text(json.dumps({"url": place.url, "etag": '"one"'}))
    for name, value in change.items():
        setattr(place.host, name, value)
    if "content" in change:
        place.host.etag = '"one"'
    assert fetch.fetch_file(place.url, place.target).read_bytes() == place.host.content


def test_a_part_that_is_whole_asks_for_nothing_more(place: Place) -> None:
    place.target.parent.mkdir(parents=True)
    place.target.with_name("a.pt.part").write_bytes(place.host.content)
    place.target.with_name("a.pt.part.json").write_text(json.dumps({"url": place.url, "etag": '"one"'}))
    assert fetch.fetch_file(place.url, place.target).read_bytes() == place.host.content
    assert place.host.asked == ["bytes=256000-"]


def test_a_wrong_size_is_refused_before_anything_is_written(place: Place) -> None:
    with pytest.raises(ValueError, match=r"a\.pt of 5 bytes, got 256,000"):
        fetch.fetch_file(place.url, place.target, size=5)
    assert not place.target.exists() and not place.target.with_name("a.pt.part").exists()


def test_a_file_other_than_the_first_is_refused(place: Place) -> None:
    fetch.fetch_file(place.url, place.target)
    place.target.unlink()
    place.host.content = bytes(256_000)
    with pytest.raises(ValueError, match="SHA-256"):
        fetch.fetch_file(place.url, place.target)
    assert only(place.target.parent) <= {"records.json", "a.pt.part.json"}
    with pytest.raises(ValueError, match="SHA-256 00"):
        fetch.fetch_file(place.url, place.target.with_name("b.pt"), sha256="00" * 32)


def test_no_room_is_said_before_anything_is_fetched(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: argparse.Namespace(free=fetch.SPARE + 300_000))
    with pytest.raises(ValueError, match=r"GiB free .* PLAIT_CACHE"):
        fetch.fetch_file(place.url, place.target, copies=2)
    assert not place.target.with_name("a.pt.part").exists()
    fetch.fetch_file(place.url, place.target, copies=1)


def test_a_full_disk_midway_is_one_line_and_the_part_stays(
    place: Place, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(models, "official_rows", lambda: {"tiny": {"name": "a.pt", "where": place.url}})
    monkeypatch.setattr(fetch, "official_rows", models.official_rows)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch, "_append", full)
    assert main(["get", "tiny"]) == 1
    assert "free some space and run the same command again" in capsys.readouterr().err


def test_a_missing_file_says_its_status(place: Place) -> None:
    place.host.status = 404
    with pytest.raises(ValueError, match="status 404; fetch the file elsewhere and plait convert"):
        fetch.fetch_file(place.url, place.target)


def test_offline_is_said_as_offline(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    def down(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError(socket.gaierror(-3, "Temporary failure in name resolution"))

    with monkeypatch.context() as patched:
        patched.setattr(fetch.urllib.request, "urlopen", down)
        with pytest.raises(ValueError, match=r"got no network \(offline\)"):
            fetch.fetch_file(place.url, place.target)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"HF_HUB_OFFLINE \(offline\)"):
        fetch.fetch_file(place.url, place.target)
    assert not place.host.asked


@pytest.fixture
def tiny(place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """The name `tiny` for an official file of ONE-PEACE that the host serves."""
    state = {f"module.{key}": value for key, value in load_file(GOLDEN / "weights.safetensors").items()}
    config = json.loads((GOLDEN / "config.json").read_text())
    torch.save({"args": argparse.Namespace(x=1), "cfg": {"model": config}, "model": state}, tmp_path / "made.pt")
    place.host.content = (tmp_path / "made.pt").read_bytes()
    row = {"family": "one_peace", "name": "a.pt", "where": place.url, "parameters": 1, "does": "-", "license": "-"}
    rows = {"tiny": row}
    for module in (models, fetch):
        monkeypatch.setattr(module, "official_rows", lambda: rows)
    return place


def test_a_name_is_fetched_converted_once_known_everywhere_and_removed(
    tiny: Place, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ValueError, match="not fetched yet; run plait get tiny"):
        plait.load("tiny")
    assert main(["get", "tiny"]) == 0
    made = locate("tiny")
    assert made.parent.name == "models" and not tiny.target.exists()  # converted, and the official file is gone
    model, _ = plait.load("tiny")
    assert tuple(model.modalities) == ("text", "image", "audio")
    assert fetch.get("tiny") == made and len(tiny.host.asked) == 1
    assert main(["info", "tiny"]) == 0
    assert main(["models", "--remove", "tiny"]) == 0
    assert "are free again" in capsys.readouterr().out and not made.exists()
    with pytest.raises(UsageError, match="expected a model that was fetched"):
        fetch.forget("tiny")


def test_a_file_that_was_put_there_by_hand_stays(tiny: Place) -> None:
    row = fetch.official_rows()["tiny"]
    by_hand = fetch.cache_directory() / "files" / row["name"]
    by_hand.parent.mkdir(parents=True, exist_ok=True)
    by_hand.write_bytes(tiny.host.content)
    fetch.get("tiny")
    assert by_hand.is_file() and not tiny.host.asked
    fetch.forget("tiny")
    assert by_hand.read_bytes() == tiny.host.content


def test_unknown_names_and_paths_are_no_names(place: Place) -> None:
    with pytest.raises(UsageError, match="expected a hub id or one of nano, nano-mplug2, smollm2, one-peace"):
        fetch.get("one-piece")
    for name in ("../models", "a/../..", "/etc", ".", ".."):
        assert models.cached_model(name) is None


def test_every_official_name_has_an_address() -> None:
    rows = models.official_rows()
    assert {"one-peace", "mplug2_msrvtt_caption", "mplug-owl2-llama2-7b"} <= set(rows)
    assert all(row["where"].startswith(("http://", "https://", "hub: ")) for row in rows.values())
