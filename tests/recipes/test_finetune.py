"""`plait train finetune` from a folder to a model directory: every task of every family, killed and resumed."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.cli import main
from plait.data.manifest import read_manifest
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.recipes import RECIPES
from plait.recipes.finetune import score, trivial
from plait.training import checkpoint
from plait.training.checkpoint import CheckpointStore
from plait.training.logging import read_metrics
from plait.types import Sample
from plait_studies.mplug2.training import SPECIAL, vocabulary

COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250), "green": (0, 200, 0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Eighteen pictures and six sounds of three colours, a third held out."""
    soundfile = pytest.importorskip("soundfile")
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    rows = []
    for number in range(18):
        name = list(COLOURS)[number % 3]
        noise = rng.integers(0, 40, (24, 24, 3))
        pixels = np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
        rows.append(
            {"id": f"i{number}", "image": f"{number}.png", "text": name, "label": name, "question": "which colour",
             "answers": [name], "boxes": [[2.0, 2.0, 12.0, 10.0]], "split": "test" if number >= 12 else "train"}
        )  # fmt: skip
        if number % 3 == 0:
            tone = np.sin(np.arange(16000) * (0.1 + 0.1 * (number % 2))).astype(np.float32) * 0.3
            soundfile.write(root / f"{number}.wav", tone, 16000)
            rows.append({"id": f"a{number}", "audio": f"{number}.wav", "text": name, "label": "tone",
                         "split": "test" if number >= 12 else "train"})  # fmt: skip
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def start(tmp_path_factory) -> Path:
    """A tiny mPLUG-2 with a vocabulary of its own."""
    pieces = vocabulary([*COLOURS, "which colour a the describe image video of"])
    processor = MPlug2Processor.build(12, pieces, num_frames=3, max_text_tokens=12)
    ids = {f"{name}_token_id": pieces.index(p) for name, p in (("pad", "[PAD]"), ("bos", "[CLS]"), ("eos", "[SEP]"))}
    torch.manual_seed(0)
    config = MPlug2Config.preset("tiny", vocab_size=len(pieces), queue_size=8, **ids, grounding_start_id=10)
    directory = tmp_path_factory.mktemp("start")
    MPlug2ForPreTraining(config).save_pretrained(directory)
    processor.save_pretrained(directory)
    assert set(SPECIAL) <= set(pieces)
    return directory


def command(model: Path | str, data: Path, out: Path, task: str, **settings: object) -> list[str]:
    given = {"model": model, "data": data, "task": task, "batch_size": 4, "steps": 3, **settings}
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return ["train", "finetune", *words, "--out", str(out), "--device", "cpu"]


ONE_PEACE = {
    "retrieval": {},
    "retrieval with adapters": {"lora": 2},
    "retrieval of sounds": {"medium": "audio", "batch_size": 2},
    "classify": {},
    "classify with adapters": {"lora": 2},
    "vqa": {},
}


@pytest.mark.parametrize("name", list(ONE_PEACE))
def test_one_peace_is_measured_before_and_after(
    name: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task, settings = name.split(maxsplit=1)[0], ONE_PEACE[name]
    assert main(command("nano", data, tmp_path, task, **settings)) == 0
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "finetune.json").read_text())
    assert "GFLOPs a step" in said and said.index("trivial") < said.index("before  ") < said.index("after")
    assert found["rows"]["test"] == (6 if settings.get("medium") != "audio" else 2)
    for one in ("trivial", "before", "after"):
        low, high = found[one]["interval"]
        assert 0 <= low <= found[one]["value"] <= high <= 1
    model, _ = plait.load(tmp_path / "model")
    assert (tmp_path / "report.html").stat().st_size > 1000
    if "lora" in settings:
        assert not any("lora" in key for key in model.state_dict())
        assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize("task", ["retrieval", "classify", "caption", "vqa", "ground"])
@pytest.mark.parametrize("lora", [0, 2])
def test_mplug2_is_measured_before_and_after(task: str, lora: int, data: Path, start: Path, tmp_path: Path) -> None:
    assert main(command(start, data, tmp_path, task, lora=lora, steps=2)) == 0
    found = json.loads((tmp_path / "finetune.json").read_text())
    assert found["after"]["metric"] == found["trivial"]["metric"]
    model, _ = plait.load(tmp_path / "model")
    assert not any("lora" in key for key in model.state_dict())


