"""`plait train finetune`: a model and rows of one's own -> plan, baselines, training, result, model directory.

model directory -> family -> `JOBS[task](Request)` -> Job (build, stage, predict, save)
    -> measured before and after on the rows held out: one number with an interval, beside the trivial answer

A family brings its tasks in `recipes/<family>.py` (`<family>_tasks.py` where those are long) as `JOBS`: task ->
function (Request) -> Job. Families that talk share theirs (`Talker`): a row -> its question and answer, or its turns ->
the family's conversation -> cross entropy.

What predictions are, per row: retrieval: vectors (n, dim) of media and of texts · classify, compare, vqa, audio_qa,
caption: a text · ground: a box · tag: scores by label · detect: rows of objects · segment: a map of classes · chat:
nats, the negative log likelihood of all answers.
"""

from __future__ import annotations

import json
import math
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.assistant import Assistant
from plait.data.conversation import is_heard, num_learned
from plait.data.reader import Reader, Reading, Rows, select
from plait.errors import UsageError
from plait.media.image import load_image
from plait.metrics.bootstrap import bootstrap_mean, bootstrap_ratio
from plait.metrics.boxes import box_hits
from plait.metrics.captions import caption_scores
from plait.metrics.detection import pictures_ap
from plait.metrics.retrieval import chance_at_k, hits_at_k
from plait.metrics.segmentation import confusion, scores_of
from plait.metrics.tagging import mean_average_precision
from plait.metrics.vqa import evalai
from plait.models.auto import FAMILIES, skills
from plait.places import atomic_directory, atomic_write, name_of
from plait.recipes.settings import UNPUBLISHED, Setting, setting_of
from plait.training.run import refuse_beside
from plait.training.stages import Objective, Recipe, Source, Stage, save_pair
from plait.types import Sample

Values = tuple[str, Sequence[float]]


def score(task: str, found: Any, samples: Sequence[Sample]) -> dict[str, Any]:
    """The metric of a task: `{metric, value, interval}`, the interval by the percentile bootstrap over rows (95 %).

    retrieval: recall at 1, the mean of both directions; classify, vqa: accuracy; caption: CIDEr; ground: share of boxes
    with an IoU of at least 0.5; detect: box AP, and mask AP where there are masks (AP is no mean over rows, so its
    interval is that of few resamples); segment: mIoU of all pixels together; chat: bits per byte of the answers, an end
    counted as a byte: low is good, and models with other vocabularies can be compared.

    Args:
        task: one of `TASKS`.
        found: what a job predicts, a value per row; retrieval: (media, texts), vectors (rows, dim) each.
        samples: the rows, in the same order.
    """
    if task == "chat":
        sizes = [sum(map(len, _spoken(sample))) for sample in samples]
        # A ratio of sums, not a mean of ratios: long answers count by their bytes.
        interval = bootstrap_ratio([float(nats) / math.log(2) for nats in found], sizes)
        found = {"value": interval.estimate, "interval": [interval.lower, interval.upper], "about": "low is good"}
        return {"metric": "bits per byte", **found}
    if task == "detect":
        return _average_precision(found, samples)
    if task == "segment":
        return _mean_iou(found, samples)
    if task == "tag":
        return _mean_precision(found, samples)
    name, values = _VALUES[task](found, samples)
    interval = bootstrap_mean([float(value) for value in values])
    return {"metric": name, "value": interval.estimate, "interval": [interval.lower, interval.upper]}


