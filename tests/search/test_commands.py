"""The verbs embed, index and search, from the command line to files on disk, with a tiny CLIP directory."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import soundfile
from tiny_embedders import RATE, HueModel, HueProcessor, picture, save_clip, tone

from plait import Embedder, Index, Sample
from plait.cli import main
from plait.cli.search import parse_weights
from plait.search import write_contact_sheet

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("media")
    for colour in ("red", "green", "blue"):
        picture(folder / f"{colour}.png", colour)
    return folder


def test_index_and_search_from_the_command_line(
    model: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index, page = tmp_path / "photos.lance", tmp_path / "page.html"
    (tmp_path / "bad.png").write_bytes(b"bad")
    assert main(["index", "add", str(index), str(media), str(tmp_path / "bad.png"), "--model", str(model)]) == 0
    out, err = capfd.readouterr()
    assert "3 added" in out
    assert re.search(r"^skipped: .*bad.png: ", err, re.M)

    query = ["--image", str(media / "red.png"), "--text", "red", "--weights", "image=1,text=0.01", "--not", "blue"]
    arguments = ["search", str(index), *query, "-k", "2", "--json", "--html", str(page)]
    assert main(arguments) == 0
    hits = json.loads(capfd.readouterr().out)
    assert len(hits) == 2
    assert page.stat().st_size > 2000
    assert main(["search", str(index), "--image", str(media / "red.png"), "-k", "1"]) == 0
    assert re.search(r"1\s+1\.000\s+image.*red\.png", capfd.readouterr().out)
    assert main(["search", str(index), "--text", "red", "--where", "label = 'cat'"]) == 0
    assert capfd.readouterr().out == "nothing found\n"

    assert main(["index", "add", str(index), str(media), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["unchanged"] == 3
    assert main(["index", "update", str(index), "--where", "path LIKE '%red.png'", "--caption", "rouge"]) == 0
    assert main(["index", "list", str(index), "--where", "caption = 'rouge'", "--json"]) == 0
    assert json.loads(capfd.readouterr().out.splitlines()[-1])["path"].endswith("red.png")
    copy = media.parent / "copy.png"
    copy.write_bytes((media / "red.png").read_bytes())
    assert main(["index", "add", str(index), str(copy), "--keep-duplicates"]) == 0
    capfd.readouterr()
    assert main(["index", "dedup", str(index)]) == 0
    out, err = capfd.readouterr()
    assert "1 deleted, 3 left" in out
    assert err.startswith(f"duplicate: {copy}: same content as ")
    assert main(["index", "delete", str(index), str(media / "blue")]) == 0  # the beginning of a name is no name
    assert "0 deleted, 3 left" in capfd.readouterr().out
    assert main(["index", "delete", str(index), str(media / "blue.png")]) == 0
    assert "1 deleted, 2 left" in capfd.readouterr().out
    assert main(["index", "optimize", str(index)]) == 0
    assert main(["index", "stats", str(index), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["rows"] == 2


def test_wrong_commands_are_one_line_with_their_exit_code(
    model: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index = str(tmp_path / "i")
    cases = [
        (["search", index], 2, "expected a query"),
        (["search", index, "--text", "a"], 1, "expected an index"),
        (["search", index, "--text", "a", "--weights", "text=x"], 2, "text=1,audio=0.5"),
        (["search", index, "--text", "a", "-k", "0"], 2, ""),
        (["index", "add", index, str(media)], 2, "give --model nano"),
        (["index", "add", index, str(media), "--model", str(media)], 1, "expected"),
        (["index", "delete", index], 2, "paths or --where"),
        (["embed", str(model)], 2, "to embed, got none"),
        (["search", index, "--text", "a", "--weights", "smell=1"], 2, "got 'smell'; correct --weights"),
        (["embed", str(model), str(media), "--out", "v.txt"], 2, ".npy"),
        (["embed", str(model), str(media), "--batch-size", "0"], 2, "--batch-size"),
        (["embed", str(model), str(media), "--dtype", "int4"], 2, "expected float32, bfloat16 or int8, got int4"),
        (["embed", str(model), str(media), "--device", "abacus"], 2, "got 'abacus'; pass --device cpu"),
    ]
    for arguments, code, message in cases:
        assert main(arguments) == code, arguments
        err = capfd.readouterr().err
        assert message in err
        assert "Traceback" not in err
    assert not Path(index).exists()


def test_embed_writes_vectors(model: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "v.npy"
    arguments = ["embed", str(model), str(media), "--text", "red", "--text", "blue", "--out", str(out), "--json"]
    assert main(arguments) == 0
    assert json.loads(capfd.readouterr().out)["added"] == 5
    images = sorted(media.glob("*.png"))
    assert np.allclose(np.load(out), Embedder(model).embed([*images, "red", "blue"]), atol=1e-6)


def test_embed_fails_on_what_cannot_be_read_where_asked(
    model: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "v.npy"
    (tmp_path / "bad.png").write_bytes(b"bad")
    arguments = ["embed", str(model), str(media), str(tmp_path / "bad.png"), "--out", str(out)]
    assert main([*arguments, "--on-bad", "fail"]) == 1
    error = capfd.readouterr().err.splitlines()[-1]
    assert error.startswith("plait: expected a file that can be read, got ")
    assert "bad.png: " in error and error.endswith("; --on-bad skip leaves it out")
    assert list(tmp_path.iterdir()) == [tmp_path / "bad.png"]
    assert main([*arguments, "--on-bad", "fail"]) == 1
    assert main([*arguments, "--on-bad", "maybe"]) == 2
    assert "expected --on-bad fail or skip, got 'maybe'" in capfd.readouterr().err
    assert main([*arguments, "--on-bad", "skip"]) == 0
    assert "skipped: " in capfd.readouterr().err
    notes = tmp_path / "album" / "notes.txt"
    notes.parent.mkdir()
    picture(notes.parent / "red.png", "red")
    notes.write_text("words")
    strict = ["embed", str(model), "--out", str(out), "--overwrite", "--on-bad", "fail"]
    assert main([*strict, str(notes.parent)]) == 0  # a folder may hold other files
    assert main([*strict, str(notes)]) == 1
    capfd.readouterr()
    assert main([*arguments, "--overwrite"]) == 0
    assert "3 embedded" in capfd.readouterr().out
    assert len(np.load(out)) == 3


def test_weights_are_read_from_text() -> None:
    assert parse_weights("text=1, audio=0.5") == {"text": 1.0, "audio": 0.5}
    with pytest.raises(ValueError, match="got 'text'"):
        parse_weights("text")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_contact_sheet_is_one_page_with_everything_inside(tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i", Embedder((HueModel(), HueProcessor())))
    soundfile.write(tmp_path / "red.wav", tone("red", 0.5), RATE)
    index.add([picture(tmp_path / "red.png", "red"), tmp_path / "red.wav", Sample(id="t", text="<script>red</script>")])
    index.add(picture(tmp_path / "gone.png", "red", 3))
    query = {"text": "red", "audio": str(tmp_path / "red.wav"), "not": {"image": str(tmp_path / "red.png")}}
    hits = index.search("red")
    (tmp_path / "gone.png").unlink()
    page = write_contact_sheet(tmp_path / "page.html", [(query, hits), ("blue", [])], title="Red & more")
    content = page.read_text()
    parser = _Tags()
    parser.feed(content)
    assert parser.open == []
    sources = [attributes["src"] or "" for tag, attributes in parser.tags if tag in ("img", "audio")]
    assert len(sources) == 4
    assert all(source.startswith("data:") for source in sources)
    assert sum(source.startswith("data:audio/") for source in sources) == 2
    assert not [tag for tag, _ in parser.tags if tag in ("script", "link")]
    assert "no such file" in content
    assert "Nothing found" in content
    assert "Red &amp; more" in content
    assert "prefers-color-scheme: dark" in content


def test_bars_are_on_one_scale_and_names_lead_to_their_files(media: Path, tmp_path: Path) -> None:
    index = Index.create(tmp_path / "i.lance", Embedder((HueModel(), HueProcessor())))
    index.add(media, show_progress=False)
    hits = index.search("red", k=3)
    page = write_contact_sheet(tmp_path / "page.html", [("red", hits)]).read_text()
    assert [f"width:{max(hit.score, 0) * 100:.0f}%" in page for hit in hits] == [True] * 3
    assert page.count(f'<a href="{(media / "red.png").as_uri()}">') == 3


def test_weights_of_what_is_not_asked_with_are_an_error(
    model: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = ["search", str(tmp_path / "i.lance"), "--text", "red", "--weights"]
    for weights, said in (("image=1", "(text), got image; leave it out"), ("text=1,not=0.5", "got not; leave it out")):
        assert main([*arguments, weights]) == 2
        assert said in capfd.readouterr().err


def test_queries_of_a_file_are_answered_in_one_go(
    model: Path, media: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    index, queries = tmp_path / "many.lance", tmp_path / "queries.txt"
    assert main(["index", "add", str(index), str(media), "--model", str(model)]) == 0
    queries.write_text("red\n\n" + json.dumps({"image": str(media / "blue.png")}) + "\n", encoding="utf-8")
    capfd.readouterr()
    assert main(["search", str(index), "--queries", str(queries), "-k", "1", "--json"]) == 0
    first, second = map(json.loads, capfd.readouterr().out.splitlines())
    assert first["query"] == "red" and len(first["hits"]) == 1 and second["hits"][0]["path"].endswith("blue.png")
    assert main(["search", str(index), "--queries", str(queries), "--text", "red"]) == 2
    assert "expected --queries alone, got --text beside it" in capfd.readouterr().err
    queries.write_text('{"image": ', encoding="utf-8")
    assert main(["search", str(index), "--queries", str(queries)]) == 2
    assert "query 1, got" in capfd.readouterr().err


@pytest.mark.parametrize("address", ["s3://photos/i", "memory://i", "file:///nowhere/i", "gs://a/b.lance"])
def test_an_address_is_one_line_and_makes_no_directory(
    address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("a dog")
    for verb in (
        ["index", "create", address, "--model", "nano"], ["index", "add", address, "a.txt", "--model", "nano"],
        ["search", address, "--text", "dog"], ["search", "here", "--image", address],
        ["embed", "nano", "--text", "dog", "--out", f"{address}.parquet"],
        ["embed", "nano", address.replace("s3:", "file:").replace("gs:", "zip:").replace("memory:", "hf:")],
    ):  # fmt: skip
        assert main(verb) == 2
        told = capsys.readouterr().err.strip().splitlines()
        assert "a path of this machine" in told[-1] and len(told) == 1
    assert [one.name for one in tmp_path.iterdir()] == ["a.txt"]


def test_audio_longer_than_the_model_takes_is_pooled_and_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import wave

    clip, index = tmp_path / "sounds" / "long.wav", tmp_path / "i"
    clip.parent.mkdir()
    with wave.open(str(clip), "wb") as file:
        noise = np.random.default_rng(0).integers(-9000, 9000, 18 * 16000)
        file.setparams((1, 2, 16000, len(noise), "NONE", ""))
        file.writeframes(noise.astype("<i2").tobytes())
    (tmp_path / "queries").write_text(json.dumps({"audio": str(clip)}), encoding="utf-8")
    for verb in (
        ["embed", "nano", str(clip), "--out", str(tmp_path / "v.npy")],
        ["index", "add", str(index), str(clip), "--model", "nano"],
        ["search", str(index), "--audio", str(clip)],
        ["search", str(index), "--queries", str(tmp_path / "queries"), "--json"],
        ["index", "watch", str(tmp_path / "watched"), str(clip.parent), "--once", "--still", "0", "--model", "nano"],
    ):
        assert main(verb) == 0
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("windowed")]
        assert len(said) == 1 and "long.wav: longer than the model takes, the mean of " in said[0], verb
