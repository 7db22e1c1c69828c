"""Images and clips in, words and boxes out: `Assistant` wraps any family that can caption, answer, ground or classify.

items -> requests -> decoded and prepared in threads -> batches of one kind -> skills -> results in order
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from plait.assistant.items import Ready, Request, decoded, request_of
from plait.assistant.skills import Scored, Skills, Task

if TYPE_CHECKING:
    import torch

__all__ = ["Assistant", "Box", "Result", "Scored"]

OnBad = Literal["raise", "skip"]


class Box(NamedTuple):
    """A rectangle in pixels of the image as it is seen upright."""

    x0: float
    y0: float
    x1: float
    y1: float


class Result(NamedTuple):
    """What came out for one item: `value`, or `error` where it could not be read."""

    name: str
    value: Any
    error: str | None = None


class Assistant:
    """Caption, answer, ground and classify.

    Args:
        model: a model directory or hub id, an official checkpoint, or a pair `(model, processor)`.
        device: where the model runs; the first GPU when there is one, else the CPU.
        dtype: for example `"bfloat16"`; as stored when None, but float32 on a CPU.
        batch_size: items per forward pass.
        adapter: directory of a LoRA trained on the model, merged into it in memory.

    An item is a path (image or video, told apart by content), a PIL image, a list of PIL frames or a `Sample`; a list
    of items gives a list of results. With `on_bad="skip"` an item that cannot be read gives None and is listed in
    `skipped`; otherwise it is a ValueError that names it. Nothing is ever replaced by something else.
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 8,
        adapter: str | Path | None = None,
    ) -> None:
        import torch

        from plait.models import auto

        if batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.skipped: list[Result] = []
        if isinstance(model, tuple):
            self.model, self.processor = model
            self.model.to(device=device, dtype=auto.resolve_dtype(dtype))
        else:
            place = auto.resolve_device(device)
            if dtype is None and place.type == "cpu":
                dtype = torch.float32
            self.model, self.processor = auto.load(model, dtype=dtype, device=place, adapter=adapter)
        self.model.eval()
        self.skills: Skills = auto.skills(self.model, self.processor)

    @property
    def tasks(self) -> tuple[str, ...]:
        """What this model does, among caption, answer, rank, ground and classify."""
        return tuple(sorted(self.skills.tasks))

    def caption(self, items: Any, *, on_bad: OnBad = "raise", **options: int) -> Any:
        """A description of each item (str). options: `num_beams, min_length, max_length`."""
        return self._all("caption", items, on_bad, options=options)

    def answer(
        self,
        items: Any,
        question: str | Sequence[str],
        answers: Sequence[str] | None = None,
        *,
        on_bad: OnBad = "raise",
        **options: int,
    ) -> Any:
        """The answer (str) to one question about every item, or to a question each: free, or the best of `answers`."""
        if answers is not None:
            ranked = self.rank(items, question, answers, on_bad=on_bad)
            single = bool(ranked) and isinstance(ranked[0], Scored)
            return ranked[0].text if single else [r and r[0].text for r in ranked]
        return self._all("answer", items, on_bad, question, options=options)

    def rank(
        self, items: Any, question: str | Sequence[str], answers: Sequence[str], *, on_bad: OnBad = "raise"
    ) -> Any:
        """All `answers` with their probabilities, best first: a list of `Scored` per item."""
        return self._all("rank", items, on_bad, question, candidates=answers)

    def ground(self, items: Any, phrase: str | Sequence[str], *, on_bad: OnBad = "raise") -> Any:
        """Where a phrase is in each image: a `Box` in its pixels."""
        return self._all("ground", items, on_bad, phrase)

    def classify(self, items: Any, labels: Sequence[str] | None = None, *, on_bad: OnBad = "raise") -> Any:
        """Labels with probabilities, best first, per item: those of the model's head, or the given ones.

        Items may be texts as well, given as `Sample(id, text=...)`.
        """
        return self._all("classify", items, on_bad, candidates=labels)

    def stream(
        self,
        task: Task,
        requests: Iterable[Request],
        *,
        candidates: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Result]:
        """Results in order, as batches finish; items that cannot be read come with their `error`.

        Raises ValueError for a task that this model does not do, for an empty list of candidates and for texts over
        the limit, before anything is decoded. What does not fit the task is an item with an error; see `fitting`.
        """
        requests = self.fitting(task, requests)
        self._check(task, requests, candidates)
        ahead = 2 * self.batch_size
        ready = decoded(requests, self.skills.prepare, self.skills.num_frames, ahead)
        for batch in _batches(ready, self.batch_size):
            if batch[0].error is not None:
                yield from (Result(one.request.name, None, one.error) for one in batch)
            else:
                values = self._run(task, batch, candidates, options or {})
                yield from (Result(one.request.name, value) for one, value in zip(batch, values, strict=True))

    def _run(
        self, task: Task, batch: list[Ready], candidates: Sequence[str] | None, options: Mapping[str, Any]
    ) -> Sequence[Any]:
        import torch

        kind, texts = batch[0].request.kind, [one.request.text for one in batch]
        prepared = [one.prepared for one in batch]
        with torch.inference_mode():
            if task == "caption":
                return self.skills.caption(kind, prepared, options)
            if task == "answer":
                return self.skills.answer(kind, prepared, texts, options)
            if task == "rank":
                return _scored(self.skills.rank(kind, prepared, texts, list(candidates or ())))
            if task == "classify":
                return _scored(self.skills.classify(kind, prepared, candidates))
            boxes = self.skills.ground(prepared, texts)
        return [_in_pixels(box, one.size) for box, one in zip(boxes, batch, strict=True)]

    def fitting(self, task: Task, requests: Iterable[Request]) -> list[Request]:
        """The requests, with an `error` where the task needs a text or another kind of item than is given."""
        kinds = {"image"} if task == "ground" else self.skills.kinds
        return [r if r.error else replace(r, error=_unfit(task, r, kinds)) for r in requests]

    def _check(self, task: Task, requests: Sequence[Request], candidates: Sequence[str] | None) -> None:
        if task not in self.skills.tasks:
            raise ValueError(
                f"expected a model that can {task}, got {type(self.model).__name__}, which can "
                f"{', '.join(self.tasks)}; pass another model"
            )
        if (task == "rank" or candidates is not None) and not candidates:
            raise ValueError("expected at least one answer or label to choose from, got an empty list")
        for text in {request.text for request in requests} | set(candidates or ()):
            self.skills.check_text(text)

    def _all(
        self,
        task: Task,
        items: Any,
        on_bad: OnBad,
        texts: str | Sequence[str] = "",
        candidates: Sequence[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {on_bad!r}")
        single = not isinstance(items, list | tuple) or _is_clip(items)
        listed = [items] if single else list(items)
        each = [texts] * len(listed) if isinstance(texts, str) else list(texts)
        if len(each) != len(listed):
            raise ValueError(f"expected one question per item, got {len(each)} for {len(listed)} items")
        requests = [_request(item, text, on_bad) for item, text in zip(listed, each, strict=True)]
        if task in self.skills.tasks:
            requests = self.fitting(task, requests)
        if on_bad == "raise" and (bad := next((r.error for r in requests if r.error), None)):
            raise ValueError(bad)
        values, self.skipped = [], []
        for result in self.stream(task, requests, candidates=candidates, options=options):
            if result.error is not None:
                if on_bad == "raise":
                    raise ValueError(result.error)
                self.skipped.append(result)
            values.append(result.value)
        return values[0] if single else values


def _unfit(task: Task, request: Request, kinds: Collection[str]) -> str | None:
    """Why a task can do nothing with a request, or None."""
    if request.kind not in kinds:
        return f"expected {' or '.join(sorted(kinds))} to {task}, got {request.kind}: {request.name}"
    if task in ("answer", "rank", "ground") and not request.text.strip():
        return f"expected a question or phrase for {request.name}, got none"
    return None


def _request(item: Any, text: str, on_bad: OnBad) -> Request:
    if on_bad == "raise":
        return request_of(item, text)
    try:
        return request_of(item, text)
    except (ValueError, OSError) as error:
        return Request(str(item), "image", None, text, str(error))


def _batches(ready: Iterable[Ready], size: int) -> Iterator[list[Ready]]:
    """Neighbours of one kind (failed ones are a kind of their own), at most `size` together, in order."""
    for _, group in groupby(ready, key=lambda one: "bad" if one.error is not None else one.request.kind):
        batch: list[Ready] = []
        for one in group:
            batch.append(one)
            if len(batch) == size:
                yield batch
                batch = []
        if batch:
            yield batch


def _is_clip(items: Sequence[Any]) -> bool:
    """A tuple of PIL images is one clip; a list of them is several images."""
    return isinstance(items, tuple) and bool(items) and all(hasattr(item, "getpixel") for item in items)


def _scored(ranked: Iterable[Iterable[tuple[str, float]]]) -> list[list[Scored]]:
    return [[Scored(text, share) for text, share in row] for row in ranked]


def _in_pixels(box: Sequence[float], size: tuple[int, int]) -> Box:
    width, height = size
    x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in box)
    return Box(x0 * width, y0 * height, x1 * width, y1 * height)


def progress(total: int, task: str, show: bool | None) -> Any:
    """A bar on stderr: shown after two seconds where stderr is a terminal, always or never where `show` says so."""
    from tqdm import tqdm

    hidden = not sys.stderr.isatty() if show is None else not show
    return tqdm(total=total, desc=task, unit="item", delay=0 if show else 2, disable=hidden)
