"""Running models on a GPU: mPLUG-Owl2-7B writes, ONE-PEACE 4B embeds pictures; random weights, published sizes, bf16.

Bars on one H200: 250 tokens per second of one answer with a static cache and a compiled step (CUDA graphs), beside it
the share of the memory's peak that reading the weights once per token is; 500 pictures of 256 pixels per second.

Core dependencies only. Run it: python benchmarks/gpu/inference.py [--bandwidth 4.8]   (--tiny checks it on a CPU)
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import StaticCache

from plait.models.mplug_owl2.config import MPlugOwl2Config
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel

sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import write

PROMPT, NEW, ROUNDS = 256, 128, 5


def seconds(call: Callable[[], Any], device: str, rounds: int = ROUNDS) -> float:
    """Median wall time of a call that the device has finished, after one that is not counted."""
    found = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - start)
    return median(found[1:])


def decode(tiny: bool, device: str, bandwidth: float) -> dict[str, float]:
    """Tokens per second of one answer, step by step, eager and compiled."""
    config = MPlugOwl2Config.preset("nano") if tiny else MPlugOwl2Config()
    with torch.device(device):
        model = MPlugOwl2ForConditionalGeneration(config).to(torch.bfloat16).eval()
    weights = sum(p.numel() * p.element_size() for n, p in model.named_parameters() if "visual" not in n)
    weights -= sum(p.numel() * p.element_size() for p in model.model.vision.parameters())
    prompt, new = (8, 4) if tiny else (PROMPT, NEW)
    ids = torch.randint(3, 100, (1, prompt), device=device)
    found: dict[str, float] = {"bytes_per_token": weights}
    for name in ("eager", "compiled"):
        cache = StaticCache(config=config, max_cache_len=prompt + new + 1)
        # "reduce-overhead" records the step as a CUDA graph; a CPU has none
        backend = {"mode": "reduce-overhead"} if device == "cuda" else {"backend": "aot_eager"}
        step = model if name == "eager" else torch.compile(model, fullgraph=True, **backend)
        places = torch.arange(prompt + new, device=device)[None]

        def answer(step: Any = step, cache: Any = cache, places: torch.Tensor = places) -> None:
            cache.reset()
            logits = model(ids, past_key_values=cache, position_ids=places[:, :prompt], logits_to_keep=1).logits
            for i in range(prompt, prompt + new):
                token = logits[:, -1].argmax(-1, keepdim=True)
                logits = step(token, past_key_values=cache, position_ids=places[:, i : i + 1]).logits.clone()

        found[f"{name}_tokens_per_second"] = new / seconds(answer, device, 1 if tiny else ROUNDS)
        found[f"{name}_share_of_bandwidth"] = found[f"{name}_tokens_per_second"] * weights / (bandwidth * 1e12)
    return found


def embed(tiny: bool, device: str) -> dict[str, float]:
    """Pictures per second in batches of 64."""
    config = OnePeaceConfig.preset("nano" if tiny else "4b", modalities=["image"], joint=())
    with torch.device(device):
        model = OnePeaceModel(config).to(torch.bfloat16).eval()
    pixels = torch.rand(2 if tiny else 64, 3, config.image_size, config.image_size, device=device)
    taken = seconds(lambda: model.get_image_features(pixels.bfloat16()), device, 1 if tiny else ROUNDS)
    return {"pictures_per_second": len(pixels) / taken}


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--bandwidth", type=float, default=4.8, help="peak of the memory in TB/s; an H200's")
    given = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() and not given.tiny else "cpu"
    found = {"decode": decode(given.tiny, device, given.bandwidth), "embed": embed(given.tiny, device)}
    if given.tiny:
        print(found)
    else:
        write("gpu_inference", found, device)


if __name__ == "__main__":
    main()
