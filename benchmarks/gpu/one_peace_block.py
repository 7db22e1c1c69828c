"""One ONE-PEACE layer of the published size on a GPU: is bf16 right on every attention path, and how fast is each.

Core dependencies only. Run it: python benchmarks/gpu/one_peace_block.py   (--tiny checks the script itself on a CPU)
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
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.encoder import RoutedEncoderLayer
from plait.routing import Route

sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import write

SIZES = {"dim": 1536, "num_heads": 24, "mlp_dim": 6144, "batch": 32, "text": 32, "image": 257}
TINY = {"dim": 32, "num_heads": 4, "mlp_dim": 64, "batch": 2, "text": 3, "image": 5}
BACKENDS = {
    "math": SDPBackend.MATH,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
}
LARGEST_ERROR = 2e-2
"""Allowed largest error of bf16 against fp32, as a share of the largest output."""


class Block:
    """The layer, its inputs and its bias in one dtype; `run` with any attention function."""

    def __init__(self, sizes: dict[str, int], device: str) -> None:
        torch.manual_seed(0)
        tokens = sizes["text"] + sizes["image"]
        ways = {"text": ("text",), "image": ("image",)}
        self.layer = RoutedEncoderLayer(sizes["dim"], sizes["num_heads"], sizes["mlp_dim"], ways, layer_scale=0.5)
        self.layer.to(device)
        self.route = Route.segments({"text": sizes["text"], "image": sizes["image"]})
        self.x = torch.randn(sizes["batch"], tokens, sizes["dim"], device=device)
        self.bias = torch.randn(1, sizes["num_heads"], tokens, tokens, device=device)
        self.key_mask = torch.ones(sizes["batch"], tokens, dtype=torch.bool, device=device)
        self.key_mask[::2, sizes["text"] // 2 : sizes["text"]] = False

    def to(self, dtype: torch.dtype) -> None:
        self.layer.to(dtype)
        self.x, self.bias = self.x.to(dtype), self.bias.to(dtype)

    def run(self, attend: AttentionFunction, *, with_bias: bool = True, with_mask: bool = True) -> Tensor:
        bias, mask = self.bias if with_bias else None, self.key_mask if with_mask else None
        return self.layer(self.x, self.route, bias, mask, attend)

    def error(self, out: Tensor, reference: Tensor) -> float:
        """Largest error at positions that are attended, as a share of the largest reference value."""
        real = self.key_mask
        return ((out.float() - reference)[real].abs().max() / reference[real].abs().max()).item()


def correctness(block: Block, reference: Tensor, device: str) -> dict[str, float]:
    """Errors of every path in bf16 against eager attention in fp32."""
    names = ["eager", "sdpa", *(["flex_attention"] if device == "cuda" else [])]
    with torch.inference_mode():
        errors = {name: block.error(block.run(attention_function(name)), reference) for name in names}
    torch.compiler.reset()
    block.layer.compile(fullgraph=True, backend="inductor" if device == "cuda" else "aot_eager")
    with torch.no_grad():
        errors["compiled sdpa"] = block.error(block.run(attention_function("sdpa")), reference)
    block.layer._compiled_call_impl = None
    return errors


def kernels(block: Block) -> dict[str, list[str]]:
    """Which of torch's attention kernels take the call: with bias and mask, with bias, and with neither."""
    accepted: dict[str, list[str]] = {}
    calls = {"bias and mask": (True, True), "bias": (True, False), "neither": (False, False)}
    for label, (with_bias, with_mask) in calls.items():
        accepted[label] = []
        for name, backend in BACKENDS.items():
            try:
                with torch.inference_mode(), sdpa_kernel(backend):
                    block.run(attention_function("sdpa"), with_bias=with_bias, with_mask=with_mask)
            except RuntimeError as error:  # torch refuses a kernel that cannot take the call
                print(f"{label}: {name} refused: {str(error).splitlines()[0]}")
            else:
                accepted[label].append(name)
    return accepted


def timings(block: Block, device: str, rounds: int) -> dict[str, dict[str, float]]:
    """Median milliseconds per call, arms interleaved."""
    sdpa = attention_function("sdpa")
    calls: dict[str, Callable[[], Tensor]] = {
        "eager": lambda: block.run(attention_function("eager")),
        "sdpa": lambda: block.run(sdpa),
        "sdpa without mask": lambda: block.run(sdpa, with_mask=False),
        "sdpa without bias and mask": lambda: block.run(sdpa, with_bias=False, with_mask=False),
    }
    if device == "cuda":
        calls["flex_attention"] = lambda: block.run(attention_function("flex_attention"))
        compiled = torch.compile(block.layer, fullgraph=True)
        calls["compiled sdpa"] = lambda: compiled(block.x, block.route, block.bias, block.key_mask, sdpa)
    with torch.inference_mode():
        forward = interleaved(calls, device, rounds)

    def train(call: Callable[[], Tensor]) -> None:
        call().float().square().mean().backward()
        block.layer.zero_grad()

    both = interleaved({name: (lambda call=call: train(call)) for name, call in calls.items()}, device, rounds)
    return {"forward": forward, "forward_and_backward": both}


def interleaved(calls: dict[str, Callable[[], Any]], device: str, rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds + 3):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            if turn >= 3:
                seconds[name].append(time.perf_counter() - start)
    return {name: round(1000 * median(values), 3) for name, values in seconds.items()}


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--tiny", action="store_true", help="tiny sizes on a CPU: checks the script, times nothing of use"
    )
    parser.add_argument("--rounds", type=int, default=50)
    chosen = parser.parse_args()
    device = "cpu" if chosen.tiny else "cuda"
    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none; --tiny checks the script on a CPU")
    sizes = TINY if chosen.tiny else SIZES
    torch.backends.cuda.matmul.allow_tf32 = False
    block = Block(sizes, device)
    with torch.inference_mode():
        reference = block.run(attention_function("eager"))
    block.to(torch.bfloat16)
    errors = correctness(block, reference, device)
    result: dict[str, Any] = {
        "sizes": sizes,
        "dtype": "bfloat16",
        "error_over_largest": errors,
        "kernels": kernels(block),
    }
    result["milliseconds"] = timings(block, device, chosen.rounds)
    if device == "cuda":
        result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
        write("gpu_one_peace_block", result, device)
    else:
        print(result)
    wrong = {name: error for name, error in errors.items() if error > LARGEST_ERROR}
    if wrong:
        sys.exit(f"expected errors up to {LARGEST_ERROR}, got {wrong}")


if __name__ == "__main__":
    main()
