"""Every recipe of mPLUG-2 from a manifest to a model directory, on tiny drawings, clips and sentences."""

from __future__ import annotations

import inspect
import json

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.data.reader import Reading
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.processing import wordpiece
from plait.recipes import mplug2
from plait.recipes.mplug2 import SelfCritical
from plait.training.run import call_recipe, parse_settings, run_recipe
from plait_studies.build.emoji import write_clip
from plait_studies.mplug2.training import SPECIAL, vocabulary

COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250), "green": (0, 200, 0), "black": (0, 0, 0)}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    rows = []
    for number, (name, colour) in enumerate(COLOURS.items()):
        Image.new("RGB", (20, 16), colour).save(root / f"{name}.png")
        write_clip(root / f"{name}.mp4", np.full((6, 16, 16, 3), colour, np.uint8))
        shared = {"question": "which colour", "answers": [name, name, "dark"], "label": name}
        box = [[2.0 + number, 2.0, 12.0, 10.0]]
        rows.append({"id": f"i{number}", "image": f"{name}.png", "text": name, "boxes": box, **shared})
        rows.append({"id": f"v{number}", "video": f"{name}.mp4", "captions": [name, f"a {name} clip"], **shared})
        rows.append({"id": f"t{number}", "text": f"the {name} thing", "label": "long" if number % 2 else "short"})
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(root)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A tiny pretraining directory with a vocabulary of its own."""
    pieces = vocabulary([*COLOURS, "which colour a clip the thing dark describe image video of"])
    processor = MPlug2Processor.build(12, pieces, num_frames=3, max_text_tokens=12)
    ids = {f"{name}_token_id": pieces.index(p) for name, p in (("pad", "[PAD]"), ("bos", "[CLS]"), ("eos", "[SEP]"))}
    torch.manual_seed(0)
    config = MPlug2Config.preset("tiny", vocab_size=len(pieces), queue_size=8, **ids, grounding_start_id=10)
    model = MPlug2ForPreTraining(config)
    directory = tmp_path_factory.mktemp("start")
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return str(directory)


def asked(function, *given, **settings):
    """A recipe with settings as `--set` takes them; given: its first parameters."""
    names = list(inspect.signature(function).parameters)
    settings = {**dict(zip(names, given)), "batch_size": 4, "steps": 2, **settings}
    return call_recipe(function, parse_settings(function, [f"{key}={value}" for key, value in settings.items()], 0))


RECIPES = {
    "pretraining": lambda init, data: asked(mplug2.pretraining, data, init, steps=3, queue_size=8),
    "without instructions or queues": lambda init, data: asked(
        mplug2.pretraining, data, init, steps=3, queue_size=0, instructions=False
    ),
    "captioning": lambda init, data: asked(mplug2.captioning, init, f"{data}/videos.jsonl"),
    "captioning as told": lambda init, data: asked(mplug2.captioning, init, f"{data}/images.jsonl", instructions=True),
    "self-critical": lambda init, data: asked(
        mplug2.self_critical,
        init,
        f"{data}/videos.jsonl",
        num_beams=3,
        min_length=1,
        max_length=4,
        lr=1e-3,
        vision_lr=1e-3,
    ),
    "answering": lambda init, data: asked(mplug2.answering, init, f"{data}/images.jsonl"),
    "answering plainly": lambda init, data: asked(
        mplug2.answering, init, f"{data}/videos.jsonl", batch_size=2, distill=False, instructions=True
    ),
    "retrieval": lambda init, data: asked(mplug2.retrieval, init, f"{data}/images.jsonl", queue_size=8),
    "grounding": lambda init, data: asked(mplug2.grounding, init, data),
    "text": lambda init, data: asked(mplug2.classification, init, f"{data}/texts.jsonl"),
    "image": lambda init, data: asked(mplug2.classification, init, data, medium="image"),
    "video": lambda init, data: asked(mplug2.classification, init, data, medium="video"),
    "entailment": lambda init, data: asked(mplug2.classification, init, data, task="entail", medium="image"),
    "comparison": lambda init, data: asked(mplug2.comparison, init, f"{data}/pairs.jsonl"),
}


@pytest.fixture(scope="module", autouse=True)
def parts(data):
    """The manifest cut by medium."""
    from pathlib import Path

    rows = [json.loads(line) for line in (Path(data) / "manifest.jsonl").read_text().splitlines()]
    for name, letter in (("images", "i"), ("videos", "v"), ("texts", "t")):
        text = "".join(json.dumps(row) + "\n" for row in rows if row["id"].startswith(letter))
        (Path(data) / f"{name}.jsonl").write_text(text)
    both = [
        {"id": f"c{i}", "images": [f"{a}.png", f"{b}.png"], "text": f"a {a} thing", "label": str(i % 2)}
        for i, (a, b) in enumerate(zip(COLOURS, [*COLOURS][::-1], strict=True))
    ]
    (Path(data) / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in both))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_trains_and_saves_a_directory_that_loads(name, start, data, tmp_path):
    run_recipe(lambda: RECIPES[name](start, data), tmp_path / "run", device="cpu")
    losses = [json.loads(line)["loss"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) in (2, 3) and np.isfinite(losses).all()
    model, processor = plait.load(tmp_path / "run" / "model")
    assert type(model).__name__.startswith("MPlug2For")
    assert isinstance(processor, MPlug2Processor)
    fresh, _ = plait.load(start)
    before, after = (dict(m.named_parameters()) for m in (fresh, model))
    vision = "model.vision.layers.0.fc1.weight"
    assert (vision in after) == (name != "text")
    if vision in after:
        assert not torch.equal(before[vision], after[vision])


def test_labels_are_kept_with_the_classifier(start, data, tmp_path):
    run_recipe(lambda: RECIPES["image"](start, data), tmp_path / "run", device="cpu")
    model, _ = plait.load(tmp_path / "run" / "model")
    assert model.config.id2label == dict(enumerate(sorted(COLOURS)))


def test_a_model_is_told_what_to_do_as_in_its_training(start, data):
    told = {"captioning as told", "answering plainly", "pretraining"}
    for name in [*told, "captioning", "answering", "self-critical", "without instructions or queues"]:
        assert RECIPES[name](start, data).model_builder().config.instructions == (name in told)


def test_captions_become_likelier_that_score_better(start, data):
    """One caption of each beam search is the only reference: self-critical steps make it the first one found."""
    recipe = RECIPES["self-critical"](start, data)
    torch.manual_seed(0)
    model, stage = recipe.model_builder().train(), recipe.stages[0]
    batch = stage.batches().load([0, 1], np.random.default_rng(0))
    assert batch["references"] == [["red", "a red clip"], ["blue", "a blue clip"]]
    pixels = {"pixel_values_videos": batch["pixel_values_videos"]}
    found = model.search(model.encode(**pixels), num_beams=3, num_return=3, max_length=4)
    batch["references"] = [[stage.objective.decode(item[-1].ids)] for item in found]
    assert all(text for (text,) in batch["references"])
    documents = [*batch["references"], ["another caption"], ["of the data"]]
    objective = SelfCritical(stage.objective.decode, documents, num_beams=3, min_length=1, max_length=4)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    rewards = []
    for step in range(8):
        loss, metrics = objective(model, batch, step, torch.Generator())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rewards.append(float(metrics["cider"]))
    assert rewards[-1] > rewards[0] > 0


def test_pretraining_begins_as_clip_and_bert(data, tmp_path, monkeypatch):
    begun = []
    monkeypatch.setattr(mplug2, "start_from", lambda model, **files: begun.append((type(model).__name__, files)))
    options = {"preset": "tiny", "steps": 1, "queue_size": 0}
    asked(mplug2.pretraining, data, clip="ViT.pt", bert="bert", **options).model_builder()
    assert begun == [("MPlug2ForPreTraining", {"clip": "ViT.pt", "bert": "bert"})]
    with pytest.raises(ValueError, match=r"expected no preset=tiny, clip=ViT\.pt beside init=here"):
        asked(mplug2.pretraining, data, "here", clip="ViT.pt", **options)


def test_the_vision_encoder_learns_ten_times_slower(start, data):
    recipe = RECIPES["captioning"](start, data)
    optimizer = recipe.stages[0].optimizer(recipe.model_builder(), recipe.stages[0])
    scales = sorted({group["lr_scale"] for group in optimizer.param_groups})
    assert scales == pytest.approx([0.1, 1.0])


def test_kinds_of_rows_take_turns_and_each_keeps_its_own_order(start, data):
    source = RECIPES["pretraining"](start, data).stages[0].batches()
    names = [source.names(source.rows(0, step, 2)) for step in range(6)]
    assert [several[0][0] for several in names] == list("ivtivt")
    assert all(len({name[0] for name in several}) == 1 for several in names)
    assert sorted(name for several in names for name in several if name[0] == "i") == ["i0", "i1", "i2", "i3"]


def test_wrong_rows_and_sizes_are_one_line(start, data):
    with pytest.raises(ValueError, match="expected rows with boxes, video"):
        mplug2._rows(data, ("boxes",), ("video",), Reading(), "video")
    with pytest.raises(ValueError, match="queue_size divisible by batch_size 5"):
        asked(mplug2.pretraining, data, start, batch_size=5, queue_size=8)
    with pytest.raises(ValueError, match="task classify or entail, got 'dance'"):
        mplug2.classification(start, data, task="dance")
    with pytest.raises(ValueError, match="expected rows with images, text, label"):
        mplug2.comparison(start, data)


def test_a_vocabulary_reads_its_texts_and_spells_the_rest():
    pieces = vocabulary(["Seven drummer", "drummer"], min_count=1)
    assert pieces[: len(SPECIAL)] == list(SPECIAL)
    tokenizer = wordpiece.build_tokenizer(pieces)
    assert tokenizer.tokenize("drummers") == ["drummer", "##s"]
    assert tokenizer.tokenize("seal") == ["s", "##e", "##a", "##l"]
    assert len(vocabulary(["Seven drummer", "drummer"], min_count=2)) == len(pieces) - 1
