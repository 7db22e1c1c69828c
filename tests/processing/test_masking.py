from __future__ import annotations

import pytest
import torch

from plait.processing import masking


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


WORD_STARTS = torch.tensor([1, 0, 0, 1, 1, 0, 1, 1, 0, 1, 1, 0], dtype=torch.bool)


@pytest.mark.parametrize("ratio", [0.15, 0.4, 1.0])
@pytest.mark.parametrize("seed", range(5))
def test_whole_words_are_masked_or_kept_as_one(ratio: float, seed: int) -> None:
    mask = masking.whole_word_mask(WORD_STARTS, ratio, rng(seed))
    words = WORD_STARTS.long().cumsum(0)
    masked_words = words[mask].unique()
    assert len(masked_words) == -(-7 * ratio // 1)
    assert torch.equal(mask, torch.isin(words, masked_words))


@pytest.mark.parametrize("seed", range(5))
def test_joint_text_mask_prefers_tokens_visible_before(seed: int) -> None:
    first = masking.whole_word_mask(WORD_STARTS, 0.15, rng(seed))
    second = masking.joint_text_mask(first, 0.4, rng(seed))
    assert second.sum() == 4
    assert not (first & second).any()


def test_joint_text_mask_falls_back_to_masked_tokens() -> None:
    first = torch.tensor([1, 1, 1, 1, 0], dtype=torch.bool)
    second = masking.joint_text_mask(first, 0.6, rng(0))
    assert second.sum() == 3
    assert second[4]


def test_two_views_of_an_image_share_no_visible_patch() -> None:
    first = masking.image_mask(256, generator=rng(1))
    second = masking.joint_image_mask(first, generator=rng(2))
    assert (first.sum(), second.sum()) == (192, 176)
    assert (first | second).all()


@pytest.mark.parametrize("ratio", [0.45, 0.55])
@pytest.mark.parametrize("frames", [2, 49, 200])
def test_audio_masks_have_the_exact_size(frames: int, ratio: float) -> None:
    assert masking.audio_mask(frames, ratio, generator=rng(3)).sum() == int(frames * ratio)


def test_audio_masks_come_in_spans() -> None:
    mask = masking.audio_mask(749, 0.55, generator=rng(4))
    runs = (mask[1:] & ~mask[:-1]).sum()
    assert runs < 0.6 * masking.image_mask(749, 0.55, rng(4)).diff().sum()


def test_batch_masks_spare_padding_and_end_tokens() -> None:
    ids = torch.tensor([[5, 6, 7, 8, 2], [9, 2, 1, 1, 1]])
    word_starts = torch.ones(10, dtype=torch.bool)
    masks = masking.batch_text_masks(ids, word_starts, 0.5, rng(5))
    joint = masking.batch_joint_text_masks(ids, masks, 0.5, rng(5))
    assert masks.sum(1).tolist() == [2, 1]
    assert joint.sum(1).tolist() == [2, 0]
    assert not (masks & joint).any()
    assert not (masks | joint)[ids <= 2].any()


def test_batch_audio_masks_leave_padding_alone() -> None:
    masks = masking.batch_audio_masks([20, 8], 0.5, rng(6))
    assert masks.sum(1).tolist() == [10, 4]
    assert not masks[1, 8:].any()


def test_preserve_ids_list_cls_then_visible_positions() -> None:
    masked = torch.tensor([[1, 0, 0, 1], [0, 1, 0, 0]], dtype=torch.bool)
    real = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    assert masking.preserve_ids(masked, real).tolist() == [[0, 2, 3], [0, 1, -1]]
    assert masking.preserve_ids(masked).tolist() == [[0, 2, 3, -1], [0, 1, 3, 4]]
