"""Boxes, regions and the cascade: value tables and slow loops after torchvision's formulas, then properties."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from plait.nn.detection import (
    CascadeDetector,
    CascadeSizes,
    FeaturePyramid,
    ProposalNetwork,
    Truth,
    box_iou,
    decode_boxes,
    draw_boxes,
    encode_boxes,
    grid_anchors,
    maskness_scores,
    match_boxes,
    nms,
    paste_masks,
    pool_regions,
    roi_align,
    semantic_map,
    soft_nms,
)

SIZES = CascadeSizes(channels=8, head_dim=16, num_convs=1, drawn_boxes=16, drawn_anchors=32, proposals=(64, 32), kept=7)


def read(feature: Tensor, y: float, x: float) -> float:
    """Bilinear reading of one channel, as torchvision's kernel writes it."""
    height, width = feature.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = max(y, 0.0), max(x, 0.0)
    top, left = int(y), int(x)
    if top >= height - 1:
        top = bottom = height - 1
        y = float(top)
    else:
        bottom = top + 1
    if left >= width - 1:
        left = right = width - 1
        x = float(left)
    else:
        right = left + 1
    down, across = y - top, x - left
    near = feature[top, left] * (1 - across) + feature[top, right] * across
    far = feature[bottom, left] * (1 - across) + feature[bottom, right] * across
    return float(near * (1 - down) + far * down)


def slow_roi_align(features: Tensor, boxes: Tensor, size: int, scale: float, sampling: int, aligned: bool) -> Tensor:
    out = torch.zeros(len(boxes), len(features), size, size)
    shift = 0.5 if aligned else 0.0
    for n, box in enumerate(boxes.tolist()):
        x0, y0, x1, y1 = (value * scale - shift for value in box)
        width, height = x1 - x0, y1 - y0
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        down, across = (sampling or math.ceil(side / size) for side in (height, width))
        for c, feature in enumerate(features):
            for i in range(size):
                for j in range(size):
                    total = 0.0
                    for a in range(down):
                        for b in range(across):
                            y = y0 + (i + (a + 0.5) / down) * height / size
                            x = x0 + (j + (b + 0.5) / across) * width / size
                            total += read(feature, y, x)
                    out[n, c, i, j] = total / max(down * across, 1)
    return out


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("sampling", [0, 2])
def test_roi_align_is_torchvisions_formula(sampling: int, aligned: bool) -> None:
    torch.manual_seed(0)
    features = torch.randn(2, 6, 9)
    boxes = torch.tensor(
        [
            [0, 0, 36, 24],  # the whole map
            [3.3, 1.7, 20.9, 15.2],
            [-14, -9, 5, 4],  # begins outside
            [30, 20, 60, 50],  # ends far outside
            [5, 5, 5, 5],  # no extent
            [8, 2, 9, 23],  # a thin one
        ],
        dtype=torch.float32,
    )
    found = roi_align(features, boxes, 3, scale=0.25, sampling=sampling, aligned=aligned)
    torch.testing.assert_close(found, slow_roi_align(features, boxes, 3, 0.25, sampling, aligned), atol=2e-6, rtol=1e-5)


def test_roi_align_reads_a_ramp_at_bin_centres() -> None:
    ramp = torch.arange(8.0).expand(1, 8, 8)
    # Cell centres lie at .5: a box over cells 2 and 3 has bins whose means are the cells themselves.
    assert roi_align(ramp, torch.tensor([[2.0, 2, 4, 4]]), 2)[0, 0].tolist() == [[2.0, 3.0], [2.0, 3.0]]


def test_roi_align_hands_gradients_to_the_map_alone() -> None:
    features = torch.randn(2, 5, 5, requires_grad=True)
    boxes = torch.tensor([[1.0, 1, 4, 3]], requires_grad=True)
    roi_align(features, boxes, 2).sum().backward()
    assert features.grad is not None and features.grad.sum().item() == pytest.approx(2 * 4, rel=1e-5)
    assert boxes.grad is None


def test_a_map_of_one_cell_reads_its_value() -> None:
    assert roi_align(torch.full((1, 1, 1), 3.0), torch.tensor([[0.0, 0, 1, 1]]), 2).eq(3).all()


