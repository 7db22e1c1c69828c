"""Golden cases of mPLUG-Owl's parts: vision tower, temporal module, abstractor, key lists, trained sets."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.models.mplug_owl.config import MPlugOwlConfig, described, vision_sizes
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration, OwlVisionLayer, OwlVisionTower
from plait.models.mplug_owl.tasks import language_names, lora_targets, visual_names
from plait.models.mplug_owl.weights import key_map, tower_rules
from plait.nn.attention import attention_function
from plait.parity.cases import Case
from plait.parity.runners import runner
from plait.parity.shipped_runners import GRADIENTS, abstractor
from plait.weights.files import load_strict
from plait.weights.keymap import KeyMap, prefixed

from .key_lists import both_ways, read_list

ROTARY = "rotary frequencies, which the configuration determines"
Outputs = dict[str, Any]
Part = TypeVar("Part", bound=nn.Module)

runner("mplug_owl", "video_abstractor", tolerance=GRADIENTS)(abstractor)


def loaded(case: Case, module: Part, rules: KeyMap, prefix: str = "") -> Part:
    """The module with the case's weights, in the type and place of the run."""
    native, _ = rules.forward(case.weights())
    load_strict(module, {key.removeprefix(prefix): native[key] for key in native})
    return module.to(case.device, case.dtype).eval()


def tower_of(case: Case) -> OwlVisionTower:
    """The case's vision tower, with temporal modules where its weights have them."""
    temporal = any(".temporal." in key for key in case.weights())
    tower = OwlVisionTower(vision_sizes(case.config["vision_config"]), temporal=temporal, official=case.official)
    return loaded(case, tower, KeyMap(prefixed(tower_rules(), "vision_model.", "")))


def tower_gradients(tower: OwlVisionTower) -> Outputs:
    """Gradients under official names."""
    found = {name: p.grad for name, p in tower.named_parameters() if p.grad is not None}
    official = KeyMap(tower_rules()).backward(found)
    return {f"out.grad.{name}": official[name] for name in official}


@runner("mplug_owl", "vision_", tolerance=GRADIENTS)
def vision(case: Case) -> Outputs:
    tower, pixels = tower_of(case), case.inputs["pixel_values"]
    attend, hidden = attention_function(case.attn), []
    last = tower(pixels, attend, hidden)
    first: Any = tower.layers[0]
    normed = first.attn_norm(hidden[0])
    attended = first.attn(normed, attend)
    q, k, _ = first.attn.qkv(normed).unflatten(-1, (first.attn.num_heads, 3, -1)).permute(3, 0, 2, 1, 4)
    between = hidden[0] + attended
    outputs = {
        **{f"out.hidden_states.{i}": x for i, x in enumerate(hidden)},
        "out.patch_embed_conv": tower.patch_embedding(pixels),
        "out.layer0.input_layernorm": normed,
        "out.layer0.self_attn": attended,
        "out.layer0.attention_probs": (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5).softmax(-1),
        "out.layer0.mlp": first.fc2(first.activation(first.fc1(first.mlp_norm(between)))),
        "out.last_hidden_state": last,
        "out.pooler_output": tower.post_norm(last[:, 0]),
    }
    if "grad_target" in case.inputs:
        (last * case.inputs["grad_target"]).sum().backward()
        outputs |= tower_gradients(tower)
    return {name: x.detach() for name, x in outputs.items()}


@runner("mplug_owl", "video_vision_model")
@torch.no_grad()
def video_vision_model(case: Case) -> Outputs:
    tower, pixels = tower_of(case), case.inputs["pixel_values"]
    frames = pixels.shape[2] if pixels.dim() == 5 else 1
    hidden: list[Tensor] = []
    last = tower(pixels, attention_function(case.attn), hidden)
    last = last if last.dim() == 4 else last[:, None]
    return {
        **{f"out.hidden_states.{i}": x.unflatten(0, (-1, frames)) for i, x in enumerate(hidden)},
        "out.last_hidden_state": last,
        "out.pooler_output": tower.post_norm(last[:, :, 0].mean(1)),
    }


