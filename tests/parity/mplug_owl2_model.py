"""Golden cases of whole mPLUG-Owl2 and Owl2.1 models: official weights and ids in, every stored output out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.cache_utils import DynamicCache
from transformers.generation import GenerationConfig

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.model import IMAGE_PLACEHOLDER, MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.tasks import decays, lora_targets, pretraining_names, without_tower
from plait.models.mplug_owl2.weights import from_official, key_map
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.processing.talking import IGNORED
from plait.training.schedules import cosine
from plait.training.stages import freeze
from plait.weights.files import read_checkpoint

Outputs = dict[str, Any]
Model = MPlugOwl2ForConditionalGeneration


@dataclass(frozen=True)
class Expanded:
    """A batch as the model takes it, right-padded to its longest row.

    input_ids, attention_mask, labels: (batch, seq); pixel_values: (images, 3, side, side), only images that have a
    placeholder; added: (batch, seq) bool, True on the padding that expansion added.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    labels: Tensor | None
    pixel_values: Tensor | None
    added: Tensor


def expand_placeholders(
    input_ids: Tensor,
    images: Tensor | Sequence[Tensor] | None,
    *,
    tokens_per_image: int,
    image_token_id: int,
    attention_mask: Tensor | None = None,
    labels: Tensor | None = None,
    pad_token_id: int = 0,
) -> Expanded:
    """Expand a batch of official ids.

    images: (images, 3, side, side), one for each placeholder in reading order; or a list of (k, 3, side, side) (or one
    tensor of five dimensions), all k for one placeholder. A row without placeholder may own an entry too, a dummy.
    Raises ValueError where placeholders and images do not agree.
    """
    if images is None:
        if bool((input_ids == IMAGE_PLACEHOLDER).any()):
            raise ValueError("expected images for the placeholders, got none; pass one image per placeholder")
        return Expanded(input_ids, attention_mask, labels, None, torch.zeros_like(input_ids, dtype=torch.bool))
    blocks = [image[None] for image in images] if getattr(images, "ndim", 5) == 4 else list(images)
    counts = (input_ids == IMAGE_PLACEHOLDER).sum(dim=1).tolist()
    needed = sum(max(count, 1) for count in counts)  # a row of text may own an entry too, a dummy
    if len(blocks) not in (needed, sum(counts)):
        raise ValueError(
            f"expected {sum(counts)} images for {sum(counts)} placeholders (or {needed} with a dummy for every row of "
            f"text), got {len(blocks)}; pass one image per placeholder"
        )
    rows, used, start = [], [], 0
    for i, (ids, count) in enumerate(zip(input_ids, counts)):
        owned = blocks[start : start + count]
        start += max(count, 1) if len(blocks) == needed else count
        used += owned
        is_image, repeats = ids == IMAGE_PLACEHOLDER, torch.ones_like(ids)
        repeats[is_image] = torch.tensor([len(block) * tokens_per_image for block in owned]).to(ids)
        mask = torch.ones_like(ids) if attention_mask is None else attention_mask[i]
        targets = torch.full_like(ids, IGNORED) if labels is None else labels[i]
        columns = ids.masked_fill(is_image, image_token_id), mask, targets.masked_fill(is_image, IGNORED)
        rows.append([column.repeat_interleave(repeats) for column in columns])
    lengths = torch.tensor([len(row[0]) for row in rows], device=input_ids.device)
    width = int(lengths.max())
    ids, mask, targets = (
        torch.stack([F.pad(row[k], (0, width - len(row[k])), value=fill) for row in rows])
        for k, fill in enumerate((pad_token_id, 0, IGNORED))
    )
    added = torch.arange(width, device=input_ids.device) >= lengths[:, None]
    return Expanded(
        ids,
        None if attention_mask is None and not bool(added.any()) else mask,
        None if labels is None else targets,
        torch.cat(used) if used else None,
        added,
    )


def build(case: Case) -> Model:
    """The case's model through the public loader, with the official quirks; generation never stops by itself."""
    checkpoint = read_checkpoint(case.path / "weights.safetensors")
    checkpoint = replace(checkpoint, config=dict(case.config))
    model = from_official(checkpoint, dtype=case.dtype, device=case.device, official=case.official)
    model.set_attn_implementation(case.attn)
    model.generation_config = GenerationConfig(eos_token_id=None, pad_token_id=0)
    return model


def expanded(model: Model, inputs: Mapping[str, Tensor], prefix: str = "") -> Expanded:
    """The inputs of a case as our model takes them."""
    config, listed = model.config, [name for name in inputs if name.startswith(f"{prefix}images.")]
    return expand_placeholders(
        inputs[f"{prefix}input_ids"],
        [inputs[name] for name in sorted(listed, key=natural)] if listed else inputs.get(f"{prefix}images"),
        tokens_per_image=config.tokens_per_image,
        image_token_id=config.image_token,
        attention_mask=inputs.get(f"{prefix}attention_mask"),
        labels=inputs.get(f"{prefix}labels"),
    )


