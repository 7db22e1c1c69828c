"""mPLUG-Owl and mPLUG-Owl2 on one's own rows: every task, measured before and after, loaded again by transformers."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

import plait
from plait.cli import main
from plait.models.mplug_owl.weights import around
from plait.recipes.finetune import score, trivial
from plait.recipes.mplug_owl import TOWERS
from plait.training.logging import read_metrics
from plait.types import Sample

from ..models.mplug_owl2.tiny import byte_tokenizer, model_and_processor

COLOURS = ("red", "green", "navy", "white")
TASKS = {"classify": 0, "caption": 2, "vqa": 0, "chat": 2}
"""Task -> rank of the adapter in the test."""


@pytest.fixture(scope="module")
def owls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model directory of each family."""
    root = tmp_path_factory.mktemp("owls")
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    tokens = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(vocab_size=260, num_attention_heads=4, **sizes, **tokens)).save_pretrained(
        root / "llm"
    )
    byte_tokenizer().save_pretrained(root / "llm")
    vision, reader = TOWERS["tiny"]
    for name, (model, processor) in {
        "mplug_owl": around(str(root / "llm"), vision=vision, abstractor=reader, temporal=False, seed=0),
        "mplug_owl2": model_and_processor(),
    }.items():
        model.save_pretrained(root / name)
        processor.save_pretrained(root / name)
    return {name: root / name for name in ("mplug_owl", "mplug_owl2")}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with words, a question, a label and a talk of two turns; and a talk about nothing."""
    root = tmp_path_factory.mktemp("data")
    rows: list[dict[str, Any]] = []
    for number in range(8):
        colour, split = COLOURS[number % 4], "test" if number >= 4 else "train"
        Image.new("RGB", (20 + number, 30), colour).save(root / f"{number}.png")
        talk = talked("<image>what colour?", colour, "are you sure?", f"yes, {colour}")
        rows.append(
            {"id": f"r{number}", "image": f"{number}.png", "captions": [colour, f"all {colour}"], "label": colour,
             "question": "what colour?", "answers": [colour], "messages": talk, "split": split}
        )  # fmt: skip
    rows += [{"id": f"t-{split}", "messages": talked("hm?", "ok"), "split": split} for split in ("train", "test")]
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def talked(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(said)]


def command(model: Path, data: Path, out: Path, task: str, **settings: object) -> list[str]:
    given = {"model": model, "data": data, "task": task, "batch_size": 4, "steps": 2, **settings}
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    return ["train", "finetune", *words, "--out", str(out), "--device", "cpu"]


def result(run: Path) -> dict[str, Any]:
    return json.loads((run / "finetune.json").read_text())


@pytest.fixture(scope="module")
def runs(owls: dict[str, Path], data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], Path]:
    """A finished run of every task with every family."""
    root = tmp_path_factory.mktemp("runs")
    found = {(family, task): root / f"{family}-{task}" for family in owls for task in TASKS}
    for (family, task), run in found.items():
        assert main(command(owls[family], data, run, task, lora=TASKS[task])) == 0
    return found


@pytest.mark.parametrize("task", list(TASKS))
@pytest.mark.parametrize("family", ["mplug_owl", "mplug_owl2"])
def test_every_task_is_measured_before_and_after(
    family: str, task: str, runs: dict[tuple[str, str], Path], owls: dict[str, Path]
) -> None:
    run = runs[family, task]
    found = result(run)
    metric = {"caption": "CIDEr", "chat": "bits per byte"}.get(task, "accuracy")
    assert {found[name]["metric"] for name in ("trivial", "before", "after")} == {metric}
    assert found["rows"]["test"] == (5 if task == "chat" else 4)  # a talk needs no picture
    before, after = (plait.load(place)[0].state_dict() for place in (owls[family], run / "model"))
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert (run / "adapter").is_dir() == bool(TASKS[task])


def test_plain_transformers_loads_every_family_in_three_lines_of_a_fresh_process(
    runs: dict[tuple[str, str], Path],
) -> None:
    code = []
    for family in ("mplug_owl", "mplug_owl2"):
        model = runs[family, "chat"] / "model"
        lines = (model / "README.md").read_text().split("```python\n")[1].split("```")[0].splitlines()
        assert len(lines) == 3 and "from transformers import" in lines[1]
        code += [*(line.replace('"model"', repr(str(model))) for line in lines), "print(type(model).__name__)"]
    done = subprocess.run([sys.executable, "-c", "\n".join(code)], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["MPlugOwlForConditionalGeneration", "MPlugOwl2ForConditionalGeneration"]


def test_a_conversation_is_learned(owls: dict[str, Path], data: Path, tmp_path: Path) -> None:
    assert main(command(owls["mplug_owl2"], data, tmp_path, "chat", steps=60, lr=1e-2)) == 0
    found = result(tmp_path)
    assert found["after"]["value"] < found["trivial"]["value"] < found["before"]["value"]
    losses = [row["loss"] for row in read_metrics(tmp_path / "metrics.jsonl")]
    assert losses[-1] < 0.5 * losses[0]


def test_the_bits_of_a_conversation_are_those_of_the_models_loss(owls: dict[str, Path], data: Path) -> None:
    """Nats of rows alone sum up to the loss of their batch, whatever their lengths."""
    from plait.recipes.finetune import finetune
    from plait.recipes.mplug_owl2 import JOBS, read_talk, talked

    recipe = finetune(str(owls["mplug_owl2"]), str(data), "chat", batch_size=5)
    request = recipe.save.args[0]
    job = JOBS["chat"](request)
    model, processor = plait.load(owls["mplug_owl2"])
    nats = job.predict(model, request.test)
    drawing = np.random.default_rng(0)
    batch = talked(processor, 2048, [read_talk(8, sample, drawing) for sample in request.test])
    with torch.no_grad():
        loss = model(**batch).loss
    count = int((batch["labels"][:, 1:] != -100).sum())
    assert sum(nats) == pytest.approx(float(loss) * count, rel=1e-4)


def test_bits_per_byte_count_the_end_of_every_answer() -> None:
    rows = [Sample(str(i), messages=talked("hm?", text, "so?", "ab")) for i, text in enumerate(("abc", "é"))]
    found = score("chat", [math.log(2) * 7, math.log(2) * 12], rows)
    assert found["value"] == pytest.approx(19 / (7 + 6)) and found["about"] == "low is good"
    few = trivial("chat", rows, rows)
    assert math.log2(5) < few["value"] < 8  # six bytes are met, 256 are possible
    with pytest.raises(ValueError, match="expected messages with an answer of the assistant in row 'x', got none"):
        score("chat", [1.0], [Sample("x", messages=talked("hm?"))])


def test_a_row_without_its_question_is_named(
    owls: dict[str, Path], data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [json.loads(line) for line in (data / "manifest.jsonl").read_text().splitlines()][:8]
    rows = [{**row, "image": str(data / row["image"]), "question": None, "messages": None} for row in rows]
    (tmp_path / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert main([*command(owls["mplug_owl2"], tmp_path, tmp_path / "run", "vqa"), "--outside"]) == 1
    assert "expected a question or phrase for sample r4, got none" in capsys.readouterr().err
    assert main(command(owls["mplug_owl2"], tmp_path, tmp_path / "run", "ground")) == 2
    assert "(classify, caption, vqa, chat), got ground" in capsys.readouterr().err
