"""The dual vision encoder: pictures as CLIP sees them, clips whose frames exchange information."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from plait.nn.attention import attention_function
from plait.nn.temporal import DualVisionEncoder, LocalTemporal, inflate_patches, quick_gelu

ATTEND = attention_function("sdpa")


def encoder(**changes) -> DualVisionEncoder:
    torch.manual_seed(0)
    made = DualVisionEncoder(8, 2, 2, **{"patch_size": 4, "image_size": 8, **changes}).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.2)
    return made


@torch.no_grad()
def test_the_local_temporal_module_is_a_depthwise_convolution_over_time() -> None:
    module = LocalTemporal(8)
    for parameter in module.parameters():
        parameter.normal_(std=0.5)
    x = torch.randn(2, 4, 3, 8)
    hidden = module.down_proj(module.norm(x)).permute(0, 2, 3, 1).flatten(0, 1)  # (batch * positions, dim / 2, time)
    expected = module.conv(hidden).unflatten(0, (2, 3)).permute(0, 3, 1, 2)
    assert torch.allclose(module(x), module.up_proj(quick_gelu(expected)), atol=1e-5)


@torch.no_grad()
def test_a_fresh_temporal_module_adds_nothing() -> None:
    assert not LocalTemporal(8)(torch.randn(2, 3, 4, 8)).any()


@torch.no_grad()
def test_frames_without_temporal_modules_are_seen_apart() -> None:
    made, clip = encoder(), torch.randn(1, 3, 3, 8, 8)
    tokens = made(clip, ATTEND, temporal=False)
    apart = [made(clip[:, :, t : t + 1], ATTEND, temporal=False) for t in range(3)]
    assert tokens.shape == (1, 1 + 3 * 4, 8)
    assert torch.allclose(tokens[:, 1:], torch.cat([one[:, 1:] for one in apart], 1), atol=1e-5)
    assert not torch.allclose(tokens, made(clip, ATTEND), atol=1e-3)


@torch.no_grad()
def test_the_class_token_is_the_mean_over_frames() -> None:
    made, hidden = encoder(), []
    tokens = made(torch.randn(2, 3, 3, 8, 8), ATTEND, hidden=hidden)
    last = hidden[-1].unflatten(0, (2, 3))
    assert torch.allclose(tokens[:, 0], made.post_norm(last[:, :, 0].mean(1)), atol=1e-6)
    assert len(hidden) == 3


@torch.no_grad()
def test_a_patch_may_span_frames() -> None:
    made = encoder(temporal_kernel=3, temporal_stride=2)
    assert made(torch.randn(1, 3, 5, 8, 8), ATTEND).shape == (1, 1 + 3 * 4, 8)
    assert made(torch.randn(1, 3, 1, 8, 8), ATTEND).shape == (1, 1 + 4, 8)


@torch.no_grad()
def test_inflated_patches_answer_a_still_clip_like_the_picture() -> None:
    weight, picture = torch.randn(5, 3, 4, 4), torch.randn(1, 3, 8, 8)
    flat = nn.functional.conv2d(picture, weight, stride=4)
    clip = picture[:, :, None].expand(-1, -1, 3, -1, -1)
    for how in ("centre", "mean"):
        inflated = inflate_patches(weight, 3, how)
        assert inflated.shape == (5, 3, 3, 4, 4)
        assert torch.allclose(nn.functional.conv3d(clip, inflated, stride=(1, 4, 4))[:, :, 0], flat, atol=1e-5)


@torch.no_grad()
def test_a_rim_that_fills_no_patch_is_not_looked_at() -> None:
    clip = torch.randn(1, 3, 2, 11, 11)
    made, exact = encoder(image_size=11), encoder()
    exact.load_state_dict(made.state_dict())
    assert torch.equal(made(clip, ATTEND), exact(clip[..., :8, :8], ATTEND))


def test_wrong_shapes_are_one_line() -> None:
    with pytest.raises(ValueError, match=r"expected clips \(batch, 3, frames, 8, 8\), got \(1, 3, 2, 8, 12\)"):
        encoder()(torch.zeros(1, 3, 2, 8, 12), ATTEND)
    with pytest.raises(ValueError, match="expected a width divisible by the number of heads, got 8 and 3"):
        DualVisionEncoder(8, 3, 1, patch_size=4, image_size=8)
