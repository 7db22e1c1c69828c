"""The dual vision encoder: a CLIP ViT whose blocks may add local temporal modules, for images and videos alike.

pixels -> patches (+ class token, positions) -> norm -> [temporal -> attention -> temporal -> MLP] x layers
-> class tokens averaged over frames, patches in frame order -> norm

Frames exchange information through the patch tokens of the temporal modules only; without them (`temporal=False`, or a
picture) every frame passes a plain ViT with the same weights. Source: mPLUG-2 (arXiv 2302.00402), section 3.2;
specification mPLUG-2, section 3.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from plait.nn.attention import AttentionFunction


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's approximation of GELU: x * sigmoid(1.702 x)."""
    return x * torch.sigmoid(1.702 * x)


def inflate_patches(weight: Tensor, frames: int, how: Literal["centre", "mean"] = "centre") -> Tensor:
    """A patch embedding for several frames out of one for images, which answers a still clip alike.

    Args:
        weight: (dim, channels, patch, patch).
        frames: that one patch spans.
        how: `centre` puts the image's kernel in the middle and zeros around it, `mean` a share of
            it in every frame (I3D, arXiv 1705.07750).

    Returns:
        (dim, channels, frames, patch, patch).
    """
    if how == "mean":
        return weight[:, :, None].repeat(1, 1, frames, 1, 1) / frames
    inflated = weight.new_zeros(*weight.shape[:2], frames, *weight.shape[2:])
    inflated[:, :, frames // 2] = weight
    return inflated


class ZeroLinear(nn.Linear):
    """A linear layer that is zero when fresh, so that a residual branch which ends with it adds nothing."""

    def reset_parameters(self) -> None:
        """Zeros, whatever the layers around it begin with."""
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


class LocalTemporal(nn.Module):
    """A bottleneck with a depthwise convolution over three frames, position by position.

    norm -> dim/2 -> convolution in time -> quick GELU -> dim. Its last layer begins at 0, so a fresh
    model equals CLIP per frame. The paper draws one with channel groups, the code has two, depthwise.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.down_proj = nn.Linear(dim, dim // 2)
        self.conv = nn.Conv1d(dim // 2, dim // 2, 3, padding=1, groups=dim // 2)
        self.up_proj = ZeroLinear(dim // 2, dim)

    def forward(self, x: Tensor) -> Tensor:
        """What time adds to every position.

        Args:
            x: (batch, frames, positions, dim).

        Returns:
            Like x, to be added to it.
        """
        hidden = self.down_proj(self.norm(x))
        # three shifted products in place of the convolution, whose channels would have to come first
        previous = F.pad(hidden[:, :-1], (0, 0, 0, 0, 1, 0))
        following = F.pad(hidden[:, 1:], (0, 0, 0, 0, 0, 1))
        before, here, after = self.conv.weight[:, 0].unbind(1)  # (dim / 2,) each: channels stay last, nothing is copied
        mixed = (hidden * here).addcmul(previous, before).addcmul(following, after)
        return self.up_proj(quick_gelu(mixed + self.conv.bias))


class PackedAttention(nn.Module):
    """Self-attention with one projection for queries, keys and values, in this order."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, attend: AttentionFunction, bias: Tensor | None = None) -> Tensor:
        """Attention within a frame.

        Args:
            x: (batch, positions, dim).
            attend: the attention function.
            bias: added to scores, or None.

        Returns:
            Like x.
        """
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        return self.out_proj(attend(q, k, v, bias, None).transpose(1, 2).flatten(2))


class ClipBlock(nn.Module):
    """CLIP's pre-norm layer; with `temporal` a local temporal module before attention and MLP each.

    dim, num_heads: sizes; the MLP is 4 * dim wide, as in every CLIP.
    """

    def __init__(self, dim: int, num_heads: int, *, temporal: bool = False) -> None:
        super().__init__()
        self.temporal1 = LocalTemporal(dim) if temporal else None
        self.attn_norm = nn.LayerNorm(dim)
        self.attn = PackedAttention(dim, num_heads)
        self.temporal2 = LocalTemporal(dim) if temporal else None
        self.mlp_norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor, frames: int | None, attend: AttentionFunction, bias: Tensor | None = None) -> Tensor:
        """One layer.

        Args:
            x: (batch * frames, 1 + positions, dim); attention stays within a frame.
            frames: of a clip, for the temporal modules; None skips them.
            attend: the attention function.
            bias: added to attention scores.

        Returns:
            Like x.
        """
        if self.temporal1 is not None:
            x = self._add_temporal(x, self.temporal1, frames)
        x = x + self.attn(self.attn_norm(x), attend, bias)
        if self.temporal2 is not None:
            x = self._add_temporal(x, self.temporal2, frames)
        return x + self.fc2(quick_gelu(self.fc1(self.mlp_norm(x))))

    def _add_temporal(self, x: Tensor, module: nn.Module, frames: int | None) -> Tensor:
        """x (batch * frames, 1 + positions, dim) + module over frames, the class token left alone; None: x."""
        if frames is None:
            # images in training: gradients are 0 rather than None, so that ranks with videos wait for nothing
            return x + module(x[:0, None, 1:]).sum() if self.training and torch.is_grad_enabled() else x
        # the class token passes no temporal module
        patches = x[:, 1:].unflatten(0, (-1, frames))
        return torch.cat([x[:, :1], (patches + module(patches)).flatten(0, 1)], dim=1)


