"""The detector: transformers' contract, weights of the encoder, saving, and errors of one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoBackbone, AutoImageProcessor, AutoModelForObjectDetection, pipeline

import plait
from plait.models.one_peace import (
    DetectionConfig,
    OnePeaceConfig,
    OnePeaceForObjectDetection,
    OnePeaceImageProcessor,
    OnePeaceModel,
    OnePeaceProcessor,
)
from plait.processing.regions import detection_labels, fit, read_objects

SMALL = {
    "channels": 8, "head_dim": 16, "num_convs": 1, "proposal_convs": 1, "drawn_boxes": 16, "drawn_anchors": 32,
    "proposals": [64, 32], "kept": 6,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> OnePeaceModel:
    torch.manual_seed(0)
    config = OnePeaceConfig.preset("nano", num_layers=2, dim=32, num_heads=2, mlp_dim=48)
    return OnePeaceModel(config).eval()


@pytest.fixture(scope="module")
def detector(encoder: OnePeaceModel) -> OnePeaceForObjectDetection:
    torch.manual_seed(0)
    return OnePeaceForObjectDetection.from_encoder(encoder, ["cat", "dog", "cow"], 96, **SMALL).eval()


@pytest.fixture
def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 120, 3), dtype=np.uint8))


def labels_of(picture: Image.Image, side: int = 96) -> dict[str, torch.Tensor]:
    mask = np.zeros((60, 120), np.uint8)
    mask[10:40, 20:80] = 1
    row = {"bbox": [20, 10, 60, 30], "category_id": 7, "segmentation": mask}
    return detection_labels(fit(picture, side, read_objects([row], {7: 2}, picture.size, "a.png")))


def test_the_backbone_starts_with_the_encoders_weights(
    encoder: OnePeaceModel, detector: OnePeaceForObjectDetection
) -> None:
    net, branch = detector.model.net, encoder.adapters["image"]
    assert torch.equal(net.bias_table, branch.bias.tables[0])
    assert torch.equal(net.position_embedding, branch.position_embedding)
    assert torch.equal(net.trunk.layers[1].attn.q_proj.weight, encoder.trunk.layers[1].attn.q_proj.weight)
    assert torch.equal(
        net.trunk.layers[0].mlp["image"].up_proj.weight, encoder.trunk.layers[0].mlp["image"].up_proj.weight
    )
    assert not net.axes[0].height.any()


def test_outputs_are_those_of_transformers_detectors(
    detector: OnePeaceForObjectDetection, picture: Image.Image
) -> None:
    from transformers import DetrImageProcessorPil

    processor = OnePeaceProcessor.from_config(detector.config)
    batch = processor(images=[picture, picture.rotate(90, expand=True)])
    assert batch["pixel_values"].shape == (2, 3, 96, 96)
    assert batch["pixel_mask"].sum(dim=(1, 2)).tolist() == [96 * 48] * 2
    with torch.no_grad():
        outputs = detector(**batch)
    assert outputs.logits.shape == (2, 6, 4) and outputs.pred_boxes.shape == (2, 6, 4)
    sizes = torch.tensor([[60, 120], [120, 60]])
    ours = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes, return_masks=True)
    # The post-processing that users of other detectors write reads the same.
    theirs = DetrImageProcessorPil().post_process_object_detection(outputs, threshold=0.0, target_sizes=sizes)
    for one, other, (height, width) in zip(ours, theirs, sizes.tolist(), strict=True):
        for name in ("scores", "labels", "boxes"):
            torch.testing.assert_close(one[name], other[name])
        assert one["masks"].shape == (len(one["scores"]), height, width) and one["boxes"][:, 2].max() <= width + 1e-3
        assert (one["mask_scores"] <= one["scores"] + 1e-6).all()
    # Scores are those of three classes and nothing: some lie above a quarter, some below.
    (some, _) = processor.post_process_object_detection(outputs, threshold=float(ours[0]["scores"].median()))
    assert len(some["scores"]) == int((ours[0]["scores"] > ours[0]["scores"].median()).sum()) < 6
    with pytest.raises(ValueError, match=r"expected 2 target_sizes, got 1; one per picture"):
        processor.post_process_object_detection(outputs, target_sizes=sizes[:1])


def test_boxes_are_learned_in_pixels_of_the_picture_without_its_padding(
    detector: OnePeaceForObjectDetection, picture: Image.Image
) -> None:
    # 120 x 60 pixels become 96 x 48 of the square: the box is x 20 to 80, y 10 to 40 before.
    (truth,) = detector._truths([labels_of(picture)], torch.tensor([[96, 48]]), (96, 96))
    torch.testing.assert_close(truth.boxes, torch.tensor([[16.0, 8, 64, 32]]))


def test_a_padded_picture_is_found_as_in_a_batch(detector: OnePeaceForObjectDetection, picture: Image.Image) -> None:
    processor = OnePeaceProcessor.from_config(detector.config)
    with torch.no_grad():
        both = detector(**processor(images=[picture, Image.new("RGB", (50, 90), "red")]))
        alone = detector(**processor(images=picture))
    torch.testing.assert_close(both.pred_boxes[:1], alone.pred_boxes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(both.logits[:1].softmax(-1), alone.logits.softmax(-1), atol=1e-5, rtol=1e-4)


def test_it_learns_one_picture(detector: OnePeaceForObjectDetection, picture: Image.Image) -> None:
    torch.manual_seed(0)
    model = copy.deepcopy(detector).train()
    processor = OnePeaceProcessor.from_config(model.config)
    batch, labels = processor(images=picture), [labels_of(picture)]
    optimiser = torch.optim.AdamW(model.parameters(), lr=2e-3)
    losses = []
    for _ in range(30):
        out = model(**batch, labels=labels)
        assert out.logits is None and "mask" in out.loss_dict
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    with torch.no_grad():
        out = model.eval()(**batch, labels=labels)
    assert out.logits is not None and out.loss.isfinite()
    found = processor.post_process_object_detection(out, 0.0, [(60, 120)])[0]
    assert int(found["labels"][0]) == 2


def test_a_saved_detector_answers_the_same_everywhere(
    detector: OnePeaceForObjectDetection, picture: Image.Image, tmp_path: Path
) -> None:
    processor = OnePeaceProcessor.from_config(detector.config)
    processor.image_processor.image_mean = [0.4, 0.5, 0.6]  # as a person's own pictures may need
    detector.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with torch.no_grad():
        wanted = detector(**processor(images=picture)).logits
        loaded, ours = plait.load(tmp_path)
        assert isinstance(loaded, OnePeaceForObjectDetection) and loaded.config.id2label[1] == "dog"
        assert torch.equal(loaded(**ours(images=picture)).logits, wanted)
        theirs = AutoModelForObjectDetection.from_pretrained(tmp_path).eval()
        reader = AutoImageProcessor.from_pretrained(tmp_path)
        assert isinstance(reader, OnePeaceImageProcessor)
        inputs = reader(images=picture, return_tensors="pt")
        torch.testing.assert_close(theirs(**inputs).logits, wanted, atol=2e-3, rtol=1e-3)
        backbone = AutoBackbone.from_config(loaded.config)
        assert backbone.channels == [32]
        backbone = AutoBackbone.from_pretrained(tmp_path)
        assert torch.equal(backbone(inputs["pixel_values"]).feature_maps[0],
                           theirs.model(inputs["pixel_values"]).feature_maps[0])  # fmt: skip


def test_mixed_precision_keeps_boxes_whole(detector: OnePeaceForObjectDetection, picture: Image.Image) -> None:
    batch = OnePeaceProcessor.from_config(detector.config)(images=picture)
    model = copy.deepcopy(detector).bfloat16()
    with torch.no_grad():
        out = model(**batch)
        mixed = torch.autocast("cpu", torch.bfloat16)
        with mixed:
            also = detector(**batch)
    assert out.pred_boxes.dtype == torch.float32 and out.logits.isfinite().all() and also.logits.isfinite().all()
    with mixed:
        loss = copy.deepcopy(detector).train()(**batch, labels=[labels_of(picture)]).loss
    assert loss.isfinite()


def test_the_backbone_exports(detector: OnePeaceForObjectDetection) -> None:
    batch = torch.export.Dim("batch", min=1, max=8)
    pixels = torch.rand(2, 3, 96, 96)
    program = torch.export.export(
        detector.model, (), {"pixel_values": pixels}, dynamic_shapes={"pixel_values": {0: batch}}
    )
    with torch.no_grad():
        wanted = detector.model(pixel_values=pixels[:1]).feature_maps[0]
        found = program.module()(pixel_values=pixels[:1]).feature_maps[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class_labels": torch.tensor([3])}, r"expected classes 0 to 2, got \[3\]; map ids to classes"),
        ({"boxes": torch.tensor([[0.9, 0.5, 0.4, 0.2]])}, "expected boxes inside of the picture as shares"),
        ({"boxes": torch.tensor([[40.0, 30, 20, 10]])}, "expected boxes inside of the picture as shares"),
        ({"masks": torch.zeros(1, 60, 120)}, r"expected masks \(1, 96, 96\), got \(1, 60, 120\); pad them alike"),
    ],
)
def test_wrong_labels_are_one_line(
    detector: OnePeaceForObjectDetection, picture: Image.Image, change: dict[str, torch.Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        detector(pixel_values=torch.rand(1, 3, 96, 96), labels=[labels_of(picture) | change])


def test_a_detector_needs_its_sizes_and_classes(encoder: OnePeaceModel) -> None:
    with pytest.raises(ValueError, match=r"expected config.num_classes for a detector, got 0"):
        OnePeaceForObjectDetection(OnePeaceConfig.preset("nano", detection=DetectionConfig()))
    with pytest.raises(ValueError, match=r"expected config.detection for a detector, got None"):
        OnePeaceForObjectDetection(OnePeaceConfig.preset("nano", num_classes=2))
    with pytest.raises(ValueError, match=r"expected fields of DetectionConfig, got windows"):
        OnePeaceConfig.preset("nano", detection={"windows": 2})
    with pytest.raises(ValueError, match=r"a multiple of 16 pixels, got 100"):
        OnePeaceForObjectDetection.from_encoder(encoder, ["cat"], 100)


ROWS = [{"bbox": [20, 10, 60, 30], "category_id": 2, "area": 1500, "iscrowd": 0,
         "segmentation": [[20, 10, 80, 10, 80, 40, 20, 40]]}]  # fmt: skip


def test_pipelines_detect(detector: OnePeaceForObjectDetection, picture: Image.Image, tmp_path: Path) -> None:
    detector.save_pretrained(tmp_path)
    OnePeaceProcessor.from_config(detector.config).save_pretrained(tmp_path)
    picture.save(tmp_path / "a.png")
    run = pipeline("object-detection", model=str(tmp_path), device="cpu")
    found = run([str(tmp_path / "a.png"), picture.rotate(90, expand=True)], threshold=0.0, batch_size=2)
    processor = OnePeaceProcessor.from_config(detector.config)
    with torch.no_grad():
        outputs = detector(**processor(images=[picture, picture.rotate(90, expand=True)]))
    wanted = processor.post_process_object_detection(outputs, 0.0, [(60, 120), (120, 60)])
    for rows, one in zip(found, wanted, strict=True):
        assert [row["label"] for row in rows] == [detector.config.id2label[int(label)] for label in one["labels"]]
        assert np.allclose([row["score"] for row in rows], one["scores"], atol=1e-4)
        assert np.allclose([list(row["box"].values()) for row in rows], one["boxes"].int(), atol=1)


def test_the_image_processor_makes_labels_as_detectors_of_transformers_do(
    detector: OnePeaceForObjectDetection, picture: Image.Image
) -> None:
    from transformers import DetrImageProcessorPil

    ours = OnePeaceProcessor.from_config(detector.config).image_processor
    theirs = DetrImageProcessorPil(size={"shortest_edge": 48, "longest_edge": 96}, format="coco_detection")
    given = [{"image_id": 4, "annotations": ROWS}, {"image_id": 5, "annotations": []}]
    batch = ours(images=[picture] * 2, annotations=given, return_tensors="pt")
    other = theirs(images=[picture] * 2, annotations=given, return_tensors="pt")
    for mine, wanted in zip(batch["labels"], other["labels"], strict=True):
        for name in ("class_labels", "boxes", "image_id", "orig_size", "size", "iscrowd"):
            torch.testing.assert_close(mine[name], wanted[name], check_dtype=False)
    assert batch["labels"][0]["area"].tolist() == [1500]
    loss = copy.deepcopy(detector).train()(**batch).loss
    assert loss.isfinite()
    masks = ours(picture, annotations=given[0], return_segmentation_masks=True)["labels"][0]["masks"]
    assert masks.shape == (1, 96, 96) and int(masks.sum()) == 48 * 24


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"annotations": []}, "expected image_id and annotations of every image, got annotations"),
        ([{"image_id": 1, "annotations": []}] * 2, "expected annotations of 1 images, got 2"),
        ({"image_id": 1, "annotations": [{**ROWS[0], "bbox": [90, 0, 60, 30]}]}, "image 1: expected a box inside"),
        ({"image_id": 1, "annotations": [{**ROWS[0], "iscrowd": 1}]}, "image 1: expected an object that is no crowd"),
        ({"image_id": 1, "annotations": [{**ROWS[0], "segmentation": None}]}, "expected a segmentation of every"),
    ],
)
def test_wrong_annotations_are_one_line(
    detector: OnePeaceForObjectDetection, picture: Image.Image, given: Any, message: str
) -> None:
    ours = OnePeaceProcessor.from_config(detector.config).image_processor
    with pytest.raises(ValueError, match=message):
        ours(picture, annotations=given, return_segmentation_masks=True)


def test_an_encoder_takes_no_annotations(encoder: OnePeaceModel, picture: Image.Image) -> None:
    ours = OnePeaceProcessor.from_config(encoder.config).image_processor
    with pytest.raises(ValueError, match="expected annotations for a detector"):
        ours(picture, annotations={"image_id": 1, "annotations": ROWS})
