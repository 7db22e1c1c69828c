"""Linear layers in 8-bit integers, for models that are only run and only on CPUs.

weight -> a scale per output channel, int8          x -> a step and a base per row, unsigned or signed integers
integers x integers -> sums -> times both scales, plus what the bases add -> float32

A product of 8-bit integers reads a quarter of the bytes of float32. Two kernels of torch compute it, by what the
processor has: `_int_mm` where it adds products of bytes in one instruction (AVX512-VNNI, AVX-VNNI, AMX), else oneDNN's
quantised product, which adds pairs of them in 16 bits: weights then have 127 levels, so that no such sum overflows.
Rows keep 255, since states have outliers that spread their levels, and weights have few.
Never chosen by itself: `dtype="int8"` asks for it.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plait.errors import UsageError

Kernel = Literal["signed", "narrow"]
LARGEST = {"signed": 127, "narrow": 63}
"""Of a weight; 255 x 63 twice is the most that 16 bits hold."""
LEVELS = 255
SHIFTS = {"signed": 128, "narrow": 0}
"""What is taken from the levels of a row, which are unsigned."""
SMALL = 1 << 12
"""Weights of a layer below which it stays as it is: the products of a head of two classes cost nothing."""


@lru_cache(maxsize=1)
def int8_kernel() -> Kernel | None:
    """What this processor multiplies bytes with, None where torch has no fast product for it."""
    can = torch.cpu.get_capabilities()
    if not torch.backends.mkldnn.is_available():
        return None
    if can.get("avx512_vnni") or can.get("avx_vnni") or can.get("amx_int8"):
        return "signed"
    return "narrow" if can.get("avx2") else None


class Int8Linear(nn.Module):
    """`nn.Linear` with 8-bit weights, a scale per output channel, and rows in as many levels as the kernel allows.

    Args:
        linear: whose weights are taken, of any floating type.
        kernel: see `int8_kernel`.

    Example:
        >>> layer = Int8Linear(nn.Linear(64, 32), "narrow").eval()
        >>> layer(torch.randn(3, 64)).shape
        torch.Size([3, 32])
    """

    largest: Tensor
    scale: Tensor
    offsets: Tensor

    def __init__(self, linear: nn.Linear, kernel: Kernel) -> None:
        super().__init__()
        self.in_features, self.out_features, self.kernel = linear.in_features, linear.out_features, kernel
        weight = linear.weight.detach().float()
        largest = weight.abs().amax(dim=1)
        scale = largest.clamp_min(torch.finfo(torch.float32).tiny) / LARGEST[kernel]
        integers = (weight / scale[:, None]).round_().to(torch.int8)
        bias = torch.zeros(self.out_features) if linear.bias is None else linear.bias.detach().float()
        # What a row's base adds, times its value: sums of a channel's weights; then the bias, which is added once.
        sums = integers.sum(dim=1, dtype=torch.int32).float() * scale
        # What a fingerprint sees must be the same on every processor: neither scales nor integers are.
        self.register_buffer("largest", largest)
        self.register_buffer("scale", scale, persistent=False)
        self.register_buffer("offsets", torch.stack([sums, bias]), persistent=False)
        self.integers = integers if kernel == "signed" else torch.ops.onednn.qlinear_prepack(integers, None)
        self.zeros = None if kernel == "signed" else torch.zeros(self.out_features, dtype=torch.int64)

    @property
    def weight(self) -> Tensor:
        """The weights as they are multiplied, float32 (out, in): for code that reads a layer's type or shape."""
        # oneDNN's blocks cannot be read otherwise
        return self._product(torch.eye(self.in_features)).T

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in) -> (..., out), in the type of x.

        Raises:
            ValueError: in training, which needs the weights that these were rounded from.
        """
        if self.training:
            raise ValueError('expected a model that is only run, got int8 in training; train it without dtype="int8"')
        rows = x.reshape(-1, self.in_features).float()
        if not len(rows):
            return x.new_zeros(*x.shape[:-1], self.out_features)
        low, high = rows.aminmax(dim=1, keepdim=True)
        step = ((high - low) / LEVELS).clamp_min(torch.finfo(torch.float32).tiny)
        shift = SHIFTS[self.kernel]
        integers = ((rows - low) / step).round_().sub_(shift)
        out = self._product(integers).mul_(step)
        # x = step * integer + base, so the base of a row multiplies the sum of every channel
        bases = torch.cat([low + shift * step, torch.ones_like(low)], dim=1)
        return out.addmm_(bases, self.offsets).to(x.dtype).unflatten(0, x.shape[:-1])

    def _product(self, integers: Tensor) -> Tensor:
        """Rows of integers, (rows, in) as float32 -> (rows, out) float32, each channel times its scale."""
        if self.kernel == "signed":
            return torch._int_mm(integers.to(torch.int8), self.integers.T) * self.scale
        return torch.ops.onednn.qlinear_pointwise(
            integers.to(torch.uint8), 1.0, 0, self.integers, self.scale, self.zeros, None,
            1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip


def to_int8(model: nn.Module) -> nn.Module:
    """Replace the linear layers of a model on a CPU, one after the other; all else becomes float32.

    Weights that were mapped from a file are read once and let go, so the peak is what the int8 model takes.

    Args:
        model: changed in place.

    Returns:
        The same model, in eval mode.

    Raises:
        UsageError: where this processor has no fast product of bytes.
    """
    if (kernel := int8_kernel()) is None:
        raise UsageError("expected a processor with AVX2 or VNNI for int8, got another; use float32 or bfloat16")
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            # the class itself: torch's own attention reads the weights of its subclass past `forward`
            if type(layer) is nn.Linear and layer.weight.numel() >= SMALL:
                setattr(parent, name, Int8Linear(layer, kernel))
    model.float()
    setattr(model, "save_pretrained", _refuse_saving)  # noqa: B010 (of this instance, whose weights are rounded)
    return model.eval()


def is_int8(model: nn.Module) -> bool:
    """Whether `to_int8` was here."""
    return any(isinstance(module, Int8Linear) for module in model.modules())


def _refuse_saving(*_: Any, **__: Any) -> None:
    """In place of `save_pretrained`: a file of rounded weights would open as nothing that anybody knows."""
    raise ValueError("expected a model in a floating type to save, got int8; save the one that it was made from")