class DualVisionEncoder(nn.Module):
    """mPLUG-2's vision encoder: clips, or images as clips of one frame, to tokens.

    Args:
        dim, num_heads, num_layers, patch_size: of the ViT.
        image_size: side of the images; a rim that fills no patch is not looked at.
        temporal: whether blocks have local temporal modules.
        temporal_kernel, temporal_stride: frames that one patch spans, and from one to the next.

    Raises:
        ValueError: for a width that heads do not divide.

    Source:
        mPLUG-2 (arXiv 2302.00402), 3.2; specification mPLUG-2, 3.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_layers: int,
        *,
        patch_size: int,
        image_size: int,
        temporal: bool = True,
        temporal_kernel: int = 1,
        temporal_stride: int = 1,
    ) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"expected a width divisible by the number of heads, got {dim} and {num_heads}")
        self.image_size, self.grid = image_size, image_size // patch_size
        # three-dimensional even for one frame per patch, as the official file stores it
        self.patch_embedding = nn.Conv3d(
            3,
            dim,
            (temporal_kernel, patch_size, patch_size),
            stride=(temporal_stride, patch_size, patch_size),
            padding=(temporal_kernel // 2, 0, 0),
            bias=False,
        )
        # scaled as CLIP draws it, so that its length does not grow with the width
        self.class_embedding = nn.Parameter(torch.randn(dim) * dim**-0.5)
        self.position_embedding = nn.Parameter(torch.randn(1 + self.grid**2, dim) * dim**-0.5)
        self.pre_norm = nn.LayerNorm(dim)
        self.layers = nn.ModuleList(ClipBlock(dim, num_heads, temporal=temporal) for _ in range(num_layers))
        self.post_norm = nn.LayerNorm(dim)
        self.has_temporal = temporal
        self.gradient_checkpointing = False

    def embed(self, clips: Tensor) -> tuple[Tensor, int]:
        """Patches with class token and positions, frame by frame.

        Args:
            clips: (batch, 3, frames, side, side), normalised.

        Returns:
            (batch * frames', 1 + positions, dim) and frames', fewer where patches stride in time.

        Raises:
            ValueError: where the images do not fit the position table.
        """
        side = self.image_size
        if clips.dim() != 5 or tuple(clips.shape[-2:]) != (side, side):
            raise ValueError(
                f"expected clips (batch, 3, frames, {side}, {side}), got {tuple(clips.shape)}; resize the pictures, "
                "or load the model with image_size="
            )
        if self.patch_embedding.kernel_size[0] == 1 and self.patch_embedding.stride[0] == 1:
            # one frame per patch: the same product as a 2D convolution over all frames
            frames = clips.transpose(1, 2)
            weight = self.patch_embedding.weight[:, :, 0]
            x = F.conv2d(frames.flatten(0, 1), weight, stride=self.patch_embedding.stride[1:])
            count = frames.shape[1]
        else:
            x = self.patch_embedding(clips).transpose(1, 2)
            count = x.shape[1]
            x = x.flatten(0, 1)
        x = x.flatten(2).transpose(1, 2)  # (batch * frames', positions, dim)
        # one class token per frame and one table for all frames: time has no positions here
        x = torch.cat([self.class_embedding.expand(x.shape[0], 1, -1), x], dim=1)
        return self.pre_norm(x + self.position_embedding), count

    def forward(
        self, clips: Tensor, attend: AttentionFunction, *, temporal: bool = True, hidden: list[Tensor] | None = None
    ) -> Tensor:
        """Clips to tokens.

        Args:
            clips: (batch, 3, frames, side, side), normalised.
            attend: the attention function.
            temporal: whether the temporal modules run.
            hidden: a list to which the states before the first block and after every block are
                appended, (batch * frames', 1 + positions, dim).

        Returns:
            (batch, 1 + frames' * positions, dim), class token first, patches in frame order.
        """
        x, frames = self.embed(clips)
        if hidden is not None:
            hidden.append(x)
        given = frames if temporal else None
        for layer in self.layers:
            if self.gradient_checkpointing and self.training and torch.is_grad_enabled():
                x = checkpoint(layer, x, given, attend, use_reentrant=False)
            else:
                x = layer(x, given, attend)
            if hidden is not None:
                hidden.append(x)
        x = x.unflatten(0, (-1, frames))
        # the mean of class tokens before the norm, not of normed ones
        tokens = torch.cat([x[:, :, :1].mean(1), x[:, :, 1:].flatten(1, 2)], dim=1)
        return self.post_norm(tokens)
