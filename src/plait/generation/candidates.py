"""The likelihood of many answers to one question, what they share computed once.

rows of ids -> shared prefix, tails -> prefix and tails side by side in one row, each tail blind to the others
-> logits where a tail is predicted -> summed losses

Feeding every answer with its prompt costs the prompt and its media once per answer. Here the prompt runs once; tails
follow in passes of bounded length over its cached keys, so that memory does not grow with the number of answers, and
the first pass holds prompt and tails together: letters to choose from take that pass alone.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache

from plait.generation.official_beams import named

IGNORED = -100
"""Label of a position that counts for nothing, as torch has it."""
PER_PASS = 256
"""Positions of tails in one pass: products are full by then, and logits of 32,000 words stay below 40 MB."""
REPEATED = 4096
"""Positions of the prompt that one pass repeats for models whose rows cannot be packed."""


class Tail(NamedTuple):
    """What one answer has beyond the prompt: ids (n,), and labels (n,), -100 where nothing counts."""

    ids: Tensor
    labels: Tensor


def answer_losses(model: Any, rows: Mapping[str, Tensor]) -> Tensor:
    """Negative log likelihood of every row's labels, for rows that begin alike.

    Args:
        model: causal; `forward` takes ids, a mask, positions, a cache and `logits_to_keep`.
        rows: input_ids, attention_mask and labels (answers, width), padded on the right; whatever else there is are
            media of *one* row, which all of them show.

    Returns:
        float32 (answers,).
    """
    media = dict(rows)
    ids, mask, labels = (media.pop(name) for name in ("input_ids", "attention_mask", "labels"))
    # up to the first column that differs, or that is learned: what is learned needs a prediction per row
    stops = (ids != ids[:1]).any(0) | (labels != IGNORED).any(0) | (mask == 0).any(0)
    shared = int(stops.long().argmax()) if bool(stops.any()) else ids.shape[1]
    ends = mask.sum(1).tolist()
    tails = [Tail(row[shared:end], learned[shared:end]) for row, learned, end in zip(ids, labels, ends)]
    return tail_losses(model, ids[0, :shared], tails, media)


def tail_losses(model: Any, prefix: Tensor, tails: Sequence[Tail], media: Mapping[str, Any] | None = None) -> Tensor:
    """Negative log likelihood of every tail behind one prefix.

    Args:
        model: as in `answer_losses`.
        prefix: (positions,) ids, at least one; all media stand in it.
        tails: answers, of any lengths.
        media: arguments of `forward` for the media of the prefix.

    Returns:
        float32 (tails,).
    """
    passes = _packed if can_pack(model) else _repeated
    losses: list[Tensor] = []
    first: Tensor | None = None
    # The last id of a tail is predicted and predicts nothing, so it is never fed.
    for group, logits, leading in passes(model, prefix, tails, media or {}):
        first = leading.float().log_softmax(-1) if leading is not None else first
        assert first is not None
        for tail, own in zip(group, logits):
            loss = F.cross_entropy(own.float(), tail.labels[1:], reduction="sum", ignore_index=IGNORED)
            begins = tail.labels[:1]
            # empty where a tail has nothing left, which happens to an answer without text and end
            losses.append(loss - first[begins[begins != IGNORED]].sum())
    return torch.stack(losses)


def can_pack(model: Any) -> bool:
    """Whether rows can lie side by side in one: full attention in every layer, positions and masks as they are given.

    BLOOM derives positions from its mask, flash attention takes no mask of this kind, and a window would count
    positions of other answers.
    """
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    window = getattr(config, "sliding_window", None) if getattr(config, "use_sliding_window", True) else None
    implementation = getattr(config, "_attn_implementation", None)
    is_plain = implementation in ("eager", "sdpa") and kinds == {"full_attention"} and window is None
    return is_plain and getattr(model, "takes_positions", True)


Passed = tuple[Sequence[Tail], Sequence[Tensor], Tensor | None]
"""Tails of a pass, logits of each but for its first id, and behind the prefix (vocab,), which the first pass gives."""


def _packed(model: Any, prefix: Tensor, tails: Sequence[Tail], media: Mapping[str, Any]) -> Iterator[Passed]:
    """Tails side by side in one row, the first of them behind the prefix itself."""
    groups = list(_groups(tails, PER_PASS))
    cache = DynamicCache() if len(groups) > 1 else None
    dtype, start = model.get_input_embeddings().weight.dtype, len(prefix)
    for number, group in enumerate(groups):
        lead, past = (prefix, 0) if number == 0 else (prefix[:0], start)
        fed = [tail.ids[:-1] for tail in group]
        sizes = [len(one) for one in fed]
        ids = torch.cat([lead, *fed])
        if not len(ids):  # answers of one id each: the prefix has said all about them
            yield (
                group,
                [prefix.new_zeros(0, model.config.get_text_config().vocab_size, dtype=dtype)] * len(group),
                None,
            )
            continue
        # 0 owns the prefix; a position sees that and its own tail, up to itself
        numbers = torch.arange(1, len(fed) + 1).repeat_interleave(torch.tensor(sizes))
        owner = torch.cat([torch.zeros(start, dtype=torch.long), numbers])
        asks, keys = torch.arange(past, past + len(ids)), torch.arange(len(owner))
        sees = (keys <= asks[:, None]) & ((owner == 0) | (owner == owner[past:, None]))
        bias = torch.zeros(sees.shape, dtype=dtype).masked_fill_(~sees, torch.finfo(dtype).min)
        positions = torch.cat([torch.arange(past, start), *(start + torch.arange(size) for size in sizes)])
        output = model(
            input_ids=ids[None], attention_mask=bias[None, None].to(ids.device), use_cache=cache is not None,
            position_ids=positions[None].to(ids.device), logits_to_keep=sum(sizes) + (number == 0),
            **named(cache), **(media if number == 0 else {}),
        )  # fmt: skip
        if cache is not None and sum(sizes):
            # how many to take away: what a positive number means depends on the version
            cache.crop(-sum(sizes))
        logits = output.logits[0]
        leading, logits = (logits[0], logits[1:]) if number == 0 else (None, logits)
        yield group, logits.split(sizes), leading


def _repeated(model: Any, prefix: Tensor, tails: Sequence[Tail], media: Mapping[str, Any]) -> Iterator[Passed]:
    """Tails as rows of their own behind copies of the prefix's keys, few enough that these stay small."""
    cache, start = DynamicCache(config=model.config.get_text_config()), len(prefix)
    output = model(input_ids=prefix[None], use_cache=True, logits_to_keep=1, **named(cache), **media)
    leading = output.logits[0, -1]
    rows = max(1, REPEATED // start)
    for group in (tails[i : i + rows] for i in range(0, len(tails), rows)):
        sizes = [max(0, len(tail.ids) - 1) for tail in group]
        width = max(*sizes, 1)
        ids, mask = prefix.new_zeros(len(group), width), prefix.new_zeros(len(group), start + width)
        for row, (tail, size) in enumerate(zip(group, sizes)):
            ids[row, :size] = tail.ids[:-1]
            mask[row, : start + size] = 1  # padded on the right: nothing attends to it
        own = copy.deepcopy(cache)
        own.batch_repeat_interleave(len(group))
        logits = model(input_ids=ids, attention_mask=mask, use_cache=True, **named(own)).logits
        yield group, [one[:size] for one, size in zip(logits, sizes)], leading


def _groups(tails: Sequence[Tail], budget: int) -> Iterator[list[Tail]]:
    """Tails in order, as many at a time as `budget` positions hold, at least one."""
    group: list[Tail] = []
    size = 0
    for tail in tails:
        if group and size + len(tail.ids) > budget:
            yield group
            group, size = [], 0
        group.append(tail)
        size += len(tail.ids)
    if group:
        yield group
