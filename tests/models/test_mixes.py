"""Which parameters and passes take part in training depends on no row: two processes of any media equal one.

The file is its own worker: `python -m torch.distributed.run --nproc-per-node 2 -m tests.models.test_mixes FAMILY HOW`.
Sharing is torch's own, as people write it: DDP with `find_unused_parameters=False`, FSDP2 layer by layer.
"""

from __future__ import annotations

import copy
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from datetime import timedelta
from itertools import combinations, product
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from plait.models import mplug2, one_peace
from plait.training.parallel import blocks_of

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny
from .test_contract import SIZES

Batch = dict[str, Any]
ROWS = 2


def one_peace_rows() -> dict[str, Batch]:
    rows = {
        "text": {"input_ids": torch.randint(5, 30, (ROWS, 6))},
        "image": {"pixel_values": torch.randn(ROWS, 3, 32, 32)},
        "audio": {"input_values": torch.randn(ROWS, 800)},
    }
    return {"+".join(names): {k: v for n in names for k, v in rows[n].items()} for names in several(rows)}


def several(names: Mapping[str, Any]) -> list[tuple[str, ...]]:
    return [some for count in range(1, len(names) + 1) for some in combinations(names, count)]


def one_peace_pairs() -> tuple[nn.Module, dict[str, Batch]]:
    model = one_peace.OnePeaceModel(one_peace.OnePeaceConfig(**SIZES))
    pairs = {mix: rows for mix, rows in one_peace_rows().items() if mix.startswith("text+")}
    return model, {mix: {**rows, "return_loss": True} for mix, rows in pairs.items()}


def one_peace_classes() -> tuple[nn.Module, dict[str, Batch]]:
    config = one_peace.OnePeaceConfig(**SIZES, num_classes=3, pool_modality="text", use_projections=False)
    labels = torch.tensor([0, 2])
    mixes = {mix: {**one_peace_rows()[mix], "labels": labels} for mix in ("text", "text+image", "text+audio")}
    return one_peace.OnePeaceForClassification(config), mixes


def mplug2_of(task: str) -> tuple[nn.Module, dict[str, Batch]]:
    config = mplug2.MPlug2Config.preset("tiny", task=task)
    ids, side = torch.randint(5, 100, (ROWS, 6)), config.image_size
    texts: Batch = {"decoder_input_ids": ids, "labels": ids}
    if task == "retrieve":
        texts = {"input_ids": ids, "noise": torch.rand(2 * ROWS)}
    elif task == "answer":
        texts["input_ids"] = ids
    seen = {"pixel_values": (3, side, side), "pixel_values_videos": (3, 4, side, side)}
    cls = mplug2.MPlug2ForRetrieval if task == "retrieve" else mplug2.MPlug2ForConditionalGeneration
    return cls(config), {name: {**texts, name: torch.randn(ROWS, *shape)} for name, shape in seen.items()}


def owl_of(tiny: Any, mark: str) -> tuple[nn.Module, dict[str, Batch]]:
    model, processor = tiny.model_and_processor()
    image, clip = owl2_tiny.images()[0], owl_tiny.video()
    mixes = {"nothing": dict(processor.supervised([said(tiny, "q")]))}
    if tiny is owl2_tiny:
        mixes["an image"] = dict(processor.supervised([said(tiny, f"{mark}q")], [image]))
        mixes["a clip"] = dict(processor.supervised([said(tiny, f"{mark * len(clip)}q")], clip))
        return model, mixes
    for name in several({"<image>": image, "<|video|>": clip}):
        held = [image] if "<image>" in name else [], [clip] if "<|video|>" in name else []
        mixes["".join(name)] = dict(processor.supervised([said(tiny, f"{''.join(name)}q")], *held))
    return model, mixes


def said(tiny: Any, question: str) -> list[Any]:
    if tiny is owl_tiny:
        return [(question, "an answer")]
    return [{"from": "human", "value": question}, {"from": "gpt", "value": "an answer"}]


