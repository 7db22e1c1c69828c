"""Suites with a yes or no, a judge's grade or people's grades.

MME, POPE           replies -> yes or no -> accuracies
MM-Vet, MMHal-Bench a judge's replies -> grades -> means
OwlEval             people's grades A to D -> rates per ability
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plait.metrics.checks import finite
from plait.metrics.replies import mme_label, pope_label

Row = Mapping[str, Any]
MME_PERCEPTION = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark", "artwork", "OCR",
)  # fmt: skip
"""Categories of MME's headline number."""
MME_COGNITION = ("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning")
MARKS = "ABCD"


def mme_scores(rows: Sequence[Row]) -> dict[str, Any]:
    """MME: per category 100 (acc + acc+), at most 200; their sums over perception and cognition.

    acc is the share of questions right, acc+ the share of images whose questions are all right.

    Args:
        rows: `category`, `image`, `answer` (Yes or No), `prediction`.

    Returns:
        `scores` by category, `perception` (the published headline), `cognition`, and `shares`:
        (category, image) -> the points that an image adds to its category, for intervals.

    Raises:
        ValueError: for a category that MME does not have.

    Source:
        Fu et al. 2023.
    """
    images: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        # "other" equals neither answer
        hit = mme_label(str(row["prediction"])) == str(row["answer"]).lower()
        images[row["category"]][row["image"]].append(hit)
    if unknown := images.keys() - {*MME_PERCEPTION, *MME_COGNITION}:
        raise ValueError(f"expected categories of MME, got {min(unknown)!r}")
    scores, shares = {}, {}
    for category, found in images.items():
        hits = [hit for both in found.values() for hit in both]
        scores[category] = 100.0 * sum(hits) / len(hits) + 100.0 * sum(map(all, found.values())) / len(found)
        for image, both in found.items():
            shares[category, image] = 100.0 * (sum(both) / len(hits) + all(both) / len(found))
    return {
        "scores": scores,
        "shares": shares,
        "perception": sum(scores.get(category, 0.0) for category in MME_PERCEPTION),
        "cognition": sum(scores.get(category, 0.0) for category in MME_COGNITION),
    }


def pope_scores(replies: Sequence[str | None], labels: Sequence[str]) -> dict[str, Any]:
    """POPE: accuracy, precision, recall and F1 of yes, share of yes, and the four counts.

    Args:
        replies: None where there is none, which is wrong and neither yes nor no (the public
            script always has a reply).
        labels: yes or no.

    Returns:
        Fractions, counts and `hits` of the replies. A ratio without a denominator is 0.

    Raises:
        ValueError: for none, or for other numbers of the two.

    Source:
        Li et al. 2023.
    """
    said = np.array([reply is not None and pope_label(reply) == "yes" for reply in replies])
    denied = np.array([reply is not None and pope_label(reply) == "no" for reply in replies])
    right = np.array([label.lower() == "yes" for label in labels])
    if said.shape != right.shape or not said.size:
        raise ValueError(f"expected as many replies as labels, and some, got {said.size} and {right.size}")
    tp, fp = int((said & right).sum()), int((said & ~right).sum())
    # a missing reply to a yes is a miss; to a no it is neither right nor a false alarm
    tn, fn = int((denied & ~right).sum()), int((~said & right).sum())
    precision, recall = _ratio(tp, tp + fp), _ratio(tp, tp + fn)
    return {
        "hits": ((said & right) | (denied & ~right)).tolist(),
        "accuracy": (tp + tn) / said.size,
        "precision": precision,
        "recall": recall,
        "f1": _ratio(2 * precision * recall, precision + recall),
        "yes_ratio": (tp + fp) / said.size,
        "tp": tp,
        "fp": fp,
        "tn": tn,
        "fn": fn,
    }


def _ratio(above: float, below: float) -> float:
    """above / below, 0 where there is nothing below."""
    return above / below if below else 0.0


def judge_grade(reply: str) -> float | None:
    """MM-Vet: the grade in a judge's reply, the number before the first space.

    Returns:
        A number in [0, 1]; None where there is none and the judge must be asked again.
    """
    try:
        value = float(reply.split(" ", maxsplit=1)[0].strip())
    except ValueError:
        return None
    return value if 0.0 <= value <= 1.0 else None


