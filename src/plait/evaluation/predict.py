"""How predictions are made: items x model -> prediction rows, every answer through the response cache.

    prompt: words + pictures -> reply           rank_choices: likelihood of every choice -> index
    retrieve: vectors both directions [-> the k best by the match head] -> rank and nearest ids
    rank_answers: the best of a list of answers
    zero_shot: media x class sentences -> scores    choose_text: media x one text per choice -> index
    class_scores: a trained head -> scores      decide: words x media x a trained head -> the word of the best class
    locate, detect, segment: boxes, boxes of classes, masks
    similarity: cosine of two texts

A row has id, prediction (what is scored), raw (what the model said) and prompt. Words, layout, frames and decoding are
those of the model's family (`model.asking`); scores that are NaN or infinite are refused here, before they are kept.
Media are opened batch by batch, never all at once.
"""

from __future__ import annotations

import base64
import hashlib
import io
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.base import Item, Method, Task
from plait.evaluation.cache import ResponseCache, collect, key_of
from plait.evaluation.files import MediaFiles, frames_of
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.metrics.checks import finite
from plait.metrics.replies import LETTERS
from plait.metrics.retrieval import ranks
from plait.processing.videos import chooser
from plait.types import Ask, Decoding, Modality

Row = dict[str, Any]
File = tuple[Modality, Path | bytes]
_NEAREST = 10
NOT_RESCORED = -100.0
"""Of pairs that the match head never sees, as released: behind every logit."""
_CHUNK = 512
_TURNS = 5
"""Earlier turns of a dialogue that are kept, so that long answers leave room in a context of 2048."""


@dataclass
class Question:
    """What is asked of a model about an item, before its media are opened.

    Attributes:
        item: gives the part of a video that is meant.
        files: its media.
        words, second: as in `plait.types.Ask`.
    """

    item: Item
    files: Sequence[File] = ()
    words: str = ""
    second: str | None = None


@dataclass
class Setting:
    """Everything a method needs beside the items.

    Attributes:
        task, model: who is asked what.
        files, cache: media of the data set, and answers that are kept.
        decoding, num_frames, frames: what the run uses, see `plait.evaluation.run.used_by`.
        batch_size: questions per forward pass.
        show_progress: None shows a bar when the work takes longer than about two seconds.
        rerank: the best of a retrieval that the match head scores anew.
        answers: a list from which every answer is.
        multi_scale: see `plait.evaluation.run.Options`.
    """

    task: Task
    model: Any
    files: MediaFiles
    cache: ResponseCache
    decoding: Decoding
    num_frames: int
    frames: str = "time"
    batch_size: int = 8
    show_progress: bool | None = None
    rerank: int = 0
    answers: Sequence[str] = ()
    multi_scale: bool = False

    def media(self, item: Item, modalities: Sequence[Modality]) -> list[File]:
        """The files of an item, of the given modalities. Raises ValueError for one that is missing."""
        found: list[File] = []
        for modality, name in item.media(modalities):
            if (file := self.files.find(name, modality)) is None:
                raise ValueError(f"expected the {modality} of item {item.id} below {self.files.root}, got no {name}")
            found.append((modality, file))
        return found

    def first(self, items: Sequence[Item], modalities: Sequence[Modality]) -> list[File]:
        """The first medium of every item."""
        return [self.media(item, modalities)[0] for item in items]

    def relative(self, file: Path | bytes) -> str:
        """How a file is called in keys: independent of where the data set lies; bytes by their hash."""
        # a cache stays good when the data set moves to another folder
        is_bytes = isinstance(file, bytes)
        return hashlib.sha256(file).hexdigest() if is_bytes else file.relative_to(self.files.root).as_posix()

    def ask(
        self, keyed: Sequence[tuple[str, Any]], ask: Callable[[list[Any]], Sequence[Any]], what: str = ""
    ) -> list[Any]:
        """Answers in the order of the questions; those in the cache are not asked, equal keys once.

        Args:
            keyed: (key, question).
            ask: a batch of questions -> answers that JSON holds.
            what: words of the progress bar; the task's name without it.
        """
        size, bar = self.batch_size, self.show_progress
        found = collect(dict(keyed), ask, self.cache, batch_size=size, what=what or self.task.name, show_progress=bar)
        return [found[key] for key, _ in keyed]

    def put(self, kind: str, questions: Sequence[Question], ask: Callable[[list[Ask]], Any]) -> list[Any]:
        """Answers to questions about media, see `ask`.

        Args:
            kind: of the answer, part of its key.
            questions: whose media are opened when their batch is asked.
            ask: opened questions -> answers, as a list or an array.
        """
        keyed = []
        for one in questions:
            # frames follow from the file, the part that is meant and the setting, which is in the cache's name
            part = (one.item.media_start, one.item.media_end) if any(m == "video" for m, _ in one.files) else ()
            key = key_of(kind, one.words, one.second, [self.relative(file) for _, file in one.files], *part)
            keyed.append((key, one))

        def opened(batch: list[Question]) -> Sequence[Any]:
            found = ask([self.opened(one) for one in batch])
            return found.tolist() if isinstance(found, np.ndarray) else found

        return self.ask(keyed, opened)

    def opened(self, question: Question) -> Ask:
        """A question with its media decoded; several videos are one after the other."""
        images, video, audio, item = [], [], None, question.item
        for modality, file in question.files:
            if modality == "image":
                images.append(load_image(file))
            elif modality == "video":
                choose = chooser(self.frames, self.num_frames, item.media_start, item.media_end)
                video += frames_of(file, self.num_frames, choose)
            else:
                audio = load_audio(file, sampling_rate=self.model.asking.sampling_rate)
        return Ask(question.words, tuple(images), tuple(video), audio, question.second)


