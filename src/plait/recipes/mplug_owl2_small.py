"""A small mPLUG-Owl2 out of a small language model: what the study trains, each stage a `Recipe`.

language model -> upcycled, fresh tower -> warm-up (pictures towards embeddings of their names) -> tuning (questions)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.build.snippets import movie_snippets
from plait.data.drawn_tasks import Drawings
from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.models.mplug_owl2.config import AbstractorConfig, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.models.mplug_owl2.upcycle import upcycle
from plait.models.mplug_owl2.weights import resized
from plait.recipes.mplug_owl2_arms import PATCH, QUERIES, SIDE, Arm
from plait.recipes.mplug_owl2_batches import Mixture, NamedPictures
from plait.training.stages import Recipe, Stage
from plait.types import Sample
from plait.weights.files import read_checkpoint

VISUAL = ("model.vision.", "model.abstractor.")
SHARPNESS = 20.0


@cache
def drawings(size: int = SIDE) -> Drawings:
    """The shipped drawings at a size in pixels."""
    return Drawings([s for s in read_manifest(cached_mini()) if s.image is not None], size, 1)


@cache
def snippets(split: str) -> tuple[Sample, ...]:
    """Movie snippets of a split."""
    return tuple(sample for sample in movie_snippets() if sample.split == split)


def fresh(
    llm: Path, routed: tuple[str, ...] = (), seed: int = 0
) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """The upcycled language model with a fresh tower of 192 x 4 layers over 8 x 8 patches."""
    vision = VisionConfig(dim=192, num_heads=6, num_layers=4, mlp_dim=768, image_size=SIDE, patch_size=PATCH)
    reader = AbstractorConfig(num_queries=QUERIES, num_heads=6, num_layers=2, mlp_dim=512, grid_size=SIDE // PATCH)
    model, processor = upcycle(llm, vision=vision, abstractor=reader, routed=routed, seed=seed)
    with torch.no_grad():  # an end vector as long as the words it stands among
        model.model.abstractor.end.mul_(model.model.token_embedding.weight.square().mean().sqrt())
    model.set_attn_implementation("sdpa")
    return model, processor


def begin(llm: Path, warm: Path, arm: Arm) -> tuple[MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor]:
    """An arm's model before tuning: every way a copy of the language model, tower and abstractor of the warm-up."""
    model, processor = fresh(llm, arm.routed)
    found = read_checkpoint(warm).state
    visual = {key: found[key] for key in found if key.startswith(VISUAL)}
    missing, unexpected = model.load_state_dict(visual, strict=False)
    strangers = [key for key in missing if key.startswith(VISUAL)] + unexpected
    if strangers:
        raise ValueError(f"expected the tower and abstractor of this study in {warm}, got others: {strangers[0]}")
    if (arm.image_size, arm.num_queries) != (SIDE, QUERIES):
        model = resized(model, image_size=arm.image_size, num_queries=arm.num_queries)
        model.set_attn_implementation("sdpa")
        processor = MPlugOwl2Processor.from_config(model.config, processor.tokenizer)
    return model, processor


def warm_up(llm: Path, steps: int, *, batch_size: int = 64, lr: float = 1e-3, seed: int = 0) -> Recipe:
    """Tower and abstractor alone: the mean of an image's positions moves to the embedding of its name.

    Stands for the CLIP tower and the 348 M pairs that the published model begins with; every arm begins here.
    """
    model, processor = fresh(llm, seed=seed)
    source = NamedPictures(drawings(), processor)
    names: list[list[int]] = [processor.tokenizer(" " + name)["input_ids"] for name in source.names_of_things]
    stage = _stage("warm-up", partial(towards_names, names), lambda: source, steps, batch_size, lr)
    stage = replace(stage, trainable=("model.vision.*", "model.abstractor.*"), weight_decay=0.05)
    return Recipe(lambda: model, [stage], partial(save, processor))


def tuning(
    llm: Path, warm: Path, arm: Arm, steps: int, *, batch_size: int = 16, lr: float = 5e-4, full: bool = False
) -> Recipe:
    """Joint tuning of one arm on questions about drawings and sentences.

    full: everything trains, in every arm, as in the paper; for a GPU.
    """
    model, processor = begin(llm, warm, arm)
    source = Mixture(drawings(arm.image_size), snippets("train"), processor, arm.data)
    stage = _stage("tuning", answer_loss, lambda: source, steps, batch_size, lr)
    patterns = () if full else arm.patterns
    return Recipe(lambda: model, [replace(stage, trainable=patterns)], partial(save, processor))


def answer_loss(
    model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Cross entropy of answers; the head reads labelled positions only.

    A batch of sentences moves nothing where only pictures' weights train: its gradients of 0 need no backward pass.
    """
    assert isinstance(model, MPlugOwl2ForConditionalGeneration)
    trained = [(name, weight) for name, weight in model.named_parameters() if weight.requires_grad]
    reaches = "pixel_values" in batch or not all(name.startswith(VISUAL) or ".visual." in name for name, _ in trained)
    with torch.set_grad_enabled(reaches and torch.is_grad_enabled()):
        logits, labels = answer_logits(model, batch)
        loss = F.cross_entropy(logits, labels)
    if not reaches:
        loss = loss + 0.0 * sum(weight.sum() for _, weight in trained)
    return loss, {"right": (logits.detach().argmax(-1) == labels).float().mean()}


def answer_logits(model: MPlugOwl2ForConditionalGeneration, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logits (answers, vocabulary) in float32 and labels (answers,) of every position that predicts an answer's."""
    states = model.model(batch["input_ids"], batch["attention_mask"], pixel_values=batch.get("pixel_values"))
    labels = batch["labels"][:, 1:]
    kept = labels != -100
    assert states.hidden_states is not None
    return model.lm_head(states.hidden_states[-1][:, :-1][kept]).float(), labels[kept]


def towards_names(
    names: list[list[int]], model: nn.Module, batch: dict[str, Tensor], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of all names is it: cosine between the image's mean position and mean embeddings, and their distance."""
    assert isinstance(model, MPlugOwl2ForConditionalGeneration)
    words, middle = name_vectors(model, names)
    positions = model.model.encode_images(batch["pixel_values"])[:, :-1].float()
    logits = SHARPNESS * F.normalize(positions.mean(1) - middle, dim=-1) @ F.normalize(words - middle, dim=-1).T
    goal = words[batch["labels"]]
    distance = (positions - goal[:, None]).square().mean() / goal.square().mean()
    loss = F.cross_entropy(logits, batch["labels"]) + 0.1 * distance
    return loss, {"right": (logits.argmax(-1) == batch["labels"]).float().mean(), "distance": distance.detach()}


@torch.no_grad()
def name_vectors(model: MPlugOwl2ForConditionalGeneration, names: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Mean token embedding of every name (names, dim), and of the vocabulary (dim,)."""
    table = model.model.token_embedding.weight
    return torch.stack([table[ids].mean(0) for ids in names]), table.mean(0)


def _stage(name: str, objective: Any, source: Callable[[], Any], steps: int, batch_size: int, lr: float) -> Stage:
    return Stage(
        name=name,
        objective=objective,
        batches=source,
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 100,
        weight_decay=0.0,
        clip=1.0,
    )


def save(processor: MPlugOwl2Processor, model: nn.Module, directory: Path) -> None:
    """Weights, configuration and processor."""
    from transformers.utils.logging import disable_progress_bar

    assert isinstance(model, MPlugOwl2ForConditionalGeneration)
    disable_progress_bar()
    model.save_pretrained(directory)
    processor.save_pretrained(directory)