FAMILIES: dict[str, Callable[[], tuple[nn.Module, dict[str, Batch]]]] = {
    "one_peace_pairs": one_peace_pairs,
    "one_peace_classes": one_peace_classes,
    "mplug2_captions": lambda: mplug2_of("caption"),
    "mplug2_answers": lambda: mplug2_of("answer"),
    "mplug2_retrieval": lambda: mplug2_of("retrieve"),
    "mplug_owl": lambda: owl_of(owl_tiny, "<image>"),
    "mplug_owl2": lambda: owl_of(owl2_tiny, "<|image|>"),
}


def built(family: str) -> tuple[nn.Module, dict[str, Batch]]:
    """The model in training without dropout, every parameter drawn anew so that each matters, and its mixes."""
    torch.manual_seed(0)
    model, mixes = FAMILIES[family]()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.1 + ("norm" in name and "weight" in name))
    for module in model.train().modules():
        for rate in ("p", "dropout", "attention_dropout", "drop_path_rate"):
            if isinstance(getattr(module, rate, None), float):
                setattr(module, rate, 0.0)
    return model, mixes


def gradients(model: nn.Module, batch: Batch) -> dict[str, torch.Tensor | None]:
    model.zero_grad()
    model(**batch).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.requires_grad}


def whole(gradient: Any) -> torch.Tensor:
    return gradient.full_tensor() if hasattr(gradient, "full_tensor") else gradient


def shared(model: nn.Module, how: str) -> tuple[nn.Module, set[str]]:
    """The model as torch shares it, and the names of single numbers, which FSDP2 leaves to their owner."""
    if how == "ddp":
        return DistributedDataParallel(model, find_unused_parameters=False, broadcast_buffers=False), set()
    numbers = {name: p for name, p in model.named_parameters() if p.ndim == 0}
    for block in blocks_of(model).values():
        fully_shard(block, ignored_params=set(numbers.values()))
    return fully_shard(model, ignored_params=set(numbers.values())), set(numbers)


def main(family: str, how: str) -> None:
    """Every ordered pair of mixes, one a process; prints the largest difference from the mean of both alone."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=60))
    model, mixes = built(family)
    alone = {mix: gradients(copy.deepcopy(model), batch) for mix, batch in mixes.items()}
    missing = sorted({name for found in alone.values() for name, gradient in found.items() if gradient is None})
    together, own = shared(model, how)
    worst, moved = 0.0, 0.0
    for pair in product(mixes, repeat=2):
        for name, gradient in gradients(together, mixes[pair[dist.get_rank()]]).items():
            key = name.removeprefix("module.")
            if key in missing or key in own:
                continue
            expected = torch.stack([alone[mix][key] for mix in pair]).mean(0)
            error = float((whole(gradient) - expected).abs().max())
            assert math.isfinite(error), (key, pair)
            worst = max(worst, error)
            moved = max(moved, float(expected.abs().max()))
    if dist.get_rank() == 0:
        print(json.dumps({"missing": missing, "worst": worst, "moved": moved, "mixes": list(mixes)}))
    dist.destroy_process_group()


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_has_a_gradient_whatever_is_shown(family: str) -> None:
    model, mixes = built(family)
    assert len(mixes) > 1
    for mix, batch in mixes.items():
        assert [name for name, gradient in gradients(model, batch).items() if gradient is None] == [], mix


def test_absent_media_change_no_loss() -> None:
    """What takes part with no rows adds 0: in training and outside it, the loss is the same."""
    for family in FAMILIES:
        model, mixes = built(family)
        for mix, batch in mixes.items():
            torch.testing.assert_close(model.train()(**batch).loss, model.eval()(**batch).loss, msg=f"{family} {mix}")


@pytest.mark.slow
@pytest.mark.parametrize("how", ["ddp", "fsdp"])
@pytest.mark.parametrize("family", FAMILIES)
def test_two_processes_of_any_media_equal_one(family: str, how: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "tests.models.test_mixes", family, how]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["missing"] == []
    assert found["moved"] > 1e-3
    assert found["worst"] < 1e-5 * found["moved"]


if __name__ == "__main__":
    main(*sys.argv[1:])
