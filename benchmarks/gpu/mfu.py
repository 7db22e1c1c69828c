"""How much of a GPU's peak the training loop uses, in bf16: contrast, ONE-PEACE's trunk, mPLUG-Owl2 with LoRA and full.

Each arm is the loop itself (`plait.training.loop.train`) on random batches of the published shapes; MFU is FLOPs of
forward and backward, counted on shapes without recomputation, over time and the peak of the vendor's data sheet.
Core dependencies and peft. Run it: python benchmarks/gpu/mfu.py   (--tiny checks the script itself on a CPU)
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.data.order import rows_of_step
from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.recipes.one_peace_tasks import contrast
from plait.training.account import mean_flops
from plait.training.logging import read_metrics
from plait.training.loop import train
from plait.training.lora import add_lora
from plait.training.stages import Options, Stage

sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import write

BARS = {"contrast": 0.35, "one_peace_trunk": 0.35, "owl2_lora": 0.38, "owl2_full": 0.38}
"""Least share of the peak. A LoRA step has no weight gradients of the base: its FLOPs are counted without them."""


class Random:
    """Batches of random numbers made once: the loop is measured, not the disk."""

    def __init__(self, make: Callable[[int], dict[str, Tensor]]) -> None:
        self.make = make
        self.made: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return 1 << 20

    def rows(self, seed: int, step: int, batch_size: int) -> Any:
        return rows_of_step(len(self), batch_size, seed, step).tolist()

    def load(self, rows: Any, rng: np.random.Generator) -> dict[str, Tensor]:
        return self.made.setdefault(len(rows), self.make(len(rows)))

    def names(self, rows: Any) -> list[str]:
        return [str(row) for row in rows]


def contrast_arm(tiny: bool) -> tuple[nn.Module, Stage]:
    """Pictures of 224 pixels against 32 tokens, a trunk of ViT-L's size for both."""
    sizes: dict[str, Any] = {"dim": 1024, "num_heads": 16, "num_layers": 24, "mlp_dim": 2730}
    return _pairs(sizes if not tiny else {}, 8 if tiny else 256, tiny)


def trunk_arm(tiny: bool) -> tuple[nn.Module, Stage]:
    """Layers of the published width; eight of the forty, so that AdamW's state fits one GPU."""
    sizes: dict[str, Any] = {"dim": 1536, "num_heads": 24, "num_layers": 8, "mlp_dim": 6144}
    return _pairs(sizes if not tiny else {}, 8 if tiny else 128, tiny)


def _pairs(sizes: dict[str, Any], batch: int, tiny: bool) -> tuple[nn.Module, Stage]:
    changes: dict[str, Any] = {"modalities": ["text", "image"]}
    if not tiny:
        changes |= {"image_bucket_size": 16, "image_rel_bucket_size": 14, "vocab_size": 50264, "layer_scale": 1e-2}
    config = OnePeaceConfig.preset("nano", **changes, **sizes)
    side = 16 * config.image_rel_bucket_size

    def make(rows: int) -> dict[str, Tensor]:
        ids = torch.randint(5, config.vocab_size, (rows, 32))
        return {"input_ids": ids, "pixel_values": torch.randn(rows, 3, side, side), "ids": torch.arange(rows)}

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        return contrast("image", model, batch, step, generator)

    return OnePeaceModel(config), _stage(objective, make, batch)


def owl2_arm(tiny: bool, rank: int) -> tuple[nn.Module, Stage]:
    """One picture and 512 tokens of text at the published width: all 32 layers with LoRA, eight to train in full."""
    if tiny:
        config = MPlugOwl2Config(
            vocab_size=260, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48,
            vision=VisionConfig(dim=16, num_heads=2, num_layers=2, mlp_dim=24, image_size=16, patch_size=4),
            abstractor=AbstractorConfig(num_queries=3, num_heads=2, num_layers=2, mlp_dim=24, grid_size=4),
        )  # fmt: skip
    else:
        config = MPlugOwl2Config.preset("owl2-7b", **({} if rank else {"num_layers": 8}))
    with torch.device("cpu" if tiny else "cuda"):
        model = MPlugOwl2ForConditionalGeneration(config)
    length = 16 if tiny else 512

    def make(rows: int) -> dict[str, Tensor]:
        ids = torch.randint(3, config.vocab_size - 1, (rows, length))
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids.clone()}

    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> Any:
        return model(**batch).loss, {}

    trainable: tuple[str, ...] = ("model.decoder.*", "lm_head.*")
    if rank:
        model.to(torch.float32 if tiny else torch.bfloat16)
        trainable = add_lora(model, rank, targets=["*.decoder.layers.*"])
    return model, _stage(objective, make, 2 if tiny else 8, trainable)


def _stage(objective: Any, make: Any, batch: int, trainable: tuple[str, ...] = ()) -> Stage:
    return Stage(
        name="arm", objective=objective, batches=lambda: Random(make), batch_size=batch, steps=1, trainable=trainable
    )


ARMS: dict[str, Callable[[bool], tuple[nn.Module, Stage]]] = {
    "contrast": contrast_arm,
    "one_peace_trunk": trunk_arm,
    "owl2_lora": lambda tiny: owl2_arm(tiny, 64),
    "owl2_full": lambda tiny: owl2_arm(tiny, 0),
}


def measure(name: str, tiny: bool, steps: int, compile: str | None, recompute: int) -> dict[str, Any]:
    """Train one arm and read what the loop logged after its first half."""
    model, stage = ARMS[name](tiny)
    stage = Stage(**{**vars(stage), "steps": steps})
    options = Options(
        checkpoint_seconds=1e9, progress=False, log_every=5, compile=compile, recompute=recompute, keep_last=1
    )
    flops = mean_flops(model, stage, stage.batches(), dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as place:
        run = Path(place)
        train(model, [stage], run, device="cpu" if tiny else "cuda", dtype="bf16", options=options)
        rows = read_metrics(run / "metrics.jsonl")
    late = rows[len(rows) // 2 :]
    return {
        "gflops_per_step": round(flops / 1e9, 1),
        "samples_per_second": round(median(row["samples_per_second"] for row in late), 2),
        "data_wait": round(median(row["data_wait"] for row in late), 3),
        "mfu": round(median(row["mfu"] for row in late), 3) if "mfu" in late[0] else None,
        "memory_gib": round(late[-1]["memory_gib"], 1),
        "bar": BARS[name],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="tiny sizes on a CPU: checks the script, measures nothing")
    parser.add_argument("--arm", choices=list(ARMS), action="append", help="one arm; may be repeated; all without it")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--compile", default="inductor", help="torch backend for every layer, or none")
    parser.add_argument("--recompute", type=int, default=0)
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none; --tiny checks the script on a CPU")
    backend = None if chosen.tiny or chosen.compile == "none" else chosen.compile
    steps = 4 if chosen.tiny else chosen.steps
    found = {name: measure(name, chosen.tiny, steps, backend, chosen.recompute) for name in chosen.arm or ARMS}
    result = {"dtype": "bfloat16", "compile": backend, "recompute": chosen.recompute, "arms": found}
    if chosen.tiny:
        print(result)
        return
    write("gpu_mfu", result, "cuda")
    below = [name for name, one in found.items() if one["mfu"] is None or one["mfu"] < one["bar"]]
    if below:
        sys.exit(f"expected MFU at or above the bars, got less for {', '.join(below)}")


if __name__ == "__main__":
    main()
