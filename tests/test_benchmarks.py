"""What ratios are measured against computes the same: the formulations of benchmarks/official on tiny models."""

from __future__ import annotations

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch

from plait.generation import candidates
from plait.models.mplug2.alignment import MPlug2ForRetrieval, Pairs
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug_owl2.tasks import MPlugOwl2Skills

from .models.mplug_owl2 import tiny

OFFICIAL = Path(__file__).parents[1] / "benchmarks" / "official"


@pytest.fixture(scope="module")
def one_by_one() -> Any:
    spec = spec_from_file_location("official_candidates", OFFICIAL / "candidates.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["official_candidates"] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@torch.no_grad()
def test_answers_one_by_one_have_the_losses_of_answers_together(one_by_one: Any) -> None:
    skills, picture = MPlugOwl2Skills(*tiny.model_and_processor()), tiny.images()[0]
    rows = skills.answered("image", picture, skills.asked("image", picture, "what?"), ["yes", "no", "perhaps"])
    found = candidates.answer_losses(skills.model, rows)
    assert torch.allclose(found, one_by_one.answer_losses(skills, rows), atol=2e-5, rtol=2e-6)


@torch.no_grad()
def test_pairs_one_by_one_have_the_scores_of_pairs_together(one_by_one: Any) -> None:
    torch.manual_seed(0)
    model = MPlug2ForRetrieval(MPlug2Config.preset("tiny", modalities=["image"])).eval()
    pictures, texts = torch.rand(3, 3, 12, 12), torch.tensor([[101, 7, 102], [101, 8, 102], [101, 9, 102]])
    vision, text, mask = Pairs(pictures, None, texts, None).encode(model.model)
    for k in (1, 2, 3):
        ours = model.score(pictures, input_ids=texts, k=k)
        theirs = one_by_one.match_scores(model, vision, text, mask, k)
        assert torch.allclose(ours.vision_to_text, theirs[0], atol=1e-5)
        assert torch.allclose(ours.text_to_vision, theirs[1], atol=1e-5)
