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
from plait.models.mplug2.model import MPlug2Model, MPlug2PreTrainedModel, Teacher, follow, for_task
from plait.objectives.contrastive import contrastive_loss
from plait.objectives.distillation import update_teacher
from plait.objectives.matching import enqueue, hard_negatives, matching_loss, queue_contrast

NOT_SCORED = -100.0
"""Score of a pair that was not among the best candidates."""

EMPTY_ID = -100
"""Identity of a place in the queues that nothing filled: no pair has it, so it is never a positive."""
TEMPERATURES = (0.001, 0.5)
"""Bounds of the temperature in ALBEF (arXiv 2107.07651); mPLUG's release learns it without any."""
Gather = Callable[[Tensor], Tensor]
"""Rows of all processes from those of this one, without gradient."""


@dataclass
class AlignmentOutput(ModelOutput):
    """loss: contrast + matching; match_logits: (3 * batch, 2), positives first, then texts with a wrong picture, then
    wrong texts; negative_vision, negative_text: (batch,) whom each text and each picture was paired with."""

    loss: Tensor | None = None
    contrast_loss: Tensor | None = None
    match_loss: Tensor | None = None
    match_logits: Tensor | None = None
    vision_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    negative_vision: Tensor | None = None
    negative_text: Tensor | None = None


class Pairs(NamedTuple):
    """A batch of pictures or clips, each with its text; shapes as in `MPlug2Model`."""

    pixel_values: Tensor | None
    pixel_values_videos: Tensor | None
    input_ids: Tensor
    attention_mask: Tensor | None

    def encode(self, network: MPlug2Model) -> tuple[Tensor, Tensor, Tensor]:
        """Vision (batch, patches, dim) and text (batch, tokens, dim), apart, and which tokens are real."""
        path = path_of("retrieve", network.medium(self.pixel_values, self.pixel_values_videos))
        vision = network.see(self.pixel_values, self.pixel_values_videos, path)
        text, mask = network.read(self.input_ids, self.attention_mask, path=path)
        return vision, text, mask


class RetrievalScores(NamedTuple):
    """similarity: (visions, texts) cosines; vision_to_text: (visions, texts) and text_to_vision: (texts, visions),
    logits of a match, -100 for candidates that were too far away to be scored."""

    similarity: Tensor
    vision_to_text: Tensor
    text_to_vision: Tensor


