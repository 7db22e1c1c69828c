"""The teacher of momentum distillation: a slow copy that is part of the model, so that checkpoints hold it.

student -> update: teacher <- m teacher + (1 - m) student        (ALBEF, arXiv 2107.07651, section 3.3)
"""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from plait.models.mplug2.model import MPlug2Model
from plait.objectives.distillation import update_teacher


class Teacher(MPlug2Model):
    """A network that never trains; gradients are switched off by the model that holds it."""

    def train(self, mode: bool = True) -> Self:
        """Stay in evaluation mode whatever is asked."""
        return super().train(False)


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float, *, leave: tuple[str, ...] = ()) -> None:
    """Move every tensor of `teacher` towards the one of `student` of that name, children called `leave` excepted.

    Momentum 0 copies. Raises ValueError where the student lacks a tensor of the teacher.
    """
    fast = dict(student.named_parameters())
    slow = [(n, p) for n, p in teacher.named_parameters() if n.partition(".")[0] not in leave]
    missing = [name for name, _ in slow if name not in fast]
    if missing:
        raise ValueError(f"expected a student with every tensor of its teacher, got none of {', '.join(missing[:5])}")
    update_teacher((p for _, p in slow), (fast[name] for name, _ in slow), momentum)
