"""Modality adapters: raw inputs of one modality -> embeddings with CLS in front, a mask and attention biases.

ids | pixels | waveform -> [cls ; units] + positions, mask, relative-position bias -> trunk (ONE-PEACE, section 3.1)
waveform -> strided convolutions with LayerNorm -> frames -> convolutional positions (wav2vec 2.0, arXiv 2006.11477)

`keep` selects visible units for masked encoding: (batch, kept) positions in the CLS-prefixed sequence, 0 first, padded
with -1. Padding entries read position kept - 1 and are masked, as the published code does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.nn.layers import HierarchicalStem, LinearStem
from plait.nn.positions import (
    image_bucket_index,
    image_table_rows,
    resize_absolute,
    token_bucket_index,
    token_table_rows,
)


@dataclass(slots=True)
class Adapted:
    """What an adapter hands to the trunk.

    x: (batch, seq, dim) with CLS first.
    mask: (batch, seq) boolean, True = real, or None when all are.
    biases: none, one, or one per layer, each (batch or 1, heads, seq, seq), added to scores.
    """

    x: Tensor
    mask: Tensor | None
    biases: tuple[Tensor, ...] = ()


class Adapter(Protocol):
    """The entrance of one modality: its inputs -> tokens, mask, attention biases.

    Called with its first input, or with all of them by name, and in masked encoding with `keep`. A model holds adapters
    that arrive built, as modules by the name of their modality, and knows nothing of their inputs.
    """

    def __call__(self, *inputs: Any, **named: Any) -> Adapted: ...


class Entrance(nn.Module):
    """What the adapters of the published modalities share."""

    def nothing(self) -> dict[str, Tensor]:
        """Inputs of no rows: with them an absent modality takes part in training, and its gradients are 0."""
        raise NotImplementedError


class TextAdapter(Entrance):
    """Token ids -> [cls ; tokens] + learned positions, with relative-position bias.

    Args:
        dim, num_heads, vocab_size: sizes.
        bucket_size: of the relative positions, 256 as published.
        max_positions: rows of the position table, CLS included.
        num_bias_tables: 1 for all layers (pretraining), or one per layer (finetuned files).
        pad_token_id: id of padding, whose embedding stays 0.
        embedding_norm, type_embedding: whether these two exist; NLVR2 has type embeddings.
        gradient_scale: share of the gradient that reaches the embeddings.

    Source:
        ONE-PEACE, 2.1 of its released layout.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        vocab_size: int,
        *,
        bucket_size: int,
        max_positions: int = 514,
        num_bias_tables: int = 1,
        pad_token_id: int = 1,
        embedding_norm: bool = False,
        type_embedding: bool = False,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.bucket_size = bucket_size
        self.pad_token_id = pad_token_id
        self.gradient_scale = gradient_scale
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.token_embedding = nn.Embedding(vocab_size, dim, padding_idx=pad_token_id)
        self.position_embedding = nn.Parameter(torch.zeros(max_positions, dim))
        self.type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if type_embedding else None
        self.norm = nn.LayerNorm(dim) if embedding_norm else None
        self.bias = RelativeBias(token_table_rows(bucket_size), num_heads, num_bias_tables)

    def nothing(self) -> dict[str, Tensor]:
        """input_ids (0, 1)."""
        return {"input_ids": torch.zeros(0, 1, dtype=torch.long, device=self.cls_embedding.device)}

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None, keep: Tensor | None = None) -> Adapted:
        """Ids to what the trunk takes.

        Args:
            input_ids: (batch, seq) ending in EOS, without bos: CLS is put in front here.
            attention_mask: (batch, seq), True = real; by default ids other than padding.
            keep: (batch, kept) visible positions, see the module.

        Returns:
            `Adapted` of 1 + seq positions, or of the kept ones.

        Raises:
            ValueError: for more tokens than there are positions.
        """
        seq = input_ids.shape[1] + 1
        if seq > len(self.position_embedding):
            raise ValueError(
                f"expected at most {len(self.position_embedding) - 1} tokens, got {seq - 1}; truncate the text"
            )
        x = torch.cat([self.cls_embedding.expand(input_ids.shape[0], 1, -1), self.token_embedding(input_ids)], dim=1)
        x = x if self.norm is None else self.norm(x)
        # CLS has row 0 and the first token row 1: no offset for padding, unlike fairseq's own tables
        x = shrink_gradient(x, self.gradient_scale) + self.position_embedding[:seq]
        if self.type_embedding is not None:
            x = x + self.type_embedding
        index = token_bucket_index(seq, self.bucket_size, device=x.device)
        if keep is None:
            mask = prepend_true(input_ids != self.pad_token_id if attention_mask is None else attention_mask)
            return Adapted(x, mask, self.bias(index))
        keep, mask = resolve_keep(keep)
        return Adapted(gather_units(x, keep), mask, self.bias(index, keep))


