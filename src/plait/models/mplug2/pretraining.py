"""Joint pretraining on pairs of text with pictures or clips, and on text alone: one network, all objectives.

pairs -> vision, text -> contrast (ITC, VTC) -> hard negatives -> fusion -> matching (ITM, VTM)
      -> masked text, vision -> fusion -> masked language modelling
      -> (instruction, vision -> fusion ->) vision -> decoder -> prefix or instruction language modelling
texts -> masked text -> universal layers -> masked language modelling

Each batch has one kind of medium. Every objective has a weight; one of 0 is not computed. No pretraining code of
mPLUG-2 was released: this follows its paper (arXiv 2302.00402), section 3.4, and mPLUG's parts where they exist.
What decays and what learns slower closes the file (specification mPLUG-2, section 12).
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from plait.models.mplug2.alignment import Gather, MPlug2AlignedModel, Pairs
from plait.models.mplug2.composition import Path, path_of
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import Encoded
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.nn.contract import outputs_for_transformers
from plait.objectives.captioning import next_token_loss
from plait.objectives.masked import masked_lm_loss

Objective = Literal["contrast", "match", "masked", "generate"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass
class PreTrainingOutput(ModelOutput):
    """Losses of one batch, None for objectives that were not computed.

    Attributes:
        loss: weighted sum of those computed, a scalar.
        contrast_loss: ITC or VTC, unit vectors of both sides against the queues.
        match_loss: ITM or VTM, pairs and hard negatives.
        masked_loss: masked language modelling, beside vision or alone.
        generate_loss: next-token loss of texts about vision, or about vision and an instruction.
    """

    loss: Tensor | None = None
    contrast_loss: Tensor | None = None
    match_loss: Tensor | None = None
    masked_loss: Tensor | None = None
    generate_loss: Tensor | None = None


class MPlug2ForPreTraining(MPlug2AlignedModel):
    """All parts, all heads; `task=` of `plait.load` makes a model for one task out of it.

    Args:
        config: its `task` is None or `pretrain`; `queue_size` gives it teacher and queues.

    Raises:
        ValueError: for another task.

    Example:
        >>> import torch
        >>> model = MPlug2ForPreTraining(MPlug2Config.preset("tiny"))
        >>> texts = torch.tensor([[101, 7, 102], [101, 8, 102]])
        >>> out = model(torch.rand(2, 3, 12, 12), input_ids=texts, decoder_input_ids=texts, labels=texts)
        >>> out.loss.shape, out.masked_loss
        (torch.Size([]), None)

    Source: mPLUG-2 (arXiv 2302.00402), section 3.4; no pretraining code was released (specification
    mPLUG-2, section 10).
    """

    TASKS = ("pretrain",)

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(config)
        self.post_init()

    def writer(self) -> MPlug2ForConditionalGeneration:
        """The same network, shared and not copied, as the class that captions and answers.

        Returns:
            A model in evaluation mode without a teacher, whose weights are those of this one.
        """
        config = copy.deepcopy(self.config)
        # None: both tasks of the other class; its parts are all there.
        config.task, config.distill = None, False
        # Built on the meta device and then given this network, so no second copy is ever allocated.
        with torch.device("meta"):
            other = MPlug2ForConditionalGeneration(config)
        other.model = self.model
        return other.eval()

    @outputs_for_transformers
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        masked_input_ids: Tensor | None = None,
        masked_labels: Tensor | None = None,
        instruction_ids: Tensor | None = None,
        instruction_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        alpha: float = 0.0,
        weights: Mapping[str, float] | None = None,
        gather: Gather | None = None,
        noise: Tensor | None = None,
    ) -> PreTrainingOutput:
        """The losses of one batch; an objective whose inputs are missing is left out.

        Args:
            pixel_values, pixel_values_videos: as `MPlug2Model.see`; neither for a batch of texts.
            input_ids, attention_mask: (batch, tokens) of the texts, contrasted and matched.
            masked_input_ids, masked_labels: the same, some tokens hidden, and what they were (else
                -100).
            instruction_ids, instruction_mask: (batch, tokens) that tell what to write; may be left
                out.
            decoder_input_ids, decoder_attention_mask, labels: (batch, length) to be written, not
                shifted.
            ids, alpha, gather, noise: as in `MPlug2ForRetrieval.forward`.
            weights: of `OBJECTIVES`, 1 for those not named; one of 0 is not computed.

        Raises:
            ValueError: for unknown weights, and where nothing is left to compute.
        """
        scale = dict.fromkeys(OBJECTIVES, 1.0) | dict(weights or {})
        if unknown := set(scale) - set(OBJECTIVES):
            raise ValueError(f"expected weights of {', '.join(OBJECTIVES)}, got {', '.join(sorted(unknown))}")
        out = PreTrainingOutput()
        has_pictures = pixel_values is not None or pixel_values_videos is not None
        medium = self.medium(pixel_values, pixel_values_videos) if has_pictures else "text"
        path = path_of("pretrain", medium)
        vision = self.model.see(pixel_values, pixel_values_videos, path) if has_pictures else None
        if masked_input_ids is not None and scale["masked"]:
            out.masked_loss = self._masked(masked_input_ids, attention_mask, masked_labels, vision, path)
        if vision is not None and input_ids is not None and (scale["contrast"] or scale["match"]):
            pairs = Pairs(pixel_values, pixel_values_videos, input_ids, attention_mask)
            # Vision was encoded above, once for all objectives, so `align` is handed both sides.
            text, mask = self.model.read(input_ids, attention_mask, path=path)
            options = {"ids": ids, "alpha": alpha, "gather": gather, "noise": noise}
            aligned = self.align(pairs, (vision, text, mask), matching=bool(scale["match"]), **options)
            out.contrast_loss, out.match_loss = aligned.contrast_loss, aligned.match_loss
        if vision is not None and decoder_input_ids is not None and scale["generate"]:
            encoded = Encoded(vision=vision)
            if instruction_ids is not None:
                text, mask = self.model.read(instruction_ids, instruction_mask, path=path)
                fused_vision, fused_text = self.model.fuse(text, mask, vision)
                encoded = Encoded(text_mask=mask, fused_vision=fused_vision, fused_text=fused_text)
            out.generate_loss = self._written(encoded, decoder_input_ids, decoder_attention_mask, labels)
        found = {name: out[f"{name}_loss"] for name in OBJECTIVES if out.get(f"{name}_loss") is not None}
        if not found:
            raise ValueError("expected inputs of an objective with a weight above 0, got none")
        out.loss = torch.stack([scale[name] * loss for name, loss in found.items()]).sum()
        return out

    def _masked(
        self, ids: Tensor, mask: Tensor | None, labels: Tensor | None, vision: Tensor | None, path: Path
    ) -> Tensor:
        """Loss of hidden tokens, read beside vision (batch, patches, dim) or alone.

        ids, mask: (batch, tokens) as read; labels: (batch, tokens), what was hidden, negative
        elsewhere. A scalar.
        """
        if labels is None:
            raise ValueError("expected masked_labels beside masked_input_ids, got none")
        text, seen = self.model.read(ids, mask, path=path)
        # The released heads sit on the text encoder alone or on the fused text stream (specification 6).
        if vision is not None:
            _, text = self.model.fuse(text, seen, vision)
        hidden = labels >= 0  # only these rows meet the vocabulary, a seventh of them all
        table = self.model.text.embeddings.token_embedding.weight
        return masked_lm_loss(self.model.masked_lm(text[hidden], table)[None], labels[hidden][None])

    def _written(self, encoded: Encoded, ids: Tensor, mask: Tensor | None, labels: Tensor | None) -> Tensor:
        """Next-token loss of texts about vision, or about vision and instruction after reading each other.

        ids, mask, labels: (batch, length), labels not shifted. A scalar, mean over supervised
        tokens.
        """
        if labels is None:
            raise ValueError("expected labels beside decoder_input_ids, got none")
        seen = None if mask is None else mask.bool()
        states, states_mask = encoded.states()
        logits = self.model.decoder(ids, states, self.attend, attention_mask=seen, states_mask=states_mask)
        return next_token_loss(logits, labels)


# Tables and learned vectors. The released exemption goes by name and lets all of them decay (specification 12).
_TABLES = ("position_embedding", "positional_embedding", "class_embedding", "cls_embedding", "latents")


def decays(name: str, ndim: int) -> bool:
    """Whether weight decay applies: not to biases, norms, position tables, class tokens and latents.

    Args:
        name: of a parameter, in Plait's layout or an official one.
        ndim: dimensions of the parameter.
    """
    return ndim > 1 and not any(part in name for part in _TABLES)


def layer_id(name: str) -> int:
    """Depth for layer-wise decay with no layers between the ends: 0 for the vision encoder, 1 for the rest.

    With a layer decay of 0.1 the vision encoder learns ten times slower: lr2 / lr1 of every released yaml, 2e-6 / 2e-5
    (specification 2).

    Args:
        name: of a parameter in Plait's layout, with or without `model.` in front.
    """
    return 0 if name.removeprefix("model.").startswith("vision.") else 1
