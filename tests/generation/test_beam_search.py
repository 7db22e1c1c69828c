"""Beam search finds the most likely sequences, keeps to its limits and hands decoders a consistent order of rows."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from plait.generation.beam_search import beam_search, length_penalty, score_sequences

VOCAB, END, START, PLACES = 5, 4, 3, 10


class Trigram:
    """A language model whose next token depends on the last two tokens, their place and the item, so that none tie."""

    def __init__(self, batch: int, beams: int, seed: int = 0, scale: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randn(batch, PLACES, VOCAB, VOCAB, VOCAB, generator=generator) * scale
        self.beams = beams
        self.previous: Tensor | None = None

    def __call__(self, ids: Tensor, beam_indices: Tensor | None) -> Tensor:
        if beam_indices is not None:
            assert self.previous is not None
            assert torch.equal(self.previous[beam_indices], ids[:, :-1]), "a cache reordered so would be wrong"
            assert torch.equal(beam_indices // self.beams, torch.arange(len(ids)) // self.beams)
        self.previous = ids
        items = torch.arange(len(ids)) // self.beams
        before = ids[:, -2] if ids.shape[1] > 1 else torch.zeros_like(ids[:, -1])
        return self.table[items, ids.shape[1], before, ids[:, -1]]

    def log_prob(self, item: int, ids: list[int]) -> float:
        total, before = 0.0, 0
        for place, (last, token) in enumerate(itertools.pairwise(ids), 1):
            total += float(self.table[item, place, before, last].log_softmax(-1)[token])
            before = last
        return total


def start(batch: int) -> Tensor:
    return torch.full((batch, 1), START)


def exhaustive(model: Trigram, item: int, min_length: int, max_length: int) -> list[tuple[float, list[int]]]:
    """Every sequence that ends, or is cut at `max_length`, with its normalised score."""
    words = [t for t in range(VOCAB) if t != END]
    lines = [
        [START, *body, END] for n in range(min_length, max_length) for body in itertools.product(words, repeat=n)
    ] + [[START, *body] for body in itertools.product(words, repeat=max_length)]
    scored = [(model.log_prob(item, line) / length_penalty(len(line) - 1, 0.6), line) for line in lines]
    return sorted(scored, reverse=True)


def test_a_wide_beam_finds_the_best_of_all_sequences() -> None:
    beams, batch = 300, 3
    model = Trigram(batch, beams)
    found = beam_search(model, start(batch), end_id=END, num_beams=beams, max_length=4, num_return=5)
    for item, hypotheses in enumerate(found):
        best = exhaustive(model, item, 1, 4)[:5]
        assert [h.ids.tolist() for h in hypotheses] == [line for _, line in best]
        assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in best], abs=1e-5)


@pytest.mark.parametrize("official", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_a_batch_equals_its_items_searched_alone(official: bool, beams: int) -> None:
    model = Trigram(4, beams, seed=1)
    together = beam_search(
        model, start(4), end_id=END, num_beams=beams, max_length=7, num_return=beams, official=official
    )
    for item in range(4):
        alone = Trigram(1, beams)
        alone.table = model.table[item : item + 1]
        (single,) = beam_search(
            alone, start(1), end_id=END, num_beams=beams, max_length=7, num_return=beams, official=official
        )
        assert [h.ids.tolist() for h in single] == [h.ids.tolist() for h in together[item]]


def test_a_finished_hypothesis_holds_one_end_token_and_it_is_the_last() -> None:
    found = beam_search(Trigram(6, 3, seed=2), start(6), end_id=END, num_beams=3, max_length=8, num_return=3)
    lines = [h.ids.tolist() for hypotheses in found for h in hypotheses]
    assert any(END in line for line in lines)
    assert all(END not in line[:-1] for line in lines)
    assert all(line[-1] == END or len(line) == 9 for line in lines)


def test_officially_finished_beams_keep_growing() -> None:
    found = beam_search(
        Trigram(30, 3, seed=3), start(30), end_id=END, num_beams=3, max_length=8, num_return=3, official=True
    )
    assert any(END in h.ids[:-1].tolist() for hypotheses in found for h in hypotheses)


def spelled_out(
    model: Trigram, item: int, beams: int, min_length: int, max_length: int
) -> list[tuple[float, list[int]]]:
    """The released generator for one item, step by step in plain Python (specification 8)."""
    alive: list[tuple[float, list[int]]] = [(0.0, [START])] + [(-math.inf, [START])] * (beams - 1)
    pool: list[tuple[float, list[int]]] = []
    for step in range(max_length):
        penalty = ((5 + step + 1) / 6) ** 0.6
        candidates = []
        for total, ids in alive:
            before = ids[-2] if len(ids) > 1 else 0
            log_probs = model.table[item, len(ids), before, ids[-1]].log_softmax(-1).tolist()
            if step < min_length:
                log_probs[END] = -1e20
            candidates += [(total + lp, [*ids, token]) for token, lp in enumerate(log_probs)]
        alive = sorted(candidates, key=lambda c: -c[0])[:beams]
        last = step == max_length - 1
        top_ended = last or alive[0][1][-1] == END
        pool += [(total / penalty, ids) for total, ids in alive if top_ended or ids[-1] == END]
        if top_ended:
            break
    return sorted(pool, key=lambda h: -h[0])[:beams]


@pytest.mark.parametrize(("beams", "min_length", "max_length"), [(4, 1, 8), (1, 0, 5), (3, 3, 6), (2, 5, 5)])
def test_official_follows_the_released_rules(beams: int, min_length: int, max_length: int) -> None:
    model = Trigram(5, beams, seed=4)
    found = beam_search(
        model,
        start(5),
        end_id=END,
        num_beams=beams,
        min_length=min_length,
        max_length=max_length,
        num_return=beams,
        official=True,
    )
    for item, hypotheses in enumerate(found):
        expected = spelled_out(model, item, beams, min_length, max_length)
        assert [h.ids.tolist() for h in hypotheses] == [ids for _, ids in expected]
        assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in expected], abs=1e-5)


def by_hand(model: Trigram, item: int, beams: int, min_length: int, max_length: int) -> list[tuple[float, list[int]]]:
    """The search for one item, step by step in plain Python: the best beams end or live on, until none can win."""
    alive: list[tuple[float, list[int]]] = [(0.0, [START])]
    pool: list[tuple[float, list[int]]] = []
    for generated in range(1, max_length + 1):
        candidates = []
        for total, ids in alive:
            before = ids[-2] if len(ids) > 1 else 0
            log_probs = model.table[item, len(ids), before, ids[-1]].log_softmax(-1).tolist()
            kept = [n for n in range(VOCAB) if n != END or generated > min_length]
            candidates += [(total + log_probs[token], [*ids, token]) for token in kept]
        candidates.sort(key=lambda c: -c[0])
        ended = [c for c in candidates[:beams] if c[1][-1] == END]
        alive = [c for c in candidates if c[1][-1] != END][:beams]
        finished = ended + (alive if generated == max_length else [])
        pool += [(total / length_penalty(generated, 0.6), ids) for total, ids in finished]
        pool = sorted(pool, key=lambda h: -h[0])[:beams]
        if len(pool) == beams and pool[-1][0] >= alive[0][0] / length_penalty(max_length, 0.6):
            break
    return pool


@pytest.mark.parametrize(("beams", "min_length", "max_length"), [(4, 1, 8), (2, 0, 8), (3, 3, 8), (2, 5, 5)])
@pytest.mark.parametrize("scale", [0.3, 2.0, 8.0])
def test_the_search_is_the_one_that_its_page_describes(
    beams: int, min_length: int, max_length: int, scale: float
) -> None:
    model = Trigram(40, beams, seed=7, scale=scale)
    limits = {"num_beams": beams, "min_length": min_length, "max_length": max_length, "num_return": beams}
    for item, hypotheses in enumerate(beam_search(model, start(40), end_id=END, **limits)):
        expected = by_hand(model, item, beams, min_length, max_length)
        assert [h.ids.tolist() for h in hypotheses] == [ids for _, ids in expected]
        assert [h.score for h in hypotheses] == pytest.approx([score for score, _ in expected], abs=1e-5)


def test_five_beams_of_at_most_twenty_tokens_are_the_default() -> None:
    shapes: list[tuple[int, int]] = []

    def endless(ids: Tensor, beam_indices: Tensor | None) -> Tensor:
        shapes.append(tuple(ids.shape))
        return torch.zeros(len(ids), VOCAB).index_fill(1, torch.tensor([END]), -50.0)

    ((best,),) = beam_search(endless, start(1), end_id=END)
    assert shapes == [(5, length) for length in range(1, 21)] and len(best.ids) == 21


@pytest.mark.parametrize("official", [False, True])
def test_no_hypothesis_ends_before_min_length(official: bool) -> None:
    found = beam_search(
        Trigram(4, 3, seed=5), start(4), end_id=END, num_beams=3, min_length=3, max_length=6, num_return=3,
        official=official,
    )  # fmt: skip
    assert all(END not in h.ids[1:4].tolist() for hypotheses in found for h in hypotheses)


def test_scores_of_sequences_equal_those_of_the_search() -> None:
    model = Trigram(2, 3, seed=6)
    for item, hypotheses in enumerate(
        beam_search(model, start(2), end_id=END, num_beams=3, max_length=6, num_return=3)
    ):
        for ids, score in hypotheses:
            before = torch.cat([torch.zeros(1, dtype=torch.long), ids[:-1]])
            logits = model.table[item, torch.arange(len(ids)) + 1, before, ids]
            padded = torch.cat([ids, torch.zeros(2, dtype=torch.long)])[None]
            logits = torch.cat([logits, torch.zeros(2, VOCAB)])[None]
            for first in (False, True):  # the start token counts neither way
                mask = torch.tensor([[first] + [True] * (len(ids) - 1) + [False] * 2])
                assert score_sequences(logits, padded, mask).item() == pytest.approx(score, abs=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_return": 4}, "num_return <= num_beams"),
        ({"min_length": 9}, "min_length <= max_length"),
        ({"num_beams": 0}, "num_beams"),
    ],
)
def test_senseless_options_are_refused(options: dict[str, int], message: str) -> None:
    settings = {"num_beams": 3, "max_length": 5, **options}
    with pytest.raises(ValueError, match=message):
        beam_search(Trigram(1, 3), start(1), end_id=END, **settings)  # ty: ignore[invalid-argument-type]
