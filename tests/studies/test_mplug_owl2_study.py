"""The study of the adaptive module end to end on a tiny language model, one step per arm, and what it draws."""

from __future__ import annotations

import json
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait.cli import main
from plait.models.auto import load
from plait.training.stages import freeze, save_pair
from plait.types import Sample
from plait_studies import measures, training
from plait_studies import owl2 as module
from plait_studies.owl2 import report as attention
from plait_studies.owl2 import training as arms
from plait_studies.owl2 import training as small
from plait_studies.training import Questions

from ..models.mplug_owl2.tiny import llama_directory


def snippets(split):
    texts = [("a joy to watch", "positive"), ("dull and long", "negative")] * 4
    return tuple(Sample(f"{split}{i}", text=text, label=label) for i, (text, label) in enumerate(texts))


@pytest.fixture
def llm(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "snippets", snippets)
    monkeypatch.setattr(training, "news", lambda: ["prices rose", "the bank said on tuesday"])
    monkeypatch.setattr(small, "TOWER", replace(small.TOWER, dim=24, num_heads=2, num_layers=2, mlp_dim=32))
    llama_directory(tmp_path / "llm")
    return str(tmp_path / "llm")


def test_one_command_trains_measures_draws_and_goes_on(llm, tmp_path, capsys):
    out = tmp_path / "study"
    settings = {"llm": llm, "warm_steps": 1, "steps": 1, "batch_size": 2, "count": 3, "device": "cpu"}
    assert module.study(out, only=("adaptive", "shared"), **settings) == 0
    printed = capsys.readouterr().out
    assert "shared minus adaptive" in printed and "before tuning" in printed
    summary = json.loads((out / "summary.json").read_text())
    assert [row["arm"] for row in summary["rows"]] == ["before tuning", "adaptive", "shared"]
    for shares in summary["attention"].values():  # softmax: everything is somewhere
        np.testing.assert_allclose(np.sum(list(shares.values()), axis=0), 1, atol=1e-4)
    with Image.open(out / "attention.png") as picture:
        assert picture.height > 2 * 150  # a row of maps for each of the two arms
    page = (out / "report.html").read_text()
    looks = page.partition("Where the answer looks")[2].partition("</section>")[0]
    assert (
        "data:image/png" in looks
        and "share of the answer&#x27;s attention" in looks
        and looks.count('stroke-width="2"') == 2
    )
    before = (out / "seed-0" / "adaptive" / "results.json").stat().st_mtime_ns
    assert module.study(out, only=("adaptive 48 px 8 queries",), **settings) == 0  # one arm more
    assert (out / "seed-0" / "adaptive" / "results.json").stat().st_mtime_ns == before
    assert "adaptive 48 px 8 queries" in capsys.readouterr().out


@pytest.fixture
def warm(llm, tmp_path):
    start, processor = small.fresh(Path(llm))
    save_pair(processor, start, tmp_path / "warm")
    return tmp_path / "warm"