def natural(name: str) -> int:
    """The number at the end of the name of a tensor that is an entry of a list."""
    return int(name.rpartition(".")[2])


def embedded(model: Model, batch: Expanded) -> dict[str, Any]:
    """Arguments of a forward pass that starts from embeddings, padding that expansion added being zero vectors."""
    embeds, is_image = model.model.embed(batch.input_ids, batch.pixel_values)
    embeds = embeds.masked_fill(batch.added[..., None], 0)
    ids = torch.zeros_like(batch.input_ids) if is_image is None else is_image.long()
    return {
        "inputs_embeds": embeds,
        "modality_ids": ids,
        "attention_mask": batch.attention_mask,
        "labels": batch.labels,
    }


def whole(model: Model, batch: Expanded, cache: DynamicCache | None = None) -> Outputs:
    """One pass over a batch and everything a case may store of it."""
    inputs = embedded(model, batch)
    result = model(**inputs, cache=cache, use_cache=cache is not None, output_hidden_states=True)
    mask, labels = inputs["attention_mask"], inputs["labels"]
    outputs = {
        "out.inputs_embeds": inputs["inputs_embeds"],
        "out.modality_indicators": inputs["modality_ids"],
        "out.logits": result.logits,
        **{f"out.hidden.{i}": x for i, x in enumerate(result.hidden_states)},
        **({} if mask is None else {"out.attention_mask": mask}),
        **({} if labels is None else {"out.labels": labels, "out.loss": result.loss}),
    }
    if mask is not None:
        valid = mask != 0
        outputs |= {f"valid.{name}": valid for name in outputs if name.startswith(("out.logits", "out.hidden"))}
    return outputs


def caches(model: Model, cache: Any, name: str = "{n}_cache.{i}") -> Outputs:
    """Keys and values of every layer; Owl2.1 stores the sequence before the heads."""
    qwen = model.config.trained_length is not None
    return {
        "out." + name.format(n=n, i=i): (x.transpose(1, 2) if qwen else x).clone()
        for i, layer in enumerate(cache.layers)
        for n, x in zip("kv", (layer.keys, layer.values))
    }


def greedy(model: Any, ids: Tensor, count: int, **inputs: Any) -> Tensor:
    """`count` new ids for a prompt in our notation, by `generate`."""
    found = model.generate(ids, max_new_tokens=count, do_sample=False, **inputs)
    return found[:, ids.shape[1] :]


def follow(model: Model, cache: DynamicCache, new_ids: Tensor) -> Tensor:
    """Logits after each of `new_ids`, (batch, count, vocab), fed one by one to a filled cache."""
    steps = [model(new_ids[:, i : i + 1], cache=cache, use_cache=True).logits for i in range(new_ids.shape[1])]
    return torch.cat(steps, dim=1)


def beams(model: Any, ids: Tensor, official_ids: Tensor, shape: Sequence[int], **options: Any) -> tuple[Tensor, Tensor]:
    """Best sequences in official notation (prompt, new ids, end, padding of 0) and their scores."""
    found: Any = model.generate(
        ids, do_sample=False, early_stopping=False, pad_token_id=0, num_return_sequences=shape[0],
        return_dict_in_generate=True, output_scores=True, **options,
    )  # fmt: skip
    new = found.sequences[:, ids.shape[1] :]
    return torch.cat([official_ids.expand(len(new), -1), new], dim=1), found.sequences_scores


def new_tokens(case: Case, stored: int) -> int:
    """The limit of new ids of a case's searches.

    stored: the longest stored answer, which is shorter than the limit where every best hypothesis ended before it;
    then only CASE.md tells ("9 new tokens").
    """
    told = case.path / "CASE.md"
    said = re.findall(r"(\d+) new tokens", told.read_text(encoding="utf-8")) if told.exists() else []
    return max([stored, *map(int, said)])


@runner("mplug_owl2", "owl2_text_only")
@runner("mplug_owl2", "owl21_text_batch")
@torch.no_grad()
def text_batch(case: Case) -> Outputs:
    model = build(case)
    batch = expanded(model, case.inputs)
    outputs = whole(model, batch)
    first = case.inputs["input_ids"][:1]
    first = first[:, case.inputs["attention_mask"][0] != 0]
    shapes = {name: spec.shape for name, spec in case.outputs.items()}
    new = [shapes[name][1] - first.shape[1] for name in ("out.greedy", "out.beam3") if name in shapes]
    if "out.greedy" in shapes:
        outputs["out.greedy"] = torch.cat([first, greedy(model, first, new[0])], dim=1)
    limit = new_tokens(case, max(new))
    options = {"num_beams": 3, "length_penalty": 0.0, "eos_token_id": 2, "max_new_tokens": limit}
    outputs["out.beam3"] = beams(model, first, first, shapes["out.beam3"], **options)[0]
    return outputs


