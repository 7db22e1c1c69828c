"""What a model is asked: item -> words, as the release of its family words them.

A template is chosen by the task and by the model's family; how words and pictures are laid out for a model (roles,
placeholders) is the matter of `plait.evaluation.models`.

How predictions are made: items x model -> prediction rows, every answer through the response cache.

    prompt: words + pictures -> reply           rank_choices: likelihood of every choice -> index
    retrieve: vectors both ways -> rank and nearest ids
    zero_shot: media x class sentences -> scores    choose_text: media x one text per choice -> index
    class_scores: a trained head -> scores      decide: words x media x a trained head -> the word of the best class
    locate, detect, segment: boxes, boxes of classes, masks
    similarity: cosine of two texts

A row has id, prediction (what is scored), raw (what the model said) and prompt.
"""

from __future__ import annotations

import base64
import hashlib
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plait.evaluation.cache import ResponseCache, collect, key_of
from plait.evaluation.media_files import MediaFiles, frames_of, media_of
from plait.evaluation.models import Ask
from plait.evaluation.readers import Item
from plait.evaluation.readers.choices import LETTERS
from plait.evaluation.tasks import Task, Way
from plait.metrics.retrieval import ranks
from plait.types import Modality

Template = Callable[[Item], str]

SHORT_ANSWER = "Answer the question using a single word or phrase."
LETTER_ANSWER = "Answer with the option’s letter from the given choices directly."
CAPTION = "Provide a one-sentence caption for the provided image."
MAX_QUESTION_WORDS = 50
PLACEHOLDER = re.compile(r"<image (\d)>")


def _caption(item: Item) -> str:
    return CAPTION


def _question(item: Item) -> str:
    return item.question or ""


def _short(item: Item) -> str:
    return f"{item.question} {SHORT_ANSWER}"


def _letters(item: Item) -> str:
    return f"{item.context or 'N/A'}\n{_letters_without_hint(item)}"


def _letters_without_hint(item: Item) -> str:
    return f"{_options(item)}\n{LETTER_ANSWER}"


def _options(item: Item) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices or [])]
    return "\n".join([item.question or "", *lines])


def _mme(item: Item) -> str:
    question = (item.question or "").replace("Please answer yes or no.", "").strip()
    return f"{question}\n{SHORT_ANSWER}"


def _mmmu(item: Item) -> str:
    return _letters_without_hint(item) if item.choices else f"{item.question}\n{SHORT_ANSWER}"


def _statement(item: Item) -> str:
    return f"{item.text} Is this statement true? Answer yes or no."


def _entailment(item: Item) -> str:
    return f"{item.text} Does the picture entail, contradict or neither? Answer entailment, contradiction or neutral."


def _locate(item: Item) -> str:
    return f"Give the box of: {item.text}. Answer with x1, y1, x2, y2 as fractions of width and height."


def _few_shot(item: Item) -> str:
    subject = (item.category or "").replace("_", " ")
    head = f"The following are multiple choice questions (with answers) about {subject}.\n\n"
    shown = [f"{_options(one)}\nAnswer: {LETTERS[one.answer_index or 0]}\n\n" for one in item.meta.get("examples", [])]
    return head + "".join(shown) + f"{_options(item)}\nAnswer:"


def _text_letters(item: Item) -> str:
    if not item.choices:
        return _plain(item)
    passage = f"{item.context}\n" if item.context else ""
    return f"{passage}{_options(item)}\nAnswer:"


def _plain(item: Item) -> str:
    return f"{item.question}\nAnswer:"


def _pair(item: Item) -> str:
    return item.text or ""


def _cleaned(item: Item) -> str:
    """mPLUG-2: lower case, no punctuation, 50 words."""
    words = re.sub(r"([,.'!?\"()*#:;~])", "", (item.question or "").lower()).replace("-", " ").replace("/", " ")
    return " ".join(words.split()[:MAX_QUESTION_WORDS])


def _nothing(item: Item) -> str:
    return ""


