"""Many answers to one question: what they share is computed once, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F

from plait.generation import candidates
from plait.generation.talking import likelihoods
from plait.models.mplug_owl.tasks import MPlugOwlSkills
from plait.models.mplug_owl2.tasks import MPlugOwl2Skills

from ..models.mplug_owl import tiny as owl_tiny
from ..models.mplug_owl2 import tiny as owl2_tiny

ANSWERS = ["yes", "no", "a very long answer", "ye", "n", ""]


def made(name: str) -> Any:
    if name == "owl2":
        return MPlugOwl2Skills(*owl2_tiny.model_and_processor())
    return MPlugOwlSkills(*owl_tiny.model_and_processor(name))


@pytest.fixture(scope="module", params=["owl2", "llama", "bloom"])
def skills(request: pytest.FixtureRequest) -> Any:
    return made(request.param)


def every_row(skills: Any, rows: Any) -> torch.Tensor:
    """Losses the plain way: each answer behind its own prompt and picture."""
    losses = []
    for i in range(len(rows["input_ids"])):
        one = {
            name: value[i : i + 1] if len(value) == len(rows["input_ids"]) else value for name, value in rows.items()
        }
        labels = one.pop("labels")[:, 1:]
        logits = skills.model(**one, use_cache=False).logits[:, :-1].transpose(1, 2)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
    return torch.stack(losses)


def widths(skills: Any, monkeypatch: pytest.MonkeyPatch) -> list[torch.Size]:
    """Shapes of the logits of every pass that follows."""
    seen: list[torch.Size] = []
    forward = skills.model.forward

    def watched(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        seen.append(output.logits.shape)
        return output

    monkeypatch.setattr(skills.model, "forward", watched)
    return seen


@torch.no_grad()
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("per_pass", [256, 8])
def test_losses_are_those_of_whole_rows(skills, attention, per_pass, monkeypatch) -> None:
    monkeypatch.setattr(candidates, "PER_PASS", per_pass)
    monkeypatch.setattr(candidates, "REPEATED", 100)
    skills.model.set_attn_implementation(attention)
    picture = owl2_tiny.images()[0]
    for kind, item in (("image", picture), ("text", "it rains")):
        rows = skills.answered(kind, item, skills.asked(kind, item, "is it?"), ANSWERS)
        found = candidates.answer_losses(skills.model, rows)
        assert torch.allclose(found, every_row(skills, rows), atol=2e-5, rtol=2e-6)
    pairs = [("a text", " yes"), ("another", " no"), ("a text", " maybe"), ("a text", "")]
    tokenizer = skills.processor.tokenizer
    assert skills.likelihoods(pairs) == pytest.approx(likelihoods(skills.model, tokenizer, pairs), abs=2e-5, rel=2e-6)


@torch.no_grad()
def test_a_thousand_labels_take_no_more_memory_than_some(monkeypatch) -> None:
    skills = made("owl2")
    seen = widths(skills, monkeypatch)
    ranked = skills.classify("image", [owl2_tiny.images()[0]], [f"{i}" for i in range(1000)])[0]
    assert len(ranked) == 1000 and sum(share for _, share in ranked) == pytest.approx(1, abs=1e-4)
    # logits of a pass, which are the largest of its tensors: bounded, however many labels there are
    assert max(shape[0] * shape[1] for shape in seen) <= candidates.PER_PASS + 1


@torch.no_grad()
@pytest.mark.parametrize("name", ["owl2", "llama"])
def test_letters_to_choose_from_take_one_pass(name, monkeypatch) -> None:
    skills = made(name)
    seen = widths(skills, monkeypatch)
    skills.rank("image", [owl2_tiny.images()[0]], ["which? A, B, C or D"], list("ABCD"))
    assert len(seen) == 1
    seen.clear()
    skills.likelihoods([("which?", letter) for letter in "ABCD"])
    assert [shape[1] for shape in seen] == [1]


def test_windows_and_other_attentions_keep_rows_apart() -> None:
    model = made("llama").model
    assert candidates.can_pack(model) and not candidates.can_pack(made("bloom").model)
    model.config.get_text_config().sliding_window = 8
    assert not candidates.can_pack(model)
