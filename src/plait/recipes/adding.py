"""`one_peace.add_modality`: a modality of the user's own learns to meet one that a trained model has.

rows with both -> the user's `load` and `process` | the model's own processor
    -> the new way, alone in training | frozen vectors of the other -> contrast

Everything that the model had is frozen, so its vectors and every index of them stay bit for bit. What was never paired
with the new modality meets it too, since the other one stands in the same space as before (emergent retrieval).
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.order import Spread
from plait.data.pairs import KEEP_BYTES, concept_of
from plait.data.reader import Reader, Reading, select
from plait.embedder.towers import PairTower
from plait.errors import UsageError
from plait.media.values import RATE, medium
from plait.modalities import held, registered
from plait.models import locate
from plait.models.auto import load
from plait.models.plugins import add_modality as join
from plait.objectives.contrastive import contrastive_loss
from plait.training.parallel import chunk_of, gather_rows
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample

LIGHT = 0.01
"""Of all weights: what `train="projector"` stays below."""


class Pairs(Reader):
    """Batches of a new modality beside one that the model has, of different concepts as far as there are so many.

    Args:
        samples: rows with both; rows of one label (or text) count as one thing.
        tower: the model and its processor.
        name, to: the new modality, and the other.
        augments: whether the adapter class's `augment(value, rng)` is called, where it has one.
        reading: workers, and what becomes of bad samples.
    """

    def __init__(
        self,
        samples: Sequence[Sample],
        tower: PairTower,
        name: str,
        to: str,
        *,
        augments: bool = True,
        reading: Reading | None = None,
    ) -> None:
        self.tower, self.name, self.to = tower, name, to
        self.augment = getattr(registered(name).adapter, "augment", None) if augments else None
        self.spread = Spread(np.fromiter(map(concept_of, samples), np.int64, len(samples)))
        super().__init__(
            samples, self.collated, self.decoded, order=self.spread, reading=reading, keep_bytes=KEEP_BYTES
        )

    def decoded(self, sample: Sample, rng: np.random.Generator) -> tuple[int, Any, Any]:
        """What a row is of, and its two values as they are loaded."""
        found, rate = held(sample), self.tower.sampling_rate or RATE
        own, other = (medium(m).load(found[m], rate) for m in (self.name, self.to))
        return concept_of(sample), own, other

    def collated(self, parts: list[tuple[int, Any, Any]], rng: np.random.Generator) -> dict[str, Any]:
        """-> own and other, the inputs of each by name, and ids (batch,)."""
        own = [self.augment(value, rng) if self.augment else value for _, value, _ in parts]
        ids = torch.tensor([self.spread.number(concept) for concept, _, _ in parts])
        other = self.tower.prepare(self.to, [value for _, _, value in parts])
        return {"own": self.tower.prepare(self.name, own), "other": other, "ids": ids}


class Meeting:
    """Contrast of a modality that learns with the frozen vectors of another.

    Args:
        name, to: the one that learns, and the other.
        tower: whose vectors are met: the model that learns, or another of its width.
    """

    def __init__(self, name: str, to: str, tower: PairTower) -> None:
        self.name, self.to, self.tower = name, to, tower

    def __call__(
        self, model: Any, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss (), and the share of rows that find their partner. step, generator: unused."""
        with torch.no_grad():
            wanted = F.normalize(self.tower.encode(self.to, batch["other"]), dim=-1)
            scale = self.tower.model.temperature()
        found = model.embed({self.name: batch["own"]})[self.name]
        (found_all, offset), (wanted_all, _), (ids_all, _) = map(gather_rows, (found, wanted, batch["ids"]))
        out = contrastive_loss(
            found, wanted, scale, a_all=found_all, b_all=wanted_all, offset=offset, ids=batch["ids"], ids_all=ids_all,
            chunk_size=chunk_of(len(found)),
        )  # fmt: skip
        return out.loss, {"right": out.num_correct_b_to_a / len(found)}


def add_modality(
    name: str,
    data: str,
    init: str = "nano",
    to: str = "text",
    train: str = "all",
    like: str | None = None,
    steps: int = 300,
    batch_size: int = 48,
    lr: float = 1e-3,
    augments: bool = True,
    reading: Reading = Reading(),
) -> Recipe:
    """A modality of your own learns to meet one that the model has; everything else is frozen.

    Give the file that registers it: `plait train one_peace.add_modality --plugin FILE --set name=NAME --set data=DIR`.
    Minutes on one CPU core with `nano`; docs/add-a-modality.md has what videos and symbolic music reached.

    Args:
        name: of the modality. data: rows that hold it and `to`; rows of one label are one thing.
        init: model directory, or "nano". to: text, image or audio: which rows pair it with.
        train: all (adapter, networks, norm, projection), or projector: the adapter and the projection alone, under
            1 % of all weights; of an adapter class with `projector`, the parts of it that are named there.
        like: whose networks, norm and projection are copied at first, fresh ones without; projector needs one and
            takes `to`.
        steps, batch_size, lr: optimiser steps, rows of each over all processes, peak rate.
        augments: whether the class's `augment` is called, where it has one.
        reading: workers, on_bad and most_bad, see `plait.data.reader.Reading`.
    """
    if train not in ("all", "projector"):
        raise UsageError(f"expected train all or projector, got {train!r}")
    own = registered(name)
    model, processor = load(locate(init), dtype="float32")
    like = to if train == "projector" and like is None else like
    rows = select(data, f"{name} and {to}", lambda sample: {name, to} <= held(sample).keys(), reading=reading)
    parts = "adapters|projections" if train == "projector" else "adapters|projections|mlp|norm"
    trainable = [rf"re:(^|\.)({parts})\.{re.escape(name)}\."]
    if train == "projector" and (named := getattr(own.adapter, "projector", None)) is not None:
        trainable = [rf"re:(^|\.)projections\.{name}\.", *(rf"re:(^|\.)adapters\.{name}\.{part}\b" for part in named)]
    tower = PairTower(model, processor)
    stage = Stage(
        name=f"add {name}",
        objective=Meeting(name, to, tower),
        batches=partial(Pairs, rows, tower, name, to, augments=augments, reading=reading),
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 100,
        warmup=0.1,
        trainable=tuple(trainable),
        no_decay=lambda key, parameter: parameter.ndim < 2,
        before=(partial(check_light, name),) if train == "projector" else (),
    )
    origin = f"one_peace.add_modality {name} to {to} on {Path(data).name}"
    return Recipe(lambda: join(model, name, like=like), [stage], partial(save, processor, origin))


def check_light(name: str, model: nn.Module) -> None:
    """Raise UsageError where as much as 1 % of the weights trains."""
    count = sum(p.numel() for p in model.parameters() if p.requires_grad)
    whole = sum(p.numel() for p in model.parameters())
    if count >= LIGHT * whole:
        raise UsageError(
            f"expected under {LIGHT:.0%} of the {whole:,} weights to train with train=projector, got {count:,}; name "
            f"fewer parts of the adapter of {name} in its `projector`"
        )


def save(processor: Any, origin: str, model: nn.Module, directory: Path) -> None:
    """The model directory, and how much of it trained."""
    save_pair(processor, model, directory)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    card = {"trained_by": origin, "parameters": sum(p.numel() for p in model.parameters()), "trained": trained}
    (directory / "training.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