TEMPLATES: dict[str, Template] = {
    "caption": _caption,
    "question": _question,
    "short": _short,
    "letters": _letters,
    "letters_without_hint": _letters_without_hint,
    "mme": _mme,
    "mmmu": _mmmu,
    "statement": _statement,
    "entailment": _entailment,
    "locate": _locate,
    "few_shot_letters": _few_shot,
    "text_letters": _text_letters,
    "plain": _plain,
    "pair": _pair,
}
"""Templates by the name that a task gives."""

BY_FAMILY: dict[str, dict[str, Template]] = {"mplug2": {"short": _cleaned, "question": _cleaned, "caption": _nothing}}
"""Family -> template name -> what its release asks instead."""


def words_for(template: str, family: str, item: Item) -> str:
    """The words of a template for an item. Raises ValueError for an unknown template."""
    if template not in TEMPLATES:
        raise ValueError(f"expected a prompt of {', '.join(TEMPLATES)}, got {template!r}")
    return BY_FAMILY.get(family, {}).get(template, TEMPLATES[template])(item)


FURTHER_TURN: dict[str, str] = {
    "mplug_owl": "{question}\nAI: {answer}\nHuman: ",
    "mplug_owl2": "{question} ASSISTANT: {answer}</s>USER: ",
}
"""Family -> what a turn of a dialogue that is over looks like in front of the words of the next one."""


def in_dialogue(family: str, earlier: Sequence[tuple[str, str]], words: str) -> str:
    """Words behind the turns (question, answer) of a dialogue; turns of other families are lines."""
    form = FURTHER_TURN.get(family, "{question}\n{answer}\n")
    return "".join(form.format(question=question, answer=answer) for question, answer in earlier) + words


Row = dict[str, Any]
_NEAREST = 10
_CHUNK = 512
_TURNS = 5
"""Earlier turns of a dialogue that are kept, so that long answers leave room in a context of 2048."""


@dataclass
class Setting:
    """Everything a way needs beside the items."""

    task: Task
    model: Any
    files: MediaFiles
    cache: ResponseCache
    batch_size: int = 8
    show_progress: bool | None = None

    def media(self, item: Item, modalities: Sequence[Modality]) -> list[tuple[Modality, Path | bytes]]:
        """The files of an item; ValueError for one that is missing."""
        found: list[tuple[Modality, Path | bytes]] = []
        for modality, name in media_of(item, modalities):
            if (file := self.files.find(name, modality)) is None:
                raise ValueError(f"expected the {modality} of item {item.id} below {self.files.root}, got no {name}")
            found.append((modality, file))
        return found

    def relative(self, file: Path | bytes) -> str:
        """How a file is called in keys: independent of where the data set lies; bytes by their hash."""
        is_bytes = isinstance(file, bytes)
        return hashlib.sha256(file).hexdigest() if is_bytes else file.relative_to(self.files.root).as_posix()

    def collect(self, questions: Mapping[str, Any], ask: Callable[[list[Any]], Sequence[Any]], what: str) -> Mapping:
        """`plait.evaluation.cache.collect` with this setting's cache and batch size."""
        size, bar = self.batch_size, self.show_progress
        return collect(questions, ask, self.cache, batch_size=size, what=what, show_progress=bar)


