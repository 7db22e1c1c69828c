"""Words out of a decoder: beam search and the ranking of given answers, with the published rules.

beam_search, answer_ranking   the searches of mPLUG-2, over any function that gives logits
media_prompts, official_beams what models add to transformers' `generate` (both Owls)
asking, talking               how instruction-tuned models are asked, and what they answer
"""

from plait.generation.answer_ranking import RankedAnswers, rank_answers
from plait.generation.beam_search import (
    Hypothesis,
    StepFunction,
    beam_options,
    beam_search,
    length_penalty,
    score_sequences,
)

__all__ = [
    "Hypothesis",
    "RankedAnswers",
    "StepFunction",
    "beam_options",
    "beam_search",
    "length_penalty",
    "rank_answers",
    "score_sequences",
]
