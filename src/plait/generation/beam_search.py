"""Beam search over any decoder that turns a prefix into the logits of its next token (specification mPLUG-2, 8).

    start ids -> step(ids, beam_indices) -> logits -> best beams of every item -> ... -> hypotheses, best first

A hypothesis scores its log probability over the penalty `((5 + generated) / 6) ** alpha` of its length.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

BANNED = -1e20
"""Log probability of the end token while a hypothesis is too short."""


class Hypothesis(NamedTuple):
    """One answer of the search.

    ids: (length,) int64 with the start tokens; score: log probability over the length penalty.
    """

    ids: Tensor
    score: float


class StepFunction(Protocol):
    """A decoder as the search sees it."""

    def __call__(self, ids: Tensor, beam_indices: Tensor | None) -> Tensor:
        """The logits of the next token.

        ids: (batch * num_beams, length), the whole prefix of every row; the beams of an item are neighbours, and the
        number of rows never changes. A decoder without cache reads all of it, one with a cache the last column.
        beam_indices: (batch * num_beams,) the row of the previous call that each row continues, always of the same
        item: reorder the cache with it, `cache.index_select(0, beam_indices)`. None at the first call, where a cache
        is to be filled from the whole prefix. Keys of the encoder states are the same for all beams of an item and
        need no reordering: `row // num_beams` is the item.
        Returns (batch * num_beams, vocab).
        """
        ...


def length_penalty(generated: int, alpha: float) -> float:
    """`((5 + generated) / 6) ** alpha`, the divisor of a log probability (GNMT, section 7).

    Args:
        generated: tokens after the start tokens, the end token included.
        alpha: 0 divides by 1; mPLUG-2 takes 0.6.
    """
    return ((5 + generated) / 6) ** alpha


@torch.no_grad()
def beam_search(
    step: StepFunction,
    start: Tensor,
    *,
    end_id: int,
    num_beams: int = 5,
    min_length: int = 1,
    max_length: int = 20,
    num_return: int = 1,
    alpha: float = 0.6,
    official: bool = False,
) -> list[list[Hypothesis]]:
    """Search the most likely continuations of `start`.

    A beam that produces `end_id` is finished and leaves the search. An item stops when no live
    beam can still beat its worst of `num_beams` finished hypotheses. Beams alive at `max_length`
    count as they are, without end token. Items do not influence one another.

    Args:
        step: the decoder, see `StepFunction`.
        start: (batch, prefix) int64, at least one token per item.
        end_id: the token that ends an answer.
        num_beams, num_return: beams per item, and how many hypotheses come back, at most as many.
        min_length, max_length: of the generated tokens, the end token included.
        alpha: exponent of the length penalty.
        official: repeat the released generator. A finished beam is recorded and lives on (ids
            after an end token), an item stops as soon as its top beam ends, and then its
            unfinished beams are recorded too.

    Returns:
        Per item up to `num_return` hypotheses, best first.

    Raises:
        ValueError: for lengths or numbers that make no sense.

    Example:
        >>> likely = torch.tensor([0.0, 0.1, 0.6, 0.3]).log()
        >>> start = torch.tensor([[0]])
        >>> beam_search(lambda ids, order: likely.expand(len(ids), -1), start, end_id=3, num_beams=2)[0][0].ids
    """
    _check(start, num_beams, min_length, max_length, num_return)
    batch, beams = start.shape[0], num_beams
    state = _State.start(start, beams)
    pools: list[list[Hypothesis]] = [[] for _ in range(batch)]
    done = torch.zeros(batch, dtype=torch.bool)
    beam_indices: Tensor | None = None
    for generated in range(1, max_length + 1):
        # in fp32: sums over many steps of bf16 would make equals of different beams
        log_probs = step(state.ids, beam_indices).float().log_softmax(-1)  # (batch * beams, vocab)
        if generated <= min_length:
            log_probs[:, end_id] = BANNED
        # one penalty for all beams of a step: they are equally long
        penalty = length_penalty(generated, alpha)
        advance = _advance_official if official else _advance
        state, beam_indices, found = advance(state, log_probs, penalty, end_id, beams, generated == max_length)
        for item in (~done).nonzero()[:, 0].tolist():
            pools[item] += found[item]
            # sorted is stable: of equal scores the one that ended first stays ahead
            pools[item] = sorted(pools[item], key=lambda h: -h.score)[:beams]
        # on the host: which items are done decides the loop, and reading it once a step is enough
        done |= state.stopped if official else _settled(pools, state, length_penalty(max_length, alpha), beams)
        if bool(done.all()):
            break
    return [pool[:num_return] for pool in pools]


class _State(NamedTuple):
    """The live beams of all items.

    ids: (batch * beams, length); totals: (batch, beams) summed log probabilities; stopped: (batch,) on
    the host, set by the released rules only.
    """

    ids: Tensor
    totals: Tensor
    stopped: Tensor

    @classmethod
    def start(cls, start: Tensor, beams: int) -> _State:
        """The state before the first step.

        All beams of an item begin alike, so all but the first are impossible; else the first step would
        give the same continuation several times.
        """
        totals = torch.full((start.shape[0], beams), -torch.inf, device=start.device)
        totals[:, 0] = 0.0
        return cls(start.repeat_interleave(beams, 0), totals, torch.zeros(start.shape[0], dtype=torch.bool))


_Found = list[list[Hypothesis]]


def _candidates(state: _State, log_probs: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The `count` best one-token continuations of every item.

    Returns their summed log probabilities, the rows they continue and their tokens, each
    (batch, count).
    """
    batch, beams = state.totals.shape
    vocab = log_probs.shape[-1]
    totals, flat = (log_probs.view(batch, beams, vocab) + state.totals[..., None]).flatten(1).topk(count, dim=1)
    first = torch.arange(batch, device=flat.device)[:, None] * beams
    return totals, first + flat // vocab, flat % vocab


