"""What mPLUG-2 does with one model: captions and answers, boxes, classes.

pictures | clips [+ question] -> states -> decoder -> beams | ranked answers         (the released tasks, images too)
picture + phrase              -> fused states -> start token -> cx -> cy -> w -> h                 (mPLUG's grounding)
pictures | clips | texts      -> class token of what the path ends with -> head -> labels

Sources: mPLUG-2 (arXiv 2302.00402), figure 1 and section 3.4; specification mPLUG-2, section 7. The heads of fused
tasks follow ALBEF (arXiv 2107.07651), section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import Seq2SeqLMOutput, SequenceClassifierOutput

from plait.generation import Hypothesis, RankedAnswers, beam_options, beam_search, rank_answers, score_sequences
from plait.models.mplug2.composition import Part, parts_of, path_of
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import CachedStep, Encoded, MPlug2Model, MPlug2PreTrainedModel, Teacher, follow, for_task
from plait.nn.contract import labels_shifted, outputs_for_transformers
from plait.objectives.captioning import IGNORED, next_token_loss
from plait.objectives.distillation import mix, soft_label_loss
from plait.objectives.grounding import boxes_to_tokens, coordinate_bias, coordinate_token_loss, tokens_to_boxes
from plait.objectives.scst import scst_loss

LENGTHS = {"caption": (4, 20), "answer": (1, 10)}
"""Fewest and most generated tokens per task, the end token included, as released."""

RANKED_AT_ONCE = 32
"""Candidate answers scored in one pass of the decoder."""


@labels_shifted
class MPlug2ForConditionalGeneration(MPlug2PreTrainedModel):
    """Captioning (no text input) and question answering (a question as input_ids), with one decoder.

    Example:
        >>> import torch
        >>> model = MPlug2ForConditionalGeneration(MPlug2Config.preset("tiny", task="caption")).eval()
        >>> ids = model.generate(torch.rand(2, 3, 12, 12), num_beams=2, max_length=5)
        >>> len(ids), int(ids[0, 0])
        (2, 101)

    Source: specification mPLUG-2, sections 7.1 and 7.2.
    """

    TASKS = ("caption", "answer")
    accepts_loss_kwargs = True

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
        """The path of captioning, or with input_ids that of answering; shapes as in `MPlug2Model.run`.

        network: by default the student's. Raises ValueError unless images, videos or texts alone are given.
        """
        is_text = input_ids is not None and pixel_values is None and pixel_values_videos is None
        medium = "text" if is_text else self.medium(pixel_values, pixel_values_videos)
        path = path_of("caption" if input_ids is None else "answer", medium)
        return (network or self.model).run(path, pixel_values, pixel_values_videos, input_ids, attention_mask)

    @outputs_for_transformers
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
        num_items_in_batch: Tensor | int | None = None,
    ) -> Seq2SeqLMOutput:
        """Next-token logits of texts about what is seen, and their loss.

        The loss of captions is the mean over tokens. That of answers is the weighted sum over texts
        of summed token losses, over the number of questions.

        Args:
            pixel_values, pixel_values_videos, input_ids, attention_mask: as `MPlug2Model.run`.
            decoder_input_ids, decoder_attention_mask: (texts, length) with start token.
            labels: (texts, length), not shifted, -100 = not supervised.
            answers_per_question: (batch,) texts of every item, in order, by default one each.
            answer_weights: (texts,), how many annotators gave the answer.
            alpha: weight of the teacher's soft labels (needs `config.distill`; `config.official`
                ignores it).
            num_items_in_batch: what either sum is divided by instead, so that parts of a batch, as Trainer
                accumulates them, add up to the whole.

        Raises:
            ValueError: without decoder_input_ids, and where texts and items do not fit.
        """
        if decoder_input_ids is None:
            raise ValueError("expected decoder_input_ids, got none; pass the texts, or call generate")
        texts = Texts(decoder_input_ids, decoder_attention_mask, answers_per_question)
        encoded = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask)
        logits = self._decode(self.model, encoded, texts)
        loss = None
        if labels is not None:
            reduction = "mean" if input_ids is None else "per_sample"  # as released: answers weigh by their sum
            loss = next_token_loss(logits, labels, reduction)
            # The released loop computes soft labels and never passes alpha on, so its teacher has no influence.
            if alpha and not self.config.official:
                soft = self.teacher_logits(pixel_values, pixel_values_videos, input_ids, attention_mask, *texts)
                soft = soft[:, :-1].softmax(-1)
                loss = mix(loss, soft_label_loss(logits[:, :-1], soft, labels[:, 1:], reduction), alpha)
            if input_ids is not None:
                loss = (loss if answer_weights is None else answer_weights * loss).sum()
                loss = loss / (len(input_ids) if num_items_in_batch is None else num_items_in_batch)
            elif num_items_in_batch is not None:
                loss = loss * (labels[:, 1:] != IGNORED).sum() / num_items_in_batch
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=encoded.states()[0])

    def _decode(self, network: MPlug2Model, encoded: Encoded, texts: Texts) -> Tensor:
        """Logits (texts, length, vocab). Raises ValueError unless every item has its texts."""
        states, states_mask = encoded.states()
        if texts.counts is not None:
            states = states.repeat_interleave(texts.counts, 0)
            states_mask = None if states_mask is None else states_mask.repeat_interleave(texts.counts, 0)
        if len(texts.ids) != len(states):
            raise ValueError(f"expected a text for each of {len(states)} items, got {len(texts.ids)}")
        seen = None if texts.mask is None else texts.mask.bool()
        return network.decoder(texts.ids, states, self.attend, attention_mask=seen, states_mask=states_mask)

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
        """Logits (texts, length, vocab) of the momentum copy; inputs as in `forward`.

        Raises ValueError for a model without a teacher.
        """
        teacher = self._teacher()
        encoded = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask, network=teacher)
        return self._decode(teacher, encoded, Texts(decoder_input_ids, decoder_attention_mask, answers_per_question))

    def grounder(self) -> MPlug2ForGrounding:
        """The same network, shared and not copied, as the class that finds boxes; the mode is this model's.

        Raises:
            ValueError: where the coordinate tokens reach beyond the vocabulary.
        """
        with torch.device("meta"):  # then given this network, so no second copy is ever allocated
            other = MPlug2ForGrounding(self.config.changed({"task": None, "modalities": ["image"]}))
        other.model = self.model
        return other.train(self.training)

    def _teacher(self) -> Teacher:
        """The teacher. Raises ValueError for a model without one."""
        if self.teacher is None:
            raise ValueError("expected a model with a teacher, got one without; load it with distill=True")
        return self.teacher

    def update_teacher(self, momentum: float | None = None) -> None:
        """Move the teacher towards the student; call it once per step.

        `config.official` leaves fusion behind, whose pair the released code forgot (specification
        9).
        momentum: the share that stays, by default `config.momentum`. Raises ValueError without a
        teacher.
        """
        leave = ("fusion",) if self.config.official else ()
        follow(self._teacher(), self.model, self.config.momentum if momentum is None else momentum, leave=leave)

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

        Args:
            encoded: of `encode`.
            num_beams, min_length, max_length: lengths of generated tokens, the end token included.
            num_return: best texts per item.
            prompt_ids: (tokens,) that every text begins with behind the start token; the released
                code feeds none.

        Returns:
            The hypotheses of every item, best first.
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

        Args:
            encoded: of `encode`, with gradient.
            reward: the texts found for every item -> (batch, num_beams), for instance their CIDEr.
            num_beams, min_length, max_length: of the search; all items have `num_beams` texts.

        Raises:
            ValueError: where the search finds fewer texts.
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
        # Searched without gradient, then scored again with it in one pass: the same loss for less memory.
        logits = self._decode(self.model, encoded, Texts(ids, written, counts))
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
        **others: Any,
    ) -> Tensor:
        """The best text per item.

        Args:
            pixel_values, pixel_values_videos, input_ids, attention_mask: as `MPlug2Model.run`.
            num_beams: texts kept side by side.
            min_length, max_length: of generated tokens with the end token; as released without them.
            prompt_ids: (tokens,) that every text begins with.
            others: of transformers, as `beam_options` takes them.

        Returns:
            Ids (batch, length) with start token, padded with the padding id.
        """
        encoded = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask)
        released = LENGTHS["caption" if input_ids is None else "answer"]
        num_beams, least, most = beam_options(released, num_beams, min_length, max_length, **others)
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

        Args:
            answer_ids, answer_mask: (answers, length) with start token.
            pixel_values, pixel_values_videos, input_ids, attention_mask: as `MPlug2Model.run`.
            k: how many are scored in full, by default all; the first token alone chooses them.

        Returns:
            Indices and probabilities of every item, best first.
        """
        states, mask = self.encode(pixel_values, pixel_values_videos, input_ids, attention_mask).states()
        decoder = self.model.decoder
        cross = decoder.cross_keys(states)
        # All answers begin with the same start token, so one step serves the whole list.
        start = answer_ids[:1, :1].expand(len(states), 1)
        # As released, the first token alone chooses the candidates, and counts twice in their score.
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