def prompt(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Ask every item's question and take the reply, stripped. Later turns of a dialogue are asked behind the earlier.

    A turn has its number as `meta["turn"]`; the turns of one dialogue are those of one group.
    """
    rows: dict[str, Row] = {}
    said: dict[str | None, list[tuple[str, str]]] = defaultdict(list)
    for turn in sorted({item.meta.get("turn", 0) for item in items}):
        asked = [item for item in items if item.meta.get("turn", 0) == turn]
        own = [words_for(setting.task.prompt, setting.model.family, item) for item in asked]
        earlier = [said[item.group][-_TURNS:] if "turn" in item.meta else [] for item in asked]
        words = [in_dialogue(setting.model.family, turns, one) for turns, one in zip(earlier, own)]
        for item, one, row in zip(asked, own, _prompted(asked, words, setting)):
            rows[item.id] = row
            if "turn" in item.meta:
                said[item.group].append((one, row["prediction"]))
    return [rows[item.id] for item in items]


def _prompted(items: Sequence[Item], wordings: Sequence[str], setting: Setting) -> list[Row]:
    task, model = setting.task, setting.model
    decoding = task.decoding_of(model.family)
    questions, prompts, keys = {}, [], []
    for item, words in zip(items, wordings):
        files = setting.media(item, [m for m in task.media if m in ("image", "video")])
        count = sum(1 if modality == "image" else task.num_frames for modality, _ in files)
        prompts.append(model.prompt(Ask(words, ("",) * count)))
        key = key_of("prompt", prompts[-1], [setting.relative(file) for _, file in files])
        questions[key] = (words, files)
        keys.append(key)

    def ask(batch: list[Any]) -> list[str]:
        return model.generate([Ask(words, _pictures(files, task)) for words, files in batch], decoding)

    replies = setting.collect(questions, ask, task.name)
    return [
        {"id": item.id, "prediction": replies[key].strip(), "raw": replies[key], "prompt": text}
        for item, key, text in zip(items, keys, prompts)
    ]


def _pictures(files: Sequence[tuple[Modality, Path | bytes]], task: Task) -> tuple[Any, ...]:
    pictures: list[Any] = []
    for modality, file in files:
        pictures += frames_of(file, task.num_frames) if modality == "video" else [file]
    return tuple(pictures)


def rank_choices(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The choice that the model finds likeliest after the question; for letter prompts the choices are the letters."""
    template = setting.task.prompt
    questions, keys, prompts = {}, [], []
    for item in items:
        words = words_for(template, setting.model.family, item)
        tails = list(LETTERS[: len(item.choices or [])]) if template.endswith("letters") else item.choices or []
        pairs = [(words, f" {tail}") for tail in tails]
        keys.append([key_of("likelihood", *pair) for pair in pairs])
        questions |= dict(zip(keys[-1], pairs))
        prompts.append(words)
    found = setting.collect(questions, setting.model.log_likelihood, setting.task.name)
    scores = [[found[key] for key in row] for row in keys]
    return [
        {"id": item.id, "prediction": int(np.argmax(row)), "raw": row, "prompt": words}
        for item, row, words in zip(items, scores, prompts)
    ]


def locate(items: Sequence[Item], setting: Setting) -> list[Row]:
    """A box for words: asked for in words, or from a grounding head where the model has one."""
    from plait.media.image import load_image

    if not hasattr(setting.model, "ground"):
        rows = prompt(items, setting)
    else:
        rows = _ground(items, setting)
    for item, row in zip(items, rows):
        ((_, file),) = setting.media(item, ["image"])
        row["image_size"] = list(item.image_size or load_image(file).size)
    return rows


def _ground(items: Sequence[Item], setting: Setting) -> list[Row]:
    questions, keys = {}, []
    for item in items:
        ((_, file),) = setting.media(item, ["image"])
        key = key_of("ground", item.text, setting.relative(file))
        questions[key] = Ask(item.text or "", (file,))
        keys.append(key)
    boxes = setting.collect(questions, lambda asks: setting.model.ground(asks).tolist(), setting.task.name)
    return [
        {"id": i.id, "prediction": ", ".join(f"{x:.6f}" for x in boxes[k]), "raw": boxes[k], "prompt": i.text}
        for i, k in zip(items, keys)
    ]


def _vectors(values: Sequence[tuple[Modality, Any]], setting: Setting, what: str) -> np.ndarray:
    """Unit vectors (n, dim) of media files and texts, equal ones embedded once."""
    keys = [key_of(m, value if m == "text" else setting.relative(value)) for m, value in values]

    def ask(batch: list[Any]) -> list[str]:
        made = setting.model.embed([{modality: value} for modality, value in batch])
        return [base64.b64encode(row.astype("<f4").tobytes()).decode() for row in made]

    kept = setting.collect(dict(zip(keys, values)), ask, what)
    return np.stack([np.frombuffer(base64.b64decode(kept[key]), "<f4") for key in keys])


def retrieve(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Every medium looks for its captions and every caption for its medium; ties count against the model."""
    captions = [(i, text) for i, item in enumerate(items) for text in item.captions or []]
    if not captions:
        raise ValueError(f"expected captions to retrieve for {setting.task.name}, got none in this split")
    media = _vectors([setting.media(item, setting.task.media)[0] for item in items], setting, "media")
    texts = _vectors([("text", text) for _, text in captions], setting, "captions")
    owner = np.array([i for i, _ in captions])
    names = [f"{items[i].id}#{n}" for n, (i, _) in enumerate(captions)]
    kinds = (setting.task.media[0], "text")
    there = _ranked([item.id for item in items], media, texts, names, np.arange(len(items)), owner, kinds)
    back = _ranked(names, texts, media, [item.id for item in items], owner, np.arange(len(items)), kinds[::-1])
    return there + back


def _ranked(
    ids: Sequence[str],
    queries: np.ndarray,
    gallery: np.ndarray,
    names: Sequence[str],
    mine: Any,
    theirs: Any,
    kinds: Any,
) -> list[Row]:
    """Rank of the best right one and the nearest ids, chunk by chunk: memory does not grow with the queries."""
    rows: list[Row] = []
    for start in range(0, len(queries), _CHUNK):
        similarity = queries[start : start + _CHUNK] @ gallery.T
        found = ranks(similarity, mine[start : start + _CHUNK, None] == theirs[None, :])
        nearest = np.argsort(-similarity, axis=1, kind="stable")[:, :_NEAREST]
        for name, rank, near in zip(ids[start : start + _CHUNK], found, nearest):
            key = f"{kinds[0]}>{kinds[1]}:{name}"
            rows.append({"id": key, "prediction": int(rank), "raw": [names[i] for i in near], "prompt": ""})
    return rows


def zero_shot(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Scores of every class: similarity of the medium with a sentence about the class; -1 for one without a name."""
    names = class_names(items)
    sentences = [setting.task.labels.format(label=names[i].replace("_", " ").split(",")[0]) for i in sorted(names)]
    media = _vectors([setting.media(item, setting.task.media)[0] for item in items], setting, "media")
    classes = _vectors([("text", sentence) for sentence in sentences], setting, "classes")
    scores = np.full((len(items), max(names) + 1), -1.0)
    scores[:, sorted(names)] = media @ classes.T
    return _scored(items, scores, setting.task.labels)


def class_names(items: Sequence[Item]) -> dict[int, str]:
    """Names of classes by index, from the data set's own list or else as the items spell them."""
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
    questions, keys = {}, []
    for item in items:
        if "text" in setting.task.media:
            value: Any = item.text if item.text_pair is None else (item.text, item.text_pair)
            key = key_of("classes", item.text, item.text_pair)
        else:
            value = setting.media(item, setting.task.media)[0][1]
            key = key_of("classes", setting.relative(value))
        questions[key] = value
        keys.append(key)
    found = setting.collect(questions, lambda batch: setting.model.class_scores(batch).tolist(), setting.task.name)
    return _scored(items, np.array([found[key] for key in keys]), "")


def _scored(items: Sequence[Item], scores: np.ndarray, sentence: str) -> list[Row]:
    """Rows with the five best classes, first index first among equals; all scores are kept in `raw`."""
    best = np.argsort(-scores, axis=1, kind="stable")[:, :5].tolist()
    raw = [[round(float(x), 6) for x in row] for row in scores]
    return [{"id": i.id, "prediction": b, "raw": r, "prompt": sentence} for i, b, r in zip(items, best, raw)]


def decide(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The class that a trained head gives to words about media, as the word that the benchmark uses."""
    words = class_words(setting.task, setting.model)
    questions, keys, prompts = {}, [], []
    for item in items:
        files = [file for _, file in setting.media(item, ["image"])]
        prompts.append(item.text or item.question or "")
        keys.append(key_of("decide", prompts[-1], [setting.relative(file) for file in files]))
        questions[keys[-1]] = Ask(prompts[-1], tuple(files))
    found = setting.collect(questions, lambda asks: setting.model.decide(asks).tolist(), setting.task.name)
    rows = []
    for item, key, text in zip(items, keys, prompts):
        scores = found[key]
        if len(scores) != len(words):
            raise ValueError(f"expected {len(words)} classes of {setting.model.name}, got {len(scores)} scores")
        rows.append({"id": item.id, "prediction": words[int(np.argmax(scores))], "raw": scores, "prompt": text})
    return rows


def class_words(task: Task, model: Any) -> tuple[str, ...]:
    """What the classes of a head mean: as its configuration names them, else as its family's release orders them.

    Raises ValueError where neither tells.
    """
    if model.class_words and not all(word.startswith("LABEL_") for word in model.class_words):
        return model.class_words
    if (known := task.class_words.get(model.family)) is None:
        raise ValueError(
            f"expected names of the classes in id2label of {model.name}, got none; write the answers into config.json"
        )
    return known


def choose_text(items: Sequence[Item], setting: Setting) -> list[Row]:
    """The choice whose sentence " {question} answer: {choice}" a head scores highest beside the medium (ONE-PEACE's
    rule for AVQA), or that lies nearest to the medium in the space of an embedder."""
    texts = [[f" {item.question} answer: {choice}" for choice in item.choices or []] for item in items]
    media = [setting.media(item, setting.task.media)[0] for item in items]
    score = _scores_of_head if hasattr(setting.model, "decide") else _similarities
    rows = []
    for item, row, scores in zip(items, texts, score(media, texts, setting)):
        raw = [round(float(one), 6) for one in scores]
        rows.append({"id": item.id, "prediction": int(np.argmax(scores)), "raw": raw, "prompt": row[0]})
    return rows


def _similarities(media: Sequence[Any], texts: Sequence[Sequence[str]], setting: Setting) -> list[np.ndarray]:
    vectors = _vectors(media, setting, "media")
    flat = _vectors([("text", text) for row in texts for text in row], setting, "choices")
    ends = np.cumsum([len(row) for row in texts])
    return [part @ vector for part, vector in zip(np.split(flat, ends[:-1]), vectors)]


def _scores_of_head(media: Sequence[Any], texts: Sequence[Sequence[str]], setting: Setting) -> list[np.ndarray]:
    keys = [[key_of("choice", text, setting.relative(file)) for text in row] for (_, file), row in zip(media, texts)]
    asks = {k: Ask(t, audio=file) for (_, file), ks, ts in zip(media, keys, texts) for k, t in zip(ks, ts)}
    found = setting.collect(asks, lambda batch: setting.model.decide(batch).tolist(), setting.task.name)
    return [np.array([found[key][0] for key in row]) for row in keys]


def detect(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Boxes of known classes."""
    found = _per_picture(items, setting, setting.model.detect)
    return [{"id": item.id, "prediction": boxes, "raw": "", "prompt": ""} for item, boxes in zip(items, found)]


def segment(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Masks, kept as PNG in base64."""
    found = _per_picture(items, setting, lambda images: [_png(mask) for mask in setting.model.segment(images)])
    return [{"id": item.id, "prediction": mask, "raw": "", "prompt": ""} for item, mask in zip(items, found)]


def similarity(items: Sequence[Item], setting: Setting) -> list[Row]:
    """Cosine of two texts in the space of an embedder."""
    first = _vectors([("text", item.text) for item in items], setting, "texts")
    second = _vectors([("text", item.text_pair) for item in items], setting, "texts")
    cosines = np.round((first * second).sum(axis=1), 6).tolist()
    return [{"id": i.id, "prediction": x, "raw": [x], "prompt": ""} for i, x in zip(items, cosines)]


def _per_picture(items: Sequence[Item], setting: Setting, ask: Callable[[list[Any]], Sequence[Any]]) -> list[Any]:
    files = [setting.media(item, ["image"])[0][1] for item in items]
    keys = [key_of(setting.task.name, setting.relative(file)) for file in files]
    found = setting.collect(dict(zip(keys, files)), ask, setting.task.name)
    return [found[key] for key in keys]


def _png(mask: np.ndarray) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(mask).save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


WAYS: dict[Way, Callable[[Sequence[Item], Setting], list[Row]]] = {
    "prompt": prompt, "retrieve": retrieve, "zero_shot": zero_shot, "choose_text": choose_text,
    "rank_choices": rank_choices, "class_scores": class_scores, "decide": decide, "locate": locate, "detect": detect,
    "segment": segment, "similarity": similarity,
}  # fmt: skip
