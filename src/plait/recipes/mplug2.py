"""mPLUG-2's pretraining and every finetuning task, with the published hyperparameters as defaults.

rows -> select -> decoded (`processor.read_row`) -> batches (`processor.Collator`) -> objective -> loss, metrics

Published for finetuning (released video tasks): AdamW, rate 2e-5 and for the vision encoder 2e-6, weight decay 0.02,
cosine to 1e-6 after 200 steps of warm-up from 1e-6, 10 epochs, no clipping, everything trains, 8 GPUs. Where nothing
was published the docstring says so and the released tasks' values stand in. Source: specification mPLUG-2, sections
2, 10, 12 and 15. Rows without a split, or of the split train, are used.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from plait.data.conversation import is_heard
from plait.data.mixture import Mixture
from plait.data.reader import BadSamples, Collate, Reader, Reading, Rows, Source, select
from plait.errors import UsageError
from plait.generation import Hypothesis
from plait.metrics.captions import DocumentFrequency, cider
from plait.metrics.ptb import ptb_tokens
from plait.models import directory_of
from plait.models.auto import load_config, load_processor
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.composition import TEMPLATES
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import Encoded, MPlug2PreTrainedModel
from plait.models.mplug2.pretraining import OBJECTIVES, MPlug2ForPreTraining, Objective, decays, layer_id
from plait.models.mplug2.processor import Collator, MPlug2Processor, Row, captions_of, offers, read_row
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForGrounding,
    MPlug2ForSequenceClassification,
)
from plait.models.mplug2.weights import from_directory, start_from
from plait.objectives.captioning import IGNORED
from plait.objectives.distillation import ramped_alpha
from plait.objectives.masked import mask_tokens
from plait.training.optim import parameter_groups
from plait.training.parallel import gather_rows
from plait.training.run import refuse_beside
from plait.training.schedules import released_rate
from plait.training.stages import Recipe, Stage, save_pair
from plait.types import Sample


class Taught:
    """What objectives with a momentum teacher share: it moves once a step, and its weight alpha ramps up over `ramp`
    steps, the first epoch as released (specification mPLUG-2, 9)."""

    def __init__(self, alpha: float, ramp: int = 0) -> None:
        self.alpha, self.ramp = alpha, ramp
        # -1, so that the teacher moves at step 0 too; afterwards once per step, whatever the number of micro batches.
        self._moved = -1

    def move(self, model: Any, step: int) -> float:
        """Let the teacher follow the model, where there is one; alpha at this step."""
        if model.teacher is not None and self._moved != step:
            model.update_teacher()
            self._moved = step
        return ramped_alpha(self.alpha, *divmod(step, self.ramp), self.ramp) if self.ramp else self.alpha


class PreTraining(Taught):
    """Contrast, matching, masked and prefix language modelling of one batch.

    mask_id, vocab_size, special_ids: of the tokenizer; weights: of the objectives; alpha, ramp: as in `Taught`;
    probability: of hiding a token; every: steps between two that have all objectives; often: the objectives of the
    steps between.
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
        super().__init__(alpha, ramp)
        self.every, self.rarely = every, [name for name in OBJECTIVES if name not in often]
        self.mask_id, self.vocab_size = mask_id, vocab_size
        self.special_ids = torch.tensor(sorted(special_ids))
        self.weights, self.probability = weights, probability

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The weighted sum, and every part of it as a metric."""
        assert isinstance(model, MPlug2ForPreTraining)
        alpha = self.move(model, step)
        ids = batch["input_ids"]
        # masks are drawn on the host
        drawing = torch.Generator().manual_seed(generator.initial_seed())
        words = batch["attention_mask"].bool().cpu() & ~torch.isin(ids.cpu(), self.special_ids)
        hidden, labels = mask_tokens(
            ids.cpu(),
            words,
            mask_id=self.mask_id,
            vocab_size=self.vocab_size,
            probability=self.probability,
            generator=drawing,
        )
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


def supervised(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The loss that a task class computes from the labels in `batch`; step and generator are not used."""
    return model(**batch).loss, {}


