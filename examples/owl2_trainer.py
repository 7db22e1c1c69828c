"""mPLUG-Owl2 under `transformers.Trainer` with a LoRA of PEFT: only adapters and abstractor train.

python examples/owl2_trainer.py MODEL DATA OUT [--steps 100]

MODEL is a model directory (`plait upcycle LLAMA_DIR MODEL` makes one), DATA a manifest of conversations about images or
of text alone. OUT becomes an adapter: `plait merge MODEL OUT MERGED`, or `plait chat MODEL --adapter OUT`.
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from typing import Any

import numpy as np
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

import plait
from plait.data.conversation import holds_conversation
from plait.data.reader import select
from plait.models.mplug_owl2.tasks import lora_saved, lora_targets
from plait.recipes.mplug_owl2 import read_talk, talked


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "data", "out"):
        parser.add_argument(name)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=2)
    asked = parser.parse_args()

    model, processor = plait.load(asked.model)
    model.config.use_cache = False
    chosen = LoraConfig(
        r=asked.rank,
        lora_alpha=2 * asked.rank,
        target_modules=lora_targets(model),  # the language model without its head
        modules_to_save=lora_saved(),  # the abstractor, whole
    )
    tuned = get_peft_model(model, chosen)
    tuned.print_trainable_parameters()

    rows = select(asked.data, "a conversation", partial(holds_conversation, captions=True))
    drawing = np.random.default_rng(0)  # which of several answers is learned

    def collate(samples: list[plait.Sample]) -> dict[str, Any]:
        return talked(processor, 2048, [read_talk(8, sample, drawing) for sample in samples])

    with tempfile.TemporaryDirectory() as scratch:
        settings = TrainingArguments(
            output_dir=scratch,
            max_steps=asked.steps,
            per_device_train_batch_size=asked.batch_size,
            learning_rate=1e-4,
            warmup_steps=0.03,
            lr_scheduler_type="cosine",
            logging_steps=max(1, asked.steps // 10),
            save_strategy="no",
            report_to="none",
            remove_unused_columns=False,  # samples are no columns
            dataloader_pin_memory=False,
        )
        Trainer(tuned, settings, train_dataset=rows, data_collator=collate).train()
    tuned.save_pretrained(asked.out)
    print(f"the adapter is in {asked.out}")


if __name__ == "__main__":
    main()
