"""The study of the adaptive module end to end on a tiny language model, one step per arm, and what it draws."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait.errors import UsageError
from plait.recipes import mplug_owl2_attention as attention
from plait.recipes import mplug_owl2_measures as measures
from plait.recipes import mplug_owl2_small as small
from plait.recipes import mplug_owl2_study as module
from plait.training.stages import freeze
from plait.types import Sample

from ..models.mplug_owl2.tiny import llama_directory


def snippets(split):
    texts = [("a joy to watch", "positive"), ("dull and long", "negative")] * 4
    return tuple(Sample(f"{split}{i}", text=text, label=label) for i, (text, label) in enumerate(texts))


@pytest.fixture
def llm(tmp_path, monkeypatch):
    monkeypatch.setattr(small, "snippets", snippets)
    monkeypatch.setattr(module, "news", lambda: ["prices rose", "the bank said on tuesday"])
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
        assert picture.width > 600
    page = (out / "report.html").read_text()
    assert "data:image/png" in page and "Where the answer looks" in page
    before = (out / "seed-0" / "adaptive" / "results.json").stat().st_mtime_ns
    assert module.study(out, only=("adaptive 48 px 8 queries",), **settings) == 0  # one arm more
    assert (out / "seed-0" / "adaptive" / "results.json").stat().st_mtime_ns == before
    assert "adaptive 48 px 8 queries" in capsys.readouterr().out


def test_arms_begin_alike_and_train_what_they_say(llm, tmp_path):
    warm = tmp_path / "warm"
    start, processor = small.fresh(Path(llm))
    small.save(processor, start, warm)
    batch = {"input_ids": torch.randint(0, 200, (1, 9)), "attention_mask": torch.ones(1, 9, dtype=torch.long)}
    logits = []
    for arm in module.arms().values():
        model, _ = small.begin(Path(llm), warm, arm)
        logits.append(model(**batch).logits)
        trained, _ = freeze(model, arm.patterns)
        assert any(".abstractor." in name for name in trained)
        assert any(".vision." in name for name in trained) is arm.trains_vision
        decoder = [name for name in trained if ".decoder." in name]
        assert all(".visual." in name for name in decoder) if arm.routed else bool(decoder) is bool(arm.trains)
    for one in logits:
        torch.testing.assert_close(one, logits[0])


def test_an_unknown_arm_is_one_clear_line(tmp_path):
    with pytest.raises(UsageError, match=r"expected arms among adaptive, shared.*got 'half'"):
        module.study(tmp_path, only=("half",))


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
    examples = small.drawings().examples("is_there", "test", 3)
    assert set(measures.answered(model, processor, examples, "removed")) <= {0, 1}
    assert measures.perplexity([(np.log(4) * 3, 3), (np.log(4), 1)]) == pytest.approx(4)


def test_the_gpu_script_runs_its_tiny_setting(llm, tmp_path, monkeypatch, capsys):
    script = Path(__file__).parents[2] / "benchmarks" / "gpu" / "owl2_study.py"
    monkeypatch.setattr("sys.argv", ["owl2_study.py", "--llm", llm, "--out", str(tmp_path / "out"), "--tiny"])
    with pytest.raises(SystemExit, match="0"):
        runpy.run_path(str(script), run_name="__main__")
    assert "shared minus adaptive" in capsys.readouterr().out