@runner("mplug_owl2", "owl2_mm_prefill_decode")
@runner("mplug_owl2", "owl21_mm_")
@torch.no_grad()
def prefill_decode(case: Case) -> Outputs:
    model = build(case)
    batch, cache = expanded(model, case.inputs), DynamicCache()
    outputs = whole(model, batch, cache) | caches(model, cache)
    count = case.outputs["out.greedy_ids"].shape[1]
    new = greedy(model, batch.input_ids, count, pixel_values=batch.pixel_values)
    assert batch.pixel_values is not None
    return outputs | {
        "out.greedy_ids": new,
        "out.generate": torch.cat([case.inputs["input_ids"], new], dim=1),
        "out.decode_logits": follow(model, cache, new[:, : case.outputs["out.decode_logits"].shape[1]]),
        "out.image_features": model.model.encode_images(batch.pixel_values),
    }


@runner("mplug_owl2", "owl2_mm_batch_")
@torch.no_grad()
def mm_batch(case: Case) -> Outputs:
    model = build(case)
    return whole(model, expanded(model, case.inputs))


@runner("mplug_owl2", "owl2_multi_image")
@torch.no_grad()
def multi_image(case: Case) -> Outputs:
    model = build(case)
    outputs: Outputs = {}
    for name in dict.fromkeys(key.partition("_")[0] for key in case.inputs):
        batch = expanded(model, case.inputs, f"{name}_")
        made = whole(model, batch)
        outputs |= {f"out.{name}_logits": made["out.logits"], f"out.{name}_modality": made["out.modality_indicators"]}
        stored = case.outputs.get(f"out.{name}_generate")
        if stored is not None:
            ids = case.inputs[f"{name}_input_ids"]
            new = greedy(model, batch.input_ids, stored.shape[1] - ids.shape[1], pixel_values=batch.pixel_values)
            outputs[f"out.{name}_generate"] = torch.cat([ids, new], dim=1)
    return outputs


@runner("mplug_owl2", "owl2_generate_bs1")
@torch.no_grad()
def generate_bs1(case: Case) -> Outputs:
    """All prompts in ONE left-padded batch: what the reference gives for each of them alone."""
    model = build(case)
    names = [key.removeprefix("input_ids.") for key in case.inputs if key.startswith("input_ids.")]
    prompts = []
    for n in names:
        given = {"input_ids": case.inputs[f"input_ids.{n}"], "images": case.inputs.get(f"images.{n}")}
        prompts.append(expanded(model, {key: value for key, value in given.items() if value is not None}))
    longest = max(p.input_ids.shape[1] for p in prompts)
    ids = torch.cat([torch.nn.functional.pad(p.input_ids, (longest - p.input_ids.shape[1], 0)) for p in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - p.input_ids.shape[1] for p in prompts]).to(ids)
    pictures = [p.pixel_values for p in prompts if p.pixel_values is not None]
    inputs = {"attention_mask": mask, "pixel_values": torch.cat(pictures) if pictures else None}
    new = greedy(model, ids, max(case.outputs[f"out.new_ids.{n}"].shape[1] for n in names), **inputs)
    logits = model(ids, **inputs).logits[:, -1:]
    outputs: Outputs = {}
    for i, n in enumerate(names):
        outputs[f"out.new_ids.{n}"] = new[i : i + 1, : case.outputs[f"out.new_ids.{n}"].shape[1]]
        outputs[f"out.last_logits.{n}"] = logits[i]
    return outputs


@runner("mplug_owl2", "owl2_beam", tolerance={"out.score*": Tolerance(1e-4, 0)})
@runner("mplug_owl2", "owl21_beam", tolerance={"out.score*": Tolerance(1e-4, 0)})
@torch.no_grad()
def beam(case: Case) -> Outputs:
    model = build(case)
    batch, ids = expanded(model, case.inputs), case.inputs["input_ids"]
    runs = case.config.get("_runs") or [{"num_beams": case.config["_num_beams"], "length_penalty": 0.0}]
    shapes = {name: spec.shape for name, spec in case.outputs.items() if name.startswith("out.seq")}
    limit = new_tokens(case, max(shape[1] for shape in shapes.values()) - ids.shape[1])
    outputs: Outputs = {}
    for options in runs:
        tail = f".b{options['num_beams']}" if "_runs" in case.config else ""
        options = {**options, "eos_token_id": case.config["_eos_token_id"], "max_new_tokens": limit}
        found = beams(model, batch.input_ids, ids, shapes[f"out.seq{tail}"], pixel_values=batch.pixel_values, **options)
        outputs[f"out.seq{tail}"], outputs[f"out.score{tail}"] = found
    return outputs