def _advance(
    state: _State, log_probs: Tensor, penalty: float, end_id: int, beams: int, last: bool
) -> tuple[_State, Tensor, _Found]:
    """One step: finished beams leave, the best `beams` others live on.

    Returns the new state, the row of the last call that each row continues, and the hypotheses that
    ended, by item. At most `beams` of 2 * beams candidates can have ended.
    """
    # twice as many, so that `beams` remain when all the best have ended
    count = min(2 * beams, beams * log_probs.shape[-1])
    totals, rows, tokens = _candidates(state, log_probs, count)
    ended = tokens == end_id
    # among the best `beams` only: a worse one would not have survived as a beam either
    rank = torch.arange(count, device=ended.device)
    recorded = ended & (rank < beams) & (totals > BANNED)
    live = (totals.masked_fill(ended, -torch.inf)).topk(beams, dim=1)
    found = _record(state.ids, totals, rows, tokens, recorded, penalty)
    # a live beam may have -inf, where there are fewer continuations than beams
    state, indices = _select(state, live.values, rows.gather(1, live.indices), tokens.gather(1, live.indices))
    if last:
        for item, (total, pool) in enumerate(zip(state.totals.tolist(), found, strict=True)):
            lines = state.ids[item * beams : (item + 1) * beams]
            pool += [Hypothesis(i, t / penalty) for i, t in zip(lines, total, strict=True) if t > BANNED]
    return state, indices, found


def _advance_official(
    state: _State, log_probs: Tensor, penalty: float, end_id: int, beams: int, last: bool
) -> tuple[_State, Tensor, _Found]:
    """As released: a finished beam stays, and the top beam's end records the whole item.

    Results as `_advance`; `stopped` says which items end with this step.
    """
    totals, rows, tokens = _candidates(state, log_probs, beams)
    # at the last step every beam counts as finished
    finished = (tokens == end_id) | last
    stopped = finished[:, :1]
    found = _record(state.ids, totals, rows, tokens, finished | stopped, penalty)
    state, indices = _select(state, totals, rows, tokens)
    return state._replace(stopped=stopped[:, 0].cpu()), indices, found


def _select(state: _State, totals: Tensor, rows: Tensor, tokens: Tensor) -> tuple[_State, Tensor]:
    """The state after the chosen tokens, and the row of the last call that each row continues.

    totals, rows, tokens: (batch, beams) of the candidates that live on.
    """
    indices = rows.flatten()
    ids = torch.cat([state.ids.index_select(0, indices), tokens.reshape(-1, 1)], dim=1)
    return _State(ids, totals, state.stopped), indices


