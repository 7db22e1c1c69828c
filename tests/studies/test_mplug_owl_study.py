"""The study of mPLUG-Owl end to end on a tiny language model, a step or two per stage, and what it asks."""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import LlamaConfig, LlamaForCausalLM

from plait.cli import main
from plait.models.auto import load
from plait.places import claim
from plait.training.stages import freeze, save_pair
from plait.types import Sample
from plait_studies import owl as small
from plait_studies import training
from plait_studies.build.emoji import write_clip
from plait_studies.drawings import MOTIONS, Example
from plait_studies.measures import CONDITIONS, Subject

from ..models.mplug_owl2.tiny import byte_tokenizer


def snippets(split):
    texts = [("a joy to watch", "positive"), ("dull and long", "negative")] * 4
    return [Sample(f"{split}{i}", text=text, label=label) for i, (text, label) in enumerate(texts)]


@pytest.fixture
def llm(tmp_path, monkeypatch):
    news = [Sample(str(i), text="the bank said on tuesday", split="test") for i in range(2)]
    monkeypatch.setattr(training, "snippets", snippets)
    monkeypatch.setitem(small.TOWERS, "small", small.TOWERS["tiny"])
    monkeypatch.setattr(training, "reuters_r8", lambda: iter(news))
    config = LlamaConfig(
        vocab_size=260, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=1, pad_token_id=0, tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llm")
    byte_tokenizer().save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def photographs_and_animations(place: Path) -> Path:
    place.mkdir(parents=True)
    rows = []
    for number, (kind, colour) in enumerate((("food", "red"), ("object", "green"), ("food", "navy"))):
        for split in ("train", "test"):
            name = f"{colour}-{split}"
            Image.new("RGB", (30, 20), colour).save(place / f"{name}.png")
            write_clip(place / f"{name}.mp4", np.full((8, 16, 16, 3), 60 * number, np.uint8))
            shared = {"text": f"{colour} thing", "label": kind, "split": split}
            rows += [{"id": f"photo {name}", "image": f"{name}.png", **shared}]
            rows += [{"id": f"clip {name}", "video": f"{name}.mp4", **shared}]
    (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_one_command_trains_measures_and_prints_its_table(llm, tmp_path, capsys):
    out = tmp_path / "study"
    claim(out)  # as a study does that has built its data and was stopped
    photographs_and_animations(out / "data")
    settings = {
        "llm": llm,
        "tower_steps": 1,
        "warm_steps": 1,
        "stage1_steps": 1,
        "stage2_steps": 4,
        "batch_size": 4,
        "count": 3,
    }
    typed = [part for key, value in settings.items() for part in ("--set", f"{key}={value}")]
    command = ["study", "owl", "--out", str(out), "--set", "device=cpu", "--set", "dtype=float32", *typed]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "stage2: shown minus shuffled" in printed
    assert all(word in printed for word in (*CONDITIONS, *small.TASKS, "commonest answer", "ppl news"))
    summary = json.loads((out / "summary.json").read_text())
    first, second = summary["rows"]
    assert summary["questions"] == dict.fromkeys(small.TASKS, 3)
    assert set(second["vqa"]["one frame"]["tasks"]) == set(small.CLIPS)
    assert first["perplexity"] != second["perplexity"]  # a LoRA moved the text
    source = load(out / "seed-0" / "warm-up" / "model")[0].language_model.state_dict()
    seen = load(out / "seed-0" / "stage1" / "model")[0].language_model.state_dict()
    assert all(torch.equal(source[name], seen[name]) for name in source)  # so stage 1 answers texts as the source does
    written = (out / "seed-0" / "stage2" / "results.json").stat().st_mtime_ns
    assert main(command) == 0  # everything is kept
    assert (out / "seed-0" / "stage2" / "results.json").stat().st_mtime_ns == written


def test_without_packages_the_drawings_are_enough(llm, tmp_path, capsys):
    typed = [
        "llm=" + str(llm),
        "more=false",
        "tower_steps=1",
        "warm_steps=1",
        "stage1_steps=1",
        "stage2_steps=1",
        "count=2",
    ]
    sets = [part for one in (*typed, "batch_size=2", "device=cpu") for part in ("--set", one)]
    assert main(["study", "owl", "--out", str(tmp_path / "study"), *sets]) == 0
    head = capsys.readouterr().out
    assert "motion" in head and "photo" not in head and "animation" not in head


@pytest.fixture(scope="module")
def seen(tmp_path_factory):
    return small.sights(photographs_and_animations(tmp_path_factory.mktemp("sights") / "data"))


def test_examples_are_held_out_and_always_the_same(seen):
    for task in seen.tasks:
        once, again = (seen.examples(task, "test", 3) for _ in range(2))
        for one, other in zip(once, again, strict=True):
            assert one.answer == other.answer and np.array_equal(one.frames, other.frames)
            assert (len(one.frames) > 1) is (task in small.CLIPS)
    shown = seen.example("naming", "train", np.random.default_rng(3))
    assert shown.question == "what is this?" and shown.answer


def test_names_lose_articles_and_split_by_name_alone():
    rows = [
        Sample(str(i), text=text, meta={"group": "food"}, split="train") for i, text in enumerate(("An apple.",) * 2)
    ]
    found = [small.relabelled(row, small.STAMPS) for row in rows]
    assert {(row.text, row.label) for row in found} == {("apple", "food")}
    assert found[0].split == found[1].split
    assert small.relabelled(Sample("a", text="A dice.", meta={"group": "people"}), small.STAMPS).label is None


def test_a_moving_thing_is_never_mirrored(seen):
    frames = np.full((4, 48, 48, 3), 255, np.uint8)
    for i in range(4):
        frames[i, 20:28, 4 + 9 * i : 12 + 9 * i] = 0  # to the right
    for seed in range(12):
        moved = small.augmented(Example("motion", frames, "", "right"), np.random.default_rng(seed))
        columns = [float((255 - one.astype(float)).sum((0, 2)) @ np.arange(48)) for one in moved]
        weights = [float((255 - one.astype(float)).sum()) for one in moved]
        centres = [c / w for c, w in zip(columns, weights, strict=True)]
        assert centres == sorted(centres)


def test_the_warm_up_says_what_moves_and_which_way(llm, seen):
    _, processor = small.fresh(llm, 0)
    source = small.Named(seen, processor, small.SHOWN)
    batch = source.load(source.rows(0, 0, 16), np.random.default_rng(0))
    assert len(batch["labels"]) == 16 == len(batch["pixel_values"]) + len(batch["pixel_values_videos"])
    first, second = batch["labels"].T
    pictures = len(batch["pixel_values"])
    assert torch.equal(first[:pictures], second[:pictures])
    moving = [source.words[int(i)] for i in second[pictures:]]
    assert len(moving) == 4 and sum(word in MOTIONS for word in moving) == 2


def test_the_tower_learns_alone_from_pictures_before_the_abstractor_does(llm, seen):
    recipe = small.warm_up(llm, seen, (1, 1), batch_size=4)
    model, (alone, whole) = recipe.model_builder(), recipe.stages
    freeze(model, alone.trainable)
    batch = alone.batches().load([0, 1, 2, 3], np.random.default_rng(0))
    assert len(batch["pixel_values"]) == 4 and "pixel_values_videos" not in batch
    loss, _ = alone.objective(model, batch, 0, torch.Generator())
    loss.backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None and bool(p.grad.any())}
    assert "vision.patch_embedding.weight" in learns and "abstractor.proj.weight" in learns
    assert not any(name.startswith(("abstractor.layers", "abstractor.queries", "language_model")) for name in learns)
    assert whole.steps == 1 and set(whole.trainable) == set(small.VISUAL)


def test_every_fourth_step_of_stage_two_asks_about_sentences(llm, seen):
    model, processor = small.fresh(llm, 0)
    save_pair(processor, model, llm.parent / "seen")
    recipe = small.tuning(llm.parent / "seen", seen, 8, batch_size=2)
    source = recipe.stages[0].batches()
    kinds = [source.rows(0, step, 2)[0] for step in range(8)]
    assert kinds == [0, 0, 0, 1] * 2
    assert "pixel_values" not in source.load([1, 1], np.random.default_rng(0))


def test_controls_show_what_they_say(llm, seen, monkeypatch):
    model, processor = small.fresh(llm, 0)
    given: list[list[Example]] = []

    def watched(self, examples, *, shown=True):
        given.append(list(examples) if shown else [])
        return [1] * len(examples)

    monkeypatch.setattr(Subject, "answered", watched)
    clips = seen.examples("motion", "test", 3)
    found = Subject(model, processor, small.batch_of).asked(clips)
    assert set(found) == set(CONDITIONS) and all(len(hits) == 3 for hits in found.values())
    shown, shuffled, still, removed = given
    assert [e.answer for e in shuffled] == [e.answer for e in shown]
    assert np.array_equal(shuffled[0].frames, shown[1].frames)
    assert all(np.array_equal(page, still[0].frames[0]) for page in still[0].frames)
    assert removed == []


def test_an_answer_is_right_when_every_piece_of_it_is_preferred(llm, seen, monkeypatch):
    model, processor = small.fresh(llm, 0)
    examples = seen.examples("kind", "test", 5)
    wanted = []
    for number, example in enumerate(examples):
        batch = small.batch_of(processor, [example])
        labels = batch.pop("labels")[0]
        best = model(**batch).logits[0].argmax(-1)
        places = (labels != -100).nonzero().flatten()
        wanted.append(labels.clone())
        wanted[-1][places] = best[places - 1]  # what the model would say
        if number == 3:
            wanted[-1][places[-1]] += 1  # but for the end

    def rewritten(processor, chosen, **options):
        batch = small.batch_of(processor, chosen, **options)
        for row, labels in zip(batch["labels"], wanted, strict=True):
            row[: len(labels)] = labels
        return batch

    assert Subject(model, processor, rewritten).answered(examples) == [1, 1, 1, 0, 1]


def test_the_gpu_script_refuses_without_a_gpu(monkeypatch, capsys, tmp_path):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu" / "owl_small.py"
    monkeypatch.setattr(sys, "argv", ["owl_small.py", str(tmp_path)])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="2"):
        runpy.run_path(str(script), run_name="__main__")
    assert "expected a directory for the results and a GPU" in capsys.readouterr().err
