"""Golden case of the scoring in the released evaluation scripts of mPLUG-Owl2, on pure functions of evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from plait.metrics.replies import (
    mme_label,
    mmmu_release_letter,
    normal_form,
    open_answer_hit,
    open_candidates,
)
from plait.metrics.suites import MME_PERCEPTION, mme_scores
from plait.metrics.vqa import evalai, plain_words, vqa_accuracy, without_punctuation
from plait.parity.cases import Case
from plait.parity.runners import runner

Outputs = dict[str, Any]
INPUTS = ("inp", "questions", "predictions", "groups", "choices", "index2ans", "gold", "response")


@runner("mplug_owl2", "eval_postprocess", json_inputs=INPUTS)
def eval_postprocess(case: Case) -> Outputs:
    document = case.document
    return {
        "evalai": [{**item, "out": evalai(item["inp"])} for item in document["evalai"]],
        "vqa_norm": [{**item, "out": normalised(item["inp"])} for item in document["vqa_norm"]],
        "vqa_accuracy": accuracies(document["vqa_accuracy"]),
        "mme": mme(document["mme"]),
        "mmmu": mmmu(document["mmmu"]),
    }


def normalised(text: str) -> str:
    """An answer as the release compares it."""
    return plain_words(without_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def accuracies(asked: Mapping[str, Any]) -> Outputs:
    """Percent per question and their means, rounded as the release prints them."""
    questions, replies = asked["questions"], asked["predictions"]
    scores = {
        key: 100 * vqa_accuracy(replies[key]["answer"], [a["answer"] for a in question["answers"]], "release")
        for key, question in questions.items()
    }

    def by(kind: str) -> dict[str, float]:
        names = dict.fromkeys(question[kind] for question in questions.values())
        return {name: mean(scores[key] for key, q in questions.items() if q[kind] == name) for name in names}

    accuracy = {
        "overall": mean(scores.values()),
        "perQuestionType": by("question_type"),
        "perAnswerType": by("answer_type"),
    }
    return {**asked, "per_question": {key: round(value, 2) for key, value in scores.items()}, "accuracy": accuracy}


def mean(values: Iterable[float]) -> float:
    """Two decimals, as published."""
    listed = list(values)
    return round(sum(listed) / len(listed), 2)


def mme(asked: Mapping[str, Any]) -> Outputs:
    """Accuracy plus accuracy with both questions of an image right, in percent, per task and summed."""
    rows = [
        {"category": task, "image": name, "answer": question["annotation"], "prediction": question["answer"]}
        for task, pictures in asked["groups"].items()
        for name, both in pictures.items()
        for question in both
    ]
    found = mme_scores(rows)
    halves = {task: "Perception" if task in MME_PERCEPTION else "Cognition" for task in found["scores"]}
    return {
        **asked,
        "scores": {f"{halves[task]}-{task}": score for task, score in found["scores"].items()},
        "perception": found["perception"],
        "cognition": found["cognition"],
        "parse": [{**item, "out": mme_label(item["inp"])} for item in asked["parse"]],
    }


def mmmu(asked: Mapping[str, Any]) -> Outputs:
    """Letters and open answers; what a reply may mean is a set, sorted as the case stores it."""
    choices = [asked["index2ans"][name] for name in asked["choices"]]

    def gold(item: Mapping[str, Any]) -> list[str]:
        return item["gold"] if isinstance(item["gold"], list) else [item["gold"]]

    return {
        **asked,
        "multi_choice": [{**item, "out": mmmu_release_letter(item["inp"], choices)} for item in asked["multi_choice"]],
        "open": [{**item, "out": sorted(open_candidates(item["inp"]), key=str)} for item in asked["open"]],
        "eval_open": [{**item, "out": open_answer_hit(item["response"], gold(item))} for item in asked["eval_open"]],
        "normalize": [{**item, "out": normal_form(item["inp"])} for item in asked["normalize"]],
    }