def trivial(task: str, train: Sequence[Sample], test: Sequence[Sample]) -> dict[str, Any]:
    """What needs no model: chance, the most frequent label, answer or caption of the training rows, their mean box, for
    conversations the frequencies of single bytes.

    Args:
        task: one of `TASKS`. train: rows that the answer is counted on. test: rows that it is scored on.

    Returns:
        As `score`, and `about`: what the answer is.
    """
    if task == "retrieval":
        same = same_concept(test)
        chance = float(np.mean([chance_at_k(int(row.sum()), len(test), 1) for row in same]))
        return {"metric": "recall@1", "value": chance, "interval": [chance, chance], "about": "chance"}
    if task == "audio_qa":
        interval = bootstrap_mean([1 / len(choices_of(sample)) for sample in test])
        found = {"value": interval.estimate, "interval": [interval.lower, interval.upper], "about": "chance"}
        return {"metric": "accuracy", **found}
    if task == "tag":
        counts = Counter(label for sample in train for label in labels_of(sample))
        return {**_mean_precision([dict(counts)] * len(test), test), "about": "labels by how often they are met"}
    if task == "ground":
        box = np.mean([shares(sample) for sample in train], axis=0)
        return {**score(task, [box] * len(test), test), "about": "the mean box"}
    if task == "segment":
        counts = np.sum([np.bincount(class_map(sample).ravel(), minlength=256) for sample in train], axis=0)
        commonest = int(np.argmax(counts[1:]))  # 0 is no class
        said = [np.full(class_map(sample).shape, commonest) for sample in test]
        return {**_mean_iou(said, test), "about": f"{train[0].meta['classes'][commonest]} everywhere"}
    if task == "detect":
        boxes: dict[str, list[Any]] = defaultdict(list)
        for row in (row for sample in train for row in objects_in(sample)):
            boxes[row["label"]].append(row["bbox"])
        total = sum(map(len, boxes.values()))
        said = [
            {"label": label, "score": len(of) / total, "bbox": np.mean(of, axis=0).tolist()}
            for label, of in boxes.items()
        ]
        found = _average_precision([said] * len(test), test)
        return {**found, "about": "the mean box of every class"}
    if task == "chat":
        seen = Counter(byte for sample in train for answer in _spoken(sample) for byte in answer)
        # One more of each of the 256 bytes: a byte that was never met must not cost infinitely much.
        total = seen.total() + 256
        nats = [-sum(math.log((seen[b] + 1) / total) for answer in _spoken(s) for b in answer) for s in test]
        return {**score(task, nats, test), "about": "bytes by how often they are met, low is good"}
    said = Counter(word for sample in train for word in _words(task, sample))
    commonest = said.most_common(1)[0][0]
    return {**score(task, [commonest] * len(test), test), "about": f"always {commonest!r:.60}"}


def objects_in(sample: Sample) -> list[dict[str, Any]]:
    """The objects of a row as COCO annotations: label, bbox x, y, width, height, iscrowd, segmentation or None.

    A row holds `boxes`, and `box_labels`, `segmentations` and `crowds` of as many; all boxes are of one class without
    labels. Raises ValueError, naming the row, for other numbers of them.
    """
    boxes, meta = sample.boxes or [], sample.meta
    labels = meta.get("box_labels") or [sample.label or "object"] * len(boxes)
    masks, crowds = meta.get("segmentations") or [None] * len(boxes), meta.get("crowds") or [False] * len(boxes)
    if not len(boxes) == len(labels) == len(masks) == len(crowds):
        raise ValueError(
            f"expected {len(boxes)} box_labels, segmentations and crowds for the boxes of row {sample.id!r}, got "
            f"{len(labels)}, {len(masks)} and {len(crowds)}; give each box its own"
        )
    return [
        {"label": label, "bbox": [x0, y0, x1 - x0, y1 - y0], "iscrowd": int(crowd), "segmentation": mask}
        for (x0, y0, x1, y1), label, mask, crowd in zip(boxes, labels, masks, crowds, strict=True)
    ]


def _average_precision(found: Sequence[Sequence[Any]], samples: Sequence[Sample]) -> dict[str, Any]:
    """Box AP with the interval of 30 resamples of pictures, and mask AP where both sides have masks."""
    truths, drawing = [objects_in(sample) for sample in samples], np.random.default_rng(0)
    drawn = [drawing.integers(0, len(truths), len(truths)) for _ in range(30)]
    values = [pictures_ap([truths[i] for i in rows], [found[i] for i in rows]) for rows in drawn]
    low, high = np.percentile(values, [2.5, 97.5]).tolist()
    result = {"metric": "box AP", "value": pictures_ap(truths, found), "interval": [low, high]}
    if all(row.get("segmentation") for rows in (*truths, *found) for row in rows) and any(found):
        sizes = [load_image(sample.image).size for sample in samples]
        result["mask AP"] = pictures_ap(truths, found, "segm", sizes)
    return result


def class_map(sample: Sample) -> np.ndarray:
    """The classes of a row's pixels (height, width) uint8, from 1 on; 0 is unlabelled."""
    from PIL import Image

    with Image.open(sample.meta["mask"], formats=("PNG",)) as mask:
        return np.asarray(mask)


