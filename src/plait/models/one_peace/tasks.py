"""ONE-PEACE heads: what the features of one pass are used for (arXiv 2305.11172, section 4; specification 2.8).

features of a pass -> attention pooling (or CLS) -> [pooler] -> [second image's features] -> classifier -> logits
decoded items -> processor -> head | shared space -> classes, answers, boxes                              (the skills)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from plait.generation.asking import Asking
from plait.generation.deciding import DecidingSkills, best_first, named_labels
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel, by_modality
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.nn.contract import outputs_for_transformers
from plait.types import Capability, QuestionKind


class AttentionPooling(nn.Module):
    """One learned query over the units of a sequence; its scores are not scaled.

    Args:
        dim, num_heads: of the trunk.

    Source: specification ONE-PEACE, section 2.8.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.zeros(1, 1, num_heads, dim // num_heads))
        # Keys without a bias, as in the trunk: it would shift all scores of a query alike.
        self.k_proj = nn.Linear(dim, dim, bias=False)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """A sequence as one vector.

        Args:
            x: (batch, seq, dim), without CLS.
            mask: (batch, seq) bool, True = real; None means all.

        Returns:
            (batch, dim).
        """
        heads = self.query.shape[2]
        k = self.k_proj(x).unflatten(-1, (heads, -1))  # (batch, seq, heads, head_dim)
        v = self.v_proj(x).unflatten(-1, (heads, -1))
        # float32 for the softmax, whatever the model runs in; no 1 / sqrt(head_dim), as released.
        scores = (k * self.query).sum(-1).float()  # (batch, seq, heads)
        if mask is not None:
            # The lowest finite number, not minus infinity: a row of padding alone would give NaN.
            scores = scores.masked_fill(~mask[..., None], torch.finfo(scores.dtype).min)
        pooled = (scores.softmax(dim=1).to(v.dtype)[..., None] * v).sum(dim=1)
        return self.out_proj(pooled.flatten(1))


class ClassificationHead(nn.Module):
    """Pooling, optional pooler and a two-layer classifier of inner width dim * head_scale_ratio.

    Args:
        config: its head fields; `use_two_images` doubles the input of the classifier.

    Source: specification ONE-PEACE, section 2.8. The pooler is for VQA alone.
    """

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__()
        dim, inner = config.dim, int(config.dim * config.head_scale_ratio)
        self.pool = AttentionPooling(dim, config.num_heads) if config.pool_attention else None
        self.norm = nn.LayerNorm(dim)  # published files carry it also where CLS is used as it is
        self.pooler = nn.Linear(dim, dim) if config.use_pooler else None
        self.classifier = nn.Sequential(
            nn.Linear(2 * dim if config.use_two_images else dim, inner),
            nn.LayerNorm(inner),
            nn.GELU(),
            nn.Linear(inner, config.num_classes),
        )

    def pooled(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """All units but CLS as one vector, or CLS where pooling is off.

        Args:
            features: (batch, 1 + units, dim) of one modality.
            mask: (batch, 1 + units) bool, True = real; None means all.

        Returns:
            (batch, dim).
        """
        if self.pool is None:
            # Without the norm that the other branch has, as released (specification 10, quirk 11).
            x = features[:, 0]
        else:
            x = self.norm(self.pool(features[:, 1:], None if mask is None else mask[:, 1:]))
        return x if self.pooler is None else torch.tanh(self.pooler(x))


class OnePeaceForClassification(OnePeacePreTrainedModel):
    """Text, image, audio or pairs of them -> `num_classes` logits: VQA, NLVR2, AQA, FSD50K, VGGSound, grounding.

    Grounding reads `logits.sigmoid()` as a box (x1, y1, x2, y2) in parts of the image's sides.

    Args:
        config: `num_classes` and the other head fields.

    Raises:
        ValueError: without `num_classes`.

    Example:
        >>> import torch
        >>> config = OnePeaceConfig.preset("nano", modalities=["image"], num_classes=3)
        >>> OnePeaceForClassification(config)(pixel_values=torch.rand(2, 3, 64, 64))["logits"].shape
        torch.Size([2, 3])

    Source: ONE-PEACE (arXiv 2305.11172), section 4; specification ONE-PEACE, sections 2.8 and 7.
    """

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__(config)
        if not config.num_classes:
            raise ValueError("expected config.num_classes for a classification model, got 0")
        self.model = OnePeaceModel(config)
        self.head = ClassificationHead(config)
        self.post_init()

    def pool(self, inputs: Mapping[str, Tensor | Mapping[str, Any]]) -> Tensor:
        """One pass of the encoder, pooled over the modality that the head reads.

        Args:
            inputs: as in `OnePeaceModel.encode`.

        Returns:
            (batch, dim).

        Raises:
            ValueError: as `OnePeaceModel.encode`.
        """
        encoded = self.model.encode(inputs)
        # Text comes first in every joint pass, and is what all pairs but RefCOCO(+) pool.
        modality = self.config.pool_modality or next(iter(encoded.features))
        return self.head.pooled(encoded.features[modality], encoded.masks[modality])

    @outputs_for_transformers
    def forward(
        self,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        second_pixel_values: Tensor | None = None,
        attention_mask: Tensor | None = None,
        audio_attention_mask: Tensor | None = None,
        frame_mask: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> SequenceClassifierOutput:
        """Logits of one pass, or of two where the model compares two images.

        Args:
            input_ids, attention_mask: (batch, tokens).
            pixel_values, second_pixel_values: (batch, 3, side, side).
            input_values: (batch, samples).
            audio_attention_mask: (batch, samples), 1 = real, or
            frame_mask: (batch, frames) bool, True = real.
            labels: (batch,) class numbers, or (batch, num_classes) soft targets.

        Returns:
            Logits (batch, num_classes), and the mean cross-entropy where labels are given.

        Raises:
            ValueError: without a second image where the model takes two, and as
                `OnePeaceModel.encode`.
        """
        if input_ids is None and audio_attention_mask is None:  # alone, sounds have the mask by its usual name
            audio_attention_mask = attention_mask
        if audio_attention_mask is not None:
            frame_mask = self.model.frame_mask(audio_attention_mask)
        pooled = self.pool(by_modality(input_ids, pixel_values, input_values, attention_mask, frame_mask))
        if self.config.use_two_images:
            if second_pixel_values is None:
                raise ValueError("expected second_pixel_values for a model of two images, got none")
            # NLVR2: the text is read again beside the second picture, which both type vectors mark.
            other = {"pixel_values": second_pixel_values, "is_second": True}
            second = self.pool({**by_modality(input_ids, attention_mask=attention_mask), "image": other})
            pooled = torch.cat([pooled, second], dim=-1)
        logits = self.head.classifier(pooled)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        return SequenceClassifierOutput(loss=cast("torch.FloatTensor | None", loss), logits=logits)


class _Prepares:
    """What all skills of ONE-PEACE share: how items and texts become inputs of the model."""

    model: Any
    processor: OnePeaceProcessor
    num_images = 1

    @property
    def sampling_rate(self) -> int:
        """Of the sounds that it hears, in Hz."""
        return self.processor.sampling_rate

    def prepare(self, kind: str, value: Any) -> Any:
        """Pixels (3, side, side), or (images, 3, side, side) of several; a sound (samples,) and a text stay."""
        if kind != "image":
            return value
        pixels = self.processor(images=value)["pixel_values"]
        return pixels if self.num_images > 1 else pixels[0]

    def choice(self, question: str, choice: str) -> str:
        """As AVQA was trained (specification ONE-PEACE, section 5.4); `read` puts the space in front."""
        return f"{question} answer: {choice}"

    def check_text(self, text: str) -> None:
        """Texts are cut at 70 pieces, as published: none is too long."""

    def read(self, kind: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """Texts, alone or beside items of a kind, as ids and mask."""
        return self.processor.tokenize(texts)

    def inputs(self, kind: str, prepared: Sequence[Any], words: Sequence[str] | None = None) -> dict[str, Tensor]:
        """Prepared items of one kind, with words beside them, as the model takes them, on its device."""
        found: dict[str, Tensor] = {}
        texts = prepared if kind == "text" else words
        if texts is not None:
            found |= self.read(kind, [text.strip() for text in texts])
        if kind == "image":
            pixels = torch.stack(list(prepared))
            found |= {"pixel_values": pixels} if self.num_images == 1 else {
                "pixel_values": pixels[:, 0], "second_pixel_values": pixels[:, 1]
            }  # fmt: skip
        elif kind == "audio":
            heard = self.processor.feature_extractor(list(prepared), self.processor.sampling_rate)
            found |= {"input_values": heard["input_values"], "audio_attention_mask": heard["audio_attention_mask"]}
        first = next(self.model.parameters())
        return {k: v.to(first.device, first.dtype if v.is_floating_point() else None) for k, v in found.items()}


PHRASES = {"text": "{label}", "image": "a photo of a {label}.", "audio": "This is a sound of {label}"}
"""The sentence around a label that an item is compared with; that of sounds is published, for ESC-50."""


class OnePeaceSkills(_Prepares, Asking):
    """A model that embeds: items are compared with labels as sentences; see `plait.types.Skills`."""

    tasks = frozenset({"classify"})
    capabilities: tuple[Capability, ...] = ("embed",)
    labels: tuple[str, ...] = ()

    def __init__(self, model: Any, processor: OnePeaceProcessor) -> None:
        self.model, self.processor = model, processor
        self.kinds = frozenset(model.config.modalities) & {"text", "image", "audio"}

    def classify(
        self, kind: str, prepared: Sequence[Any], labels: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """Labels by their similarity to each item, best first. Raises ValueError for none."""
        if labels is None:
            raise ValueError("expected labels to choose from for a ONE-PEACE that embeds, got none; give some")
        inputs = self.inputs(kind, prepared)
        if kind == "audio":
            inputs["attention_mask"] = inputs.pop("audio_attention_mask")
        features = getattr(self.model, f"get_{kind}_features")(**inputs)
        sentences = [PHRASES[kind].format(label=label) for label in labels]
        texts = self.model.get_text_features(**self.inputs("text", sentences))
        return best_first((features @ texts.T * self.model.logit_scale.exp()).float().softmax(-1), labels)


class OnePeaceHeadSkills(_Prepares, DecidingSkills):
    """A model with a head: answers, statements about two images, tags and classes of audio, choices, boxes."""

    released: Mapping[QuestionKind, tuple[str, ...]] = MappingProxyType({"statement": ("True", "False")})
    """NLVR2's classes (specification 5.4)."""

    def __init__(self, model: Any, processor: OnePeaceProcessor) -> None:
        self.model, self.processor = model, processor
        config = model.config
        self.kinds = frozenset(config.modalities) & {"text", "image", "audio"}
        self.labels = named_labels(config)
        self.is_multi_label = config.problem_type == "multi_label_classification"
        self.num_images = 2 if config.use_two_images else 1
        # released heads over pairs pool text; a finetuned one over texts alone says what problem it solves
        is_alone = config.pool_modality in ("image", "audio") or config.problem_type == "single_label_classification"
        alone = config.pool_modality if is_alone else None
        # nothing else tells a grounding head apart: one of four classes without names, which reads text
        if config.num_classes == BOX and not self.labels and "text" in self.kinds and self.num_images == 1:
            self.tasks, self.kinds = frozenset({"ground"}), self.kinds & {"image"}
            self.capabilities: tuple[Capability, ...] = ("ground",)
        elif alone or len(self.kinds) == 1:
            self.tasks, self.capabilities = frozenset({"classify"}), ("classify",)
            self.kinds = frozenset({alone}) if alone else self.kinds
        else:
            # one output says how well words and medium go together: the answers of AVQA are given, not known
            self.tasks = frozenset({"rank"} if config.num_classes == 1 else {"answer", "rank"})
            self.capabilities, self.kinds = ("decide",), self.kinds - {"text"}

    def read(self, kind: str, texts: Sequence[str]) -> dict[str, Tensor]:
        """As the released loaders read them: choices about audio as they are, phrases cut by words, others cleaned."""
        if kind == "audio":
            return self.processor.choices(texts)
        return self.processor.phrases(texts) if "ground" in self.tasks else self.processor.captions(texts)

    @torch.inference_mode()
    def outputs(self, kind: str, prepared: Sequence[Any], words: Sequence[str] | None) -> Tensor:
        """Logits (n, classes) in float32."""
        return self.model(**self.inputs(kind, prepared, words)).logits.float()

    def ground(self, prepared: Sequence[Any], phrases: Sequence[str]) -> list[tuple[float, float, float, float]]:
        """A box for each phrase: x0, y0, x1, y1 as shares of width and height, the sigmoid of the four outputs."""
        return [(x0, y0, x1, y1) for x0, y0, x1, y1 in self.outputs("image", prepared, phrases).sigmoid().tolist()]

    def rank(
        self, kind: str, prepared: Sequence[Any], questions: Sequence[str], answers: Sequence[str] | None
    ) -> list[list[tuple[str, float]]]:
        """As `DecidingSkills.rank`; a head of one output weighs every answer beside its question.

        Raises ValueError for no answers to such a head.
        """
        if self.model.config.num_classes > 1:
            return super().rank(kind, prepared, questions, answers)
        if not answers:
            raise ValueError("expected answers to choose from, got none; this model weighs those it is given")
        found = [
            self.outputs(kind, [item] * len(answers), [self.choice(question, answer) for answer in answers])[:, 0]
            for item, question in zip(prepared, questions, strict=True)
        ]
        return best_first(torch.stack(found).softmax(-1), answers)


BOX = 4
"""Outputs of a grounding head."""


def skills(model: Any, processor: OnePeaceProcessor) -> OnePeaceSkills | OnePeaceHeadSkills:
    """The skills of a model: those of a head, or those of what embeds."""
    return (OnePeaceHeadSkills if model.config.num_classes else OnePeaceSkills)(model, processor)
