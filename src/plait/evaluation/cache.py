"""Answers that are kept: one JSON line per answer, on disk before the next batch begins.

A killed evaluation reads its own lines again and asks the model only for what is not there. A line cut off by the kill
is dropped; any other damage is an error.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

from plait.terminal import progress_bar


class ResponseCache:
    """Answers by key, on disk before the next batch begins; use as a context.

    Args:
        path: a file of JSON lines, made where there is none; in memory only when None.
        about: what made the answers (model, task, decoding), stored as the first line.

    Raises:
        ValueError: where the file belongs to something else, or is damaged before its end.

    Example:
        >>> with ResponseCache("cache.jsonl", {"model": "nano"}) as cache:
        ...     found = collect({"a": 2, "b": 3}, lambda batch: [2 * one for one in batch], cache, batch_size=8)
        >>> found
        {'a': 4, 'b': 6}
    """

    def __init__(self, path: str | Path | None, about: Mapping[str, Any]) -> None:
        self.path = None if path is None else Path(path)
        self.answers: dict[str, Any] = {}
        self._file: BinaryIO | None = None
        if self.path is not None:
            # through JSON and back, so that tuples compare as the lists that were stored
            self._open(json.loads(json.dumps(about)))

    def _open(self, about: Any) -> None:
        """Take up what is there, cut off a torn last line, and open for writing behind it."""
        assert self.path is not None
        self.path.parent.mkdir(parents=True, exist_ok=True)
        kept = self._read(about) if self.path.exists() else 0
        self._file = self.path.open("r+b" if self.path.exists() else "wb")
        # a line cut off by a kill goes, so that the next one begins on a line of its own
        self._file.truncate(kept)
        self._file.seek(kept)
        if kept == 0:
            self._write([{"about": about}])

    def _read(self, about: Any) -> int:
        """Take up the answers of the file; returns the number of whole bytes."""
        assert self.path is not None
        content = self.path.read_bytes()
        whole = content.rfind(b"\n") + 1  # what follows was cut off by a kill
        if not whole and not json.dumps({"about": about}, ensure_ascii=False).encode().startswith(content):
            raise ValueError(f"expected answers in {self.path}, got a file of another kind; pass another path")
        for number, line in enumerate(content[:whole].splitlines(), 1):
            try:
                row = json.loads(line)
                if not isinstance(row, dict) or (number > 1 and not {"key", "answer"} <= row.keys()):
                    raise ValueError("no row of answers")
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{self.path}, line {number}: expected JSON, got other bytes; delete it") from error
            if number > 1:
                self.answers[row["key"]] = row["answer"]
            elif row.get("about") != about:
                raise ValueError(
                    f"expected answers of the same model, task and decoding in {self.path}, got those of "
                    f"{json.dumps(row.get('about'))[:120]}; pass another --out"
                )
        return whole

    def add(self, answers: Mapping[str, Any]) -> None:
        """Keep answers: written and synchronised to disk before this returns."""
        self.answers |= answers
        if self._file is not None:
            self._write([{"key": key, "answer": answer} for key, answer in answers.items()])

    def _write(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append rows as JSON lines, on the disk before this returns."""
        assert self._file is not None
        self._file.write("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode())
        self._file.flush()  # to the system, and then to the disk: an answer may have cost minutes
        os.fsync(self._file.fileno())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._file is not None:
            self._file.close()


def key_of(*parts: Any) -> str:
    """A short key for a question: what is asked, of which media.

    Args:
        parts: anything that JSON holds.

    Returns:
        24 hexadecimal digits.
    """
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode()).hexdigest()[:24]


def collect(
    questions: Mapping[str, Any],
    ask: Callable[[list[Any]], Sequence[Any]],
    cache: ResponseCache,
    *,
    batch_size: int,
    what: str = "answers",
    show_progress: bool | None = None,
) -> dict[str, Any]:
    """Answers by key: those kept, and the rest in batches, kept as they come. Equal keys are asked once.

    Args:
        questions: key -> what `ask` takes.
        ask: a batch of questions -> as many answers that JSON holds.
        cache: kept answers.
        batch_size: questions of a batch.
        what: words of the progress bar.
        show_progress: None shows it when the work takes longer than about two seconds.

    Returns:
        key -> answer, in the order of the questions.

    Raises:
        ValueError: for another number of answers than questions.
    """
    open_ = [key for key in questions if key not in cache.answers]
    total = len(questions)
    with progress_bar(what, total=total, done=total - len(open_), show=show_progress) as bar:
        for start in range(0, len(open_), batch_size):
            keys = open_[start : start + batch_size]
            found = ask([questions[key] for key in keys])
            if len(found) != len(keys):
                raise ValueError(f"expected {len(keys)} answers of the model, got {len(found)}")
            # batch by batch: a kill costs one batch
            cache.add(dict(zip(keys, found)))
            bar.update(len(keys))
    return {key: cache.answers[key] for key in questions}
