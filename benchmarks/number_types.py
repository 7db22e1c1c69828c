"""What a type of numbers costs and gives on this CPU: float32, bfloat16 and int8 of the same random model.

An image of 256 pixels through ONE-PEACE's trunk at the published width (1536, 6144; one of its 40 layers); a step and a
prefill of mPLUG-Owl2's decoder at half of its published width (2048, 5504; one of its 32 layers, no table of words).
One thread. Cosines are of the outputs against float32. The bars (int8 at least 3 times float32) are for processors with
AVX512-VNNI; the result says what this one has.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from measure import compare, interleaved, milliseconds, write
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache

from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.nn.quantized import int8_kernel, to_int8

ROUNDS, PREFIX = 3, 64


def variants(model: nn.Module) -> dict[str, nn.Module]:
    """The model in every type."""
    return {
        "float32": model,
        "bfloat16": copy.deepcopy(model).bfloat16(),
        "int8": to_int8(copy.deepcopy(model)),
    }


def measured(arms: dict[str, Any], rounds: int) -> dict[str, Any]:
    """Times, ratios to float32 and cosines of what the arms return."""
    outputs = {name: arm().float() for name, arm in arms.items()}
    found = interleaved(arms, rounds, warmup=0)
    return {
        "milliseconds": milliseconds(found),
        **{f"float32 / {name}": compare(found, "float32", name) for name in arms if name != "float32"},
        "cosine": {
            name: round(float(F.cosine_similarity(out, outputs["float32"]).min()), 6) for name, out in outputs.items()
        },
    }


def images() -> dict[str, Any]:
    """An image through two layers of the published width."""
    config = OnePeaceConfig(modalities=["image"], joint=(), num_layers=1, layer_scale=1.0, init_std=0.02)
    model = OnePeaceModel(config).eval()
    pixels = torch.rand(1, 3, 256, 256)
    return measured({n: lambda m=m: m.get_image_features(pixels) for n, m in variants(model).items()}, ROUNDS)


def steps() -> dict[str, Any]:
    """A step of decoding behind 64 keys, and a prefill of 64 positions."""
    config = MPlugOwl2Config(
        vocab_size=64, dim=2048, num_layers=1, num_heads=16, mlp_dim=5504, eos_token_id=None,
        vision=VisionConfig(dim=64, num_heads=4, num_layers=1, mlp_dim=64, image_size=28, patch_size=14),
        abstractor=AbstractorConfig(num_queries=4, num_heads=4, num_layers=1, mlp_dim=64, grid_size=2),
    )  # fmt: skip
    made = variants(MPlugOwl2ForConditionalGeneration(config).eval())
    prompt, token = torch.randint(0, 64, (1, PREFIX)), torch.ones(1, 1, dtype=torch.long)
    caches = {name: DynamicCache() for name in made}

    def step(name: str, model: Any) -> torch.Tensor:
        cache = caches[name]
        if not cache.get_seq_length():
            model(prompt, use_cache=True, past_key_values=cache)
        states = model.model(token, use_cache=True, past_key_values=cache).last_hidden_state[0]
        cache.crop(-1)
        return states

    def prefill(model: Any) -> torch.Tensor:
        return model.model(prompt).last_hidden_state[0]

    return {
        "step": measured({n: lambda n=n, m=m: step(n, m) for n, m in made.items()}, ROUNDS),
        "prefill": measured({n: lambda m=m: prefill(m) for n, m in made.items()}, 3),
    }


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    can = torch.cpu.get_capabilities()
    has = {name: bool(can.get(name)) for name in ("avx2", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8")}
    result: dict[str, Any] = {"processor": has, "int8_kernel": int8_kernel()}
    for name, measure in (("one_peace_image", images), ("owl2", steps)):
        result[name] = measure()
        print(name, result[name], flush=True)
    write("number_types", result)


if __name__ == "__main__":
    main()
