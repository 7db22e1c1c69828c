"""Retrieval: class tokens of vision and text in one space, the best pairs fused and matched; its training step.

vision, text -> projections -> unit vectors -> queue contrast -> hard negatives -> fusion -> match head

Serves pictures (ITC, ITM) and clips (VTC, VTM) alike, in finetuning and in pretraining. Source: mPLUG (arXiv
2205.12005), section 3.3; mPLUG-2 (arXiv 2302.00402), section 3.4; specification mPLUG-2, 10.1 and 7.3.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.utils import ModelOutput

from plait.models.mplug2.composition import path_of
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import EMPTY_ID, MPlug2Model, MPlug2PreTrainedModel, Teacher, follow, for_task
from plait.nn.contract import outputs_for_transformers
from plait.objectives.contrastive import contrastive_loss
from plait.objectives.distillation import update_teacher
from plait.objectives.matching import enqueue, hard_negatives, matching_loss, queue_contrast

NOT_SCORED = -100.0
"""Score of a pair that was not among the best candidates."""

TEMPERATURES = (0.001, 0.5)
"""Bounds of the temperature in ALBEF (arXiv 2107.07651); mPLUG's release learns it without any."""
Gather = Callable[[Tensor], Tensor]
"""Rows of all processes from those of this one, without gradient."""


@dataclass
class AlignmentOutput(ModelOutput):
    """Losses of one batch of pairs, and what they were computed from.

    Attributes:
        loss: contrast plus matching, a scalar.
        contrast_loss, match_loss: its two summands; match_loss is None where matching was not asked
            for.
        match_logits: (3 * batch, 2), class 1 = match: true pairs, then texts with a wrong image or
            video, then images or videos with a wrong text.
        vision_embeds, text_embeds: (batch, projection_dim) unit vectors.
        negative_vision: (batch,) the row whose image or video each text was wrongly paired with.
        negative_text: (batch,) the row whose text each image or video was wrongly paired with.
    """

    loss: Tensor | None = None
    contrast_loss: Tensor | None = None
    match_loss: Tensor | None = None
    match_logits: Tensor | None = None
    vision_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    negative_vision: Tensor | None = None
    negative_text: Tensor | None = None


class Pairs(NamedTuple):
    """A batch of images or videos, each with its text; exactly one of the first two is given.

    Attributes:
        pixel_values: (batch, 3, side, side), or None.
        pixel_values_videos: (batch, 3, frames, side, side), or None.
        input_ids: (batch, tokens).
        attention_mask: (batch, tokens), 1 = real; None means all but padding.
    """

    pixel_values: Tensor | None
    pixel_values_videos: Tensor | None
    input_ids: Tensor
    attention_mask: Tensor | None

    def encode(self, network: MPlug2Model) -> tuple[Tensor, Tensor, Tensor]:
        """Both sides through their encoders and the universal layers, not yet fused.

        Args:
            network: the student's network or the teacher's.

        Returns:
            Vision (batch, 1 + patches, dim), text (batch, tokens, dim), and which tokens are real,
                (batch, tokens) bool.

        Raises:
            ValueError: unless exactly one of images and videos is given.
        """
        path = path_of("retrieve", network.medium(self.pixel_values, self.pixel_values_videos))
        vision = network.see(self.pixel_values, self.pixel_values_videos, path)
        text, mask = network.read(self.input_ids, self.attention_mask, path=path)
        return vision, text, mask


class RetrievalScores(NamedTuple):
    """What `MPlug2ForRetrieval.score` finds for every pair.

    Attributes:
        similarity: (visions, texts) cosines of the unit vectors.
        vision_to_text: (visions, texts) logits of a match, for ranking texts by image or video.
        text_to_vision: (texts, visions) likewise. Both hold -100 where a candidate was not scored.
    """

    similarity: Tensor
    vision_to_text: Tensor
    text_to_vision: Tensor