class Texts(NamedTuple):
    """What a decoder is given: texts, and whose they are.

    Attributes:
        ids: (texts, length) with start token.
        mask: (texts, length), which of them are real; None means all.
        counts: (items,) texts of each item, in order; None for one each.
    """

    ids: Tensor
    mask: Tensor | None
    counts: Tensor | None


class MPlug2ForGrounding(MPlug2PreTrainedModel):
    """Where a phrase is in an image: a decoder writes four coordinate tokens, cx, cy, w and h.

    Raises:
        ValueError: where the coordinate tokens reach beyond the vocabulary.

    Example:
        >>> import torch
        >>> model = MPlug2ForGrounding(MPlug2Config.preset("tiny")).eval()
        >>> model.ground(torch.rand(2, 3, 12, 12), torch.tensor([[101, 7, 102], [101, 8, 102]])).shape
        torch.Size([2, 4])

    Source: mPLUG's grounding as released (specification mPLUG-2, 7.3).
    """

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

    def _coordinates_only(self, logits: Tensor) -> Tensor:
        """Logits of everything but coordinates lowered by 10000, in training as in decoding."""
        # -10000 as released, a buffer of the official file, and not minus infinity.
        bias = coordinate_bias(self.config.vocab_size, self.config.grounding_bins, self.first_id)
        return logits.float() + bias.to(logits.device)

    @outputs_for_transformers
    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        boxes: Tensor | None = None,
    ) -> Seq2SeqLMOutput:
        """Logits of the coordinates of known boxes, and their loss (`coordinate_token_loss`).

        Args:
            pixel_values: (batch, 3, side, side).
            input_ids, attention_mask: (batch, tokens) of the phrases.
            boxes: (batch, 4) as (cx, cy, w, h), fractions of the sides.

        Returns:
            Loss, logits (batch, 4, vocab) and the states that the decoder read.

        Raises:
            ValueError: where one of the three is missing.
        """
        if pixel_values is None or input_ids is None or boxes is None:
            raise ValueError("expected pixel_values, input_ids and boxes, got some without; to find boxes, call ground")
        encoded = self.model.run(path_of("ground", "image"), pixel_values, None, input_ids, attention_mask)
        states, mask = encoded.states()
        tokens = boxes_to_tokens(boxes, self.config.grounding_bins, self.first_id)
        start = torch.full_like(tokens[:, :1], self.config.grounding_start_id)
        # Teacher forcing: position k reads the true coordinates before it and predicts coordinate k.
        given = torch.cat([start, tokens[:, :-1]], dim=1)
        logits = self._coordinates_only(self.model.decoder(given, states, self.attend, states_mask=mask))
        bins, official = self.config.grounding_bins, bool(self.config.official)
        loss = coordinate_token_loss(logits, tokens, boxes, bins, self.first_id, official=official)
        return Seq2SeqLMOutput(loss=loss, logits=logits, encoder_last_hidden_state=states)

    @torch.no_grad()
    def ground(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """The likeliest boxes, coordinate by coordinate, greedily as released.

        Args:
            pixel_values: (batch, 3, side, side).
            input_ids, attention_mask: (batch, tokens) of the phrases.

        Returns:
            (batch, 4) as (cx, cy, w, h), fractions of the sides.
        """
        encoded = self.model.run(path_of("ground", "image"), pixel_values, None, input_ids, attention_mask)
        states, mask = encoded.states()
        decoder = self.model.decoder
        step = CachedStep(decoder, decoder.cross_keys(states), self.attend, 4, mask)
        ids = torch.full((len(states), 1), self.config.grounding_start_id, device=states.device)
        for _ in range(4):
            ids = torch.cat([ids, self._coordinates_only(step(ids, None)).argmax(-1, keepdim=True)], dim=1)
        return tokens_to_boxes(ids[:, 1:], self.config.grounding_bins, self.first_id)


class MPlug2Classifier(MPlug2PreTrainedModel):
    """What the classifiers share: the network of the task, and a linear head on a class token."""

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(config)
        self.model = MPlug2Model(config, self.parts(config))
        self.classifier = self.heads(config)["classifier"]
        self.post_init()

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """See `MPlug2PreTrainedModel.heads`: a linear layer to `config.num_labels`."""
        return {"classifier": nn.Linear(config.dim, config.num_labels or 2)}

    def classify(self, states: Tensor, labels: Tensor | None) -> SequenceClassifierOutput:
        """Logits (batch, labels), and their loss where labels are given.

        states: (batch, dim); labels: (batch,) int64 for cross-entropy, or (batch, labels) float for
        several at once.
        """
        logits = self.classifier(states)
        if labels is None:
            return SequenceClassifierOutput(logits=logits)
        # As transformers tells the two kinds of labels apart: several at once come as floats.
        if labels.is_floating_point():
            loss = F.binary_cross_entropy_with_logits(logits.float(), labels.float())
        else:
            loss = F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=cast("torch.FloatTensor", loss), logits=logits)


