"""Two-stage detection on any backbone's map: proposals, regions cut out of a pyramid, a cascade of boxes, masks.

map at stride 16 -> pyramid (strides 4, 8, 16, 32, 64) -> proposals -> [RoIAlign -> classes, a better box] x 3
    -> soft-NMS -> boxes, scores, classes -> RoIAlign -> masks

Boxes are (x0, y0, x1, y1) in pixels of the padded picture; masks of regions are probabilities on a small grid.

Sources: Faster R-CNN (arXiv 1506.01497), Mask R-CNN (arXiv 1703.06870), Cascade R-CNN (arXiv 1712.00726), ViTDet (arXiv
2203.16527); specification ONE-PEACE, 8.4. Formulas of RoIAlign and of non-maximum suppression are torchvision's, which
is never needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SoftNms = Literal["linear", "gaussian", "hard"]
Layer = TypeVar("Layer", bound="nn.Linear | nn.Conv2d")


def box_iou(a: Tensor, b: Tensor) -> Tensor:
    """Intersection over union of every box with every other; boxes without area overlap nothing.

    Args:
        a, b: (n, 4) and (m, 4), corners.

    Returns:
        (n, m).
    """
    # Axis by axis: a product over a last axis of two costs several times as much.
    (x0, y0, x1, y1), (u0, v0, u1, v1) = a[:, :, None].unbind(1), b.T[:, None].unbind(0)
    width = torch.minimum(x1, u1) - torch.maximum(x0, u0)
    inner = width.clamp_min(0) * (torch.minimum(y1, v1) - torch.maximum(y0, v0)).clamp_min(0)
    areas = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0)
    # Boxes without area would divide 0 by 0.
    return torch.where(inner > 0, inner / (areas - inner), torch.zeros_like(inner))


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Boxes that overlap no better box that was kept by more than a threshold.

    Args:
        boxes: (n, 4), corners.
        scores: (n,).
        threshold: IoU above which the worse of two boxes goes.

    Returns:
        Kept indices, best first; of equal scores the earlier box.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 9], [20, 20, 30, 30]])
        >>> nms(boxes, torch.tensor([0.8, 0.9, 0.7]), 0.5)
        tensor([1, 2])
    """
    order = scores.argsort(descending=True, stable=True)
    # On the host, row by row: one transfer instead of a synchronisation per box, and numpy's cheaper steps.
    apart = (box_iou(boxes[order], boxes[order]) <= threshold).cpu().numpy()
    alive = torch.ones(len(order), dtype=torch.bool)
    left = alive.numpy()  # the same memory
    for i in range(len(order)):
        if left[i]:
            left[i + 1 :] &= apart[i, i + 1 :]
    return order[alive.to(order.device)]


def soft_nms(
    boxes: Tensor,
    scores: Tensor,
    classes: Tensor,
    *,
    method: SoftNms = "linear",
    threshold: float = 0.6,
    sigma: float = 0.5,
    prune: float = 1e-3,
) -> tuple[Tensor, Tensor]:
    """Boxes in decreasing order of a score that falls with their overlap with better boxes of the same class.

    linear: score * (1 - IoU) above the threshold; gaussian: score * exp(-IoU**2 / sigma) always;
    hard: 0 at or above the threshold. After every pick boxes of a score <= prune are dropped.

    Args:
        boxes: (n, 4) as x1, y1, x2, y2.
        scores, classes: (n,).
        method: how a score falls; linear as published for the detector.
        threshold: IoU, for linear and hard.
        sigma: for gaussian.
        prune: score at which a box is given up.

    Returns:
        Kept indices and their scores, (kept,) each, best first.

    Raises:
        ValueError: for an unknown method.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10], [20, 20, 30, 30]])
        >>> soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), torch.zeros(3))[0]
        tensor([0, 2])

    Source: Bodla et al., arXiv 1704.04503; settings: specification ONE-PEACE, 8.4.
    """
    if method not in ("linear", "gaussian", "hard"):
        raise ValueError(f"expected soft-NMS linear, gaussian or hard, got {method!r}")
    kept: list[Tensor] = []
    rescored: list[Tensor] = []
    # Scores fall in place while boxes are picked; the caller's stay as they are.
    falling = scores.clone()
    # Class by class: boxes of different classes never lower each other.
    for wanted in classes.unique():
        left = (classes == wanted).nonzero()[:, 0]
        while len(left):
            best = left[falling[left].argmax()]
            kept.append(best)
            rescored.append(falling[best].clone())
            left = left[left != best]
            iou = box_iou(boxes[best][None], boxes[left])[0]
            if method == "linear":
                decay = torch.where(iou > threshold, 1 - iou, torch.ones_like(iou))
            elif method == "gaussian":
                decay = torch.exp(-(iou**2) / sigma)
            else:
                decay = (iou < threshold).to(iou)
            falling[left] *= decay
            left = left[falling[left] > prune]
    if not kept:
        return classes.new_zeros(0), falling
    values, order = torch.stack(rescored).sort(descending=True, stable=True)
    return torch.stack(kept)[order], values