class Alignment(nn.Module):
    """Projections, temperature and match head; with queues also momentum projections and what they filled.

    `config.queue_size` is 0 for a model that is not trained with queues: then neither they nor the momentum projections
    exist.
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
                self.register_buffer(name, F.normalize(torch.randn(projection_dim, queue_size), dim=0))
            self.register_buffer("id_queue", torch.full((1, queue_size), EMPTY_ID))
            self.register_buffer("queue_pointer", torch.zeros(1, dtype=torch.long))

    def embed(self, states: Tensor, kind: str, *, teacher: bool = False) -> Tensor:
        """states: (batch, seq, dim) -> unit vectors (batch, projection_dim) of the class token; kind: vision, text."""
        proj = getattr(self, f"{'teacher_' if teacher else ''}{kind}_proj")
        return F.normalize(proj(states[:, 0]), dim=-1)

    @torch.no_grad()
    def update_teacher(self, momentum: float) -> None:
        """Move the momentum projections towards the projections."""
        for kind in ("vision", "text"):
            slow, fast = getattr(self, f"teacher_{kind}_proj"), getattr(self, f"{kind}_proj")
            update_teacher(slow.parameters(), fast.parameters(), momentum)

    def enqueue(self, vision: Tensor, text: Tensor, ids: Tensor) -> None:
        """Put momentum features (batch, projection_dim) and identities (batch,) into the queues."""
        pointer = int(self.queue_pointer)
        enqueue(self.vision_queue, vision, pointer)
        enqueue(self.text_queue, text, pointer)
        self.queue_pointer[0] = enqueue(self.id_queue, ids, pointer)


class MPlug2AlignedModel(MPlug2PreTrainedModel):
    """What retrieval and pretraining share: the heads of alignment, their teacher and their losses."""

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(config)
        parts = self.parts(config)
        self.model = MPlug2Model(config, parts)
        self.alignment = Alignment(config)
        kept = parts - {"fusion", "decoder", "masked_lm"}  # the teacher gives class tokens, nothing else
        self.teacher = Teacher(config, kept) if config.queue_size else None

    def post_init(self) -> None:
        """A fresh teacher begins as its student."""
        super().post_init()
        if self.teacher is not None:
            self.update_teacher(0.0)

    @classmethod
    def heads(cls, config: MPlug2Config) -> dict[str, nn.Module]:
        """See `MPlug2PreTrainedModel.heads`."""
        return {"alignment": Alignment(config)}

    @property
    def modalities(self) -> tuple[str, ...]:
        """What has features in the shared space."""
        return ("text", *self.config.modalities)

    def temperature(self) -> Tensor:
        """Divisor of similarities, kept in ALBEF's bounds; `config.official` lets it go anywhere, as released."""
        learned = self.alignment.temperature_parameter
        return learned if self.config.official else learned.clamp(*TEMPERATURES)

    def update_teacher(self, momentum: float | None = None) -> None:
        """Move the teacher towards the student; call it before every training step. Momentum 0 copies.

        Raises ValueError for a model without one.
        """
        if self.teacher is None:
            raise ValueError("expected a model with a teacher, got one without; load it with queue_size=")
        momentum = self.config.momentum if momentum is None else momentum
        follow(self.teacher, self.model, momentum)
        self.alignment.update_teacher(momentum)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (batch, 3, side, side) -> unit vectors (batch, projection_dim)."""
        return self.alignment.embed(self.model.see(pixel_values, path=path_of("retrieve", "image")), "vision")

    def get_video_features(self, pixel_values_videos: Tensor) -> Tensor:
        """pixel_values_videos: (batch, 3, frames, side, side) -> unit vectors (batch, projection_dim)."""
        return self.alignment.embed(self.model.see(None, pixel_values_videos, path_of("retrieve", "video")), "vision")

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **_: object) -> Tensor:
        """input_ids: (batch, tokens) -> unit vectors (batch, projection_dim)."""
        states = self.model.read(input_ids, attention_mask, path=path_of("retrieve", "image"))[0]
        return self.alignment.embed(states, "text")

    def match(self, text: Tensor, text_mask: Tensor | None, vision: Tensor) -> Tensor:
        """Logits (pairs, 2) of pairs of encoded texts and pictures, class 1 = they match."""
        return self.alignment.match_head(self.model.fuse(text, text_mask, vision)[1][:, 0])

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

        encoded: what `pairs.encode(self.model)` gives, where that is known; the others as in
        `MPlug2ForRetrieval.forward`.
        """
        vision, text, mask = pairs.encode(self.model) if encoded is None else encoded
        a, b = self.alignment.embed(vision, "vision"), self.alignment.embed(text, "text")
        # Without ids every pair is its own identity.
        own, count = torch.arange(len(a), device=a.device) if ids is None else ids, len(a)
        if self.teacher is None:
            contrast = contrastive_loss(a, b, 1 / self.temperature(), ids=own).loss
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
            every = gather or (lambda rows: rows)  # queues hold what all processes saw; negatives below are local
            stored = torch.full_like(own, EMPTY_ID) if ids is None else ids  # without ids nobody's partner later
            heads.enqueue(every(slow_a), every(slow_b), every(stored))
        if not matching:
            return AlignmentOutput(loss=contrast, contrast_loss=contrast, vision_embeds=a, text_embeds=b)
        # Drawn in proportion to similarity to the current batch; pairs of one identity are never each other's negative.
        drawn = (None, None) if noise is None else noise.split(count)
        wrong_vision = hard_negatives(to_vision[:, :count].detach(), own, noise=drawn[0])
        wrong_text = hard_negatives(to_text[:, :count].detach(), own, noise=drawn[1])
        logits = self.match(
            torch.cat([text, text, text[wrong_text]]),
            torch.cat([mask, mask, mask[wrong_text]]),
            torch.cat([vision, vision[wrong_vision], vision]),
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
    """Text against pictures or clips: unit vectors to compare, and a match score for the best pairs.

    With `config.queue_size` it also has the teacher and queues of its training step.
    """

    TASKS = ("retrieve",)

    def __init__(self, config: MPlug2Config) -> None:
        super().__init__(for_task(config, "retrieve"))
        self.post_init()

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
        **_: object,
    ) -> AlignmentOutput:
        """The training step: contrast + matching of a batch of pairs (at least two identities).

        Shapes as in `MPlug2Model`. ids: (batch,) integers, equal for pairs of one picture; alpha: weight of the
        teacher's targets; gather: rows of all processes, for the queues; noise: (2 * batch,) uniform numbers that draw
        the negatives, first pictures for texts, then texts for pictures.
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
        """Similarities of all pairs, and match scores of the `k` nearest candidates of every query.

        add_similarity: the score is the match logit plus the similarity, as in mPLUG's zero-shot video retrieval.
        """
        if input_ids is None:
            raise ValueError("expected input_ids, got none; pass the texts")
        vision, text, mask = Pairs(pixel_values, pixel_values_videos, input_ids, attention_mask).encode(self.model)
        similarity = self.alignment.embed(vision, "vision") @ self.alignment.embed(text, "text").T
        to_text = torch.full_like(similarity, NOT_SCORED)
        for i, near in enumerate(similarity.topk(min(k, len(text)), dim=1).indices):
            pairs = self.match(text[near], mask[near], vision[i].expand(len(near), -1, -1))
            to_text[i, near] = pairs[:, 1] + (similarity[i, near] if add_similarity else 0)
        to_vision = torch.full_like(similarity.T, NOT_SCORED)
        for j, near in enumerate(similarity.T.topk(min(k, len(vision)), dim=1).indices):
            pairs = self.match(text[j].expand(len(near), -1, -1), mask[j].expand(len(near), -1), vision[near])
            to_vision[j, near] = pairs[:, 1] + (similarity[near, j] if add_similarity else 0)
        return RetrievalScores(similarity, to_text, to_vision)
