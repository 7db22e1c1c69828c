"""The study of mPLUG-2 end to end, one step per run, and what it measures."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from plait.errors import UsageError
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.recipes.mplug2 import asked_together
from plait.types import Sample
from plait_studies import measures, training
from plait_studies import mplug2 as module
from plait_studies.drawings import Example
from plait_studies.mplug2 import measures as evaluate
from plait_studies.mplug2 import report as table
from plait_studies.mplug2 import training as small
from plait_studies.mplug2.training import asked, pixels_of


def snippets(split):
    texts = [("a joy to watch", "positive"), ("dull and long", "negative")] * (4 if split == "test" else 64)
    return tuple(Sample(f"{split}{i}", text=text, label=label) for i, (text, label) in enumerate(texts))


def colours(pictures):
    """In place of features out of a package: the mean colour."""
    return torch.from_numpy(np.stack([picture.mean((0, 1)) for picture in pictures])).float()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(training, "snippets", snippets)
    monkeypatch.setattr(evaluate, "COUNT", 24)
    monkeypatch.setattr(evaluate, "features", colours)
    monkeypatch.setattr(evaluate, "PRIOR_EXAMPLES", 20)
    evaluate.held_out.cache_clear()
    yield
    evaluate.held_out.cache_clear()


def test_one_command_trains_measures_and_writes_the_page(quick, tmp_path, capsys):
    steps = dict.fromkeys(("pretrain_steps", "answer_steps", "control_steps", "class_steps"), 1)
    steps["pretrain_steps"] = 2  # the second does not have every loss
    assert module.study(tmp_path, **steps, device="cpu") == 0
    printed = capsys.readouterr().out
    summary = json.loads((tmp_path / "summary.json").read_text())
    arms = {(row["task"], row["arm"]) for row in summary["rows"]}
    assert {("order", "one frame"), ("order", "language only"), ("text: feeling", "tf-idf")} <= arms
    assert {("order", "free generation"), ("caption", "majority")} <= arms
    assert not {("caption", "free generation"), ("name", "one frame")} & arms
    assert {bar["task"] for bar in summary["bars"] if bar["against"] == "one frame"} == {
        "order", "motion", "clip: motion",
    }  # fmt: skip
    assert {task for task, arm in arms if arm == "shuffled labels"} == {task for task, _ in arms}
    assert summary["cpu_seconds"][0] > 0 and "what was asked of it" in printed
    assert set(summary["gap"]) == {"pretraining", "pretraining-apart"}
    logged = (tmp_path / "seed-0" / "pretraining" / "metrics.jsonl").read_text().splitlines()
    whole, short = (set(json.loads(line)) for line in logged)
    assert {"contrast", "generate", "match", "masked"} <= whole and {"match", "masked"}.isdisjoint(short)
    assert {"contrast", "generate"} <= short
    assert "universal layers apart" in printed and "which way does it move?" not in printed
    page = (tmp_path / "report.html").read_text()
    assert "data:image/webp" in page and "shuffled labels" in page
    before = (tmp_path / "seed-0" / "results.json").stat().st_mtime_ns
    kept = tmp_path / "kept"
    assert module.study(tmp_path, **steps, keep=kept, device="cpu") == 0  # everything is kept
    assert (tmp_path / "seed-0" / "results.json").stat().st_mtime_ns == before
    whole, made = evaluate.opened(tmp_path / "seed-0" / "answering", "answer")
    cut, short = small.load(kept, "answer").float().eval(), small.load_processor(kept)
    assert cut.config.vocab_size == len(short.tokenizer) < len(made.tokenizer) == whole.config.vocab_size
    examples = evaluate.held_out("kind")[:8]
    losses = []
    for model, processor in ((whole, made), (cut, short)):
        (inputs,) = evaluate.PLAIN.batches(processor, examples)
        answers = processor.answers(list(examples[0].choices or ()))
        given = {"answer_ids": answers["input_ids"], "answer_mask": answers["attention_mask"]}
        with torch.no_grad():
            losses.append(model.rank_answers(**given, **inputs))
    assert torch.equal(losses[0].indices, losses[1].indices)  # the words left out change no order of the others
    with pytest.raises(UsageError, match="expected an empty directory to keep the model in"):
        module.study(tmp_path, **steps, keep=kept, device="cpu")


def test_guessing_knows_priors_of_the_question_and_no_pictures(quick):
    drawings = small.drawings()
    training, examples = (drawings.examples("motion", split, 300) for split in ("train", "test"))
    allowed = [evaluate.choices(example) for example in examples]
    assert np.mean(measures.guessed(training, examples, allowed, by_question=True)) < 0.3
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    known = [Example("order", frames, q, a) for q, a in (("a or b?", "a"), ("b or c?", "c"), ("b or c?", "c"))]
    asked = [Example("order", frames, "a or b?", "a"), Example("order", frames, "a or c?", "a")]
    own = [("a", "b"), ("a", "c")]
    assert measures.guessed(known, asked, own, by_question=True) == (1.0, 0.0)  # a was asked about; c is likelier
    assert measures.guessed(known, asked, [("a", "c"), ("b", "a")], by_question=False) == (0.0, 1.0)


def test_a_guessed_caption_is_the_word_that_fits_most_often(quick):
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    known = [Example("caption", frames, "", name, None, (name, "animal")) for name in ("bear", "cat", "bus")]
    asked = [Example("caption", frames, "", "cow", None, ("cow", "animal"))]
    assert measures.guessed(known, asked, [()], by_question=False) == (1.0,)


def test_the_chosen_answer_is_what_ranking_alone_puts_first_among_the_own_choices(quick, monkeypatch):
    made = small.processor()
    torch.manual_seed(0)
    model = MPlug2ForConditionalGeneration(small.config(made)).eval()
    examples = small.drawings().examples("order", "test", 5)
    allowed = [evaluate.choices(example) for example in examples]
    monkeypatch.setattr(evaluate, "FEW", 2)
    best = evaluate.chosen(model, made, examples, allowed)
    for example, own, answer in zip(examples, allowed, best, strict=True):
        ids = made.answers(own)
        inputs = {**pixels_of([example], made), **made.tokenize(asked([example]))}
        alone = model.rank_answers(ids["input_ids"], ids["attention_mask"], **inputs)
        assert own[alone.indices[0, 0]] == answer
    assert len(set(best)) > 1


def test_questions_asked_together_cost_what_they_cost_one_by_one(quick):
    made = small.processor()
    torch.manual_seed(0)
    model = MPlug2ForConditionalGeneration(small.config(made)).eval()
    source = small.source_of(small.drawings(), made, {"scene": 2, "clip": 1}, strength=0.0)()
    parts = source.load(source.rows(0, 0, 6), np.random.default_rng(0))
    together, _ = asked_together(model, parts, 0, torch.Generator())
    alone, count = torch.zeros(()), 0
    for part, name, media in zip(parts, ("pixel_values", "pixel_values_videos"), (4, 2), strict=True):
        picture = part.pop("picture")
        assert len(part[name]) == media < len(picture)
        alone = alone + model(**part | {name: part[name][picture]}).loss * len(picture)
        count += len(picture)
    torch.testing.assert_close(together, alone / count, rtol=1e-5, atol=1e-5)


def test_every_step_asks_of_every_group_by_its_share(quick):
    source = small.source_of(small.drawings(), small.processor(), {"drawing": 1, "scene": 2})()
    named = source.names(source.rows(3, 5, 12))
    assert named == ["drawing"] * 4 + ["scene"] * 8 and len(source) == len(small.drawings().numbers("train"))


def test_answers_of_the_shuffled_control_are_those_of_other_examples_of_their_task(quick):
    made = small.processor()
    right, wrong = (
        small.source_of(small.drawings(), made, {"drawing": 1}, strength=0.0, shuffle_answers=shuffled)().load(
            [0] * 12, np.random.default_rng(0)
        )[0]
        for shuffled in (False, True)
    )
    assert torch.equal(right["input_ids"], wrong["input_ids"])
    same = (right["labels"] == wrong["labels"]).all(1)
    assert 0.1 < same.float().mean() < 0.6  # yes and no
    assert sorted(map(tuple, right["labels"].tolist())) == sorted(map(tuple, wrong["labels"].tolist()))


def test_no_answer_of_the_shuffled_control_is_about_its_own_picture():
    picture = np.repeat(np.arange(6), 4)
    pairs = small._of_other_pictures(["name", "kind", "is_there", "is_there"] * 6, picture, np.random.default_rng(0))
    own, other = np.array(sorted(pairs)).T
    assert own.tolist() == sorted(other.tolist()) == list(range(24))
    assert (picture[own] != picture[other]).all() and (np.minimum(own % 4, 2) == np.minimum(other % 4, 2)).all()
    assert (
        len({tuple(small._of_other_pictures(["a"] * 6, np.arange(6), np.random.default_rng(s))) for s in range(5)}) > 2
    )


def test_tf_idf_learns_words(quick):
    rows = [[(s.text, int(s.label == "positive")) for s in snippets(split)] for split in ("train", "test")]
    assert np.mean(measures.tf_idf(*rows)) == 1.0


def test_held_out_examples_are_all_different(quick, monkeypatch):
    monkeypatch.setattr(evaluate, "COUNT", 200)
    assert 50 < len(evaluate.held_out("name")) <= len(small.drawings().numbers("test"))
    shown = [example.frames.tobytes() for example in evaluate.held_out("kind")]
    assert len(set(shown)) == len(shown)
    evaluate.held_out.cache_clear()
    answers = [example.answer for example in evaluate.held_out("is_kind")]
    assert answers.count("yes") == answers.count("no") > 20


def test_a_line_on_features_learns_names_and_kinds_of_drawings(quick, monkeypatch):
    drawings = small.drawings()
    answer = {p.tobytes(): n for n, p in enumerate(map(np.asarray, drawings.pictures))}

    def knowing(pictures):  # features that tell the thing apart from every other
        labels = sorted({row.label for row in drawings.rows})
        numbers = [labels.index(drawings.rows[answer[picture.tobytes()]].label) for picture in pictures]
        return torch.eye(len(labels))[numbers]

    monkeypatch.setattr(evaluate, "COUNT", 30)
    monkeypatch.setattr(evaluate, "features", knowing)
    for task in ("name", "kind"):
        examples = evaluate.held_out(task)
        assert np.mean(evaluate.imagenet(examples, evaluate.choices(examples[0]))) == 1.0


def test_imagenet_features_pad_as_they_were_trained():
    torch.manual_seed(0)
    x, weight = torch.randn(1, 2, 6, 6), torch.randn(3, 2, 3, 3)
    norm = {f"n.{key}": torch.rand(3) for key in ("running_mean", "running_var", "weight", "bias")}
    found = evaluate._conv(x, {"c.weight": weight, **norm}, "c", "n", stride=2)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))  # the odd place goes behind
    plain = torch.nn.functional.conv2d(padded, weight, stride=2)
    scale = norm["n.weight"] / (norm["n.running_var"] + 1e-3).sqrt()
    wanted = (plain - norm["n.running_mean"][:, None, None]) * scale[:, None, None] + norm["n.bias"][:, None, None]
    torch.testing.assert_close(found, wanted)


def test_separability_is_half_for_one_cloud_and_whole_for_two():
    torch.manual_seed(0)
    a, b = torch.randn(400, 4), torch.randn(400, 4)
    assert abs(measures.separability(a, b) - 0.5) < 0.08
    assert measures.separability(a, b + 6) > 0.98


def test_a_caption_may_be_any_reference_and_an_answer_only_the_answer(quick):
    made = small.processor()
    frames = np.zeros((1, 4, 4, 3), np.uint8)
    caption = Example("caption", frames, "", "bear", None, ("bear", "animal"))
    assert evaluate.same("animal", caption, made) == 1 and evaluate.same("bus", caption, made) == 0
    assert evaluate.same("animal", Example("name", frames, "what?", "bear"), made) == 0


def test_summaries_average_seeds_and_keep_each(quick):
    row = {"task": "order", "arm": "mPLUG-2", "chance": 0.5}
    results = [
        {"rows": [row | {"hits": hits}], "zero_shot": [], "gap": {"pretraining": {"separability": gap}}, "examples": []}
        | {"cpu_seconds": 60}
        for hits, gap in (([1.0, 0.0, 1.0, 1.0], 1.0), ([1.0, 1.0, 0.0, 0.0], 0.8))
    ]
    summary = table.summarise(results)
    (line,) = summary["rows"]
    assert line["per_seed"] == [0.75, 0.5] and line["value"] == pytest.approx(0.625)
    assert line["interval"][0] < 0.625 < line["interval"][1]
    assert summary["gap"]["pretraining"]["separability"] == pytest.approx(0.9)


def test_bars_are_held_by_a_clear_difference_and_controls_by_its_absence():
    def row(task, arm, share, chance=0.5):
        return {"task": task, "arm": arm, "chance": chance, "hits": [float(i < 100 * share) for i in range(100)]}

    good = [row("order", arm, share) for arm, share in (("mPLUG-2", 0.9), ("majority", 0.5), ("language only", 0.52))]
    good += [row("order", "one frame", 0.88), row("order", "shuffled labels", 0.5)]
    caption = [row("caption", arm, share, None) for arm, share in (("mPLUG-2", 0.4), ("language only", 0.1))]
    found = {(bar["against"], bar["task"]): bar["held"] for bar in table.bars([*good, *caption])}
    assert found["majority", "order"] and found["language only", "order"] and found["language only", "caption"]
    assert found["language only", table.POOLED]
    assert found["chance or majority", "order"]
    leaking = [*good[:-1], row("order", "shuffled labels", 0.8)]
    assert not next(bar for bar in table.bars(leaking) if bar["against"] == "chance or majority")["held"]
    worse = [row("order", "mPLUG-2", 0.5), row("order", "one frame", 0.5)]
    assert [bar["held"] for bar in table.bars(worse)] == [False]


def test_cpu_time_adds_up_over_runs(tmp_path):
    first = module.Spent(tmp_path / "out" / "cpu.txt")
    first.mark -= 10
    assert first.add() == pytest.approx(10, abs=0.5)
    again = module.Spent(tmp_path / "out" / "cpu.txt")
    again.mark -= 5
    assert again.add() == pytest.approx(15, abs=0.5)