@runner("mplug_owl2", "owl21_ntk_logn")
@torch.no_grad()
def ntk_logn(case: Case) -> Outputs:
    model = build(case)
    outputs: Outputs = {}
    for name in dict.fromkeys(key.partition("_")[0] for key in case.inputs):
        ids, cache = case.inputs[f"{name}_ids"], DynamicCache()
        result = model(ids, case.inputs.get(f"{name}_mask"), cache=cache, use_cache=True)
        outputs |= {
            f"out.{name}_alpha": getattr(cache, "ntk_alpha", torch.ones(1)),
            f"out.{name}_logits": result.logits,
        }
        if f"{name}_mask" in case.inputs:
            outputs[f"valid.out.{name}_logits"] = case.inputs[f"{name}_mask"] != 0
        outputs |= caches(model, cache, name + "_{n}_cache{i}")
        stored = case.outputs.get(f"out.{name}_decode_logits")
        if stored is not None:
            steps, token = [], result.logits[:, -1:].argmax(-1)
            for _ in range(stored.shape[1]):
                steps.append(model(token, cache=cache, use_cache=True).logits)
                token = steps[-1].argmax(-1)
            outputs[f"out.{name}_decode_logits"] = torch.cat(steps, dim=1)
    return outputs


def gradients(case: Case, model: Model) -> dict[str, Tensor]:
    """Gradients under official names."""
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return dict(key_map(model.config).backward(found))


@runner("mplug_owl2", "owl2_grad", tolerance={"out.grad*": Tolerance(1e-5, 1e-3)})
@runner("mplug_owl2", "owl21_grad", tolerance={"out.grad*": Tolerance(1e-5, 1e-3)})
def grad(case: Case) -> Outputs:
    model = build(case)
    outputs = whole(model, expanded(model, case.inputs))
    outputs["out.loss"].backward()
    made = {f"out.grad.{name}": value for name, value in gradients(case, model).items()}
    return {name: x.detach() for name, x in outputs.items()} | made


@runner("mplug_owl2", "owl2_train_steps", tolerance={"out.*": Tolerance(2e-5, 1e-4)})
def train_steps(case: Case) -> Outputs:
    model, settings = build(case), case.config["_hparams"]
    if settings["freeze_vision_model"]:
        freeze(model, without_tower(model))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, lr=settings["lr"], betas=tuple(settings["betas"]), eps=settings["eps"],
        weight_decay=settings["weight_decay"],
    )  # fmt: skip
    record: dict[str, list[Tensor]] = {"losses": [], "grad_norms": [], "lrs": []}
    for step in range(settings["steps"]):
        rate = cosine(step, settings["steps"], peak=settings["lr"], warmup=settings["warmup_steps"])
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = whole(model, expanded(model, {name: x[step] for name, x in case.inputs.items()}))["out.loss"]
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, settings["max_grad_norm"])
        optimizer.step()
        for name, value in (("losses", loss.detach()), ("grad_norms", norm), ("lrs", torch.tensor(rate))):
            record[name].append(value)
    final = key_map(model.config).backward({name: p.detach() for name, p in model.named_parameters()})
    made = {f"out.final.{name}": final[name] for name in final}
    return made | {f"out.{name}": torch.stack(values) for name, values in record.items()}


@runner("mplug_owl2", "trainable_params")
def trainable_params(case: Case) -> Outputs:
    config = MPlugOwl2Config.from_official(case.config, official=case.official)
    with torch.device("meta"):
        model = MPlugOwl2ForConditionalGeneration(config)
    decayed = decays(model)
    return {
        "lora_target_modules": [
            name.removesuffix(".weight") for name in official(model, [f"{m}.weight" for m in lora_targets(model)])
        ],
        "trainable_freeze_vision": official(model, without_tower(model)),
        "weight_decay_params": official(model, [n for n, p in model.named_parameters() if decayed(n, p)]),
        "paper_pretraining_trainable": official(model, pretraining_names(model)),
    }


def official(model: Model, names: list[str]) -> list[str]:
    """Official names of parameters, sorted."""
    state = model.state_dict()
    restored = {rule.official[0] for rule in key_map(model.config).rules if not rule.native}
    back = key_map(model.config).backward({name: state[name] for name in names})
    rules = key_map(model.config).explain(back)
    return sorted(name for name in back if (rule := rules[name]) is not None and rule.official[0] not in restored)
