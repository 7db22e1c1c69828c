"""Classifiers: the class token of what a path ends with -> head -> labels.

pictures, clips: vision -> universal -> head;  texts: text -> universal -> head;
entailment, several pictures (NLVR2): vision, text -> universal -> fusion -> head

Source: figure 1 of mPLUG-2 (arXiv 2302.00402); the heads of fused tasks follow ALBEF (arXiv 2107.07651), section 4.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from plait.models.mplug2.composition import Part, parts_of, path
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel


class MPlug2Classifier(MPlug2PreTrainedModel):
    """What the classifiers share."""

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(config)
        self.model = MPlug2Model(config, self.parts(config))
        self.classifier = self.heads(config)["classifier"]
        self.post_init()

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """See `MPlug2PreTrainedModel.heads`."""
        return {"classifier": nn.Linear(config.dim, config.num_labels or 2)}

    def classify(self, states: Tensor, labels: Tensor | None) -> SequenceClassifierOutput:
        """states: (batch, dim); labels: (batch,) int64, or (batch, labels) float for several at once."""
        logits = self.classifier(states)
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        if labels.is_floating_point():
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        else:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=cast("torch.FloatTensor", loss), logits=logits)


class MPlug2ForImageClassification(MPlug2Classifier):
    """What a picture shows."""

    TASKS = ("classify",)
    MEDIA = ("image",)

    def forward(
        self, pixel_values: Tensor | None = None, labels: Tensor | None = None, **_: object
    ) -> SequenceClassifierOutput:
        """pixel_values: (batch, 3, side, side); labels: (batch,) -> logits (batch, labels) and their loss."""
        if pixel_values is None:
            raise ValueError("expected pixel_values, got none")
        return self.classify(self.model.see(pixel_values, way=path("classify", "image"))[:, 0], labels)


class MPlug2ForVideoClassification(MPlug2Classifier):
    """What happens in a clip."""

    TASKS = ("classify",)
    MEDIA = ("video",)

    def forward(
        self, pixel_values_videos: Tensor | None = None, labels: Tensor | None = None, **_: object
    ) -> SequenceClassifierOutput:
        """pixel_values_videos: (batch, 3, frames, side, side); labels: (batch,) -> logits (batch, labels), loss."""
        if pixel_values_videos is None:
            raise ValueError("expected pixel_values_videos, got none")
        return self.classify(self.model.see(None, pixel_values_videos, path("classify", "video"))[:, 0], labels)


class MPlug2ForSequenceClassification(MPlug2Classifier):
    """A text, or two as one sequence (`classify`, the default); whether a text follows from a picture or clip
    (`entail`); what it says of `config.num_images` pictures (`compare`). `config.task` picks one."""

    TASKS = ("classify", "entail", "compare")

    @classmethod
    def parts(cls, config: MPlug2Config) -> frozenset[Part]:
        """See `MPlug2PreTrainedModel.parts`."""
        if config.task in (None, "classify"):
            return parts_of(("classify",), ("text",))
        return super().parts(config)

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """See `MPlug2PreTrainedModel.heads`; pictures side by side, and a hidden layer for fused states."""
        if config.task in (None, "classify"):
            return super().heads(config)
        count = config.num_images if config.task == "compare" else 1
        hidden = nn.Linear(count * config.dim, config.dim)
        return {"classifier": nn.Sequential(hidden, nn.ReLU(), nn.Linear(config.dim, config.num_labels or 2))}

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        labels: Tensor | None = None,
        **_: object,
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels) and their loss.

        input_ids, token_type_ids: (batch, tokens); pixel_values: (batch, 3, side, side), of `compare` (batch, images,
        3, side, side); pixel_values_videos: (batch, 3, frames, side, side); labels: (batch,).
        """
        task = self.config.task or "classify"
        text = (input_ids, attention_mask, token_type_ids)
        if task == "compare":
            return self.classify(self._compared(pixel_values, *text), labels)
        medium = "text" if task == "classify" else self.medium(pixel_values, pixel_values_videos)
        encoded = self.model.run(path(task, medium), pixel_values, pixel_values_videos, *text)
        states = encoded.text if encoded.fused_text is None else encoded.fused_text
        assert states is not None
        return self.classify(states[:, 0], labels)

    def _compared(
        self, pixel_values: Tensor | None, input_ids: Tensor | None, mask: Tensor | None, types: Tensor | None
    ) -> Tensor:
        """Fused class tokens of the text with each picture, side by side: (batch, images * dim)."""
        count = self.config.num_images
        if input_ids is None or pixel_values is None or pixel_values.dim() != 5 or pixel_values.shape[1] != count:
            shape = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(f"expected input_ids and pixel_values (batch, {count}, 3, side, side), got {shape}")
        way = path("compare", "image")
        vision = self.model.see(pixel_values.flatten(0, 1), way=way).unflatten(0, (-1, count))
        text, seen = self.model.read(input_ids, mask, types, way)
        fused = [self.model.fuse(text, seen, vision[:, i])[1][:, 0] for i in range(count)]
        return torch.cat(fused, dim=-1)
