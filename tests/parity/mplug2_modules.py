"""Golden cases of mPLUG-2's text side: official weights of one module in, its states, losses and gradients out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from plait.generation import Hypothesis, beam_search
from plait.models.mplug2.config import MPlug2Config, bert_fields
from plait.models.mplug2.model import CachedStep, FusionModule, TextDecoder, TextEncoder, VisionAdapter, rates
from plait.models.mplug2.weights import (
    decoder_rules,
    fusion_rules,
    key_map,
    lm_head_rules,
    official_names,
)
from plait.nn.attention import attention_function
from plait.nn.bert import LMHead
from plait.nn.encoder import Reader, UniversalLayers
from plait.objectives.captioning import IGNORED, Reduction, next_token_loss
from plait.objectives.distillation import mix, soft_label_loss
from plait.objectives.masked import masked_lm_loss
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.parity.shipped_runners import ramp
from plait.weights.files import LazyState, load_strict
from plait.weights.keymap import Drop, KeyMap, Rename, prefixed

Outputs = dict[str, Any]
Weights = Mapping[str, Tensor]


def weights_of(case: Case) -> dict[str, Tensor]:
    """The weights of a case under the names of finetuned files."""
    stored = case.weights()
    return dict(official_names(LazyState({key: partial(stored.__getitem__, key) for key in stored})))


def fill(case: Case, module: nn.Module, rules: KeyMap, leave: Sequence[str] = ()) -> None:
    """Put the weights of the case into a module, strictly.

    leave: patterns of native names that the case stores and the module does without.
    """
    native, _ = rules.forward(weights_of(case))
    load_strict(module, native.select(k for k in native if not any(fnmatchcase(k, p) for p in leave)))
    module.eval().to(case.device, case.dtype)


def gradients(case: Case, module: nn.Module, rules: KeyMap, prefix: str = "") -> Outputs:
    """Stored gradients by their official names, which lie under `prefix` in the file; zero for what is not used."""
    found = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in module.named_parameters()}
    official = {name: torch.zeros_like(w) for name, w in weights_of(case).items()} | dict(rules.backward(found))
    wanted = [name for name in case.outputs if name.startswith("out.grad.")]
    return {name: official[prefix + name.removeprefix("out.grad.")] for name in wanted}


def config_of(case: Case, weights: Weights) -> MPlug2Config:
    """The sizes of the text side of a case; vision as wide as its tokens."""
    bert = case.config["bert_config"]
    fields = bert_fields(bert)
    universal = bert.get("num_uni_layer", 0)
    latents = next((len(w) for name, w in weights.items() if name.endswith("latents")), 1)
    vision = {"dim": case.config.get("vision_width", bert["hidden_size"])}
    layers = fields.pop("text_layers") - universal
    return MPlug2Config(
        **fields, vision=vision, num_text_layers=layers, num_universal_layers=universal, num_latents=latents
    )


def common(config: MPlug2Config) -> tuple[int, int, int]:
    """Width, heads and MLP width of the BERT-like layers."""
    return config.dim, config.num_heads, config.mlp_dim


class TextParts(nn.Module):
    """Text encoder and universal layers of a case, and the projection and masked language head that some store."""

    def __init__(self, config: MPlug2Config, readers: tuple[Reader, ...], weights: Weights) -> None:
        super().__init__()
        self.text = TextEncoder(config)
        sizes = (*common(config), config.num_universal_layers)
        self.universal = UniversalLayers(*sizes, num_latents=config.num_latents, readers=readers, **rates(config))
        if any(name.startswith("visn_fc.") for name in weights):
            self.vision_adapter = VisionAdapter(config.vision_sizes.dim, config.dim, config.eps, config.dropout)
        if any(".cls." in name for name in weights):
            self.masked_lm = LMHead(config.dim, config.vocab_size, config.eps)


def text_parts(case: Case, readers: tuple[Reader, ...]) -> tuple[TextParts, KeyMap]:
    """The parts with the weights of the case; readers: who calls the universal layers."""
    weights = weights_of(case)
    config = config_of(case, weights)
    parts, rules = TextParts(config, readers, weights), key_map(config, base="")
    fill(case, parts, rules, () if "visual" in readers else ("universal.latents", "universal.*.cross_attn.*"))
    return parts, rules


@runner("mplug2", "text_encoder")
def text_encoder(case: Case) -> Outputs:
    parts, rules = text_parts(case, ("text",))
    attend, mask = attention_function(case.attn), case.inputs["attention_mask"].bool()
    hidden: list[Tensor] = []
    alone = parts.text(case.inputs["input_ids"], mask, attend, hidden=hidden)
    last = alone
    for layer in parts.universal.layers("text"):
        last = layer(last, attend, key_mask=mask)
        hidden.append(last)
    (last * mask[..., None] * ramp(last)).sum().backward()
    outputs = {f"out.hidden_{i}": x for i, x in enumerate(hidden)} | {
        "out.embeddings": hidden[0],
        "out.last_hidden_state": last,
        "out.text_mode_last_hidden_state": alone,
    }
    valid = {f"valid.{name}": mask for name in outputs}
    return outputs | valid | gradients(case, parts, rules, "text_encoder.")


@runner("mplug2", "universal_layers_")
def universal_layers(case: Case) -> Outputs:
    parts, rules = text_parts(case, ("text", "visual"))
    x, hidden = case.inputs["vision_tokens"], []
    if hasattr(parts, "vision_adapter"):
        x = parts.vision_adapter(x)
    embeds = parts.universal.see(x, attention_function(case.attn), hidden)
    (embeds * ramp(embeds)).sum().backward()
    return {
        "out.projected": x,
        "out.v_module": hidden[-1],
        "out.image_embeds": embeds,
        **{f"out.universal_out_{k}": state for k, state in enumerate(hidden)},
        **gradients(case, parts, rules),
    }


def distilled(case: Case, hard: Tensor, soft: Tensor) -> Outputs:
    """Losses mixed with a teacher's, alpha being part of the name of the output."""
    stem = "out.loss_distill_alpha_"
    return {name: mix(hard, soft, float(name.removeprefix(stem))) for name in case.outputs if name.startswith(stem)}