class MPlug2ForImageClassification(MPlug2Classifier):
    """What an image shows: the class token behind the universal layers, without fusion (mPLUG-2, figure 1).

    Example:
        >>> import torch
        >>> model = MPlug2ForImageClassification(MPlug2Config.preset("tiny", num_labels=5))
        >>> model(torch.rand(2, 3, 12, 12)).logits.shape
        torch.Size([2, 5])
    """

    TASKS = ("classify",)
    MEDIA = ("image",)

    @outputs_for_transformers
    def forward(self, pixel_values: Tensor | None = None, labels: Tensor | None = None) -> SequenceClassifierOutput:
        """pixel_values: (batch, 3, side, side); labels: (batch,) -> logits (batch, labels) and their loss."""
        if pixel_values is None:
            raise ValueError("expected pixel_values, got none")
        return self.classify(self.model.see(pixel_values, path=path_of("classify", "image"))[:, 0], labels)


class MPlug2ForVideoClassification(MPlug2Classifier):
    """What happens in a video: as images, with the temporal modules (mPLUG-2, figure 1)."""

    TASKS = ("classify",)
    MEDIA = ("video",)

    @outputs_for_transformers
    def forward(
        self, pixel_values_videos: Tensor | None = None, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """pixel_values_videos: (batch, 3, frames, side, side); labels: (batch,) -> logits (batch, labels), loss."""
        if pixel_values_videos is None:
            raise ValueError("expected pixel_values_videos, got none")
        return self.classify(self.model.see(None, pixel_values_videos, path_of("classify", "video"))[:, 0], labels)


class MPlug2ForSequenceClassification(MPlug2Classifier):
    """A text, or two as one sequence (`classify`, the default), or a text with what is seen.

    `entail`: whether a text follows from an image or video; `compare`: what it says of
    `config.num_images` images. `config.task` picks one.

    Source: the heads of ALBEF (arXiv 2107.07651), section 4, behind mPLUG-2's layers.
    """

    TASKS = ("classify", "entail", "compare")

    @classmethod
    def parts(cls, config: MPlug2Config) -> frozenset[Part]:
        """See `MPlug2PreTrainedModel.parts`; a text alone needs no part of vision."""
        if config.task in (None, "classify"):
            return parts_of(("classify",), ("text",))
        return super().parts(config)

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """See `MPlug2PreTrainedModel.heads`.

        For fused states there is a hidden layer, and class tokens of several images stand side by
        side.
        """
        if config.task in (None, "classify"):
            return super().heads(config)
        count = config.num_images if config.task == "compare" else 1
        hidden = nn.Linear(count * config.dim, config.dim)
        return {"classifier": nn.Sequential(hidden, nn.ReLU(), nn.Linear(config.dim, config.num_labels or 2))}

    @outputs_for_transformers
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits (batch, labels) and their loss.

        Args:
            input_ids, attention_mask, token_type_ids: (batch, tokens).
            pixel_values: (batch, 3, side, side), of `compare` (batch, images, 3, side, side).
            pixel_values_videos: (batch, 3, frames, side, side).
            labels: (batch,) int64, or (batch, labels) float.

        Raises:
            ValueError: for inputs that the task lacks or has no use for.
        """
        task = self.config.task or "classify"
        if task != "compare":
            medium = "text" if task == "classify" else self.medium(pixel_values, pixel_values_videos)
            text = (input_ids, attention_mask, token_type_ids)
            encoded = self.model.run(path_of(task, medium), pixel_values, pixel_values_videos, *text)
            states = encoded.text if encoded.fused_text is None else encoded.fused_text
            assert states is not None
            return self.classify(states[:, 0], labels)
        count, path = self.config.num_images, path_of("compare", "image")
        if input_ids is None or pixel_values is None or pixel_values.dim() != 5 or pixel_values.shape[1] != count:
            shape = None if pixel_values is None else tuple(pixel_values.shape)
            raise ValueError(f"expected input_ids and pixel_values (batch, {count}, 3, side, side), got {shape}")
        vision = self.model.see(pixel_values.flatten(0, 1), path=path).unflatten(0, (-1, count))
        text, seen = self.model.read(input_ids, attention_mask, token_type_ids, path)
        # Read once and fused with each picture; the class tokens stand side by side: (batch, count * dim).
        fused = [self.model.fuse(text, seen, vision[:, i])[1][:, 0] for i in range(count)]
        return self.classify(torch.cat(fused, dim=-1), labels)
