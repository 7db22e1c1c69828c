"""Which units of an input the student of the denoising losses does not see (ONE-PEACE, section 6.1).

    word starts / patches / frames -> mask (True = masked) -> preserve ids (positions kept, CLS first)

Samplers describe one sample without its CLS vector and draw from a CPU generator in a fixed order, so one seed gives
the published draws.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def whole_word_mask(word_starts: Tensor, ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Mask all pieces of `ceil(words * ratio)` words chosen evenly (BERT's whole-word masking).

    Args:
        word_starts: (tokens,) boolean, True where a piece begins a word; no end-of-sequence token.
        ratio: share of words; 0.15 in ONE-PEACE's text-only pass.
        generator: on the CPU.

    Returns:
        boolean (tokens,), True = masked. Pieces before the first start belong to no word and stay
        visible.
    """
    starts = word_starts.bool()
    words = int(starts.sum())
    # place 0 is for pieces before the first word, which are never chosen
    chosen = torch.zeros(words + 1, dtype=torch.bool)
    chosen[1 + torch.randperm(words, generator=generator)[: math.ceil(words * ratio)]] = True
    return chosen[starts.long().cumsum(0)]


def joint_text_mask(text_mask: Tensor, ratio: float = 0.4, generator: torch.Generator | None = None) -> Tensor:
    """Mask single tokens, first among those that the text-only mask leaves visible.

    Args:
        text_mask: (tokens,) boolean, the mask of the text-only pass.
        ratio: `floor(ratio * tokens)` tokens are masked.
        generator: on the CPU.

    Returns:
        boolean (tokens,), True = masked.
    """
    return _visible_first(text_mask, int(ratio * len(text_mask)), generator)


def image_mask(num_patches: int, ratio: float = 0.75, generator: torch.Generator | None = None) -> Tensor:
    """Mask exactly `int(num_patches * ratio)` random patches: 192 of 256 as published.

    Args:
        num_patches: of an image.
        ratio: share that is masked.
        generator: on the CPU.

    Returns:
        boolean (num_patches,), True = masked.
    """
    mask = torch.zeros(num_patches, dtype=torch.bool)
    mask[torch.randperm(num_patches, generator=generator)[: int(num_patches * ratio)]] = True
    return mask


def joint_image_mask(mask: Tensor, ratio: float = 0.6875, generator: torch.Generator | None = None) -> Tensor:
    """Mask all patches that the image-only pass sees, and some of its masked ones.

    The two views of an image therefore share no visible patch.

    Args:
        mask: (patches,) boolean, the mask of the image-only pass.
        ratio: `int(patches * ratio)` patches are masked in all; 176 of 256 as published.
        generator: on the CPU.

    Returns:
        boolean (patches,), True = masked.
    """
    return _visible_first(mask, int(ratio * len(mask)), generator)


def audio_mask(num_frames: int, ratio: float, span: int = 5, generator: torch.Generator | None = None) -> Tensor:
    """Mask exactly `int(num_frames * ratio)` frames, mostly in spans.

    `int(num_frames * (ratio + 0.1) / span)` random centres mask a span each, clamped to the ends;
    then single random frames are unmasked or masked until the number is exact.

    Args:
        num_frames: of a clip, without CLS.
        ratio: 0.55 for audio alone, 0.45 beside text, as published.
        span: frames of a span.
        generator: on the CPU.

    Returns:
        boolean (num_frames,), True = masked.
    """
    # a tenth more than asked for, since spans overlap
    centres = torch.randint(0, num_frames, (int(num_frames * (ratio + 0.1) / span),), generator=generator)
    offsets = torch.arange(span) - span // 2
    mask = torch.zeros(num_frames, dtype=torch.bool)
    # clamped, not cut: a span at an end masks the end frame several times
    mask[(centres[:, None] + offsets).clamp(0, num_frames - 1).flatten()] = True
    # exact, so that all clips of one length have as many visible frames
    surplus = int(mask.sum()) - int(num_frames * ratio)
    if surplus > 0:
        mask[torch.multinomial(mask.float(), surplus, generator=generator)] = False
    elif surplus < 0:
        mask[torch.multinomial((~mask).float(), -surplus, generator=generator)] = True
    return mask


