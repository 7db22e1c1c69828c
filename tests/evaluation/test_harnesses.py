"""Our chat families through nothing but transformers' Auto classes, as lmms-eval and VLMEvalKit load them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from tiny_families import FAMILIES

pytestmark = pytest.mark.filterwarnings("ignore")  # transformers warns about generation settings
PROMPTS = {"mplug_owl": "Human: <image>\nHuman: {}\nAI: ", "mplug_owl2": "USER: <|image|>{} ASSISTANT: "}


@pytest.fixture(scope="module", params=sorted(PROMPTS))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Any, Path]:
    """Family, model and processor of a directory, opened by Auto classes."""
    from transformers import AutoModelForImageTextToText, AutoProcessor

    import plait.models.auto  # noqa: F401  (registers the families)

    place = tmp_path_factory.mktemp("auto") / request.param
    FAMILIES[request.param](place)
    model = AutoModelForImageTextToText.from_pretrained(place)
    return request.param, model, AutoProcessor.from_pretrained(place), place


def test_auto_classes_load_and_generate(pair: tuple[str, Any, Any, Path]) -> None:
    family, model, processor, _ = pair
    assert model.config.model_type == family
    assert model.can_generate()
    picture = Image.effect_mandelbrot((30, 20), (-2, -1, 1, 1), 20).convert("RGB")
    texts = [PROMPTS[family].format(words) for words in ("what is it?", "where?")]
    inputs = processor(images=[picture, picture], text=texts, return_tensors="pt")
    with torch.inference_mode():
        made = model.generate(**inputs, do_sample=False, max_new_tokens=4, min_new_tokens=1)
        single = processor(images=picture, text=texts[0], return_tensors="pt")
        alone = model.generate(**single, do_sample=False, max_new_tokens=4, min_new_tokens=1)
    replies = processor.batch_decode(made[:, -4:], skip_special_tokens=True)
    assert len(replies) == 2
    assert processor.batch_decode(alone[:, -4:], skip_special_tokens=True)[0] == replies[0]


def test_a_chat_template_lays_out_what_harnesses_send(pair: tuple[str, Any, Any, Path]) -> None:
    family, model, processor, _ = pair
    content = [{"type": "image"}, {"type": "text", "text": "what is it?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert ("<|image|>" if family == "mplug_owl2" else "<image>") in text
    assert "what is it?" in text
    inputs = processor(images=[Image.new("RGB", (30, 20), "navy")], text=[text], return_tensors="pt")
    made = model.generate(**inputs, do_sample=False, max_new_tokens=3, min_new_tokens=3)
    assert made.shape[1] == inputs["input_ids"].shape[1] + 3


def test_one_import_is_enough_in_a_new_process(pair: tuple[str, Any, Any, Path]) -> None:
    family, _, _, place = pair
    script = (
        "import plait.models.auto\nfrom transformers import AutoModelForImageTextToText as M, AutoProcessor as P\n"
        f"print(type(M.from_pretrained({str(place)!r})).__name__, type(P.from_pretrained({str(place)!r})).__name__)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [
        f"MPlugOwl{'2' if family.endswith('2') else ''}{part}" for part in ("ForConditionalGeneration", "Processor")
    ]
