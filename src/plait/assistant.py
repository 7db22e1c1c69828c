"""Images, clips and sounds in, words and boxes out: `Assistant` wraps any family that can do one of its tasks.

    path | PIL image | frames | samples of a sound | Sample -> Request(kind, value, text)
        -> decoded and prepared in threads, batches ahead -> batches of one kind -> the family's `Skills`
        -> results in order

A family takes part by writing `Skills`, one small interface over its model and processor, and naming the class
`SKILLS` in its package.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Union, Unpack, cast, overload

import numpy as np

from plait.data.manifest import manifest_path, read_manifest
from plait.media import kind_of
from plait.media.audio import load_audio, resample
from plait.media.image import load_image
from plait.media.values import is_array, is_picture
from plait.media.video import load_video
from plait.processing.videos import chooser
from plait.types import Modality, Sample, Several, Skills, Task, Writing

if TYPE_CHECKING:
    import torch
    from PIL.Image import Image

__all__ = ["Assistant", "Box", "Detected", "Looked", "Result", "Scored"]

OnBad = Literal["raise", "skip"]

One = Union[str, bytes, Path, "Image", "np.ndarray", "torch.Tensor", Sample, "tuple[Any, ...]"]  # see `Assistant`


_LOADERS = 4
_VERDICTS = {("yes", "no"): "Does this show: {}? Answer yes or no.", ("true", "false"): "{}"}
"""What a model without a matching head is asked about a text, by the answers it may give."""


class Scored(NamedTuple):
    """One candidate and its probability."""

    text: str
    probability: float


class Box(NamedTuple):
    """A rectangle in pixels of the image as it is seen upright; (x0, y0) is the upper left corner."""

    x0: float
    y0: float
    x1: float
    y1: float


class Detected(NamedTuple):
    """One object of an image.

    Attributes:
        label: its class.
        score: 0 to 1.
        box: in pixels.
        mask: (height, width) bool of the whole image, None where the model makes none.
        mask_score: the score times how sure the mask is, by which masks are ranked.
    """

    label: str
    score: float
    box: Box
    mask: Any = None
    mask_score: float = 0.0


class Looked(NamedTuple):
    """Where the pieces of an answer looked.

    Attributes:
        pieces: of the answer, as the model writes them.
        maps: (pieces, frames, rows, columns) float32: the share of a piece's attention that fell on each cell of each
            frame's grid, over heads and layers; the rest went to words and to positions of no place.
    """

    pieces: list[str]
    maps: np.ndarray


class Result(NamedTuple):
    """What came out for one item.

    Attributes:
        name: its path, or words for what is in memory.
        value: a str, a list of `Scored` or of `Detected`, a `Box` or a map of classes, by task; None beside an error.
        error: one line where it could not be read.
    """

    name: str
    value: Any
    error: str | None = None


class Assistant:
    """Caption, answer, ground, classify, detect and segment.

    An item is a path (image, video or audio, told apart by content), bytes of a file, a data URI of an image, a PIL
    image, a tuple of PIL frames, an array or tensor of an image (height, width, 3), of frames, or of samples at the
    model's rate, or a `Sample`; to a model that compares images a tuple is its images; a list of items gives a list
    of results. With `on_bad="skip"` an item that cannot be read gives None and is
    listed in `skipped`; otherwise it is a ValueError that names it. Nothing is ever replaced by something else.

    Args:
        model: a model directory or hub id, an official checkpoint, or a pair `(model, processor)`.
        device: where the model runs; the first GPU when there is one, else the CPU.
        dtype: for example `"bfloat16"`, or `"int8"` on a CPU; as stored when None, but float32 on a CPU.
        batch_size: items per forward pass.
        adapter: directory of a LoRA trained on the model, merged into it in memory.
        frames: how frames of videos are chosen: `published`, as the model's release does, or `time`, evenly.
        device_map, attn_implementation: as in `plait.load`.

    Raises:
        ValueError: for no such model, one of a family without these skills, and a `batch_size` below 1.

    Example:
        >>> assistant = Assistant("captioner")
        >>> "caption" in assistant.tasks
        True
        >>> assistant.caption(["dog.jpg", "clip.mp4"], num_beams=3)  # ['a dog on a beach', 'a man is cooking']
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        batch_size: int = 8,
        adapter: str | Path | None = None,
        frames: Literal["published", "time"] = "published",
        *,
        device_map: str | int | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        from plait.models import auto

        if frames not in ("published", "time"):
            raise ValueError(f"expected frames 'published' or 'time', got {frames!r}")
        if batch_size < 1:
            raise ValueError(f"expected batch_size of at least 1, got {batch_size}")
        self.batch_size = batch_size
        self.skipped: list[Result] = []
        self.model, self.processor = auto.opened(model, device, dtype, adapter, device_map, attn_implementation)
        self.skills: Skills = auto.skills(self.model, self.processor)
        self.frames = getattr(self.skills, "frames", "time") if frames == "published" else frames

    @property
    def tasks(self) -> tuple[str, ...]:
        """What this model does, among caption, answer, rank, match, ground, classify, detect and segment."""
        return tuple(sorted(self.skills.tasks))

    @overload
    def caption(self, items: list[Any], *, on_bad: OnBad = "raise", **options: Unpack[Writing]) -> list[Any]: ...

    @overload
    def caption(self, items: One, *, on_bad: Literal["raise"] = "raise", **options: Unpack[Writing]) -> str: ...

    def caption(self, items: Any, *, on_bad: OnBad = "raise", **options: Any) -> Any:
        """A description of each item.

        Args:
            items: one, or a list of them, see `Assistant`.
            on_bad: "raise", or "skip" for None in the place of what cannot be read.
            options: `num_beams`, `min_new_tokens`, `max_new_tokens`; the family's own where they are not given.

        Returns:
            A str, or a list of them.

        Raises:
            ValueError: for a model that does not caption, and options that it has not; for a bad item unless skipping.
        """
        return self._all("caption", items, on_bad, options=_known(options))

    @overload
    def answer(
        self, items: list[Any], question: str | Sequence[str], answers: Several[str] | None = None, *,
        on_bad: OnBad = "raise", **options: Unpack[Writing],
    ) -> list[Any]: ...  # fmt: skip

    @overload
    def answer(
        self, items: One, question: str | Sequence[str], answers: Several[str] | None = None, *,
        on_bad: Literal["raise"] = "raise", **options: Unpack[Writing],
    ) -> str: ...  # fmt: skip

    def answer(
        self,
        items: Any,
        question: str | Sequence[str],
        answers: Several[str] | None = None,
        *,
        on_bad: OnBad = "raise",
        **options: Any,
    ) -> Any:
        """The answer to one question about every item, or to a question each: free, or the best of `answers`.

        Args:
            items: one, or a list of them, see `Assistant`.
            question: for all items, or a list with one for each.
            answers: to choose from, as in `rank`; None lets the model write.
            on_bad, options: as in `caption`.

        Returns:
            A str, or a list of them.

        Raises:
            ValueError: for a model that does not answer (or rank), an empty or too long question, and other numbers of
                questions than items; for a bad item unless skipping.

        Example:
            >>> assistant.answer("dog.jpg", "what colour is it?", ["brown", "white"])  # 'brown'
        """
        if answers is not None:
            ranked = self.rank(items, question, answers, on_bad=on_bad)
            # one item gives a list of `Scored`, several give a list of such lists or None
            single = bool(ranked) and isinstance(ranked[0], Scored)
            return ranked[0].text if single else [r and r[0].text for r in ranked]
        return self._all("answer", items, on_bad, question, options=_known(options))

    def rank(
        self, items: One | list[Any], question: str | Sequence[str], answers: Several[str], *, on_bad: OnBad = "raise"
    ) -> Any:
        """All `answers` with their probabilities, best first.

        Args:
            items, question, on_bad: as in `answer`.
            answers: at least one; their probabilities sum to 1.

        Returns:
            A list of `Scored`, or a list of such lists.

        Raises:
            ValueError: as `answer`, and for no answers.
        """
        return self._all("rank", items, on_bad, question, candidates=answers)

    def match(self, items: One | list[Any], text: str | Sequence[str], *, on_bad: OnBad = "raise") -> Any:
        """How probable it is that a text says what each item shows.

        A model with a matching head is asked by it; one that ranks answers, whether yes is likelier than no. So is a
        head whose classes hold yes and no, as those of VQA do, or true and false, which reads the text as a statement.

        Args:
            items, on_bad: as in `caption`.
            text: for all items, or a list with one for each.

        Returns:
            A float from 0 to 1, or a list of them.

        Raises:
            ValueError: for a model that does neither, and an empty text; for a bad item unless skipping.
        """
        if "match" in self.tasks or "rank" not in self.tasks:
            return self._all("match", items, on_bad, text)
        known = {label.lower(): label for label in self.skills.labels}
        said = next((pair for pair in _VERDICTS if known.keys() >= {*pair}), None if known else ("yes", "no"))
        if said is None:
            got = ", ".join(self.skills.labels)[:60]
            raise ValueError(f"expected a head with the classes yes and no, or true and false, to match by, got {got}")
        yes, no = (known.get(word, word) for word in said)
        texts = [text] if isinstance(text, str) else text
        # an empty text is refused as everywhere
        asked = [_VERDICTS[said].format(one) if one.strip() else one for one in texts]
        answers = self.skills.labels or said
        ranked = self.rank(items, asked[0] if isinstance(text, str) else asked, answers, on_bad=on_bad)
        single = bool(ranked) and isinstance(ranked[0], Scored)
        rows = [row and dict(row) for row in ([ranked] if single else ranked)]
        shares = [row and row[yes] / (row[yes] + row[no]) for row in rows]
        return shares[0] if single else shares

    def ground(self, items: One | list[Any], phrase: str | Sequence[str], *, on_bad: OnBad = "raise") -> Any:
        """Where a phrase is in each image.

        Args:
            items: images, one or a list of them.
            phrase: for all images, or a list with one for each.
            on_bad: as in `caption`.

        Returns:
            A `Box` in pixels of its image, or a list of them.

        Raises:
            ValueError: for a model that does not ground, and an empty phrase; for a bad item unless skipping.
        """
        return self._all("ground", items, on_bad, phrase)

    def detect(self, items: One | list[Any], threshold: float = 0.5, *, on_bad: OnBad = "raise") -> Any:
        """The objects of each image, best first.

        Args:
            items: images, one or a list of them.
            threshold: of scores, 0 to 1.
            on_bad: as in `caption`.

        Returns:
            A list of `Detected`, or a list of such lists.

        Raises:
            ValueError: for a model that does not detect; for a bad item unless skipping.
        """
        return self._all("detect", items, on_bad, options={"threshold": threshold})

    def segment(self, items: One | list[Any], *, multi_scale: bool = False, on_bad: OnBad = "raise") -> Any:
        """The class of every pixel of each image.

        Args:
            items: images, one or a list of them.
            multi_scale: whether each is looked at in several sizes and mirrored, as the release does: many looks.
            on_bad: as in `caption`.

        Returns:
            An array (height, width) uint16 of numbers of `skills.labels`, or a list of them.

        Raises:
            ValueError: for a model that does not segment; for a bad item unless skipping.
        """
        return self._all("segment", items, on_bad, options={"multi_scale": multi_scale})

    def classify(self, items: One | list[Any], labels: Several[str] | None = None, *, on_bad: OnBad = "raise") -> Any:
        """Labels with probabilities, best first: those of the model's head, or the given ones.

        Args:
            items: as everywhere; texts as well, given as `Sample(id, text=...)`.
            labels: to choose from, where the family can; None takes those of the head.
            on_bad: as in `caption`.

        Returns:
            A list of `Scored`, or a list of such lists.

        Raises:
            ValueError: for a model that does not classify, and an empty list of labels; for a bad item unless
                skipping.
        """
        return self._all("classify", items, on_bad, candidates=labels)

    def attention(self, item: One, text: str, question: str = "") -> Looked:
        """Where a model looked while it wrote a text about an image or video.

        The text is read once more behind its question, so what the model did and said stays as it was, beams or not.

        Args:
            item: one, see `Assistant`.
            text: what it said: a caption, or an answer.
            question: what it was asked; empty for a caption.

        Raises:
            ValueError: for a model that neither captions nor answers, an item without an image, and a text without
                words.

        Example:
            >>> looked = assistant.attention("dog.jpg", "brown", "what colour is it?")
            >>> looked.maps.sum(0)[0]  # (rows, columns) of the picture
        """
        task: Task = "answer" if question else "caption"
        if not text.strip():
            raise ValueError("expected a text with words, got none; pass what the model said")
        if task not in self.tasks:
            raise ValueError(f"expected a model that can {task}, got {type(self.model).__name__}; pass another model")
        (request,) = self.fitting(task, [request_of(item, question)])
        if request.kind not in ("image", "video"):
            raise ValueError(f"expected an image or a film to look at, got {request.kind}; pass one")
        (ready,) = decoded([request], self.skills, self.frames, 1)
        if ready.error:
            raise ValueError(ready.error)
        for one in (question, text):
            self.skills.check_text(one)
        import torch

        with torch.inference_mode():
            pieces, maps = self.skills.attention(request.kind, ready.prepared, question, text)
        return Looked(pieces, maps.float().cpu().numpy())

    def stream(
        self,
        task: Task,
        requests: Iterable[Request],
        *,
        candidates: Several[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Iterator[Result]:
        """Results in order, as batches finish; items that cannot be read come with their `error`.

        Args:
            task: one of `tasks`.
            requests: from `request_of` or `requests_under`. What does not fit the task is an item with an
                error.
            candidates: answers or labels to choose from.
            options: as in `caption`.

        Returns:
            One `Result` per request.

        Raises:
            ValueError: for a task that this model does not do, an empty list of candidates and texts over the limit,
                before anything is decoded.

        Example:
            >>> requests, _ = requests_under(Path("photos"))
            >>> for result in assistant.stream("caption", requests):
            ...     print(result.name, result.value or result.error)
        """
        requests = self.fitting(task, requests)
        if task not in self.skills.tasks:
            raise ValueError(
                f"expected a model that can {task}, got {type(self.model).__name__}, which can "
                f"{', '.join(self.tasks)}; pass another model"
            )
        if (task == "rank" or candidates is not None) and not candidates:
            raise ValueError("expected at least one answer or label to choose from, got an empty list")
        # a set: one question about a thousand pictures is checked once
        for text in {request.text for request in requests} | set(candidates or ()):
            self.skills.check_text(text)
        # 2 batches ahead: one waits while the next is decoded, and no more pictures than that lie in memory
        ready = decoded(requests, self.skills, self.frames, 2 * self.batch_size)
        # neighbours of one kind only: order of the results is that of the requests
        for kind, group in groupby(ready, key=lambda one: "bad" if one.error is not None else one.request.kind):
            while batch := list(islice(group, self.batch_size)):
                if kind == "bad":
                    yield from (Result(one.request.name, None, one.error) for one in batch)
                else:
                    values = self._run(task, batch, candidates, options or {})
                    yield from (Result(one.request.name, value) for one, value in zip(batch, values, strict=True))

    def _run(
        self, task: Task, batch: list[Ready], candidates: Several[str] | None, options: Mapping[str, Any]
    ) -> Sequence[Any]:
        """Values of one batch of one kind, by the family's skills; boxes as pixels of each picture."""
        import torch

        kind, texts = batch[0].request.kind, [one.request.text for one in batch]
        prepared = [one.prepared for one in batch]
        with torch.inference_mode():
            if task == "caption":
                return self.skills.caption(kind, prepared, options)
            if task == "answer":
                return self.skills.answer(kind, prepared, texts, options)
            if task == "match":
                return self.skills.fits(kind, prepared, texts)
            if task in ("rank", "classify"):
                ranked = (
                    self.skills.rank(kind, prepared, texts, list(candidates or ()))
                    if task == "rank"
                    else self.skills.classify(kind, prepared, candidates)
                )
                return [[Scored(text, share) for text, share in row] for row in ranked]
            if task == "detect":
                found = self.skills.detect(prepared, options.get("threshold", 0.5))
                return [self._objects(one) for one in found]
            if task == "segment":
                maps = self.skills.segment(prepared, options.get("multi_scale", False))
                return [one.numpy().astype("uint16") for one in maps]
            boxes = self.skills.ground(prepared, texts)
        placed = []
        for box, (width, height) in zip(boxes, (one.size for one in batch), strict=True):
            # shares, which a regression may put outside of the picture
            x0, y0, x1, y1 = (min(1.0, max(0.0, value)) for value in box)
            placed.append(Box(x0 * width, y0 * height, x1 * width, y1 * height))
        return placed

    def _objects(self, found: Mapping[str, Any]) -> list[Detected]:
        """Rows of what a model detected in one picture."""
        rows = zip(found["labels"].tolist(), found["scores"].tolist(), found["boxes"].tolist(), strict=True)
        objects = [Detected(self.skills.labels[label], score, Box(*box)) for label, score, box in rows]
        if "masks" not in found:
            return objects
        masks = zip(objects, found["masks"].numpy(), found["mask_scores"].tolist(), strict=True)
        return [one._replace(mask=mask, mask_score=score) for one, mask, score in masks]

    def fitting(self, task: Task, requests: Iterable[Request]) -> list[Request]:
        """The requests, with an `error` where the task needs a text or another kind of item than is given.

        Args:
            task: what is to be done.
            requests: those that have an error already keep it.
        """
        kinds: Collection[str] = {"image"} if task in ("ground", "detect", "segment") else self.skills.kinds
        # a decoder that writes about pictures may have been told to classify texts too
        kinds = getattr(self.skills, "kinds_of", {}).get(task, kinds)

        compared = getattr(self.skills, "num_images", 1)

        def seen(request: Request) -> Request:
            if request.kind != "video" or "video" in kinds:
                return request
            # the sound of a film, to a model that hears; the pictures of one item, to a model that compares them
            if "audio" in kinds and isinstance(request.value, Path):
                return replace(request, kind="audio")
            is_pictures = isinstance(request.value, list) and len(request.value) == compared
            return replace(request, kind="image") if is_pictures else request

        def misfit(request: Request) -> str | None:
            if request.kind not in kinds:
                got = "audio, a sound file" if request.kind == "audio" else request.kind
                return f"expected {' or '.join(sorted(kinds))} to {task}, got {got}: {request.name}"
            if request.kind == "image" and compared > 1 and not isinstance(request.value, list):
                return f"expected {compared} pictures for {request.name}, got one; pass them together"
            return unasked(task, request)

        return [one if one.error else replace(one, error=misfit(one)) for one in map(seen, requests)]

    def _all(
        self,
        task: Task,
        items: Any,
        on_bad: OnBad,
        texts: str | Sequence[str] = "",
        candidates: Several[str] | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run a task over one item or a list of them: one value, or a list with None for what was skipped."""
        if on_bad not in ("raise", "skip"):
            raise ValueError(f"expected on_bad 'raise' or 'skip', got {on_bad!r}")
        # a tuple of pictures is one clip, a list of them several pictures
        is_clip = isinstance(items, tuple) and bool(items) and all(hasattr(item, "getpixel") for item in items)
        single = is_clip or not isinstance(items, list | tuple)
        listed = [items] if single else list(items)
        each = [texts] * len(listed) if isinstance(texts, str) else list(texts)
        if len(each) != len(listed):
            raise ValueError(f"expected one question per item, got {len(each)} for {len(listed)} items")
        make = request_of if on_bad == "raise" else _request_or_error
        requests = [make(item, text) for item, text in zip(listed, each, strict=True)]
        # else `stream` says that the model does not do this task, which matters more than the items
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


def _known(options: Mapping[str, Any]) -> Mapping[str, Any]:
    """`options`, checked. Raises ValueError for a name that is none of `Writing`, which families would ignore."""
    if unknown := sorted(set(options) - set(Writing.__annotations__)):
        raise ValueError(f"expected options among {', '.join(Writing.__annotations__)}, got {unknown[0]}; leave it out")
    return options


@dataclass(frozen=True, slots=True)
class Request:
    """One item with the text that goes with it.

    Attributes:
        name: for messages and results.
        kind: text, image, video or audio.
        value: a path, a PIL image, a list of PIL frames or of images of one item, samples (samples,) or a text.
        sampling_rate: of samples, in Hz; None takes the model's.
        text: a question or phrase.
        error: stands where nothing could be made of the item.
    """

    name: str
    kind: Modality
    value: Any
    text: str = ""
    error: str | None = None
    sampling_rate: int | None = None


@dataclass(frozen=True, slots=True)
class Ready:
    """A request with what the model takes.

    Attributes:
        request: as it came.
        prepared: by the family's `prepare`.
        size: (width, height) in pixels of the image or first frame; zeros for a text.
        error: why there is nothing prepared.
    """

    request: Request
    prepared: Any = None
    size: tuple[int, int] = (0, 0)
    error: str | None = None


def request_of(item: Any, text: str = "") -> Request:
    """Read one item as a request.

    Args:
        item: a path (by content), PIL image, list of PIL frames, array (samples,) or `Sample`; a `Request` stays. A
            sample's meta may hold `images`, the images of one item, and `sampling_rate`.
        text: a question or phrase; a sample's own question goes first.

    Raises:
        ValueError: one line, for what is missing, empty or no media.

    Example:
        >>> request_of(Sample("a", text="good morning")).kind
        'text'
    """
    if isinstance(item, Request):
        return item
    if isinstance(item, Sample):
        name, text = f"sample {item.id}", item.question or text
        if isinstance(pictures := item.meta.get("images"), list) and pictures:
            return Request(name, "video", pictures, text)
        # a sample with both is a clip with its cover picture
        for kind in ("video", "image", "audio"):
            if (value := getattr(item, kind)) is not None:
                value, rate = Path(value) if isinstance(value, str) else value, item.meta.get("sampling_rate")
                return Request(name, kind, value, text, sampling_rate=rate)
        if item.text is not None:
            return Request(name, "text", item.text, text)
        raise ValueError(f"expected an image, a video, a sound or a text, got {name} with none of them")
    if isinstance(item, str) and item.startswith("data:"):
        return Request("a data URI", "image", item, text)
    if isinstance(item, bytes):
        if (kind := kind_of(item)) not in ("image", "video", "audio"):
            raise ValueError(f"expected the bytes of an image, video or sound, got {len(item)} of none; pass one")
        return Request(f"{len(item)} bytes in memory", cast("Modality", kind), item, text)
    if isinstance(item, str | Path):
        path = Path(item)
        return Request(str(path), _kind_of_file(path), path, text)
    if is_picture(item) or (is_array(item) and len(item.shape) == 3):
        return Request("an image in memory", "image", item, text)
    if is_array(item) and len(item.shape) == 4 and len(item):
        return Request(f"a clip of {len(item)} frames in memory", "video", [load_image(one) for one in item], text)
    if is_array(item) and len(item.shape) == 1:
        return Request("a sound in memory", "audio", np.asarray(item, np.float32), text)
    if isinstance(item, Sequence) and item and all(map(is_picture, item)):
        return Request(f"a clip of {len(item)} frames in memory", "video", list(item), text)
    raise ValueError(f"expected a path, bytes, a PIL image, frames, an array or a Sample, got {type(item).__name__}")


def unasked(task: Task, request: Request) -> str | None:
    """What is wrong with a request without the words that its task needs, None where it has them."""
    if task in ("answer", "rank", "match", "ground") and not request.text.strip():
        return f"expected a question or phrase for {request.name}, got none"
    return None


def requests_under(path: Path, text: str = "") -> tuple[list[Request], int]:
    """The requests of a file, a folder or a manifest.

    Args:
        path: a folder with a manifest.jsonl stands for that manifest.
        text: goes with every item; a manifest's `question` takes its place.

    Returns:
        The requests, and how many files of a folder are no image, video or audio. A row or named file that is none
        becomes a request with an `error`.

    Raises:
        ValueError: for a path that does not exist, an empty manifest, and a folder with nothing to look at.
    """
    if not path.exists():
        raise ValueError(f"expected a file, folder or manifest, got {path}: no such file or folder")
    if path.is_dir() and not any((path / name).is_file() for name in ("manifest.jsonl", "manifest.jsonl.gz")):
        return _of_folder(path, text)
    if path.is_dir() or path.name.endswith((".jsonl", ".jsonl.gz")):
        samples = read_manifest(manifest_path(path))
        if not samples:
            raise ValueError(f"expected a manifest with rows, got none in {path}")
        return [_request_or_error(sample, text, f"sample {sample.id}") for sample in samples], 0
    return [_request_or_error(path, text, str(path))], 0


def _of_folder(folder: Path, text: str) -> tuple[list[Request], int]:
    """Requests of all images, videos and sounds below a folder, by name, and the number of other files.

    Hidden files and folders are passed over.
    """
    requests, others = [], 0
    for root, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not name.startswith("."))
        for path in (Path(root, name) for name in sorted(files) if not name.startswith(".")):
            request = _request_or_error(path, text, str(path))
            # an empty file, or a broken picture, is no other file: it is listed with its error
            if request.error and path.stat().st_size and kind_of(path) not in ("image", "video", "audio"):
                others += 1
            else:
                requests.append(request)
    if not requests:
        raise ValueError(f"expected images, videos or sounds in {folder}, got {others or 'no'} other files")
    return requests, others


def _request_or_error(item: Any, text: str, name: str | None = None) -> Request:
    """As `request_of`, and what is wrong is said in the request, which is passed over and listed."""
    try:
        return request_of(item, text)
    except (ValueError, OSError) as error:
        return Request(str(item) if name is None else name, "image", None, text, str(error))


def _kind_of_file(path: Path) -> Modality:
    """Image, video or sound, by content. Raises ValueError for anything else, and for an empty or missing file."""
    if not path.is_file():
        raise ValueError(f"expected a file, got {path}: {'not a regular file' if path.exists() else 'no such file'}")
    if path.stat().st_size == 0:
        raise ValueError(f"expected an image, video or sound, got {path}: an empty file; check the file")
    kind = kind_of(path)
    if kind not in ("image", "video", "audio"):  # a user's own has embedders, and no questions
        got = "its content is none of them" if kind is None else "a text file" if kind == "text" else f"a {kind} file"
        raise ValueError(f"expected an image, video or sound, got {path}: {got}; pass one")
    return kind


def decoded(requests: Iterable[Request], skills: Skills, frames: str, ahead: int) -> Iterator[Ready]:
    """Decode and prepare in order, ahead of the model, in a few threads.

    Args:
        requests: those with an error pass through.
        skills: prepares, and says how many frames a video file becomes; frames in memory stay as they are.
        frames: the rule by which they are chosen, see `plait.processing.videos.chooser`.
        ahead: items that are decoded or waiting at a time.

    Returns:
        One `Ready` per request; what fails carries its `error`.
    """

    choose = chooser(frames, skills.num_frames)

    def ready(request: Request) -> Ready:
        if request.error:
            return Ready(request, error=request.error)
        try:
            value, size = request.value, (0, 0)
            if request.kind == "image":
                value = [load_image(one) for one in value] if isinstance(value, list) else load_image(value)
                size = value[0].size if isinstance(value, list) else value.size
            elif request.kind == "video":
                count = skills.num_frames
                value = value if isinstance(value, list) else load_video(value, count, choose=choose).frames
                size = value[0].size
            elif request.kind == "audio":
                rate = getattr(skills, "sampling_rate", 16000)
                if isinstance(value, np.ndarray):
                    value = resample(value, request.sampling_rate or rate, rate, request.name)
                else:
                    value = load_audio(value, sampling_rate=rate)
            return Ready(request, skills.prepare(request.kind, value), size)
        except (ValueError, OSError) as error:
            return Ready(request, error=" ".join(str(error).split()))

    waiting: deque[Future[Ready]] = deque()
    source = iter(requests)
    with ThreadPoolExecutor(_LOADERS) as pool:
        try:
            while True:
                # refilled as results are taken, so that no more than `ahead` pictures lie in memory
                for request in islice(source, max(0, ahead - len(waiting))):
                    waiting.append(pool.submit(ready, request))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:  # whoever reads may stop early: what was not begun need not be
            for future in waiting:
                future.cancel()