def batch_text_masks(
    input_ids: Tensor,
    word_starts: Tensor,
    ratio: float,
    generator: torch.Generator | None = None,
    *,
    eos_token_id: int = 2,
    pad_token_id: int = 1,
) -> Tensor:
    """Whole-word masks of a padded batch; padding and end-of-sequence tokens are never masked.

    Args:
        input_ids: (batch, seq).
        word_starts: (vocabulary,) boolean table, see `tokenizers.whole_word_starts`.
        ratio, generator: as in `whole_word_mask`.
        eos_token_id, pad_token_id: ids that are no words.

    Returns:
        boolean (batch, seq), on the CPU.
    """
    masks = torch.zeros(input_ids.shape, dtype=torch.bool)
    # row by row on the CPU: one generator gives the published draws whatever the device
    for mask, ids, tokens in zip(masks, input_ids.cpu(), _words(input_ids, eos_token_id, pad_token_id), strict=True):
        mask[tokens] = whole_word_mask(word_starts[ids[tokens]], ratio, generator)
    return masks


def batch_joint_text_masks(
    input_ids: Tensor,
    text_masks: Tensor,
    ratio: float = 0.4,
    generator: torch.Generator | None = None,
    *,
    eos_token_id: int = 2,
    pad_token_id: int = 1,
) -> Tensor:
    """Joint masks of a padded batch that avoid its text-only masks.

    Args:
        input_ids: (batch, seq).
        text_masks: (batch, seq) of `batch_text_masks`.
        ratio, generator: as in `joint_text_mask`.
        eos_token_id, pad_token_id: ids that are no words.

    Returns:
        boolean (batch, seq), on the CPU.
    """
    masks = torch.zeros(input_ids.shape, dtype=torch.bool)
    for mask, taken, tokens in zip(masks, text_masks, _words(input_ids, eos_token_id, pad_token_id), strict=True):
        mask[tokens] = joint_text_mask(taken[tokens], ratio, generator)
    return masks


def batch_audio_masks(frames: list[int], ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Audio masks of clips of several lengths.

    Args:
        frames: of each clip.
        ratio, generator: as in `audio_mask`.

    Returns:
        boolean (batch, max(frames)), False on padding.
    """
    masks = torch.zeros((len(frames), max(frames)), dtype=torch.bool)
    for mask, length in zip(masks, frames, strict=True):
        mask[:length] = audio_mask(length, ratio, generator=generator)
    return masks


def preserve_ids(masked: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions the student keeps, counted in the sequence with its CLS vector in front.

    Args:
        masked: (batch, seq) boolean without CLS.
        attention_mask: (batch, seq), True = real, None = all real.

    Returns:
        int64 (batch, kept): 0 (CLS) first, then ascending, -1 behind the shorter rows.

    Source:
        ONE-PEACE, 2.4 of its released layout.
    """
    keep = ~masked.bool() if attention_mask is None else ~masked.bool() & attention_mask.bool()
    counts = keep.sum(dim=1, keepdim=True)  # (batch, 1)
    width = int(counts.max())
    # a stable sort puts the kept ones in front, still ascending; + 1 makes room for CLS
    ids = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width] + 1
    ids = ids.masked_fill(torch.arange(width, device=ids.device) >= counts, -1)
    return torch.nn.functional.pad(ids, (1, 0))


def _words(input_ids: Tensor, eos_token_id: int, pad_token_id: int) -> Tensor:
    """(batch, seq) boolean on the CPU, True at tokens that are neither end nor padding."""
    return ((input_ids != eos_token_id) & (input_ids != pad_token_id)).cpu()


def _visible_first(taken: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    # far below any normal draw, so that taken units come last whatever was drawn
    """Mask `count` units at random, those that `taken` leaves before those that it has."""
    priority = torch.randn(len(taken), generator=generator) - 1e4 * taken.float()
    mask = torch.zeros(len(taken), dtype=torch.bool)
    mask[priority.topk(count).indices] = True
    return mask