def mm_vet_scores(capabilities: Mapping[str, Sequence[str]], grades: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """MM-Vet: 100 x mean grade, in total, per capability, per combination of capabilities.

    Args:
        capabilities: question -> what it needs.
        grades: question -> grade (0 to 1) of every run of the judge.

    Returns:
        Per capability and in total `per_run` and `mean`, of the total `std` too (population,
        over runs); `combinations` are means over runs, names sorted and joined.

    Raises:
        ValueError: where a question has no grades.

    Source:
        Yu et al. 2023.
    """
    if missing := capabilities.keys() - grades.keys():
        raise ValueError(f"expected grades of every question, got none for {min(missing)}")
    table = {name: finite(grades[name], "grades") for name in capabilities}

    def runs(names: Sequence[str]) -> list[float]:
        return (100.0 * np.mean([table[name] for name in names], axis=0)).tolist()

    parts = {part: [n for n, needs in capabilities.items() if part in needs] for part in _parts(capabilities)}
    scores: dict[str, Any] = {}
    for part, names in parts.items():
        values = runs(names)
        scores[part] = {"per_run": values, "mean": float(np.mean(values))}
    total = runs(list(capabilities))
    scores["total"] = {"per_run": total, "mean": float(np.mean(total)), "std": float(np.std(total))}
    together: dict[str, list[str]] = defaultdict(list)
    for name, needs in capabilities.items():
        together["_".join(sorted(needs))].append(name)
    scores["combinations"] = {needs: float(np.mean(runs(names))) for needs, names in together.items()}
    return scores


def _parts(capabilities: Mapping[str, Sequence[str]]) -> list[str]:
    """Capabilities in order of first appearance."""
    return list(dict.fromkeys(part for needs in capabilities.values() for part in needs))


def mmhal_rating(reply: str) -> int | None:
    """MMHal-Bench: the one rating from 0 to 6 that a judge's reply names ("Rating: 4").

    Returns:
        The rating; None for none or several different ones.
    """
    found = [score for score in range(7) if f"rating: {score}" in reply.lower()]
    return found[0] if len(found) == 1 else None


def mmhal_scores(ratings: Sequence[int | None]) -> dict[str, float]:
    """MMHal-Bench: mean rating, and share of replies that hallucinate (rating below 3).

    Args:
        ratings: 0 to 6; None, a judge's reply without a rating, counts as 0 as in the script.

    Raises:
        ValueError: for none.

    Source:
        Sun et al. 2023.
    """
    if not ratings:
        raise ValueError("expected at least one rating, got none")
    # no rating counts as the worst: leaving it out would reward what a judge cannot read
    values = np.array([rating or 0 for rating in ratings])
    return {"score": float(values.mean()), "hallucination_rate": float((values < 3).mean())}


def owl_eval_table(rows: Sequence[Row]) -> dict[str, dict[str, float | int]]:
    """OwlEval: rate of each grade A to D over all grades of a selection of questions.

    Args:
        rows: `grades` (several graders pool), `category` (single_turn, multi_turn or both),
            `ability` (letters, comma separated).

    Returns:
        Selection -> rates, number of grades and of questions. Selections: all, every category,
        `ability_x`; those without a question are left out.

    Raises:
        ValueError: for a grade that is not A, B, C or D.

    Source:
        Ye et al. 2023; specification mPLUG-Owl, 10.
    """
    picked: dict[str, list[Row]] = {"all": list(rows), "single_turn": [], "multi_turn": []}
    abilities: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        for category in row["category"]:
            picked.setdefault(category, []).append(row)
        for ability in str(row["ability"]).split(","):
            abilities[f"ability_{ability.strip()}"].append(row)
    picked |= {name: abilities[name] for name in sorted(abilities)}
    return {name: _rates(questions) for name, questions in picked.items() if questions}


def _rates(questions: Sequence[Row]) -> dict[str, float | int]:
    """Share of every grade in the questions given, beside how many grades and questions they are."""
    given = [mark for question in questions for mark in question["grades"]]
    if bad := next((mark for mark in given if mark not in MARKS), None):
        raise ValueError(f"expected grades A, B, C or D, got {bad!r}")
    rates: dict[str, float | int] = {mark: _ratio(given.count(mark), len(given)) for mark in MARKS}
    return rates | {"grades": len(given), "questions": len(questions)}
