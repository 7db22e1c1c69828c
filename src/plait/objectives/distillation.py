"""Momentum distillation: a slow copy of the model gives soft labels that its student matches beside the hard ones.

    teacher <- m teacher + (1 - m) student        loss = (1 - alpha) hard + alpha soft

Source: ALBEF (arXiv 2107.07651), section 3.3; specification mPLUG-2, sections 6 and 9. The released mPLUG-2 normalises
the student over the *sequence* and never passes alpha on, so its teacher is inert: `official` repeats the first, alpha
of 0 the second.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from plait.objectives.captioning import IGNORED, Reduction


def soft_label_loss(
    logits: Tensor, soft: Tensor, labels: Tensor, reduction: Reduction = "mean", *, official: bool = False
) -> Tensor:
    """Cross entropy against a teacher's distribution: -sum_v soft_v log softmax(logits)_v.

    Args:
        logits: (batch, length, vocab) of the student.
        soft: (batch, length, vocab) of the teacher, summing to 1 over the vocabulary.
        labels: (batch, length) aligned with them (already shifted for next-token losses);
            -100 = not supervised.
        reduction: `mean` over supervised positions, or `per_sample`, their sum.
        official: normalise over the length, as the released heads do by mistake.

    Returns:
        A scalar for `mean`, (batch,) for `per_sample`.

    Source:
        ALBEF (arXiv 2107.07651), 3.3; specification mPLUG-2, 6.
    """
    # dim 1 is the sequence: a bug of two released heads, their grounding head has it right
    log_probs = logits.float().log_softmax(1 if official else -1)
    losses = -(log_probs * soft).sum(-1).masked_fill(labels == IGNORED, 0.0)  # (batch, length)
    return losses.sum(1) if reduction == "per_sample" else losses.sum() / (labels != IGNORED).sum().clamp_min(1)


def mix(hard: Tensor, soft: Tensor, alpha: float) -> Tensor:
    """(1 - alpha) hard + alpha soft: the loss of a student that has a teacher.

    hard, soft: losses (...) of one shape. alpha: weight of the teacher in [0, 1]; 0 makes it inert, as
    the released VideoQA is, which never passes alpha on (specification mPLUG-2, 9).
    """
    return (1 - alpha) * hard + alpha * soft


def ramped_alpha(alpha: float, epoch: int, iteration: int, steps_per_epoch: int) -> float:
    """The weight of the teacher: rises linearly from 0 to `alpha` over epoch 0 and stays there.

    Args:
        alpha: weight from epoch 1 on; 0.4 as published.
        epoch: counted from 0.
        iteration: within the epoch, counted from 0.
        steps_per_epoch: iterations of an epoch.

    Returns:
        The weight at that iteration (specification mPLUG-2, 9).
    """
    return alpha * min(1.0, iteration / steps_per_epoch) if epoch == 0 else alpha


@torch.no_grad()
def update_teacher(teacher: Iterable[Tensor], student: Iterable[Tensor], momentum: float = 0.995) -> None:
    """teacher <- momentum teacher + (1 - momentum) student, in place, pair by pair.

    Args:
        teacher: tensors to change.
        student: as many tensors in the same order and shapes.
        momentum: share that the teacher keeps; 0 copies the student.

    Raises:
        ValueError: where the two have another number of tensors.

    Example:
        >>> teacher, student = [torch.zeros(1)], [torch.ones(1)]
        >>> update_teacher(teacher, student, momentum=0.75)
        >>> teacher
        [tensor([0.2500])]
    """
    mine, theirs = list(teacher), list(student)
    if len(mine) != len(theirs):
        raise ValueError(f"expected a student tensor for each of {len(mine)} teacher tensors, got {len(theirs)}")
    for slow, fast in zip(mine, theirs, strict=True):
        slow.mul_(momentum).add_(fast, alpha=1 - momentum)