def _record(ids: Tensor, totals: Tensor, rows: Tensor, tokens: Tensor, which: Tensor, penalty: float) -> _Found:
    """Hypotheses of the candidates that `which` (batch, count) marks, by item.

    ids: (rows, length) before this step; the candidate's token is put behind them.
    """
    found: _Found = [[] for _ in range(len(totals))]
    for item, place in which.nonzero().tolist():
        line = torch.cat([ids[rows[item, place]], tokens[item, place, None]])
        found[item].append(Hypothesis(line, float(totals[item, place]) / penalty))
    return found


def _settled(pools: list[list[Hypothesis]], state: _State, largest_penalty: float, beams: int) -> Tensor:
    """Whether no live beam of an item can beat its worst kept hypothesis: (batch,) boolean.

    Totals only fall and penalties only grow, so the present total over the largest penalty is a bound.
    """
    best = (state.totals.amax(1) / largest_penalty).tolist()
    return torch.tensor([len(pool) >= beams and pool[-1].score >= b for pool, b in zip(pools, best, strict=True)])


def score_sequences(logits: Tensor, ids: Tensor, mask: Tensor, alpha: float = 0.6) -> Tensor:
    """The scores that the search gives to sequences, with gradient: what SCST learns from.

    Args:
        logits: (rows, length, vocab) of the decoder on the sequences.
        ids: (rows, length) int64.
        mask: (rows, length), True at generated tokens: neither start token nor padding.
        alpha: exponent of the length penalty, as in the search.

    Returns:
        float32 (rows,).
    """
    # the prompt has no part in a score, as in the search
    chosen = logits[:, :-1].float().log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]  # (rows, length - 1)
    generated = mask[:, 1:].sum(1)
    penalty = ((5 + generated) / 6) ** alpha
    return chosen.masked_fill(~mask[:, 1:], 0.0).sum(1) / penalty


def beam_options(
    released: tuple[int, int],
    num_beams: int,
    min_length: int | None = None,
    max_length: int | None = None,
    *,
    min_new_tokens: int | None = None,
    max_new_tokens: int | None = None,
    do_sample: bool | None = None,
    return_dict_in_generate: bool | None = None,
    generation_config: Any = None,
) -> tuple[int, int, int]:
    """Options of transformers' `generate` as those of a search that knows beams alone.

    Args:
        released: fewest and most tokens where none are asked for.
        num_beams, min_length, max_length: of generated tokens, the end token included.
        min_new_tokens, max_new_tokens: other names of the two lengths, which count no prompt here.
        do_sample, return_dict_in_generate: False alone.
        generation_config: the same options as one object; lengths beside it count more.

    Returns:
        Beams, fewest and most tokens.

    Raises:
        ValueError: for sampling and for outputs as a mapping.
    """
    given = generation_config
    if do_sample or return_dict_in_generate or (given and (given.do_sample or given.return_dict_in_generate)):
        raise ValueError("expected no sampling and no outputs as a mapping, got one of them; beams give ids")
    wished: list[tuple[int | None, ...]] = [(max_length, max_new_tokens), (min_length, min_new_tokens)]
    if given is not None:
        num_beams = given.num_beams or num_beams
        wished[0] += (given.max_new_tokens,)
        wished[1] += (given.min_new_tokens,)
    most, least = (next((n for n in names if n is not None), None) for names in wished)
    most = released[1] if most is None else most
    return num_beams, min(released[0], most) if least is None else least, most


def _check(start: Tensor, num_beams: int, min_length: int, max_length: int, num_return: int) -> None:
    """Raise ValueError for a start without tokens, and for lengths or numbers that make no sense.

    Before the first step, so that a wrong number costs no forward pass.
    """
    if start.dim() != 2 or not start.numel():
        raise ValueError(f"expected start ids (batch, prefix) with a token each, got shape {tuple(start.shape)}")
    if num_beams < 1 or not 1 <= num_return <= num_beams:
        raise ValueError(f"expected 1 <= num_return <= num_beams, got {num_return} and {num_beams}")
    if max_length < 1 or not 0 <= min_length <= max_length:
        raise ValueError(f"expected 0 <= min_length <= max_length and max_length >= 1, got {min_length}, {max_length}")
