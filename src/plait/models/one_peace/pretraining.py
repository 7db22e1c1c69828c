"""ONE-PEACE pretraining: cross-modal contrast and denoising contrast (arXiv 2305.11172, section 3.2).

full inputs -> encoder -> contrast of CLS vectors, and teacher features
visible units -> encoder -> decoder (full length, mask tokens) -> head -> contrast with teacher features
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig
from plait.models.one_peace.model import Encoded, OnePeaceModel, OnePeacePreTrainedModel, join_masks
from plait.nn.adapters import Adapted, resolve_keep
from plait.nn.attention import AttentionFunction, attention_function
from plait.nn.encoder import RoutedEncoder
from plait.nn.positions import resize_absolute
from plait.routing import Route


@dataclass(slots=True)
class Denoised:
    """Student side of a denoising pass, by modality: encoder features of visible units, decoder output, head output."""

    encoded: Encoded
    decoded: dict[str, Tensor] = field(default_factory=dict)
    student: dict[str, Tensor] = field(default_factory=dict)


class DecoderBranch(nn.Module):
    """One modality's way into and out of the decoder: embed visible units among mask tokens, add positions; head."""

    def __init__(self, encoder_dim: int, dim: int, num_positions: int, modality: str) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_dim, dim)
        self.head = nn.Linear(dim, encoder_dim)
        self.mask_token = nn.Parameter(torch.zeros(1, dim))
        self.position_embedding = nn.Parameter(torch.zeros(num_positions, dim))
        # Published files carry these vectors; nothing reads them.
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.mask_embedding = nn.Parameter(torch.zeros(1, dim)) if modality == "audio" else None

    def forward(self, features: Tensor, keep: Tensor, length: int, grid: int | None = None) -> Tensor:
        """features: (batch, kept, encoder_dim); keep: (batch, kept), -1 = padding -> (batch, length, dim).

        grid: side of the patch grid, to which square position tables are resized.
        """
        index, real = resolve_keep(keep)
        visible = self.embed(features)
        # A padding entry would overwrite the real unit whose index it borrows: send it to a place behind the sequence.
        index = index.masked_fill(~real, length)[..., None].expand_as(visible)
        base = self.mask_token.to(visible.dtype).expand(len(visible), length + 1, -1)
        full = base.scatter(1, index, visible)[:, :length]
        positions = self.position_embedding
        return full + (positions[:length] if grid is None else resize_absolute(positions, grid))


class OnePeaceDecoder(nn.Module):
    """The light decoder of the denoising tasks: branches around a routed trunk without attention biases."""

    def __init__(self, config: OnePeaceConfig, sizes: DecoderConfig) -> None:
        super().__init__()
        self.grid = config.image_rel_bucket_size
        self.attend_to_padding = config.official
        positions = {
            "text": config.max_text_positions,
            "image": sizes.image_bucket_size**2 + 1,
            "audio": sizes.max_audio_positions,
        }
        self.branches = nn.ModuleDict(
            {m: DecoderBranch(config.dim, sizes.dim, positions[m], m) for m in config.modalities}
        )
        self.trunk = RoutedEncoder(
            sizes.dim,
            sizes.num_heads,
            sizes.mlp_dim,
            sizes.num_layers,
            mlp_ways=config.ways("mlp_ways"),
            norm_ways=config.ways("norm_ways"),
            layer_scale=sizes.layer_scale,
        )

    def branch(self, modality: str) -> DecoderBranch:
        """The way of one modality into and out of the decoder."""
        branch = self.branches[modality]
        assert isinstance(branch, DecoderBranch)
        return branch

    def forward(
        self,
        features: Mapping[str, Tensor],
        keep: Mapping[str, Tensor],
        masks: Mapping[str, Tensor | None],
        lengths: Mapping[str, int],
        attend: AttentionFunction,
    ) -> dict[str, Tensor]:
        """features, keep, masks (full length, True = real), lengths by modality -> (batch, length, dim) by modality."""
        parts = [
            Adapted(self.branch(m)(x, keep[m], lengths[m], self.grid if m == "image" else None), masks[m])
            for m, x in features.items()
        ]
        x = torch.cat([part.x for part in parts], dim=1)
        mask = join_masks(parts)
        if mask is not None:
            x = x * mask[..., None]
        route = Route.segments({m: lengths[m] for m in features}, listed=tuple(self.branches))
        # The official decoder attends to padded positions; with `official` off they are masked.
        out = self.trunk(x, route, (), None if self.attend_to_padding else mask, attend)
        return dict(zip(features, out.split([lengths[m] for m in features], dim=1)))


class OnePeaceForPreTraining(OnePeacePreTrainedModel):
    """The encoder with its denoising decoder. `model` is the `OnePeaceModel` to keep after training."""

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__(config)
        sizes = config.decoder_sizes
        if sizes is None:
            raise ValueError("expected config.decoder for pretraining, got None; give it DecoderConfig sizes")
        self.model = OnePeaceModel(config)
        self.decoder = OnePeaceDecoder(config, sizes)
        self.post_init()

    def denoise(
        self,
        keep: Mapping[str, Tensor],
        teacher: Encoded,
        *,
        input_ids: Tensor | None = None,
        pixel_values: Tensor | None = None,
        input_values: Tensor | None = None,
        frame_mask: Tensor | None = None,
    ) -> Denoised:
        """Encode the visible units `keep` names, decode them at full length, map them back to the encoder's width.

        keep: (batch, kept) per modality; teacher: the full pass of the same inputs, for its lengths and masks.
        """
        encoded = self.model.encode(input_ids, pixel_values, input_values, frame_mask=frame_mask, keep=keep)
        lengths = {m: teacher.features[m].shape[1] for m in encoded.features}
        masks = {m: teacher.masks[m] for m in encoded.features}
        attend = attention_function(self.config._attn_implementation)
        decoded = self.decoder(encoded.features, keep, masks, lengths, attend)
        student = {m: self.decoder.branch(m).head(x) for m, x in decoded.items()}
        return Denoised(encoded, decoded, student)

    def forward(self, **inputs: Tensor) -> dict[str, Tensor]:
        """The embeddings of `OnePeaceModel`; training passes are composed in `tasks.py`."""
        return self.model(**inputs)
