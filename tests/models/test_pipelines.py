"""transformers' pipelines on directories of ours: what needs more than a head, and masks by their usual names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import pipeline

from plait.models import mplug2, one_peace

from .test_contract import SIZES


def one_peace_pair() -> tuple[Any, Any]:
    torch.manual_seed(0)
    config = one_peace.OnePeaceConfig(**{**SIZES, "vocab_size": 50265}, sampling_rate=8000, min_audio_seconds=0.05)
    model = one_peace.OnePeaceModel(config).eval()
    return model, one_peace.OnePeaceProcessor.from_config(config)


def test_pictures_and_sounds_are_classified_by_labels_as_texts(tmp_path: Path) -> None:
    model, processor = one_peace_pair()
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.effect_mandelbrot((30, 40), (-2, -1, 1, 1), 20).convert("RGB")
    wave = np.sin(np.arange(800) / 7).astype(np.float32)
    for medium, given in (("image", picture), ("audio", wave)):
        run = pipeline(f"zero-shot-{medium}-classification", model=str(tmp_path), device="cpu")
        found = run(given, candidate_labels=["dog", "rain"], hypothesis_template="a {}")
        argument = {"images": picture} if medium == "image" else {"audio": wave}
        output = model(**processor(text=["a dog", "a rain"], **argument))
        want = output[f"logits_per_{medium}"].softmax(-1)[0].tolist()
        scores = {one["label"]: one["score"] for one in found}
        assert np.allclose([scores["dog"], scores["rain"]], want, atol=1e-4)


def test_the_mask_of_sounds_alone_counts_by_its_usual_name() -> None:
    model, processor = one_peace_pair()
    waves = [np.sin(np.arange(n) / 7).astype(np.float32) for n in (800, 1600)]
    both = model(**processor(audio=waves)).audio_embeds
    alone = model(**processor(audio=waves[:1])).audio_embeds
    assert torch.allclose(both[:1], alone, atol=1e-5)


def test_questions_about_pictures_are_answered(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = mplug2.MPlug2ForConditionalGeneration(mplug2.MPlug2Config.preset("tiny", vocab_size=30522)).eval()
    processor = mplug2.MPlug2Processor.from_config(model.config)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.effect_mandelbrot((30, 40), (-2, -1, 1, 1), 20).convert("RGB")
    run = pipeline("image-text-to-text", model=str(tmp_path), device="cpu")
    assert isinstance(run(images=picture, text="what is it", max_new_tokens=3)[0]["generated_text"], str)
    inputs = processor(images=picture, text="what is it")
    assert torch.equal(model.generate(**inputs, max_new_tokens=3), model.generate(**inputs, max_length=3))
