"""What a processor makes, always float32, goes into a model of any precision."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plait.models import mplug2, one_peace

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny
from .test_contract import SIZES, classifier, writer

PICTURE = Image.effect_mandelbrot((30, 40), (-2, -1, 1, 1), 20).convert("RGB")


def one_peace_model() -> Any:
    torch.manual_seed(0)
    return one_peace.OnePeaceModel(one_peace.OnePeaceConfig(**{**SIZES, "vocab_size": 50264})).eval()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_one_peace_takes_float32_pixels_and_waves(dtype: torch.dtype) -> None:
    model = one_peace_model().to(dtype)
    processor = one_peace.OnePeaceProcessor.from_config(model.config)
    wave = np.random.default_rng(0).normal(size=4000).astype("float32")
    image = model.get_image_features(**processor(images=PICTURE))
    audio = model.get_audio_features(**processor(audio=wave))
    assert image.dtype == audio.dtype == dtype
    assert classifier().to(dtype)(pixel_values=torch.randn(1, 3, 32, 32), labels=torch.tensor([1])).loss.isfinite()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mplug2_takes_float32_pixels_and_frames(dtype: torch.dtype) -> None:
    model = writer().to(dtype)
    processor = mplug2.MPlug2Processor.from_config(model.config)
    for given in (processor(images=PICTURE), processor(videos=[[PICTURE] * 4])):
        assert model.generate(**given, max_length=4, min_length=1).dtype == torch.int64


@pytest.mark.parametrize("family", ["owl", "owl2"])
def test_the_owls_take_float32_pixels(family: str) -> None:
    model, processor = (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()
    mark = "<image>" if family == "owl" else "<|image|>"
    assert model.to(torch.bfloat16).generate(**processor(text=f"{mark}a", images=PICTURE), max_new_tokens=2).shape[1]


def test_a_picture_of_16_bits_is_not_clipped() -> None:
    gray = np.asarray(PICTURE.convert("L"))
    deep, plain = Image.fromarray(gray.astype(np.uint16) * 257), Image.fromarray(gray).convert("RGB")
    processors = {
        "<image>": owl_tiny.model_and_processor()[1],
        "<|image|>": owl2_tiny.model_and_processor()[1],
        None: one_peace.OnePeaceProcessor.from_config(one_peace.OnePeaceConfig(**SIZES)),
    }
    for mark, processor in processors.items():
        got, want = ({"images": one} if mark is None else {"images": one, "text": mark} for one in (deep, plain))
        assert torch.allclose(processor(**got)["pixel_values"], processor(**want)["pixel_values"], atol=0.02)


def test_num_labels_and_num_classes_are_one_number() -> None:
    config = one_peace.OnePeaceConfig
    assert config(**SIZES).num_classes == 0
    assert config(**SIZES, num_labels=3).num_classes == 3
    assert config(**SIZES, num_labels=2).num_classes == 2
    named = config(**SIZES, id2label={0: "a", 1: "b", 2: "c"}, label2id={"a": 0, "b": 1, "c": 2})
    assert named.num_classes == 3
    assert config(**named.to_dict()).id2label == named.id2label
    assert config(**config(**SIZES).to_dict()).num_classes == 0
    assert config(**SIZES, num_classes=4).num_labels == 4
    named.num_labels = 5
    assert named.num_classes == 5
    named.num_classes = 7
    assert len(named.id2label or {}) == 7
    with pytest.raises(ValueError, match="make them agree"):
        config(**SIZES, num_classes=4, num_labels=3)
