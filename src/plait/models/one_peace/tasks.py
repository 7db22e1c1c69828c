"""ONE-PEACE heads: what the features of one pass are used for (arXiv 2305.11172, section 4; specification 2.8).

features of a pass -> attention pooling (or CLS) -> [pooler] -> [second image's features] -> classifier -> logits
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel, OnePeacePreTrainedModel, by_modality
from plait.nn.contract import outputs_for_transformers


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
