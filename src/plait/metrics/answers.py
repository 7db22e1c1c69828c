"""Free answers: exact match, ANLS, the suite of GQA, verdicts of a judge on video answers.

strings said + strings right -> equal or similar -> shares; a judge's replies -> verdicts -> shares

Source: specification evaluation, sections 3.2, 3.6 and 4. Nothing here normalises an answer
unless it says so: open video QA of mPLUG-2 was scored on raw strings.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np


def exact_match(predictions: Sequence[str], answers: Sequence[str]) -> float:
    """Share of equal strings without any normalisation: open video QA (mPLUG-2), FrameQA, BBH.

    Args:
        predictions: n strings said.
        answers: n strings that are right.

    Returns:
        A fraction in [0, 1].

    Raises:
        ValueError: as `exact_hits`.

    Example:
        >>> exact_match(["dog", "a cat"], ["dog", "cat"])
        0.5
    """
    return sum(exact_hits(predictions, answers)) / len(answers)


def exact_hits(predictions: Sequence[str], answers: Sequence[str]) -> list[bool]:
    """Which strings are equal to the right ones: n booleans.

    Args:
        predictions, answers: as in `exact_match`.

    Raises:
        ValueError: for no strings, or for other numbers of the two.
    """
    if len(predictions) != len(answers) or not answers:
        raise ValueError(f"expected as many predictions as answers, and some, got {len(predictions)}, {len(answers)}")
    return [said == right for said, right in zip(predictions, answers, strict=True)]


def anls(prediction: str, answers: Sequence[str], threshold: float = 0.5) -> float:
    """Average normalised Levenshtein similarity of one item, best over its answers.

        s = 1 - distance / longer length of the lower-cased, stripped strings; 0 if s < threshold

    Args:
        prediction: what was said.
        answers: right ones, at least one. Two empty strings are equal: 1.
        threshold: similarity below which an answer counts as wrong, 0.5 as published.

    Returns:
        A fraction in [0, 1].

    Source:
        Biten et al. 2019 (text in scenes).
    """
    return max(_similarity(prediction.lower().strip(), answer.lower().strip(), threshold) for answer in answers)


def _similarity(said: str, right: str, threshold: float) -> float:
    """1 - distance / longer length of two normalised strings; 0 below the threshold."""
    longest = max(len(said), len(right))
    value = 1.0 - edit_distance(said, right) / longest if longest else 1.0
    return value if value >= threshold else 0.0


def edit_distance(first: str, second: str) -> int:
    """Levenshtein distance: the fewest insertions, deletions and substitutions of characters.

    One row of the table at a time, so memory grows with the second string only.
    """
    row = list(range(len(second) + 1))
    for i, a in enumerate(first, 1):
        # `before` is the value up and to the left, overwritten one step later
        before, row[0] = row[0], i
        for j, b in enumerate(second, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (a != b))
    return row[-1]


def gqa_normalised(reply: str) -> str:
    """What models do before GQA's exact match: lower case, no final period.

    GQA's own tool normalises nothing, so this is part of the model's rule and not of the metric.

    Args:
        reply: of a model.
    """
    return reply.strip().lower().removesuffix(".")


def gqa_scores(
    questions: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, str],
    choices: Mapping[str, Mapping[str, Sequence[str]]] | None = None,
) -> dict[str, Any]:
    """GQA's metrics over balanced questions, in percent; strings must be equal.

    Args:
        questions: the questions file, id -> question.
        predictions: question id -> answer; every balanced question and its entailed ones need one.
        choices: question id -> `valid` and `plausible` answers, for the two figures of that name.

    Returns:
        accuracy, binary, open: of all, of yes-or-no and choice questions, of query questions.
        consistency: of each correctly answered question with other entailed questions, the share
        of those answered right. distribution: chi-square of answers per global group, weighted by
        group size (lower is better). Breakdowns are [percent, number]. hits: question -> 1 or 0.

    Raises:
        ValueError: where a question has no prediction. Entailed questions that the file does not
            hold are left out: files of balanced questions alone name them.

    Source:
        Hudson and Manning 2019, as its own tool computes them.
    """
    balanced = {name: question for name, question in questions.items() if question["isBalanced"]}
    _check_answered(questions, balanced, predictions)
    hits = {name: float(predictions[name] == question["answer"]) for name, question in balanced.items()}
    is_open = {name: question["types"]["structural"] == "query" for name, question in balanced.items()}
    found: dict[str, Any] = {
        "accuracy": _percent(hits.values()),
        "binary": _percent(hit for name, hit in hits.items() if not is_open[name]),
        "open": _percent(hit for name, hit in hits.items() if is_open[name]),
        "consistency": _percent(_consistency(questions, balanced, predictions)),
        "distribution": _distribution(balanced, predictions),
        "hits": hits,
    }
    if choices is not None:
        for figure, kind in (("validity", "valid"), ("plausibility", "plausible")):
            found[figure] = _percent(
                float(predictions[name] in _allowed(question, choices[name][kind]))
                for name, question in balanced.items()
            )
    ways = {
        "accuracyPerStructuralType": lambda question: question["types"]["structural"],
        "accuracyPerSemanticType": lambda question: question["types"]["semantic"],
        "accuracyPerSteps": _steps,
        "accuracyPerLength": lambda question: len(question["question"].split()),
    }
    for figure, kind_of in ways.items():
        parts: dict[str, list[float]] = defaultdict(list)
        for name, question in balanced.items():
            parts[str(kind_of(question))].append(hits[name])
        found[figure] = {kind: [_percent(values), len(values)] for kind, values in parts.items()}
    return found


def _check_answered(
    questions: Mapping[str, Any], balanced: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str]
) -> None:
    """Raise ValueError unless every balanced question and every entailed one at hand is answered."""
    asked = {*balanced, *(other for q in balanced.values() for other in q["entailed"] if other in questions)}
    if missing := sorted(asked - predictions.keys()):
        raise ValueError(f"expected a prediction for every question, got none for {len(missing)}: {missing[0]}")


def _steps(question: Mapping[str, Any]) -> int:
    """Length of a question's program, for the breakdown by steps.

    Existence checks and questions for a name are not counted, as in GQA's tool.
    """
    steps = (f"{step['operation']}: {step['argument']}" for step in question["semantic"])
    return sum(not any(word in step for word in ("exist", "query: name", "choose name")) for step in steps)


def _allowed(question: Mapping[str, Any], answers: Sequence[str]) -> Sequence[str]:
    """Answers in scope of a question.

    Questions for a common attribute have the same three answers always, whatever the file lists.
    """
    return ("color", "material", "shape") if "Common" in question["types"]["detailed"] else answers


def _consistency(
    questions: Mapping[str, Mapping[str, Any]],
    balanced: Mapping[str, Mapping[str, Any]],
    predictions: Mapping[str, str],
) -> list[float]:
    """Per rightly answered question with others entailed: the share of those answered right.

    A question that entails itself says nothing and is left out.
    """
    shares = []
    for name, question in balanced.items():
        # files of balanced questions name entailed ones that they do not hold
        others = [other for other in question["entailed"] if other != name and other in questions]
        if predictions[name] == question["answer"] and others:
            shares.append(float(np.mean([predictions[other] == questions[other]["answer"] for other in others])))
    return shares


def _distribution(balanced: Mapping[str, Mapping[str, Any]], predictions: Mapping[str, str]) -> float:
    """Chi-square between answers said and right, per global group, weighted by its questions.

    Questions without a group are left out.
    """
    right: dict[str, Counter[str]] = defaultdict(Counter)
    said: dict[str, Counter[str]] = defaultdict(Counter)
    for name, question in balanced.items():
        group = question["groups"]["global"]
        if group is not None:
            right[group][question["answer"]] += 1
            said[group][predictions[name]] += 1
    total, weighted = 0, 0.0
    for group, answers in right.items():
        # over right answers only, as the tool does: what is said and never right costs nothing here
        chi = sum((said[group].get(answer, 0) - count) ** 2 / count for answer, count in answers.items())
        total += answers.total()
        weighted += answers.total() * chi
    # divided by 100, as the tool prints it
    return weighted / total / 100 if total else 0.0


def _percent(values: Iterable[float]) -> float:
    """Mean of values in percent; 0 for none, as GQA's tool prints an empty breakdown."""
    listed = list(values)
    return 100.0 * float(np.mean(listed)) if listed else 0.0


