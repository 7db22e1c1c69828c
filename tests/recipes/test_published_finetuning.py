"""ONE-PEACE's ten published finetuning settings: numbers by value, published losses, each trained on small data."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from plait.cli import main
from plait.errors import UsageError
from plait.recipes.finetune import finetune
from plait.recipes.one_peace_tasks import PUBLISHED, several, soft_answers
from plait.recipes.settings import setting_of
from plait.training.run import run_recipe
from plait.types import Sample

# Task, medium, benchmark -> rate, epochs, rows over eight GPUs, layer decay, drop path (specification ONE-PEACE, 7, 8).
TABLE: dict[tuple[str, str, str], tuple[float, int, int, float, float]] = {
    ("retrieval", "image", "coco"): (8e-5, 15, 16, 0.9, 0.5),
    ("retrieval", "image", "flickr30k"): (7e-5, 20, 16, 0.9, 0.4),
    ("retrieval", "audio", "audiocaps_clotho_macs"): (1.5e-4, 10, 16, 0.95, 0.9),
    ("vqa", "image", "vqav2"): (3e-4, 10, 512, 0.85, 0.5),
    ("compare", "image", "nlvr2"): (1e-4, 25, 128, 0.9, 0.4),
    ("ground", "image", "refcoco"): (1.5e-4, 30, 256, 0.9, 0.4),
    ("ground", "image", "refcocog"): (1.5e-4, 30, 256, 0.9, 0.4),
    ("audio_qa", "audio", "avqa"): (7e-5, 10, 128, 0.9, 0.5),
    ("tag", "audio", "fsd50k"): (1e-4, 10, 128, 0.9, 0.5),
    ("classify", "audio", "vggsound"): (8e-5, 10, 512, 0.95, 0.6),
    ("classify", "image", "imagenet"): (3e-5, 15, 1024, 0.9, 0.4),
    ("classify", "video", "kinetics"): (3e-4, 30, 64, 1.0, 0.4),
}


@pytest.fixture(scope="module")
def rows(world: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifests of one kind each beside the pictures, sounds and films of the world."""
    data, _ = world
    lines = {name: [json.loads(x) for x in (data / f"{name}.jsonl").read_text().splitlines()] for name in
             ("images", "sounds", "videos")}  # fmt: skip
    names = sorted({row["label"] for row in lines["sounds"]})
    made = {
        "asked": [{**row, "question": "what is it?", "choices": names, "answers": [row["label"]]}
                  for row in lines["sounds"]],
        "tagged": [{**row, "labels": [row["label"], "tone"][: 1 + i % 2]} for i, row in enumerate(lines["sounds"])],
        "pairs": [
            {"id": f"p{i}", "images": [f"{a}-{s}.png", f"{b}-{s}.png"], "text": f"both are {a}", "label": str(a == b),
             "split": "test" if s == 2 else "train"}
            for s in range(3) for i, (a, b) in enumerate([("red", "red"), ("red", "blue")], start=2 * s)
        ],
        "films": [{**row, "id": f"{row['id']}{s}", "split": s} for row in lines["videos"] for s in ("train", "test")],
    }  # fmt: skip
    for name, several_rows in made.items():
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several_rows))
    return data


RUNS: dict[tuple[str, str, str], tuple[str, str, str]] = {
    ("retrieval", "image", "flickr30k"): ("images", "recall@1", "contrast"),
    ("retrieval", "audio", "audiocaps_clotho_macs"): ("sounds", "recall@1", "contrast"),
    ("vqa", "image", "vqav2"): ("images", "accuracy", "several"),
    ("compare", "image", "nlvr2"): ("pairs", "accuracy", "crossed"),
    ("ground", "image", "refcoco"): ("images", "accuracy@0.5", "located"),
    ("ground", "image", "refcocog"): ("images", "accuracy@0.5", "located"),
    ("audio_qa", "audio", "avqa"): ("asked", "accuracy", "chosen"),
    ("tag", "audio", "fsd50k"): ("tagged", "mAP", "several"),
    ("classify", "audio", "vggsound"): ("sounds", "accuracy", "supervised"),
    ("classify", "image", "imagenet"): ("images", "accuracy", "crossed"),
    ("classify", "video", "kinetics"): ("films", "accuracy", "crossed"),
}


def test_the_published_settings_are_in_the_table() -> None:
    found = {
        (task, medium, name): (s.lr, s.epochs, s.batch_size, s.layer_decay, s.drop_path_rate)
        for (task, medium), of in PUBLISHED.items() for name, s in of.items()
    }  # fmt: skip
    assert found == TABLE
    for (_, medium), of in PUBLISHED.items():
        for s in of.values():
            is_branch = s.floor == 0.0
            assert s.weight_decay == 0.05 and s.warmup in (0.1, 0.2) and (is_branch or s.floor == 1e-6)
            assert medium in ("image", "audio", "video")


