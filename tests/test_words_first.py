"""What is wrong with a command is told before a model is read for it; an option without effect is wrong too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from plait.cli import VERBS, command, main

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a picture and a manifest of it, in which no model can be read."""
    pytest.importorskip("lancedb")

    def read(*_: object, **__: object) -> None:
        raise RuntimeError("a model was read")

    for name in ("plait.models.auto.load", "plait.models.auto.opened", "plait.embedder.towers.load_tower"):
        monkeypatch.setattr(name, read)
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8), "red").save("a.png")
    Path("manifest.jsonl").write_text(json.dumps({"id": "a", "image": "a.png", "text": "red"}) + "\n")
    return tmp_path


def said(capsys: Capture, *argv: str) -> str:
    """The one line of a command that fails."""
    assert main(list(argv)) in (1, 2), argv
    line = capsys.readouterr().err.strip()
    assert "\n" not in line and "a model was read" not in line and "Traceback" not in line, line
    return line


def test_what_is_wrong_is_told_before_a_model_is_read(place: Path, capsys: Capture) -> None:
    from plait.search.index import create_table

    create_table(place / "i.lance", {"fingerprint": "x", "modalities": ["image"], "model": "nano", "adapter": None}, 4)
    for line, words in {
        "index create i.lance --model nano": "expected no index",
        "index add i.lance nope/ --model nano": "got nope: no such file",
        "embed nano nope.png": "got nope.png: no such file",
        "search i.lance --image nope.png": "got nope.png: no such file",
        "search i.lance --text=": "empty text",
        "search i.lance --text red --not=": "empty text",
        "eval emergent nano --data .": "pictures of split 'test'",
        "answer nano a.png": "expected a question or phrase for a.png",
        "answer nano manifest.jsonl": "expected a question or phrase for sample a",
        "ground nano a.png": "expected a question or phrase",
        "classify nano a.png --labels @nope.txt": "got nope.txt: no such file or directory",
        "classify nano a.png --labels ,": "empty list",
        "answer nano a.png what? --answers @a.png": "no UTF-8 text",
        "chat nano --top-p 2 --temperature 1": "expected top_p",
    }.items():
        assert words in said(capsys, *line.split(" ")), line


def test_an_option_without_effect_is_an_error(place: Path, capsys: Capture) -> None:
    for line, words in {
        "answer nano a.png what? --top 3": "expected no --top=3",
        "answer nano a.png what? --answers a,b --num-beams 2": "expected no num_beams=2",
        "chat nano --top-p 0.9": "expected top_p",
        "eval emergent nano --data . --split val": "expected no --split=val",
        "eval emergent nano --data . --limit 3": "expected no --limit=3",
        "eval compare a b --data .": "expected no --data=.",
        "eval mini_pictures nano --data . --predictions a.png": "expected no MODEL=nano",
        "eval mini_pictures nano --data . --frames time": "which has no films",
        "plan mplug2 caption --dtype bfloat16": "expected no --dtype=bfloat16",
        "search i.lance --text red --weights image=1": "expected weights of what is asked with",
    }.items():
        assert words in said(capsys, *line.split(" ")), line


def test_every_option_of_a_verb_has_a_name_of_its_own() -> None:
    def options(verb: object) -> list[str]:
        return [name for one in getattr(verb, "params", ()) for name in (*one.opts, *one.secondary_opts)]

    for name in VERBS:
        verb = command(name)
        for one in getattr(verb, "commands", {name: verb}).values():
            assert len(options(one)) == len(set(options(one))), name


def test_an_evaluation_takes_a_number_of_items_and_limits_of_media_by_one_option(
    place: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[object] = []
    noted: Callable[..., str] = lambda *args: seen.append(args[5].limit) or ""  # noqa: E731 (one expression)
    monkeypatch.setattr("plait.cli.evaluate._run", noted)
    for given in (("--limit", "5"), ("--limit", "max_seconds=3600", "--limit", "7"), ()):
        assert main(["eval", "textvqa", "nano", "--data", ".", *given]) == 0
    assert seen == [5, 7, None]
    for wrong in ("0", "many", "-1"):
        assert "a number of items" in said(capsys, "eval", "textvqa", "nano", "--data", ".", f"--limit={wrong}")