MAX_SCORE = 100
"""Beyond this a judge's score is no score."""


def judge_verdict(reply: str) -> tuple[bool, int] | None:
    """(right, score) of a judge's reply; None where it is no verdict.

    Args:
        reply: a dictionary literal such as {'pred': 'yes', 'score': 4}. It is read as a literal
            and never run.

    Returns:
        Whether `pred` is yes, and the score cut to a whole number, as in the public script of
        judge-assisted video QA.
    """
    try:
        found = ast.literal_eval(reply.strip())
        word = str(found["pred"]).lower()
        # int() cuts off, as the public script does: a score of 4.5 counts 4
        score = int(found["score"])
        # judges are asked for 0 to 5: one reply of 1e300 would be the mean of all
        return (word == "yes", score) if word in ("yes", "no") and abs(score) <= MAX_SCORE else None
    # int() of an infinite score overflows, and brackets in brackets are deeper than the parser goes
    except (ValueError, SyntaxError, KeyError, TypeError, OverflowError, RecursionError, MemoryError):
        return None


def judge_scores(replies: Sequence[str]) -> dict[str, float]:
    """Accuracy and mean score of judge-assisted video QA.

    Args:
        replies: of the judge, one per question; those without a verdict are left out.

    Returns:
        accuracy = yes / (yes + no), a fraction; score = mean of the whole scores.

    Raises:
        ValueError: without a single readable verdict.
    """
    verdicts = [verdict for verdict in map(judge_verdict, replies) if verdict is not None]
    if not verdicts:
        raise ValueError("expected at least one verdict such as {'pred': 'yes', 'score': 4}, got none")
    return {
        "accuracy": sum(right for right, _ in verdicts) / len(verdicts),
        "score": sum(score for _, score in verdicts) / len(verdicts),
    }


def answer_after_key(reply: str) -> str:
    """BBH: the text after the last "the answer is ", stripped, without one final period.

    A reply without these words is taken whole.
    """
    return re.split("the answer is ", reply)[-1].strip().removesuffix(".")