def test_iou_of_boxes_by_hand() -> None:
    a = torch.tensor([[0.0, 0, 2, 2], [1, 1, 1, 1]])
    b = torch.tensor([[1.0, 1, 3, 3], [0, 0, 2, 2], [5, 5, 6, 6], [1, 1, 1, 1]])
    torch.testing.assert_close(box_iou(a, b), torch.tensor([[1 / 7, 1.0, 0, 0], [0, 0, 0, 0]]))


def test_suppression_is_the_loop_of_the_textbook() -> None:
    torch.manual_seed(1)
    low = torch.rand(60, 2) * 20
    boxes, scores = torch.cat([low, low + 1 + torch.rand(60, 2) * 10], 1), torch.rand(60)
    kept: list[int] = []
    for i in scores.argsort(descending=True).tolist():
        if all(box_iou(boxes[i][None], boxes[j][None]) <= 0.4 for j in kept):
            kept.append(i)
    assert nms(boxes, scores, 0.4).tolist() == kept and 5 < len(kept) < 60
    assert nms(boxes[:0], scores[:0], 0.4).tolist() == []
    # An overlap of the threshold itself is none too many: half of the first box is the second.
    assert nms(torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5]]), torch.tensor([0.9, 0.8]), 0.5).tolist() == [0, 1]


def test_scores_fall_as_each_way_says_within_a_class() -> None:
    # IoU with the first: 0.5, 0.8; the last is of another class.
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 8], [0, 0, 10, 10]])
    scores, classes = torch.tensor([0.9, 0.8, 0.7, 0.6]), torch.tensor([1, 1, 1, 0])
    kept, values = soft_nms(boxes, scores, classes, threshold=0.55)
    # The second stays whole; it overlaps the third by 5/8, the first does by 4/5.
    assert kept.tolist() == [0, 1, 3, 2] and values.tolist() == pytest.approx([0.9, 0.8, 0.6, 0.7 * 0.2 * 0.375])
    kept, values = soft_nms(boxes[:2], scores[:2], classes[:2], method="gaussian", sigma=0.5)
    assert values.tolist() == pytest.approx([0.9, 0.8 * math.exp(-(0.5**2) / 0.5)])
    kept, values = soft_nms(boxes, scores, classes, method="hard", threshold=0.5)
    assert kept.tolist() == [0, 3] and values.tolist() == pytest.approx([0.9, 0.6])
    assert soft_nms(boxes, scores, classes, threshold=0.55, prune=0.06)[0].tolist() == [0, 1, 3]


def test_sure_masks_keep_their_scores() -> None:
    masks = torch.tensor([[[0.9, 0.7], [0.1, 0.5]], [[0.2, 0.3], [0.1, 0.4]]])
    # Pixels of 0.9 and 0.7 lie inside; of the second mask none does.
    assert maskness_scores(torch.tensor([0.5, 0.8]), masks).tolist() == pytest.approx([0.5 * 0.8, 0.0])


def test_queries_vote_by_what_they_are_sure_to_see() -> None:
    classes = torch.tensor([[[0.0, 0.0, math.log(2)], [math.log(3), 0.0, 0.0]]])
    masks = torch.tensor([[[[0.0]], [[math.log(3)]]]])
    # The first query sees nothing by a half, so each class has a quarter; the second says three fifths.
    wanted = [0.25 * 0.5 + 0.6 * 0.75, 0.25 * 0.5 + 0.2 * 0.75]
    assert semantic_map(classes, masks).flatten().tolist() == pytest.approx(wanted)


def test_a_box_is_coded_by_shifts_and_logarithms() -> None:
    box, target = torch.tensor([[10.0, 20, 30, 60]]), torch.tensor([[15.0, 20, 55, 40]])
    # centres (20, 40) -> (35, 30), sides (20, 40) -> (40, 20)
    wanted = torch.tensor([[15 / 20 * 10, -10 / 40 * 10, math.log(2) * 5, math.log(0.5) * 5]])
    coded = encode_boxes(box, target, (10, 10, 5, 5))
    torch.testing.assert_close(coded, wanted)
    torch.testing.assert_close(decode_boxes(box, coded, (10, 10, 5, 5)), target)
    grown = decode_boxes(box, torch.tensor([[0.0, 0, 99, 0]]))
    assert (grown[0, 2] - grown[0, 0]).item() == pytest.approx(20 * 1000 / 16, rel=1e-5)


