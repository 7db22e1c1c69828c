"""What a way per modality costs: two feed-forward ways against one shared, and against dense-and-select.

One block's feed-forward network (GeGLU, dim 512, hidden 2048) on 8 rows of 32 text and 197 image tokens, fp32, one
thread.
"""

from __future__ import annotations

import torch
from measure import compare, interleaved, milliseconds, write
from torch import Tensor, nn

from plait.nn.layers import GeGLU
from plait.routing import PerModality, Route

BATCH, TEXT, IMAGE, DIM, HIDDEN, ROUNDS = 8, 32, 197, 512, 2048, 60


def dense_and_select(ways: PerModality, x: Tensor, is_text: Tensor) -> Tensor:
    """Every way on every token, then a choice by mask: what routing replaces."""
    return torch.where(is_text, ways["text"](x), ways["image"](x))


def with_backward(module: nn.Module, x: Tensor, out: Tensor) -> None:
    out.sum().backward()
    module.zero_grad()
    x.grad = None


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shared = GeGLU(DIM, HIDDEN)
    ways = PerModality(lambda: GeGLU(DIM, HIDDEN), {"text": ("text",), "image": ("image",)})
    route = Route.segments({"text": TEXT, "image": IMAGE})
    is_text = (torch.arange(TEXT + IMAGE) < TEXT)[None, :, None]
    x = torch.randn(BATCH, TEXT + IMAGE, DIM)
    xg = x.clone().requires_grad_()
    torch.testing.assert_close(ways(x, route), dense_and_select(ways, x, is_text))

    with torch.inference_mode():
        forward = interleaved(
            {
                "two_ways": lambda: ways(x, route),
                "shared": lambda: shared(x),
                "dense_and_select": lambda: dense_and_select(ways, x, is_text),
            },
            ROUNDS,
        )
    training = interleaved(
        {
            "two_ways": lambda: with_backward(ways, xg, ways(xg, route)),
            "shared": lambda: with_backward(shared, xg, shared(xg)),
            "dense_and_select": lambda: with_backward(ways, xg, dense_and_select(ways, xg, is_text)),
        },
        ROUNDS,
    )
    write(
        "ffn_ways",
        {
            "pairs": ROUNDS,
            "sizes": {"batch": BATCH, "text": TEXT, "image": IMAGE, "dim": DIM, "hidden": HIDDEN, "dtype": "float32"},
            "forward": summary(forward),
            "forward_and_backward": summary(training),
        },
    )


def summary(seconds: dict[str, list[float]]) -> dict[str, object]:
    return {
        "two_ways_over_shared": compare(seconds, "two_ways", "shared"),
        "dense_and_select_over_two_ways": compare(seconds, "dense_and_select", "two_ways"),
        "cpu_milliseconds": milliseconds(seconds),
    }


if __name__ == "__main__":
    main()