def prompt(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Ask every item's question and take the reply, stripped. Later turns of a dialogue are asked behind the earlier.

    A turn has its number as `meta["turn"]`; the turns of one dialogue are those of one group.
    """
    rows: dict[str, Row] = {}
    said: dict[str | None, list[tuple[str, str]]] = defaultdict(list)
    asking = setting.model.asking
    # turn by turn over all dialogues: batches stay full, and every reply is there when the next turn
    # needs it
    for turn in sorted({item.meta.get("turn", 0) for item in items}):
        asked = [item for item in items if item.meta.get("turn", 0) == turn]
        own = [asking.prompt(setting.task.kind, item) for item in asked]
        earlier = [said[item.group][-_TURNS:] if "turn" in item.meta else [] for item in asked]
        words = [asking.dialogue(turns, one) for turns, one in zip(earlier, own, strict=True)]
        for item, one, row in zip(asked, own, replies(asked, words, setting), strict=True):
            rows[item.id] = row
            if "turn" in item.meta:
                said[item.group].append((one, row["prediction"]))
    return [rows[item.id] for item in items]


def replies(items: Sequence[Item], wordings: Sequence[str], setting: Setting) -> list[Row]:
    """The model's replies to words beside the images, or the frames of the video, of each item.

    Args:
        items: give the media.
        wordings: what is asked of each.
        setting: model, decoding and frames.

    Returns:
        Rows whose prediction is the reply, stripped, and whose raw is all of it.
    """
    seen = [medium for medium in setting.task.media if medium in ("image", "video")]
    questions = [Question(item, setting.media(item, seen), words) for item, words in zip(items, wordings, strict=True)]
    said = setting.put("prompt", questions, lambda asks: setting.model.generate(asks, setting.decoding))
    rows = []
    for one, reply in zip(questions, said, strict=True):
        kinds = [modality for modality, _ in one.files]
        # the placeholders alone count for the text, so that no picture need be opened again
        frames = ("",) * (setting.num_frames * kinds.count("video"))
        text = setting.model.prompt(Ask(one.words, images=("",) * kinds.count("image"), video=frames))
        rows.append({"id": one.item.id, "prediction": reply.strip(), "raw": reply, "prompt": text})
    return rows


def rank_choices(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The choice that the model finds likeliest after the question; for letter prompts the choices are the letters."""
    rows = []
    for item in items:
        words = setting.model.asking.prompt(setting.task.kind, item)
        choices = item.choices or []
        tails = list(LETTERS[: len(choices)]) if setting.task.kind == "few_shot" else choices
        rows.append((item, words, [(words, f" {tail}") for tail in tails]))
    # a pair of question and choice is asked once, however many items have it
    keyed = [(key_of("likelihood", *pair), pair) for _, _, pairs in rows for pair in pairs]
    found = iter(setting.ask(keyed, setting.model.likelihoods))
    scores = [_checked(item, [next(found) for _ in pairs]) for item, _, pairs in rows]
    return [
        {"id": item.id, "prediction": int(np.argmax(own)), "raw": own, "prompt": words}
        for (item, words, _), own in zip(rows, scores, strict=True)
    ]


def _checked(item: Item, scores: Any) -> list[float]:
    """Finite scores of an item, to nine digits, which is all that float32 holds. ValueError names the item."""
    return [float(f"{value:.9g}") for value in finite(scores, f"scores of item {item.id}").tolist()]


def locate(items: Sequence[Item], setting: Setting) -> list[Row]:
    """A box for words: asked for in words, or from a grounding head where the model has one.

    Rows also have image_size, by which a rule brings fractions and pixels together.
    """
    files = setting.first(items, ["image"])
    if "ground" not in setting.model.capabilities:
        rows = prompt(items, setting)
    else:
        questions = [Question(item, [file], item.text or "") for item, file in zip(items, files, strict=True)]
        rows = [
            {"id": i.id, "prediction": ", ".join(f"{x:.6f}" for x in _checked(i, box)), "raw": box, "prompt": i.text}
            for i, box in zip(items, setting.put("ground", questions, setting.model.ground), strict=True)
        ]
    for item, (_, file), row in zip(items, files, rows, strict=True):
        row["image_size"] = list(item.image_size or load_image(file).size)
    return rows


def _vectors(values: Sequence[tuple[Modality, Any]], setting: Setting, what: str) -> np.ndarray:
    """Unit vectors (n, dim) of media files and texts, equal ones embedded once."""

    def ask(batch: list[Any]) -> list[str]:
        # the cache holds JSON: float32 as base64 comes back bit for bit
        made = finite(setting.model.embed([{modality: value} for modality, value in batch]), f"vectors of {what}")
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in made]

    keyed = [(key_of(m, value if m == "text" else setting.relative(value)), (m, value)) for m, value in values]
    return np.stack([np.frombuffer(base64.b64decode(one), "<f4") for one in setting.ask(keyed, ask, what)])


