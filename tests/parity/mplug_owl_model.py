"""Golden cases of whole mPLUG-Owl models: official weights and ids in, every stored output out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerationConfig

from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration, from_runs, token_loss
from plait.models.mplug_owl.tasks import visual_names
from plait.models.mplug_owl.weights import from_official, key_map
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.processing.talking import IGNORED
from plait.training.stages import freeze
from plait.weights.files import LazyState, read_checkpoint

Outputs = dict[str, Any]
Model = MPlugOwlForConditionalGeneration
MASKS = ("non_padding_mask", "non_media_mask", "prompt_mask")


def build(case: Case, *, lora: bool = True) -> Model:
    """The case's model through the public loader, with the official quirks.

    lora: whether adapters that lie in the file are merged or left out.
    """
    checkpoint = read_checkpoint(case.path / "weights.safetensors")
    checkpoint = replace(checkpoint, config=dict(case.config))
    if not lora:
        base = {key: checkpoint.state[key] for key in checkpoint.state if ".lora_" not in key}
        checkpoint = replace(checkpoint, state=LazyState({key: (lambda x=x: x) for key, x in base.items()}))
    model = from_official(checkpoint, dtype=case.dtype, device=case.device, official=case.official)
    model.set_attn_implementation(case.attn)
    return model


def media(case: Case) -> dict[str, Tensor]:
    """The media of a case as our model takes them."""
    names = {"pixel_values": "pixel_values", "video_pixel_values": "pixel_values_videos"}
    return {ours: case.inputs[theirs] for theirs, ours in names.items() if theirs in case.inputs}


def training(case: Case, model: Model) -> Outputs:
    """One training forward and what a case may store of it."""
    ids = case.inputs["input_ids"]
    native, labels = from_runs(ids, model.config.media_ids), official_labels(ids, {n: case.inputs[n] for n in MASKS})
    num_images = case.inputs.get("num_images")
    embeds = model.embed(native, **media(case), num_images=num_images)
    result = model(inputs_embeds=embeds, labels=labels)
    return {
        "out.inputs_embeds": embeds,
        "out.labels": labels,
        "out.logits": result.logits,
        "out.loss": result.loss,
    }


def official_labels(input_ids: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
    """Labels of a batch in official notation, (batch, seq): -100 wherever a mask is 0; the ids stay as they are.

    masks: non_padding_mask, non_media_mask, prompt_mask, (batch, seq - 1) each.
    """
    keep = masks["non_padding_mask"] * masks["non_media_mask"] * masks["prompt_mask"]
    return torch.cat([input_ids[:, :1], input_ids[:, 1:].masked_fill(keep != 1, IGNORED)], dim=1)


def gradients(model: Model) -> Outputs:
    """Gradients under official names."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    official = key_map().backward(found)
    return {f"out.grad.{name}": official[name] for name in official}


@runner("mplug_owl", "lm_forward_", tolerance={"out.grad*": Tolerance(1e-5, 1e-3)})
@runner("mplug_owl", "bloom_lm_forward", tolerance={"out.grad*": Tolerance(1e-5, 1e-3)})
def lm_forward(case: Case) -> Outputs:
    model = build(case)
    outputs = training(case, model)
    outputs["out.loss"].backward()
    return {name: x.detach() for name, x in outputs.items()} | gradients(model)


@runner("mplug_owl", "lora_merge")
@torch.no_grad()
def lora_merge(case: Case) -> Outputs:
    outputs: Outputs = {}
    for name, lora in (("base", False), ("lora", True)):
        made = training(case, build(case, lora=lora))
        outputs |= {f"out.{name}_{what}": made[f"out.{what}"] for what in ("logits", "loss")}
    return outputs


