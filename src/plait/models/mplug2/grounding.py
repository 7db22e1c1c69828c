"""Visual grounding: a picture and a phrase -> fused states -> four coordinate tokens -> a box.

start token -> cx -> cy -> w -> h, each one of `bins + 1` ids behind the start token

Source: mPLUG's grounding as released (specification mPLUG-2, 7.3).
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput

from plait.models.mplug2.composition import path
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.decoder import CachedStep
from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel, for_task
from plait.objectives.grounding import boxes_to_tokens, coordinate_bias, coordinate_token_loss, tokens_to_boxes


class MPlug2ForGrounding(MPlug2PreTrainedModel):
    """Where a phrase is in a picture."""

    TASKS = ("ground",)
    MEDIA = ("text", "image")

    def __init__(self, config: MPlug2Config) -> None:
        config = for_task(config, "ground")
        super().__init__(config)
        last = config.grounding_start_id + config.grounding_bins + 1
        if last >= config.vocab_size:
            raise ValueError(
                f"expected coordinate tokens below vocab_size {config.vocab_size}, got ids up to {last}; "
                "lower grounding_bins or grounding_start_id"
            )
        self.model = MPlug2Model(config, self.parts(config))
        self.post_init()

    @property
    def first_id(self) -> int:
        """The id that stands for the coordinate 0."""
        return self.config.grounding_start_id + 1

    def _states(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        return self.model.run(path("ground", "image"), pixel_values, None, input_ids, attention_mask).states()

    def _coordinates_only(self, logits: Tensor) -> Tensor:
        bias = coordinate_bias(self.config.vocab_size, self.config.grounding_bins, self.first_id)
        return logits.float() + bias.to(logits.device)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boxes: Tensor | None = None,
        **_: object,
    ) -> Seq2SeqLMOutput:
        """Logits (batch, 4, vocab) of the coordinates of known boxes, and their loss.

        pixel_values: (batch, 3, side, side); input_ids: (batch, tokens) of the phrases; boxes: (batch, 4) as (cx, cy,
        w, h) in [0, 1]. The loss is `coordinate_token_loss`.
        """
        if pixel_values is None or input_ids is None or boxes is None:
            raise ValueError("expected pixel_values, input_ids and boxes, got some without; to find boxes, call ground")
        states, mask = self._states(pixel_values, input_ids, attention_mask)
        tokens = boxes_to_tokens(boxes, self.config.grounding_bins, self.first_id)
        start = torch.full_like(tokens[:, :1], self.config.grounding_start_id)
        given = torch.cat([start, tokens[:, :-1]], dim=1)
        logits = self._coordinates_only(self.model.decoder(given, states, self.attend, states_mask=mask))
        bins, official = self.config.grounding_bins, bool(self.config.official)
        loss = coordinate_token_loss(logits, tokens, boxes, bins, self.first_id, official=official)
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=states)

    @torch.no_grad()
    def ground(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The likeliest boxes, coordinate by coordinate: (batch, 4) as (cx, cy, w, h) in [0, 1]."""
        states, mask = self._states(pixel_values, input_ids, attention_mask)
        decoder = self.model.decoder
        step = CachedStep(decoder, decoder.cross_keys(states), self.attend, 4, mask)
        ids = torch.full((len(states), 1), self.config.grounding_start_id, device=states.device)
        for _ in range(4):
            ids = torch.cat([ids, self._coordinates_only(step(ids, None)).argmax(-1, keepdim=True)], dim=1)
        return tokens_to_boxes(ids[:, 1:], self.config.grounding_bins, self.first_id)