class ImageAdapter(Entrance):
    """Pixels -> [cls ; patches] + learned grid positions, with relative-position bias.

    Args:
        dim, num_heads: sizes.
        bucket_size: side of the stored position grid, in patches; 16 in every published file.
        rel_bucket_size: side of the image's grid: 16 for 256 pixels, 24 for 384.
        num_bias_tables: 1 for all layers, or one per layer.
        stem: `hmlp` as published, or `mlp`, the plain patch convolution.
        embedding_norm, type_embedding, gradient_scale: as in `TextAdapter`.

    Raises:
        ValueError: for another stem.

    Source:
        ONE-PEACE, 2.2 of its released layout.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        bucket_size: int,
        rel_bucket_size: int,
        num_bias_tables: int = 1,
        stem: str = "hmlp",
        embedding_norm: bool = False,
        type_embedding: bool = False,
        gradient_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if stem not in ("hmlp", "mlp"):
            raise ValueError(f"expected the image stem 'hmlp' or 'mlp', got {stem!r}")
        self.rel_bucket_size = rel_bucket_size
        self.gradient_scale = gradient_scale
        self.stem = HierarchicalStem(dim) if stem == "hmlp" else LinearStem(dim)
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.position_embedding = nn.Parameter(torch.zeros(bucket_size**2 + 1, dim))
        self.type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if type_embedding else None
        self.second_type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if type_embedding else None
        self.norm = nn.LayerNorm(dim) if embedding_norm else None
        self.bias = RelativeBias(image_table_rows(rel_bucket_size), num_heads, num_bias_tables)

    @property
    def image_size(self) -> int:
        """The only side, in pixels, that the relative positions fit."""
        return self.rel_bucket_size * self.stem.patch_size

    def nothing(self) -> dict[str, Tensor]:
        """pixel_values (0, 3, side, side)."""
        return {"pixel_values": self.cls_embedding.new_zeros(0, 3, self.image_size, self.image_size)}

    def positions(self) -> Tensor:
        """Position embeddings of the image's grid, resized from the stored one where they differ.

        Returns:
            (1 + patches, dim), CLS first.
        """
        return resize_absolute(self.position_embedding, self.rel_bucket_size)

    def forward(self, pixel_values: Tensor, keep: Tensor | None = None, *, is_second: bool = False) -> Adapted:
        """Pixels to what the trunk takes.

        Args:
            pixel_values: (batch, 3, side, side), normalised; side = `image_size`.
            keep: (batch, kept) visible positions, see the module.
            is_second: the second image of a pair (NLVR2), which adds both type vectors.

        Returns:
            `Adapted` of 1 + patches positions, or of the kept ones; its mask is None without `keep`.

        Raises:
            ValueError: for images of another size, and for a second one without type embeddings.
        """
        if pixel_values.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"expected images of {self.image_size} x {self.image_size} pixels, "
                f"got {tuple(pixel_values.shape[-2:])}; resize them, or load the model with another rel_bucket_size"
            )
        # A processor makes float32, whatever the weights are.
        patches = self.stem(pixel_values.to(self.cls_embedding.dtype)).flatten(1, 2)
        x = torch.cat([self.cls_embedding.expand(patches.shape[0], 1, -1), patches], dim=1)
        x = x if self.norm is None else self.norm(x)
        # resized at every pass: the file keeps one grid, whatever size a model was finetuned at
        x = shrink_gradient(x, self.gradient_scale) + self.positions()
        if self.type_embedding is not None:
            x = x + self.type_embedding
        if is_second:
            if self.second_type_embedding is None:
                raise ValueError("expected a model with type embeddings for a second image, got one without")
            x = x + self.second_type_embedding
        index = image_bucket_index(self.rel_bucket_size, device=x.device)
        if keep is None:
            return Adapted(x, None, self.bias(index))
        keep, mask = resolve_keep(keep)
        return Adapted(gather_units(x, keep), mask, self.bias(index, keep))


class AudioAdapter(Entrance):
    """Waveform -> [cls ; frames] + convolutional positions, with relative-position bias.

    Args:
        dim, num_heads: sizes.
        conv_spec: (channels, kernel, stride) per convolution of the waveform.
        bucket_size: of the relative positions, 512 as published.
        position_depth, position_width, position_groups: of `ConvPositions`.
        num_bias_tables, embedding_norm, type_embedding, gradient_scale: as in `TextAdapter`.
        conv_bias: whether the convolutions of the waveform have biases.
        leaky_padding: let padded frames leak into real ones, as the official code does. A clip's
            embedding then depends on its batch mates.

    Source:
        ONE-PEACE, 2.3 of its released layout.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        *,
        conv_spec: Sequence[ConvSpec],
        bucket_size: int,
        position_depth: int = 5,
        position_width: int = 95,
        position_groups: int = 16,
        num_bias_tables: int = 1,
        conv_bias: bool = False,
        embedding_norm: bool = False,
        type_embedding: bool = False,
        gradient_scale: float = 1.0,
        leaky_padding: bool = False,
    ) -> None:
        super().__init__()
        self.bucket_size = bucket_size
        self.gradient_scale = gradient_scale
        self.leaky_padding = leaky_padding
        self.waveform = WaveformEncoder(conv_spec, bias=conv_bias)
        self.feature_norm = nn.LayerNorm(conv_spec[-1][0])
        self.feature_proj = nn.Linear(conv_spec[-1][0], dim)
        self.positions = ConvPositions(dim, position_depth, position_width, position_groups)
        self.cls_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        self.cls_position_embedding = nn.Parameter(torch.zeros(1, 1, dim))
        # published files carry it; nothing reads it
        self.mask_embedding = nn.Parameter(torch.zeros(1, dim))
        self.type_embedding = nn.Parameter(torch.zeros(1, 1, dim)) if type_embedding else None
        self.norm = nn.LayerNorm(dim) if embedding_norm else None
        self.bias = RelativeBias(token_table_rows(bucket_size), num_heads, num_bias_tables)

    def nothing(self) -> dict[str, Tensor]:
        """input_values (0, samples of one frame)."""
        samples = 1
        for _, kernel, stride in reversed(self.waveform.spec):
            samples = (samples - 1) * stride + kernel
        return {"input_values": self.cls_embedding.new_zeros(0, samples)}

    def forward(self, input_values: Tensor, frame_mask: Tensor | None = None, keep: Tensor | None = None) -> Adapted:
        """Samples to what the trunk takes.

        Args:
            input_values: (batch, samples) at 16 kHz, normalised, zero-padded on the right.
            frame_mask: (batch, frames) boolean, True = real.
            keep: (batch, kept) visible positions, see the module.

        Returns:
            `Adapted` of 1 + frames positions, or of the kept ones.

        Raises:
            ValueError: for a mask of another number of frames.
        """
        # a processor makes float32, whatever the weights are
        waves = input_values.to(self.cls_embedding.dtype)
        features = self.feature_proj(self.feature_norm(self.waveform(waves)))  # (batch, frames, dim)
        mask = None if frame_mask is None else frame_mask.bool()
        if mask is not None and mask.shape != features.shape[:2]:
            raise ValueError(f"expected a frame mask {tuple(features.shape[:2])}, got {tuple(mask.shape)}")
        index = token_bucket_index(features.shape[1] + 1, self.bucket_size, device=features.device)
        biases = self.bias(index) if keep is None else ()
        if keep is not None:
            keep, kept_mask = resolve_keep(keep)
            # Positions of visible frames come from visible frames alone: convolutions run on the shortened sequence.
            features, mask, biases = gather_units(features, keep[:, 1:] - 1), kept_mask[:, 1:], self.bias(index, keep)
        # before CLS is put in front: it has a position of its own
        positions = self.positions(features, None if self.leaky_padding else mask)
        x = torch.cat([self.cls_embedding.expand(features.shape[0], 1, -1), features], dim=1)
        x = x if self.norm is None else self.norm(x)
        x = shrink_gradient(x, self.gradient_scale)
        x = x + torch.cat([self.cls_position_embedding.expand(features.shape[0], 1, -1), positions], dim=1)
        if self.type_embedding is not None:
            x = x + self.type_embedding
        if self.training:
            # DDP and FSDP wait for the gradient of every parameter, also of one that nothing reads
            x = x + self.mask_embedding * 0
        return Adapted(x, None if mask is None else prepend_true(mask), biases)