@pytest.mark.parametrize("key", RUNS)
def test_each_setting_trains(key: tuple[str, str, str], rows: Path, world: tuple[Path, Path], tmp_path: Path) -> None:
    task, medium, benchmark = key
    name, metric, objective = RUNS[key]
    more: dict[str, Any] = {"batch_size": 4} if medium == "video" else {}

    def build():
        recipe = finetune(
            str(world[1] / "one_peace"), str(rows / f"{name}.jsonl"), task, steps=1, medium=medium, published=True,
            benchmark=benchmark, **more,
        )  # fmt: skip
        stage, setting = recipe.stages[0], PUBLISHED[task, medium][benchmark]
        assert (stage.peak_lr, stage.layer_decay, stage.clip) == (setting.lr, setting.layer_decay, 0.0)
        assert (stage.betas, stage.floor) == (setting.betas, setting.floor)
        function: Any = stage.objective
        assert getattr(function, "func", function).__name__ == objective
        return recipe

    run_recipe(build, tmp_path / "run", device="cpu")
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    assert found["after"]["metric"] == metric and 0 <= found["after"]["value"] <= 1
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    assert config["drop_path_rate"] == PUBLISHED[task, medium][benchmark].drop_path_rate
    if task == "ground":
        assert config["pool_modality"] == ("image" if benchmark == "refcoco" else "text")
        assert config["image_rel_bucket_size"] == 6  # 1.5 times nano's four


def test_soft_answers_are_worth_what_annotators_agree_on() -> None:
    assert soft_answers(Sample("1", answers=["yes"] * 4 + ["no"] * 2 + ["maybe"])) == {
        "yes": 1.0, "no": 0.6, "maybe": 0.3
    }  # fmt: skip
    assert soft_answers(Sample("1", answers=["two"])) == {"two": 1.0}
    assert soft_answers(Sample("1", meta={"answer_scores": {"a": 0.9}})) == {"a": 0.9}


def test_several_is_the_sum_over_classes_and_the_mean_over_rows() -> None:
    logits = torch.tensor([[2.0, -1.0], [0.5, 0.0]])
    target = torch.tensor([[1.0, 0.0], [0.0, 0.6]])

    class Model(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"logits": x}

    loss, _ = several(Model(), {"x": logits, "labels": target}, 0, torch.Generator())
    wanted = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="sum") / 2
    assert torch.allclose(loss, wanted)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        (["task=caption", "published=true"], "expected a task that finetune knows for one_peace"),
        (
            ["task=vqa", "published=true", "benchmark=gqa"],
            "expected a benchmark among vqav2 for vqa of image, got 'gqa'",
        ),
        (["task=vqa", "benchmark=vqav2"], "expected no benchmark=vqav2 beside published=false"),
        (["task=tag", "medium=image"], "expected rows with image and labels"),
    ],
)
def test_wrong_settings_are_one_line(
    settings: list[str], said: str, rows: Path, world: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    given = [f"model={world[1] / 'one_peace'}", f"data={rows / 'images.jsonl'}", *settings]
    words = [word for value in given for word in ("--set", value)]
    assert main(["train", "finetune", *words, "--dry-data", "1"]) in (1, 2)
    error = capsys.readouterr().err
    assert said in error.splitlines()[-1]


def test_a_task_without_a_published_setting_says_which_have_one() -> None:
    with pytest.raises(UsageError, match=r"published setting of \(.*compare of image.*\), got tag of image"):
        setting_of(PUBLISHED, "one_peace", "tag", "image", None)


def scene(root: Path, number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Two discs of different colours in other halves; the row asks for one of them."""
    colours = {"red": (220, 30, 30), "green": (30, 180, 40), "blue": (40, 60, 220)}
    picture, boxes = Image.new("RGB", (64, 64), "white"), []
    names = list(rng.permutation(list(colours)))[:2]
    for side, name in enumerate(names):
        size = int(rng.integers(16, 28))
        x, y = 32 * side + int(rng.integers(0, 32 - size + 1)), int(rng.integers(0, 64 - size + 1))
        boxes.append([float(x), float(y), float(x + size), float(y + size)])
        ImageDraw.Draw(picture).ellipse(boxes[-1], fill=colours[name])
    picture.save(root / f"{number}.png")
    asked = int(rng.integers(2))
    split = "test" if number % 5 == 0 else "train"
    return {
        "id": str(number),
        "image": f"{number}.png",
        "question": names[asked],
        "boxes": [boxes[asked]],
        "split": split,
    }


@pytest.mark.slow
def test_grounding_on_composed_scenes_beats_the_mean_box(tmp_path: Path) -> None:
    """Accuracy at an IoU of 0.5 beside the trivial box, from the model that ships."""
    rng = np.random.default_rng(0)
    lines = [scene(tmp_path, i, rng) for i in range(600)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run_recipe(
        lambda: finetune("nano", str(tmp_path / "rows.jsonl"), "ground", steps=500, batch_size=32, lr=1e-3),
        tmp_path / "run", device="cpu",
    )  # fmt: skip
    found = json.loads((tmp_path / "run" / "finetune.json").read_text())
    print(found)
    assert found["after"]["interval"][0] > found["trivial"]["interval"][1]
