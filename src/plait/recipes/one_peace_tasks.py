"""ONE-PEACE on one's own rows: `JOBS`, task -> function (Request) -> Job.

retrieval by contrast; classes, closed-vocabulary answers and objects by fresh heads

rows -> decoded (`_part`, objects) -> collated -> contrast | supervised | the losses of a dense model
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.manifest import digest
from plait.data.pairs import augment
from plait.data.reader import Reader
from plait.errors import UsageError
from plait.media.audio import load_audio
from plait.media.image import load_image
from plait.models.auto import load_processor
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, by_modality
from plait.models.one_peace.pretraining import decays
from plait.models.one_peace.processor import OnePeaceProcessor, padded
from plait.models.one_peace.regions import OnePeaceForObjectDetection, OnePeaceForUniversalSegmentation, skills
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.models.one_peace.weights import from_directory
from plait.objectives.contrastive import contrastive_loss
from plait.processing.images import square
from plait.processing.regions import Fitted, Objects, coco_results, detection_labels, fit, read_objects
from plait.recipes.finetune import Job, Request, class_map, in_evaluation, objects_in, text_of
from plait.training.parallel import chunk_of, gather_rows
from plait.training.stages import Stage, save_pair
from plait.types import Sample

# 2e-4 is stage 2's published peak too; a LoRA, which begins at zero, needs more.
FULL_LR, LORA_LR = 2e-4, 2e-3
PROMPTS = {"image": "a picture of {}", "audio": "this is a sound of {}"}
BATCH = 32


def retrieval(request: Request) -> Job:
    """Media and texts of one row close, all others far; rows of one label count as one.

    Raises UsageError for media other than image and audio.
    """
    _need(request.medium, ("image", "audio"), "retrieval")
    processor = load_processor(request.model)

    def collate(parts: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
        ids = torch.tensor([digest(part["concept"]) >> 1 for part in parts])  # the same in every process
        words = [part["texts"][int(rng.integers(len(part["texts"])))] for part in parts]
        return {**_media(parts, request.medium, processor, request.augmentation, rng), **processor.captions(words),
                "ids": ids}  # fmt: skip

    return Job(
        build=lambda: from_directory(request.model, dtype=torch.float32, model_class=OnePeaceModel),
        stage=_stage(request, processor, collate, partial(contrast, request.medium), read=True),
        predict=lambda model, rows: (
            _vectors(model, processor, rows, request.medium), _text_vectors(model, processor, map(text_of, rows))
        ),
        save=partial(save_pair, processor),
        augments=True,
    )  # fmt: skip


def classify(request: Request) -> Job:
    """A fresh head over the features of one medium; before it, the label whose words are nearest."""
    _need(request.medium, ("image", "audio", "text"), "classify")
    labels = sorted({sample.label or "" for sample in request.train})
    return _classified(request, labels, lambda sample: sample.label or "", is_asked=False)


def vqa(request: Request) -> Job:
    """Answers of the training rows as classes of a head over picture and question (as published for VQA)."""
    _need(request.medium, ("image",), "vqa")
    answers = sorted({(sample.answers or [""])[0] for sample in request.train})
    return _classified(request, answers, lambda sample: (sample.answers or [""])[0], is_asked=True)


def detect(request: Request) -> Job:
    """A fresh detector on the image branch, with masks where all training rows have them.

    A directory of a detector of the same classes goes on training. Raises UsageError for media other than image.
    """
    _need(request.medium, ("image",), "detect")
    rows = [objects_in(sample) for sample in request.train]
    labels = sorted({row["label"] for of in rows for row in of if not row["iscrowd"]})
    numbers = {label: i for i, label in enumerate(labels)}
    has_masks = all(row["segmentation"] for of in rows for row in of if not row["iscrowd"])
    build = partial(with_detector, request.model, labels, request.image_size, has_masks=has_masks)
    first = [build()]
    processor = OnePeaceProcessor.from_config(first[0].config)
    side = processor.image_size

    def decode(sample: Sample, rng: np.random.Generator) -> tuple[Any, Objects]:
        picture = load_image(sample.image).convert("RGB")
        of = [{**row, "category_id": row["label"]} for row in objects_in(sample)]
        return picture, read_objects(of, numbers, picture.size, f"row {sample.id}")

    def collate(parts: list[tuple[Any, Objects]], rng: np.random.Generator) -> dict[str, Any]:
        fitted = [jittered(*part, side, request.augmentation, rng) for part in parts]
        return {**padded(fitted), "labels": [detection_labels(one) for one in fitted]}

    def predict(model: nn.Module, samples: Sequence[Sample]) -> list[list[dict[str, Any]]]:
        return detected(model, processor, samples, labels)

    # The recipe needed a model to know its size; a second build reads the encoder again.
    return Job(
        build=lambda: first.pop() if first else build(),
        stage=_dense_stage(request, processor, collate, decode),
        predict=in_evaluation(predict),
        zero_shot=lambda model, samples: None,
        whole=lambda model: ("detector",),
        augments=True,
        save=partial(save_pair, processor),
    )


def segment(request: Request) -> Job:
    """A fresh segmenter on the image branch; rows are pictures with a class for every pixel.

    Raises UsageError for media other than image.
    """
    _need(request.medium, ("image",), "segment")
    names = request.train[0].meta["classes"]
    build = partial(with_segmenter, request.model, names, request.image_size)
    first = [build()]
    processor = OnePeaceProcessor.from_config(first[0].config)

    def decode(sample: Sample, rng: np.random.Generator) -> tuple[Any, Objects]:
        picture, mask = load_image(sample.image).convert("RGB"), class_map(sample)
        classes = np.setdiff1d(np.unique(mask), [0])
        # Regions may lie anywhere: the box of each is the picture.
        boxes = np.tile(np.array([0, 0, *picture.size], np.float32), (len(classes), 1))
        return picture, Objects(boxes, classes.astype(np.int64) - 1, mask == classes[:, None, None])

    def collate(parts: list[tuple[Any, Objects]], rng: np.random.Generator) -> dict[str, Any]:
        pixels, masks, classes = [], [], []
        for picture, objects in parts:
            fitted = jittered(picture, objects, processor.image_size, request.augmentation, rng)
            assert fitted.objects is not None and fitted.objects.masks is not None
            # What was cut away is no region any more.
            left = fitted.objects.masks.any(axis=(1, 2))
            pixels.append(fitted.pixels)
            masks.append(torch.from_numpy(fitted.objects.masks[left]))
            classes.append(torch.from_numpy(fitted.objects.classes[left]))
        return {"pixel_values": torch.stack(pixels), "mask_labels": masks, "class_labels": classes}

    def predict(model: nn.Module, samples: Sequence[Sample]) -> list[np.ndarray]:
        spoken = skills(model, processor)
        return [spoken.segment([spoken.prepare("image", sample.image)])[0].numpy() for sample in samples]

    return Job(
        build=lambda: first.pop() if first else build(),
        stage=_dense_stage(request, processor, collate, decode),
        predict=in_evaluation(predict),
        zero_shot=lambda model, samples: None,
        # Beside a LoRA all that is fresh trains whole: the head, and what ViT-Adapter adds.
        whole=lambda model: (
            "pixel_decoder",
            "transformer",
            "class_predictor",
            "prior",
            "injectors",
            "extractors",
            "last_extractors",
            "up",
            "norms",
        ),
        save=partial(save_pair, processor),
        augments=True,
    )


def with_segmenter(directory: Path, labels: Sequence[str], image_size: int | None) -> OnePeaceForUniversalSegmentation:
    """The image branch of a model directory, a table of positions per layer as published, under a fresh head.

    Raises UsageError for a size that is no multiple of 32.
    """
    config = OnePeaceConfig.from_pretrained(directory, trust_remote_code=False)
    size = image_size or 2 * config.image_size
    if size % 32 or size < config.image_size:
        raise UsageError(
            f"expected image_size as a multiple of 32 from {config.image_size} on, got {size}; tables only grow"
        )
    changes: dict[str, Any] = {
        "per_layer_bias": True,
        "image_rel_bucket_size": size // 16,
        "norm_ways": {},
        "use_projections": False,
    }
    encoder = from_directory(
        directory, dtype=torch.float32, model_class=OnePeaceModel, branch=("image",), decoder=None, **changes
    )
    assert isinstance(encoder, OnePeaceModel)
    sizes: dict[str, Any] = {}
    if config.dim < 768:
        # The published head would cost many times what a small branch does.
        width = max(32, config.dim // 32 * 32)
        sizes = {"stem_channels": 16, "num_heads": config.num_heads, "head_dim": width, "head_heads": 4,
                 "num_queries": 2 * len(labels) + 10, "head_mlp_dim": 4 * width, "pixel_layers": 2, "query_layers": 3,
                 "num_loss_points": 1024}  # fmt: skip
    return OnePeaceForUniversalSegmentation.from_encoder(encoder, labels, **sizes)


def jittered(picture: Any, objects: Objects, side: int, strength: float, rng: np.random.Generator) -> Fitted:
    """A picture and its objects as a square, by large-scale jitter: 0.1 to 2 as published at strength 1, mirrored."""
    scale = float(np.exp(rng.uniform(np.log(1 - 0.9 * strength), np.log(1 + strength))))
    place = (float(rng.uniform()), float(rng.uniform()))
    return fit(picture, side, objects, scale=scale, place=place, flip=bool(strength and rng.uniform() < 0.5))


def _dense_stage(request: Request, processor: OnePeaceProcessor, collate: Any, decode: Any) -> Stage:
    """A stage in which everything trains, on the sum of the model's own losses."""
    return replace(
        _stage(request, processor, collate, dense_loss, read=False),
        batches=lambda: Reader(request.train, collate, decode, reading=request.reading),
        clip=1.0,
        trainable=("re:.*",),
    )


