"""A small mPLUG-2 on drawings and sentences that packages carry: the stages of the study, each a `Recipe`.

pretraining (pictures with names) -> answering | text, image, video classification; arms and controls by options
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from plait.data.build.emoji import HELD_OUT_STYLE
from plait.data.build.snippets import movie_snippets
from plait.data.drawn_tasks import KINDS, MOTIONS, Drawings
from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.data.pairs import PicturesWithWords
from plait.models.auto import load_processor
from plait.models.mplug2.config import MPlug2Config, VisionConfig
from plait.models.mplug2.model import MPlug2PreTrainedModel
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import TEMPLATES
from plait.models.mplug2.weights import from_directory
from plait.processing.images import CLIP_MEAN, CLIP_STD
from plait.recipes import mplug2_batches as batches
from plait.recipes.mplug2_objectives import PreTraining, asked_together, supervised
from plait.training.data_order import Shuffled
from plait.training.stages import Recipe, Stage
from plait.types import Sample

SIDE, FRAMES = 64, 4
THINGS_PER_KIND = 12
STILL_TASKS = ("name", "kind", "is_kind", "is_there", "count", "beside")
CLIP_TASKS = ("order", "motion")
SHARES = {"drawing": 1, "scene": 1, "clip": 1}
RARE = 0.1
"""Times that a word counts as written which never is."""

FEELINGS = ("negative", "positive")


@cache
def drawings() -> Drawings:
    """The shipped drawings of twelve things of each kind: the first by name that are drawn in the held-out style."""
    samples = [s for s in read_manifest(cached_mini()) if s.image is not None and s.meta["group"] in KINDS]
    of_kind: dict[str, list[str]] = {}
    for sample in sorted(samples, key=lambda s: s.label or ""):
        if sample.split == "test" and sample.meta["style"] == HELD_OUT_STYLE:
            of_kind.setdefault(sample.meta["group"], []).append(sample.label or "")
    chosen = {label for labels in of_kind.values() for label in labels[:THINGS_PER_KIND]}
    return Drawings([sample for sample in samples if sample.label in chosen], SIDE, FRAMES)


@cache
def snippets(split: str) -> tuple[Sample, ...]:
    """Movie snippets of a split."""
    return tuple(sample for sample in movie_snippets() if sample.split == split)


def written() -> list[str]:
    """What the decoder learns to write: names, keywords and answers."""
    named = [text for number in drawings().numbers("train") for text in _words(drawings().rows[number])]
    return [*named, *(e.answer for task in drawings().tasks for e in drawings().examples(task, "train", 60))]


def texts() -> list[str]:
    """Everything that is read or written in the study but the snippets."""
    named = [text for row in drawings().rows for text in _words(row)]
    asked = [e.question for t in drawings().tasks for e in drawings().examples(t, "train", 60)]
    return [*named, *asked, *TEMPLATES.values(), *KINDS.values(), *MOTIONS, "one two three four yes no or"]


def _words(row: Sample) -> tuple[str, ...]:
    return (row.text or "", *(row.captions or ()))


def processor(size: int = SIDE) -> MPlug2Processor:
    """Reads the pieces that the study's texts need."""
    kept = batches.vocabulary(texts())
    common = batches.vocabulary((s.text or "" for s in snippets("train")), min_count=8)
    pieces = [*kept, *(piece for piece in common if piece not in set(kept))]
    return MPlug2Processor.build(size, pieces, num_frames=FRAMES, max_text_tokens=48)


def config(made: MPlug2Processor, **changes: Any) -> MPlug2Config:
    """Sizes of the small model: 2 layers of vision, 2 of text, 2 universal, 2 of fusion, 2 of the decoder, width 128.

    Patches of 16 pixels: sixteen tokens per picture learn more in the same time than 36.
    """
    tokenizer = made.tokenizer
    ids = {"pad": tokenizer.pad_token_id, "bos": tokenizer.cls_token_id, "eos": tokenizer.sep_token_id}
    sizes: dict[str, Any] = {
        "vision": VisionConfig(dim=128, num_heads=4, num_layers=2, patch_size=16, image_size=made.image_size),
        "dim": 128, "num_heads": 4, "mlp_dim": 512, "num_text_layers": 2, "num_universal_layers": 2,
        "num_latents": 16, "num_fusion_layers": 2, "stored_fusion_layers": 2, "num_decoder_layers": 2,
        "max_positions": 64, "projection_dim": 64, "num_frames": FRAMES, "dropout": 0.0, "attention_dropout": 0.0,
        "vocab_size": len(tokenizer), "init_std": 0.06, "instructions": True, "grounding_bins": 1,
        "grounding_start_id": 5,
    }  # fmt: skip
    return MPlug2Config(**sizes | {f"{name}_token_id": value for name, value in ids.items()} | changes)