class Alignment(nn.Module):
    """Projections, temperature and match head; with queues also momentum projections and what they filled.

    `config.queue_size` is 0 for a model that is not trained with queues: then neither they nor the
    momentum projections exist.

    Source: mPLUG's retrieval as released (specification mPLUG-2, 10.1).
    """

    temperature_parameter: nn.Parameter
    vision_queue: Tensor
    text_queue: Tensor
    id_queue: Tensor
    queue_pointer: Tensor

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__()
        dim, projection_dim, queue_size = config.dim, config.projection_dim, config.queue_size
        self.vision_proj = nn.Linear(dim, projection_dim)
        self.text_proj = nn.Linear(dim, projection_dim)
        self.match_head = nn.Linear(dim, 2)
        self.temperature_parameter = nn.Parameter(torch.tensor(config.temperature_init))
        if queue_size:
            self.teacher_vision_proj = nn.Linear(dim, projection_dim)
            self.teacher_text_proj = nn.Linear(dim, projection_dim)
            for name in ("vision_queue", "text_queue"):
                # Random unit columns until they are overwritten, as released: negatives from the first step on.
                self.register_buffer(name, F.normalize(torch.randn(projection_dim, queue_size), dim=0))
            self.register_buffer("id_queue", torch.full((1, queue_size), EMPTY_ID))
            self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.long))

    def embed(self, states: Tensor, kind: str, *, teacher: bool = False) -> Tensor:
        """Class token of a sequence as a unit vector of the shared space.

        Args:
            states: (batch, seq, dim), class token first, as `Pairs.encode` gives them.
            kind: `vision` or `text`.
            teacher: whether the momentum projection is used; it exists with queues only.

        Returns:
            (batch, projection_dim), of length 1.
        """
        proj = getattr(self, f"{'teacher_' if teacher else ''}{kind}_proj")
        return F.normalize(proj(states[:, 0]), dim=-1)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the momentum projections towards the projections, in place.

        Args:
            momentum: the share that stays; 0 copies.
        """
        for kind in ("vision", "text"):
            slow, fast = getattr(self, f"teacher_{kind}_proj"), getattr(self, f"{kind}_proj")
            update_teacher(slow.parameters(), fast.parameters(), momentum)

    def enqueue(self, vision: Tensor, text: Tensor, ids: Tensor) -> None:
        """Overwrite the oldest columns of all three queues, and move the pointer on.

        Args:
            vision, text: (rows, projection_dim) momentum features, of all processes.
            ids: (rows,) int64, -100 for pairs that are nobody's partner later.

        Raises:
            ValueError: where the queue size is no multiple of the number of rows.
        """
        # One pointer for the three: a column of each queue belongs to the same pair.
        pointer = int(self.queue_pointer)
        enqueue(self.vision_queue, vision, pointer)
        enqueue(self.text_queue, text, pointer)
        self.queue_pointer[0] = enqueue(self.id_queue, ids, pointer)


class MPlug2AlignedModel(MPlug2PreTrainedModel):
    """What retrieval and pretraining share: the network, the heads of alignment, their teacher and their losses.

    With `config.queue_size` there is a `teacher`, a slow copy of what makes class tokens; else
    `teacher` is None.
    """

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(config)
        parts = self.parts(config)
        self.model = MPlug2Model(config, parts)
        self.alignment = Alignment(config)
        # the teacher gives class tokens, nothing else
        kept = parts - {"fusion", "decoder", "masked_lm"}
        self.teacher = Teacher(config, kept) if config.queue_size else None

    def post_init(self) -> None:
        """A fresh teacher begins as its student; loading a checkpoint overwrites it."""
        super().post_init()
        if self.teacher is not None:
            self.update_teacher(0.0)

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """See `MPlug2PreTrainedModel.heads`: projections, temperature, match head and queues."""
        return {"alignment": Alignment(config)}

    @property
    def modalities(self) -> tuple[str, ...]:
        """What has features in the shared space: text, and what `config.modalities` names."""
        return ("text", *self.config.modalities)

    def temperature(self) -> Tensor:
        """Divisor of similarities, a scalar with gradient.

        It is kept in ALBEF's bounds, 0.001 to 0.5; with `config.official` it goes anywhere, as
        released.
        """
        learned = self.alignment.temperature_parameter
        return learned if self.config.official else learned.clamp(*TEMPERATURES)

    def update_teacher(self, momentum: float | None = None) -> None:
        """Move the teacher and its projections towards the student; call it before every training step.

        Args:
            momentum: the share that stays, by default `config.momentum`; 0 copies.

        Raises:
            ValueError: for a model without a teacher.
        """
        if self.teacher is None:
            raise ValueError("expected a model with a teacher, got one without; load it with queue_size=")
        momentum = self.config.momentum if momentum is None else momentum
        follow(self.teacher, self.model, momentum)
        self.alignment.update_teacher(momentum)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Unit vectors of images.

        Args:
            pixel_values: (batch, 3, side, side), as `MPlug2Processor` makes them.

        Returns:
            (batch, projection_dim), of length 1; dot products with text features are cosines.

        Raises:
            ValueError: for a model without the image modality.
        """
        return self.alignment.embed(self.model.see(pixel_values, path=path_of("retrieve", "image")), "vision")

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """Unit vectors of videos.

        Args:
            pixel_values_videos: (batch, 3, frames, side, side).

        Returns:
            (batch, projection_dim), of length 1.

        Raises:
            ValueError: for a model without the video modality.
        """
        return self.alignment.embed(self.model.see(None, pixel_values_videos, path_of("retrieve", "video")), "vision")

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Unit vectors of texts, in the space of images and videos.

        Args:
            input_ids: (batch, tokens).
            attention_mask: (batch, tokens), 1 = real; by default all but padding.

        Returns:
            (batch, projection_dim), of length 1.
        """
        # A text takes the same steps beside either medium, so the cell of images stands for both.
        states = self.model.read(input_ids, attention_mask, path=path_of("retrieve", "image"))[0]
        return self.alignment.embed(states, "text")

    def match(self, text: Tensor, text_mask: Tensor | None, vision: Tensor, seen: Tensor | None = None) -> Tensor:
        """Whether texts fit images or videos as the fusion module sees them, row by row.

        Args:
            text: (pairs, tokens, dim) behind the universal layers.
            text_mask: (pairs, tokens) bool, True = attend; None means all.
            vision: (pairs, 1 + patches, dim) behind the universal layers; (1, ...) where all texts are held against
                the same.
            seen: (pairs,) which row of vision each text is held against, where those are others.

        Returns:
            Logits (pairs, 2), class 1 = they match.
        """
        return self.alignment.match_head(self.model.fuse(text, text_mask, vision, seen)[1][:, 0])

    def fit(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
    ) -> Tensor:
        """How probable it is that texts fit images or videos, row by row.

        Args:
            input_ids, attention_mask: (pairs, tokens).
            pixel_values: (pairs, 3, side, side), or
            pixel_values_videos: (pairs, 3, frames, side, side).

        Returns:
            (pairs,) probability of class 1 of the matching head.
        """
        vision, text, mask = Pairs(pixel_values, pixel_values_videos, input_ids, attention_mask).encode(self.model)
        return self.match(text, mask, vision).float().softmax(-1)[:, 1]

    def align(
        self,
        pairs: Pairs,
        encoded: tuple[Tensor, Tensor, Tensor] | None = None,
        *,
        ids: Tensor | None = None,
        alpha: float = 0.0,
        gather: Gather | None = None,
        noise: Tensor | None = None,
        matching: bool = True,
    ) -> AlignmentOutput:
        """Contrast and, if wanted, matching of a batch of pairs.

        Args:
            pairs: images or videos with their texts.
            encoded: what `pairs.encode(self.model)` gives, where that is known already.
            ids, alpha, gather, noise: as in `MPlug2ForRetrieval.forward`.
            matching: whether hard negatives are drawn and matched.

        Raises:
            ValueError: for a batch of one identity, and for queues of no multiple of the batch.
        """
        vision, text, mask = pairs.encode(self.model) if encoded is None else encoded
        a, b = self.alignment.embed(vision, "vision"), self.alignment.embed(text, "text")
        # Without ids every pair is its own identity.
        own, count = torch.arange(len(a), device=a.device) if ids is None else ids, len(a)
        if self.teacher is None:
            contrast = contrastive_loss(a, b, 1 / self.temperature(), ids=own).loss
            # Only draws the negatives below, so neither features nor temperature get a gradient from it.
            to_text = a.detach() @ b.detach().T / self.temperature().detach()
            to_vision = to_text.T
        else:
            heads = self.alignment
            with torch.no_grad():
                seen, written, _ = pairs.encode(self.teacher)
                slow_a, slow_b = heads.embed(seen, "vision", teacher=True), heads.embed(written, "text", teacher=True)
            found = queue_contrast(
                a,
                b,
                slow_a,
                slow_b,
                heads.vision_queue.clone(),  # a copy, since `enqueue` below writes into what the gradient will read
                heads.text_queue.clone(),
                self.temperature(),
                ids=own,
                queue_ids=heads.id_queue[0].clone(),
                alpha=alpha,
            )
            contrast, to_text, to_vision = found.loss, found.vision_to_text, found.text_to_vision
            # queues hold what all processes saw; negatives below are local
            every = gather or (lambda rows: rows)
            stored = torch.full_like(own, EMPTY_ID) if ids is None else ids  # without ids nobody's partner later
            heads.enqueue(every(slow_a), every(slow_b), every(stored))
        if not matching:
            return AlignmentOutput(loss=contrast, contrast_loss=contrast, vision_embeds=a, text_embeds=b)
        # Drawn in proportion to similarity to the current batch; pairs of one identity are never each other's negative.
        drawn = (None, None) if noise is None else noise.split(count)
        # The first `count` columns are the current batch; the queues behind them hold no states to fuse.
        wrong_vision = hard_negatives(to_vision[:, :count].detach(), own, noise=drawn[0])
        wrong_text = hard_negatives(to_text[:, :count].detach(), own, noise=drawn[1])
        # Three blocks of the batch: true pairs, wrong images, wrong texts; `matching_loss` counts
        # on true pairs first.
        right = torch.arange(count, device=vision.device)
        logits = self.match(
            torch.cat([text, text, text[wrong_text]]),
            torch.cat([mask, mask, mask[wrong_text]]),
            vision,
            torch.cat([right, wrong_vision, right]),
        )
        match = matching_loss(logits, count)
        return AlignmentOutput(
            loss=contrast + match,
            contrast_loss=contrast,
            match_loss=match,
            match_logits=logits,
            vision_embeds=a,
            text_embeds=b,
            negative_vision=wrong_vision,
            negative_text=wrong_text,
        )


class MPlug2ForRetrieval(MPlug2AlignedModel):
    """Text against images or videos: unit vectors to compare, and a match score for the best pairs.

    With `config.queue_size` it also has the teacher and queues of its training step.

    Args:
        config: its `task` is None or `retrieve`.

    Raises:
        ValueError: for another task.

    Example:
        >>> import torch
        >>> model = MPlug2ForRetrieval(MPlug2Config.preset("tiny")).eval()
        >>> images, texts = torch.rand(2, 3, 12, 12), torch.tensor([[101, 7, 102], [101, 8, 102]])
        >>> model.get_image_features(images).shape
        torch.Size([2, 6])
        >>> model.score(images, input_ids=texts, k=1).vision_to_text.shape
        torch.Size([2, 2])

    Source: mPLUG (arXiv 2205.12005), section 3.3, and ALBEF (arXiv 2107.07651), whose step the
    release follows.
    """

    TASKS = ("retrieve",)

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(for_task(config, "retrieve"))
        self.post_init()

    @outputs_for_transformers
    def forward(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        ids: Tensor | None = None,
        alpha: float = 0.0,
        gather: Gather | None = None,
        noise: Tensor | None = None,
    ) -> AlignmentOutput:
        """The training step: contrast + matching of a batch of pairs (at least two identities).

        With a teacher call `update_teacher` before it, as released.

        Args:
            pixel_values: (batch, 3, side, side), or
            pixel_values_videos: (batch, 3, frames, side, side); exactly one of the two.
            input_ids: (batch, tokens) of the texts.
            attention_mask: (batch, tokens), 1 = real; by default all but padding.
            ids: (batch,) integers, equal for pairs that show one thing; by default all pairs
                differ.
            alpha: weight of the teacher's soft targets, 0 to 1; without a teacher nothing reads it.
            gather: (batch, ...) -> rows of all processes without gradient, for the queues.
            noise: (2 * batch,) uniform numbers that draw the negatives, first images or videos for
                texts, then texts.

        Returns:
            An `AlignmentOutput` with all fields.

        Raises:
            ValueError: without texts, without exactly one of images and videos, for one identity
                alone, and for queues of no multiple of the batch.
        """
        if input_ids is None:
            raise ValueError("expected input_ids, got none; pass the texts of the pairs")
        pairs = Pairs(pixel_values, pixel_values_videos, input_ids, attention_mask)
        return self.align(pairs, ids=ids, alpha=alpha, gather=gather, noise=noise)

    @torch.no_grad()
    def score(
        self,
        pixel_values: Tensor | None = None,
        pixel_values_videos: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        *,
        k: int = 128,
        add_similarity: bool = False,
    ) -> RetrievalScores:
        """Similarities of all pairs, and match scores of the nearest candidates of every query.

        Args:
            pixel_values: (visions, 3, side, side), or
            pixel_values_videos: (visions, 3, frames, side, side).
            input_ids, attention_mask: (texts, tokens).
            k: candidates per query that are fused and matched; 128 as in the released settings.
            add_similarity: the score is the match logit plus the similarity, as in mPLUG's
                zero-shot video retrieval.

        Returns:
            `RetrievalScores`, with -100 for pairs that are not among the nearest.

        Raises:
            ValueError: without texts, or without exactly one of images and videos.
        """
        if input_ids is None:
            raise ValueError("expected input_ids, got none; pass the texts")
        vision, text, mask = Pairs(pixel_values, pixel_values_videos, input_ids, attention_mask).encode(self.model)
        similarity = self.alignment.embed(vision, "vision") @ self.alignment.embed(text, "text").T
        to_text = torch.full_like(similarity, NOT_SCORED)
        to_vision = torch.full_like(similarity.T, NOT_SCORED)
        wanted_texts, wanted_visions = (
            torch.zeros_like(similarity, dtype=torch.bool),
            torch.zeros_like(similarity, dtype=torch.bool),
        )
        wanted_texts.scatter_(1, similarity.topk(min(k, len(text)), dim=1).indices, True)
        wanted_visions.scatter_(0, similarity.topk(min(k, len(vision)), dim=0).indices, True)
        # An image or clip at a time, whose keys are made once for all texts; a pair that both directions want is
        # matched once. At most k pairs are fused together, which bounds memory.
        for i, wanted in enumerate(wanted_texts | wanted_visions):
            for near in wanted.nonzero()[:, 0].split(k):
                found = self.match(text[near], mask[near], vision[i : i + 1])[:, 1]
                found = found + similarity[i, near] if add_similarity else found
                to_text[i, near] = torch.where(wanted_texts[i, near], found, NOT_SCORED)
                to_vision[near, i] = torch.where(wanted_visions[i, near], found, NOT_SCORED)
        return RetrievalScores(similarity, to_text, to_vision)
