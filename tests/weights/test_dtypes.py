"""A dtype has one name in the whole library, in its long and its short form."""

from __future__ import annotations

import pytest
import torch

from plait.errors import UsageError
from plait.weights.dtypes import resolve_dtype


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("float32", "fp32", torch.float32), torch.float32),
        (("bfloat16", "bf16", torch.bfloat16), torch.bfloat16),
        (("float16", "fp16", torch.float16), torch.float16),
        ((None,), None),
    ],
)
def test_long_and_short_names_are_one_dtype(names: tuple[object, ...], expected: torch.dtype | None) -> None:
    assert [resolve_dtype(name) for name in names] == [expected] * len(names)  # ty: ignore[invalid-argument-type]


def test_another_name_lists_those_that_are_known() -> None:
    with pytest.raises(UsageError, match=r"expected a dtype of float32, .*bf16.*, got 'int8'"):
        resolve_dtype("int8")