def test_anchors_stand_around_the_corners_of_cells() -> None:
    anchors = grid_anchors(1, 2, 16, 32, (0.5, 1.0, 2.0), torch.zeros(1))
    wide = 32 * 2**0.5 / 2
    wanted = [[-wide, -wide / 2, wide, wide / 2], [-16, -16, 16, 16], [-wide / 2, -wide, wide / 2, wide]]
    torch.testing.assert_close(anchors[:3], torch.tensor(wanted))
    torch.testing.assert_close(anchors[3:], torch.tensor(wanted) + torch.tensor([16.0, 0, 16, 0]))


@pytest.mark.parametrize("anchor", [8, 2])
def test_proposals_begin_as_the_anchors_of_their_sizes(anchor: int) -> None:
    torch.manual_seed(0)
    maps = [torch.zeros(1, 4, n, n) for n in (16, 8, 4, 2, 1)]
    network = ProposalNetwork(CascadeSizes(channels=4, proposal_convs=1, anchor=anchor)).eval()
    # Maps of zeros ask for no change, so proposals are the anchors, cut at the edges of the picture.
    (found,), _ = network(maps, torch.tensor([[64.0] * 4]), None)
    inside = found[((found > 0) & (found < 64)).all(dim=1)]
    sides = (inside[:, 2:] - inside[:, :2]).prod(dim=1).sqrt()
    assert sides.min().item() == pytest.approx(4 * anchor, rel=1e-4)


def test_an_object_that_no_anchor_fits_teaches_its_best_ones() -> None:
    torch.manual_seed(0)
    network = ProposalNetwork(CascadeSizes(channels=4, proposal_convs=1))
    maps = [torch.zeros(1, 4, n, n) for n in (16, 8, 4, 2, 1)]
    small = Truth(torch.tensor([[20.0, 20, 26, 26]]), torch.tensor([0]))  # beside anchors of 32 pixels
    _, losses = network(maps, torch.tensor([[64.0] * 4]), [small])
    assert losses["proposal_box"].item() > 0


def test_proposals_of_one_place_are_one() -> None:
    torch.manual_seed(0)
    network = ProposalNetwork(CascadeSizes(channels=4, proposal_convs=1)).eval()
    with torch.no_grad():  # every anchor becomes a point, which the picture's edge holds apart from nothing
        network.deltas.bias.copy_(torch.tensor([0.0, 0, 5, 5]).repeat(3))
    (found,), _ = network([torch.zeros(1, 4, n, n) for n in (16, 8, 4, 2, 1)], torch.tensor([[64.0] * 4]), None)
    # All anchors grow over the whole picture: one of each of the five levels is left.
    assert found.tolist() == [[0, 0, 64, 64]] * 5


def test_boxes_are_matched_by_their_best_object() -> None:
    iou = torch.tensor([[0.8, 0.2, 0.5, 0.0], [0.1, 0.25, 0.6, 0.0]])
    index, labels = match_boxes(iou, 0.3, 0.7)
    assert index.tolist()[:3] == [0, 1, 1] and labels.tolist() == [1, 0, -1, 0]
    assert match_boxes(iou, 0.3, 0.7, keep_best=True)[1].tolist() == [1, 0, 1, 0]
    assert match_boxes(iou[:0], 0.3, 0.7)[1].tolist() == [0] * 4


def test_drawn_boxes_fill_up_with_background() -> None:
    labels = torch.tensor([1] * 10 + [0] * 50 + [-1] * 40)
    positive, negative = draw_boxes(labels, 32, 0.25)
    assert len(positive) == 8 and len(negative) == 24
    assert labels[positive].eq(1).all() and labels[negative].eq(0).all() and len(set(negative.tolist())) == 24


