"""Free answers: captions, questions about pictures and videos."""

from __future__ import annotations

import numpy as np

from plait.evaluation.judge import Judge, video_prompt
from plait.evaluation.scoring.base import Scored, Scoring, accuracy, groups_of, means, scorer
from plait.metrics import java
from plait.metrics.answers import gqa_normalised, judge_verdict
from plait.metrics.captions import token_scores, tokenized
from plait.metrics.vqa import vqa_accuracy


@scorer("captions")
def captions(scoring: Scoring) -> Scored:
    """BLEU, ROUGE-L and CIDEr (times 100) of the COCO kit; CIDEr of a domain uses the weights of all references.

    Where Java is there, its tokens are scored, and METEOR, and SPICE where its models are there as well.
    """
    scoring.keep(lambda item: bool(item.captions), "reference captions")
    ids = [item.id for item in scoring.items]
    has_java = java.missing() is None
    tokenize = java.tokenized if has_java else tokenized
    said, right = tokenize(scoring.replies(), [item.captions or [] for item in scoring.items])
    found = token_scores(said, right)
    cider = {name: 100 * value for name, value in zip(ids, found.cider)}
    names = {"rouge_l": "ROUGE-L", **{f"bleu_{n}": f"BLEU-{n}" for n in range(1, 5)}}
    scores = {shown: 100 * found.corpus[name] for name, shown in names.items()}
    scores |= {"METEOR": 100 * java.meteor(said, right)[0]} if has_java else {}
    scores |= {"SPICE": 100 * java.spice(said, right)[0]} if java.spice_missing() is None else {}
    by_domain = means((item.category, cider[item.id]) for item in scoring.items if item.category)
    absent = "".join(f", no {name}" for name in ("METEOR", "SPICE") if name not in scores)
    notes = [
        f"CIDEr weighs words by the references of these {len(ids)} items",
        f"tokenizer={'java' if has_java else 'python'}{absent}",
    ]
    return Scored({"CIDEr": float(np.mean(list(cider.values()))), **scores}, cider, {}, by_domain, [], notes)


@scorer("vqa")
def vqa(scoring: Scoring) -> Scored:
    """VQA accuracy under the rule of the run; per question type and answer type.

    Tables of ONE-PEACE hold the score of every right answer instead of the annotators': the rule is then of no use.
    """
    scoring.keep(lambda item: bool(item.answers or item.meta.get("targets")), "answers")
    rule = scoring.rule or "official"
    hits = {}
    for item, reply in zip(scoring.items, scoring.replies()):
        scores = {answer: score for answer, _, score in item.meta.get("targets", [])}
        hits[item.id] = scores.get(reply, 0.0) if scores else vqa_accuracy(reply, item.answers or [], rule)
    scored = accuracy(hits, scoring.items)
    scored.categories = means(
        (kind, 100 * hits[item.id])
        for item in scoring.items
        for kind in (item.question_type, item.answer_type)
        if kind is not None
    )
    if any(len(item.answers or []) == 1 for item in scoring.items):
        scored.notes.append(
            "items with one answer instead of ten: a hit needs that answer, which no published number does"
        )
    if any("targets" in item.meta for item in scoring.items):
        scored.notes.append("answers have the scores of the table, whatever the rule")
    return scored


@scorer("gqa")
def gqa(scoring: Scoring) -> Scored:
    """Equal strings, after lower case and without a final period; binary and open questions apart."""
    scoring.keep(lambda item: bool(item.answers), "answer")
    replies = dict(zip((item.id for item in scoring.items), scoring.replies()))
    said = {name: gqa_normalised(reply) for name, reply in replies.items()}
    hits = {item.id: float(said[item.id] in (item.answers or [])) for item in scoring.items}
    scored = accuracy(hits, scoring.items)
    kinds = ((item, "open" if item.question_type == "query" else "binary") for item in scoring.items)
    scored.categories = means((kind, 100 * hits[item.id]) for item, kind in kinds)
    return scored


@scorer("video_qa")
def video_qa(scoring: Scoring) -> Scored:
    """Rule exact: the reply is the annotated string. Rule judge: a judge says yes or no, and a score from 0 to 5."""
    scoring.keep(lambda item: bool(item.answers), "answer")
    if scoring.rule == "judge":
        return _judged(scoring)
    replies = scoring.replies()
    hits = {item.id: float(reply in (item.answers or [])) for item, reply in zip(scoring.items, replies)}
    scored = accuracy(hits, scoring.items)
    kinds = ((item.question_type, 100 * hits[item.id]) for item in scoring.items if item.question_type is not None)
    scored.categories = means(kinds)
    return scored


def _judged(scoring: Scoring) -> Scored:
    if scoring.judge is None:
        return Scored({}, notes=["not scored: rule judge needs --judge FILE.jsonl or --judge MODEL"])
    judge = Judge(scoring.judge, scoring.out)
    asked = {
        item.id: video_prompt(item.question or "", (item.answers or [""])[0], reply)
        for item, reply in zip(scoring.items, scoring.replies())
    }
    read = {name: judge_verdict(reply) for name, reply in judge.replies(asked).items()}
    units = {name: 100.0 * is_right for name, found in read.items() if found is not None for is_right, _ in [found]}
    if not units:
        return Scored({}, unreadable=list(read), notes=[f"not scored: no readable verdict of {judge.name}"])
    marks = [mark for found in read.values() if found is not None for _, mark in [found]]
    scores = {"accuracy": float(np.mean(list(units.values()))), "score": float(np.mean(marks))}
    unreadable = [name for name, found in read.items() if found is None]
    return Scored(scores, units, groups_of(scoring.items), {}, unreadable, [f"judge {judge.name}"])
