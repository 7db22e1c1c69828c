"""Words out of a decoder: beam search and the ranking of given answers, with the published rules."""

from plait.generation.answer_ranking import RankedAnswers, rank_answers
from plait.generation.beam_search import Hypothesis, StepFunction, beam_search, length_penalty, score_sequences

__all__ = [
    "Hypothesis",
    "RankedAnswers",
    "StepFunction",
    "beam_search",
    "length_penalty",
    "rank_answers",
    "score_sequences",
]