def test_regions_are_read_from_the_level_of_their_size() -> None:
    maps = [torch.full((2, 1, 512 // s, 512 // s), float(s)) for s in (4, 8, 16, 32)]
    boxes = [torch.tensor([[0.0, 0, 50, 50], [0, 0, 112, 112], [0, 0, 223, 223]]), torch.tensor([[0.0, 0, 500, 480]])]
    read = pool_regions(maps, (4, 8, 16, 32), boxes, 2)
    torch.testing.assert_close(read, torch.tensor([4.0, 8, 8, 32])[:, None, None, None].expand(4, 1, 2, 2))


def test_regions_of_all_pictures_and_levels_are_what_each_reads_alone() -> None:
    torch.manual_seed(2)
    maps = [torch.randn(2, 3, 256 // s, 192 // s) for s in (4, 8, 16, 32)]
    low = torch.rand(40, 2) * 180 - 20
    flat = torch.cat([low, low + torch.rand(40, 2) ** 2 * 300], dim=1)
    flat[3, 2:], flat[5] = flat[3, :2], torch.tensor([-90.0, -90, -60, -60])  # without extent, and far outside
    together = pool_regions(maps, (4, 8, 16, 32), [flat[:25], flat[25:]], 3)
    for i, box in enumerate(flat):
        side = (box[2:] - box[:2]).prod().sqrt()
        level = int((torch.log2(side / 224 + 1e-8) + 4).floor().clamp(2, 5)) - 2
        alone = roi_align(maps[level][int(i >= 25)], box[None], 3, scale=1 / (4, 8, 16, 32)[level])
        torch.testing.assert_close(together[i], alone[0], atol=1e-5, rtol=1e-4)
    assert together[3].eq(0).all() and together[5].eq(0).all() and together[:3].abs().sum() > 0
    assert pool_regions(maps, (4, 8, 16, 32), [flat[:0]] * 2, 3).shape == (0, 3, 3, 3)


def test_masks_are_pasted_where_their_boxes_are() -> None:
    half = torch.zeros(1, 4, 4)
    half[:, :, :2] = 1.0
    pasted = paste_masks(half, torch.tensor([[2.0, 1, 6, 3]]), (4, 8))
    wanted = torch.zeros(4, 8, dtype=torch.bool)
    wanted[1:3, 2:4] = True
    assert torch.equal(pasted[0], wanted)


def test_a_pyramid_has_five_strides_also_of_odd_maps() -> None:
    shapes = [tuple(x.shape[1:]) for x in FeaturePyramid(16, 8)(torch.rand(1, 16, 5, 7))]
    assert shapes == [(8, 20, 28), (8, 10, 14), (8, 5, 7), (8, 3, 4), (8, 2, 2)]


@pytest.fixture(scope="module")
def detector() -> CascadeDetector:
    torch.manual_seed(0)
    return CascadeDetector(8, 2, SIZES)


def test_found_boxes_lie_inside_of_their_pictures(detector: CascadeDetector) -> None:
    pictures = torch.tensor([[128, 96], [64, 128]])
    found, losses = detector.eval()(torch.randn(2, 8, 8, 8), pictures)
    assert not losses
    for one, (width, height) in zip(found, pictures.tolist()):
        assert 0 < len(one.boxes) <= 7 and one.masks is not None and one.masks.shape[1:] == (28, 28)
        assert one.boxes.min() >= 0 and one.boxes[:, 0::2].max() <= width and one.boxes[:, 1::2].max() <= height
        assert one.scores.diff().le(0).all() and one.classes.max() < 2


def test_every_parameter_learns_and_an_empty_picture_teaches_background(detector: CascadeDetector) -> None:
    torch.manual_seed(0)
    mask = torch.zeros(1, 128, 128)
    mask[:, 30:80, 20:90] = 1
    truths = [
        Truth(torch.tensor([[20.0, 30, 90, 80]]), torch.tensor([1]), mask),
        Truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long), torch.zeros(0, 128, 128)),
    ]
    detector.train()
    found, losses = detector(torch.randn(2, 8, 8, 8), torch.tensor([[128, 128]] * 2), truths, find=False)
    assert found == [] and sorted(losses) == [
        "box_0", "box_1", "box_2", "class_0", "class_1", "class_2", "mask", "proposal_box", "proposal_score",
    ]  # fmt: skip
    torch.stack(list(losses.values())).sum().backward()
    without = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
    assert without == []


def alone(**sizes: int) -> tuple[CascadeDetector, Tensor, Tensor, Truth]:
    """A detector without proposals: it learns from the truth's own boxes, so nothing is drawn at random."""
    torch.manual_seed(0)
    net = CascadeDetector(8, 2, CascadeSizes(**{**vars(SIZES), "kept_proposals": 0, **sizes}))
    masks = torch.zeros(2, 128, 128)
    masks[0, 30:80, 20:90], masks[1, 10:60, 10:20] = 1, 1
    truth = Truth(torch.tensor([[20.0, 30, 90, 80], [10, 10, 60, 60]]), torch.tensor([1, 0]), masks)
    return net.train(), torch.randn(1, 8, 8, 8), torch.tensor([[128, 128]]), truth


def test_the_truth_is_among_what_is_learned_from_and_three_stages_pull_a_third_each() -> None:
    net, x, pictures, truth = alone()
    maps = [level.detach().requires_grad_() for level in net.pyramid(x)[:4]]
    losses = net._losses(maps, pictures.repeat(1, 2).float(), [torch.zeros(0, 4)], [truth])
    assert losses["mask"].item() == pytest.approx(math.log(2), abs=0.01)  # of masks that say nothing yet
    pulled = torch.autograd.grad(losses["class_0"], maps, allow_unused=True)
    logits, _ = net.stages[0](pool_regions(maps, (4, 8, 16, 32), [truth.boxes], 7))
    whole = torch.autograd.grad(torch.nn.functional.cross_entropy(logits, truth.classes), maps, allow_unused=True)
    seen = [(one, other) for one, other in zip(pulled, whole, strict=True) if one is not None]
    assert seen
    for one, other in seen:
        torch.testing.assert_close(3 * one, other, atol=1e-6, rtol=1e-3)


def test_a_stage_learns_from_the_boxes_that_the_one_before_made() -> None:
    net, x, pictures, truth = alone()
    with torch.no_grad():
        net.stages[0].deltas.bias.copy_(torch.tensor([5.0, 0, 0, 0]))  # half a side to the right: IoU 1/3
        net.stages[1].scores.weight.zero_()
        net.stages[1].scores.bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    _, losses = net(x, pictures, [truth], find=False)
    assert losses["class_1"].item() < 0.01  # both are background to the second stage


def test_every_region_learns_the_mask_of_its_own_object_and_class() -> None:
    net, x, pictures, truth = alone()
    assert net.mask_head is not None and truth.masks is not None
    for said, wanted in (((-9.0, 9.0), "own"), ((9.0, -9.0), "other")):
        with torch.no_grad():
            net.mask_head.masks.weight.zero_()
            net.mask_head.masks.bias.copy_(torch.tensor(said))
        # The first object, of class 1, fills its box; the second, of class 0, the left fifth of its own.
        _, losses = net(x, pictures, [truth], find=False)
        assert losses["mask"].item() == pytest.approx(0.9 if wanted == "own" else 8.1, abs=0.3)


def test_scores_are_the_mean_of_three_stages() -> None:
    net, x, pictures, _ = alone(kept_proposals=8)
    said = torch.tensor([[4.0, 0, 0], [0, 4.0, 0], [1.0, 0, 2.0]])
    with torch.no_grad():
        for stage, bias in zip(net.stages, said, strict=True):
            stage.scores.weight.zero_()
            stage.scores.bias.copy_(bias)
    (found,), _ = net.eval()(x, pictures)
    assert found.scores[0].item() == pytest.approx(float(said.softmax(-1).mean(0)[:2].max()), abs=1e-5)


def test_stages_have_their_published_thresholds() -> None:
    from plait.nn import detection

    assert detection.STAGES == ((0.5, (10, 10, 5, 5)), (0.6, (20, 20, 10, 10)), (0.7, (30, 30, 15, 15)))