def test_arms_begin_alike_and_train_what_they_say(llm, warm):
    batch = {"input_ids": torch.randint(0, 200, (1, 9)), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    logits, counts = {}, {}
    for name in arms.ALL:
        arm = arms.arm_of(name)
        model, _ = small.begin(Path(llm), warm, arm)
        logits[name] = model(**batch).logits
        trained, _ = freeze(model, arm.patterns)
        assert any(".abstractor." in name for name in trained)
        assert any(".vision." in name for name in trained) is arm.trains_vision
        decoder = [name for name in trained if ".decoder." in name]
        counts[name] = sum(p.numel() for n, p in model.named_parameters() if n in decoder)
        assert any(".text." in name for name in decoder) is name.startswith("adaptive all ways")
        assert not any(part in name for name in decoder for part in ("q_proj", "o_proj", "mlp."))
    for one in logits.values():
        torch.testing.assert_close(one, logits["adaptive"])
    assert 0 < counts["adaptive"] == counts["shared"] == counts["adaptive all ways"] / 2
    assert counts["abstractor only"] == 0


def test_names_combine_every_switch():
    arm = arms.arm_of("shared 96 px tower trains 16 queries image data")
    assert arm == replace(arms.DECODERS["shared"], image_size=96, num_queries=16, trains_vision=True, data="image")
    assert arms.arm_of("adaptive all ways text data").data == "text"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("half", "expected an arm that begins with adaptive all ways, adaptive, shared, abstractor only, got 'half'"),
        ("sharedness", "expected an arm that begins with"),
        ("shared 96", "expected N px, N queries, image data, text data or tower trains.*got '96'"),
        ("shared 50 px", "expected a multiple of 8 px and some queries, got arm 'shared 50 px'"),
        ("shared 0 queries", "expected a multiple of 8 px and some queries"),
        ("shared sound data", "expected data among both, image, text, got 'sound'"),
        ("adaptive text data", "expected data with images where only images train"),
    ],
)
def test_an_unknown_arm_is_one_clear_line(tmp_path, capsys, name, message):
    assert main(["study", "owl2", "--out", str(tmp_path), "--set", f"only={name}"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert re.search(message, line)


@pytest.mark.parametrize(
    ("name", "moves", "asks"),
    [
        ("adaptive tower trains", {"abstractor", "visual", "tower"}, {"sentences", "drawings"}),
        pytest.param(
            "shared 48 px 4 queries", {"abstractor", "shared"}, {"sentences", "drawings"}, marks=pytest.mark.slow
        ),
        pytest.param("shared image data", {"abstractor", "shared"}, {"drawings"}, marks=pytest.mark.slow),
        pytest.param("shared text data", {"shared"}, {"sentences"}, marks=pytest.mark.slow),
        pytest.param(
            "adaptive all ways", {"abstractor", "visual", "text"}, {"sentences", "drawings"}, marks=pytest.mark.slow
        ),
        ("abstractor only", {"abstractor"}, {"sentences", "drawings"}),
    ],
)
def test_a_switch_typed_does_what_it_says(llm, tmp_path, monkeypatch, name, moves, asks):
    asked = []
    load_rows = Questions.load

    def watched(self, rows, rng):
        asked.append(self.names(rows))
        return load_rows(self, rows, rng)

    monkeypatch.setattr(Questions, "load", watched)
    out = tmp_path / "study"
    settings = {"llm": llm, "only": name, "warm_steps": 1, "steps": 5, "batch_size": 2, "count": 1, "device": "cpu"}
    typed = [word for pair in settings.items() for word in ("--set", "=".join(map(str, pair)))]
    assert main(["study", "owl2", "--out", str(out), *typed]) == 0
    arm = arms.arm_of(name)
    model, _ = load(out / "seed-0" / training.folder(name) / "model")
    assert (model.config.image_size, model.config.abstractor_sizes.num_queries) == (arm.image_size, arm.num_queries)
    before = small.begin(Path(llm), out / "seed-0" / "warm-up" / "model", arm)[0].state_dict()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert {_part(key) for key in moved} == moves
    assert {name for names in asked for name in names} == asks
    assert tuple(model.config.routed) == arm.routed


def _part(key: str) -> str:
    parts = {"model.vision.": "tower", "model.abstractor.": "abstractor", ".visual.": "visual", ".text.": "text"}
    return next((part for mark, part in parts.items() if mark in key), "shared")


@pytest.mark.parametrize("name", ["adaptive", "abstractor only", "adaptive all ways", "shared"])
def test_sentences_that_reach_nothing_give_the_zeros_of_a_backward_pass(llm, warm, name):
    model, processor = small.begin(Path(llm), warm, arms.arm_of(name))
    freeze(model, arms.arm_of(name).patterns)
    model.train()
    batch = small.batch_of(processor, (), snippets("train")[:2])
    gradients = []
    for loss in (small.answer_loss(model, batch, 0, torch.Generator())[0], model(**batch).loss):
        model.zero_grad()
        loss.backward()
        gradients.append({n: p.grad for n, p in model.named_parameters() if p.requires_grad})
    torch.testing.assert_close(*gradients)
    reached = any(gradient.any() for gradient in gradients[0].values())
    assert reached is (name in ("adaptive all ways", "shared"))


def test_the_likeliest_choice_is_the_one_with_the_highest_probability_written_out(llm):
    model, processor = small.fresh(Path(llm))
    examples = small.drawings(small.SIDE, 1).examples("kind", "test", 6)
    expected = []
    for example in examples:
        losses, choices = [], example.choices or ()
        for choice in choices:
            turns = [{"from": "human", "value": "<|image|>" + example.question}, {"from": "gpt", "value": choice}]
            batch = processor.supervised([turns], [Image.fromarray(example.frames[0])])
            losses.append(model(**batch).loss.item() * int((batch["labels"] != -100).sum()))
        expected.append(int(choices[int(np.argmin(losses))] == example.answer))
    asked = measures.Subject(model, processor, small.batch_of)
    assert asked.ranked(examples) == expected
    with pytest.raises(ValueError, match="expected questions with choices, got 'name'"):
        asked.ranked(small.drawings(small.SIDE, 1).examples("name", "test", 1))


def test_shares_name_the_picture_the_words_and_the_first_key():
    weights = torch.tensor([[0.5, 0.1, 0.3, 0.1]])
    shares = attention.shares_of(weights, torch.tensor([False, True, True, False]))
    torch.testing.assert_close(shares, torch.tensor([[0.4], [0.1], [0.5]]))


def test_weights_are_asked_of_eager_attention_only(llm):
    model, _ = small.fresh(Path(llm))
    ids = torch.zeros(1, 4, dtype=torch.long)
    with pytest.raises(ValueError, match="expected attention 'eager' to return weights, got 'sdpa'"):
        model(ids, output_attentions=True)
    model.set_attn_implementation("eager")
    first, *_ = model(ids, output_attentions=True).attentions
    torch.testing.assert_close(first.sum(-1), torch.ones(1, 4, 4))
    assert model(ids).attentions is None


def test_exact_answers_need_every_piece(llm):
    model, processor = small.fresh(Path(llm))
    examples = small.drawings(small.SIDE, 1).examples("is_there", "test", 3)
    assert set(measures.Subject(model, processor, small.batch_of).answered(examples, shown=False)) <= {0, 1}
    assert measures.perplexity([(np.log(4) * 3, 3), (np.log(4), 1)]) == pytest.approx(4)


def test_the_gpu_script_runs_its_tiny_setting(llm, tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu" / "owl2_study.py"
    monkeypatch.setattr("sys.argv", ["owl2_study.py", "--llm", llm, "--out", str(tmp_path / "out"), "--tiny"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert "shared minus adaptive" in capsys.readouterr().out