def masked_outputs(case: Case, logits: Tensor) -> Outputs:
    """Logits of hidden tokens, their loss and the loss with a teacher; the gradient is taken."""
    labels = case.inputs["labels"]
    loss = masked_lm_loss(logits, labels)
    loss.backward(retain_graph=True)
    soft = soft_label_loss(logits, case.inputs["soft_labels"], labels, official=case.official)
    valid = case.inputs["attention_mask"].bool()
    return {"out.logits": logits, "valid.out.logits": valid, "out.loss": loss} | distilled(case, loss, soft)


@runner("mplug2", "mlm_text")
def mlm_text(case: Case) -> Outputs:
    parts, rules = text_parts(case, ("text",))
    attend, mask = attention_function(case.attn), case.inputs["attention_mask"].bool()
    x = parts.text(case.inputs["input_ids"], mask, attend)
    x = parts.universal.read(x, mask, attend)
    logits = parts.masked_lm(x, parts.text.embeddings.token_embedding.weight)
    return masked_outputs(case, logits) | gradients(case, parts, rules, "text_encoder.")


# Fusion


@runner("mplug2", "fusion_")
def fusion(case: Case) -> Outputs:
    config = config_of(case, {})
    holder, rules = nn.ModuleDict({"fusion": FusionModule(config)}), key_map(config, base="")
    fill(case, holder, rules)
    mask = case.inputs["attention_mask"].bool()
    states = (case.inputs["text_embeds"], mask, case.inputs["image_embeds"])
    vision, text = holder["fusion"](*states, attention_function(case.attn))
    (text * mask[..., None] * ramp(text)).sum().backward()
    return {
        "out.image_output": vision,
        "out.text_output": text,
        "valid.out.text_output": mask,
    } | gradients(case, holder, rules, "fusion_encoder.")


@runner("mplug2", "mlm_fusion")
def mlm_fusion(case: Case) -> Outputs:
    """The masked language head that pretraining files hold on the fusion module, with a token table of its own."""
    config = config_of(case, {})
    table, head = nn.Embedding(config.vocab_size, config.dim), LMHead(config.dim, config.vocab_size, config.eps)
    parts = nn.ModuleDict({"fusion": FusionModule(config), "table": table, "head": head})
    theirs = "fusion_encoder.cls.predictions."
    rules = KeyMap(
        [
            *(rule for rule in prefixed(lm_head_rules("head.", ""), theirs) if not isinstance(rule, Drop)),
            Rename(f"{theirs}decoder.weight", "table.weight"),
            Drop(f"{theirs}decoder.bias", "a second name of the bias"),
            *prefixed(fusion_rules(config), "fusion_encoder."),
        ]
    )
    fill(case, parts, rules)
    states = (case.inputs["text_embeds"], case.inputs["attention_mask"].bool(), case.inputs["image_embeds"])
    _, text = parts["fusion"](*states, attention_function(case.attn))
    return masked_outputs(case, head(text, table.weight)) | gradients(case, parts, rules, "fusion_encoder.")


