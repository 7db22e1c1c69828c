"""mPLUG-2's pretraining and every finetuning task, with the published hyperparameters as defaults.

rows -> select -> decoded (`processor.read_row`) -> batches (`processor.Collator`) -> objective -> loss, metrics

Published for finetuning (released video tasks): AdamW, rate 2e-5 and for the vision encoder 2e-6, weight decay 0.02,
cosine to 1e-6 after 200 steps of warm-up from 1e-6, 10 epochs, no clipping, everything trains, 8 GPUs. Where nothing
was published the docstring says so and the released tasks' values stand in. Source: specification mPLUG-2, sections
2, 10, 12 and 15. Rows without a split, or of the split train, are used. `JOBS` is the family on one's own rows: the
same stages without queues and teacher, predictions by `Assistant`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from plait.assistant import Assistant
from plait.data.mixture import Mixture
from plait.data.reader import Collate, Reader, Reading, Rows, Source, select
from plait.generation import Hypothesis
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.metrics.captions import DocumentFrequency, cider
from plait.metrics.ptb import ptb_tokens
from plait.models.auto import load_config, load_processor
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import Encoded, MPlug2PreTrainedModel
from plait.models.mplug2.pretraining import OBJECTIVES, MPlug2ForPreTraining, Objective, decays, layer_id
from plait.models.mplug2.processor import Collator, MPlug2Processor, Row, captions_of, read_row
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForGrounding,
    MPlug2ForImageClassification,
    MPlug2ForSequenceClassification,
    MPlug2ForVideoClassification,
)
from plait.models.mplug2.weights import from_directory, start_from
from plait.objectives.captioning import IGNORED
from plait.objectives.distillation import ramped_alpha
from plait.objectives.masked import mask_tokens
from plait.recipes.finetune import Job, Request, in_evaluation, text_of
from plait.training.optim import parameter_groups
from plait.training.parallel import gather_rows
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample


class PreTraining:
    """Contrast, matching, masked and prefix language modelling of one batch.

    mask_id, vocab_size, special_ids: of the tokenizer; weights: of the objectives; alpha: of the teacher's targets,
    ramped up over `ramp` steps; probability: of hiding a token; every: steps between two that have all objectives;
    often: the objectives of the steps between.
    """

    def __init__(
        self,
        *,
        mask_id: int,
        vocab_size: int,
        special_ids: frozenset[int],
        weights: Mapping[str, float] | None = None,
        alpha: float = 0.4,
        ramp: int = 0,
        probability: float = 0.15,
        every: int = 1,
        often: Collection[Objective] = ("contrast",),
    ) -> None:
        self.every, self.rarely = every, [name for name in OBJECTIVES if name not in often]
        self.mask_id, self.vocab_size = mask_id, vocab_size
        self.special_ids = torch.tensor(sorted(special_ids))
        self.weights, self.alpha, self.ramp, self.probability = weights, alpha, ramp, probability
        # -1, so that the teacher moves at step 0 too; afterwards once per step.
        self._moved = -1

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The weighted sum, and every part of it as a metric."""
        assert isinstance(model, MPlug2ForPreTraining)
        if model.teacher is not None and self._moved != step:
            model.update_teacher()
            self._moved = step  # once per step, whatever the number of micro batches
        ids = batch["input_ids"]
        drawing = torch.Generator().manual_seed(generator.initial_seed())  # masks are drawn on the host
        words = batch["attention_mask"].bool().cpu() & ~torch.isin(ids.cpu(), self.special_ids)
        hidden, labels = mask_tokens(
            ids.cpu(),
            words,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            probability=self.probability,
            generator=drawing,
        )
        alpha = self.alpha * min(1.0, step / self.ramp) if self.ramp else self.alpha
        out = model(
            **batch,
            masked_input_ids=hidden.to(ids.device),
            masked_labels=labels.to(ids.device),
            alpha=alpha,
            weights=dict(self.weights or {}) | (dict.fromkeys(self.rarely, 0.0) if step % self.every else {}),
            gather=_gathered,
        )
        parts = {name: out[f"{name}_loss"] for name in OBJECTIVES if out.get(f"{name}_loss") is not None}
        return out.loss, {name: value.detach() for name, value in parts.items()}


