"""ONE-PEACE on one's own rows: `JOBS`, task -> function (Request) -> Job.

retrieval by contrast; classes, closed-vocabulary answers and objects by fresh heads

rows -> decoded (`_part`, objects) -> collated -> contrast | supervised | the losses of a dense model
"""

from __future__ import annotations

import copy
import random
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.manifest import digest
from plait.data.reader import Reader
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.models.auto import load_config, load_processor
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, by_modality
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.regions import skills
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.models.one_peace.vision import OnePeaceImageClassifier, OnePeaceVideoClassifier
from plait.models.one_peace.weights import from_directory
from plait.objectives.classification import box_loss, choice_hinge_sum, cross_entropy_sum, multi_label_sum
from plait.objectives.contrastive import contrastive_loss
from plait.processing.videos import training_image
from plait.recipes.finetune import (
    Job,
    Request,
    choices_of,
    in_evaluation,
    labels_of,
    shares,
    text_of,
)
from plait.recipes.one_peace_dense import detect, segment
from plait.recipes.one_peace_rows import BATCH, inputs_of, media_of, need, part_of, run_quietly, slices, task_stage
from plait.recipes.settings import Setting
from plait.training.optim import parameter_groups
from plait.training.parallel import chunk_of, gather_rows
from plait.training.stages import Objective, Stage, save_pair
from plait.types import Sample

PROMPTS = {"image": "a picture of {}", "audio": "this is a sound of {}"}


