"""`plait eval TASK hf:DIR` as it is typed: peers and ours in one table, killed and taken up, re-scored, compared."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny_families import FAMILIES
from tiny_peers import BUILDERS
from whole_fixtures import fixture

from plait.cli import main
from plait.evaluation.peers import TextGenerator
from plait.evaluation.tasks import TASKS

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about generation settings
Run = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """A function that names the directory of a tiny model, built once."""
    root = tmp_path_factory.mktemp("models")

    def directory(name: str) -> str:
        if not (root / name).exists():
            (BUILDERS | FAMILIES)[name](root / name)
        return f"hf:{root / name}" if name in BUILDERS else str(root / name)

    return directory


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture) -> Run:
    """A function that types `plait eval TASK MODEL --data FIXTURE --json` and returns what it prints."""

    def typed(task: str, model: str | None, *more: str) -> dict[str, Any]:
        data, split = fixture(TASKS[task], TASKS[task].layouts[0], tmp_path / task)
        words = [task, *([model] if model else []), "--data", str(data), "--split", split, "--json", *more]
        assert main(["eval", *words]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    return typed


@pytest.mark.parametrize(
    ("task", "model", "way"),
    [
        ("vqav2", "llava", "prompt"),
        ("vqav2", "blip2", "prompt"),
        ("vqav2", "mplug_owl2", "prompt"),
        ("nlvr2", "llava", "prompt"),
        ("msvd_qa", "blip2", "prompt"),
        ("mme", "blip2", "prompt"),
        ("arc_easy", "llava", "rank_choices"),
        ("coco_retrieval", "clip", "retrieve"),
        ("coco_retrieval", "one_peace", "retrieve"),
        ("msrvtt_retrieval", "clip", "retrieve"),
        ("imagenet", "clip", "zero_shot"),
        ("flickr30k_retrieval", "sentence_clip", "retrieve"),
        ("glue_stsb", "sentence", "similarity"),
        ("glue_stsb", "clip", "similarity"),
    ],
)
def test_peers_and_ours_run_the_same_tasks(
    task: str, model: str, way: str, models: Callable[[str], str], run: Run, tmp_path: Path
) -> None:
    result = run(task, models(model), "--out", str(tmp_path / "out"))
    assert (result["model"]["name"], result["model"]["method"]) == (model, way)
    assert result["items"] > 0
    assert set(result["environment"]["versions"]) >= {"plait", "torch", "transformers", "numpy"}
    page = (tmp_path / "out" / "result.html").read_text()
    assert result["model"]["fingerprint"] in page
    assert result["environment"]["versions"]["torch"] in page
    again = run(task, None, "--predictions", str(tmp_path / "out" / "predictions.jsonl"))
    assert again["scores"] == pytest.approx(result["scores"])


def test_missing_media_are_told_before_a_model_is_opened(tmp_path: Path, capsys: Any) -> None:
    data, _ = fixture(TASKS["vqav2"], "vqav2", tmp_path / "data")
    for path in data.glob("*.jpg"):
        path.unlink()
    assert main(["eval", "vqav2", str(tmp_path / "no-such-model"), "--data", str(data)]) == 1
    error = capsys.readouterr().err
    assert re.search(r"got none for 3: (COCO_val2014_\d{12}\.jpg[,;] ){3}add them", error)
    assert len(error.strip().splitlines()) == 1


def test_what_a_peer_cannot_do_is_one_line(models: Callable[[str], str], tmp_path: Path, capsys: Any) -> None:
    data, _ = fixture(TASKS["vqav2"], "vqav2", tmp_path / "data")
    assert main(["eval", "vqav2", models("clip"), "--data", str(data)]) == 1
    error = capsys.readouterr().err
    assert "expected a model that can decide or generate" in error
    assert len(error.strip().splitlines()) == 1


SCRIPT = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from plait.evaluation import peers
from plait.cli import main
plain, calls = peers.TextGenerator.generate, []

def mortal(self, asks, decoding):
    if len(calls) == {after}:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(len(asks))
    return plain(self, asks, decoding)

peers.TextGenerator.generate = mortal
sys.exit(main({words!r}))
"""


def test_a_killed_command_goes_on_without_asking_again(
    models: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    data, _ = fixture(TASKS["vqav2"], "vqav2", tmp_path / "data")
    words = ["eval", "vqav2", models("llava"), "--data", str(data), "--out", str(tmp_path / "out"), "--batch-size", "1"]
    script = SCRIPT.format(tests=str(Path(__file__).parent), after=2, words=words)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = (tmp_path / "out" / "cache.jsonl").read_text().splitlines()
    assert len(kept) == 1 + 2
    assert not (tmp_path / "out" / "result.json").exists()
    asked: list[int] = []
    plain = TextGenerator.generate
    monkeypatch.setattr(TextGenerator, "generate", lambda self, a, d: asked.append(len(a)) or plain(self, a, d))
    assert main(words) == 0
    assert asked == [1]
    assert (tmp_path / "out" / "cache.jsonl").read_text().splitlines()[:3] == kept
    resumed = json.loads((tmp_path / "out" / "result.json").read_text())
    words[words.index(str(tmp_path / "out"))] = str(tmp_path / "whole")
    assert main(words) == 0
    whole = json.loads((tmp_path / "whole" / "result.json").read_text())
    assert resumed["predictions_sha256"] == whole["predictions_sha256"]
    assert main(words) == 0
    assert asked == [1, 1, 1, 1]  # a finished run asks nothing


def test_every_rule_is_printed_with_its_score(models: Callable[[str], str], tmp_path: Path, capsys: Any) -> None:
    data, _ = fixture(TASKS["vqav2"], "vqav2", tmp_path / "data")
    out = tmp_path / "out"
    assert main(["eval", "vqav2", models("blip2"), "--data", str(data), "--out", str(out)]) == 0
    assert "rule official" in capsys.readouterr().out
    items = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    replies = ["two", "The  Dog.", "2"]
    rows = [row | {"prediction": reply} for row, reply in zip(items, replies, strict=True)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for rule in ("official", "release", "evalai"):
        words = ["eval", "vqav2", "--predictions", str(tmp_path / "mine.jsonl"), "--data", str(data), "--rule", rule]
        assert main([*words, "--out", str(tmp_path / rule)]) == 0
        assert f"rule {rule}, 3 items" in capsys.readouterr().out
        assert f"rule {rule}" in (tmp_path / rule / "result.html").read_text()
    assert main(["eval", "compare", str(tmp_path / "official"), str(tmp_path / "evalai")]) == 1
    assert "expected two results with the same rule, got 'official' and 'evalai'" in capsys.readouterr().err
    assert main(["eval", "compare", str(tmp_path / "official"), str(out)]) == 0
    assert "paired bootstrap over" in capsys.readouterr().out
