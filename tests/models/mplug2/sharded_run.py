"""A pretraining step under FSDP2 and alone, run as one of several processes; prints how far apart they are.

torchrun --standalone --nproc-per-node 2 sharded_run.py
"""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.training.parallel import ObjectiveModule, process_group, shard


def batch() -> dict[str, Tensor]:
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 100, (4, 6), generator=g)
    return {
        "pixel_values_videos": torch.randn(4, 3, 3, 12, 12, generator=g),
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "masked_input_ids": ids,
        "masked_labels": ids.masked_fill(torch.rand(4, 6, generator=g) < 0.5, -100),
        "decoder_input_ids": ids,
        "labels": ids,
        "instruction_ids": ids[:, :3],
        "noise": torch.rand(8, generator=g),
    }


def loss_of(model: nn.Module, inputs: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
    return model(**inputs).loss, {}


def build() -> MPlug2ForPreTraining:
    torch.manual_seed(0)
    return MPlug2ForPreTraining(MPlug2Config.preset("tiny"))


def main() -> None:
    alone, together, random = build(), build(), torch.Generator()
    loss, _ = loss_of(alone, batch(), 0, random)
    loss.backward()
    with process_group("cpu") as (world, device):
        whole = ObjectiveModule(together, loss_of)
        shard(whole, world, device, torch.float32)
        shared, _ = whole(batch(), 0, random)
        shared.backward()
        expected = {name: p.grad for name, p in alone.named_parameters() if p.grad is not None}
        errors = []
        for name, parameter in together.named_parameters():
            assert parameter.grad is not None, name
            whole_grad = parameter.grad.full_tensor() if hasattr(parameter.grad, "full_tensor") else parameter.grad
            errors.append(float((whole_grad - expected[name]).abs().max()))
        if world.is_main:
            print(json.dumps({"losses": [loss.item(), shared.item()], "error": max(errors), "parameters": len(errors)}))


if __name__ == "__main__":
    main()
