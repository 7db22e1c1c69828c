"""Classes, choices and statements: predictions that are right or wrong by themselves, and class scores."""

from __future__ import annotations

import re

import numpy as np

from plait.evaluation.readers.pairs import ENTAILMENT
from plait.evaluation.scoring.base import Scored, Scoring, accuracy, means, scorer


@scorer("top_k")
def top_k(scoring: Scoring) -> Scored:
    """Top-1 and top-5 accuracy in percent, the mean of the classes' top-1, and top-1 of a uniform guess."""
    scoring.keep(lambda item: item.label is not None, "class")
    found = scoring.predictions
    best = {item.id: found[item.id] or [] for item in scoring.items}
    hits = {item.id: float(best[item.id][:1] == [item.label]) for item in scoring.items}
    within = [float(item.label in best[item.id][:5]) for item in scoring.items]
    scored = accuracy(hits, scoring.items)
    per_class = means((item.label_name or item.label, 100 * hits[item.id]) for item in scoring.items)
    scored.scores = {
        "top1": scored.scores["accuracy"],
        "top5": 100 * float(np.mean(within)),
        "mean_per_class": float(np.mean(list(per_class.values()))),
        "chance_top1": 100 / (max((len(row["raw"] or []) for row in scoring.rows), default=0) or 1),
    }
    scored.categories = per_class if len(per_class) <= 100 else {}
    return scored


@scorer("choices")
def choices(scoring: Scoring) -> Scored:
    """Accuracy of chosen indices."""
    scoring.keep(lambda item: item.answer_index is not None, "answer")
    found = scoring.predictions
    hits = {item.id: float(found[item.id] == item.answer_index) for item in scoring.items}
    return accuracy(hits, scoring.items)


@scorer("statements")
def statements(scoring: Scoring) -> Scored:
    """True or False, read from the first word of the reply that is yes, true, no or false."""
    scoring.keep(lambda item: item.label is not None, "label")
    return _worded(scoring, {"yes": "True", "true": "True", "no": "False", "false": "False"})


@scorer("entailment")
def entailment(scoring: Scoring) -> Scored:
    """Entailment, contradiction or neutral, read from the first such word of the reply."""
    scoring.keep(lambda item: item.label is not None, "label")
    return _worded(
        scoring, {word: word for word in ENTAILMENT} | {"entail": "entailment", "contradict": "contradiction"}
    )


def _worded(scoring: Scoring, words: dict[str, str]) -> Scored:
    read = {}
    for item, reply in zip(scoring.items, scoring.replies()):
        read[item.id] = next((words[word] for word in re.findall(r"[a-z]+", reply.lower()) if word in words), None)
    scored = accuracy({item.id: float(read[item.id] == item.label) for item in scoring.items}, scoring.items)
    scored.unreadable = [key for key, label in read.items() if label is None]
    return scored


@scorer("naming")
def naming(scoring: Scoring) -> Scored:
    """The reply names the thing: its name, without an article, stands in the reply as whole words."""
    hits = {}
    for item, reply in zip(scoring.items, scoring.replies()):
        said = f" {' '.join(re.findall(r'[a-z0-9]+', reply.lower()))} "
        names = [" ".join(re.findall(r"[a-z0-9]+", name.lower())) for name in item.answers or []]
        names = [name.removeprefix("a ").removeprefix("an ").removeprefix("the ") for name in names]
        hits[item.id] = float(any(f" {name} " in said for name in names))
    return accuracy(hits, scoring.items)