def retrieval(request: Request) -> Job:
    """Media and texts of one row close, all others far; rows of one label count as one.

    Raises UsageError for media other than image and audio.
    """
    need(request.medium, ("image", "audio"), "retrieval")
    processor = load_processor(request.model)

    def collate(parts: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
        # the same in every process
        ids = torch.tensor([digest(part["concept"]) >> 1 for part in parts])
        words = [part["texts"][int(rng.integers(len(part["texts"])))] for part in parts]
        return {**media_of(parts, request.medium, processor, request.augmentation, rng), **processor.captions(words),
                "ids": ids}  # fmt: skip

    return Job(
        build=partial(_embedding, request),
        stage=task_stage(request, processor, collate, partial(contrast, request.medium), read=True),
        predict=lambda model, rows: (
            _vectors(model, processor, rows, request.medium), _text_vectors(model, processor, map(text_of, rows))
        ),
        save=partial(save_pair, processor),
        augments=True,
    )  # fmt: skip


def _embedding(request: Request) -> OnePeaceModel:
    """The encoder; as published with a table of relative positions per layer, and longer sounds."""
    fields: dict[str, Any] = {}
    if request.setting is not None:
        fields |= {"per_layer_bias": True, **request.setting.changes}
    if request.drop_path_rate is not None:
        fields["drop_path_rate"] = request.drop_path_rate
    model = from_directory(request.model, dtype=torch.float32, model_class=OnePeaceModel, **fields)
    assert isinstance(model, OnePeaceModel)
    return model


def classify(request: Request) -> Job:
    """A fresh head over the features of one medium; before it, the label whose words are nearest.

    Videos, and images as published, have the heads of the vision branch (ImageNet, Kinetics).
    """
    need(request.medium, ("image", "audio", "text", "video"), "classify")
    if request.medium == "video" or (request.medium == "image" and request.setting is not None):
        return _watched(request)
    labels = sorted({sample.label or "" for sample in request.train})
    return _classified(request, labels, lambda sample: sample.label or "", is_asked=False)


def vqa(request: Request) -> Job:
    """Answers of the training rows as classes of a head over image and question.

    As published: soft scores of all answers, of which the commonest 3,129 are classes, and binary cross entropy.
    """
    need(request.medium, ("image",), "vqa")
    if request.setting is None:
        answers = sorted({(sample.answers or [""])[0] for sample in request.train})
        return _classified(request, answers, lambda sample: (sample.answers or [""])[0], is_asked=True)
    said = Counter(answer for sample in request.train for answer in soft_answers(sample))
    answers = [answer for answer, _ in said.most_common(NUM_ANSWERS)]

    def target(parts: list[dict[str, Any]]) -> Tensor:
        return _shares([soft_answers(part["sample"]) for part in parts], answers)

    return _headed(request, Headed(answers, target, several, named(answers), is_asked=True))


def ground(request: Request) -> Job:
    """The box of a phrase: the sigmoid of four outputs, by distance and overlap (RefCOCO); rows hold `boxes`."""
    need(request.medium, ("image",), "ground")

    def target(parts: list[dict[str, Any]]) -> Tensor:
        return torch.tensor([shares(part["sample"]) for part in parts])

    def found(logits: Tensor, rows: Sequence[Sample]) -> list[list[float]]:
        return logits.sigmoid().tolist()

    return _headed(request, Headed(BOX, target, located, found, is_asked=True))


def compare(request: Request) -> Job:
    """Whether a text is true of two images (NLVR2): rows with `images`, `text` and `label`."""
    counts = {len(sample.meta["images"]) for sample in request.train}
    if counts != {2}:
        raise ValueError(f"expected two images in every row to compare, got {sorted(counts)}")
    # Published: True is class 0, False class 1 (specification 5.4).
    labels = sorted({sample.label or "" for sample in request.train}, reverse=True)
    numbers = {label: i for i, label in enumerate(labels)}

    def target(parts: list[dict[str, Any]]) -> Tensor:
        return torch.tensor([numbers[part["sample"].label or ""] for part in parts])

    changes = {"use_two_images": True}
    return _headed(request, Headed(labels, target, crossed, named(labels), is_asked=True, changes=changes))


def audio_qa(request: Request) -> Job:
    """The right one of several answers about audio, by a hinge between their scores (AVQA): rows with `choices`."""
    need(request.medium, ("audio",), "audio_qa")
    counts = {len(choices_of(sample)) for sample in [*request.train, *request.test]}
    if len(counts) != 1:
        raise ValueError(f"expected as many choices in every row, got {sorted(counts)}; four are published")
    count = counts.pop()

    def target(parts: list[dict[str, Any]]) -> Tensor:
        rows = [part["sample"] for part in parts]
        return torch.tensor([choices_of(row).index((row.answers or [""])[0]) for row in rows])

    def found(scores: Tensor, rows: Sequence[Sample]) -> list[str]:
        best = scores.view(-1, count).argmax(-1).tolist()
        return [choices_of(row)[i] for row, i in zip(rows, best, strict=True)]

    return _headed(request, Headed(1, target, chosen, found, is_asked=True))


def tag(request: Request) -> Job:
    """All labels of an audio clip or image, each by itself (FSD50K): rows with `labels`, a list."""
    need(request.medium, ("audio", "image"), "tag")
    labels = sorted({label for sample in request.train for label in labels_of(sample)})

    def target(parts: list[dict[str, Any]]) -> Tensor:
        return _shares([dict.fromkeys(labels_of(part["sample"]), 1.0) for part in parts], labels)

    def found(logits: Tensor, rows: Sequence[Sample]) -> list[dict[str, float]]:
        return [dict(zip(labels, row, strict=True)) for row in logits.sigmoid().tolist()]

    changes = {"problem_type": "multi_label_classification", "pool_modality": request.medium}
    return _headed(request, Headed(labels, target, several, found, changes=changes))


JOBS: dict[str, Callable[[Request], Job]] = {
    "retrieval": retrieval,
    "classify": classify,
    "vqa": vqa,
    "ground": ground,
    "compare": compare,
    "audio_qa": audio_qa,
    "tag": tag,
    "detect": detect,
    "segment": segment,
}


# Eight GPUs times the batch of each times accumulation (specification 7; 8.2 and 8.3 for pictures and films).
PUBLISHED: dict[tuple[str, str], dict[str, Setting]] = {
    ("retrieval", "image"): {
        "coco": Setting(lr=8e-5, epochs=15, batch_size=16, layer_decay=0.9, drop_path_rate=0.5),
        "flickr30k": Setting(lr=7e-5, epochs=20, batch_size=16, layer_decay=0.9, drop_path_rate=0.4),
    },
    ("retrieval", "audio"): {
        "audiocaps_clotho_macs": Setting(
            lr=1.5e-4, epochs=10, batch_size=16, layer_decay=0.95, drop_path_rate=0.9,
            changes={"max_audio_seconds": 20.0},
        )
    },
    ("vqa", "image"): {
        "vqav2": Setting(
            lr=3e-4, epochs=10, batch_size=512, layer_decay=0.85, drop_path_rate=0.5, changes={"use_pooler": True}
        )
    },
    ("compare", "image"): {
        "nlvr2": Setting(
            lr=1e-4, epochs=25, batch_size=128, layer_decay=0.9, drop_path_rate=0.4,
            changes={"type_embeddings": ["text", "image"]},
        )
    },
    ("ground", "image"): {
        "refcoco": Setting(
            lr=1.5e-4, epochs=30, batch_size=256, layer_decay=0.9, drop_path_rate=0.4, size=1.5,
            changes={"pool_modality": "image"},
        ),
        "refcocog": Setting(
            lr=1.5e-4, epochs=30, batch_size=256, layer_decay=0.9, drop_path_rate=0.4, size=1.5,
            changes={"pool_modality": "text"},
        ),
    },
    ("audio_qa", "audio"): {
        "avqa": Setting(lr=7e-5, epochs=10, batch_size=128, layer_decay=0.9, drop_path_rate=0.5)
    },
    ("tag", "audio"): {"fsd50k": Setting(lr=1e-4, epochs=10, batch_size=128, layer_decay=0.9, drop_path_rate=0.5)},
    ("classify", "audio"): {
        "vggsound": Setting(lr=8e-5, epochs=10, batch_size=512, layer_decay=0.95, drop_path_rate=0.6)
    },
    ("classify", "image"): {
        "imagenet": Setting(
            lr=3e-5, epochs=15, batch_size=1024, layer_decay=0.9, drop_path_rate=0.4, floor=0.0, warmup=0.2,
            betas=(0.9, 0.98), eps=1e-6, size=1.5, label_smoothing=0.3,
        )
    },
    ("classify", "video"): {
        "kinetics": Setting(
            lr=3e-4, epochs=30, batch_size=64, drop_path_rate=0.4, floor=0.0, backbone=0.1, changes={"num_frames": 16}
        )
    },
}  # fmt: skip
NUM_ANSWERS, BOX = 3129, 4


@dataclass(frozen=True)
class Headed:
    """A task of a fresh head. classes: their names, or how many outputs have none.

    target: parts of a batch -> labels; objective: of the stage; found: (logits, rows) -> predictions; is_asked: words
    are read beside the medium; changes: fields of the configuration.
    """

    classes: Sequence[str] | int
    target: Callable[[list[dict[str, Any]]], Tensor]
    objective: Objective
    found: Callable[[Tensor, Sequence[Sample]], Any]
    is_asked: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)


