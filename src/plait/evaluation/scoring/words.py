"""Yes and no, boxes in words, grades, and text after "the answer is"."""

from __future__ import annotations

import re
from collections import defaultdict

import numpy as np

from plait.evaluation.judge import Judge, grade_prompt, hallucination_prompt
from plait.evaluation.scoring.base import Scored, Scoring, accuracy, groups_of, means, scorer
from plait.metrics.answers import answer_after_key
from plait.metrics.boxes import box_hits
from plait.metrics.replies import mme_label, pope_label
from plait.metrics.suites import MARKS, MME_PERCEPTION, judge_grade, mmhal_rating, mmhal_scores, owl_eval_table

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?|-?\.\d+")


@scorer("mme")
def mme(scoring: Scoring) -> Scored:
    """acc + acc+ per category (at most 200 each), summed over perception and over cognition.

    Units are pictures: what a picture adds to the perception score, times the number of pictures.
    """
    scoring.keep(lambda item: bool(item.answers), "answer")
    labels = {item.id: mme_label(reply) for item, reply in zip(scoring.items, scoring.replies())}
    pictures: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for item in scoring.items:
        right = labels[item.id] == (item.answers or [""])[0].lower()
        pictures[item.category or ""][item.group or item.id].append(right)
    scores: dict[str, float] = {}
    shares: dict[str, float] = {}
    for category, found in pictures.items():
        questions = sum(len(hits) for hits in found.values())
        parts = {n: 100 * (sum(hits) / questions + all(hits) / len(found)) for n, hits in found.items()}
        scores[category] = sum(parts.values())
        shares |= {name: part for name, part in parts.items() if category in MME_PERCEPTION}
    totals = {
        "perception": sum(value for name, value in scores.items() if name in MME_PERCEPTION),
        "cognition": sum(value for name, value in scores.items() if name not in MME_PERCEPTION),
    }
    unreadable = [name for name, label in labels.items() if label == "other"]
    return Scored(totals, {name: share * len(shares) for name, share in shares.items()}, {}, scores, unreadable)


@scorer("pope")
def pope(scoring: Scoring) -> Scored:
    """Accuracy, precision, recall and F1 of yes, and the share of yes, in percent. No reply is wrong, not yes."""
    scoring.keep(lambda item: bool(item.answers), "answer")
    said = {i.id: pope_label(reply) if reply else "none" for i, reply in zip(scoring.items, scoring.replies())}
    right = {item.id: (item.answers or [""])[0] for item in scoring.items}
    scored = accuracy({name: float(label == right[name]) for name, label in said.items()}, scoring.items)
    yes = np.array([label == "yes" for label in said.values()])
    true = np.array([label == "yes" for label in right.values()])
    hits = float((yes & true).sum())
    precision, recall = hits / max(yes.sum(), 1), hits / max(true.sum(), 1)
    scored.scores |= {
        "precision": 100 * precision,
        "recall": 100 * recall,
        "f1": 200 * precision * recall / max(precision + recall, 1e-12),
        "yes_ratio": 100 * float(yes.mean()),
    }
    return scored


@scorer("grounding")
def grounding(scoring: Scoring) -> Scored:
    """Share of boxes with an intersection over union of at least 0.5. The rule says what the numbers of a reply are:
    `fraction` of the picture, `thousandth` of it, or `pixel`. A reply without four numbers is wrong."""
    scoring.keep(lambda item: bool(item.boxes), "box")
    sizes = {row["id"]: row.get("image_size") for row in scoring.rows}
    hits, unreadable = {}, []
    for item, reply in zip(scoring.items, scoring.replies()):
        numbers = [float(text) for text in _NUMBER.findall(reply)][:4]
        if len(numbers) < 4:
            unreadable.append(item.id)
            hits[item.id] = 0.0
            continue
        box = _to_pixels(numbers, scoring.rule or "fraction", sizes.get(item.id) or item.image_size)
        hits[item.id] = float(box_hits([box], [(item.boxes or [])[0]])[0])
    scored = accuracy(hits, scoring.items)
    scored.scores = {"acc@0.5": scored.scores["accuracy"]}
    scored.unreadable = unreadable
    scored.groups = {item.id: str(item.image) for item in scoring.items}
    return scored


