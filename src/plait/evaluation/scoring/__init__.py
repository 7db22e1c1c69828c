"""Predictions -> scores: every scorer by name, on top of the pure functions of `plait.metrics`.

items + prediction rows -> Scored(scores, units, categories, unreadable, notes)
"""

from __future__ import annotations

from plait.evaluation.scoring.base import SCORERS, Scored, Scoring
from plait.evaluation.tasks import Task

__all__ = ["SCORERS", "Scored", "Scoring", "score"]


def score(task: Task, scoring: Scoring) -> Scored:
    """Score the predictions of a task. Raises ValueError for ids that are missing, double or unknown."""
    from plait.evaluation.scoring import answers, classes, heads, letters, retrieval, words  # noqa: F401  (they register)

    if task.scorer != "retrieval":
        scoring.check_ids()
    return SCORERS[task.scorer](scoring)