def _headed(request: Request, how: Headed) -> Job:
    """A job whose head reads one medium, or two pictures, and words where it is asked."""
    processor = load_processor(request.model)
    build = partial(_with_classes, request, how.classes, how.changes)
    side = _side(request, processor.image_size)
    processor.image_processor.size = {"height": side, "width": side}

    def decode(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        if request.task != "compare":
            return part_of(processor, request.medium, sample)
        first, second = (replace(sample, image=name) for name in sample.meta["images"])
        return {**part_of(processor, "image", first), "second": part_of(processor, "image", second)}

    def inputs(parts: list[dict[str, Any]]) -> dict[str, Tensor]:
        if request.task == "audio_qa":
            rows = [(part, choice) for part in parts for choice in choices_of(part["sample"])]
            words = [f"{part['sample'].question or ''} answer: {choice}" for part, choice in rows]
            return {**processor.choices(words), **media_of([part for part, _ in rows], "audio", processor)}
        made = inputs_of(parts, request.medium, processor, how.is_asked)
        if request.task == "ground":
            made |= processor.phrases([part["sample"].question or part["sample"].text or "" for part in parts])
        if request.task == "compare":
            made["second_pixel_values"] = media_of([part["second"] for part in parts], "image", processor)[
                "pixel_values"
            ]
        return made

    def collate(parts: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
        return {**inputs(parts), "labels": how.target(parts)}

    def predict(model: nn.Module, rows: Sequence[Sample]) -> list[Any]:
        drawing, said = np.random.default_rng(0), []
        for batch in slices(rows):
            made = inputs([decode(sample, drawing) for sample in batch])
            said += how.found(run_quietly(model, made)["logits"], batch)
        return said

    stage = task_stage(request, processor, collate, how.objective, read=how.is_asked, embeds=False)
    return Job(
        build=build,
        stage=replace(stage, batches=lambda: Reader(request.train, collate, decode, reading=request.reading)),
        predict=predict,
        zero_shot=lambda model, rows: None,
        whole=lambda model: ("head",),
        save=partial(save_pair, processor),
    )


def _side(request: Request, own: int) -> int:
    """The side of pictures: as published relative to the model's own, in whole patches of 16."""
    return own if request.setting is None else int(own * request.setting.size) // 16 * 16


def _with_classes(
    request: Request, classes: Sequence[str] | int, changes: Mapping[str, Any]
) -> OnePeaceForClassification:
    """The encoder under a fresh head: larger pictures, tables per layer and drop path as the setting has them."""
    config, setting = load_config(request.model, OnePeaceConfig), request.setting
    fields: dict[str, Any] = {**changes, **(setting.changes if setting else {})}
    if setting is not None:
        # all published heads have a table of relative positions per layer (specification 2.8)
        fields |= {"per_layer_bias": True, "image_rel_bucket_size": _side(request, config.image_size) // 16}
    if request.drop_path_rate is not None:
        fields["drop_path_rate"] = request.drop_path_rate
    return with_head(request.model, classes, None, **fields)


def _watched(request: Request) -> Job:
    """Classes of films or pictures by the heads of the vision branch, which has no words."""
    labels = sorted({sample.label or "" for sample in request.train})
    numbers, setting = {label: i for i, label in enumerate(labels)}, request.setting
    config = load_config(request.model, OnePeaceConfig)
    side, is_film = _side(request, config.image_size), request.medium == "video"
    fields: dict[str, Any] = {
        "norm_ways": {}, "use_projections": False, "image_rel_bucket_size": side // 16,
        "num_frames": 8 if is_film else 0, "drop_path_rate": request.drop_path_rate or 0.0,
        **(setting.changes if setting else {}),
    }  # fmt: skip

    def build() -> nn.Module:
        encoder = from_directory(
            request.model, dtype=torch.float32, model_class=OnePeaceModel, branch=("image",), decoder=None, **fields
        )
        own = copy.deepcopy(encoder.config)
        own.id2label, own.label2id = dict(enumerate(labels)), numbers
        model = (OnePeaceVideoClassifier if is_film else OnePeaceImageClassifier)(own)
        model.vision.load_state_dict(encoder.state_dict())
        return model

    first: list[Any] = [build()]
    processor = OnePeaceProcessor.from_config(first[0].config)
    spoken = skills(first[0], processor)

    def decode(sample: Sample, rng: np.random.Generator) -> tuple[Tensor, int]:
        crop = partial(training_image, augment=False, scale=(0.08, 1.0) if setting else (0.5, 1.0))
        draw = random.Random(int(rng.integers(1 << 62)))
        if not is_film:
            return crop(load_image(sample.image).convert("RGB"), side, draw), numbers[sample.label or ""]
        frames = load_frames(sample.video, fields["num_frames"])
        state = draw.getstate()
        views = []
        for frame in frames:  # one crop and one mirror for all frames of a film
            draw.setstate(state)
            views.append(crop(frame.convert("RGB"), side, draw))
        return torch.stack(views), numbers[sample.label or ""]

    def collate(parts: list[tuple[Tensor, int]], rng: np.random.Generator) -> dict[str, Tensor]:
        pixels, classes = zip(*parts, strict=True)
        return {"pixel_values": torch.stack(pixels), "labels": torch.tensor(classes)}

    def predict(model: nn.Module, rows: Sequence[Sample]) -> list[str]:
        seeing, said = skills(model, processor), []
        for sample in rows:
            item = load_image(sample.image) if not is_film else load_frames(sample.video, spoken.num_frames)
            said.append(
                labels[int(seeing.outputs(request.medium, [seeing.prepare(request.medium, item)], None).argmax())]
            )
        return said

    smoothing = setting.label_smoothing if setting else 0.0
    stage = replace(
        task_stage(request, processor, collate, partial(crossed, smoothing=smoothing), read=False, embeds=False),
        batches=lambda: Reader(request.train, collate, decode, reading=request.reading),
        trainable=(),
        optimizer=partial(slower_backbone, setting.backbone) if setting and setting.backbone != 1 else None,
    )
    return Job(
        build=lambda: first.pop() if first else build(),
        stage=stage,
        predict=in_evaluation(predict),
        zero_shot=lambda model, rows: None,
        whole=lambda model: ("head",),
        save=partial(save_pair, processor),
    )


def slower_backbone(scale: float, model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW whose backbone learns `scale` times as fast, its norms, positions and class token excepted, as released.

    Source: specification ONE-PEACE, 8.3: parameter rules match by their longest key.
    """
    full = re.compile(r"norm|position_embedding|cls_embedding")
    groups = parameter_groups(
        model.named_parameters(), weight_decay=stage.weight_decay, no_decay=stage.no_decay, layer_decay=scale,
        # two depths, 0 and 1: scale ** (1 - depth)
        layer_id=lambda name: 0 if name.startswith("vision.") and not full.search(name) else 1,
    )  # fmt: skip
    return torch.optim.AdamW(groups, lr=stage.peak_lr, betas=stage.betas, eps=stage.eps)


def soft_answers(sample: Sample) -> dict[str, float]:
    """Scores of a row's answers: of the row itself (`answer_scores`), or by how many annotators agree.

    Three of ten are worth 0.9 and four 1, as in the published table (specification 5.4); a single answer is right.
    """
    if isinstance(given := sample.meta.get("answer_scores"), Mapping):
        return {str(answer): float(score) for answer, score in given.items()}
    said = Counter(sample.answers or ())
    if said.total() == 1:
        return dict.fromkeys(said, 1.0)
    return {answer: min(1.0, 0.3 * count) for answer, count in said.items()}


def _shares(rows: Sequence[Mapping[str, float]], names: Sequence[str]) -> Tensor:
    """(rows, names), 0 for a name that a row lacks; names that are no class are left out."""
    return torch.tensor([[row.get(name, 0.0) for name in names] for row in rows])


def named(labels: Sequence[str]) -> Callable[[Tensor, Sequence[Sample]], list[str]]:
    """(logits, rows) -> the label of the largest."""
    return lambda logits, rows: [labels[i] for i in logits.argmax(-1).tolist()]


def several(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Binary cross entropy summed over classes, mean over rows; the target's mass on the best class.

    labels (batch, classes) in [0, 1]: soft answers, or tags.
    """
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
    loss, mass = multi_label_sum(logits, batch["labels"])
    return loss / len(logits), {"right": mass.detach() / len(logits)}


def located(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Distance of corners and overlap of one box per row. labels (batch, 4) as shares of the image's sides."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
    return box_loss(logits, batch["labels"]), {}


def chosen(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The hinge between the right one of several answers and all. labels (questions,); rows are their choices."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
    count = len(batch["labels"])
    loss, right = choice_hinge_sum(logits.view(count, -1), batch["labels"])
    return loss / count, {"right": right / count}


def crossed(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator, smoothing: float = 0.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy over classes, mean over rows, and the share that is right. labels (batch,)."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"})["logits"]
    loss, right = cross_entropy_sum(logits, batch["labels"], smoothing)
    return loss / len(logits), {"right": right / len(logits)}


def _classified(request: Request, labels: list[str], of: Callable[[Sample], str], *, is_asked: bool) -> Job:
    """A job whose head tells `labels` apart; `of` gives the label of a row, is_asked: a question is read too."""
    processor = load_processor(request.model)
    number = {label: i for i, label in enumerate(labels)}

    def collate(parts: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
        targets = torch.tensor([number[of(part["sample"])] for part in parts])
        return {**inputs_of(parts, request.medium, processor, is_asked, request.augmentation, rng), "labels": targets}

    def predict(model: nn.Module, rows: Sequence[Sample]) -> list[str]:
        said: list[str] = []
        for batch in slices(rows):
            parts = [part_of(processor, request.medium, sample) for sample in batch]
            logits = run_quietly(model, inputs_of(parts, request.medium, processor, is_asked))["logits"]
            said += [labels[i] for i in logits.argmax(-1).tolist()]
        return said

    return Job(
        build=partial(
            _with_classes,
            request,
            labels,
            {} if is_asked else {"pool_modality": request.medium, "problem_type": "single_label_classification"},
        ),
        stage=task_stage(request, processor, collate, supervised, read=is_asked, embeds=False),
        predict=predict,
        zero_shot=None if is_asked else partial(_nearest, processor, request.medium, labels),
        whole=lambda model: ("head",),
        augments=request.medium != "text",
        save=partial(save_pair, processor),
    )


def with_head(
    directory: Path, classes: Sequence[str] | int, medium: str | None = None, **changes: Any
) -> OnePeaceForClassification:
    """The encoder of a model directory under a fresh head, of items of one medium alone or of pairs.

    classes: their names, or how many outputs have none. changes: fields of the configuration.
    """
    growing = ("per_layer_bias", "image_rel_bucket_size", "drop_path_rate")
    kept = {name: changes[name] for name in growing if name in changes}
    encoder = from_directory(directory, dtype=torch.float32, model_class=OnePeaceModel, **kept)
    config = copy.deepcopy(encoder.config)
    assert isinstance(config, OnePeaceConfig)
    # The pretraining decoder is no part of a classifier, and its weights are not loaded.
    config.decoder = None
    config.num_classes, config.pool_attention = classes if isinstance(classes, int) else len(classes), True
    if not isinstance(classes, int):
        config.id2label = dict(enumerate(classes))
        config.label2id = {label: i for i, label in enumerate(classes)}
    if medium is not None:
        # tells the verbs what it takes: a class of one item, no answer to a question
        config.pool_modality, config.problem_type = medium, "single_label_classification"
    for name, value in changes.items():
        setattr(config, name, value)
    model = OnePeaceForClassification(config)
    missing = model.model.load_state_dict(encoder.state_dict(), strict=False, assign=True)
    # Vectors that tell two pictures apart are fresh; anything else would be a defect.
    strange = [name for name in (*missing.missing_keys, *missing.unexpected_keys) if "type_embedding" not in name]
    if strange:
        raise ValueError(f"expected the weights of {directory}, got none or too many for {', '.join(strange[:3])}")
    return model


def contrast(
    medium: str, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of both directions over the rows of all processes; equal ids are no negatives.

    Args:
        medium: image or audio; bound first by the job.
        model: a `OnePeaceModel`.
        batch: input_ids (batch, tokens), the medium's tensors, and ids (batch,).
        step, generator: unused.

    Returns:
        loss (), and the share of media that find their text.
    """
    assert isinstance(model, OnePeaceModel)
    mask = batch.get("audio_attention_mask")
    frames = None if mask is None else model.frame_mask(mask)
    inputs = by_modality(batch["input_ids"], batch.get("pixel_values"), batch.get("input_values"), frame_mask=frames)
    # Two passes, as published: contrast compares single modalities, never a joint encoding (6.2).
    text, found = model.embed({"text": inputs["text"]})["text"], model.embed({medium: inputs[medium]})[medium]
    (text_all, offset), (found_all, _), (ids_all, _) = map(gather_rows, (text, found, batch["ids"]))
    out = contrastive_loss(
        text, found, model.temperature(), a_all=text_all, b_all=found_all, offset=offset, ids=batch["ids"],
        ids_all=ids_all, chunk_size=chunk_of(len(text)),
    )  # fmt: skip
    return out.loss, {"right": out.num_correct_b_to_a / len(text)}


def supervised(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The cross entropy of the head over `labels` (batch,), and the share of rows that are right."""
    out = model(**batch)
    return out["loss"], {"right": (out["logits"].argmax(-1) == batch["labels"]).float().mean()}


def _nearest(
    processor: OnePeaceProcessor, medium: str, labels: list[str], model: nn.Module, rows: Sequence[Sample]
) -> list[str] | None:
    """The label whose words are nearest to each row, by the model as it came; None for one that compares no words."""
    encoder: Any = _encoder(model)
    # one-peace-vision has the image branch alone, and no projection
    if medium == "text" or not {"text", medium} <= set(getattr(encoder, "projections", None) or ()):
        return None
    names = [label.replace("_", " ").replace("-", " ") for label in labels]
    # The name alone and in its sentence: their sum is an ensemble of two prompts.
    bare, told = (_text_vectors(encoder, processor, map(form.format, names)) for form in ("{}", PROMPTS[medium]))
    found = _vectors(encoder, processor, rows, medium) @ (bare + told).T
    return [labels[i] for i in found.argmax(1)]


def _encoder(model: nn.Module) -> nn.Module:
    """The features' model: what is under a classifier's head, else the model itself."""
    return model.model if isinstance(model, OnePeaceForClassification) else model


def _vectors(model: nn.Module, processor: OnePeaceProcessor, rows: Sequence[Sample], medium: str) -> np.ndarray:
    """Unit vectors (n, dim) of pictures or sounds."""
    found = []
    for batch in slices(rows):
        inputs = media_of([part_of(processor, medium, sample) for sample in batch], medium, processor)
        mask = inputs.pop("audio_attention_mask", None)
        inputs = {**inputs, **({} if mask is None else {"attention_mask": mask})}
        found.append(run_quietly(model, inputs, f"get_{medium}_features").numpy())
    return np.concatenate(found)


def _text_vectors(model: nn.Module, processor: OnePeaceProcessor, texts: Any) -> np.ndarray:
    """Unit vectors (n, dim) of an iterable of texts."""
    words = list(texts)
    tokens = [processor.tokenize(words[i : i + BATCH]) for i in range(0, len(words), BATCH)]
    return np.concatenate([run_quietly(model, one, "get_text_features").numpy() for one in tokens])
