"""Golden cases of whole mPLUG-2 and mPLUG models: official files through the public loader, every stored output out."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import Encoded, MPlug2PreTrainedModel
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration, MPlug2ForGrounding
from plait.models.mplug2.weights import NEVER_RUN, finetuning_name, from_official, key_map
from plait.objectives.captioning import supervise
from plait.objectives.grounding import boxes_to_tokens
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.weights.files import read_checkpoint

from .key_lists import both_ways, read_list
from .mplug2_modules import hypotheses

Outputs = dict[str, Any]
M = TypeVar("M", bound=MPlug2PreTrainedModel)
SCORES = {"*.scores": Tolerance(1e-4, 1e-4)}


def build(case: Case, model_class: type[M], **changes: Any) -> M:
    """The case's model through the public loader, with the official quirks."""
    model = from_official(
        replace(read_checkpoint(case.path / "weights.safetensors"), config=dict(case.config)),
        model_class=model_class,
        dtype=case.dtype,
        device=case.device,
        official=case.official,
        **changes,
    )
    model.set_attn_implementation(case.attn)
    if not isinstance(model, model_class):
        raise ValueError(f"expected a {model_class.__name__}, got a {type(model).__name__}")
    return model


def official_state(model: MPlug2PreTrainedModel, native: dict[str, Tensor]) -> dict[str, Tensor]:
    """Native tensors under their official names."""
    return dict(key_map(model.config).backward(native))


def gradients(case: Case, model: MPlug2PreTrainedModel) -> Outputs:
    """Stored gradients by their official names, zero where none arrived and for tensors that the task leaves out."""
    native = {n: torch.zeros_like(p) if p.grad is None else p.grad for n, p in model.named_parameters()}
    official = {name: torch.zeros_like(w) for name, w in case.weights().items()} | official_state(model, native)
    return {name: official[name.removeprefix("out.grad.")] for name in case.outputs if name.startswith("out.grad.")}


def stored_after(case: Case, model: MPlug2PreTrainedModel, prefix: str) -> Outputs:
    """Parameters and buffers that a case stores as they are after a step; what the task leaves out stays as it was."""
    official = case.weights() | official_state(model, dict(model.state_dict()))
    return {name: official[name.removeprefix(prefix)] for name in case.outputs if name.startswith(prefix)}


def seen(case: Case) -> dict[str, Any]:
    """The pictures or clips of a case as our models take them."""
    inputs = case.inputs
    return {"pixel_values": inputs["image"]} if "image" in inputs else {"pixel_values_videos": inputs["video"]}


def encoded_outputs(case: Case, model: MPlug2ForConditionalGeneration, encoded: Encoded) -> Outputs:
    """States behind the vision encoder, the universal layers and the fusion module."""
    network, outputs = model.model, {}
    if "out.vision_tokens" in case.outputs:
        clips = case.inputs["video"] if "video" in case.inputs else case.inputs["image"][:, :, None]
        outputs["out.vision_tokens"] = network.vision(clips, network.attend)
    mask = case.inputs.get("question_mask")
    return outputs | {
        "out.image_embeds": encoded.vision,
        "out.fusion_image": encoded.fused_vision,
        "out.fusion_text": encoded.fused_text,
        "valid.out.fusion_text": None if mask is None else mask.bool(),
    }


def searched(case: Case, model: MPlug2ForConditionalGeneration, encoded: Encoded) -> Outputs:
    """The best texts and, where stored, all beams, with the lengths of the config."""
    beams, longest = case.config["beam_size"], case.config["max_length"]
    lengths = {"min_length": min(case.config["min_length"], longest), "max_length": longest}
    found = model.search(encoded, num_beams=beams, num_return=beams, **lengths)
    return hypotheses([item[:1] for item in found], "out.generate") | hypotheses(found, "out.nbest")


def answered(case: Case) -> Outputs:
    """Question answering: loss, gradients, teacher, searched and ranked answers."""
    inputs = case.inputs
    has_teacher = bool(case.config.get("distill"))
    model = build(case, MPlug2ForConditionalGeneration, task="answer", distill=has_teacher)
    question = {"input_ids": inputs["question_ids"], "attention_mask": inputs["question_mask"]}
    texts = {
        "decoder_input_ids": inputs["answer_ids"],
        "decoder_attention_mask": inputs["answer_mask"],
        "answers_per_question": inputs["answers_per_question"],
    }
    outputs: Outputs = {}
    if has_teacher:
        model.update_teacher()
        media: dict[str, Any] = {"pixel_values": None, "pixel_values_videos": None} | seen(case)
        outputs["out.momentum_logits"] = model.teacher_logits(**media, **question, **texts)[:, :-1]
        outputs |= stored_after(case, model, "out.after_update.")
        outputs["valid.out.momentum_logits"] = inputs["answer_mask"][:, :-1].bool()
    loss = model(
        **seen(case),
        **question,
        **texts,
        labels=supervise(inputs["answer_ids"], inputs["answer_mask"]),
        answer_weights=inputs["answer_weights"],
        alpha=0.4 if has_teacher else 0.0,
    ).loss
    loss.backward()
    outputs |= {"out.loss": loss} | gradients(case, model)
    with torch.no_grad():
        encoded = model.encode(**seen(case), **question)
        outputs |= encoded_outputs(case, model, encoded) | searched(case, model, encoded)
        if "candidate_ids" in inputs:
            answers = {"answer_ids": inputs["candidate_ids"], "answer_mask": inputs["candidate_mask"]}
            ranked = model.rank_answers(**answers, **seen(case), **question, k=case.config["k_test"])
            outputs |= {"out.rank.ids": ranked.indices, "out.rank.probs": ranked.probabilities}
    return outputs


