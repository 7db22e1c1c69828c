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
    """Mask all pieces of `ceil(words * ratio)` words chosen evenly.

    word_starts: (tokens,) boolean, True where a piece begins a word; no end-of-sequence token. Pieces before the
    first start belong to no word and stay visible. Returns boolean (tokens,).
    """
    starts = word_starts.bool()
    words = int(starts.sum())
    chosen = torch.zeros(words + 1, dtype=torch.bool)
    chosen[1 + torch.randperm(words, generator=generator)[: math.ceil(words * ratio)]] = True
    return chosen[starts.long().cumsum(0)]


def joint_text_mask(text_mask: Tensor, ratio: float = 0.4, generator: torch.Generator | None = None) -> Tensor:
    """Mask `floor(ratio * tokens)` single tokens, first among those that the text-only mask leaves visible.

    text_mask: (tokens,) boolean, the mask of the text-only pass. Returns boolean (tokens,).
    """
    return _visible_first(text_mask, int(ratio * len(text_mask)), generator)


def image_mask(num_patches: int, ratio: float = 0.75, generator: torch.Generator | None = None) -> Tensor:
    """Mask exactly `int(num_patches * ratio)` random patches. Returns boolean (num_patches,)."""
    mask = torch.zeros(num_patches, dtype=torch.bool)
    mask[torch.randperm(num_patches, generator=generator)[: int(num_patches * ratio)]] = True
    return mask


def joint_image_mask(mask: Tensor, ratio: float = 0.6875, generator: torch.Generator | None = None) -> Tensor:
    """Mask `int(patches * ratio)` patches: first all that the image-only pass sees, the rest among its masked ones.

    The two views of an image therefore share no visible patch.
    mask: (patches,) boolean, the mask of the image-only pass. Returns boolean (patches,).
    """
    return _visible_first(mask, int(ratio * len(mask)), generator)


def audio_mask(num_frames: int, ratio: float, span: int = 5, generator: torch.Generator | None = None) -> Tensor:
    """Mask exactly `int(num_frames * ratio)` frames, mostly in spans.

    `int(num_frames * (ratio + 0.1) / span)` random centres mask a span each (clamped to the ends), then single random
    frames are unmasked or masked until the number is exact. Returns boolean (num_frames,).
    """
    centres = torch.randint(0, num_frames, (int(num_frames * (ratio + 0.1) / span),), generator=generator)
    offsets = torch.arange(span) - span // 2
    mask = torch.zeros(num_frames, dtype=torch.bool)
    mask[(centres[:, None] + offsets).clamp(0, num_frames - 1).flatten()] = True
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

    input_ids: (batch, seq); word_starts: (vocabulary,) boolean table. Returns boolean (batch, seq).
    """
    masks = torch.zeros(input_ids.shape, dtype=torch.bool)
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
    """Joint masks of a padded batch that avoid its text-only masks. Shapes as `batch_text_masks`."""
    masks = torch.zeros(input_ids.shape, dtype=torch.bool)
    for mask, taken, tokens in zip(masks, text_masks, _words(input_ids, eos_token_id, pad_token_id), strict=True):
        mask[tokens] = joint_text_mask(taken[tokens], ratio, generator)
    return masks


def batch_audio_masks(frames: list[int], ratio: float, generator: torch.Generator | None = None) -> Tensor:
    """Audio masks of clips with these numbers of frames. Returns boolean (batch, max(frames)), False on padding."""
    masks = torch.zeros((len(frames), max(frames)), dtype=torch.bool)
    for mask, length in zip(masks, frames, strict=True):
        mask[:length] = audio_mask(length, ratio, generator=generator)
    return masks


def preserve_ids(masked: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Positions the student keeps, counted in the sequence with its CLS vector in front.

    masked: (batch, seq) boolean without CLS; attention_mask: (batch, seq), True = real, None = all real.
    Returns int64 (batch, kept): 0 (CLS) first, then ascending, -1 behind the shorter rows.
    """
    keep = ~masked.bool() if attention_mask is None else ~masked.bool() & attention_mask.bool()
    counts = keep.sum(dim=1, keepdim=True)  # (batch, 1)
    width = int(counts.max())
    ids = keep.int().argsort(dim=1, descending=True, stable=True)[:, :width] + 1
    ids = ids.masked_fill(torch.arange(width, device=ids.device) >= counts, -1)
    return torch.nn.functional.pad(ids, (1, 0))


def _words(input_ids: Tensor, eos_token_id: int, pad_token_id: int) -> Tensor:
    return ((input_ids != eos_token_id) & (input_ids != pad_token_id)).cpu()


def _visible_first(taken: Tensor, count: int, generator: torch.Generator | None) -> Tensor:
    priority = torch.randn(len(taken), generator=generator) - 1e4 * taken.float()
    mask = torch.zeros(len(taken), dtype=torch.bool)
    mask[priority.topk(count).indices] = True
    return mask