def _mean_iou(found: Sequence[np.ndarray], samples: Sequence[Sample]) -> dict[str, Any]:
    """mIoU as a fraction, with the interval of 200 resamples of pictures. found: classes from 0 on, per picture."""
    count, drawing = len(samples[0].meta["classes"]), np.random.default_rng(0)
    tables = np.stack(
        [confusion(said, class_map(s), count, reduce_zero_label=True) for said, s in zip(found, samples, strict=True)]
    )
    drawn = [tables[drawing.integers(0, len(tables), len(tables))].sum(axis=0) for _ in range(200)]
    low, high = np.percentile([scores_of(table).mean_iou / 100 for table in drawn], [2.5, 97.5]).tolist()
    return {"metric": "mIoU", "value": scores_of(tables.sum(axis=0)).mean_iou / 100, "interval": [low, high]}


def choices_of(sample: Sample) -> list[str]:
    """The answers to choose from. Raises ValueError, naming the row, where the right one is not among two or more."""
    choices: list[str] = list(sample.meta.get("choices") or [])
    right = (sample.answers or [""])[0]
    if len(choices) < 2 or right not in choices:
        raise ValueError(
            f"expected choices with the answer among them in row {sample.id!r}, got {choices} and {right!r}"
        )
    return choices


def labels_of(sample: Sample) -> list[str]:
    """All labels of a row. Raises ValueError, naming the row, where `labels` is no list of texts."""
    labels = sample.meta.get("labels")
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels):
        raise ValueError(f"expected labels as a list of texts in row {sample.id!r}, got {labels!r}")
    return labels


def _mean_precision(found: Sequence[Mapping[str, float]], samples: Sequence[Sample]) -> dict[str, Any]:
    """Macro average precision over the labels of the rows, with the interval of 200 resamples of rows."""
    names = sorted({label for sample in samples for label in labels_of(sample)})
    scores = np.array([[float(row.get(name, 0.0)) for name in names] for row in found])
    right = np.array([[name in labels_of(sample) for name in names] for sample in samples])
    drawing = np.random.default_rng(0)
    drawn = [drawing.integers(0, len(right), len(right)) for _ in range(200)]
    values = [mean_average_precision(scores[rows], right[rows]) for rows in drawn]
    low, high = np.nanpercentile(values, [2.5, 97.5]).tolist()
    return {"metric": "mAP", "value": float(mean_average_precision(scores, right)), "interval": [low, high]}


def same_concept(samples: Sequence[Sample]) -> np.ndarray:
    """(n, n) bool: which rows have the same label, or without one the same text."""
    names = np.array([sample.label or text_of(sample) for sample in samples])
    return names[:, None] == names[None]


def text_of(sample: Sample) -> str:
    """The words of a row: its text, else its first caption. Raises ValueError, naming the row, without either."""
    words = sample.text or next(iter(sample.captions or ()), None)
    if not words:
        raise ValueError(f"expected text or captions in row {sample.id!r}, got neither")
    return words


def shares(sample: Sample) -> list[float]:
    """The first box of a row as shares of the width and height of its image.

    Raises:
        ValueError: names the row, where that is no box of four numbers.
    """
    box = (sample.boxes or [[]])[0]
    if len(box) != 4:
        raise ValueError(f"expected a box x0, y0, x1, y1 in row {sample.id!r}, got {sample.boxes}")
    width, height = load_image(sample.image).size
    return [box[0] / width, box[1] / height, box[2] / width, box[3] / height]


def _spoken(sample: Sample) -> list[bytes]:
    """What the assistant says in a row, each answer with one byte for its end."""
    said = []
    for message in sample.messages or ():
        if message.get("role", message.get("from")) in ("assistant", "gpt"):
            content = message.get("content", message.get("value", ""))
            parts = [content] if isinstance(content, str) else [part.get("text", "") for part in content]
            said.append("".join(parts).encode() + b"\0")
    if not said:
        raise ValueError(f"expected messages with an answer of the assistant in row {sample.id!r}, got none")
    return said


def _words(task: str, sample: Sample) -> Sequence[str]:
    """What a row has to say for a task: its label, its answers or its captions."""
    if task in ("classify", "compare"):
        return [sample.label or ""]
    return sample.answers or () if task == "vqa" else sample.captions or [sample.text or ""]