runner("mplug2", "videoqa_", tolerance=SCORES)(answered)
runner("mplug2", "mplug1_image_vqa", tolerance=SCORES)(answered)


@runner("mplug2", "videocaption_", tolerance=SCORES)
def captioned(case: Case) -> Outputs:
    model = build(case, MPlug2ForConditionalGeneration, task="caption")
    ids, mask = case.inputs["caption_ids"], case.inputs["caption_mask"]
    prompt_length = len(case.config["prompt_ids"]) - 1 if case.config["prompt"] else 0
    texts = {"decoder_input_ids": ids, "decoder_attention_mask": mask}
    loss = model(**seen(case), **texts, labels=supervise(ids, mask, prompt_length)).loss
    loss.backward()
    outputs = {"out.loss": loss} | gradients(case, model)
    with torch.no_grad():
        encoded = model.encode(**seen(case))
        return outputs | encoded_outputs(case, model, encoded) | searched(case, model, encoded)


@runner("mplug2", "mplug1_grounding")
def grounded(case: Case) -> Outputs:
    model = build(case, MPlug2ForGrounding)
    text = {"input_ids": case.inputs["input_ids"], "attention_mask": case.inputs["attention_mask"]}
    boxes = case.inputs["boxes_cxcywh"]
    loss = model(**seen(case), **text, boxes=boxes).loss
    loss.backward()
    return {
        "out.loss": loss,
        "out.pred_boxes": model.ground(**seen(case), **text),
        "out.target_ids": boxes_to_tokens(boxes, model.config.grounding_bins, model.first_id),
    } | gradients(case, model)


@runner("mplug2", "mplug1_itc_itm_step")
def aligned(case: Case) -> Outputs:
    inputs = case.inputs
    model = build(case, MPlug2ForRetrieval, queue_size=case.config["queue_size"])
    model.update_teacher()
    text = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    options = {"ids": inputs["idx"], "alpha": alpha_of(case), "noise": inputs["multinomial_noise"]}
    found = model(**seen(case), **text, **options)
    found.loss.backward()
    return {
        "out.loss_itc": found.contrast_loss,
        "out.loss_itm": found.match_loss,
        "out.itm_logits": found.match_logits,
        "out.negative_image_for_text": found.negative_vision,
        "out.negative_text_for_image": found.negative_text,
        **projected(case, model),
        **gradients(case, model),
        **stored_after(case, model, "out.after."),
    }


def alpha_of(case: Case) -> float:
    """The weight of the teacher's targets, from the config or else from the words of CASE.md."""
    if "alpha" in case.config:
        return float(case.config["alpha"])
    said = re.search(r"alpha=([0-9]*\.?[0-9]+)", (case.path / "CASE.md").read_text(encoding="utf-8"))
    if said is None:
        raise ValueError("expected config.json or CASE.md to say alpha, got none")
    return float(said[1])


@torch.no_grad()
def projected(case: Case, model: MPlug2ForRetrieval) -> Outputs:
    """Projections of the class tokens before they are brought to unit length."""
    vision = model.model.see(**seen(case))
    text, _ = model.model.read(case.inputs["input_ids"], case.inputs["attention_mask"])
    heads = model.alignment
    return {"out.vision_proj": heads.vision_proj(vision[:, 0]), "out.text_proj": heads.text_proj(text[:, 0])}


@runner("mplug2", "mplug1_retrieval_scoring")
@torch.no_grad()
def scored(case: Case) -> Outputs:
    model = build(case, MPlug2ForRetrieval)
    text = {"input_ids": case.inputs["input_ids"], "attention_mask": case.inputs["attention_mask"]}
    found = model.score(**seen(case), **text, k=case.config["k_test"])
    return {
        "out.similarity": found.similarity,
        "out.score_i2t": found.vision_to_text,
        "out.score_t2i": found.text_to_vision,
        "out.image_embeds": model.get_image_features(**seen(case)),
        "out.text_embeds": model.get_text_features(**text),
    }


@runner("mplug2", "checkpoint_key_renames", json_inputs=("from",))
def renamed(case: Case) -> Outputs:
    """What the released loader makes of a name, its losses (null) included."""
    rows = case.document["result"]
    return {"result": [{**row, "to": finetuning_name(row["from"], official=case.official)} for row in rows]}


@runner("mplug2", "keys")
def keys(case: Case) -> Outputs:
    outputs: Outputs = {}
    for name, path in case.key_lists.items():
        shapes = read_list(path)["keys"]
        named = {finetuning_name(key) or key: tuple(shape) for key, shape in shapes.items()}
        rules = key_map(MPlug2Config.from_official(None, named))
        outputs[name] = both_ways(named, rules, lost=NEVER_RUN.values())
    return outputs
