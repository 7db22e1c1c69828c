"""Towers leave through torch.export with a free batch size, whatever size they were traced with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.export import Dim, export

import plait
from plait.cli import main
from plait.models import mplug2, one_peace
from plait.models.export import export as to_file

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny
from .test_contract import SIZES


class Tower(torch.nn.Module):
    def __init__(self, model: Any, call: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.model, self.call = model, call

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(self.model, x)


def tower(name: str) -> tuple[Tower, torch.Tensor]:
    family, _, medium = name.partition(" ")
    torch.manual_seed(0)
    if family == "owl2":
        model, _ = owl2_tiny.model_and_processor()
        side = model.config.image_size
        return Tower(model, lambda m, x: m.model.encode_images(x)), torch.randn(2, 3, side, side)
    if family == "owl":
        model, _ = owl_tiny.model_and_processor(temporal=True)
        side = model.config.image_size
        frames = (3,) if medium == "clips" else ()
        return Tower(model, lambda m, x: m.encode(x)), torch.randn(2, 3, *frames, side, side)
    if family == "mplug2":
        head = medium == "classes"
        cls = mplug2.MPlug2ForImageClassification if head else mplug2.MPlug2ForConditionalGeneration
        model = cls(mplug2.MPlug2Config.preset("tiny", **({"num_labels": 3} if head else {}))).eval()
        side = model.config.image_size
        if head:
            return Tower(model, lambda m, x: m(pixel_values=x).logits), torch.randn(2, 3, side, side)
        if medium == "clips":
            return Tower(model, lambda m, x: m.model.see(None, x)), torch.randn(2, 3, 4, side, side)
        return Tower(model, lambda m, x: m.model.see(x)), torch.randn(2, 3, side, side)
    if medium == "classes":
        config = one_peace.OnePeaceConfig(**SIZES, num_classes=3, pool_modality="image", use_projections=False)
        model = one_peace.OnePeaceForClassification(config).eval()
        return Tower(model, lambda m, x: m(pixel_values=x).logits), torch.randn(2, 3, 32, 32)
    model = one_peace.OnePeaceModel(one_peace.OnePeaceConfig(**SIZES)).eval()
    if medium == "text":
        return Tower(model, lambda m, x: m.get_text_features(x, torch.ones_like(x))), torch.randint(5, 30, (2, 6))
    if medium == "audio":
        every = torch.ones(1, 800)
        return (
            Tower(model, lambda m, x: m.get_audio_features(x, attention_mask=every.expand_as(x))),
            torch.randn(2, 800),
        )
    return Tower(model, lambda m, x: m.get_image_features(x)), torch.randn(2, 3, 32, 32)


NAMES = [
    "owl2 images", "owl images", "owl clips", "mplug2 images", "mplug2 clips", "mplug2 classes",
    "one_peace text", "one_peace images", "one_peace audio", "one_peace classes",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_an_exported_tower_takes_any_number_of_items(name: str) -> None:
    module, x = tower(name)
    with torch.no_grad():
        program = export(module, (x,), dynamic_shapes=({0: Dim.DYNAMIC},)).module()
        more = torch.cat([x, x.flip(0), x])
        assert torch.allclose(program(more), module(more), atol=1e-5)


def saved_one_peace(place: Path) -> Path:
    """A tiny ONE-PEACE that reads every text, its parameters drawn anew so that each of them matters."""
    torch.manual_seed(0)
    words = {"vocab_size": one_peace.OnePeaceConfig().vocab_size}
    model = one_peace.OnePeaceModel(one_peace.OnePeaceConfig(**{**SIZES, **words})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    model.save_pretrained(place)
    one_peace.OnePeaceProcessor.from_config(model.config).save_pretrained(place)
    return place


def test_the_verb_writes_a_program_that_torch_loads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    place = saved_one_peace(tmp_path / "one-peace")
    assert main(["export", str(place), "--part", "image", "--format", "torch", "--out", str(tmp_path / "a.pt2")]) == 0
    assert "pixel_values (batch, 3, 32, 32) -> features" in capsys.readouterr().out
    pixels = torch.randn(5, 3, 32, 32)
    program = torch.export.load(tmp_path / "a.pt2").module()
    with torch.no_grad():
        assert torch.allclose(program(pixel_values=pixels), plait.load(place)[0].get_image_features(pixels), atol=1e-5)
    assert main(["export", str(place), "--part", "video", "--format", "torch"]) == 2
    assert main(["export", str(place), "--part", "image", "--format", "tflite"]) == 2


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("part", ["text", "image", "audio", "owl image", "owl video", "owl2 image"])
def test_onnx_says_the_same_as_the_model(part: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed; pip install 'plait[export]'")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed; pip install 'plait[export]'")
    family, _, medium = part.rpartition(" ")
    if family:
        tiny = owl_tiny if family == "owl" else owl2_tiny
        model, processor = tiny.model_and_processor(**({"temporal": True} if medium == "video" else {}))[:2]
    else:
        model, processor = plait.load(saved_one_peace(tmp_path))
    assert to_file(model, processor, medium, tmp_path / "tower.onnx").difference < 1e-5
