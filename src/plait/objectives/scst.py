"""Self-critical sequence training: a caption is made likelier by how much it beats the other captions of its image."""

from __future__ import annotations

from torch import Tensor


def scst_loss(scores: Tensor, rewards: Tensor, lengths: Tensor | None = None, *, official: bool = False) -> Tensor:
    """-mean over images and hypotheses of score * (reward - mean reward of the image's hypotheses).

    scores: (batch, hypotheses) length-normalised log probabilities, with gradient; rewards: (batch, hypotheses), CIDEr.
    `official` divides every score once more by `lengths` (batch, hypotheses), the ids of the hypothesis with its start
    token, as mPLUG's released loop does. Source: Rennie et al. (arXiv 1612.00563) with the mean of the other beams as
    baseline; specification mPLUG-2, 7.3.
    """
    if scores.shape != rewards.shape:
        raise ValueError(f"expected a reward per score, got shapes {tuple(rewards.shape)} and {tuple(scores.shape)}")
    if official:
        if lengths is None:
            raise ValueError("expected lengths for the official loss, got none; pass the number of ids per hypothesis")
        scores = scores / lengths
    return -(scores * (rewards - rewards.mean(1, keepdim=True))).mean()
