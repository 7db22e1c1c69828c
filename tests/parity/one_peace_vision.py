"""Golden cases of ONE-PEACE's vision branch: pictures, videos, dense backbones and what follows them."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.models.one_peace import from_official as load_official
from plait.models.one_peace.dense import DetectionBackbone, SegmentationBackbone
from plait.models.one_peace.model import OnePeaceModel
from plait.models.one_peace.regions import OnePeaceBackbone
from plait.models.one_peace.vision import OnePeaceImageClassifier, OnePeaceVideoClassifier
from plait.models.one_peace.weights import from_official, key_map
from plait.nn import detection
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.weights.files import read_checkpoint

from .released import official_order

Outputs = dict[str, Any]
M = TypeVar("M", bound=nn.Module)


def opened(case: Case, wanted: type[M]) -> M:
    """The model of the case, as `plait.load` opens its file; every weight is used."""
    checkpoint = read_checkpoint(case.path / "weights.safetensors")
    model, _ = load_official(checkpoint, official_config=case.config)
    if not isinstance(model, wanted):
        raise ValueError(f"expected a {wanted.__name__} in this case's weights, got {type(model).__name__}")
    model.set_attn_implementation(case.attn)
    return model.to(case.device, case.dtype).eval()


def extracted_name(key: str) -> str | None:
    """The name that a tensor of the full model has in the extracted vision branch.

    Left behind are text, audio, decoder and masking parts, the projection and also the final norm.

    Args:
        key: of an official file of the full model.

    Returns:
        The name, None for a tensor that is left behind.

    Source: specification ONE-PEACE, section 3.4.
    """
    if key.startswith(("image_proj.", "encoder_wrapper.fusion_model.image_layer_norm.")):
        return None
    # By parts of names, as released: `mask` also catches the mask tokens and heads of images.
    if any(part in key for part in ("text", "audio", "decoder", "mask", "logit_scale", "version")):
        return None
    name = key.replace("encoder_wrapper", "encoder").replace("fusion_model.", "")
    return name.replace("encoder.", "", 1) if "adapter" in name else name


@runner("one_peace", "vision_imagenet")
@torch.no_grad()
def imagenet(case: Case) -> Outputs:
    model = opened(case, OnePeaceImageClassifier)
    features = model.features(case.inputs["src_images"])
    logits = model.classify(features)
    out: Outputs = {"out.features": features, "out.logits": logits}
    for name in case.outputs:
        if found := re.fullmatch(r"out\.loss_ls([\d.]+)", name):
            out[name] = F.cross_entropy(logits, case.inputs["target"], label_smoothing=float(found[1]))
    return out


@runner("one_peace", "vision_video")
@torch.no_grad()
def video(case: Case) -> Outputs:
    frames = case.config["num_frames"]
    model = opened(case, OnePeaceVideoClassifier)
    encoded = model.frames(case.inputs["video"])
    cls = encoded[:, 0].unflatten(0, (-1, frames)).transpose(1, 2)
    return {
        "out.frames": encoded,
        "out.features": cls[..., None, None],
        "out.cls_score": model.classify(encoded),
    }


@runner("one_peace", "vision_det_backbone")
@torch.no_grad()
def detection_backbone(case: Case) -> Outputs:
    backbone = opened(case, OnePeaceBackbone)
    model = backbone.net
    assert isinstance(model, DetectionBackbone)
    return {
        "out.adapter.x": model.embed(case.inputs["src_images"]),
        "out.attn_bias_global": model.bias(model.side),
        "out.attn_bias_window": model.bias(model.window),
        "out.last_feat": backbone(case.inputs["src_images"]).feature_maps[0],
    }


@runner("one_peace", "vision_convert", config_outputs=("key_map", "missing_in_vit", "unexpected_in_vit"))
@torch.no_grad()
def convert(case: Case) -> Outputs:
    """The extracted branch: names, what a classifier around it lacks or does not know, and its features."""
    checkpoint = replace(read_checkpoint(case.path / "weights.safetensors"), config=dict(case.config))
    model = from_official(
        checkpoint,
        model_class=OnePeaceModel,
        branch=("image",),
        norm_ways={},
        use_projections=False,
        official=case.official,
    )
    if not isinstance(model, OnePeaceModel):
        raise ValueError(f"expected a OnePeaceModel in this case's weights, got {type(model).__name__}")
    model.to(case.device, case.dtype).set_attn_implementation(case.attn)
    full = key_map(model.config)
    stored = official_order(full.backward(full.forward(checkpoint.state)[0]))  # index buffers included
    renamed = {key: name for key in stored if (name := extracted_name(key)) is not None}
    classifier = classifier_keys(model)
    table = "image_adapter.rel_pos_table.weight"  # a consumer makes it from the file's first table
    return {
        "out.features_before_final_norm": model.encode({"image": case.inputs["src_images"]}).features["image"],
        "config.key_map": renamed,
        "config.missing_in_vit": [key for key in classifier if key not in renamed.values() and key != table],
        "config.unexpected_in_vit": [name for name in renamed.values() if name not in classifier],
    }


def classifier_keys(model: OnePeaceModel) -> list[str]:
    """Official keys of a picture classifier around this branch, its index buffer included."""
    state: dict[str, Tensor] = {f"vision.{key}": value for key, value in model.state_dict().items()}
    state |= {key: torch.empty(0) for key in ("norm.weight", "norm.bias", "head.weight", "head.bias")}
    return [*OnePeaceImageClassifier.key_map().backward(state), "image_adapter.rp_bucket"]


@runner("one_peace", "vision_postprocess", tolerance={"out.*": Tolerance(1e-6, 1e-6)})
def postprocess(case: Case) -> Outputs:
    inputs, options = case.stored_inputs, case.config.get("soft_nms", {})
    out: Outputs = {}
    for name in case.outputs:
        if found := re.fullmatch(r"out\.(linear|gaussian|hard)\.([\d.]+)\.keep", name):
            kept, scores = detection.soft_nms(
                inputs["boxes"], inputs["scores"], inputs["classes"],
                method=cast("detection.SoftNms", found[1]), threshold=float(found[2]), **options,
            )  # fmt: skip
            prefix = name.removesuffix("keep")
            out |= {name: kept, f"{prefix}scores": scores}
    if "masks" in inputs:
        out["out.maskness_scores"] = detection.maskness_scores(
            inputs["mask_scores"], inputs["masks"], case.config.get("maskness_threshold", 0.5)
        )
    if "seg.cls_logits" in inputs:
        out["out.seg.semantic"] = detection.semantic_map(inputs["seg.cls_logits"], inputs["seg.mask_logits"])
    return out


@runner("one_peace", "vision_seg_backbone", tolerance={"out.*": Tolerance(1e-4, 1e-4)})
@torch.no_grad()
def segmentation_backbone(case: Case) -> Outputs:
    backbone = opened(case, OnePeaceBackbone)
    assert isinstance(backbone.net, SegmentationBackbone)
    prior = backbone.net.prior(case.inputs["src_images"])
    found = {f"out.f{i}": x for i, x in enumerate(backbone(case.inputs["src_images"]).feature_maps, start=1)}
    tokens = [prior[0], *(x.flatten(2).transpose(1, 2) for x in prior[1:])]
    return found | {f"out.spm.c{i}": x for i, x in enumerate(tokens, start=1)}