TEXT_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


def supervised(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The loss that a task class computes from the labels in `batch`; step and generator are not used."""
    if isinstance(model, MPlug2ForImageClassification | MPlug2ForVideoClassification):
        # Their class token is that of vision: the words beside an image or a video are not for them.
        batch = {name: value for name, value in batch.items() if name not in TEXT_INPUTS}
    out = model(**batch)
    return out.loss, {}


def asked_together(
    model: nn.Module, batch: list[dict[str, Any]], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The loss of answers to several questions about each picture, mean over all questions.

    batch: parts of pictures or of clips, each as `MPlug2ForConditionalGeneration.forward` takes it, one text per
    question, and `picture`: (questions,) number of the picture or clip that each is about. Pictures and equal questions
    are encoded once.
    """
    assert isinstance(model, MPlug2ForConditionalGeneration)
    losses = torch.stack([_summed_loss(model, part) for part in batch])
    return losses.sum() / sum(len(part["labels"]) for part in batch), {}


def _summed_loss(model: MPlug2ForConditionalGeneration, part: dict[str, Any]) -> Tensor:
    """One part of `asked_together` -> the cross entropy summed over all tokens of its answers, ()."""
    network = model.model
    vision = network.see(part.get("pixel_values"), part.get("pixel_values_videos"))[part["picture"]]
    # Questions are padded to one length, so equal rows of ids are equal questions; the mask follows from the ids.
    questions, which = part["input_ids"].unique(dim=0, return_inverse=True)
    text, mask = (found[which] for found in network.read(questions))
    fused_vision, fused_text = network.fuse(text, mask, vision)
    states, seen = Encoded(text_mask=mask, fused_vision=fused_vision, fused_text=fused_text).states()
    # Position i predicts token i + 1: labels lose their first, states below their last position.
    ids, labels = part["decoder_input_ids"], part["labels"][:, 1:]
    known = part["decoder_attention_mask"].bool()
    hidden = network.decoder.hidden(ids, states, model.attend, attention_mask=known, cross_mask=seen)[:, :-1]
    wanted = labels != IGNORED  # only these meet the vocabulary
    return nn.functional.cross_entropy(network.decoder.logits(hidden[wanted]), labels[wanted], reduction="sum")


class Aligned:
    """Retrieval's contrast and matching; alpha ramps up over the first epoch."""

    def __init__(self, alpha: float, steps_per_epoch: int) -> None:
        self.alpha, self.steps_per_epoch = alpha, steps_per_epoch
        self._moved = -1

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The sum of both losses, and each of them, from a batch of `Collator.pairs`."""
        assert isinstance(model, MPlug2ForRetrieval)
        if model.teacher is not None and self._moved != step:
            model.update_teacher()
            self._moved = step
        alpha = ramped_alpha(self.alpha, *divmod(step, self.steps_per_epoch), self.steps_per_epoch)
        out = model(**batch, alpha=alpha, gather=_gathered)
        return out.loss, {"contrast": out.contrast_loss.detach(), "match": out.match_loss.detach()}


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all processes without gradient, (batch, ...) -> (world * batch, ...): what the queues take in."""
    return gather_rows(rows)[0].detach()


class Distilled:
    """Generation with momentum distillation: alpha ramps up over the first epoch. Source: specification mPLUG-2, 9."""

    def __init__(self, alpha: float, steps_per_epoch: int) -> None:
        self.alpha, self.steps_per_epoch = alpha, steps_per_epoch
        self._moved = -1

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mixed loss and alpha; without a teacher the plain loss of the labels."""
        assert isinstance(model, MPlug2ForConditionalGeneration)
        if model.teacher is None:
            return supervised(model, batch, step, generator)
        if self._moved != step:
            model.update_teacher()
            self._moved = step
        epoch, place = divmod(step, self.steps_per_epoch)
        alpha = ramped_alpha(self.alpha, epoch, place, self.steps_per_epoch)
        return model(**batch, alpha=alpha).loss, {"alpha": alpha}


class SelfCritical:
    """Captions found by beam search, made likelier by how much their CIDEr beats that of the item's other captions.

    decode: ids of a caption with start token -> text; references: all captions of every training item, from which
    document frequencies are counted; the rest as in `MPlug2ForConditionalGeneration.self_critical_loss`.
    Source: mPLUG (arXiv 2205.12005), section 4.2; specification mPLUG-2, 7.3.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], str],
        references: Iterable[Sequence[str]],
        *,
        num_beams: int = 5,
        min_length: int = 8,
        max_length: int = 25,
    ) -> None:
        self.decode = decode
        # Counted once over all items: frequencies of a batch alone would make the reward depend on its size.
        self.frequency = DocumentFrequency.of([[ptb_tokens(text) for text in texts] for texts in references])
        self.lengths = {"num_beams": num_beams, "min_length": min_length, "max_length": max_length}

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The loss, and the mean CIDEr (0 to 10) of what was found."""
        assert isinstance(model, MPlug2ForConditionalGeneration)
        right = [[ptb_tokens(text) for text in texts] for texts in batch["references"]]
        seen: list[Tensor] = []

        def reward(found: list[list[Hypothesis]]) -> Tensor:
            # Both sides go through the tokenizer of the published metric, or equal captions would not agree.
            said = [ptb_tokens(self.decode(one.ids)) for item in found for one in item]
            own = [texts for texts, item in zip(right, found, strict=True) for _ in item]
            seen.append(torch.tensor(cider(said, own, frequency=self.frequency)).view(len(found), -1))
            return seen[-1]

        encoded = model.encode(**{name: value for name, value in batch.items() if name != "references"})
        loss = model.self_critical_loss(encoded, reward, **self.lengths)
        return loss, {"cider": seen[-1].mean()}


def two_rates(vision_scale: float, model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW over the trainable parameters; the vision encoder learns `vision_scale` times as fast as the rest."""
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=stage.weight_decay,
        no_decay=lambda name, parameter: not decays(name, parameter.ndim),
        layer_id=layer_id,
        # There are two depths, 0 and 1, and no layers between: scale ** (1 - depth).
        layer_decay=vision_scale,
    )
    return torch.optim.AdamW(groups, lr=stage.peak_lr, betas=stage.betas, eps=stage.eps)


