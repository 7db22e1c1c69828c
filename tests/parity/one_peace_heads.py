"""Golden cases of ONE-PEACE's classification heads and of the figures it is evaluated with.

The kind of a head decides its loss; sizes, modalities and options come from config.json.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from plait.metrics import boxes, retrieval, tagging
from plait.models.one_peace.model import Encoded
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.objectives import classification
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner

from .one_peace_model import build, encode, official_gradients

Outputs = dict[str, Any]
Loss = Callable[[Tensor, Tensor], Tensor]
CUTOFFS = (1, 5, 10)


def head_outputs(case: Case, loss: Loss, repeat: int = 1) -> Outputs:
    """Features, pooled vector, logits, loss and gradients of one head.

    loss: (logits, target) -> scalar; repeat: how many texts share a clip.
    """
    model = build(case, OnePeaceForClassification)
    inputs = dict(case.inputs)
    for name in ("src_audios", "audio_padding_masks"):
        if name in inputs:
            inputs[name] = inputs[name].repeat_interleave(repeat, dim=0)
    names = [m for m, name in SOURCES.items() if name in inputs]
    encoded = encode(model.model, inputs, *names)
    pooled = pool(model, encoded)
    vectors = [pooled]
    if "src_images_2" in inputs:
        second = {"pixel_values": inputs["src_images_2"], "is_second": True}
        vectors.append(model.pool({"text": inputs["src_tokens"], "image": second}))
    logits = model.head.classifier(torch.cat(vectors, dim=-1))
    total = loss(logits, inputs["target"])
    total.backward()
    found: Outputs = {"out.logits": logits, "out.loss": total, "out.pooled": pooled, "out.coords": logits.sigmoid()}
    found |= {f"out.{m}_features": x for m, x in encoded.features.items()}
    found |= {f"out.grad.{name}": grad for name, grad in official_gradients(case, model).items() if grad is not None}
    return {name: value for name, value in found.items() if name in case.outputs}


SOURCES = {"text": "src_tokens", "image": "src_images", "audio": "src_audios"}


def pool(model: OnePeaceForClassification, encoded: Encoded) -> Tensor:
    """The vector that the classifier reads."""
    modality = model.config.pool_modality or next(iter(encoded.features))
    return model.head.pooled(encoded.features[modality], encoded.masks[modality])


@runner("one_peace", "classify_vqa")
def vqa(case: Case) -> Outputs:
    return head_outputs(case, lambda logits, target: classification.multi_label_sum(logits, target)[0])


@runner("one_peace", "classify_fsd50k")
def fsd50k(case: Case) -> Outputs:
    return head_outputs(case, lambda logits, target: classification.multi_label_sum(logits, target)[0])


def single_label(case: Case) -> Outputs:
    """Cross-entropy against class numbers or probabilities."""
    smoothing = float(case.config.get("label_smoothing", 0.0))
    return head_outputs(case, lambda x, target: classification.cross_entropy_sum(x, target, smoothing)[0])


@runner("one_peace", "classify_nlvr2")
def nlvr2(case: Case) -> Outputs:
    return single_label(case)


@runner("one_peace", "classify_vggsound")
def vggsound(case: Case) -> Outputs:
    return single_label(case)


@runner("one_peace", "classify_image_cls")
def image_cls(case: Case) -> Outputs:
    return single_label(case)


@runner("one_peace", "classify_aqa")
def aqa(case: Case) -> Outputs:
    """Every clip is read with each of its questions' choices, which lie one after the other."""
    choices = len(case.inputs["src_tokens"]) // len(case.inputs["src_audios"])
    return head_outputs(
        case, lambda x, target: classification.choice_hinge_sum(x.reshape(-1, choices), target)[0], repeat=choices
    )


@runner("one_peace", "classify_grounding")
def grounding(case: Case) -> Outputs:
    return head_outputs(case, classification.box_loss)


@runner("one_peace", "metrics", tolerance={"out.*": Tolerance(1e-6, 1e-6)})
def figures(case: Case) -> Outputs:
    """Recall both ways (in percent), acc@0.5 of boxes, soft VQA accuracy and macro mAP."""
    inputs = {name: value.numpy() for name, value in case.stored_inputs.items()}
    out: Outputs = {}
    if "image_embeds" in inputs:
        out |= recalls(
            inputs["image_embeds"] @ inputs["text_embeds"].T,
            inputs["image_ids"][:, None] == inputs["text_ids"][None, :],
        )
    if "boxes_pred" in inputs:
        out["out.iou_acc"] = torch.tensor([boxes.accuracy_at_iou(inputs["boxes_pred"], inputs["boxes_gt"])])
    if "acc.logits" in inputs:
        chosen = inputs["acc.logits"].argmax(axis=1)
        scores = inputs["acc.soft_targets"][range(len(chosen)), chosen]
        out["out.acc.soft"] = torch.tensor([scores.mean()])
    if "map.logits" in inputs:
        value = tagging.mean_average_precision(tagging.sigmoid(inputs["map.logits"]), inputs["map.targets"] > 0)
        out["out.map"] = torch.tensor(value, dtype=torch.float64)
    return out


def recalls(similarity: Any, targets: Any) -> Outputs:
    """`txt_*`: texts found for images, `img_*`: images found for texts; similarity, targets: (images, texts).

    A count is the size of the gallery that was searched.
    """
    out: Outputs = {}
    for way, scores, right in (("txt", similarity, targets), ("img", similarity.T, targets.T)):
        found = [100.0 * retrieval.recall_at_k(scores, right, k) for k in CUTOFFS]
        out |= {f"out.recall.{way}_r{k}": torch.tensor(value) for k, value in zip(CUTOFFS, found, strict=True)}
        out[f"out.recall.{way}_r_mean"] = torch.tensor(sum(found) / len(found))
        out[f"out.recall.{way}_count"] = torch.tensor(float(scores.shape[1]))
    both = out["out.recall.txt_r_mean"] + out["out.recall.img_r_mean"]
    return out | {"out.recall.r_mean": both / 2}