def _recall(found: Any, samples: Sequence[Sample]) -> Values:
    """Whether a row of the same concept is the nearest, the mean of both directions, per row."""
    media, texts = (np.asarray(vectors, np.float64) for vectors in found)
    same = same_concept(samples)
    both = hits_at_k(media @ texts.T, same, 1) + hits_at_k(texts @ media.T, same.T, 1).astype(np.float64)
    return "recall@1", (both / 2).tolist()


def _labels(found: Any, samples: Sequence[Sample]) -> Values:
    """Whether the label is the row's, per row."""
    return "accuracy", [said == sample.label for said, sample in zip(found, samples, strict=True)]


def _answers(found: Any, samples: Sequence[Sample]) -> Values:
    """Whether an answer is among the row's, both in the normal form of VQA's evaluation, per row."""
    right = [{evalai(answer) for answer in sample.answers or ()} for sample in samples]
    return "accuracy", [evalai(said) in answers for said, answers in zip(found, right, strict=True)]


def _captions(found: Any, samples: Sequence[Sample]) -> Values:
    """CIDEr against the row's captions, per row."""
    references = [sample.captions or [sample.text or ""] for sample in samples]
    return "CIDEr", caption_scores(list(found), references).cider


def _boxes(found: Any, samples: Sequence[Sample]) -> Values:
    """Whether the IoU with the row's first box is at least 0.5, per row."""
    return "accuracy@0.5", box_hits(np.asarray(found), np.asarray([shares(s) for s in samples])).astype(float).tolist()


_VALUES: dict[str, Callable[[Any, Sequence[Sample]], Values]] = {
    "retrieval": _recall,
    "classify": _labels,
    "vqa": _answers,
    "caption": _captions,
    "ground": _boxes,
    "compare": _labels,
    "audio_qa": _answers,
}


BATCH, MAX_LENGTH, MAX_ANSWER = 8, 2048, 32

WHOLE = 1 << 20
"""Positions of a conversation that is measured: none is cut."""


