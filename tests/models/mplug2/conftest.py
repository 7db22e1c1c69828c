"""Tiny mPLUG-2 models in which every parameter matters, and inputs for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2PreTrainedModel

Build = Callable[..., Any]


def redrawn(model: MPlug2PreTrainedModel) -> MPlug2PreTrainedModel:
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=g) * 0.2)
    return model.eval()


@pytest.fixture
def build() -> Build:
    """(class, changes of the preset tiny) -> model with random norms and biases, the same every time."""

    def make(model_class: type[MPlug2PreTrainedModel], **changes: Any) -> MPlug2PreTrainedModel:
        torch.manual_seed(0)
        return redrawn(model_class(MPlug2Config.preset("tiny", **changes)))

    return make


@pytest.fixture
def clips() -> Tensor:
    """Three clips of three frames."""
    return torch.randn(3, 3, 3, 12, 12, generator=torch.Generator().manual_seed(2))


@pytest.fixture
def pictures() -> Tensor:
    """Three pictures."""
    return torch.randn(3, 3, 12, 12, generator=torch.Generator().manual_seed(3))


@pytest.fixture
def texts() -> dict[str, Tensor]:
    """Three texts of 6, 4 and 5 tokens."""
    ids = torch.randint(5, 100, (3, 6), generator=torch.Generator().manual_seed(4))
    mask = torch.arange(6) < torch.tensor([6, 4, 5])[:, None]
    return {"input_ids": ids * mask, "attention_mask": mask.long()}
