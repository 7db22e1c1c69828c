"""NaN and infinity are refused by every metric that a model's numbers reach: a comparison with them is no answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from plait.metrics import (  # fmt: skip
    answers,
    bootstrap,
    boxes,
    choices,
    classification,
    glue,
    retrieval,
    segmentation,
    suites,
    tagging,
    two_way_retrieval,
)

BAD = [float("nan"), float("inf"), float("-inf")]
SCORERS: dict[str, Callable[[Any], Any]] = {
    "top-1": lambda x: classification.top_k_accuracy([[x, x], [0.0, x]], [0, 1]),
    "classes": lambda x: classification.predictions([[x, 1.0]]),
    "views": lambda x: classification.average_views([[[x, 1.0]]]),
    "closed vocabulary": lambda x: classification.closed_vocabulary_accuracy([[x, x]], [0]),
    "average precision": lambda x: tagging.average_precision([x, x], [1, 1]),
    "mAP": lambda x: tagging.mean_average_precision([[x], [0.0]], [[1], [0]]),
    "lwlrap": lambda x: tagging.label_weighted_ranking_precision([[x, 1.0]], [[1, 0]]),
    "MMLU": lambda x: choices.mmlu_scores({"s": [{"choice_logprobs": [x] * 4, "answer": "A"}]}),
    "ARC": lambda x: choices.arc_scores([{"choice_logprobs": [x, 1.0], "choice_texts": ["a", "b"], "answer_index": 0}]),
    "SEED losses": lambda x: choices.lowest_loss([[x, 1.0]]),
    "Q-Bench quality": lambda x: choices.q_bench_quality(x, 0.0),
    "boxes": lambda x: boxes.box_hits([[0, 0, x, 1]], [[0, 0, 1, 1]]),
    "ranks": lambda x: retrieval.ranks(np.array([[x, 0.5]]), np.array([[True, False]])),
    "both directions": lambda x: two_way_retrieval.image_text_scores(np.array([[x]]), ["a"], ["a"]),
    "GLUE accuracy": lambda x: glue.accuracy([x], [0]),
    "Pearson": lambda x: glue.pearson([x, 1.0], [0.0, 1.0]),
    "Spearman": lambda x: glue.spearman([x, 1.0], [0.0, 1.0]),
    "masks": lambda x: segmentation.segmentation_scores([np.array([[x]])], [np.array([[0]])], 2),
    "MM-Vet": lambda x: suites.mm_vet_scores({"a": ["rec"]}, {"a": [x]}),
    "interval": lambda x: bootstrap.bootstrap_mean([x, 1.0]),
}


@pytest.mark.parametrize("value", BAD)
@pytest.mark.parametrize("name", SCORERS)
def test_what_is_not_finite_is_refused_in_one_line(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=r"expected finite .*, got (NaN|-?inf)") as caught:
        SCORERS[name](value)
    assert "\n" not in str(caught.value)


def test_a_verdict_with_an_infinite_score_is_unreadable() -> None:
    assert answers.judge_verdict("{'pred': 'yes', 'score': 1e999}") is None


def test_hits_are_those_of_the_totals() -> None:
    assert answers.exact_hits(["a", "b"], ["a", "c"]) == [True, False]
    rows = [{"category": "color", "image": p, "answer": a, "prediction": "yes"} for p in "ab" for a in ("Yes", "No")]
    found = suites.mme_scores(rows)
    assert sum(found["shares"].values()) == found["scores"]["color"] == 50
    pope = suites.pope_scores(["yes", None, "no", None], ["yes", "yes", "no", "no"])
    assert pope["hits"] == [True, False, True, False]
    assert (pope["accuracy"], pope["yes_ratio"], pope["recall"]) == (0.5, 0.25, 0.5)