def test_a_finetuned_model_is_better_and_plain_transformers_loads_it(data: Path, tmp_path: Path) -> None:
    assert main(command("nano", data, tmp_path, "classify", steps=40, lr=1e-3)) == 0
    found = json.loads((tmp_path / "finetune.json").read_text())
    assert found["after"]["value"] == 1.0 > found["trivial"]["value"]
    card = (tmp_path / "model" / "README.md").read_text()
    lines = card.split("```python\n")[1].split("```")[0].splitlines()
    assert len(lines) == 3
    scope: dict = {}
    exec("\n".join(lines).replace('"model"', repr(str(tmp_path / "model"))), scope)
    mine, _ = plait.load(tmp_path / "model")
    pixels = torch.randn(2, 3, mine.config.image_size, mine.config.image_size)
    with torch.no_grad():
        logits = scope["model"].eval()(pixel_values=pixels)["logits"]
        torch.testing.assert_close(logits, mine(pixel_values=pixels)["logits"])
    assert set(mine.config.id2label.values()) == set(COLOURS)


@pytest.mark.parametrize("settings", [{"lora": 2}, {}])
def test_the_bases_other_parameters_stay(settings: dict, data: Path, tmp_path: Path) -> None:
    assert main(command("nano", data, tmp_path, "retrieval", **settings)) == 0
    before, after = (plait.load(path)[0].state_dict() for path in ("nano", tmp_path / "model"))
    same = {key for key in before if torch.equal(before[key].float(), after[key].float())}
    changed = before.keys() - same
    assert {key for key in before if ".audio." in key} <= same
    assert any(".mlp.image." in key for key in changed)
    assert not settings or all("proj" in key and key.startswith("trunk.layers") for key in changed)


