"""Free answers: what the suite of GQA does with files that name questions they do not hold."""

from __future__ import annotations

from typing import Any

from plait.metrics.answers import gqa_scores


def question(answer: str, entailed: list[str]) -> dict[str, Any]:
    types = {"structural": "query", "semantic": "attr", "detailed": "x"}
    return {
        "question": "q", "answer": answer, "isBalanced": True, "entailed": entailed, "groups": {"global": None},
        "types": types, "semantic": [],
    }  # fmt: skip


def test_entailed_questions_of_another_file_are_left_out() -> None:
    questions = {"1": question("red", ["1", "2", "9"]), "2": question("blue", ["8"])}
    found = gqa_scores(questions, {"1": "red", "2": "green"})
    assert (found["accuracy"], found["consistency"]) == (50, 0)