@runner("mplug_owl", "stage1_steps", tolerance={"out.*": Tolerance(1e-4, 1e-4)})
def stage1_steps(case: Case) -> Outputs:
    model, settings = build(case), case.config["optimizer"]
    freeze(model, visual_names(model))
    optimizer = torch.optim.AdamW(
        [p for p in model.parameters() if p.requires_grad], lr=settings["lr"], betas=tuple(settings["betas"]),
        eps=settings["eps"], weight_decay=settings["weight_decay"],
    )  # fmt: skip
    losses = []
    for _ in range(case.outputs["out.losses"].shape[0]):
        loss = training(case, model)["out.loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    after = key_map().backward({name: p.detach() for name, p in model.named_parameters()})
    return {"out.losses": torch.stack(losses)} | {f"out.after.{name}": after[name] for name in after}


@runner("mplug_owl", "generate_")
@runner("mplug_owl", "bloom_generate")
@runner("mplug_owl", "video_generate")
@runner("mplug_owl", "video_bloom_generate")
@torch.no_grad()
def generate(case: Case) -> Outputs:
    model, ids = build(case), case.inputs["input_ids"]
    native, mask = from_runs(ids, model.config.media_ids), case.inputs.get("attention_mask")
    mask = torch.ones_like(ids) if mask is None else mask.long()
    options = generation_options(case, model)
    embeds = model.embed(native, **media(case))
    positions = (mask.cumsum(1) - 1).masked_fill(mask == 0, 1)
    outputs: Outputs = {"out.inputs_embeds": embeds}
    outputs["out.prefill_logits"] = model(
        inputs_embeds=embeds, attention_mask=mask, position_ids=positions if model.takes_positions else None
    ).logits
    outputs["valid.out.prefill_logits"] = mask != 0
    calls: list[Tensor] = []
    hook = model.language_model.register_forward_hook(lambda *seen: calls.append(seen[-1].logits))
    new = model.generate(native, attention_mask=mask, **media(case), **options)[:, ids.shape[1] :]
    hook.remove()
    if len(calls) > 1:
        outputs["out.second_step_logits"] = calls[1]
    start = torch.full_like(new[:, :1], case.config["text_config"].get("bos_token_id", 1))
    outputs["out.sequences"] = torch.cat([start, new], dim=1)
    if "out.eos_token_id" in case.outputs:
        outputs |= stopped(case, model, native, mask, outputs["out.sequences"], options)
    if "out.loss_last4" in case.outputs:
        labels = native.clone()
        labels[:, :-4] = -100
        outputs["out.loss_last4"] = token_loss(outputs["out.prefill_logits"], labels)
    return outputs


def generation_options(case: Case, model: Model) -> dict[str, Any]:
    """Arguments of `generate`; the ends go into the model's generation configuration, where None means no end.

    Where a call names no end the official code ends with the language model's own, as a case that stores both runs
    does in the second only; its lengths count the start id.
    """
    given: dict[str, Any] = case.config.get("generate_kwargs", {})
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": model.config.eos_token_id, **given}
    end, pad = options.pop("eos_token_id"), options.pop("pad_token_id", model.config.pad_token_id)
    end = None if "out.eos_token_id" in case.outputs else end
    model.generation_config = GenerationConfig(eos_token_id=end, pad_token_id=0 if pad is None else pad)
    stored = max(spec.shape[1] for name, spec in case.outputs.items() if name.startswith("out.sequences"))
    limit = max(given.get("max_new_tokens", 0), options.pop("max_length", stored) - 1)
    return {**options, "max_new_tokens": limit}


def stopped(case: Case, model: Model, native: Tensor, mask: Tensor, free: Tensor, options: dict[str, Any]) -> Outputs:
    """Generation again with the id that came fourth as the end of an answer."""
    end = free[0, 4]
    again = model.generate(native, attention_mask=mask, **media(case), **{**options, "eos_token_id": int(end)})
    sequences = torch.cat([free[:, :1], again[:, native.shape[1] :]], dim=1)
    return {"out.eos_token_id": end, "out.sequences_without_eos": free, "out.sequences": sequences}