# min_lr and warmup_lr of every released yaml (specification 2).
FLOOR = 1e-6
# The released captioning asks so for every clip (specification 2).
PROMPT = "a video of"


def pretraining(
    data: str,
    init: str | None = None,
    preset: str = "base",
    clip: str | None = None,
    bert: str | None = None,
    media: tuple[str, ...] = ("image", "video", "text"),
    steps: int | None = None,
    epochs: float | None = 30,
    batch_size: int = 256,
    lr: float = 1e-4,
    vision_lr: float = 1e-5,
    queue_size: int = 65536,
    alpha: float = 0.4,
    mask_probability: float = 0.15,
    instructions: bool = True,
    universal_sharing: str = "shared",
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Image-text, video-text and text: contrast and matching, masked and instruction language modelling.

    init: a model directory to go on from; without it random weights of `preset`, or those of the checkpoints clip and
    bert where they fit (as published, CLIP ViT-B/16 or L/14 and uncased BERT). media: kinds of rows, which take turns.
    queue_size: divisible by the batch, 0 for negatives of the batch alone. instructions: whether the decoder is told
    what to write; the saved model then expects to be. Never released; values are the predecessor's (base: 256 pixels,
    these rates, batch 256, 30 epochs). Published data: COCO, Visual Genome, SBU, CC3M, CC12M (14 M image-text pairs),
    WebVid (2 M clips), Wikipedia and Common Crawl. Cost: 0.25 TFLOPs forward a picture, 3.6 a clip (large), several
    times that for all objectives and their gradients; no figure was published.
    """
    if init is not None and (clip or bert):
        raise ValueError(f"expected either init or clip and bert, got {init} and {clip or bert}; leave one out")
    steps, epochs = _length(steps, epochs)
    switches = {"universal_sharing": universal_sharing, "instructions": instructions}
    changes: dict[str, Any] = {"queue_size": queue_size} | switches
    config = MPlug2Config.preset(preset, **changes) if init is None else load_config(init, MPlug2Config)
    processor = MPlug2Processor.from_config(config) if init is None else load_processor(init)
    # A batch overwrites whole columns of the queues and their pointer never wraps within one.
    if queue_size % batch_size:
        raise ValueError(f"expected a queue_size divisible by batch_size {batch_size}, got {queue_size}")
    stage = _stage(
        "pretraining",
        _objective(processor, alpha, mask_probability),
        partial(_media, data, media, processor, instructions, Reading(workers, on_bad, most_bad)),
        steps,
        epochs,
        batch_size,
        lr,
        vision_lr,
        # The floor stays a tenth of the peak or less, or a small lr would hardly decay.
        floor=min(FLOOR, lr / 10),
    )
    # queue_size and switches are set anew: they are the recipe's choice, not the checkpoint's.
    old = partial(from_directory, Path(init or ""), model_class=MPlug2ForPreTraining, **changes)
    return Recipe(partial(_fresh, config, clip, bert) if init is None else old, [stage], partial(save_pair, processor))


def _objective(processor: MPlug2Processor, alpha: float, mask_probability: float) -> PreTraining:
    """The pretraining objective for the words of this processor."""
    tokenizer = processor.tokenizer
    return PreTraining(
        mask_id=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        special_ids=frozenset(tokenizer.all_special_ids),
        alpha=alpha,
        probability=mask_probability,
    )


def _fresh(config: MPlug2Config, clip: str | None, bert: str | None) -> MPlug2ForPreTraining:
    """Random weights, and what CLIP and BERT have in their place."""
    model = MPlug2ForPreTraining(config)
    if clip or bert:
        start_from(model, clip=clip, bert=bert)
    return model


def _media(
    data: str, media: Sequence[str], processor: MPlug2Processor, instructions: bool, reading: Reading
) -> Mixture:
    """Kinds of rows that take turns: the released pretraining draws a batch of each at every step and repeats the
    shorter; turns of one batch each do the same over as many steps."""
    collator = Collator(processor, instructions=instructions, pretraining=True)
    found = {}
    for medium in media:
        rows = _rows(data, (), medium, reading)
        found[medium] = _reader(rows, processor, collator.texts if medium == "text" else collator.pairs, reading)
    # named=False: the batch goes into forward as it is, which takes no `task`.
    return Mixture(found, dict.fromkeys(found, 1), turns="in order", named=False)


def _rows(data: str, fields: Sequence[str], medium: str | None, reading: Reading) -> Rows:
    """Rows that have all `fields` (in `meta` too), of one medium, of any that is seen ("seen"), or of any (None)."""

    def keep(sample: Sample) -> bool:
        found = Row(sample).medium
        is_wanted = medium in (None, found) or (medium == "seen" and found != "text")
        return is_wanted and all(getattr(sample, field, None) or sample.meta.get(field) for field in fields)

    words = {None: [], "seen": ["image or video"]}.get(medium, [medium or ""])
    return select(data, ", ".join([*fields, *words]), keep, reading=reading)


def _reader(
    rows: Rows, processor: MPlug2Processor, collate: Collate, reading: Reading, folder: Path = Path()
) -> Reader:
    """A source of these rows, decoded by the processor's number of frames. folder: of paths within `meta`."""
    return Reader(rows, collate, partial(read_row, processor.num_frames, folder), reading=reading)