def test_a_killed_finetuning_goes_on_and_exports(data: Path, tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    settings = {"lora": 2, "steps": 30}
    assert main(command("nano", data, whole, "retrieval", **settings)) == 0
    argv = [*command("nano", data, killed, "retrieval", **settings), "--checkpoint-seconds", "0"]
    code = f"import sys, torch; torch.set_num_threads(1); from plait.cli import main; sys.exit(main({argv!r}))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 60
    while len(read_metrics(killed / "metrics.jsonl")) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    os.kill(process.pid, signal.SIGKILL)
    assert process.communicate()[1] is not None and process.returncode == -signal.SIGKILL
    assert not (killed / "model").exists()
    assert main(argv) == 0
    losses = [[row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (whole, killed)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-6) and len(losses[0]) == 30
    results = [json.loads((run / "finetune.json").read_text()) for run in (whole, killed)]
    assert results[0] == results[1]
    states = [plait.load(run / "model")[0].state_dict() for run in (whole, killed)]
    for key, value in states[0].items():
        torch.testing.assert_close(states[1][key], value, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("settings", "code", "message"),
    [
        (
            {"task": "chat"},
            2,
            "expected a task that finetune knows for one_peace (retrieval, classify, vqa, ground, compare, audio_qa, "
            "tag, detect, segment), got chat",
        ),
        ({"task": "caption"}, 2, "got caption"),
        ({"task": "classify", "medium": "smell"}, 2, "expected medium image, audio, video, text, got 'smell'"),
        ({"task": "retrieval", "bits": 4}, 2, "expected lora beside bits=4"),
        ({"task": "retrieval", "medium": "video"}, 1, "got 0 and 0; plait data from-folder splits a folder"),
        ({"task": "retrieval", "model": "nowhere"}, 2, "expected model=DIR with config.json, or nano"),
        ({"task": "retrieval", "workres": 3}, 2, "did you mean 'workers'?"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    settings: dict, code: int, message: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"model": "nano", "data": data, **settings}
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    assert main(["train", "finetune", *words, "--out", str(tmp_path / "run")]) == code
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    if code == 2:
        assert not (tmp_path / "run" / "config.json").exists()


def test_bad_rows_are_fatal_or_listed(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()]
    rows = [{**row, "image": str(data / row["image"])} for row in rows if "image" in row]
    (tmp_path / "torn.png").write_bytes(b"torn")
    rows[0]["image"] = str(tmp_path / "torn.png")
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*command("nano", tmp_path, tmp_path / "strict", "retrieval"), "--outside"]) == 1
    assert "torn.png" in capsys.readouterr().err
    assert main([*command("nano", tmp_path, tmp_path / "lenient", "retrieval", on_bad="skip"), "--outside"]) == 0
    lines = (tmp_path / "lenient" / "bad_samples.txt").read_text().splitlines()
    assert len(lines) == 1 and lines[0].startswith("i0: expected an image file, got ")
    assert (
        main([*command("nano", tmp_path, tmp_path / "limited", "retrieval", on_bad="skip", most_bad=0), "--outside"])
        == 1
    )
    assert "expected at most 0 bad samples, got 1" in capsys.readouterr().err


def test_what_breaks_is_one_line_and_nothing_is_lost(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A full disk, a loss that is no number, a missing shard, a wrong manifest."""
    argv = [*command("nano", data, tmp_path / "run", "retrieval", lora=2, steps=8), "--checkpoint-seconds", "0"]

    def fails(words: list[str]) -> str:
        capsys.readouterr()
        assert main(words) == 1
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("plait:")]
        assert len(lines) == 1
        return lines[0]

    synced, written = checkpoint.sync, 0

    def full(path: Path) -> None:
        nonlocal written
        written += 1
        if written > 12:
            raise OSError(28, "No space left on device")
        synced(path)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "sync", full)
        said = fails(argv)
        assert "No space left on device; check the free space and run again, earlier checkpoints are intact" in said
    assert CheckpointStore(tmp_path / "run" / "checkpoints").steps()
    assert main(argv) == 0
    assert main(command("nano", data, tmp_path / "whole", "retrieval", lora=2, steps=8)) == 0
    losses = [[row["loss"] for row in read_metrics(tmp_path / n / "metrics.jsonl")] for n in ("run", "whole")]
    assert losses[0] == losses[1]

    said = fails(command("nano", data, tmp_path / "nan", "classify", lr=1e30, steps=8))
    assert "expected a finite loss and gradient, got loss nan" in said and "with samples i" in said
    assert main(["data", "pack", str(data), str(tmp_path / "shards"), "--shard-mb", "1"]) == 0
    (tmp_path / "shards" / "shard-00000.tar").unlink()
    assert "shard-00000.tar, got no such file" in fails(command("nano", tmp_path / "shards", tmp_path / "x", "vqa"))
    (tmp_path / "manifest.jsonl").write_text('{"id": "a", "text": "x"}\n{"id": "b", "image": 3}\n')
    said = fails(command("nano", tmp_path / "manifest.jsonl", tmp_path / "y", "vqa"))
    assert "manifest.jsonl, line 2: field 'image': expected a string, got int" in said


def test_shards_train_as_their_manifest(data: Path, tmp_path: Path) -> None:
    assert main(["data", "pack", str(data), str(tmp_path / "shards")]) == 0
    losses = []
    for place in (data, tmp_path / "shards"):
        out = tmp_path / f"run-{place.name}"
        assert main(command("nano", place, out, "retrieval", lora=2)) == 0
        losses.append([row["loss"] for row in read_metrics(out / "metrics.jsonl")])
    assert losses[0] == losses[1]


@pytest.mark.parametrize(("family", "task"), [("nano", "classify"), ("mplug2", "caption")])
def test_a_plan_comes_before_everything(
    family: str, task: str, data: Path, start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = start if family == "mplug2" else family
    words = ["plan", "finetune", *command(model, data, data, task, lora=2)[2:-4], "--json"]
    assert main(words) == 0
    (plan,) = json.loads(capsys.readouterr().out)
    assert plan["flops"] > 0 and 0 < sum(plan["trainable"].values()) < sum(plan["frozen"].values())


DOCUMENT = Path(__file__).parents[2] / "docs" / "finetune.md"


def test_the_example_of_the_document_runs(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its commands, on three folders of pictures and with few steps."""
    for row in read_manifest(data):
        if row.image is not None:
            place = tmp_path / "photos" / str(row.label)
            place.mkdir(parents=True, exist_ok=True)
            (place / Path(row.image).name).write_bytes(Path(row.image).read_bytes())
    monkeypatch.chdir(tmp_path)
    block = DOCUMENT.read_text(encoding="utf-8").split("```bash\n")[1].split("```")[0]
    commands = [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("plait ")]
    assert 3 <= len(commands) <= 5
    for words in commands:
        more = ["--set", "steps=3", "--set", "batch_size=4"] if words[1] in ("train", "plan") else []
        assert main([*words[1:], *more]) == 0, words
    assert "after    recall@1" in capsys.readouterr().out
    assert (tmp_path / "runs" / "mine" / "model" / "README.md").is_file()


def test_the_measures_of_trivial_answers() -> None:
    rows = [Sample(str(i), text=name, label=name, answers=[name]) for i, name in enumerate("aaab")]
    assert trivial("retrieval", rows, rows)["value"] == pytest.approx((3 * 3 / 4 + 1 / 4) / 4)
    assert trivial("classify", rows, rows)["value"] == trivial("vqa", rows, rows)["value"] == 0.75
    assert trivial("caption", rows, rows)["about"] == "always 'a'"
    same = np.eye(4)
    assert score("retrieval", (same, same), rows)["value"] == 1.0
    with pytest.raises(ValueError, match="expected a box x0, y0, x1, y1 in row '0'"):
        trivial("ground", rows, rows)


def test_the_recipe_is_in_the_table_and_the_mini_data_serves(tmp_path: Path) -> None:
    assert RECIPES["finetune"] == "plait.recipes.finetune:finetune"
    from plait.data.mini import cached_mini

    assert any(sample.split == "test" for sample in read_manifest(cached_mini()))
