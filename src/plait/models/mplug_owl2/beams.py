"""Beam search as the official code ran it (transformers 4.31): a hypothesis is as long as prompt and answer together.

Since then transformers counts generated tokens only. The difference matters for a length_penalty other than 0.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin


class PromptCountingBeams(GenerationMixin):
    """Generation whose beams follow 4.31 where `config.official` is set.

    Length = ids before the end token, the prompt included and every image counted as one id; a hypothesis cut off at
    the largest length counts all its ids.
    """

    config: Any
    _hidden_positions: Tensor
    _end_ids: Tensor

    def _beam_search(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        generation = kwargs.get("generation_config") or args[2]
        ends = generation.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        end_ids = torch.tensor(ends, dtype=torch.long, device=input_ids.device)
        run: Any = self
        if self.config.official:
            run = copy.copy(self)  # what the hooks below need lives as long as this search
            images = (input_ids == self.config.image_id).sum(dim=1)
            extra = images - images // self.config.tokens_per_image
            run._hidden_positions, run._end_ids = extra.view(-1, generation.num_beams)[:, :1], end_ids
        found = GenerationMixin._beam_search(run, input_ids, *args, **kwargs)
        sequences = found if isinstance(found, Tensor) else found.sequences
        if generation.pad_token_id is not None:
            _pad_ended(sequences[:, input_ids.shape[1] :], end_ids, generation.pad_token_id)
        return found

    def _update_finished_beams(self, **kwargs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        if self.config.official:
            cur_len, penalty = kwargs["cur_len"], kwargs["length_penalty"]
            last = kwargs["topk_running_sequences"][..., cur_len]
            ended = torch.isin(last, self._end_ids)
            lengths = cur_len + 1 - ended.long() - self._hidden_positions
            kwargs["topk_log_probs"] = kwargs["topk_log_probs"] / lengths**penalty
            kwargs["length_penalty"] = 0.0
        return super()._update_finished_beams(**kwargs)

    def _check_early_stop_heuristic(self, **kwargs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        if self.config.official:
            kwargs["decoder_prompt_len"] = self._hidden_positions
        return GenerationMixin._check_early_stop_heuristic(**kwargs)


def _pad_ended(new_ids: Tensor, end_ids: Tensor, pad_token_id: int) -> None:
    """Put padding behind the first end id, in place: transformers fills with the end id where padding is id 0."""
    ended = torch.isin(new_ids, end_ids).long().cumsum(dim=1)
    behind = ended - torch.isin(new_ids, end_ids).long() > 0
    new_ids.masked_fill_(behind, pad_token_id)
