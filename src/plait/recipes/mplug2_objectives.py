"""mPLUG-2's losses on one batch, as `plait.training` calls them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from plait.generation import Hypothesis
from plait.metrics.captions import DocumentFrequency, cider
from plait.metrics.ptb import ptb_tokens
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.model import Encoded
from plait.models.mplug2.pretraining import OBJECTIVES, MPlug2ForPreTraining, Objective, parameter_groups
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.objectives.captioning import IGNORED
from plait.objectives.distillation import ramped_alpha
from plait.objectives.masked import mask_tokens
from plait.training.parallel import gather_rows
from plait.training.stages import Stage


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


def supervised(
    model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
) -> tuple[Tensor, dict[str, Tensor | float]]:
    """The loss that a task class computes from labels."""
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
    network = model.model
    vision = network.see(part.get("pixel_values"), part.get("pixel_values_videos"))[part["picture"]]
    questions, which = part["input_ids"].unique(dim=0, return_inverse=True)
    text, mask = (found[which] for found in network.read(questions))
    fused_vision, fused_text = network.fuse(text, mask, vision)
    states, seen = Encoded(text_mask=mask, fused_vision=fused_vision, fused_text=fused_text).states()
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
        """See `Objective`."""
        assert isinstance(model, MPlug2ForRetrieval)
        if model.teacher is not None and self._moved != step:
            model.update_teacher()
            self._moved = step
        alpha = ramped_alpha(self.alpha, *divmod(step, self.steps_per_epoch), self.steps_per_epoch)
        out = model(**batch, alpha=alpha, gather=_gathered)
        return out.loss, {"contrast": out.contrast_loss.detach(), "match": out.match_loss.detach()}


def _gathered(rows: Tensor) -> Tensor:
    return gather_rows(rows)[0].detach()


class Distilled:
    """Generation with momentum distillation: alpha ramps up over the first epoch. Source: specification mPLUG-2, 9."""

    def __init__(self, alpha: float, steps_per_epoch: int) -> None:
        self.alpha, self.steps_per_epoch = alpha, steps_per_epoch
        self._moved = -1

    def __call__(
        self, model: nn.Module, batch: dict[str, Any], step: int, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, Tensor | float]]:
        """See `Objective`."""
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
            said = [ptb_tokens(self.decode(one.ids)) for item in found for one in item]
            own = [texts for texts, item in zip(right, found, strict=True) for _ in item]
            seen.append(torch.tensor(cider(said, own, frequency=self.frequency)).view(len(found), -1))
            return seen[-1]

        encoded = model.encode(**{name: value for name, value in batch.items() if name != "references"})
        loss = model.self_critical_loss(encoded, reward, **self.lengths)
        return loss, {"cider": seen[-1].mean()}


def two_rates(vision_scale: float, model: nn.Module, stage: Stage) -> torch.optim.Optimizer:
    """AdamW in which the vision encoder learns `vision_scale` times as fast as the rest."""
    groups = parameter_groups(model.named_parameters(), weight_decay=stage.weight_decay, vision_scale=vision_scale)
    return torch.optim.AdamW(groups, lr=stage.peak_lr, betas=stage.betas, eps=stage.eps)
