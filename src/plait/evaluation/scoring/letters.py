"""Replies that should name an option: the letter is read by each benchmark's own rule, unreadable counts as wrong."""

from __future__ import annotations

from collections import defaultdict

import numpy as np

from plait.evaluation.readers import Item
from plait.evaluation.readers.choices import LETTERS
from plait.evaluation.scoring.base import Scored, Scoring, accuracy, means, scorer
from plait.metrics.replies import letter, open_answer_hit


def _read(scoring: Scoring, rule: str) -> tuple[dict[str, float], list[str]]:
    """Hit by item id under a letter rule, and the ids of unreadable replies."""
    hits: dict[str, float] = {}
    unreadable = []
    for item, reply in zip(scoring.items, scoring.replies()):
        found = letter(reply, item.choices or [], rule)
        if found is None or found not in LETTERS[: len(item.choices or [])]:
            unreadable.append(item.id)
        hits[item.id] = float(found is not None and found == LETTERS[item.answer_index or 0])
    return hits, unreadable


def _answered(scoring: Scoring) -> None:
    scoring.keep(lambda item: item.answer_index is not None, "answer")


def _lettered(scoring: Scoring, rule: str) -> Scored:
    _answered(scoring)
    hits, unreadable = _read(scoring, rule)
    scored = accuracy(hits, scoring.items)
    scored.unreadable = unreadable
    scored.notes.append(f"letters read by rule {rule}")
    return scored


@scorer("scienceqa")
def scienceqa(scoring: Scoring) -> Scored:
    """Accuracy over questions with a picture (SQA-IMG), by subject."""
    scored = _lettered(scoring, "scienceqa")
    scored.scores = {"image_accuracy": scored.scores["accuracy"]}
    scored.categories = means((item.meta.get("subject"), scored.units[item.id]) for item in scoring.items)
    return scored


@scorer("seed_bench")
def seed_bench(scoring: Scoring) -> Scored:
    """Accuracy over all questions, and over those on pictures and on videos."""
    scored = _lettered(scoring, "first_character")
    for kind in ("image", "video"):
        values = [scored.units[item.id] for item in scoring.items if getattr(item, kind) is not None]
        if values:
            scored.scores[f"{kind} accuracy"] = float(np.mean(values))
    return scored


@scorer("q_bench")
def q_bench(scoring: Scoring) -> Scored:
    """Accuracy, by question type (0 yes-or-no, 1 what, 2 how) and by concern."""
    scored = _lettered(scoring, "mmmu_official")
    kinds = (("type", "question_type"), ("concern", "question_concern"))
    for word, name in kinds:
        values = ((getattr(item, name, item.meta.get(name)), scored.units[item.id]) for item in scoring.items)
        scored.categories |= {f"{word} {kind}": value for kind, value in means(values).items()}
    return scored


@scorer("mmbench")
def mmbench(scoring: Scoring) -> Scored:
    """Circular accuracy: a question counts when all its rotations are right; vanilla looks at the unrotated row."""
    _answered(scoring)
    rule = scoring.rule or "mmbench_2023"
    hits, unreadable = _read(scoring, rule)
    rows: dict[str, list[Item]] = defaultdict(list)
    for item in scoring.items:
        rows[item.group or item.id].append(item)
    circular = {name: 100.0 * all(hits[item.id] for item in group) for name, group in rows.items()}
    main = {name: min(group, key=lambda item: int(item.id)) for name, group in rows.items()}
    scores = {
        "circular": float(np.mean(list(circular.values()))),
        "vanilla": 100 * float(np.mean([hits[item.id] for item in main.values()])),
    }
    categories = means(
        (kind, circular[name]) for name, item in main.items() for kind in (item.category, item.category_group) if kind
    )
    return Scored(scores, circular, {}, categories, unreadable, [f"letters read by rule {rule}"])


@scorer("mmmu")
def mmmu(scoring: Scoring) -> Scored:
    """Rule official: the benchmark's parser for letters and for open answers. Rule release: a reply must be the letter
    alone (Owl2's script); open answers as official. Micro average, by subject."""
    scoring.keep(lambda item: bool(item.answers), "answer")
    hits, unreadable = {}, []
    for item, reply in zip(scoring.items, scoring.replies()):
        answers = item.answers or []
        if item.question_type == "open":
            hits[item.id] = float(open_answer_hit(reply, answers))
            continue
        found = reply if scoring.rule == "release" else letter(reply, item.choices or [], "mmmu_official")
        hits[item.id] = float(found in answers)
        if (found or "none") not in LETTERS[: len(item.choices or [])]:
            unreadable.append(item.id)
    scored = accuracy(hits, scoring.items)
    scored.unreadable = unreadable
    return scored


@scorer("agieval")
def agieval(scoring: Scoring) -> Scored:
    """First capital letter A to F of the reply; several right letters must all be named; free answers must be equal."""
    scoring.keep(lambda item: item.answer_index is not None or bool(item.answers), "answer")
    hits, unreadable = {}, []
    for item, reply in zip(scoring.items, scoring.replies()):
        if not item.choices:
            hits[item.id] = float(reply.strip().removesuffix(".") in (item.answers or []))
            continue
        right = [LETTERS[i] for i in item.labels or [item.answer_index or 0]]
        first = letter(reply, item.choices, "agieval_first_capital")
        said = [c for c in LETTERS[: len(item.choices)] if c in reply] if len(right) > 1 else [first]
        hits[item.id] = float(said == right)
        if first is None:
            unreadable.append(item.id)
    scored = accuracy(hits, scoring.items)
    scored.unreadable = unreadable
    return scored
