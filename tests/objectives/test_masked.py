"""Masked language modelling hides the published shares and learns only from what it hid."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from plait.objectives.masked import mask_tokens, masked_lm_loss

MASK, VOCAB = 3, 1000


def test_four_fifths_become_the_mask_a_tenth_random_a_tenth_stay() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(10, VOCAB, (200, 200), generator=generator)
    maskable = torch.ones_like(ids, dtype=torch.bool)
    maskable[:, 0] = False
    hidden, labels = mask_tokens(ids, maskable, mask_id=MASK, vocab_size=VOCAB, generator=generator)
    drawn = labels != -100
    assert not drawn[:, 0].any()
    assert torch.equal(hidden[~drawn], ids[~drawn])
    assert torch.equal(labels[drawn], ids[drawn])
    assert drawn[:, 1:].float().mean().item() == pytest.approx(0.15, abs=0.01)
    assert (hidden[drawn] == MASK).float().mean().item() == pytest.approx(0.8, abs=0.02)
    assert (hidden[drawn] == ids[drawn]).float().mean().item() == pytest.approx(0.1, abs=0.02)


def test_only_hidden_tokens_are_learned() -> None:
    logits = torch.randn(2, 3, 5, generator=torch.Generator().manual_seed(1))
    labels = torch.tensor([[-100, 2, -100], [4, -100, -100]])
    expected = F.cross_entropy(torch.stack([logits[0, 1], logits[1, 0]]), torch.tensor([2, 4]))
    torch.testing.assert_close(masked_lm_loss(logits, labels), expected)
    assert masked_lm_loss(logits, torch.full((2, 3), -100)) == 0


def test_a_probability_outside_zero_and_one_is_refused() -> None:
    with pytest.raises(ValueError, match="probability"):
        mask_tokens(torch.zeros(1, 1).long(), torch.ones(1, 1).bool(), mask_id=0, vocab_size=2, probability=1.5)
