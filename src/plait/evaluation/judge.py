"""Judges: prompt -> reply, kept in a file, so that a judged score can be made again offline.

A judge is a file of stored replies (JSON lines key, judge, reply; or id, reply for people's grades) or a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plait.evaluation.cache import ResponseCache, collect, key_of
from plait.evaluation.readers.files import read_rows
from plait.evaluation.tasks import Decoding

REPLY = Decoding(max_new_tokens=64)


class Judge:
    """Replies of a judge by id. `source`: a .jsonl file of stored replies, or a model that writes text.

    Replies of a model are appended to `keep` (judge.jsonl of the run) with the judge's name and the date.
    """

    def __init__(self, source: str, keep: Path | None) -> None:
        self.source, self.keep = source, keep
        self.is_file = Path(source).suffix == ".jsonl"
        self.name = Path(source).name

    def replies(self, prompts: Mapping[str, str]) -> dict[str, str]:
        """Replies by id for prompts by id. ValueError for an id without a stored reply."""
        return self._stored(prompts) if self.is_file else self._asked(prompts)

    def _stored(self, prompts: Mapping[str, str]) -> dict[str, str]:
        rows = read_rows(Path(self.source))
        known = {row.text("id" if "id" in row else "key"): row.text("reply") for row in rows}
        self.name = next((row.text("judge") for row in rows if "judge" in row), self.name)
        found = {name: known.get(name, known.get(key_of(prompt))) for name, prompt in prompts.items()}
        if missing := next((name for name, reply in found.items() if reply is None), None):
            raise ValueError(f"expected a reply for every item in {self.source}, got none for id {missing}")
        return {name: reply for name, reply in found.items() if reply is not None}

    def _asked(self, prompts: Mapping[str, str]) -> dict[str, str]:
        from plait.evaluation.models import Ask, open_model

        model: Any = open_model(self.source, ("text", "generate"))
        self.name = f"{model.name} ({model.fingerprint})"
        about = {"judge": self.name}
        keys = {name: key_of(prompt) for name, prompt in prompts.items()}
        with ResponseCache(None if self.keep is None else self.keep / "judge_cache.jsonl", about) as cache:
            asked = {keys[name]: Ask(prompt) for name, prompt in prompts.items()}
            kept = collect(asked, lambda asks: model.generate(asks, REPLY), cache, batch_size=8, what="judge")
        found = {name: kept[key] for name, key in keys.items()}
        if self.keep is not None:
            day = time.strftime("%Y-%m-%d")
            rows = [{"id": n, "key": keys[n], "judge": self.name, "date": day, "reply": r} for n, r in found.items()]
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (self.keep / "judge.jsonl").write_text(lines, encoding="utf-8")
        return found


def video_prompt(question: str, answer: str, prediction: str) -> str:
    """Ask whether an answer to a video question means the same as the right one."""
    return (
        "Compare an answer to a question about a video with the right answer. Paraphrases count as right.\n"
        f"Question: {question}\nRight answer: {answer}\nAnswer: {prediction}\n"
        "Reply with a Python dictionary only, such as {'pred': 'yes', 'score': 4}: pred yes or no, score 0 to 5."
    )


def grade_prompt(question: str, answer: str, prediction: str) -> str:
    """Ask for a grade from 0.0 to 1.0 of a free answer. <AND> joins what must all be there, <OR> alternatives."""
    answer = answer.replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return (
        "Grade how much of the ground truth an answer gives, from 0.0 to 1.0 in steps of 0.1. <AND> joins parts that "
        "must all be given, <OR> parts of which one is enough. Reply with the number only.\n"
        f"Question: {question}\nGround truth: {answer}\nAnswer: {prediction}\nGrade:"
    )


def hallucination_prompt(question: str, answer: str, content: str, prediction: str) -> str:
    """Ask for a rating from 0 to 6 of how far an answer keeps to a picture, whose content is given in words."""
    return (
        "Rate an answer to a question about a picture from 0 to 6. 0 to 2: it says what is not in the picture (0"
        " without other use, 2 with much). 3 to 6: it does not (3 without information, 6 very informative).\n"
        f"In the picture: {content}\nQuestion: {question}\nStandard answer: {answer}\nAnswer: {prediction}\n"
        "Explain in one sentence, then end with a line such as: Rating: 4"
    )