@dataclass(frozen=True)
class Talker:
    """What a family that talks brings: captions, answers, labels and conversations of one's own rows follow from it.

    Args:
        load: directory -> (model, processor), ready to train.
        read: `(processor, sample, rng) -> talk`, one row decoded.
        collate: `(processor, max_length, talks, rng, training=True) -> batch` with labels, augmented when training.
        objective: the mean cross entropy over learned positions.
        full_lr, lora_lr: peak rates where none is asked for.
    """

    load: Callable[[str], tuple[Any, Any]]
    read: Callable[[Any, Sample, np.random.Generator], Any]
    collate: Callable[..., dict[str, Tensor]]
    objective: Objective
    full_lr: float = 1e-5
    lora_lr: float = 2e-4

    def jobs(self) -> dict[str, Callable[[Request], Job]]:
        """Task -> function (Request) -> Job: classify, caption, vqa and chat."""
        return {task: partial(self.job, task) for task in ("classify", "caption", "vqa", "chat")}

    def job(self, task: str, request: Request) -> Job:
        """What a task trains: each row with the question and answers of the task alone, of which one is drawn.

        Args:
            task: classify, caption, vqa or chat. request: what was asked for.
        """
        model, processor = self.load(str(request.model))
        spoken, first = skills(model, processor), [model]
        labels = sorted({sample.label or "" for sample in request.train}) if task == "classify" else []

        def decode(sample: Sample, rng: np.random.Generator) -> Any:
            asked = asked_row(task, spoken, sample, request.medium)
            if asked.answers:
                asked = replace(asked, answers=[asked.answers[int(rng.integers(len(asked.answers)))]])
            return self.read(processor, asked, rng)

        def batches() -> Source:
            return Reader(request.train, partial(self.collate, processor, MAX_LENGTH), decode, reading=request.reading)

        def predict(model: nn.Module, rows: Sequence[Sample]) -> Any:
            if task == "chat":
                return self.nats(model, processor, rows)
            assistant = Assistant((model, processor), batch_size=BATCH)
            if task == "classify":  # the likeliest of all labels is what the model says
                media = [Sample(sample.id, **{request.medium: getattr(sample, request.medium)}) for sample in rows]
                return [one[0].text for one in assistant.classify(media, labels)]
            if task == "caption":
                return assistant.caption(list(rows), max_length=MAX_ANSWER)
            return assistant.answer(list(rows), [sample.question or "" for sample in rows], max_length=MAX_ANSWER)

        lr = request.lr or (self.lora_lr if request.lora else self.full_lr)
        stage = Stage(
            name=request.task,
            objective=self.objective,
            batches=batches,
            weight=num_learned,
            batch_size=request.batch_size,
            steps=request.steps,
            epochs=request.epochs,
            peak_lr=lr,
            floor=lr / 20,
            warmup=0.1,
            weight_decay=1e-4,
            clip=1.0,
        )

        def build() -> nn.Module:
            # The processor needed the model once; a second build reads it again, since the first may have trained.
            return first.pop() if first else self.load(str(request.model))[0]

        return Job(build, stage, in_evaluation(predict), partial(save_pair, processor))

    def nats(self, model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[float]:
        """Negative log likelihood of all answers of each row, their ends included."""
        device, drawing, found = next(model.parameters()).device, np.random.default_rng(0), []
        for sample in rows:
            talk = self.read(processor, asked_row("chat", None, sample, ""), drawing)
            batch = self.collate(processor, WHOLE, [talk], drawing, training=False)
            inputs = {name: value.to(device) for name, value in batch.items()}
            loss, _ = self.objective(model, inputs, 0, torch.Generator(device))
            # One row a batch, so the mean times its positions is the row's own sum.
            found.append(float(loss) * num_learned(batch))
        return found


def in_evaluation(
    predict: Callable[[nn.Module, Sequence[Sample]], Any],
) -> Callable[[nn.Module, Sequence[Sample]], Any]:
    """`predict` without gradients and in evaluation mode; the model goes on as it was."""

    def predicted(model: nn.Module, rows: Sequence[Sample]) -> Any:
        was_training = model.training
        try:
            with torch.no_grad():
                return predict(model.eval(), rows)
        finally:
            model.train(was_training)

    return predicted


def asked_row(task: str, spoken: Any, sample: Sample, medium: str) -> Sample:
    """A row with the question and answers of a task alone. spoken: the words that the family asks with.

    Of a text that is classified nothing is left but the question, in which it stands, as `plait.generation.talking`
    asks it. Raises ValueError, naming the row, where answers stand without a question.
    """
    if task == "chat":
        return replace(sample, question=None, answers=None, text=None, captions=None)
    media = {"image": sample.image, "video": sample.video}
    if task == "caption":
        kind = "image" if sample.image is not None else "video" if sample.video is not None else "text"
        question, answers = spoken.describe.format(kind=kind), sample.captions or [sample.text or ""]
    elif task == "vqa":
        if not sample.question:
            raise ValueError(f"expected a question beside the answers of row {sample.id!r}, got none; add it")
        question, answers = sample.question, sample.answers or []
    else:
        question, answers = spoken.name.format(kind=medium), [sample.label or ""]
        question = spoken.asked("text", sample.text, question) if medium == "text" else question
        media = {name: held for name, held in media.items() if name == medium}
    return Sample(sample.id, **media, question=question, answers=list(answers))


TASKS = (
    "retrieval", "classify", "caption", "vqa", "ground", "compare", "audio_qa", "tag", "detect", "segment", "chat"
)  # fmt: skip
HELD_OUT = ("test", "val", "validation", "dev")
MEDIA = ("image", "audio", "video", "text")
RESULT = "finetune.json"


@dataclass(frozen=True)
class Request:
    """What was asked for. model: a model directory; train, test: rows; medium: what the rows hold beside their text.

    setting: the published one, where asked for; layer_decay, drop_path_rate: of it, or as set.
    """

    model: Path
    data: str
    task: str
    medium: str
    train: Sequence[Sample]
    test: Sequence[Sample]
    steps: int | None
    epochs: float | None
    batch_size: int
    lr: float | None
    lora: int
    bits: int
    augmentation: float
    reading: Reading
    image_size: int | None = None
    setting: Setting | None = None
    layer_decay: float = 1.0
    drop_path_rate: float | None = None


@dataclass(frozen=True)
class Job:
    """What a family does for a task.

    build: () -> model; stage: everything trains; predict: (model, rows) -> what `score` takes; zero_shot:
    the same by the model as it came, where `predict` needs a head that is fresh; whole: model -> modules that train in
    full beside a LoRA; save: (model, directory); augments: whether rows are changed by `Request.augmentation`.
    """

    build: Callable[[], nn.Module]
    stage: Stage
    predict: Callable[[nn.Module, Sequence[Sample]], Any]
    save: Callable[[nn.Module, Path], None]
    zero_shot: Callable[[nn.Module, Sequence[Sample]], Any] | None = None
    whole: Callable[[nn.Module], Sequence[str]] | None = None
    augments: bool = False


def finetune(
    model: str,
    data: str,
    task: Literal[
        "retrieval", "classify", "caption", "vqa", "ground", "compare", "audio_qa", "tag", "detect", "segment", "chat"
    ],
    lora: int = 0,
    bits: int = 0,
    steps: int | None = None,
    epochs: float | None = None,
    batch_size: int | None = None,
    lr: float | None = None,
    published: bool = False,
    benchmark: str | None = None,
    layer_decay: float | None = None,
    drop_path_rate: float | None = None,
    medium: str | None = None,
    image_size: int | None = None,
    augmentation: float | None = None,
    reading: Reading = Reading(workers=1),
) -> Recipe:
    """Train a model on your own rows: LoRA or full, measured before and after on the rows you hold out.

    Needs: rows of split train or none, and of test. Cost: minutes for some hundred files on two cores with nano.

    Args:
        model: a model directory, or nano.
        data: a manifest, tar shards, parquet or a saved data set, with a split test; for detect also a COCO
            instances file, of which a fifth is held out where its images name no split; for segment a folder of
            images and masks in ADE20K's layout.
        task: one of `TASKS` that the model's family knows.
        lora: rank, 0 to train everything. bits: hold the frozen base in 4 or 8 bits beside it.
        steps, epochs: length of the run, 10 epochs without either; steps count where both are given.
        batch_size: rows of a step, 16 without it, at most as many as there are. lr: peak rate, else the family's own.
        published: setting and loss of the publication; what is set beside it counts. benchmark: whose, of several.
        layer_decay, drop_path_rate: rate of a layer relative to the next one; share left out at the last layer.
        medium: image, audio, video or text, the most frequent without it (chat: all).
        image_size: side of the images of detect and segment in pixels, twice the model's without it.
        augmentation: of images and audio, 0 to 1, without it 0.3; where the job changes them (`Job.augments`).
        reading: workers, on_bad and most_bad, see `plait.data.reader.Reading`.

    Raises:
        UsageError: for a task that the family has not, bits without lora, and no model directory.
        ValueError: without rows to train on or to hold out.
    """
    from plait.models import directory_of

    place = directory_of(model)
    family = _family(place)
    known = {name for _, name, _ in iter_modules([str(Path(__file__).parent)])} - {"finetune", "plan"}
    # found by its file, or brought by the user: what a model directory calls itself imports nothing else
    own = next((f"plait.recipes.{name}" for name in (f"{family}_tasks", family) if name in known), None)
    home = own or FAMILIES.get(family)
    jobs: dict[str, Callable[[Request], Job]] = getattr(import_module(home), "JOBS", {}) if home else {}
    if task not in jobs:
        tasks = ", ".join(jobs) or "none yet"
        raise UsageError(f"expected a task that finetune knows for {family} ({tasks}), got {task}")
    if bits and not lora:
        raise UsageError(f"expected lora beside bits={bits}, got 0; a base of few bits cannot be trained itself")
    if task not in ("detect", "segment"):
        refuse_beside(f"task={task}, which keeps the model's size", image_size=image_size)
    if not published:
        refuse_beside("published=false", benchmark=benchmark)
    medium, train, test = _rows(data, task, medium, reading)
    of_family = getattr(import_module(home or ""), "PUBLISHED", {})
    beside = {"layer_decay": layer_decay, "drop_path_rate": drop_path_rate}
    refuse_beside(f"task={task} with {family}", **({} if of_family else beside))
    setting = setting_of(of_family, family, task, medium, benchmark) if published else None
    plain = replace(setting or UNPUBLISHED, **{name: value for name, value in beside.items() if value is not None})
    jitter = (0.0 if published else 0.3) if augmentation is None else augmentation
    request = Request(
        place, data, task, medium, train, test, steps, None if steps is not None else epochs or plain.epochs,
        min(batch_size or plain.batch_size, len(train)), lr or plain.lr or None, lora, bits, jitter, reading,
        image_size, setting, plain.layer_decay, plain.drop_path_rate,
    )  # fmt: skip
    job = jobs[task](request)
    if not job.augments:
        where = f"task={task} with {family} and {medium}, whose rows are changed as published"
        refuse_beside(where, augmentation=augmentation)
    return _recipe(request, job)


def _family(place: Path) -> str:
    """The model_type of a model directory. Raises UsageError where there is none."""
    config = place / "config.json"
    if not config.is_file():
        raise UsageError(f"expected model=DIR with config.json, or nano, got {place}; plait convert makes one")
    return str(json.loads(config.read_text(encoding="utf-8")).get("model_type"))


def _rows(data: str, task: str, medium: str | None, reading: Reading) -> tuple[str, Rows, Rows]:
    """The medium, and the rows of it that have what the task needs: to train on, and held out."""
    given: str | list[Sample] = data
    if task == "detect" and data.endswith(".json"):
        from plait.data.annotations import scan_objects

        given = scan_objects(data)
    elif task == "segment":
        from plait.data.annotations import scan_masks

        given = scan_masks(data)
    samples = select(given, "anything", lambda _: True, splits=None, reading=reading)
    counts = Counter(m for s in samples for m in ("image", "audio", "video") if getattr(s, m) is not None)
    # conversations with pictures and without train together; pictures that are compared stand in `images`
    is_any = (medium is None and task == "chat") or task == "compare"
    medium = "image" if task == "compare" else "audio" if task in ("audio_qa", "tag") and medium is None else medium
    found = medium or next((name for name, _ in counts.most_common(1)), "text")
    if found not in MEDIA:
        raise UsageError(f"expected medium {', '.join(MEDIA)}, got {found!r}")

    def keep(sample: Sample) -> bool:
        has_medium = not is_heard(sample) if is_any else getattr(sample, found) is not None
        return has_medium and any(getattr(sample, field, None) or sample.meta.get(field) for field in _TARGETS[task])

    wanted = f"{found} and {' or '.join(_TARGETS[task])}"
    train, test = (
        select(samples, wanted, keep, splits=splits, reading=reading, may_be_none=True)
        for splits in ((None, "train"), HELD_OUT)
    )
    if not train or not test:
        raise ValueError(
            f"expected rows with {wanted} to train on and to hold out (split {' or '.join(HELD_OUT[:2])}) in {data}, "
            f"got {len(train)} and {len(test)}; plait data from-folder splits a folder"
        )
    if task in ("classify", "compare"):
        for rows, which in ((train, "to train on"), (test, "held out")):
            labels = {sample.label for sample in rows}
            if len(labels) < 2:  # always right, whatever it says
                raise ValueError(
                    f"expected rows of two labels or more {which} in {data}, got {len(rows)} of {next(iter(labels))!r} "
                    "alone; hold out some of every label (plait data from-folder does)"
                )
    others = ", ".join(f"{count} with {name}" for name, count in counts.items() if name != found and not is_any)
    left = f"; left out: {others} (medium={next(m for m in counts if m != found)} takes those)" if others else ""
    print(f"{task} of {found}: {len(train)} rows to train on, {len(test)} held out{left}", file=sys.stderr, flush=True)
    return found, train, test


_TARGETS = {
    "retrieval": ("text", "captions"),
    "classify": ("label",),
    "caption": ("captions", "text"),
    "vqa": ("answers",),
    "ground": ("boxes",),
    "compare": ("images",),
    "audio_qa": ("choices",),
    "tag": ("labels",),
    "detect": ("boxes",),
    "segment": ("mask",),
    "chat": ("messages",),
}
"""Task -> the fields of a row of which one must be there."""


def _recipe(request: Request, job: Job) -> Recipe:
    """The job as a recipe: its stage, with a LoRA if asked for, measured before and after."""
    stage = job.stage
    if request.lora:
        from plait.training.lora import TRAINABLE

        # The family's own choice of parameters is for full training; beside a LoRA the base is frozen.
        stage = replace(stage, trainable=TRAINABLE)
    before, after = partial(_before, request, job, stage), partial(_after, request, job)
    return Recipe(partial(_build, request, job), [stage], partial(_save, request, job), before, after)


def _build(request: Request, job: Job) -> nn.Module:
    """The model in float32, which optimisers need, or as a base of few bits; with its adapter where there is one."""
    from plait.training.lora import add_lora, quantise

    model = job.build().float()
    if request.bits:
        quantise(model, request.bits)
    if request.lora:
        add_lora(model, request.lora, whole=job.whole(model) if job.whole else ())
    return model


def _before(request: Request, job: Job, stage: Stage, model: nn.Module, run_dir: Path) -> None:
    """Print the plan, and measure the trivial answer and the model as it came; once in a run."""
    from plait.recipes.plan import describe, plan_stage, with_cost

    print(describe(with_cost(plan_stage(model, stage), model, stage)), flush=True)
    path = run_dir / RESULT
    if not path.is_file():
        given = (job.zero_shot or job.predict)(model, request.test)
        found = {
            "task": request.task,
            "rows": {"train": len(request.train), "test": len(request.test)},
            "trivial": trivial(request.task, request.train, request.test),
            "before": None if given is None else score(request.task, given, request.test),
        }
        _write(path, found)
    _show(json.loads(path.read_text(encoding="utf-8")), "trivial", "before")


def _after(request: Request, job: Job, model: nn.Module, run_dir: Path) -> nn.Module:
    """Keep the adapter, merge it into a base in full precision, and measure the result; the model to save."""
    from plait.training.lora import folded, has_adapter, load_adapter, save_adapter

    model.eval()
    if has_adapter(model):
        with atomic_directory(run_dir / "adapter", replace=True) as directory:
            save_adapter(model, directory, request.model)
        # Rounded weights cannot take the LoRA in: it is merged into a base that is read again whole.
        if request.bits:
            device, model = next(model.parameters()).device, job.build().float()
            load_adapter(model, run_dir / "adapter")
            model.to(device).eval()
        folded(model)
    path = run_dir / RESULT
    found = json.loads(path.read_text(encoding="utf-8"))
    said = job.predict(model, request.test)
    found["after"] = score(request.task, said, request.test)
    found["date"] = time.strftime("%Y-%m-%d")
    if request.task in ("classify", "vqa", "caption"):
        # what is said in words can be shown beside what is right
        found["said"] = [
            {"id": sample.id, "right": list(_words(request.task, sample)), "said": one}
            for sample, one in zip(request.test, said, strict=True)
        ]
    _write(path, found)
    _show(found, "after")
    return model


def _save(request: Request, job: Job, model: nn.Module, directory: Path) -> None:
    """The model directory, and a card that says how to load it."""
    job.save(model, directory)
    name = name_of(directory)
    lines = [
        "# A model finetuned with Plait",
        f"`{request.model.name}` on {len(request.train)} rows, task {request.task}, medium {request.medium}.",
        "```python",
        *how_to_load(model, name, request.medium),
        "```",
    ]
    (directory / "README.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def how_to_load(model: nn.Module, name: str, medium: str) -> list[str]:
    """Three lines that load what was saved of `model` in the directory `name` with transformers; medium: its rows'."""
    import transformers

    from plait.models.registry import auto_class_of

    auto = auto_class_of(type(model), medium)
    home, used = (transformers.__name__, auto) if auto else (type(model).__module__, type(model).__name__)
    return ["import plait.models.auto", f"from {home} import {used}", f'model = {used}.from_pretrained("{name}")']


def _write(path: Path, found: dict[str, Any]) -> None:
    """The result file, written whole or not at all."""
    atomic_write(path, json.dumps(found, indent=1) + "\n")


def _show(found: dict[str, Any], *names: str) -> None:
    """`before  accuracy 0.310 [0.220, 0.410] on 93 rows` for each of `names`."""
    for name in names:
        one = found[name]
        if one is None:
            print(f"{name:<9}the model cannot do this before it is trained", flush=True)
            continue
        low, high = one["interval"]
        about = f" ({one['about']})" if one.get("about") else ""
        print(
            f"{name:<9}{one['metric']} {one['value']:.3f} [{low:.3f}, {high:.3f}] "
            f"on {found['rows']['test']} rows{about}",
            flush=True,
        )
