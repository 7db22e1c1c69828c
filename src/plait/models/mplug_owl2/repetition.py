"""What rules about repeated ids see of a prompt: its words, neither images nor padding.

prompt ids -> (image positions and padding become an id that the row has anyway) -> penalty of repeated ids
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.generation.logits_process import LogitsProcessor, LogitsProcessorList
from transformers.generation.logits_process import RepetitionPenaltyLogitsProcessor as Penalty


def words_only(ids: Tensor, image_id: int, mask: Tensor | None = None) -> Tensor:
    """ids: (rows, seq); mask: (rows, prompt), once or once per beam, 0 on padding -> ids with the rest replaced.

    Image positions hold an id outside the vocabulary, and padding is no word; each becomes the smallest id that its row
    has elsewhere, which changes nothing for a rule that asks whether an id occurs.
    """
    hidden = ids == image_id
    if mask is not None:
        mask = mask[:: max(1, len(mask) // len(ids))].repeat_interleave(max(1, len(ids) // len(mask)), dim=0)
        padding = mask[:, : ids.shape[1]] == 0
        hidden[:, : padding.shape[1]] |= padding
    word = ids.masked_fill(hidden, torch.iinfo(ids.dtype).max).amin(dim=1, keepdim=True)
    return torch.where(hidden & (word < image_id), word, ids)


class WordsInPenalties(GenerationMixin):
    """`generate` whose penalties of repeated ids see words alone."""

    config: Any

    def _get_logits_processor(self: Any, *args: Any, **kwargs: Any) -> LogitsProcessorList:
        ids, mask = kwargs.get("encoder_input_ids"), (kwargs.get("model_kwargs") or {}).get("attention_mask")
        if ids is not None and ids.dim() == 2:
            kwargs["encoder_input_ids"] = words_only(ids, self.config.image_id, mask)
        found = GenerationMixin._get_logits_processor(self, *args, **kwargs)

        def on_words(processor: LogitsProcessor, input_ids: Tensor, scores: Tensor) -> Tensor:
            return processor(words_only(input_ids, self.config.image_id, mask), scores)

        return LogitsProcessorList(partial(on_words, rule) if isinstance(rule, Penalty) else rule for rule in found)