def maskness_scores(scores: Tensor, masks: Tensor, threshold: float = 0.5) -> Tensor:
    """Scores times the mean probability inside the mask, 0 where no pixel is inside.

    So a box counts for less where its mask is unsure; the detector's mask AP is measured with
    these.

    Args:
        scores: (n,).
        masks: (n, ..., height, width) probabilities.
        threshold: probability above which a pixel is inside.

    Returns:
        (n,).

    Source: specification ONE-PEACE, 8.4.
    """
    flat = masks.flatten(1)
    inside = (flat > threshold).to(flat)
    return scores * (flat * inside).sum(dim=1) / inside.sum(dim=1).clamp_min(1)


def semantic_map(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Queries of a mask transformer to scores of every class at every pixel.

    score[c, y, x] = sum over queries of softmax(class)[c] * sigmoid(mask)[y, x]

    Args:
        class_logits: (batch, queries, classes + 1), the last for "no object".
        mask_logits: (batch, queries, height, width).

    Returns:
        (batch, classes, height, width).

    Source: Mask2Former (arXiv 2112.01527); specification ONE-PEACE, 8.5.
    """
    # "No object" takes its share of the softmax first, and is dropped afterwards.
    classes = class_logits.softmax(dim=-1)[..., :-1]
    return torch.einsum("bqc,bqhw->bchw", classes, mask_logits.sigmoid())


def roi_align(
    features: Tensor, boxes: Tensor, size: int, *, scale: float = 1.0, sampling: int = 0, aligned: bool = True
) -> Tensor:
    """Regions of a map on a grid of equal size, each bin the mean of points that are read bilinearly.

    A point more than one cell outside of the map reads 0, one less far outside reads the nearest edge.

    Args:
        features: (channels, height, width) of one image.
        boxes: (n, 4), corners in pixels.
        size: bins along each side.
        scale: cells per pixel, 1 / stride.
        sampling: points per bin along each side; 0 takes as many as a bin has cells, rounded up.
        aligned: whether cell centres lie at .5, as they should; without it regions are half a cell off and at least
            one cell wide, as in the first releases of Mask R-CNN.

    Returns:
        (n, channels, size, size).

    Source: Mask R-CNN (arXiv 1703.06870), section 3, with torchvision's formulas.
    """
    first = torch.zeros(len(boxes), dtype=torch.long, device=boxes.device)
    return _read_regions([features[None]], [1 / scale], boxes, first, first, size, sampling, aligned=aligned)


def _read_regions(
    maps: Sequence[Tensor],
    strides: Sequence[float],
    boxes: Tensor,
    level: Tensor,
    owner: Tensor,
    size: int,
    sampling: int = 0,
    *,
    aligned: bool = True,
) -> Tensor:
    """`roi_align` of boxes (n, 4), each from the map of its level and owner (n,), (batch, channels, ...) per level.

    Reading is bilinear and points lie on a grid, so a bin weighs cells by a product of what rows and columns weigh, and
    all bins of all maps are one gather, whose gradient is cheap.
    """
    device, channels = boxes.device, maps[0].shape[1]
    # Places need more digits than bfloat16 has, so all of this is in float32.
    table = torch.cat([x.float().permute(0, 2, 3, 1).reshape(-1, channels) for x in maps])
    sizes = torch.tensor([0, *(x[:, 0].numel() for x in maps)], device=device)
    lengths = torch.tensor([[x.shape[3], x.shape[2]] for x in maps], device=device)[level]  # (n, 2): width, height
    first = sizes.cumsum(0)[level] + owner * lengths[:, 0] * lengths[:, 1]
    corners = boxes.detach().float() / torch.tensor(strides, device=device)[level, None] - (0.5 if aligned else 0.0)
    low, extent = corners[:, :2], corners[:, 2:] - corners[:, :2]
    extent = extent if aligned else extent.clamp_min(1.0)
    # A region without extent has no points and reads 0.
    points = torch.full_like(extent, sampling) if sampling else (extent / size).ceil().clamp_min(0)
    axes = [_bin_weights(low[:, i], extent[:, i], points[:, i], lengths[:, i], size) for i in range(2)]
    spans = torch.stack([span for _, _, span in axes], dim=1)
    indices, weights, counts, places = [], [], [], []
    # Regions that read as many cells stand together, so that a long one costs the others nothing.
    for width, height in spans.unique(dim=0).tolist():
        chosen = ((spans[:, 0] == width) & (spans[:, 1] == height)).nonzero()[:, 0]
        cells, heavy = [], []
        for (start, weight, _), span, length in zip(axes, (width, height), lengths[chosen].T, strict=True):
            cell = start[chosen, :, None] + torch.arange(span, device=device)  # (n, bins, cells)
            cells.append(torch.minimum(cell, length[:, None, None] - 1))
            heavy.append(weight[chosen, :, :span])
        rows = cells[1] * lengths[chosen, 0, None, None] + first[chosen, None, None]
        # (n, bins down, bins across, cells down, cells across)
        indices.append((rows[:, :, None, :, None] + cells[0][:, None, :, None, :]).flatten())
        weights.append((heavy[1][:, :, None, :, None] * heavy[0][:, None, :, None, :]).flatten())
        counts.append(torch.full((len(chosen) * size**2,), width * height, device=device))
        places.append(chosen)
    if not places:
        return maps[0].new_zeros(0, channels, size, size)
    ends, every = torch.cat(counts).cumsum(0), torch.cat(weights)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    read = F.embedding_bag(torch.cat(indices), table, starts, mode="sum", per_sample_weights=every)
    read = read.unflatten(0, (-1, size, size))[torch.cat(places).argsort()].permute(0, 3, 1, 2)
    return (read / points.clamp_min(1).prod(dim=1)[:, None, None, None]).to(maps[0])


def _bin_weights(
    low: Tensor, extent: Tensor, points: Tensor, length: Tensor, size: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Along one axis: the first cell of each bin (n, size), weights from there on (n, size, most), how many (n,).

    low, extent: (n,) in cells; points: (n,) per bin, which share a weight of their number; length: (n,) of the map.
    """
    most = int(points.max()) if len(points) else 0
    count, end = points[:, None, None].clamp_min(1), length[:, None, None]
    number = torch.arange(most, device=low.device)
    share = (torch.arange(size, device=low.device)[:, None] + (number + 0.5) / count) / size
    place = low[:, None, None] + share * extent[:, None, None]  # (n, size, points)
    # A point more than one cell outside reads nothing, one less far outside the nearest edge.
    seen = (place >= -1) & (place <= end) & (number < points[:, None, None])
    place = torch.minimum(place.clamp_min(0), end - 1.0)
    cell = place.floor()
    after, start = place - cell, cell.amin(dim=-1) if most else place.new_zeros(len(low), size)
    # Bilinear: a point weighs its cell and the next. From the first point to the last, rounded up, and these two.
    reach = ((1 - 1 / count[:, 0, 0]) * extent / size).abs().ceil().long() + 2
    found = place.new_zeros(len(low), size, int(reach.max()) if len(low) else 2)
    relative, last = (cell - start[..., None]).long(), found.shape[2] - 1
    found.scatter_add_(2, relative.clamp_max(last), seen * (1 - after))
    found.scatter_add_(2, (relative + 1).clamp_max(last), seen * after)
    return start.long(), found, reach


def pool_regions(maps: Sequence[Tensor], strides: Sequence[int], boxes: Sequence[Tensor], size: int) -> Tensor:
    """Each box from the level of the pyramid that fits its size: 224 pixels are read at stride 16.

    Args:
        maps: (batch, channels, ...) per level.
        strides: of the levels, each twice the last.
        boxes: (n, 4) per image, corners in pixels.
        size: bins along each side.

    Returns:
        (total, channels, size, size), image by image.

    Source: Feature pyramid networks (arXiv 1612.03144), equation 1.
    """
    flat = torch.cat(list(boxes))
    owner = torch.repeat_interleave(torch.tensor([len(one) for one in boxes])).to(flat.device)
    side = (flat[:, 2:] - flat[:, :2]).prod(dim=-1).clamp_min(0).sqrt()
    finest = int(math.log2(strides[0]))
    level = (4 + torch.log2(side / 224 + 1e-8)).floor().clamp(finest, finest + len(strides) - 1) - finest
    return _read_regions(maps, strides, flat, level.long(), owner, size)


MAX_GROWTH = math.log(1000 / 16)
"""Largest logarithm by which a box may grow: exp of anything that a fresh layer says would overflow."""


def encode_boxes(boxes: Tensor, targets: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """What moves boxes onto their targets: shifts in parts of their sides, and logarithms of growth, times weights.

    Args:
        boxes, targets: (n, 4), corners, with an area.
        weights: of x, y, width and height, which bring them to one spread.

    Returns:
        (n, 4).

    Source: R-CNN (arXiv 1311.2524), appendix C.
    """
    (centre, side), (goal, goal_side) = (((x[:, :2] + x[:, 2:]) / 2, x[:, 2:] - x[:, :2]) for x in (boxes, targets))
    return torch.cat([(goal - centre) / side, (goal_side / side).log()], dim=-1) * boxes.new_tensor(weights)


def decode_boxes(boxes: Tensor, deltas: Tensor, weights: Sequence[float] = (1.0, 1.0, 1.0, 1.0)) -> Tensor:
    """The inverse of `encode_boxes`; growth is bounded by `MAX_GROWTH`.

    Args:
        boxes, deltas: (n, 4), which give as many corners.
        weights: as they were encoded.
    """
    deltas = deltas.float() / deltas.new_tensor(weights, dtype=torch.float32)
    centre, side = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]
    centre, side = centre + deltas[:, :2] * side, side * deltas[:, 2:].clamp_max(MAX_GROWTH).exp()
    return torch.cat([centre - side / 2, centre + side / 2], dim=-1)


def grid_anchors(height: int, width: int, stride: int, side: float, ratios: Sequence[float], like: Tensor) -> Tensor:
    """Boxes of one area and several shapes around the corner of every cell, row by row.

    Args:
        height, width: of the map, in cells.
        stride: pixels per cell.
        side: root of the area, in pixels.
        ratios: height by width.
        like: a tensor of the wanted device.

    Returns:
        (height * width * ratios, 4) float32, corners; the ratios of a cell stand together.
    """
    shapes = torch.tensor([[side / r**0.5, side * r**0.5] for r in ratios], device=like.device)
    around = torch.cat([-shapes, shapes], dim=-1) / 2
    y, x = (torch.arange(n, device=like.device) * float(stride) for n in (height, width))
    corner = torch.stack([x.repeat(height), y.repeat_interleave(width)], dim=-1)
    return (corner.repeat(1, 2)[:, None] + around).flatten(0, 1)


def match_boxes(iou: Tensor, low: float, high: float, *, keep_best: bool = False) -> tuple[Tensor, Tensor]:
    """Which object every box stands for, and whether it is one.

    Args:
        iou: (objects, boxes).
        low, high: below the first a box is background, from the second on an object, between them it is ignored.
        keep_best: whether the best boxes of every object are objects too, however low their IoU.

    Returns:
        Index of the object that fits best (boxes,), and labels (boxes,): 1 object, 0 background, -1 ignored.
    """
    if not len(iou):
        nothing = torch.zeros(iou.shape[1], dtype=torch.long, device=iou.device)
        return nothing, nothing
    best, index = iou.max(dim=0)
    labels = torch.full_like(index, -1)
    labels[best < low] = 0
    labels[best >= high] = 1
    if keep_best:
        most = iou.max(dim=1, keepdim=True).values
        labels[((iou == most) & (most > 0)).any(dim=0)] = 1
    return index, labels


def draw_boxes(labels: Tensor, count: int, share: float) -> tuple[Tensor, Tensor]:
    """Indices of objects, at most their share of the count, and of background that fills it up, drawn at random.

    Args:
        labels: (boxes,) of `match_boxes`.
        count: of boxes in all.
        share: of objects, at most.
    """
    positive, negative = (labels == 1).nonzero()[:, 0], (labels == 0).nonzero()[:, 0]
    positive = positive[torch.randperm(len(positive), device=labels.device)[: int(count * share)]]
    negative = negative[torch.randperm(len(negative), device=labels.device)[: count - len(positive)]]
    return positive, negative


def paste_masks(masks: Tensor, boxes: Tensor, size: tuple[int, int], threshold: float = 0.5) -> Tensor:
    """Masks of regions at the size of their image.

    Args:
        masks: (n, side, side) probabilities.
        boxes: (n, 4), corners in pixels of the image.
        size: (height, width).
        threshold: probability from which on a pixel is inside.

    Returns:
        (n, height, width) bool.
    """
    out = torch.zeros(len(masks), *size, dtype=torch.bool, device=masks.device)
    y, x = (torch.arange(n, device=masks.device) + 0.5 for n in size)
    for i, (mask, box) in enumerate(zip(masks, boxes)):  # one by one: a picture may be large, and its boxes many
        side = (box[2:] - box[:2]).clamp_min(1e-6)
        across, down = 2 * (x - box[0]) / side[0] - 1, 2 * (y - box[1]) / side[1] - 1
        where = torch.stack(torch.broadcast_tensors(across[None], down[:, None]), dim=-1)
        out[i] = F.grid_sample(mask.float()[None, None], where[None], align_corners=False)[0, 0] >= threshold
    return out


@dataclass
class Truth:
    """Objects of one image. boxes: (n, 4) pixels; classes: (n,); masks: (n, height, width) of the padded image."""

    boxes: Tensor
    classes: Tensor
    masks: Tensor | None = None


@dataclass
class Found:
    """What was found in one image, best first: boxes (n, 4), scores and classes (n,), masks (n, side, side)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor | None = None


@dataclass
class CascadeSizes:
    """Sizes of the pyramid and the heads; defaults are those of the published detector.

    Args:
        channels: of the pyramid and all convolutions of the heads.
        head_dim: of the fully connected layer of a box head.
        num_convs: of a box head and of the mask head.
        proposal_convs: of the proposal network.
        anchor: side of the anchors of a level, in its strides: as published, 32 pixels at stride 4 to 512 at 64.
        proposals: kept per level before suppression, in training and otherwise; `kept_proposals` per image after.
        drawn_anchors, drawn_boxes: that one image's losses are made of.
        box_bins, mask_bins: sides of the regions; masks are twice as fine as theirs.
        has_masks: whether there is a mask head.
        candidates: best boxes of all classes that go into soft-NMS. The release has no such bound; it keeps 100.
        kept: boxes of an image at most.
    """

    channels: int = 256
    head_dim: int = 1024
    num_convs: int = 4
    proposal_convs: int = 2
    anchor: float = 8
    proposals: Sequence[int] = (2000, 1000)
    kept_proposals: int = 1000
    drawn_anchors: int = 256
    drawn_boxes: int = 512
    box_bins: int = 7
    mask_bins: int = 14
    has_masks: bool = True
    candidates: int = 1000
    kept: int = 100


STAGES = ((0.5, (10.0, 10.0, 5.0, 5.0)), (0.6, (20.0, 20.0, 10.0, 10.0)), (0.7, (30.0, 30.0, 15.0, 15.0)))
"""IoU from which on a box is an object, and weights of its regression, by stage (specification ONE-PEACE, 8.4)."""
RATIOS = (0.5, 1.0, 2.0)
STRIDES = (4, 8, 16, 32)
"""Of the levels that regions are read from; proposals are made at one more, twice as coarse."""


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map: (batch, channels, height, width) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        """input: (batch, channels, height, width)."""
        return super().forward(input.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def conv_norm_relu(channels: int, count: int) -> nn.Sequential:
    """`count` 3 x 3 convolutions with a norm and ReLU each."""
    layers: list[nn.Module] = []
    for _ in range(count):
        layers += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), ChannelNorm(channels), nn.ReLU()]
    return nn.Sequential(*layers)


def drawn_with(layer: Layer, std: float) -> Layer:
    """The layer with weights of this deviation and no bias; it keeps the number, as whoever draws anew needs it."""
    nn.init.normal_(layer.weight, std=std)
    assert layer.bias is not None
    nn.init.zeros_(layer.bias)
    cast("Any", layer).fresh_std = std
    return layer


class FeaturePyramid(nn.Module):
    """One map at stride 16 -> maps of equal width at strides 4, 8, 16, 32 and 64.

    Args:
        dim: width of the map.
        channels: of the pyramid.

    Example:
        >>> import torch
        >>> [len(x[0, 0]) for x in FeaturePyramid(32, 16)(torch.rand(1, 32, 8, 8))]
        [32, 16, 8, 4, 2]

    Source: ViTDet (arXiv 2203.16527), section 3, the simple feature pyramid.
    """

    def __init__(self, dim: int, channels: int) -> None:
        super().__init__()
        up = [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2), ChannelNorm(dim // 2), nn.GELU()]
        up += [nn.ConvTranspose2d(dim // 2, dim // 4, 2, stride=2)]
        scales = [up, [nn.ConvTranspose2d(dim, dim // 2, 2, stride=2)], [], [nn.MaxPool2d(2, ceil_mode=True)]]
        self.scales = nn.ModuleList()
        for layers, width in zip(scales, (dim // 4, dim // 2, dim, dim), strict=True):
            joined = [nn.Conv2d(width, channels, 1, bias=False), ChannelNorm(channels)]
            joined += [nn.Conv2d(channels, channels, 3, padding=1, bias=False), ChannelNorm(channels)]
            self.scales.append(nn.Sequential(*layers, *joined))

    def forward(self, x: Tensor) -> list[Tensor]:
        """x: (batch, dim, height, width) -> five maps (batch, channels, ...), the last thinned of the fourth."""
        maps = [scale(x) for scale in self.scales]
        return [*maps, maps[-1][:, :, ::2, ::2]]


class ProposalNetwork(nn.Module):
    """Maps -> boxes that may hold an object, of whatever class.

    Args:
        sizes: of the detector.

    Source: Faster R-CNN (arXiv 1506.01497), section 3.1.
    """

    def __init__(self, sizes: CascadeSizes) -> None:
        super().__init__()
        self.sizes, channels = sizes, sizes.channels
        convs = [drawn_with(nn.Conv2d(channels, channels, 3, padding=1), 0.01) for _ in range(sizes.proposal_convs)]
        self.convs = nn.Sequential(*(layer for conv in convs for layer in (conv, nn.ReLU())))
        self.objectness = drawn_with(nn.Conv2d(channels, len(RATIOS), 1), 0.01)
        self.deltas = drawn_with(nn.Conv2d(channels, 4 * len(RATIOS), 1), 0.01)

    def forward(
        self, maps: Sequence[Tensor], limits: Tensor, truths: Sequence[Truth] | None
    ) -> tuple[list[Tensor], dict[str, Tensor]]:
        """Proposals of every image, and the losses where the truth is given.

        Args:
            maps: (batch, channels, ...) of the pyramid.
            limits: (batch, 4), width, height, width, height of the images without padding.
            truths: of every image.

        Returns:
            (n, 4) per image, best first; losses by name.
        """
        scores, deltas, anchors, sizes = [], [], [], self.sizes
        for x, stride in zip(maps, (*STRIDES, 2 * STRIDES[-1]), strict=True):
            hidden = self.convs(x)
            scores.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.deltas(hidden).unflatten(1, (-1, 4)).permute(0, 3, 4, 1, 2).flatten(1, 3).float())
            anchors.append(grid_anchors(x.shape[2], x.shape[3], stride, sizes.anchor * stride, RATIOS, x))
        losses: dict[str, Tensor] = {}
        if truths is not None:
            losses = self._losses(torch.cat(anchors), torch.cat(scores, 1), torch.cat(deltas, 1), truths)
        found = []
        most = sizes.proposals[0 if self.training else 1]
        for picture, limit in enumerate(limits):
            boxes, kept_scores = [], []
            for anchor, score, delta in zip(anchors, scores, deltas, strict=True):
                best, order = score[picture].detach().topk(min(most, len(anchor)))
                decoded = clipped(decode_boxes(anchor[order], delta[picture, order].detach()), limit)
                good = ((decoded[:, 2:] - decoded[:, :2]) > 0).all(dim=1) & decoded.isfinite().all(dim=1)
                decoded, best = decoded[good], best[good]
                # Level by level: a small box inside a large one is another object.
                kept = nms(decoded, best, 0.7)
                boxes.append(decoded[kept])
                kept_scores.append(best[kept])
            order = torch.cat(kept_scores).argsort(descending=True, stable=True)[: self.sizes.kept_proposals]
            found.append(torch.cat(boxes)[order])
        return found, losses

    def _losses(self, anchors: Tensor, scores: Tensor, deltas: Tensor, truths: Sequence[Truth]) -> dict[str, Tensor]:
        """Cross entropy and L1 of drawn anchors, both over the number that should be drawn, as released."""
        count = self.sizes.drawn_anchors
        objectness, boxes = [], []
        for score, delta, truth in zip(scores, deltas, truths, strict=True):
            index, labels = match_boxes(box_iou(truth.boxes, anchors), 0.3, 0.7, keep_best=True)
            positive, negative = draw_boxes(labels, count, 0.5)
            drawn = torch.cat([positive, negative])
            objectness.append(F.binary_cross_entropy_with_logits(score[drawn], labels[drawn].float(), reduction="sum"))
            goal = encode_boxes(anchors[positive], truth.boxes[index[positive]])
            boxes.append(F.l1_loss(delta[positive], goal, reduction="sum"))
        total = count * len(truths)
        return {
            "proposal_score": torch.stack(objectness).sum() / total,
            "proposal_box": torch.stack(boxes).sum() / total,
        }


def clipped(boxes: Tensor, limit: Tensor) -> Tensor:
    """Boxes (n, 4) inside of an image; limit: (4,), its width, height, width, height."""
    return torch.minimum(boxes.clamp_min(0), limit)


class BoxHead(nn.Module):
    """Regions -> scores of `num_classes` and of background, and one change of the box for all classes."""

    def __init__(self, num_classes: int, sizes: CascadeSizes) -> None:
        super().__init__()
        inner = sizes.channels * sizes.box_bins**2
        self.convs = conv_norm_relu(sizes.channels, sizes.num_convs)
        self.fc = drawn_with(nn.Linear(inner, sizes.head_dim), inner**-0.5)
        self.scores = drawn_with(nn.Linear(sizes.head_dim, num_classes + 1), 0.01)
        self.deltas = drawn_with(nn.Linear(sizes.head_dim, 4), 0.001)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """regions: (n, channels, bins, bins) -> logits (n, num_classes + 1), background last; deltas (n, 4)."""
        hidden = F.relu(self.fc(self.convs(regions).flatten(1)))
        return self.scores(hidden).float(), self.deltas(hidden).float()


class MaskHead(nn.Module):
    """Regions -> logits of a mask for each of `num_classes`, twice as fine as the region."""

    def __init__(self, num_classes: int, sizes: CascadeSizes) -> None:
        super().__init__()
        self.convs = conv_norm_relu(sizes.channels, sizes.num_convs)
        self.up = nn.ConvTranspose2d(sizes.channels, sizes.channels, 2, stride=2)
        self.masks = drawn_with(nn.Conv2d(sizes.channels, num_classes, 1), 0.001)

    def forward(self, regions: Tensor, classes: Tensor) -> Tensor:
        """regions: (n, channels, bins, bins), classes: (n,) -> logits (n, 2 * bins, 2 * bins) of each one's class."""
        maps = self.masks(F.relu(self.up(self.convs(regions)))).float()
        return maps[torch.arange(len(maps), device=maps.device), classes]


class CascadeDetector(nn.Module):
    """A map at stride 16 of any backbone -> boxes, classes and masks; three stages, each with stricter boxes.

    Args:
        dim: width of the map.
        num_classes: without background.
        sizes: of pyramid and heads.

    Example:
        >>> import torch
        >>> sizes = CascadeSizes(channels=16, head_dim=32, num_convs=1)
        >>> detector = CascadeDetector(32, 3, sizes).eval()
        >>> found, _ = detector(torch.rand(1, 32, 8, 8), torch.tensor([[128, 128]]))
        >>> found[0].masks.shape[1:]
        torch.Size([28, 28])

    Source: Cascade R-CNN (arXiv 1712.00726); ViTDet (arXiv 2203.16527); specification ONE-PEACE, 8.4.
    """

    def __init__(self, dim: int, num_classes: int, sizes: CascadeSizes) -> None:
        super().__init__()
        self.sizes, self.num_classes = sizes, num_classes
        self.pyramid = FeaturePyramid(dim, sizes.channels)
        self.proposals = ProposalNetwork(sizes)
        self.stages = nn.ModuleList(BoxHead(num_classes, sizes) for _ in STAGES)
        self.mask_head = MaskHead(num_classes, sizes) if sizes.has_masks else None

    def forward(
        self, x: Tensor, pictures: Tensor, truths: Sequence[Truth] | None = None, *, find: bool = True
    ) -> tuple[list[Found], dict[str, Tensor]]:
        """What is in every image, and the losses where the truth is given.

        Args:
            x: (batch, dim, height, width) at stride 16.
            pictures: (batch, 2) width and height of the images without their padding, in pixels.
            truths: of every image, for training.
            find: whether boxes are wanted.

        Returns:
            A `Found` per image (none without `find`), and losses by name.
        """
        maps, limits = self.pyramid(x), pictures.repeat(1, 2).to(x.device, torch.float32)
        proposals, losses = self.proposals(maps, limits, truths)
        maps = maps[: len(STRIDES)]
        if truths is not None:
            losses |= self._losses(maps, limits, proposals, truths)
        return self._found(maps, limits, proposals) if find else [], losses

    def _losses(
        self, maps: Sequence[Tensor], limits: Tensor, proposals: Sequence[Tensor], truths: Sequence[Truth]
    ) -> dict[str, Tensor]:
        """Losses of the three stages and of the masks.

        The first stage draws boxes; later ones take what the stage before made of these, and match them anew.
        """
        losses: dict[str, Tensor] = {}
        boxes: list[Tensor] = []
        for proposed, truth in zip(proposals, truths, strict=True):
            # The truth is among the proposals, so that there is something to learn from the first step on.
            every = torch.cat([proposed, truth.boxes])
            _, labels = match_boxes(box_iou(truth.boxes, every), STAGES[0][0], STAGES[0][0])
            boxes.append(every[torch.cat(draw_boxes(labels, self.sizes.drawn_boxes, 0.25))])
        first: list[tuple[Tensor, Tensor, Tensor]] = []
        for number, (head, (least, weights)) in enumerate(zip(self.stages, STAGES, strict=True)):
            matched = [match_boxes(box_iou(t.boxes, b), least, least) for b, t in zip(boxes, truths, strict=True)]
            # Three stages read the same maps: each one's gradient counts a third there, as released.
            logits, deltas = head(
                _scaled_gradient(pool_regions(maps, STRIDES, boxes, self.sizes.box_bins), 1 / len(STAGES))
            )
            is_object = torch.cat([labels == 1 for _, labels in matched])
            # Background is the last class; an empty picture has no class that an index could mean.
            classes = torch.cat(
                [t.classes[i] if len(t.classes) else i for (i, _), t in zip(matched, truths, strict=True)]
            ).where(is_object, self.num_classes)
            losses[f"class_{number}"] = F.cross_entropy(logits, classes)
            goal = torch.cat(
                [t.boxes[i] if len(t.boxes) else b for b, (i, _), t in zip(boxes, matched, truths, strict=True)]
            )
            flat = torch.cat(boxes)
            wanted = encode_boxes(flat[is_object], goal[is_object], weights)
            losses[f"box_{number}"] = F.l1_loss(deltas[is_object], wanted, reduction="sum") / max(len(flat), 1)
            if not first:
                first = [(b[m == 1], i[m == 1], t.classes) for b, (i, m), t in zip(boxes, matched, truths, strict=True)]
            boxes = self._refined(boxes, deltas.detach(), weights, limits)
        if self.mask_head is not None and any(truth.masks is not None for truth in truths):
            losses["mask"] = self._mask_loss(maps, first, truths)
        return losses

    def _mask_loss(
        self, maps: Sequence[Tensor], chosen: Sequence[tuple[Tensor, Tensor, Tensor]], truths: Sequence[Truth]
    ) -> Tensor:
        """Cross entropy of masks in boxes that stand for objects. chosen: boxes, their objects, classes of objects."""
        assert self.mask_head is not None
        # Pictures of a batch may come without masks: they take no part.
        boxes = [b if t.masks is not None else b[:0] for (b, _, _), t in zip(chosen, truths, strict=True)]
        side, goals = 2 * self.sizes.mask_bins, []
        for box, (_, index, _), truth in zip(boxes, chosen, truths, strict=True):
            if len(box):
                masks = cast("Tensor", truth.masks)[:, None].to(box)
                level = torch.zeros_like(index)
                goals.append(_read_regions([masks], [1], box, level, index, side)[:, 0] >= 0.5)
        classes = torch.cat([c[i] if len(b) else i[:0] for b, (_, i, c) in zip(boxes, chosen, strict=True)])
        logits = self.mask_head(pool_regions(maps, STRIDES, boxes, self.sizes.mask_bins), classes)
        if not goals:
            return logits.sum() * 0  # every process issues the same collectives
        return F.binary_cross_entropy_with_logits(logits, torch.cat(goals).to(logits))

    @staticmethod
    def _refined(boxes: Sequence[Tensor], deltas: Tensor, weights: Sequence[float], limits: Tensor) -> list[Tensor]:
        """Boxes as a stage changes them, inside of their pictures; those that lost their area stay as they were."""
        out = []
        for box, delta, limit in zip(boxes, deltas.split([len(b) for b in boxes]), limits, strict=True):
            new = clipped(decode_boxes(box, delta, weights), limit)
            good = ((new[:, 2:] - new[:, :2]) > 0).all(dim=1, keepdim=True)
            out.append(torch.where(good, new, box))
        return out

    def _found(self, maps: Sequence[Tensor], limits: Tensor, boxes: list[Tensor]) -> list[Found]:
        """Boxes of the last stage with the mean of all stages' scores, after soft-NMS, and their masks."""
        scores = torch.zeros((), device=limits.device)
        for head, (_, weights) in zip(self.stages, STAGES, strict=True):
            logits, deltas = head(pool_regions(maps, STRIDES, boxes, self.sizes.box_bins))
            scores = scores + logits.softmax(dim=-1)[:, :-1] / len(STAGES)
            boxes = self._refined(boxes, deltas, weights, limits)
        found = []
        for box, score in zip(boxes, scores.split([len(b) for b in boxes]), strict=True):
            best, place = score.flatten().topk(min(self.sizes.candidates, score.numel()))
            # Each box stands there once per class.
            candidates, classes = box[place // self.num_classes], place % self.num_classes
            kept, rescored = soft_nms(candidates, best, classes)
            kept, rescored = kept[: self.sizes.kept], rescored[: self.sizes.kept]
            found.append(Found(candidates[kept], rescored, classes[kept]))
        if self.mask_head is not None:
            places = [one.boxes for one in found]
            regions = pool_regions(maps, STRIDES, places, self.sizes.mask_bins)
            masks = self.mask_head(regions, torch.cat([one.classes for one in found])).sigmoid()
            for one, mask in zip(found, masks.split([len(place) for place in places]), strict=True):
                one.masks = mask
        return found


def _scaled_gradient(x: Tensor, factor: float) -> Tensor:
    """x itself, whose gradient is multiplied by a factor."""
    return x * factor + (x * (1 - factor)).detach()
