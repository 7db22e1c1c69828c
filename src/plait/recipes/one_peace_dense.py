"""Objects and classes of pixels on ONE-PEACE's image branch, from rows of one's own.

picture, boxes, masks -> jittered, squared -> the losses of a detector or segmenter
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.reader import Reader
from plait.errors import UsageError
from plait.media.image import load_image
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.models.one_peace.processor import OnePeaceProcessor, padded
from plait.models.one_peace.regions import OnePeaceForObjectDetection, OnePeaceForUniversalSegmentation, skills
from plait.models.one_peace.weights import from_directory
from plait.processing.regions import Fitted, Objects, coco_results, detection_labels, fit, read_objects
from plait.recipes.finetune import (
    Job,
    Request,
    class_map,
    in_evaluation,
    objects_in,
)
from plait.recipes.one_peace_rows import need, task_stage
from plait.training.stages import Stage, save_pair
from plait.types import Sample


def detect(request: Request) -> Job:
    """A fresh detector on the image branch, with masks where all training rows have them.

    A directory of a detector of the same classes goes on training. Raises UsageError for media other than image.
    """
    need(request.medium, ("image",), "detect")
    rows = [objects_in(sample) for sample in request.train]
    labels = sorted({row["label"] for of in rows for row in of if not row["iscrowd"]})
    numbers = {label: i for i, label in enumerate(labels)}
    has_masks = all(row["segmentation"] for of in rows for row in of if not row["iscrowd"])
    config = OnePeaceConfig.from_pretrained(request.model, trust_remote_code=False)
    side = request.image_size or (1 if config.detection else 2) * config.image_size
    sizes: dict[str, Any] = {"has_masks": has_masks}
    if config.detection is None:
        sizes["anchor"] = anchor_for(request.train, side)
    build = partial(with_detector, request.model, labels, side, **sizes)
    first = [build()]
    processor = OnePeaceProcessor.from_config(first[0].config)

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
    """A fresh segmenter on the image branch; rows are images with a class for every pixel.

    Raises UsageError for media other than image.
    """
    need(request.medium, ("image",), "segment")
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
    """An image and its objects as a square, by large-scale jitter: 0.1 to 2 as published at strength 1, mirrored."""
    scale = float(np.exp(rng.uniform(np.log(1 - 0.9 * strength), np.log(1 + strength))))
    place = (float(rng.uniform()), float(rng.uniform()))
    return fit(picture, side, objects, scale=scale, place=place, flip=bool(strength and rng.uniform() < 0.5))


def _dense_stage(request: Request, processor: OnePeaceProcessor, collate: Any, decode: Any) -> Stage:
    """A stage in which everything trains, on the sum of the model's own losses."""
    return replace(
        task_stage(request, processor, collate, dense_loss, read=False, embeds=False),
        batches=lambda: Reader(request.train, collate, decode, reading=request.reading),
        clip=1.0,
        trainable=("re:.*",),
    )


def with_detector(
    directory: Path, labels: Sequence[str], image_size: int | None, **sizes: Any
) -> OnePeaceForObjectDetection:
    """The image branch of a model directory under fresh heads, narrow ones where the branch is; or its detector.

    sizes: fields of `DetectionConfig` for fresh heads; a detector keeps its own.

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
    if config.dim < 768:
        # The published heads would cost many times what a small branch does.
        sizes |= {"channels": max(config.dim // 2, 8), "head_dim": config.dim, "num_convs": 1, "proposal_convs": 1,
                  "proposals": [300, 200], "kept_proposals": 100, "drawn_anchors": 128, "drawn_boxes": 64}  # fmt: skip
    return OnePeaceForObjectDetection.from_encoder(encoder, labels, image_size or 2 * config.image_size, **sizes)


MEASURED = 200
"""Pictures at most, evenly over the rows, whose boxes decide how large anchors are."""


def anchor_for(samples: Sequence[Sample], side: int) -> float:
    """Side of the anchors in strides that small boxes of the rows need; what was chosen is said where it is not 8.

    An anchor of twice a box's side overlaps it by a quarter, less than the 0.3 below which it counts as background:
    boxes that small would be taught by one anchor each. So 8 is halved until the finest anchors, at stride 4, are at
    most sqrt(2) of the lower quartile of the boxes' sides.

    Args:
        samples: of training, with boxes in pixels of their images.
        side: of the square that images are fitted into, in pixels.
    """
    sides: list[float] = []
    for sample in samples[:: -(-len(samples) // MEASURED)]:
        boxes = [row["bbox"] for row in objects_in(sample) if not row["iscrowd"]]
        try:
            ratio = side / max(load_image(sample.image).size)
        except (ValueError, OSError):
            continue  # the reader speaks of it, or leaves it out, as was asked for
        sides += [ratio * (w * h) ** 0.5 for _, _, w, h in boxes if w > 0 and h > 0]
    if not sides:
        return 8
    anchor, small = 8, float(np.quantile(sides, 0.25))
    while anchor > 1 and 4 * anchor > 2**0.5 * small:
        anchor //= 2
    if anchor < 8:
        advice = "; a larger image_size would show more of them" if small < 8 else ""
        print(
            f"a quarter of the boxes are smaller than {small:.0f} pixels at image_size {side}: the finest anchors are "
            f"{4 * anchor} pixels instead of 32{advice}",
            file=sys.stderr,
            flush=True,
        )
    return anchor


def dense_loss(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the losses of a detector or a segmenter, and each of them."""
    out = model(**batch)
    return out["loss"], out["loss_dict"]


def detected(
    model: nn.Module, processor: OnePeaceProcessor, samples: Sequence[Sample], labels: Sequence[str]
) -> list[list[dict[str, Any]]]:
    """What a detector finds in each row's image, of every score: label, score, bbox, and segmentation, mask_score."""
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
