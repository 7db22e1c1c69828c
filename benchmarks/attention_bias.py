"""What relative-position bias costs: one block's attention (dim 512, 8 heads) with and without it.

The bias is computed once per forward pass and shared by layers and rows, so here it is given. 8 rows of 229 tokens,
fp32, one thread; with padded text the key mask rides along.
"""

from __future__ import annotations

import torch
from measure import compare, interleaved, milliseconds, write

from plait.nn.attention import SelfAttention, attention_function

BATCH, TEXT, IMAGE, DIM, HEADS, ROUNDS = 8, 32, 197, 512, 8, 60


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    attention = SelfAttention(DIM, HEADS, key_bias=False, inner_norm=True).eval()
    x = torch.randn(BATCH, TEXT + IMAGE, DIM)
    bias = torch.zeros(1, HEADS, TEXT + IMAGE, TEXT + IMAGE)
    bias[..., :TEXT, :TEXT].normal_()
    bias[..., TEXT:, TEXT:].normal_()
    real = torch.ones(BATCH, TEXT + IMAGE, dtype=torch.bool)
    real[::2, TEXT // 2 : TEXT] = False  # every other text is half as long
    sdpa = attention_function("sdpa")

    with torch.inference_mode():
        seconds = interleaved(
            {
                "bias": lambda: attention(x, bias, None, sdpa),
                "plain": lambda: attention(x, None, None, sdpa),
                "bias_and_mask": lambda: attention(x, bias, real, sdpa),
                "mask": lambda: attention(x, None, real, sdpa),
            },
            ROUNDS,
        )
    write(
        "attention_bias",
        {
            "pairs": ROUNDS,
            "sizes": {"batch": BATCH, "text": TEXT, "image": IMAGE, "dim": DIM, "heads": HEADS, "dtype": "float32"},
            "bias_over_plain": compare(seconds, "bias", "plain"),
            "bias_and_mask_over_plain": compare(seconds, "bias_and_mask", "plain"),
            "bias_and_mask_over_mask": compare(seconds, "bias_and_mask", "mask"),
            "cpu_milliseconds": milliseconds(seconds),
        },
    )


if __name__ == "__main__":
    main()
