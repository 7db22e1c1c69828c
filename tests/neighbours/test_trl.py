"""TRL trains both Owls on conversations with pictures: SFT of all weights, SFT of an adapter, preferences (DPO)."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ..models.mplug_owl import tiny as owl_tiny
from ..models.mplug_owl2 import tiny as owl2_tiny

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
ARGUMENTS = {
    "max_steps": 2, "per_device_train_batch_size": 2, "learning_rate": 1e-2, "use_cpu": True, "bf16": False,
    "report_to": "none", "save_strategy": "no", "disable_tqdm": True, "gradient_checkpointing": False,
}  # fmt: skip
ANSWERS = ("a red dog", "snow", "a bird sings", "rain falls")


@pytest.fixture(scope="module")
def trl() -> Any:
    return pytest.importorskip("trl", reason="trl is not installed; pip install 'plait[neighbours]'")


@pytest.fixture(params=["owl", "owl2"])
def pair(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    return (owl_tiny if request.param == "owl" else owl2_tiny).model_and_processor()[:2]


def rows(**columns: Any) -> Any:
    """Four rows, each with a picture of its own beside the given columns."""
    from datasets import Dataset

    pictures = [[Image.new("RGB", (20 + i, 30), (60 * i, 90, 10))] for i in range(4)]
    return Dataset.from_dict({"images": pictures, **columns})


def message(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def weights_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def moved(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> set[str]:
    after = weights_of(model)
    assert all(torch.isfinite(value).all() for value in after.values())
    return {name for name in before if not torch.equal(before[name], after[name])}


@pytest.mark.parametrize("shape", ["messages", "prompt-completion"])
def test_sft_trains_the_decoder_and_the_eyes(trl: Any, pair: tuple[Any, Any], shape: str, tmp_path: Path) -> None:
    model, processor = pair
    asked = [[message("user", "What is this?")] for _ in ANSWERS]
    told = [[message("assistant", answer)] for answer in ANSWERS]
    if shape == "messages":
        data = rows(messages=[q + a for q, a in zip(asked, told)])
    else:
        data = rows(prompt=asked, completion=told)
    before = weights_of(model)
    trainer = trl.SFTTrainer(
        model, args=trl.SFTConfig(str(tmp_path), max_length=None, **ARGUMENTS), train_dataset=data,
        processing_class=processor,
    )  # fmt: skip
    batch = next(iter(trainer.get_train_dataloader()))
    theirs = trainer.compute_loss(trainer.model, dict(batch))
    assert torch.allclose(theirs, model(**batch).loss, rtol=1e-4)  # TRL passes the states through the head by itself
    trainer.train()
    changed = moved(model, before)
    assert any("vision" in name for name in changed)
    assert any("q_proj" in name or "query" in name for name in changed)


def test_sft_trains_an_adapter_alone(trl: Any, pair: tuple[Any, Any], tmp_path: Path) -> None:
    from peft import LoraConfig

    model, processor = pair
    data = rows(messages=[[message("user", "What is this?"), message("assistant", answer)] for answer in ANSWERS])
    trainer = trl.SFTTrainer(
        model, args=trl.SFTConfig(str(tmp_path), max_length=None, **ARGUMENTS), train_dataset=data,
        processing_class=processor, peft_config=LoraConfig(r=2, target_modules=["q_proj", "v_proj"]),
    )  # fmt: skip
    before = weights_of(trainer.model)
    trainer.train()
    changed = moved(trainer.model, before)
    assert changed
    assert all("lora_" in name for name in changed)


def test_preferences_train(trl: Any, pair: tuple[Any, Any], tmp_path: Path) -> None:
    from transformers import AutoModelForImageTextToText

    # The reference is read from the directory that the trained model came from.
    for one in pair:
        one.save_pretrained(tmp_path / "model")
    model, processor = AutoModelForImageTextToText.from_pretrained(tmp_path / "model"), pair[1]
    data = rows(
        prompt=[[message("user", "What is this?")] for _ in ANSWERS],
        chosen=[[message("assistant", answer)] for answer in ANSWERS],
        rejected=[[message("assistant", answer)] for answer in reversed(ANSWERS)],
    )
    before = weights_of(model)
    trainer = trl.DPOTrainer(
        model, args=trl.DPOConfig(str(tmp_path), max_length=None, **ARGUMENTS), train_dataset=data,
        processing_class=processor,
    )  # fmt: skip
    first = trainer.compute_loss(trainer.model, next(iter(trainer.get_train_dataloader())))
    assert float(first.detach()) == pytest.approx(math.log(2), abs=1e-4)  # nothing told apart from the reference yet
    trainer.train()
    assert moved(model, before)
