"""Linear layers in 8 bits: near to float32 on either kernel, refused where they would harm."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import plait
from plait.errors import UsageError
from plait.models.auto import placement
from plait.nn import quantized
from plait.nn.quantized import Int8Linear, Kernel, is_int8, to_int8
from plait.types import Sample


@pytest.mark.parametrize("kernel", ["signed", "narrow"])
@pytest.mark.parametrize("shape", [(1, 96), (3, 5, 96), (0, 96), (2, 0, 96)])
def test_products_are_near_those_of_float32(kernel: Kernel, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(96, 130).eval()
    layer, x = Int8Linear(linear, kernel).eval(), torch.randn(shape) * 3 + 1
    found, wanted = layer(x), linear(x)
    assert found.shape == wanted.shape and found.dtype == torch.float32
    assert not x.numel() or F.cosine_similarity(found.flatten(), wanted.flatten(), 0) > 0.9995
    assert torch.allclose(layer.weight, linear.weight, atol=float(linear.weight.detach().abs().max()) / 100)


@pytest.mark.parametrize("kernel", ["signed", "narrow"])
def test_odd_rows_stay_what_they_are(kernel: Kernel) -> None:
    layer = Int8Linear(nn.Linear(64, 64), kernel).eval()
    flat = torch.tensor([0.0, 2.5, -1e-30]).repeat_interleave(64).view(3, 64)
    exact = F.linear(flat, layer.weight, layer.offsets[1])
    assert torch.allclose(layer(flat), exact, atol=1e-4)
    assert layer(torch.full((1, 64), float("nan"))).isnan().all()
    far = torch.zeros(1, 64).index_fill_(1, torch.tensor([3]), float("inf"))
    assert not layer(far).isfinite().any()
    assert layer(torch.ones(2, 64, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_a_row_does_not_depend_on_its_batch() -> None:
    layer, x = Int8Linear(nn.Linear(64, 64), "narrow").eval(), torch.randn(9, 64)
    x[3] *= 1e4
    assert torch.allclose(layer(x)[:3], torch.cat([layer(x[i : i + 1]) for i in range(3)]), atol=1e-6)


def test_an_int8_model_is_only_run() -> None:
    model = to_int8(nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 2)).bfloat16())
    assert is_int8(model) and type(model[2]) is nn.Linear and model[1].weight.dtype == torch.float32
    assert model(torch.randn(2, 64)).shape == (2, 2)
    with pytest.raises(ValueError, match="only run, got int8 in training"):
        model.train()(torch.randn(2, 64))
    with pytest.raises(ValueError, match="floating type to save"):
        model.save_pretrained("x")  # ty: ignore[call-non-callable]


def test_types_that_a_device_is_bad_at_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for dtype, told in (
        ("float16", "four times as long"),
        (torch.float16, "four times"),
        ("int4", "BitsAndBytesConfig"),
    ):
        with pytest.raises(UsageError, match=told):
            placement("cpu", dtype)
    with pytest.raises(UsageError, match="four times"):
        plait.Embedder("nano", device="cpu", dtype="fp16")
    assert placement("cpu", None).dtype == torch.float32 and placement("cpu", "bf16").dtype == torch.bfloat16
    monkeypatch.setattr(quantized, "int8_kernel", lambda: None)
    with pytest.raises(UsageError, match="expected a processor with AVX2 or VNNI"):
        to_int8(nn.Linear(64, 64))


@pytest.fixture(scope="module")
def embedders() -> tuple[plait.Embedder, plait.Embedder]:
    return plait.Embedder("nano", device="cpu"), plait.Embedder("nano", device="cpu", dtype="int8")


@pytest.mark.skipif(quantized.int8_kernel() is None, reason="no product of bytes")
def test_vectors_are_near_and_an_index_knows_whose_they_are(embedders, tmp_path) -> None:
    plain, small = embedders
    words = [f"a {color} {thing}" for color in ("red", "blue") for thing in ("cat", "boat", "bird song")]
    assert (plain.embed(words) * small.embed(words)).sum(1).min() > 0.995
    assert plain.fingerprint != small.fingerprint and (plain.number_type, small.number_type) == (None, "int8")
    index = plait.Index.create(tmp_path / "i.lance", small)
    index.add([Sample(word, text=word) for word in words])
    with pytest.raises(ValueError, match="use its own model"):
        plait.Index.open(tmp_path / "i.lance", plain)
    again = plait.Index.open(tmp_path / "i.lance")
    assert again.search({"text": words[1]}, k=1) and again.embedder.number_type == "int8"
