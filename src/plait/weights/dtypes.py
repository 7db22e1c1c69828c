"""The one table of floating-point types by name: `bf16` | `bfloat16` | torch.bfloat16 -> torch.bfloat16."""

from __future__ import annotations

from typing import overload

import torch

from plait.errors import UsageError

DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


@overload
def resolve_dtype(dtype: torch.dtype | str) -> torch.dtype: ...


@overload
def resolve_dtype(dtype: None) -> None: ...


@overload
def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None: ...


def resolve_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A dtype by its name; torch's own and None stay what they are.

    Args:
        dtype: a key of `DTYPES`, a torch dtype, or None.

    Raises:
        UsageError: for any other name.

    Example:
        >>> resolve_dtype("bf16")
        torch.bfloat16
    """
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    if dtype not in DTYPES:
        raise UsageError(f"expected a dtype of {', '.join(DTYPES)}, got {dtype!r}; choose one of them")
    return DTYPES[dtype]