# Decoder


def text_decoder(case: Case) -> tuple[TextDecoder, KeyMap]:
    """The decoder of a case."""
    config = config_of(case, {})
    decoder = TextDecoder(config)
    rules = KeyMap(prefixed(decoder_rules(config), "text_decoder."))
    fill(case, decoder, rules)
    return decoder, rules


def decoded(case: Case, reduction: Reduction) -> Outputs:
    """Logits and losses of a decoder on stored texts and encoder states."""
    decoder, rules = text_decoder(case)
    attend, ids = attention_function(case.attn), case.inputs["input_ids"]
    mask, seen = case.inputs["attention_mask"].bool(), case.inputs["encoder_attention_mask"].bool()
    states = case.inputs["encoder_hidden_states"]
    cross = decoder.cross_keys(states)
    hidden = decoder.hidden(ids, cross, attend, attention_mask=mask, cross_mask=seen)
    logits = decoder.logits(hidden)
    labels = ids.masked_fill(ids == 0, IGNORED)
    loss = next_token_loss(logits, labels, reduction)
    loss.sum().backward(retain_graph=True)
    soft = soft_label_loss(logits[:, :-1], case.inputs["soft_labels"], labels[:, 1:], reduction, official=case.official)
    return {
        "out.hidden": hidden,
        "out.logits": logits,
        "out.shifted_logits": logits[:, :-1],
        "out.logits_no_attention_mask": decoder(ids, states, attend, states_mask=seen),
        "out.loss": loss,
        **{f"valid.out.{name}": mask for name in ("hidden", "logits")},
        "valid.out.shifted_logits": mask[:, :-1],
        **distilled(case, loss, soft),
        **gradients(case, decoder, rules, "text_decoder."),
    }


runner("mplug2", "decoder_lm")(partial(decoded, reduction="per_sample"))
runner("mplug2", "decoder_prefix")(partial(decoded, reduction="mean"))


@runner("mplug2", "decoder_grounding_head")
@torch.no_grad()
def decoder_grounding_head(case: Case) -> Outputs:
    decoder, _ = text_decoder(case)
    ids = case.inputs["input_ids"]
    logits = decoder(ids, case.inputs["encoder_hidden_states"], attention_function(case.attn))
    logits = logits + case.inputs["prob_mask"]
    labels = ids[:, 1:].masked_fill(ids[:, 1:] == 0, IGNORED)
    losses = nn.functional.cross_entropy(logits[:, :-1].transpose(1, 2), labels, ignore_index=IGNORED, reduction="none")
    return {"out.logits": logits, "out.loss": losses.flatten()}


def hypotheses(found: Sequence[Sequence[Hypothesis]], prefix: str) -> Outputs:
    """Searched texts as the cases store them: rows of all items, padded with -1, with scores, and how many per item."""
    rows = [one for item in found for one in item]
    ids = nn.utils.rnn.pad_sequence([row.ids for row in rows], batch_first=True, padding_value=-1)
    return {
        f"{prefix}.ids": ids,
        f"{prefix}.scores": torch.tensor([row.score for row in rows]),
        f"{prefix}.count": torch.tensor([len(item) for item in found]),
    }


@runner("mplug2", "beam_search", tolerance={"*.scores": Tolerance(1e-4, 1e-4)})
@torch.no_grad()
def search(case: Case) -> Outputs:
    decoder, _ = text_decoder(case)
    states, mask = case.inputs["encoder_hidden_states"], case.inputs["encoder_attention_mask"].bool()
    outputs: Outputs = {}
    for n, (beams, shortest, longest, number) in enumerate(case.config["generation"]):
        step = CachedStep(decoder, decoder.cross_keys(states), attention_function(case.attn), longest + 1, mask)
        found = beam_search(
            step,
            torch.full((len(states), 1), 101, device=case.device),
            end_id=102,
            num_beams=beams,
            min_length=min(shortest, longest),
            max_length=longest,
            num_return=min(number, beams),
            official=case.official,
        )
        outputs |= hypotheses(found, f"out.g{n}")
    return outputs