def asked_together(
    model: nn.Module, batch: list[dict[str, Any]], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The loss of answers to several questions about each image, mean over all questions.

    batch: parts of images or of clips, each as `MPlug2ForConditionalGeneration.forward` takes it, one text per
    question, and `picture`: (questions,) number of the image or clip that each is about. Pictures and equal questions
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


class Mixed:
    """Many tasks of one decoder, boxes among them."""

    def __init__(self) -> None:
        self._grounder: MPlug2ForGrounding | None = None  # made once, as building it takes as long as a small step

    def __call__(
        self, model: nn.Module, batch: list[dict[str, Any]], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mean over rows of what `Collator.mixture` made, and the loss of every part that there is."""
        assert isinstance(model, MPlug2ForConditionalGeneration)
        parts = {}
        for part in batch:
            name = next((key for key in ("boxes", *_PIXELS) if key in part), "input_ids")
            asked = self._grounds(model) if name == "boxes" else model
            parts[_PIXELS.get(name, name)] = (asked(**part).loss, len(part["input_ids"]))
        total = torch.stack([loss * count for loss, count in parts.values()]).sum()
        return total / sum(count for _, count in parts.values()), {key: one.detach() for key, (one, _) in parts.items()}

    def _grounds(self, model: MPlug2ForConditionalGeneration) -> MPlug2ForGrounding:
        """The model as the class that finds boxes."""
        if self._grounder is None or self._grounder.model is not model.model:
            self._grounder = model.grounder()
        return self._grounder


_PIXELS = {"pixel_values": "image", "pixel_values_videos": "video", "input_ids": "text"}
"""What a part of `Mixed` has -> what its loss is called."""


class Aligned(Taught):
    """Retrieval's contrast and matching."""

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The sum of both losses, and each of them, from a batch of `Collator.pairs`."""
        assert isinstance(model, MPlug2ForRetrieval)
        out = model(**batch, alpha=self.move(model, step), gather=_gathered)
        return out.loss, {"contrast": out.contrast_loss.detach(), "match": out.match_loss.detach()}


def _gathered(rows: Tensor) -> Tensor:
    """The rows of all processes without gradient, (batch, ...) -> (world * batch, ...): what the queues take in."""
    return gather_rows(rows)[0].detach()


class Distilled(Taught):
    """Generation with momentum distillation. Source: specification mPLUG-2, 9."""

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """The mixed loss and alpha; without a teacher the plain loss of the labels."""
        assert isinstance(model, MPlug2ForConditionalGeneration)
        if model.teacher is None:
            return supervised(model, batch, step, generator)
        alpha = self.move(model, step)
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


@dataclass(frozen=True)
class Tuning(Reading):
    """How long, how fast and over which rows a stage trains; defaults are those of the released video tasks.

    Args:
        steps, epochs: length, of which steps count where both are given.
        batch_size: rows of a step over all processes.
        lr, vision_lr: peak rates, of all else and of the vision encoder.
        floor: last rate, 1e-6 in every released yaml; of a peak near it a tenth of the peak.
        warmup: steps, or a share of the run below 1; without it 200 steps, of runs under 2,000 steps a tenth.
        schedule: cosine, or released: the rates of the released loops to the letter, each in force a step late.
    """

    steps: int | None = None
    epochs: float | None = 10
    batch_size: int = 32
    lr: float = 2e-5
    vision_lr: float = 2e-6
    floor: float = 1e-6
    warmup: float | None = None
    schedule: Literal["cosine", "released"] = "cosine"


@dataclass(frozen=True)
class SizedTuning(Reading):
    """The fields of `Tuning` for pretraining, where rates and batch that are not set are those of the size.

    Args:
        steps, epochs: length, of which steps count where both are given.
        batch_size, lr, vision_lr, floor: rows of a step over all processes, peak rates (of all else, of the vision
            encoder) and last rate; without them those of the size.
        warmup: steps, or a share of the run below 1; without it 200 steps, of runs under 2,000 steps a tenth.
        schedule: cosine, or released: the rates of the released loops to the letter, each in force a step late.
    """

    steps: int | None = None
    epochs: float | None = 30
    batch_size: int | None = None
    lr: float | None = None
    vision_lr: float | None = None
    floor: float | None = None
    warmup: float | None = None
    schedule: Literal["cosine", "released"] = "cosine"

    def of(self, config: MPlug2Config) -> Tuning:
        """With everything that a model of this size was pretrained with."""
        size = "large" if config.dim >= MPlug2Config.preset("large").dim else "base"
        return Tuning(**PREDECESSOR[size] | {name: value for name, value in asdict(self).items() if value is not None})


# Of the predecessor, since mPLUG-2's were never released (specification 10.4); small sizes take the base model's.
PREDECESSOR: dict[str, dict[str, Any]] = {
    "base": {"batch_size": 256, "lr": 1e-4, "vision_lr": 1e-5, "floor": 1e-6},
    "large": {"batch_size": 128, "lr": 5e-5, "vision_lr": 5e-6, "floor": 2e-6},
}


# The released captioning asks so for every clip (specification 2).
PROMPT = "a video of"
SEEN = ("image", "video")
KINDS = (*SEEN, "text")
"""Kinds of rows, in the order in which pretraining takes turns with them."""


def pretraining(
    data: str,
    init: str | None = None,
    preset: str | None = None,
    clip: str | None = None,
    bert: str | None = None,
    media: tuple[str, ...] = (),
    queue_size: int = 65536,
    alpha: float = 0.4,
    mask_probability: float = 0.15,
    instructions: bool = True,
    universal_sharing: str = "shared",
    sized: SizedTuning = SizedTuning(),
) -> Recipe:
    """Image-text, video-text and text: contrast and matching, masked and instruction language modelling.

    Never released; values are the predecessor's, 30 epochs, and
    without being set those of the size: base batch 256, rates 1e-4 and 1e-5, floor 1e-6; large (also of init) 128, 5e-5
    and 5e-6, 2e-6. Published data: COCO, Visual Genome, SBU, CC3M, CC12M (14 M image-text pairs),
    WebVid (2 M clips), Wikipedia and Common Crawl. Cost: 0.25 TFLOPs forward an image, 3.6 a clip (large), several
    times that for all objectives and their gradients; no figure was published.

    Args:
        data: rows with `image`, `video` or `text` alone, and `captions` or `text` beside media.
        init: a model directory to go on from; random weights without it.
        preset: size of random weights, base without it.
        clip, bert: checkpoints whose weights are taken where they fit (published: CLIP ViT-B/16 or L/14, uncased BERT).
        media: kinds of rows, which take turns; image, video and text without it, as far as the data has them.
        queue_size: negatives that are kept, divisible by the batch; 0 for negatives of the batch alone.
        alpha: weight of the momentum teacher, 0 to 1.
        mask_probability: of a piece of text, for masked language modelling.
        instructions: whether the decoder is told what to write; the saved model then expects to be.
        universal_sharing: whether image, text and fusion share the universal layers.
    """
    if init is not None:
        refuse_beside(f"init={init}, which has them", preset=preset, clip=clip, bert=bert)
    told = [f"caption {medium}" for medium in SEEN] if instructions else False
    switches = {"universal_sharing": universal_sharing, "instructions": told}
    changes: dict[str, Any] = {"queue_size": queue_size} | switches
    config = MPlug2Config.preset(preset or "base", **changes) if init is None else load_config(init, MPlug2Config)
    processor = MPlug2Processor.from_config(config) if init is None else load_processor(init)
    how = sized.of(config)
    _check_queue(queue_size, how)
    tokenizer = processor.tokenizer
    objective = PreTraining(
        mask_id=tokenizer.mask_token_id,
        vocab_size=len(tokenizer),
        special_ids=frozenset(tokenizer.all_special_ids),
        alpha=alpha,
        probability=mask_probability,
    )
    source = partial(_media, data, media, processor, instructions, how)
    # Turns are a batch of each kind: what an epoch is, only the mixture knows.
    if unknown := set(media) - set(KINDS):
        raise UsageError(f"expected media among {', '.join(KINDS)}, got {', '.join(sorted(unknown))}")
    if how.schedule == "released":
        raise UsageError("expected schedule=cosine, got released; no loop of pretraining was released")
    stage = _stage("pretraining", objective, source, how)
    # queue_size and switches are set anew: they are the recipe's choice, not the checkpoint's.
    old = partial(
        from_directory, directory_of(init or ""), dtype=torch.float32, model_class=MPlug2ForPreTraining, **changes
    )
    return Recipe(partial(_fresh, config, clip, bert) if init is None else old, [stage], partial(save_pair, processor))


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
    wanted = media or KINDS
    rows = _rows(data, (), wanted, reading, " or ".join(wanted))
    kinds = _by_kind(rows, reading)
    if absent := [medium for medium in media if medium not in kinds]:
        raise ValueError(f"expected rows with {' and '.join(absent)} in {data}, got none; leave it out of media")
    found = {
        medium: _reader(kinds[medium], processor, collator.texts if medium == "text" else collator.pairs, reading)
        for medium in wanted
        if medium in kinds
    }
    # named=False: the batch goes into forward as it is, which takes no `task`.
    return Mixture(found, dict.fromkeys(found, 1), turns="in order", named=False)


def _rows(
    data: str, fields: Sequence[str], media: Sequence[str] = KINDS, reading: Reading = Reading(), words: str = ""
) -> Rows:
    """Rows that have all `fields` (in `meta` too), of these media, measured by their kind. words: of the media.

    Sounds are nothing to this family: the words beside one would be learned as if they stood alone.
    """

    def keep(sample: Sample) -> bool:
        is_wanted = not is_heard(sample) and Row(sample).medium in media
        return is_wanted and all(getattr(sample, field, None) or sample.meta.get(field) for field in fields)

    wanted = ", ".join([*fields, *([words] if words else [])]) or "image, video or text"
    return select(data, wanted, keep, measure=lambda sample: KINDS.index(Row(sample).medium), reading=reading)


def _by_kind(rows: Rows, reading: Reading) -> dict[str, Rows]:
    """The rows of each kind that there is, each with a count of its own of what cannot be read."""
    return {
        kind: Rows(rows.samples, rows.numbers[rows.measures == number], bad=BadSamples(reading.most_bad))
        for number, kind in enumerate(KINDS)
        if (rows.measures == number).any()
    }


def _apart(rows: Rows, processor: MPlug2Processor, collate: Collate, reading: Reading) -> Source:
    """A source of these rows, whose batches hold pictures or clips, never both; drawn by how many there are."""
    kinds = _by_kind(rows, reading)
    if len(kinds) == 1:
        return _reader(rows, processor, collate, reading)
    return Mixture({name: _reader(of, processor, collate, reading) for name, of in kinds.items()}, named=False)


def _reader(rows: Rows, processor: MPlug2Processor, collate: Collate, reading: Reading) -> Reader:
    """A source of these rows, decoded by the processor's number of frames."""
    return Reader(rows, collate, partial(read_row, processor.num_frames), reading=reading)


def captioning(
    init: str,
    data: str,
    prompt: str = PROMPT,
    instructions: bool = False,
    how: Tuning = Tuning(batch_size=64),
) -> Recipe:
    """Captions of clips or images: rows with `video` or `image` and `captions` or `text`.

    Data: MSRVTT, MSVD. Cost: a clip of 16 frames takes 3.5 TFLOPs forward (large, `plait plan mplug2 caption`) and
    about three times that in training; the released scripts use 8 GPUs. Published (large): CIDEr 80.3 on MSRVTT, 165.8
    on MSVD; batch 4 x 8 GPUs x 2 accumulated, prompt "a video of".

    Args:
        prompt: what the decoder begins with.
        instructions: whether the model is told to describe, by text encoder and fusion; the saved model then is too.
    """
    processor, rows = load_processor(init), _rows(data, (), reading=how)
    collate = Collator(processor, instructions=instructions, prompt=prompt).captions
    generates = MPlug2ForConditionalGeneration
    told = [f"caption {kind}" for kind in _by_kind(rows, how)] if instructions else False
    return _task("caption", init, processor, rows, collate, how, generates, instructions=told)


def self_critical(
    init: str,
    data: str,
    num_beams: int = 5,
    min_length: int = 8,
    max_length: int = 25,
    how: Tuning = Tuning(epochs=5, lr=1e-6, vision_lr=1e-6),
) -> Recipe:
    """Captions made better by their own CIDEr, behind `captioning`: rows as there, all captions are references.

    Published by the predecessor on COCO: CIDEr 137.5 -> 150.4 (base), 141.0 -> 155.1 (large), both rates 1e-6, 5
    epochs. A step costs 3 to 5 times one of captioning.

    Args:
        num_beams, min_length, max_length: of the captions that are searched in every step, lengths in tokens.
    """
    processor, rows = load_processor(init), _rows(data, (), SEEN, how, "image or video")
    objective = SelfCritical(
        processor.decode_text,
        map(captions_of, rows),
        num_beams=num_beams,
        min_length=min_length,
        max_length=max_length,
    )
    collate, generates = Collator(processor).referenced, MPlug2ForConditionalGeneration
    return _task("caption", init, processor, rows, collate, how, generates, objective, instructions=False)


def answering(
    init: str,
    data: str,
    instructions: bool = False,
    distill: bool = True,
    alpha: float | None = None,
    how: Tuning = Tuning(),
) -> Recipe:
    """Answers to questions: rows with `video` or `image`, `question` and `answers`.

    Data: MSRVTT-QA, MSVD-QA, TGIF-FrameQA, VQA v2. Cost: 3.6 TFLOPs forward for a clip of 16 frames, 0.25 for an image
    (large), three times that in training and again forward for the teacher. Published (large): accuracy 48.0 on
    MSRVTT-QA, 58.1 on MSVD-QA; recalled: VQA v2 81.11 (test-dev).

    Args:
        instructions: whether questions are framed by what to do; the saved model then frames them as well.
        distill, alpha: momentum distillation and its weight, which the released code computes and throws away and this
            one uses.
    """
    if not distill:
        refuse_beside("distill=false", alpha=alpha)
    processor, rows = load_processor(init), _rows(data, ("question", "answers"), reading=how)
    # Rows that do not fill a batch are left out of an epoch, as the loop counts steps.
    weight = 0.4 if alpha is None else alpha
    objective = Distilled(weight, max(1, len(rows) // how.batch_size)) if distill else supervised
    collate, generates = Collator(processor, instructions=instructions).answers, MPlug2ForConditionalGeneration
    told = [f"answer {kind}" for kind in _by_kind(rows, how) if kind in SEEN] if instructions else False
    changes: dict[str, Any] = {"distill": distill, "instructions": told}
    return _task("answering", init, processor, rows, collate, how, generates, objective, **changes)


def mixture(
    init: str,
    data: str,
    tasks: tuple[str, ...] = (),
    instructions: bool = True,
    grounding_bins: int | None = None,
    how: Tuning = Tuning(),
) -> Recipe:
    """One decoder for many tasks, told apart by instructions: caption, answer, match, classify, ground, complete.

    Every row does at each turn one of the tasks that it has what for, drawn evenly: `image` or `video` with `captions`
    or `text` (caption; match, yes or no, half of the texts another row's), with `question` and `answers` (answer), with
    `label` (classify); an `image` with `boxes` and a phrase in `text` (ground); texts of several words, beside a medium
    or alone (complete); a `text` alone with `label` (classify). Data: those of the other recipes, in one manifest.
    Cost: as `answering`. No such recipe was released: rates are those of the released video tasks.

    Args:
        tasks: of these names; without it all that rows have what for.
        instructions: whether the model is told what to do. Without it, a control, it sees the question, phrase or text
            alone and has to guess what is wanted.
        grounding_bins: coordinates of a side that boxes are written with, without it those of init.
    """
    known = sorted({task for task, _ in TEMPLATES})
    if unknown := set(tasks) - set(known):
        raise UsageError(f"expected tasks among {', '.join(known)}, got {', '.join(sorted(unknown))}")

    def able(sample: Sample) -> list[tuple[str, str]]:
        medium = Row(sample).medium
        return [(task, medium) for task in offers(sample, medium) if not tasks or task in tasks]

    processor = load_processor(init)
    rows = select(
        data,
        f"what a task needs ({', '.join(tasks or known)})",
        lambda sample: not is_heard(sample) and bool(able(sample)),
        reading=how,
    )
    cells = {cell for sample in rows for cell in able(sample)}
    if absent := set(tasks) - {task for task, _ in cells}:
        raise ValueError(f"expected rows for {' and '.join(sorted(absent))} in {data}, got none; leave it out of tasks")
    changes: dict[str, Any] = {"instructions": [" ".join(cell) for cell in sorted(cells)] if instructions else False}
    if grounding_bins is not None:
        changes["grounding_bins"] = grounding_bins
    collate = Collator(processor, instructions=instructions, tasks=tasks).mixture
    return _task("mixture", init, processor, rows, collate, how, MPlug2ForConditionalGeneration, Mixed(), **changes)


def retrieval(
    init: str,
    data: str,
    queue_size: int = 65536,
    alpha: float = 0.4,
    how: Tuning = Tuning(batch_size=256),
) -> Recipe:
    """Text <-> image or video: rows with `image` or `video` and `captions` or `text`; contrast with queues, matching.

    Data: MSRVTT, DiDeMo, LSMDC; COCO, Flickr30k. Cost: 3.3 TFLOPs forward for a clip of 16 frames, 0.2 for an image
    (large), three times that in training and again forward for the teacher. Published (large, recalled): MSRVTT
    text-to-video R@1 53.1. The recipe was not released; batch and queue are the predecessor's.

    Args:
        queue_size: negatives that are kept, divisible by the batch; 0 for negatives of the batch alone.
        alpha: weight of the momentum teacher, 0 to 1.
    """
    _check_queue(queue_size, how)
    processor, rows = load_processor(init), _rows(data, (), SEEN, how, "image or video")
    objective = Aligned(alpha, max(1, len(rows) // how.batch_size))
    collate = Collator(processor).pairs
    return _task("retrieval", init, processor, rows, collate, how, MPlug2ForRetrieval, objective, queue_size=queue_size)


def grounding(
    init: str,
    data: str,
    how: Tuning = Tuning(),
) -> Recipe:
    """Boxes of phrases: rows with `image`, `question` or `text` (the phrase) and `boxes` (x0, y0, x1, y1 in pixels).

    Data: RefCOCO, RefCOCO+, RefCOCOg. Cost: 0.25 TFLOPs forward a phrase (large, 224 pixels), three times that in
    training. Published by the predecessor (large, 336 pixels): accuracy at IoU 0.5 of 92.40 on RefCOCO val. The rates
    are those of the released video tasks.
    """
    processor, rows = load_processor(init), _rows(data, ("boxes",), reading=how)
    return _task("ground", init, processor, rows, Collator(processor).boxes, how, MPlug2ForGrounding)


def classification(
    init: str,
    data: str,
    task: str = "classify",
    medium: str | None = None,
    how: Tuning = Tuning(),
) -> Recipe:
    """Labels of texts, images or clips (`classify`), or of a text about an image or clip (`entail`).

    Rows with `label` and what `medium` names; a pair of texts has the second in
    `text_pair`. Data: Kinetics, ImageNet, GLUE, SNLI-VE. Cost: forward 3.2 TFLOPs a clip of 16 frames, 0.17 an image,
    0.01 a sentence (large), three times that in training. Published (large, recalled): Kinetics-400 top-1 87.1,
    ImageNet 87.7; no recipe was released.

    Args:
        task: classify, or entail for a text about an image or clip.
        medium: text, image or video: what of the rows is seen; without it what most of them have.
    """
    if task not in ("classify", "entail"):
        raise ValueError(f"expected task classify or entail, got {task!r}")
    processor = load_processor(init)
    if medium is None:
        kinds = _by_kind(_rows(data, ("label",), reading=how), how)
        medium = max(kinds, key=lambda kind: len(kinds[kind]))
    rows = _rows(data, ("label",), (medium,), how, medium)
    # Sorted: the number of a class must not depend on the order of rows.
    labels = sorted({sample.label or "" for sample in rows})
    # A class token of vision has no use for the words beside a picture or a clip.
    is_read = task == "entail" or medium == "text"
    collate = Collator(processor, labels=labels, reads_words=is_read).classes
    changes: dict[str, Any] = {"id2label": dict(enumerate(labels)), "task": task}
    if task == "classify":
        changes["branch"] = (medium,)
    classifies = MPlug2ForSequenceClassification if task == "entail" else None
    return _task(task, init, processor, rows, collate, how, classifies, **changes)


def comparison(
    init: str,
    data: str,
    how: Tuning = Tuning(),
) -> Recipe:
    """What a text says of several images (`compare`): rows with `images` (in every row as many), `text` and `label`.

    Data: NLVR2, two photographs a row. Cost: some 0.4 TFLOPs forward a row (large), three times that in training.
    Published by the predecessor (large): accuracy 84.58 and 84.95 on the two test splits; no recipe was released.
    """
    processor, rows = load_processor(init), _rows(data, ("images", "text", "label"), reading=how)
    counts = {len(sample.meta["images"]) for sample in rows}
    if len(counts) != 1:
        raise ValueError(f"expected rows with images in {data}, as many in each, got {sorted(counts)}")
    labels = sorted({sample.label or "" for sample in rows})
    collate = Collator(processor, labels=labels).classes
    changes: dict[str, Any] = {"id2label": dict(enumerate(labels)), "task": "compare", "num_images": counts.pop()}
    classifies = MPlug2ForSequenceClassification
    return _task("compare", init, processor, rows, collate, how, classifies, **changes)


def _check_queue(size: int, how: Tuning) -> None:
    """Raise ValueError unless batches fill a queue evenly: each overwrites whole columns, and none wraps within one."""
    if size % how.batch_size:
        raise ValueError(f"expected a queue_size divisible by batch_size {how.batch_size}, got {size}")


def _task(
    name: str,
    init: str,
    processor: MPlug2Processor,
    rows: Rows,
    collate: Collate,
    how: Tuning,
    model_class: type[MPlug2PreTrainedModel] | None,
    objective: Any = supervised,
    **changes: Any,
) -> Recipe:
    """A recipe of one stage that goes on from a model directory, its configuration changed."""
    # answers are learned in parts of one kind each, so that pictures and clips may share a batch
    source = _reader if name in ("answering", "mixture") else _apart
    stage = _stage(name, objective, partial(source, rows, processor, collate, how), how)
    if how.schedule == "released":
        # 100 in the released captioning alone, where it dents the rate (specification 12).
        schedule = partial(_released, max(1, len(rows) // how.batch_size), 100 if name == "caption" else 1)
        stage = replace(stage, schedule=schedule, warmup=200)
    build = partial(from_directory, directory_of(init), dtype=torch.float32, model_class=model_class, **changes)
    return Recipe(build, [stage], partial(save_pair, processor))


def _stage(name: str, objective: Any, source: Callable[[], Source], how: Tuning) -> Stage:
    """A stage with the released optimiser (specification mPLUG-2, 2 and 12), the vision encoder at its own rate."""
    return Stage(
        name=name,
        objective=objective,
        batches=source,
        steps=how.steps,
        epochs=None if how.steps is not None else how.epochs,
        batch_size=how.batch_size,
        peak_lr=how.lr,
        # A tenth of the peak or less: the published rate of self-critical training is the floor itself, and the
        # cosine would be flat.
        floor=min(how.floor, how.lr / 10),
        # 200 steps, which the yaml calls warmup_epochs; a tenth of runs shorter than ten times that.
        warmup=how.warmup if how.warmup is not None else 200 if how.steps is None or how.steps > 2000 else 0.1,
        betas=(0.9, 0.999),
        weight_decay=0.02,
        # No gradient clipping in any released task (specification 12).
        clip=0.0,
        optimizer=partial(two_rates, how.vision_lr / how.lr),
    )


def _released(
    steps_per_epoch: int, step_size: int, step: int, total: int, *, peak: float, floor: float, warmup: int
) -> float:
    """`released_rate` as `Stage.schedule` calls it."""
    return released_rate(
        step, peak=peak, floor=floor, start=floor, warmup=warmup, epochs=total / steps_per_epoch,
        steps_per_epoch=steps_per_epoch, per_step=True, step_size=step_size,
    )  # fmt: skip