class RelativeBias(nn.Module):
    """Learned attention bias per head and relative position.

    Args:
        rows: of a table, the three CLS rows included.
        num_heads: columns of a table.
        num_tables: one for all layers, or one per layer.
    """

    def __init__(self, rows: int, num_heads: int, num_tables: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(nn.Parameter(torch.zeros(rows, num_heads)) for _ in range(num_tables))

    def forward(self, index: Tensor, keep: Tensor | None = None) -> tuple[Tensor, ...]:
        """Biases of positions, one tensor per table.

        Args:
            index: (seq, seq) rows of the table.
            keep: (batch, kept) valid positions of visible units.

        Returns:
            (1, heads, seq, seq) each, or (batch, heads, kept, kept) with `keep`.
        """
        # visible units keep the relative positions that they have in the whole input
        index = index[None] if keep is None else index[keep[:, :, None], keep[:, None, :]]
        # not expanded over the batch: attention takes a bias that all rows share as it is
        return tuple(F.embedding(index, table).permute(0, 3, 1, 2).contiguous() for table in self.tables)


def resolve_keep(keep: Tensor) -> tuple[Tensor, Tensor]:
    """Padded positions to keep -> indices that can be gathered, and their mask.

    Args:
        keep: (batch, kept), -1 on padding.

    Returns:
        int64 (batch, kept) without -1, and boolean (batch, kept), True = real.
    """
    mask = keep >= 0
    # any valid position would do, since the mask hides it; the published one keeps golden padding rows comparable
    return keep.masked_fill(~mask, keep.shape[1] - 1), mask


def gather_units(x: Tensor, index: Tensor) -> Tensor:
    """Units at given positions of every row.

    Args:
        x: (batch, seq, dim).
        index: (batch, kept) positions.

    Returns:
        (batch, kept, dim).
    """
    return x.gather(1, index[..., None].expand(-1, -1, x.shape[-1]))


def prepend_true(mask: Tensor) -> Tensor:
    """mask: (batch, seq) -> (batch, 1 + seq) bool with a real CLS in front."""
    return F.pad(mask.bool(), (1, 0), value=True)


def shrink_gradient(x: Tensor, scale: float) -> Tensor:
    """x with its gradient multiplied by `scale` (GLM-130B, arXiv 2210.02414).

    x: any shape; its value stays the same. ONE-PEACE's published runs have 1: nothing is shrunk.
    """
    return x if scale == 1.0 else x * scale + x.detach() * (1.0 - scale)


ConvSpec = tuple[int, int, int]
"""Channels, kernel, stride."""


def conv_output_lengths(lengths: Tensor, spec: Sequence[ConvSpec]) -> Tensor:
    """Frames that samples give: n -> 1 + floor((n - kernel) / stride) per layer, at least 0.

    Args:
        lengths: (batch,) samples.
        spec: (channels, kernel, stride) per layer.

    Returns:
        (batch,) frames.
    """
    for _, kernel, stride in spec:
        # floor, not truncation: a clip shorter than the kernel must give 0 frames and not 1
        lengths = torch.div(lengths - kernel, stride, rounding_mode="floor") + 1
    return lengths.clamp_min(0)


class FrameConv(nn.Conv1d):
    """Conv1d on channels-last input without padding: (batch, time, in) -> (batch, frames, out).

    Computed as a channels-last Conv2d of height 1, which needs no copies and is twice as fast on CPU.
    Weights have Conv1d's shape, so files fit.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int, bias: bool = False) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, bias=bias)

    def reset_parameters(self) -> None:
        """Kaiming normal, as published."""
        nn.init.kaiming_normal_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, input: Tensor) -> Tensor:
        """The convolution.

        input: (batch, time, in) -> (batch, 1 + (time - kernel) // stride, out).
        """
        rows = input.transpose(1, 2).unsqueeze(2)  # (batch, in, 1, time), channels last in memory
        weight = self.weight.unsqueeze(2).contiguous(memory_format=torch.channels_last)
        out = F.conv2d(rows, weight, self.bias, stride=(1, self.stride[0]))
        return out.squeeze(2).transpose(1, 2)


class WaveformEncoder(nn.Module):
    """Convolutions with LayerNorm over channels and GELU (wav2vec 2.0, arXiv 2006.11477).

    Args:
        spec: (channels, kernel, stride) per layer; a total stride of 320 as published.
        bias: of the convolutions.
    """

    def __init__(self, spec: Sequence[ConvSpec], bias: bool = False) -> None:
        super().__init__()
        widths = [1, *(channels for channels, _, _ in spec)]
        self.spec = tuple(spec)
        self.convs = nn.ModuleList(
            FrameConv(width, channels, kernel, stride, bias) for width, (channels, kernel, stride) in zip(widths, spec)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for channels, _, _ in spec)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: (batch, samples) -> (batch, frames, channels)."""
        x = waveform.unsqueeze(-1)
        for conv, norm in zip(self.convs, self.norms):
            x = F.gelu(norm(conv(x)))
        return x


class ConvPositions(nn.Module):
    """Positions from content: blocks of grouped Conv1d, bare LayerNorm and GELU.

    Args:
        dim: width of frames.
        depth: number of blocks, 5 as published.
        width: receptive field in frames, spread over blocks of kernel max(3, width // depth).
        groups: of the convolutions.

    Source:
        data2vec (arXiv 2202.03555); ONE-PEACE, 2.3 of its released layout.
    """

    def __init__(self, dim: int, depth: int, width: int, groups: int) -> None:
        super().__init__()
        kernel = max(3, width // depth)
        self.convs = nn.ModuleList(
            nn.Conv1d(dim, dim, kernel, padding=kernel // 2, groups=groups) for _ in range(depth)
        )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x: (batch, frames, dim) -> like x.

        mask: (batch, frames) bool, True = real. With it padded frames are zero before every convolution, so a clip in
        a batch gets what it gets alone; without it they leak into their neighbours, as in the official code.
        """
        frames = x.shape[1]
        for conv in self.convs:
            if mask is not None:
                # again before every block: each one spreads what is not 0 by half a kernel
                x = x * mask[..., None]
            # an even kernel gives one frame too many
            x = conv(x.transpose(1, 2))[..., :frames].transpose(1, 2)
            # a norm without weights: the file has none
            x = F.gelu(F.layer_norm(x, x.shape[-1:]))
        return x