def _to_pixels(box: list[float], rule: str, size: tuple[int, int] | list[int] | None) -> list[float]:
    if rule == "pixel":
        return box
    if size is None:
        raise ValueError(f"expected the size of the picture for boxes by rule {rule}, got none; predict again")
    unit = 1.0 if rule == "fraction" else 1000.0
    return [min(max(value / unit, 0.0), 1.0) * size[i % 2] for i, value in enumerate(box)]


@scorer("mm_vet")
def mm_vet(scoring: Scoring) -> Scored:
    """Mean grade of a judge (0.0 to 1.0), in percent; per capability over the questions that need it."""
    if scoring.judge is None:
        return Scored({}, notes=["not scored: MM-Vet needs --judge FILE.jsonl or --judge MODEL"])
    judge = Judge(scoring.judge, scoring.out)
    asked = {
        item.id: grade_prompt(item.question or "", (item.answers or [""])[0], reply)
        for item, reply in zip(scoring.items, scoring.replies())
    }
    grades = {name: judge_grade(reply.strip()) for name, reply in judge.replies(asked).items()}
    units = {name: 100 * (value or 0.0) for name, value in grades.items()}
    parts = means((part, units[item.id]) for item in scoring.items for part in item.meta.get("capabilities", []))
    unreadable = [name for name, value in grades.items() if value is None]
    score = float(np.mean(list(units.values())))
    return Scored({"score": score}, units, {}, parts, unreadable, [f"judge {judge.name}"])


@scorer("mmhal_bench")
def mmhal_bench(scoring: Scoring) -> Scored:
    """Mean rating of a judge (0 to 6) and share of hallucinating replies (rating below 3); by question type."""
    if scoring.judge is None:
        return Scored({}, notes=["not scored: MMHal-Bench needs --judge FILE.jsonl or --judge MODEL"])
    judge = Judge(scoring.judge, scoring.out)
    asked = {
        item.id: hallucination_prompt(item.question or "", (item.answers or [""])[0], item.context or "", reply)
        for item, reply in zip(scoring.items, scoring.replies())
    }
    ratings = {name: mmhal_rating(reply) for name, reply in judge.replies(asked).items()}
    units = {name: float(rating or 0) for name, rating in ratings.items()}
    parts = means((item.category, units[item.id]) for item in scoring.items if item.category)
    unreadable = [name for name, rating in ratings.items() if rating is None]
    return Scored(mmhal_scores(list(ratings.values())), units, {}, parts, unreadable, [f"judge {judge.name}"])


@scorer("owl_eval")
def owl_eval(scoring: Scoring) -> Scored:
    """Rates of people's grades A to D over all, per ability and per kind of dialogue; A+B is the headline."""
    if scoring.judge is None:
        return Scored({}, notes=["not scored: OwlEval needs people's grades, --judge FILE.jsonl with id and reply"])
    grades = Judge(scoring.judge, None).replies({item.id: "" for item in scoring.items})
    if bad := next((name for name, mark in grades.items() if mark not in ("A", "B", "C", "D")), None):
        raise ValueError(f"expected grades A, B, C or D in {scoring.judge}, got {grades[bad]!r} for id {bad}")
    units = {item.id: 100.0 * (grades[item.id] in "AB") for item in scoring.items}
    marked = [
        {"grades": [grades[i.id]], "category": i.meta["categories"], "ability": ",".join(i.meta["abilities"])}
        for i in scoring.items
    ]
    tables = {
        name: {mark: 100 * float(rates[mark]) for mark in MARKS} for name, rates in owl_eval_table(marked).items()
    }
    scores = tables.pop("all")
    parts = {
        name.replace("_", " ", 1): {"A+B": rates["A"] + rates["B"], **rates} for name, rates in sorted(tables.items())
    }
    flat = {f"{name}: {mark}": rate for name, rates in parts.items() for mark, rate in rates.items()}
    return Scored({"A+B": float(np.mean(list(units.values()))), **scores}, units, groups_of(scoring.items), flat)


@scorer("bbh")
def bbh(scoring: Scoring) -> Scored:
    """The text after the last "the answer is ", without a final period, equals the target."""
    scoring.keep(lambda item: bool(item.answers), "answer")
    hits = {}
    for item, reply in zip(scoring.items, scoring.replies()):
        hits[item.id] = float(answer_after_key(reply) in (item.answers or []))
    return accuracy(hits, scoring.items)