def captioning(
    init: str,
    data: str,
    prompt: str = PROMPT,
    instructions: bool = False,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 64,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Captions of clips or pictures: rows with `video` or `image` and `captions` or `text`.

    Data: MSRVTT, MSVD. Cost: a clip of 16 frames takes 3.5 TFLOPs forward (large, `plait plan mplug2 caption`) and
    about three times that in training; the released scripts use 8 GPUs. Published (large): CIDEr 80.3 on MSRVTT, 165.8
    on MSVD; batch 4 x 8 GPUs x 2 accumulated, prompt "a video of".
    instructions: whether the model is told to describe, through text encoder and fusion; the saved model then is too.
    """
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    collate = Collator(processor, instructions=instructions, prompt=prompt).captions
    source = partial(_reader, _rows(data, (), None, reading), processor, collate, reading)
    stage = _stage("caption", supervised, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    return _from(init, processor, stage, MPlug2ForConditionalGeneration, instructions=instructions)


def self_critical(
    init: str,
    data: str,
    num_beams: int = 5,
    min_length: int = 8,
    max_length: int = 25,
    steps: int | None = None,
    epochs: float | None = 5,
    batch_size: int = 32,
    lr: float = 1e-6,
    vision_lr: float = 1e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Captions made better by their own CIDEr, behind `captioning`: rows as there, all captions are references.

    Published by the predecessor on COCO: CIDEr 137.5 -> 150.4 (base), 141.0 -> 155.1 (large), both rates 1e-6, 5
    epochs. A step searches with `num_beams` beams of min_length to max_length tokens: 3 to 5 times the cost of one of
    captioning.
    """
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    rows = _rows(data, (), "seen", reading)
    objective = SelfCritical(
        processor.decode_text,
        map(captions_of, rows),
        num_beams=num_beams,
        min_length=min_length,
        max_length=max_length,
    )
    source = partial(_reader, rows, processor, Collator(processor).referenced, reading)
    # The published rate is the usual floor itself; without this the cosine would be flat.
    floor = min(FLOOR, lr / 10)
    stage = _stage("caption", objective, source, *_length(steps, epochs), batch_size, lr, vision_lr, floor)
    return _from(init, processor, stage, MPlug2ForConditionalGeneration, instructions=False)


def answering(
    init: str,
    data: str,
    instructions: bool = False,
    distill: bool = True,
    alpha: float = 0.4,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Answers to questions: rows with `video` or `image`, `question` and `answers`.

    instructions: whether questions are framed by what to do; the saved model then frames them as well. distill, alpha:
    momentum distillation, which the released code computes and throws away and this one uses.
    Data: MSRVTT-QA, MSVD-QA, TGIF-FrameQA, VQA v2. Cost: 3.6 TFLOPs forward for a clip of 16 frames, 0.25 for a picture
    (large), three times that in training and again forward for the teacher. Published (large): accuracy 48.0 on
    MSRVTT-QA, 58.1 on MSVD-QA; recalled: VQA v2 81.11 (test-dev).
    """
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    rows = _rows(data, ("question", "answers"), None, reading)
    # Rows that do not fill a batch are left out of an epoch, as the loop counts steps.
    objective = Distilled(alpha, max(1, len(rows) // batch_size)) if distill else supervised
    source = partial(_reader, rows, processor, Collator(processor, instructions=instructions).answers, reading)
    stage = _stage("answering", objective, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    changes = {"distill": distill, "instructions": instructions}
    return _from(init, processor, stage, MPlug2ForConditionalGeneration, **changes)


def retrieval(
    init: str,
    data: str,
    queue_size: int = 65536,
    alpha: float = 0.4,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 256,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Text <-> image or video: rows with `image` or `video` and `captions` or `text`; contrast with queues, matching.

    Data: MSRVTT, DiDeMo, LSMDC; COCO, Flickr30k. Cost: 3.3 TFLOPs forward for a clip of 16 frames, 0.2 for a picture
    (large), three times that in training and again forward for the teacher. Published (large, recalled): MSRVTT
    text-to-video R@1 53.1. The recipe was not released; batch and queue are the predecessor's.
    """
    if queue_size % batch_size:
        raise ValueError(f"expected a queue_size divisible by batch_size {batch_size}, got {queue_size}")
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    rows = _rows(data, (), "seen", reading)
    source = partial(_reader, rows, processor, Collator(processor).pairs, reading)
    objective = Aligned(alpha, max(1, len(rows) // batch_size))
    stage = _stage("retrieval", objective, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    return _from(init, processor, stage, MPlug2ForRetrieval, queue_size=queue_size)


def grounding(
    init: str,
    data: str,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Boxes of phrases: rows with `image`, `question` or `text` (the phrase) and `boxes` (x0, y0, x1, y1 in pixels).

    Data: RefCOCO, RefCOCO+, RefCOCOg. Cost: 0.25 TFLOPs forward a phrase (large, 224 pixels), three times that in
    training. Published by the predecessor (large, 336 pixels): accuracy at IoU 0.5 of 92.40 on RefCOCO val. The rates
    are those of the released video tasks.
    """
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    source = partial(_reader, _rows(data, ("boxes",), None, reading), processor, Collator(processor).boxes, reading)
    stage = _stage("ground", supervised, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    return _from(init, processor, stage, MPlug2ForGrounding)


def classification(
    init: str,
    data: str,
    task: str = "classify",
    medium: str = "text",
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """Labels of texts, pictures or clips (`classify`), or of a text about a picture or clip (`entail`).

    Rows with `label` and what `medium` names; a pair of texts has the second in `text_pair`. Data: Kinetics, ImageNet,
    GLUE, SNLI-VE. Cost: forward 3.2 TFLOPs a clip of 16 frames, 0.17 a picture, 0.01 a sentence (large), three times
    that in training. Published (large, recalled): Kinetics-400 top-1 87.1, ImageNet 87.7; no recipe was released.
    """
    if task not in ("classify", "entail"):
        raise ValueError(f"expected task classify or entail, got {task!r}")
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    rows = _rows(data, ("label",), medium, reading)
    # Sorted: the number of a class must not depend on the order of rows.
    labels = sorted({sample.label or "" for sample in rows})
    source = partial(_reader, rows, processor, Collator(processor, labels=labels).classes, reading)
    stage = _stage(task, supervised, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    changes: dict[str, Any] = {"id2label": dict(enumerate(labels)), "task": task}
    if task == "classify":
        changes["branch"] = (medium,)
    return _from(init, processor, stage, MPlug2ForSequenceClassification if task == "entail" else None, **changes)


def comparison(
    init: str,
    data: str,
    steps: int | None = None,
    epochs: float | None = 10,
    batch_size: int = 32,
    lr: float = 2e-5,
    vision_lr: float = 2e-6,
    workers: int = 0,
    on_bad: Literal["raise", "skip"] = "raise",
    most_bad: int | None = None,
) -> Recipe:
    """What a text says of several pictures (`compare`): rows with `images` (in every row as many), `text` and `label`.

    Data: NLVR2, two photographs a row. Cost: some 0.4 TFLOPs forward a row (large), three times that in training.
    Published by the predecessor (large): accuracy 84.58 and 84.95 on the two test splits; no recipe was released.
    """
    processor, reading = load_processor(init), Reading(workers, on_bad, most_bad)
    rows = _rows(data, ("images", "text", "label"), None, reading)
    counts = {len(sample.meta["images"]) for sample in rows}
    if len(counts) != 1:
        raise ValueError(f"expected rows with images in {data}, as many in each, got {sorted(counts)}")
    labels = sorted({sample.label or "" for sample in rows})
    # Readers make `image` absolute but leave unknown fields such as `images` as they were written.
    folder = Path(data) if Path(data).is_dir() else Path(data).parent
    source = partial(_reader, rows, processor, Collator(processor, labels=labels).classes, reading, folder)
    stage = _stage("compare", supervised, source, *_length(steps, epochs), batch_size, lr, vision_lr)
    changes: dict[str, Any] = {"id2label": dict(enumerate(labels)), "task": "compare", "num_images": counts.pop()}
    return _from(init, processor, stage, MPlug2ForSequenceClassification, **changes)


def _from(
    init: str, processor: MPlug2Processor, stage: Stage, model_class: type[MPlug2PreTrainedModel] | None, **changes: Any
) -> Recipe:
    """A recipe of one stage that goes on from a model directory."""
    build = partial(from_directory, Path(init), model_class=model_class, **changes)
    return Recipe(build, [stage], partial(save_pair, processor))


def _length(steps: int | None, epochs: float | None) -> tuple[int | None, float | None]:
    """Steps where they are given, else epochs."""
    return (steps, None) if steps is not None else (None, epochs)


def _stage(
    name: str,
    objective: Any,
    source: Callable[[], Source],
    steps: int | None,
    epochs: float | None,
    batch_size: int,
    lr: float,
    vision_lr: float,
    floor: float = FLOOR,
) -> Stage:
    """A stage with the released optimiser (specification mPLUG-2, 2 and 12), the vision encoder at its own rate."""
    return Stage(
        name=name,
        objective=objective,
        batches=source,
        steps=steps,
        epochs=epochs,
        batch_size=batch_size,
        peak_lr=lr,
        floor=floor,
        # 200 steps, which the yaml calls warmup_epochs; a tenth of runs shorter than ten times that.
        warmup=200 if steps is None or steps > 2000 else 0.1,
        betas=(0.9, 0.999),
        weight_decay=0.02,
        # No gradient clipping in any released task (specification 12).
        clip=0.0,
        optimizer=partial(two_rates, vision_lr / lr),
    )


# The published rate; small matrices that begin at zero need more.
FULL_LR, LORA_LR = 2e-5, 5e-4
BATCH = 8


def retrieval_job(request: Request) -> Job:
    """Contrast and matching without a queue, which some hundred rows would not fill; recall by the contrast alone."""
    recipe = retrieval(**_common(request), queue_size=0)
    return _job(request, recipe, lambda model, processor, rows: _vectors(model, processor, request.medium, rows))


def caption(request: Request) -> Job:
    """Captions without a prompt, scored by CIDEr: the published one speaks of videos only."""
    return _job(request, captioning(**_common(request), prompt=""), _said("caption"))


def vqa(request: Request) -> Job:
    """Free answers, without a teacher; rows with `question` and `answers`."""
    return _job(request, answering(**_common(request), distill=False), _said("answer"))


def ground(request: Request) -> Job:
    """Boxes of phrases, scored as shares of width and height."""

    def boxes(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[list[float]]:
        pictures = [load_image(sample.image) for sample in rows]
        phrases = [sample.question or sample.text or "" for sample in rows]
        found = Assistant((model, processor), batch_size=BATCH).ground(pictures, phrases)
        sizes = [picture.size for picture in pictures]
        return [[b[0] / w, b[1] / h, b[2] / w, b[3] / h] for b, (w, h) in zip(found, sizes, strict=True)]

    return _job(request, grounding(**_common(request)), boxes)


def classify(request: Request) -> Job:
    """A head over one medium; before it, what the model as it came finds most likely among the labels."""
    recipe = classification(**_common(request), medium=request.medium)
    labels = sorted({sample.label or "" for sample in request.train})

    def classes(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
        assistant = Assistant((model, processor), batch_size=BATCH)
        return [found[0].text for found in assistant.classify(_items(rows, processor.num_frames))]

    def zero_shot(_: nn.Module, rows: Sequence[Sample]) -> list[str] | None:
        whole, processor = from_directory(request.model), load_processor(request.model)
        try:
            assistant = Assistant((whole, processor), batch_size=BATCH)
            found = assistant.classify(_items(rows, processor.num_frames), labels)
        except ValueError:  # a class that has its own labels, or looks at other media, can do nothing here yet
            return None
        return [one[0].text for one in found]

    return replace(_job(request, recipe, classes), zero_shot=zero_shot)


JOBS: dict[str, Callable[[Request], Job]] = {
    "retrieval": retrieval_job,
    "classify": classify,
    "caption": caption,
    "vqa": vqa,
    "ground": ground,
}


def _common(request: Request) -> dict[str, Any]:
    """Settings that every recipe above takes. A LoRA has no encoder of its own rate, full training a tenth."""
    lr = request.lr or (LORA_LR if request.lora else FULL_LR)
    return {
        "init": str(request.model), "data": request.data, "steps": request.steps, "epochs": request.epochs,
        "batch_size": request.batch_size, "lr": lr, "vision_lr": lr if request.lora else lr / 10,
        **asdict(request.reading),
    }  # fmt: skip


def _job(request: Request, recipe: Recipe, predict: Callable[[nn.Module, Any, Sequence[Sample]], Any]) -> Job:
    """A published stage over `request.train` alone: the recipe's own rows may be of other media as well."""
    processor, published = load_processor(request.model), recipe.stages[0]

    def batches() -> Source:
        reader: Any = published.batches()
        return Reader(request.train, reader.collate, reader.decode, reading=request.reading)

    def predicted(model: nn.Module, rows: Sequence[Sample]) -> Any:
        return predict(model, processor, rows)

    # Short runs: a floor in proportion and a tenth of warm-up, not 200 steps.
    stage = replace(published, batches=batches, floor=published.peak_lr / 20, warmup=0.1)
    return Job(recipe.model_builder, stage, in_evaluation(predicted), recipe.save, whole=_heads)


def _heads(model: nn.Module) -> tuple[str, ...]:
    """Names of the modules of a task's class that are no part of the network, which start fresh."""
    assert isinstance(model, MPlug2PreTrainedModel)
    return tuple(type(model).heads(model.config))


def _said(task: str) -> Callable[[nn.Module, Any, Sequence[Sample]], list[str]]:
    """A function (model, processor, rows) -> texts, by `Assistant.caption` or `Assistant.answer`."""

    def predict(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
        assistant = Assistant((model, processor), batch_size=BATCH)
        items = _items(rows, processor.num_frames)
        if task == "caption":
            return assistant.caption(items)
        return assistant.answer(items, [sample.question or "" for sample in rows])

    return predict


def _items(rows: Sequence[Sample], num_frames: int) -> list[Any]:
    """Pictures, frames or texts of rows, as `Assistant` takes them."""
    return [
        load_image(sample.image)
        if sample.image is not None
        else load_frames(sample.video, num_frames)
        if sample.video is not None
        else sample
        for sample in rows
    ]


def _vectors(model: Any, processor: Any, medium: str, rows: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors (rows, dim) of media, and of the words of the same rows, as numpy arrays."""
    media, texts = [], []
    for start in range(0, len(rows), BATCH):
        part = rows[start : start + BATCH]
        items = _items(part, processor.num_frames)
        made = torch.stack([processor.pixels(x) if medium == "image" else processor.clip(x) for x in items])
        given = {"pixel_values" if medium == "image" else "pixel_values_videos": made.to(model.device)}
        media.append(getattr(model, f"get_{medium}_features")(**given).float().cpu().numpy())
        words = processor.tokenize([text_of(sample) for sample in part], truncation=True)
        found = model.get_text_features(**{name: value.to(model.device) for name, value in words.items()})
        texts.append(found.float().cpu().numpy())
    return np.concatenate(media), np.concatenate(texts)
