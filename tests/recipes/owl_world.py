"""Train a few steps of an Owl as one of several processes, whose batches learn unequally many words.

torchrun --standalone --nproc-per-node 2 owl_world.py FAMILY MODEL DATA RUN_DIR LORA [ACCUMULATION]
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from plait.recipes import mplug_owl, mplug_owl2
from plait.training.run import run_recipe
from plait.training.stages import Options


def run(family: str, model: str, data: str, run_dir: Path, lora: int, accumulation: int = 1) -> None:
    """Three steps of four rows, of which the first process gets two and the second two."""

    def build():
        how: dict[str, Any] = {"lora": lora, "steps": 3, "batch_size": 4, "lr": 1e-2, "warmup": 0}
        how |= {"lora_dropout": 0.0} if lora else {}
        if family == "mplug_owl2":
            recipe = mplug_owl2.joint(model, data, **how, floor=1e-2)
        else:
            recipe = mplug_owl.stage2(model, data, **how)
        source = recipe.stages[0].batches()
        assert sorted(source.rows(0, 0, len(source))) == list(range(len(source)))
        object.__setattr__(recipe.stages[0], "batches", lambda: InOrder(source))
        object.__setattr__(recipe.stages[0], "accumulation", accumulation)
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
    run(sys.argv[1], sys.argv[2], sys.argv[3], Path(sys.argv[4]), *map(int, sys.argv[5:]))
