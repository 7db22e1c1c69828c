"""Self-critical sequence training: a caption gains by how much it beats others of its image.

beams with gradient -> captions -> CIDEr rewards -> scst_loss
"""

from __future__ import annotations

from torch import Tensor


def scst_loss(scores: Tensor, rewards: Tensor, lengths: Tensor | None = None, *, official: bool = False) -> Tensor:
    """Policy gradient with the mean of an image's hypotheses as baseline.

        loss = -mean over images and hypotheses of score * (reward - mean reward of the image)

    Args:
        scores: (batch, hypotheses) length-normalised log probabilities, with gradient.
        rewards: (batch, hypotheses), CIDEr of each hypothesis.
        lengths: (batch, hypotheses), ids of each hypothesis with its start token; for `official`.
        official: divide every score once more by its length, as mPLUG's released loop does.

    Returns:
        A scalar.

    Raises:
        ValueError: for shapes that differ, and for `official` without lengths.

    Source:
        Rennie et al. (arXiv 1612.00563); specification mPLUG-2, 7.3.
    """
    if scores.shape != rewards.shape:
        raise ValueError(f"expected a reward per score, got shapes {tuple(rewards.shape)} and {tuple(scores.shape)}")
    if official:
        if lengths is None:
            raise ValueError("expected lengths for the official loss, got none; pass the number of ids per hypothesis")
        scores = scores / lengths
    # rewards have no gradient: a caption's score rises by how much it beats its siblings
    return -(scores * (rewards - rewards.mean(1, keepdim=True))).mean()