def pretraining(
    steps: int,
    *,
    batch_size: int = 64,
    lr: float = 1e-3,
    universal_sharing: str = "shared",
    augmentation: float = 0.5,
    every: int = 5,
    **sizes: Any,
) -> Recipe:
    """Pictures with names: contrast and writing the name at every step; matching and masked language modelling too at
    every `every`-th. sizes: fields of the configuration."""
    made = processor()
    shape = config(made, universal_sharing=universal_sharing, **sizes)
    objective = PreTraining(
        mask_id=made.tokenizer.mask_token_id,
        vocab_size=len(made.tokenizer),
        special_ids=frozenset(made.tokenizer.convert_tokens_to_ids(list(batches.SPECIAL))),
        probability=0.3,
        every=every,
        often=("contrast", "generate"),
    )
    source = partial(
        PicturesWithWords,
        [drawings().rows[number] for number in drawings().numbers("train")],
        partial(batches.pretraining_texts, made),
        SIDE,
        mean=CLIP_MEAN,
        std=CLIP_STD,
        augmentation=augmentation,
        composed=0.1,
        bare_names=0.8,
    )
    stage = _stage("pretraining", objective, source, steps, batch_size, lr, period=every)
    return Recipe(partial(fresh, shape, made), [stage], partial(save, made))


def fresh(shape: MPlug2Config, made: MPlug2Processor) -> MPlug2ForPreTraining:
    """A model that expects words as often as they are written: most of the vocabulary is there to be read alone, and
    a hundred steps would go by before the decoder had learnt not to write it."""
    model = MPlug2ForPreTraining(shape)
    ids = made.answers(written())["labels"][:, 1:]
    counts = torch.bincount(ids[ids >= 0], minlength=shape.vocab_size).float()
    with torch.no_grad():
        for head in (model.model.decoder.head, model.model.masked_lm):
            head.bias.copy_(((counts + RARE) / (counts + RARE).sum()).log())
    return model


def answering(
    init: Path,
    steps: int,
    *,
    batch_size: int = 24,
    lr: float = 5e-4,
    shares: Mapping[str, int] = SHARES,
    **options: Any,
) -> Recipe:
    """Captions, and several questions about each picture or clip, by one decoder.

    shares: of the batch, for groups of `drawn_tasks.GROUPS`; options of `batches.source_of`.
    """
    made = load_processor(init)
    source = batches.source_of(drawings(), made, shares, **options)
    stage = _stage("answering", asked_together, source, steps, batch_size, lr)
    return Recipe(lambda: load(init, "answer"), [stage], partial(save, made))


def seeing(
    init: Path,
    task: str,
    steps: int,
    *,
    batch_size: int = 48,
    lr: float = 7e-4,
    single_frame: bool = False,
    shuffle: bool = False,
) -> Recipe:
    """Classification of pictures (`kind`) or clips (`motion`) with a head."""
    made = load_processor(init)
    labels = tuple(KINDS.values()) if task == "kind" else tuple(MOTIONS)
    collate = partial(batches.collate_classes, made, labels, 0.7, single_frame, shuffle)
    source = partial(batches.FreshExamples, drawings(), [(1, (task,))], collate)
    medium = "video" if task == "motion" and not single_frame else "image"
    stage = _stage("classification", supervised, source, steps, batch_size, lr)
    return Recipe(
        lambda: load(init, "classify", branch=(medium,), id2label=dict(enumerate(labels))), [stage], partial(save, made)
    )


def reading(init: Path, steps: int, *, batch_size: int = 64, lr: float = 7e-4, shuffle: bool = False) -> Recipe:
    """Whether a movie snippet is positive, read by the text layers and universal layers."""
    made = load_processor(init)
    collate = partial(batches.collate_texts, made, FEELINGS, shuffle)
    source = partial(Shuffled, snippets("train"), collate)
    stage = _stage("classification", supervised, source, steps, batch_size, lr)
    return Recipe(
        lambda: load(init, "classify", branch=("text",), id2label=dict(enumerate(FEELINGS))),
        [stage],
        partial(save, made),
    )


def load(init: Path, task: str, **changes: Any) -> MPlug2PreTrainedModel:
    """A model for a task out of a directory."""
    return from_directory(init, task=None if task == "answer" else task, model_class=_class(task), **changes)


def _class(task: str) -> type[MPlug2PreTrainedModel] | None:
    from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration

    return MPlug2ForConditionalGeneration if task == "answer" else None


def _stage(
    name: str, objective: Any, source: Callable[[], Any], steps: int, batch_size: int, lr: float, **changes: Any
) -> Stage:
    return Stage(
        name=name,
        objective=objective,
        batches=source,
        batch_size=batch_size,
        steps=steps,
        peak_lr=lr,
        floor=lr / 100,
        betas=(0.9, 0.98),
        weight_decay=0.02,
        clip=1.0,
        **changes,
    )


def save(made: MPlug2Processor, model: nn.Module, directory: Path) -> None:
    """Weights, configuration and processor."""
    from transformers.utils.logging import disable_progress_bar

    assert isinstance(model, MPlug2PreTrainedModel)
    disable_progress_bar()
    model.save_pretrained(directory)
    made.save_pretrained(directory)