def retrieve(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Every medium looks for its captions and every caption for its medium; ties count against the model."""
    captions = [(i, text) for i, item in enumerate(items) for text in item.captions or []]
    if not captions:
        raise ValueError(f"expected captions to retrieve for {setting.task.name}, got none in this split")
    media = _vectors(setting.first(items, setting.task.media), setting, "media")
    texts = _vectors([("text", text) for _, text in captions], setting, "captions")
    owner, numbers = np.array([i for i, _ in captions]), np.arange(len(items))
    ids, names = [item.id for item in items], [f"{items[i].id}#{n}" for n, (i, _) in enumerate(captions)]
    medium = setting.task.media[0]
    similarities = Similarities(media, texts)
    if setting.rerank:
        similarities = Rescored(media, texts, items, [text for _, text in captions], setting)
    rows: list[Row] = []
    for direction, own, mine, others, theirs in (
        (f"{medium}>text", ids, numbers, names, owner),
        (f"text>{medium}", names, owner, ids, numbers),
    ):
        # ranks need whole rows of similarities, and these are made for a few hundred queries at a time
        for start in range(0, len(own), _CHUNK):  # memory does not grow with the queries
            part = slice(start, start + _CHUNK)
            similarity = similarities.of_texts(part) if direction.startswith("text>") else similarities.of_media(part)
            found = ranks(similarity, mine[part, None] == theirs[None, :])
            nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :_NEAREST]
            for name, rank, near in zip(own[part], found, nearest, strict=True):
                raw = [others[i] for i in near]
                rows.append({"id": f"{direction}:{name}", "prediction": int(rank), "raw": raw, "prompt": ""})
    return rows


class Similarities:
    """Cosines of media (n, dim) with texts (m, dim), rows of queries against the whole gallery."""

    def __init__(self, media: np.ndarray, texts: np.ndarray) -> None:
        self.media, self.texts = media, texts

    def of_media(self, part: slice) -> np.ndarray:
        """(part, m)."""
        return self.media[part] @ self.texts.T

    def of_texts(self, part: slice) -> np.ndarray:
        """(part, n)."""
        return self.texts[part] @ self.media.T


class Rescored(Similarities):
    """The same, where the match head has scored the nearest of every query; all others are `NOT_RESCORED`.

    Every medium is opened and encoded once, with all texts that look at it or that it looks at.

    Source: mPLUG (arXiv 2205.12005); specification mPLUG-2, 7.3.
    """

    def __init__(
        self, media: np.ndarray, texts: np.ndarray, items: Sequence[Item], captions: Sequence[str], setting: Setting
    ) -> None:
        super().__init__(media, texts)
        k, wanted = setting.rerank, [set() for _ in items]
        self.near: dict[str, list[np.ndarray]] = {"media": [], "texts": []}
        for name, count in (("media", len(media)), ("texts", len(texts))):
            for start in range(0, count, _CHUNK):
                part = slice(start, start + _CHUNK)
                found = super().of_media(part) if name == "media" else super().of_texts(part)
                self.near[name] += list(np.argsort(-found, axis=1, kind="stable")[:, :k])
        for i, near in enumerate(self.near["media"]):
            wanted[i] |= set(near.tolist())
        for j, near in enumerate(self.near["texts"]):
            for i in near.tolist():
                wanted[i].add(j)
        files, keyed = setting.first(items, setting.task.media), []
        for item, file, numbers in zip(items, files, wanted, strict=True):
            told = [captions[j] for j in sorted(numbers)]
            part = (item.media_start, item.media_end) if file[0] == "video" else ()
            keyed.append((key_of("match", setting.relative(file[1]), told, *part), (Question(item, [file]), told)))

        def ask(batch: list[tuple[Question, list[str]]]) -> list[list[float]]:
            return [
                finite(setting.model.match(setting.opened(one), told), "match scores").tolist() for one, told in batch
            ]

        self.scores = [
            dict(zip(sorted(numbers), found, strict=True))
            for numbers, found in zip(wanted, setting.ask(keyed, ask, "matches"), strict=True)
        ]

    def of_media(self, part: slice) -> np.ndarray:
        """(part, m)."""
        rows = range(len(self.media))[part]
        found = np.full((len(rows), len(self.texts)), NOT_RESCORED)
        for row, i in enumerate(rows):
            found[row, self.near["media"][i]] = [self.scores[i][j] for j in self.near["media"][i].tolist()]
        return found

    def of_texts(self, part: slice) -> np.ndarray:
        """(part, n)."""
        rows = range(len(self.texts))[part]
        found = np.full((len(rows), len(self.media)), NOT_RESCORED)
        for row, j in enumerate(rows):
            found[row, self.near["texts"][j]] = [self.scores[i][j] for i in self.near["texts"][j].tolist()]
        return found


def rank_answers(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The best answer of the published list to every question, by the family's ranking."""
    asking, seen = setting.model.asking, [m for m in setting.task.media if m in ("image", "video")]
    questions = [Question(item, setting.media(item, seen), asking.prompt(setting.task.kind, item)) for item in items]
    said = setting.put("ranked", questions, lambda asks: setting.model.choose(asks, setting.answers))
    return [{"id": i.id, "prediction": x, "raw": x, "prompt": q.words} for i, x, q in zip(items, said, questions)]


def zero_shot(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Scores of every class: similarity of the medium with a sentence about the class; -1 for one without a name."""
    names = class_names(items)
    # synonyms behind a comma (ImageNet) make longer sentences, not better ones
    sentences = [setting.task.labels.format(label=names[i].replace("_", " ").split(",")[0]) for i in sorted(names)]
    media = _vectors(setting.first(items, setting.task.media), setting, "media")
    classes = _vectors([("text", sentence) for sentence in sentences], setting, "classes")
    # -1 is the least a cosine can be: a class without a name is never chosen first
    scores = np.full((len(items), max(names) + 1), -1.0)
    scores[:, sorted(names)] = media @ classes.T
    return _class_rows(items, scores, setting.task.labels)


def class_names(items: Sequence[Item]) -> dict[int, str]:
    """Names of classes by index, from the data set's own list or else as the items spell them.

    Raises:
        ValueError: where neither tells.
    """
    names: dict[int, str] = {}
    for item in items:
        if "classes" in item.meta:
            return item.meta["classes"]
        if item.labels is not None and item.label_names is not None:
            names |= dict(zip(item.labels, item.label_names))
        elif isinstance(item.label, int) and item.label_name is not None:
            names[item.label] = item.label_name
    if not names:
        raise ValueError("expected class names for zero-shot classification, got none; add the file that lists them")
    return names


def class_scores(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Scores of every class by a trained head; of texts, or of one medium."""
    if "text" in setting.task.media:
        questions = [Question(item, (), item.text or "", item.text_pair) for item in items]
    else:
        files = setting.first(items, setting.task.media)
        questions = [Question(item, [file]) for item, file in zip(items, files, strict=True)]
    return _class_rows(items, setting.put("classes", questions, setting.model.scores), "")


def _class_rows(items: Sequence[Item], scores: Any, sentence: str) -> list[Row]:
    """Rows with the five best classes, first index first among equals; all scores are kept in `raw`."""
    raw = [_checked(item, row) for item, row in zip(items, scores, strict=True)]
    best = [np.argsort(-np.array(row), kind="stable")[:5].tolist() for row in raw]
    return [{"id": i.id, "prediction": b, "raw": r, "prompt": sentence} for i, b, r in zip(items, best, raw)]


def decide(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The class that a trained head gives to words about media, as the word that the benchmark uses.

    Raises ValueError where the head has another number of classes than words.
    """
    words = setting.model.asking.class_words(setting.task.kind)
    questions = [Question(item, setting.media(item, ["image"]), item.text or item.question or "") for item in items]
    rows = []
    for one, scores in zip(questions, setting.put("decide", questions, setting.model.scores), strict=True):
        if len(scores) != len(words):
            raise ValueError(f"expected {len(words)} classes of {setting.model.name}, got {len(scores)} scores")
        best = words[int(np.argmax(_checked(one.item, scores)))]
        rows.append({"id": one.item.id, "prediction": best, "raw": scores, "prompt": one.words})
    return rows


def choose_text(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The choice whose sentence fits the medium best, by a head or by the space of an embedder.

    A head scores question and choice beside the medium, as its family words them; without one the sentence that lies
    nearest to the medium is chosen.
    """
    asking = setting.model.asking
    texts = [[asking.choice(item.question or "", choice) for choice in item.choices or []] for item in items]
    media = setting.first(items, setting.task.media)
    if "decide" in setting.model.capabilities:
        questions = [
            Question(item, [file], text)
            for item, file, row in zip(items, media, texts, strict=True)
            for text in row
        ]  # fmt: skip
        # the head has one output: how well sentence and sound go together
        flat = [row[0] for row in setting.put("choice", questions, setting.model.scores)]
    else:
        vectors = _vectors(media, setting, "media").repeat([len(row) for row in texts], axis=0)
        choices = _vectors([("text", text) for row in texts for text in row], setting, "choices")
        flat = (vectors * choices).sum(axis=1)
    found, rows = iter(flat), []
    for item, row in zip(items, texts, strict=True):
        scores = _checked(item, [next(found) for _ in row])
        rows.append({"id": item.id, "prediction": int(np.argmax(scores)), "raw": scores, "prompt": row[0]})
    return rows


def detect(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Boxes of known classes, in pixels."""
    return _per_picture(items, setting, lambda asks: setting.model.detect([ask.images[0] for ask in asks]))


def segment(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Masks, kept as PNG in base64."""
    from PIL import Image

    def ask(asks: list[Ask]) -> list[str]:
        made = []
        # a model of the user's own may know none
        looks = {"multi_scale": True} if setting.multi_scale else {}
        for mask in setting.model.segment([ask.images[0] for ask in asks], **looks):
            buffer = io.BytesIO()
            Image.fromarray(mask).save(buffer, "PNG")
            made.append(base64.b64encode(buffer.getvalue()).decode())
        return made

    return _per_picture(items, setting, ask)


def _per_picture(items: Sequence[Item], setting: Setting, ask: Callable[[list[Ask]], Sequence[Any]]) -> list[Row]:
    """Rows whose prediction is what the model makes of each item's picture."""
    questions = [Question(item, [file]) for item, file in zip(items, setting.first(items, ["image"]), strict=True)]
    found = setting.put(setting.task.name, questions, ask)
    return [{"id": i.id, "prediction": one, "raw": "", "prompt": ""} for i, one in zip(items, found, strict=True)]


def similarity(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Cosine of two texts in the space of an embedder, to six digits."""
    first = _vectors([("text", item.text) for item in items], setting, "texts")
    second = _vectors([("text", item.text_pair) for item in items], setting, "texts")
    cosines = np.round((first * second).sum(axis=1), 6).tolist()
    return [{"id": i.id, "prediction": x, "raw": [x], "prompt": ""} for i, x in zip(items, cosines)]


METHODS: Mapping[Method, Callable[[Sequence[Item], Setting], list[Row]]] = {
    "prompt": prompt, "retrieve": retrieve, "zero_shot": zero_shot, "choose_text": choose_text,
    "rank_choices": rank_choices, "rank_answers": rank_answers, "class_scores": class_scores, "decide": decide,
    "locate": locate, "detect": detect, "segment": segment, "similarity": similarity,
}  # fmt: skip
