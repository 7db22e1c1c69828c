"""Every recipe of mPLUG-2 from a manifest to a model directory, on tiny drawings, clips and sentences."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.cli import main
from plait.data.manifest import read_manifest
from plait.data.reader import Reading
from plait.models.mplug2.composition import TEMPLATES
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.processing import wordpiece
from plait.recipes import mplug2
from plait.recipes.mplug2 import SelfCritical
from plait.training.run import call_recipe, parse_settings, run_recipe
from plait.types import Sample
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
    pieces = vocabulary([*COLOURS, "which colour a clip the thing dark long short yes no of", *TEMPLATES.values()])
    processor = MPlug2Processor.build(12, pieces, num_frames=3, max_text_tokens=16)
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
    "mixture": lambda init, data: asked(mplug2.mixture, init, f"{data}/manifest.jsonl", batch_size=8),
    "mixture untold": lambda init, data: asked(
        mplug2.mixture, init, f"{data}/manifest.jsonl", batch_size=8, instructions=False
    ),
    "two of the mixture": lambda init, data: asked(mplug2.mixture, init, f"{data}/images.jsonl", tasks="caption,match"),
    "comparison": lambda init, data: asked(mplug2.comparison, init, f"{data}/pairs.jsonl"),
}


@pytest.fixture(scope="module", autouse=True)
def parts(data):
    """The manifest cut by medium."""
    from pathlib import Path

    rows = [json.loads(line) for line in (Path(data) / "manifest.jsonl").read_text().splitlines()]
    for name, letters in (("images", "i"), ("videos", "v"), ("texts", "t"), ("still", "it")):
        text = "".join(json.dumps(row) + "\n" for row in rows if row["id"][0] in letters)
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
    told = {
        "captioning as told": ["caption image"],
        "answering plainly": ["answer video"],
        "pretraining": ["caption image", "caption video"],
        "mixture": [" ".join(cell) for cell in TEMPLATES if cell != ("complete", "image")],  # named by one word
        "two of the mixture": ["caption image", "match image"],
    }
    untold = ["captioning", "answering", "self-critical", "without instructions or queues", "mixture untold"]
    for name in [*told, *untold]:
        assert RECIPES[name](start, data).model_builder().config.instructions == told.get(name, False), name


def written_by(recipe, rows, seed):
    """The parts of one batch of the mixture, as texts: medium -> [(read, written)], and how many boxes."""
    source = recipe.stages[0].batches()
    parts = source.load(rows, np.random.default_rng(seed))
    decode = source.collate.__self__.processor.tokenizer.decode
    said = {}
    for part in parts:
        if "boxes" in part:
            said["ground"] = [(decode(ids, skip_special_tokens=True), "") for ids in part["input_ids"]]
            continue
        name = next((key for key in ("pixel_values", "pixel_values_videos") if key in part), "text")
        both = zip(part["input_ids"], part["decoder_input_ids"], strict=True)
        said[name] = [tuple(decode(ids, skip_special_tokens=True) for ids in pair) for pair in both]
        assert name == "text" or len(part[name]) == len(part["input_ids"])
    return said


def test_rows_of_the_mixture_do_every_task_that_they_have_what_for(start, data):
    recipe, seen = RECIPES["mixture"](start, data), {}
    for seed in range(30):
        for name, pairs in written_by(recipe, list(range(12)), seed).items():
            seen.setdefault(name, set()).update(pairs)
    heads = {cell: words.partition(" : {")[0] for cell, words in TEMPLATES.items() if cell != ("complete", "image")}
    parts = {"image": "pixel_values", "video": "pixel_values_videos", "text": "text"}
    for (task, medium), head in heads.items():
        name = "ground" if task == "ground" else parts[medium]
        assert any(read.startswith(head) for read, _ in seen[name]), (task, medium)
    plain = {pair for pairs in seen.values() for pair in pairs}
    head = heads["match", "image"]  # cleaning texts takes the colon away
    matched = {(read.removeprefix(f"{head} "), said) for read, said in plain if read.startswith(head)}
    assert {("red", "yes"), ("red", "no"), ("the blue thing", "no")} <= matched
    assert {said for _, said in matched} == {"yes", "no"}
    assert ("classify the text the red thing", "short") in plain
    assert {("continue the text the", "red thing"), ("continue the text the red", "thing")} <= plain
    assert ("answer the question about the image which colour", "dark") in plain


def test_without_instructions_the_twin_reads_the_text_alone(start, data):
    reads = set()
    for seed in range(8):
        for pairs in written_by(RECIPES["mixture untold"](start, data), list(range(12)), seed).values():
            reads |= {read for read, _ in pairs}
    assert {"", "which colour", "red", "the red thing"} <= reads
    assert not [read for read in reads if "describe" in read or "text fit" in read]


def test_verbs_send_a_trained_mixture_its_instructions_and_no_others(start, data, tmp_path, monkeypatch):
    settings = {"steps": 2, "grounding_bins": 20}
    recipe = asked(mplug2.mixture, start, f"{data}/still.jsonl", **settings)
    run_recipe(lambda: recipe, tmp_path / "run", device="cpu")
    assistant = plait.Assistant(tmp_path / "run" / "model")
    assert {"caption", "answer", "classify", "match", "ground", "rank"} == set(assistant.tasks)
    assert assistant.model.config.grounding_bins == 20
    sent, tokenize = [], MPlug2Processor.tokenize
    monkeypatch.setattr(MPlug2Processor, "tokenize", lambda *a, **k: (sent.extend(a[1]), tokenize(*a, **k))[1])
    picture, text = f"{data}/red.png", "the red thing"
    sentence = Sample("t", text=text)

    def told(do):
        sent.clear()
        return do(), {line for line in sent if line not in ("", "red", text, "which colour")}

    assert told(lambda: assistant.caption(picture, min_length=1, max_length=4))[1] == {"describe the image"}
    asks = {"answer the question about the image : which colour"}
    assert asks <= told(lambda: assistant.answer(picture, "which colour"))[1]
    ranked, said = told(lambda: assistant.classify(picture, ["red", "blue"]))
    assert said >= {"name what the image shows"} and {label for label, _ in ranked} == {"red", "blue"}
    ranked, said = told(lambda: assistant.classify(sentence, ["long", "short"]))
    assert "classify the text : the red thing" in said and sum(share for _, share in ranked) == pytest.approx(1)
    share, said = told(lambda: assistant.match(picture, text))
    assert 0 < share < 1 and "does the text fit the image : the red thing" in said
    box, said = told(lambda: assistant.ground(picture, "red"))
    assert 0 <= box.x0 <= 20 and 0 <= box.y1 <= 16 and "find in the image : red" in said
    with pytest.raises(ValueError, match="expected image or video to caption, got text"):
        assistant.caption(sentence)
    # the same weights, said to have learnt captions alone: nothing else is sent
    assistant.model.config.instructions = ["caption image"]
    other = plait.Assistant((assistant.model, assistant.processor))
    assert {"match", "ground"}.isdisjoint(other.tasks)
    assert "describe the image" in told(lambda: other.classify(picture, ["red", "blue"]))[1]
    assert not told(lambda: other.answer(picture, "which colour"))[1] & asks


def test_a_mixture_of_unknown_or_absent_tasks_is_one_line(start, data):
    with pytest.raises(ValueError, match=r"expected tasks among answer, caption, .*, got dance"):
        asked(mplug2.mixture, start, data, tasks="caption,dance")
    with pytest.raises(ValueError, match=r"expected rows for ground in .*texts\.jsonl, got none"):
        mplug2.mixture(start, f"{data}/texts.jsonl", tasks=("classify", "ground"))


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


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shipped drawings of four things in three styles, each with its name, its kind and a question."""
    from plait.data.mini import unpack_mini

    place = tmp_path_factory.mktemp("four")
    wanted = {"bus": "vehicle", "cat": "animal", "camera": "object", "banana": "food"}
    rows = []
    for row in read_manifest(unpack_mini(place / "mini")):
        style, _, name = row.id.partition("/")
        if name in wanted and style in ("twemoji", "emojione", "fluent-emoji-flat"):
            image = f"mini/images/{style}/{name}.webp"
            rows.append({"id": row.id, "image": image, "text": name, "label": wanted[name], "split": "train",
                         "question": "what is this?", "answers": [name]})  # fmt: skip
    assert len(rows) == 12
    (place / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return place


def test_a_recipe_takes_the_name_of_a_shipped_model_and_trains_it_in_single_precision(four: Path) -> None:
    recipe = mplug2.mixture("nano-mplug2", str(four), how=mplug2.Tuning(steps=1))
    model = recipe.model_builder()
    assert {weight.dtype for weight in model.parameters()} == {torch.float32}  # what ships is in half precision
    assert model.config.instructions == ["caption image", "answer image", "match image", "classify image"]


@pytest.mark.slow
def test_the_same_weights_do_what_they_are_told(four: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """150 steps from the shipped model: about 45 s on one core."""
    sets = {"init": "nano-mplug2", "data": four, "steps": 150, "batch_size": 12, "lr": 5e-4, "vision_lr": 2e-4}
    words = [word for name, value in sets.items() for word in ("--set", f"{name}={value}")]
    assert main(["train", "mplug2.mixture", *words, "--out", str(tmp_path / "run"), "--device", "cpu"]) == 0
    model, pictures = str(tmp_path / "run" / "model"), str(four / "mini" / "images" / "twemoji")
    shown = four / "shown"
    shown.mkdir(exist_ok=True)
    for name in ("banana", "bus", "camera", "cat"):
        shutil.copy(f"{pictures}/{name}.webp", shown)
    names, kinds = ["banana", "bus", "camera", "cat"], ["food", "vehicle", "object", "animal"]
    asked = {
        ("caption",): names,
        ("answer", "what is this?"): names,
        ("classify", "--labels", "vehicle,animal,object,food", "-k", "1"): kinds,
    }
    for (verb, *more), wanted in asked.items():
        capsys.readouterr()
        assert main([verb, model, str(shown), *more, "--device", "cpu"]) == 0
        said = [line.split("\t")[1] for line in capsys.readouterr().out.splitlines() if "\t" in line]
        right = [one == want or one.startswith(f"{want} ") for one, want in zip(said, wanted, strict=True)]
        assert sum(right) >= 3, (verb, said)
