"""mPLUG-Owl's second stage through `transformers.Trainer` and PEFT instead of `plait train`.

    python examples/owl_with_trainer.py OWL_DIR MANIFEST OUT [--steps 100]

OWL_DIR: a model directory, for example of `plait train mplug_owl.stage1`; MANIFEST: rows with messages, or question and
answers, with image, video or neither. OUT gets a PEFT adapter, which `plait merge OWL_DIR OUT DST` merges and
`plait answer OWL_DIR ... --adapter OUT` uses as it is. Needs `pip install peft accelerate`.
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import plait
from plait.data.conversation import holds_conversation
from plait.data.reader import select
from plait.models.mplug_owl.tasks import lora_targets
from plait.recipes.mplug_owl import collate, read


def main(owl: Path, manifest: Path, out: Path, steps: int = 100, batch_size: int = 8, lr: float = 2e-5) -> float:
    """Train a LoRA on queries and values of the language model; returns the mean training loss."""
    model, processor = plait.load(owl)
    # Adapters sit on the language model alone; tower and abstractor stay as stage 1 left them.
    config = LoraConfig(r=8, lora_alpha=32, lora_dropout=0.05, target_modules=lora_targets(model))
    adapted = get_peft_model(model, config)
    arguments = TrainingArguments(
        output_dir=str(out / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=batch_size,
        learning_rate=lr,
        warmup_steps=min(50, steps // 2),
        weight_decay=1e-4,
        max_grad_norm=1.0,
        remove_unused_columns=False,  # rows become tensors in the collator
        save_strategy="no",
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to=[],
        disable_tqdm=True,
        seed=0,
    )
    rows = select(str(manifest), "a conversation", partial(holds_conversation, captions=False))
    rng = np.random.default_rng(0)
    trainer = Trainer(
        model=adapted,
        args=arguments,
        train_dataset=rows,  # ty: ignore[invalid-argument-type] (a sequence of rows)
        data_collator=partial(_batch, processor, rng),
    )
    found = trainer.train()
    adapted.save_pretrained(str(out))
    return found.training_loss


def _batch(processor: object, rng: np.random.Generator, rows: list) -> dict:
    return collate(processor, 2048, [read(processor, row, rng) for row in rows], rng)  # ty: ignore[invalid-argument-type]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("owl", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100)
    given = parser.parse_args()
    print(f"mean loss {main(given.owl, given.manifest, given.out, given.steps):.4f}")