def with_detector(
    directory: Path, labels: Sequence[str], image_size: int | None, *, has_masks: bool
) -> OnePeaceForObjectDetection:
    """The image branch of a model directory under fresh heads, narrow ones where the branch is; or its detector.

    Raises UsageError for a detector of other classes or another size.
    """
    config = OnePeaceConfig.from_pretrained(directory, trust_remote_code=False)
    if config.detection is not None:
        model = from_directory(directory, dtype=torch.float32, model_class=OnePeaceForObjectDetection)
        held = list((config.id2label or {}).values())
        if held != list(labels) or image_size not in (None, config.image_size):
            raise UsageError(
                f"expected rows of {', '.join(held)} at {config.image_size} pixels for this detector, got "
                f"{', '.join(labels)} at {image_size}; start from an encoder instead"
            )
        assert isinstance(model, OnePeaceForObjectDetection)
        return model
    encoder = from_directory(directory, dtype=torch.float32, model_class=OnePeaceModel, branch=("image",))
    assert isinstance(encoder, OnePeaceModel)
    sizes: dict[str, Any] = {"has_masks": has_masks}
    if config.dim < 768:
        # The published heads would cost many times what a small branch does.
        sizes |= {"channels": max(config.dim // 2, 8), "head_dim": config.dim, "num_convs": 1, "proposal_convs": 1,
                  "proposals": [300, 200], "kept_proposals": 100, "drawn_anchors": 128, "drawn_boxes": 64}  # fmt: skip
    return OnePeaceForObjectDetection.from_encoder(encoder, labels, image_size or 2 * config.image_size, **sizes)


def dense_loss(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the losses of a detector or a segmenter, and each of them."""
    out = model(**batch)
    return out["loss"], out["loss_dict"]


def detected(
    model: nn.Module, processor: OnePeaceProcessor, samples: Sequence[Sample], labels: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """What a detector finds in each row's picture, of every score: label, score, bbox, and segmentation, mask_score."""
    device, names, found = next(model.parameters()).device, dict(enumerate(labels)), []
    for start in range(0, len(samples), 8):
        pictures = [load_image(sample.image).convert("RGB") for sample in samples[start : start + 8]]
        out = model(**processor(images=pictures).to(device))
        sizes = [(picture.height, picture.width) for picture in pictures]
        has_masks = out.pred_masks is not None  # by name: an output has no key for what is None
        for one in processor.post_process_object_detection(out, 0.0, sizes, return_masks=has_masks):
            rows = coco_results({name: value.cpu() for name, value in one.items()}, None, names)
            extra = [{"mask_score": float(x)} for x in one["mask_scores"]] if has_masks else [{}] * len(rows)
            found.append([{**row, "label": row["category_id"], **more} for row, more in zip(rows, extra, strict=True)])
    return found


JOBS: dict[str, Callable[[Request], Job]] = {
    "retrieval": retrieval,
    "classify": classify,
    "vqa": vqa,
    "detect": detect,
    "segment": segment,
}


def _classified(request: Request, labels: list[str], of: Callable[[Sample], str], *, is_asked: bool) -> Job:
    """A job whose head tells `labels` apart; `of` gives the label of a row, is_asked: a question is read too."""
    processor = load_processor(request.model)
    number = {label: i for i, label in enumerate(labels)}

    def collate(parts: list[dict[str, Any]], rng: np.random.Generator) -> dict[str, Any]:
        targets = torch.tensor([number[of(part["sample"])] for part in parts])
        return {**_inputs(parts, request.medium, processor, is_asked, request.augmentation, rng), "labels": targets}

    def predict(model: nn.Module, rows: Sequence[Sample]) -> list[str]:
        said: list[str] = []
        for batch in _batches(rows):
            parts = [_part(processor, request.medium, sample) for sample in batch]
            logits = _run(model, _inputs(parts, request.medium, processor, is_asked))["logits"]
            said += [labels[i] for i in logits.argmax(-1).tolist()]
        return said

    return Job(
        build=partial(with_head, request.model, labels, None if is_asked else request.medium),
        stage=_stage(request, processor, collate, supervised, read=is_asked),
        predict=predict,
        zero_shot=None if is_asked else partial(_nearest, processor, request.medium, labels),
        whole=lambda model: ("head",),
        augments=request.medium != "text",
        save=partial(save_pair, processor),
    )


def with_head(directory: Path, labels: Sequence[str], medium: str | None = None) -> OnePeaceForClassification:
    """The encoder of a model directory under a fresh head for `labels`, of items of one medium alone or of pairs."""
    encoder = from_directory(directory, dtype=torch.float32, model_class=OnePeaceModel)
    config = copy.deepcopy(encoder.config)
    assert isinstance(config, OnePeaceConfig)
    # The pretraining decoder is no part of a classifier, and its weights are not loaded.
    config.decoder = None
    config.num_classes, config.pool_attention = len(labels), True
    config.id2label, config.label2id = dict(enumerate(labels)), {label: i for i, label in enumerate(labels)}
    if medium is not None:  # tells the verbs what it takes: a class of one item, no answer to a question
        config.pool_modality, config.problem_type = medium, "single_label_classification"
    model = OnePeaceForClassification(config)
    model.model.load_state_dict(encoder.state_dict(), assign=True)
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


def _stage(request: Request, processor: OnePeaceProcessor, collate: Any, objective: Any, *, read: bool) -> Stage:
    """A stage over the rows asked for: `collate` -> `objective`; read: whether text is read beside the medium."""
    lr = request.lr or (LORA_LR if request.lora else FULL_LR)

    def decode(sample: Sample, rng: np.random.Generator) -> dict[str, Any]:
        return _part(processor, request.medium, sample)

    return Stage(
        name=request.task,
        objective=objective,
        batches=lambda: Reader(request.train, collate, decode, reading=request.reading),
        batch_size=request.batch_size,
        steps=request.steps,
        epochs=request.epochs,
        peak_lr=lr,
        floor=lr / 100,
        warmup=0.1,
        # Parameters that the task never reaches get no gradient; frozen, they need no optimiser state.
        trainable=(_used(request.medium, read, embeds=objective is not supervised),),
        # A LoRA of peft renames modules that train whole; the list knows the plain names.
        no_decay=lambda name, parameter: not decays(name.replace(".modules_to_save.default", ""), parameter.ndim),
    )


def _used(medium: str, reads_text: bool, embeds: bool) -> str:
    """A pattern of everything but other modalities and, for a head, what embeds alone needs."""
    idle = [m for m in ("text", "image", "audio") if m != medium and not (m == "text" and reads_text)]
    unused = [rf"\.({'|'.join(idle)})\."] + ([] if embeds else ["projections", "logit_scale"])
    return f"re:^(?!.*({'|'.join(unused)}))"


def _part(processor: OnePeaceProcessor, medium: str, sample: Sample) -> dict[str, Any]:
    """One row, decoded: its picture (3, side, side) in [0, 1] or its waveform (samples,), and its words."""
    part: dict[str, Any] = {"sample": sample, "texts": sample.captions or [sample.text or ""]}
    part["concept"] = sample.label or part["texts"][0]
    if medium == "image":
        part["pixels"] = square(load_image(sample.image).convert("RGB"), processor.image_size, (0, 0, 0), (1, 1, 1))
    elif medium == "audio":
        part["wave"] = load_audio(sample.audio, processor.sampling_rate)
    return part


def _media(
    parts: list[dict[str, Any]],
    medium: str,
    processor: OnePeaceProcessor,
    strength: float = 0.0,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """pixel_values, or input_values and audio_attention_mask where clips differ in length; augmented with `rng`."""
    if medium == "image":
        pixels = torch.stack([part["pixels"] for part in parts])
        pixels = augment(pixels, strength, rng) if strength and rng is not None else pixels
        image = processor.image_processor
        mean, std = (torch.tensor(values)[:, None, None] for values in (image.image_mean, image.image_std))
        return {"pixel_values": (pixels - mean) / std}
    waves = [part["wave"] for part in parts]
    if strength and rng is not None:
        # Shifted in a circle by up to a quarter: nothing of a short clip is lost.
        waves = [np.roll(wave, int(rng.uniform(-0.25, 0.25) * strength * len(wave))) for wave in waves]
    made = processor.feature_extractor(waves, processor.sampling_rate)
    mask = torch.as_tensor(made["audio_attention_mask"]).bool()
    values = {"input_values": torch.as_tensor(made["input_values"])}
    return values if mask.all() else {**values, "audio_attention_mask": mask}


def _inputs(
    parts: list[dict[str, Any]],
    medium: str,
    processor: OnePeaceProcessor,
    is_asked: bool,
    strength: float = 0.0,
    rng: np.random.Generator | None = None,
) -> dict[str, Tensor]:
    """What the head's encoder reads: the medium, and the question or text where it counts."""
    words = [part["sample"].question or part["sample"].text or "" for part in parts]
    texts = processor.captions(words) if is_asked or medium == "text" else {}
    return {**texts, **(_media(parts, medium, processor, strength, rng) if medium != "text" else {})}


def _nearest(
    processor: OnePeaceProcessor, medium: str, labels: list[str], model: nn.Module, rows: Sequence[Sample]
) -> list[str] | None:
    """The label whose words are nearest to each row, by the model as it came."""
    if medium == "text":
        return None
    names = [label.replace("_", " ").replace("-", " ") for label in labels]
    encoder = _encoder(model)
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
    for batch in _batches(rows):
        inputs = _media([_part(processor, medium, sample) for sample in batch], medium, processor)
        mask = inputs.pop("audio_attention_mask", None)
        inputs = {**inputs, **({} if mask is None else {"attention_mask": mask})}
        found.append(_run(model, inputs, f"get_{medium}_features").numpy())
    return np.concatenate(found)


def _text_vectors(model: nn.Module, processor: OnePeaceProcessor, texts: Any) -> np.ndarray:
    """Unit vectors (n, dim) of an iterable of texts."""
    words = list(texts)
    tokens = [processor.tokenize(words[i : i + BATCH]) for i in range(0, len(words), BATCH)]
    return np.concatenate([_run(model, one, "get_text_features").numpy() for one in tokens])


def _run(model: nn.Module, inputs: dict[str, Tensor], method: str = "forward") -> Any:
    """Call a method in evaluation mode, without gradients, inputs and outputs moved."""
    device, was_training = next(model.parameters()).device, model.training
    model.eval()
    with torch.no_grad():
        out = getattr(model, method)(**{name: value.to(device) for name, value in inputs.items()})
    model.train(was_training)
    return out.float().cpu() if isinstance(out, Tensor) else {k: v.float().cpu() for k, v in out.items()}


def _batches(rows: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
    """`rows` in slices of at most `BATCH`."""
    return (rows[i : i + BATCH] for i in range(0, len(rows), BATCH))


def _need(medium: str, known: Sequence[str], task: str) -> None:
    """Raise UsageError unless `medium` is among `known`."""
    if medium not in known:
        raise UsageError(f"expected {' or '.join(known)} for {task} with one_peace, got {medium}; set medium")
