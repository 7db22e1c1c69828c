"""Train a step of mPLUG-Owl2's joint stage as one of several processes.

torchrun --standalone --nproc-per-node 2 owl2_world.py MODEL DATA RUN_DIR LORA
"""

from __future__ import annotations

import sys
from pathlib import Path

from plait.recipes.mplug_owl2 import joint
from plait.training.run import run_recipe
from plait.training.stages import Options


def run(model: str, data: str, run_dir: Path, lora: int) -> None:
    """Three steps of four rows, of which the first process gets two and the second two."""

    def build():
        options = {
            "lora": lora,
            "lora_dropout": 0.0,
            "steps": 3,
            "batch_size": 4,
            "lr": 1e-2,
            "floor": 1e-2,
            "warmup": 0,
        }
        recipe = joint(model, data, **options)
        source = recipe.stages[0].batches()
        rows = range(len(source))
        assert sorted(source.rows(0, 0, len(source))) == list(rows)
        object.__setattr__(recipe.stages[0], "batches", lambda: InOrder(source))
        return recipe

    run_recipe(build, run_dir, device="cpu", options=Options(progress=False))


class InOrder:
    """The rows as they lie: texts first, then pictures, so that one process of two has no picture."""

    def __init__(self, source) -> None:
        self.source, self.load, self.names = source, source.load, source.names

    def __len__(self) -> int:
        return len(self.source)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """The first batch, again and again."""
        return list(range(batch_size))


if __name__ == "__main__":
    run(sys.argv[1], sys.argv[2], Path(sys.argv[3]), int(sys.argv[4]))