@runner("mplug_owl", "video_temporal_module", tolerance=GRADIENTS)
def video_temporal_module(case: Case) -> Outputs:
    tower, x = tower_of(case), case.inputs["hidden_states"]
    layer = tower.layers[0]
    assert isinstance(layer, OwlVisionLayer) and layer.temporal is not None
    module, grid = layer.temporal, tower.sizes.grid
    summed = layer.add_temporal(x.flatten(0, 1), x.shape[1]).unflatten(0, x.shape[:2])
    made = summed - x
    normed = module.norm(x[:, :, 1:])
    down = module.down_proj(normed)
    rows = down.permute(0, 2, 3, 1).flatten(0, 1)  # (batch * positions, dim / 2, frames)
    conv = F.conv1d(rows, module.conv.weight, module.conv.bias, padding=1, groups=rows.shape[1])
    conv = conv.unflatten(0, (len(x), -1)).permute(0, 3, 1, 2)

    def as_volume(y: Tensor) -> Tensor:
        return y.permute(0, 3, 1, 2).unflatten(-1, (grid, grid))

    outputs = {
        "out.ln": normed,
        "out.down_proj": as_volume(down),
        "out.conv": as_volume(conv),
        "out.temporal": made,
        "out.residual_sum": summed,
    }
    if "grad_target" in case.inputs:
        (made * case.inputs["grad_target"]).sum().backward()
        outputs |= tower_gradients(tower)
    return {name: y.detach() for name, y in outputs.items()}


@runner("mplug_owl", "published_keys")
def published_keys(case: Case) -> Outputs:
    outputs: Outputs = {}
    for name, path in case.key_lists.items():
        document = read_list(path)
        shapes = document.get("keys", document)
        with torch.device("meta"):
            model = MPlugOwlForConditionalGeneration(MPlugOwlConfig.from_official(described(shapes), shapes))
        own = model.state_dict()
        if "language_model.lm_head.weight" not in shapes:  # a second name of the tied table, which files may leave out
            del own["language_model.lm_head.weight"]
        outputs[name] = both_ways(shapes, key_map(), lost=[ROTARY], filled=own)
    return outputs


@runner("mplug_owl", "trainable_parameters")
def trainable_parameters(case: Case) -> Outputs:
    with torch.device("meta"):
        model = MPlugOwlForConditionalGeneration(MPlugOwlConfig.from_official(case.config))
    state, rules = model.state_dict(), key_map()

    def official(names: list[str]) -> list[str]:
        return sorted(rules.backward({name: state[name] for name in names}), key=released_order)

    return {
        "stage1": official(visual_names(model)),
        "stage2_full_finetune": official(language_names(model)),
        "stage2_lora_targets": lora_targets(model),
    }


RELEASED_ORDER = (
    "query_tokens", "temporal_query_tokens", "vision_model.", "abstractor.vit_eos", "abstractor.encoder.",
    "abstractor.visual_fc", "abstractor.temporal_visual_fc", "language_model.model.embed_tokens",
    "language_model.transformer.word_embeddings.", "language_model.transformer.word_embeddings_layernorm",
    "language_model.model.layers", "language_model.transformer.h", "language_model.model.norm",
    "language_model.transformer.ln_f", "language_model.lm_head",
)  # fmt: skip
RELEASED_ORDER_INSIDE = (
    "cls_token", "position_embedding", "patch_embed", "pre_layernorm", ".temporal.ln", ".temporal.down_proj",
    ".temporal.conv", ".temporal.up_proj", "transformer.h input_layernorm", "query_key_value", "self_attn.dense",
    "self_attention.dense", "transformer.h post_attention_layernorm", "vision_model input_layernorm", "mlp.fc1",
    "mlp.fc2", "vision_model post_attention_layernorm", "attention.query", "attention.key", "attention.value",
    "output.out_proj", "output.norm2", "mlp.w1", "mlp.w2", "mlp.w3", "mlp.ffn_ln", "norm1", "normk", "q_proj",
    "k_proj", "v_proj", "o_proj", "gate_proj", "down_proj", "up_proj", "input_layernorm", "post_attention_layernorm",
    "dense_h_to_4h", "dense_4h_to_h",
)  # fmt: skip


def released_order(name: str) -> tuple[int, int, int, bool]:
    """Where the released modules register a parameter; the lists of the cases are in this order."""
    room = next((i for i, part in enumerate(RELEASED_ORDER) if name.startswith(part)), len(RELEASED_ORDER))
    layer = re.search(r"\.(\d+)\.", name)
    depth = int(layer[1]) if layer else 10_000 if "post_layernorm" in name else -1
    fitting = (i for i, part in enumerate(RELEASED_ORDER_INSIDE) if all(word in name for word in part.split()))
    return room, depth, next(fitting, len(RELEASED_ORDER_INSIDE)), name.endswith(".bias")
