"""Judges: prompt -> reply, kept in a file, so that a judged score can be made again offline.

A judge is a file of stored replies (JSON lines key, judge, reply; or id, reply for people's grades) or a model.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from plait.evaluation.base import Item, NotScored, Scoring
from plait.evaluation.cache import ResponseCache, collect, key_of
from plait.evaluation.files import read_rows
from plait.places import atomic_write
from plait.types import Ask, Decoding

REPLY = Decoding(max_new_tokens=64)


class Judge:
    """Replies of a judge by id.

    Replies of a model are written to `keep`/judge.jsonl with the judge's name and the date.

    Args:
        source: a .jsonl file of stored replies, or a model that writes text.
        keep: directory of the run; None keeps nothing.
    """

    def __init__(self, source: str, keep: Path | None) -> None:
        self.source, self.keep = source, keep
        self.is_file = Path(source).suffix == ".jsonl"
        self.name = Path(source).name

    def replies(self, prompts: Mapping[str, str]) -> dict[str, str]:
        """Replies by id for prompts by id.

        Args:
            prompts: id -> the whole prompt.

        Raises:
            ValueError: for an id without a stored reply, and for a model that writes no text.
        """
        if self.is_file:
            rows = read_rows(Path(self.source))
            known = {row.text("id" if "id" in row else "key"): row.text("reply") for row in rows}
            self.name = next((row.text("judge") for row in rows if "judge" in row), self.name)
            told = {name: known.get(name, known.get(key_of(prompt))) for name, prompt in prompts.items()}
            if missing := next((name for name, reply in told.items() if reply is None), None):
                raise ValueError(f"expected a reply for every item in {self.source}, got none for id {missing}")
            return {name: reply for name, reply in told.items() if reply is not None}
        from plait.evaluation.models import open_model

        model: Any = open_model(self.source, ("text", "generate"))
        self.name = f"{model.name} ({model.fingerprint})"
        keys = {name: key_of(prompt) for name, prompt in prompts.items()}
        asked = {keys[name]: Ask(prompt) for name, prompt in prompts.items()}
        place = None if self.keep is None else self.keep / "judge_cache.jsonl"
        with ResponseCache(place, {"judge": self.name}) as cache:
            kept = collect(asked, lambda asks: model.generate(asks, REPLY), cache, batch_size=8, what="judge")
        found = {name: kept[key] for name, key in keys.items()}
        if self.keep is not None:
            # judges change and disappear: with name and date beside every reply, the score can be made again offline
            day = time.strftime("%Y-%m-%d")
            rows = [{"id": n, "key": keys[n], "judge": self.name, "date": day, "reply": r} for n, r in found.items()]
            atomic_write(self.keep / "judge.jsonl", "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows))
        return found


def judged(scoring: Scoring, needs: str, prompt_of: Callable[[Item, str], str]) -> tuple[dict[str, str], str]:
    """What the judge of a run says of every reply.

    Args:
        scoring: items, replies and the judge.
        needs: the task in words, for the note.
        prompt_of: (item, reply) -> the prompt.

    Returns:
        Verdict by id, and who the judge is.

    Raises:
        NotScored: without a judge.
    """
    if scoring.judge is None:
        raise NotScored(f"not scored: {needs} needs --judge FILE.jsonl or --judge MODEL")
    judge = Judge(scoring.judge, scoring.out)
    told = judge.replies({item.id: prompt_of(item, reply) for item, reply in scoring.pairs()})
    return told, f"judge {judge.name}"
