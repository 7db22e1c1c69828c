"""Where generation depends on the version of transformers: the old beams of the Owls, and the name of the cache.

The official code of both Owls runs the beam search of transformers 4.28 to 4.31. Today's search differs in three ways:
- a hypothesis was as long as the ids before its end token, those of the prompt that the old `generate` saw included
  (today: what was generated, the end token included);
- a row was done when the best candidate of a step, ended or not, could not beat the worst hypothesis (today: the best
  one that goes on);
- at the length limit all beams that still ran became hypotheses (today: those among the best candidates).

Key/value caches are handed around as `cache` since transformers 5.24 and as `past_key_values` before; models of this
library take either and return transformers'.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin
from transformers.cache_utils import Cache

LOWEST = -1.0e9
"""What transformers gives a hypothesis that does not exist."""


@dataclass
class Search:
    """What one search knows beyond its hooks' arguments.

    uncounted: (batch, 1) positions of the prompt that do not count as length; end_ids: (ends,); max_length: of prompt
    and answer; done: (batch, 1) bool, True where a row takes no further hypotheses.
    """

    uncounted: Tensor
    end_ids: Tensor
    max_length: int
    done: Tensor

    def update(self, step: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Hypotheses after a step: sequences, their scores, beam indices and which exist.

        Args:
            step: the arguments of transformers' `_update_finished_beams`.

        Returns:
            The four tensors that it returns, each (batch, num_beams, ...).
        """
        scores, cur_len, beams = step["topk_log_probs"], step["cur_len"], step["num_beams"]
        # the old search counted a hypothesis without the end token that this step adds
        length = (cur_len - self.uncounted).to(scores.dtype)  # of the ids before this step's
        ended = torch.isin(step["topk_running_sequences"][..., cur_len], self.end_ids)
        new = ended & step["top_num_beam_mask"][None] & ~self.done
        kept = _best(step, _held(step), scores / length ** step["length_penalty"], new)
        self.done = self.done | self._is_done(step, kept, scores.amax(1, keepdim=True), length + 1)
        # not ended and stopped all the same: the length limit
        stopped = step["next_token_hits_stopping_criteria"] & ~ended & ~self.done
        running = stopped & (stopped.long().cumsum(dim=1) <= beams)
        if not running.any():
            return kept
        return _best(step, kept, scores / (length + 1) ** step["length_penalty"], running)

    def _is_done(self, step: dict[str, Any], kept: tuple[Tensor, ...], best: Tensor, length: Tensor) -> Tensor:
        """Whether no candidate can beat a row's worst hypothesis, (batch, 1) boolean.

        best: (batch, 1) highest log probability of the step, ended or not, as the old search had it.
        """
        full = kept[3].all(dim=1, keepdim=True)
        if step["early_stopping"] is True:
            return full
        if step["early_stopping"] == "never" and step["length_penalty"] > 0:
            length = (self.max_length - self.uncounted).to(best.dtype)
        return full & (kept[1].amin(1, keepdim=True) >= best / length ** step["length_penalty"])


def _held(step: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The hypotheses that the search holds, out of transformers' arguments.

    Sequences, scores, beam indices and which exist, each (batch, num_beams, ...).
    """
    return step["sequences"], step["beam_scores"], step["beam_indices"], step["is_sent_finished"]


def _best(
    step: dict[str, Any], held: tuple[Tensor, Tensor, Tensor, Tensor], scores: Tensor, new: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The best `num_beams` of the hypotheses held and the new ones of a step.

    scores: (batch, candidates) of the new ones; new: which of them exist. Returns sequences, scores,
    beam indices and which exist.
    """
    offered = (
        step["topk_running_sequences"],
        scores.masked_fill(~new, LOWEST),
        step["topk_running_beam_indices"],
        new,
    )
    merged = [torch.cat(pair, dim=1) for pair in zip(held, offered)]
    chosen = merged[1].topk(step["num_beams"], dim=1).indices
    sequences, kept, indices, exist = (GenerationMixin._gather_beams(x, chosen) for x in merged)
    return sequences, kept, indices, exist


class OfficialBeams(GenerationMixin):
    """Generation whose beams are the old ones where `config.official` is set; mixed into a model.

    A model says in `uncounted_positions` which part of its prompt the old `generate` did not see.
    To mPLUG-Owl's it was one start id in all, to mPLUG-Owl2's an image was one id.
    """

    config: Any
    _search: Search

    def uncounted_positions(self, prompt_ids: Tensor) -> Tensor:
        """How many positions of a prompt are no part of a hypothesis' length; a model says it.

        prompt_ids: (rows, seq) -> (rows,).
        """
        raise NotImplementedError

    def _beam_search(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """transformers' search, with the old hooks where the model is official.

        What comes behind an end id is padded in both modes.
        """
        generation = kwargs.get("generation_config") or args[2]
        ends = generation.eos_token_id
        ends = [] if ends is None else ends if isinstance(ends, list) else [ends]
        end_ids = torch.tensor(ends, dtype=torch.long, device=input_ids.device)
        run: Any = self
        if self.config.official:
            run = copy.copy(self)  # what the hooks below need lives as long as this search
            uncounted = self.uncounted_positions(input_ids).view(-1, generation.num_beams)[:, :1]
            done = torch.zeros_like(uncounted, dtype=torch.bool)
            run._search = Search(uncounted, end_ids, generation.max_length, done)
        # by the class, not super(): `run` may be a copy that carries this search
        found = GenerationMixin._beam_search(run, input_ids, *args, **kwargs)
        sequences = found if isinstance(found, Tensor) else found.sequences
        # for both doors: transformers' own fill is what is mended here
        if generation.pad_token_id is not None:
            _pad_ended(sequences[:, input_ids.shape[1] :], end_ids, generation.pad_token_id)
        return found

    def _update_finished_beams(self, **kwargs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        """transformers' hook: which hypotheses a step leaves.

        By keyword only, as transformers calls it: a renamed argument is then an error at once.
        """
        return self._search.update(kwargs) if self.config.official else super()._update_finished_beams(**kwargs)

    def _check_early_stop_heuristic(self, **kwargs: Any) -> Any:  # ty: ignore[incompatible-method-override]
        """transformers' hook: which rows go on, (batch, 1) boolean.

        The old search had decided that with the step's hypotheses already.
        """
        if self.config.official:
            return ~self._search.done
        return GenerationMixin._check_early_stop_heuristic(**kwargs)


def _pad_ended(new_ids: Tensor, end_ids: Tensor, pad_token_id: int) -> None:
    """Put padding behind the first end id, in place.

    transformers fills with the end id where padding is id 0, which it takes for none.
    """
    ended = torch.isin(new_ids, end_ids).long().cumsum(dim=1)
    behind = ended - torch.isin(new_ids, end_ids).long() > 0
    new_ids.masked_fill_(behind, pad_token_id)


# asked of the function, not of a version number: development versions have either
_PREPARED = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in _PREPARED else "past_key_values"
CACHE_NAMES = ["cache", "past_key_values"]


def named(cache: Any) -> dict[str, Any]:
    """The cache as the keyword argument that this version of transformers expects.

    cache: any of transformers', or None.
    """
    return {CACHE: cache}


def one_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that a caller of either age passed, None where neither.

    Raises:
        ValueError: for two different ones.
    """
    if cache is not None and past_key_values is not None and cache is not past_key_values:
        raise ValueError("expected one cache, got `cache` and `past_key_values`; pass `cache` alone")
    return past_key_values if cache is None else cache
