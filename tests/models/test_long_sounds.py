"""Sounds longer than the decoder's table of positions are denoised too: their positions lie closer together."""

from __future__ import annotations

import torch

from plait.models.one_peace.pretraining import DecoderBranch


def branch() -> DecoderBranch:
    torch.manual_seed(0)
    made = DecoderBranch(6, 4, num_positions=5)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def test_positions_of_a_long_sound_are_those_of_the_table_stretched() -> None:
    made = branch()
    features, keep = torch.zeros(1, 1, 6), torch.tensor([[-1]])
    blank = made.mask_token[0]
    short, exact, long = (made(features, keep, length)[0] - blank for length in (3, 5, 9))
    assert torch.allclose(short, made.position_embedding[:3], atol=1e-6)
    assert torch.allclose(exact, made.position_embedding, atol=1e-6)
    assert torch.allclose(long[[0, 1, 8]], made.position_embedding[[0, 1, 4]], atol=1e-6)  # CLS and both ends stay
    # the table's four rows behind CLS become eight: the second is 3/7 of the way from the first to the second
    first, second = made.position_embedding[1], made.position_embedding[2]
    assert torch.allclose(long[2], first.lerp(second, 3 / 7), atol=1e-5)
    long.sum().backward()
    assert made.position_embedding.grad is not None and made.position_embedding.grad.abs().sum(1).gt(0).all()
