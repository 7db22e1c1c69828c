"""Captions and answers: pictures or clips, with a question or without -> states -> decoder -> words.

The two released tasks of mPLUG-2, for images as well. Source: specification mPLUG-2, section 7.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import Seq2SeqLMOutput

from plait.generation import Hypothesis, RankedAnswers, beam_search, rank_answers, score_sequences
from plait.models.mplug2.composition import path
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.decoder import CachedStep
from plait.models.mplug2.model import Encoded, MPlug2Model, MPlug2PreTrainedModel
from plait.models.mplug2.momentum import Teacher, follow
from plait.objectives.captioning import IGNORED, next_token_loss
from plait.objectives.distillation import mix, soft_label_loss
from plait.objectives.scst import scst_loss

LENGTHS = {"caption": (4, 20), "answer": (1, 10)}
"""Fewest and most generated tokens per task, the end token included, as released."""

RANKED_AT_ONCE = 32
"""Candidate answers scored in one pass of the decoder."""


class MPlug2ForConditionalGeneration(MPlug2PreTrainedModel):
    """Captioning (no text input) and question answering (a question as input_ids), with one decoder."""

    TASKS = ("caption", "answer")

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(config)
        self.model = MPlug2Model(config, self.parts(config))
        self.teacher = Teacher(config, self.parts(config)) if config.distill else None
        self.post_init()
        if self.teacher is not None:
            follow(self.teacher, self.model, 0.0)  # a fresh teacher begins as its student

    def encode(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        network: MPlug2Model | None = None,
    ) -> Encoded:
        """The path of captioning, or with input_ids that of answering. network: default the student's."""
        way = path("caption" if input_ids is None else "answer", self.medium(pixel_values, pixel_values_videos))
        return (network or self.model).run(way, pixel_values, pixel_values_videos, input_ids, attention_mask)

    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        answers_per_question: Tensor | None = None,
        answer_weights: Tensor | None = None,
        alpha: float = 0.0,
        **_: object,
    ) -> Seq2SeqLMOutput:
        """Next-token logits of texts about what is seen, and their loss.

        decoder_input_ids: (texts, length) with start token; labels: (texts, length), not shifted, -100 = not
        supervised; answers_per_question: (batch,) texts of every item, in order, by default one each; answer_weights:
        (texts,). The loss of captions is the mean over tokens; of answers the weighted sum over texts of summed token
        losses, over the number of questions. alpha: weight of the teacher's soft labels (needs `config.distill`;
        `config.official` ignores it, as the released code does).
        """
        if decoder_input_ids is None:
            raise ValueError("expected decoder_input_ids, got none; pass the texts, or call generate")
        inputs = (pixel_values, pixel_values_videos, input_ids, attention_mask)
        texts = (decoder_input_ids, decoder_attention_mask, answers_per_question)
        encoded = self.encode(*inputs)
        logits = self._decode(self.model, encoded, *texts)
        loss = None
        if labels is not None:
            reduction = "mean" if input_ids is None else "per_sample"
            loss = next_token_loss(logits, labels, reduction)
            if alpha and not self.config.official:
                soft = self.teacher_logits(*inputs, *texts)[:, :-1].softmax(-1)
                loss = mix(loss, soft_label_loss(logits[:, :-1], soft, labels[:, 1:], reduction), alpha)
            if input_ids is not None:
                loss = (loss if answer_weights is None else answer_weights * loss).sum() / len(input_ids)
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=encoded.states()[0])

    def _decode(
        self,
        network: MPlug2Model,
        encoded: Encoded,
        ids: Tensor,
        mask: Tensor | None,
        counts: Tensor | None,
    ) -> Tensor:
        states, states_mask = encoded.states()
        if counts is not None:
            states = states.repeat_interleave(counts, 0)
            states_mask = None if states_mask is None else states_mask.repeat_interleave(counts, 0)
        if len(ids) != len(states):
            raise ValueError(f"expected a text for each of {len(states)} items, got {len(ids)}")
        mask = None if mask is None else mask.bool()
        return network.decoder(ids, states, self.attend, attention_mask=mask, states_mask=states_mask)

    @torch.no_grad()
    def teacher_logits(
        self,
        pixel_values: Tensor | None,
        pixel_values_videos: Tensor | None,
        input_ids: Tensor | None,
        attention_mask: Tensor | None,
        decoder_input_ids: Tensor,
        decoder_attention_mask: Tensor | None = None,
        answers_per_question: Tensor | None = None,
    ) -> Tensor:
        """Logits (texts, length, vocab) of the momentum copy. Raises ValueError for a model without one."""
        if self.teacher is None:
            raise ValueError("expected a model with a teacher, got one without; load it with distill=True")
        encoded = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask, network=self.teacher)
        return self._decode(self.teacher, encoded, decoder_input_ids, decoder_attention_mask, answers_per_question)

    def update_teacher(self, momentum: float | None = None) -> None:
        """Move the teacher towards the student; call it once per step. `config.official` leaves fusion behind."""
        if self.teacher is None:
            raise ValueError("expected a model with a teacher, got one without; load it with distill=True")
        leave = ("fusion",) if self.config.official else ()
        follow(self.teacher, self.model, self.config.momentum if momentum is None else momentum, leave=leave)

    @torch.no_grad()
    def search(
        self,
        encoded: Encoded,
        *,
        num_beams: int = 5,
        min_length: int = 1,
        max_length: int = 20,
        num_return: int = 1,
        prompt_ids: Tensor | None = None,
    ) -> list[list[Hypothesis]]:
        """Beam search over encoded items; see `plait.generation.beam_search`.

        prompt_ids: (tokens,) that every text begins with behind the start token; the released code feeds none.
        """
        states, mask = encoded.states()
        start = torch.full((len(states), 1), self.config.bos_token_id or 0, device=states.device)
        if prompt_ids is not None:
            start = torch.cat([start, prompt_ids.to(start).expand(len(start), -1)], dim=1)
        decoder = self.model.decoder
        step = CachedStep(decoder, decoder.cross_keys(states), self.attend, start.shape[1] + max_length, mask)
        assert self.config.eos_token_id is not None
        return beam_search(
            step,
            start,
            end_id=self.config.eos_token_id,
            num_beams=num_beams,
            min_length=min_length,
            max_length=max_length,
            num_return=num_return,
            official=bool(self.config.official),
        )

    def self_critical_loss(
        self,
        encoded: Encoded,
        reward: Callable[[list[list[Hypothesis]]], Tensor],
        *,
        num_beams: int = 5,
        min_length: int = 4,
        max_length: int = 20,
    ) -> Tensor:
        """Self-critical training of captions: texts that beat the other texts of their item become likelier.

        reward: the texts found for every item -> (batch, num_beams), for instance their CIDEr against references;
        all items have `num_beams` texts. Source: `plait.objectives.scst`.
        """
        found = self.search(
            encoded, num_beams=num_beams, num_return=num_beams, min_length=min_length, max_length=max_length
        )
        rows = [one.ids for item in found for one in item]
        if len(rows) != num_beams * len(found):
            raise ValueError(f"expected {num_beams} texts per item, got {[len(item) for item in found]}")
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id or 0)
        sizes = torch.tensor([len(row) for row in rows], device=ids.device)
        written = torch.arange(ids.shape[1], device=ids.device) < sizes[:, None]
        counts = torch.full((len(found),), num_beams, device=ids.device)
        logits = self._decode(self.model, encoded, ids, written, counts)
        written[:, 0] = False  # the start token was given
        scores = score_sequences(logits, ids, written).view(len(found), num_beams)
        return scst_loss(scores, reward(found).to(scores), sizes.view_as(scores), official=bool(self.config.official))

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        num_beams: int = 5,
        min_length: int | None = None,
        max_length: int | None = None,
        prompt_ids: Tensor | None = None,
    ) -> Tensor:
        """The best text per item as ids (batch, length) with start token, padded with the padding id.

        min_length, max_length: of generated tokens with the end token; by default as released for the task.
        """
        encoded = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask)
        least, most = LENGTHS["caption" if input_ids is None else "answer"]
        most = most if max_length is None else max_length
        least = min(least, most) if min_length is None else min_length
        found = self.search(encoded, num_beams=num_beams, min_length=least, max_length=most, prompt_ids=prompt_ids)
        rows = [hypotheses[0].ids for hypotheses in found]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id or 0)

    @torch.no_grad()
    def rank_answers(
        self,
        answer_ids: Tensor,
        answer_mask: Tensor,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        k: int | None = None,
    ) -> RankedAnswers:
        """Order the answers of a list by likelihood for every item, with a question or without.

        answer_ids, answer_mask: (answers, length) with start token; k: how many are scored in full, by default all.
        """
        states, mask = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask).states()
        decoder = self.model.decoder
        cross = decoder.cross_keys(states)
        start = answer_ids[:1, :1].expand(len(states), 1)
        first = decoder.logits(decoder.hidden(start, cross, self.attend, cross_mask=mask)[:, -1])
        seen = answer_mask.bool()
        labels = answer_ids.masked_fill(~seen, IGNORED)

        def losses(candidates: Tensor) -> Tensor:
            parts = []
            for some in candidates.split(RANKED_AT_ONCE, dim=1):
                rows = some.flatten()
                hidden = decoder.hidden(
                    answer_ids[rows], cross, self.attend, attention_mask=seen[rows], cross_mask=mask
                )
                parts.append(next_token_loss(decoder.logits(hidden), labels[rows], "per_sample").view_as(some))
            return torch.cat(parts, dim=1)

        official: Any = bool(self.config.official)
        return rank_answers(first, answer_ids, losses, k=k, official=official)
