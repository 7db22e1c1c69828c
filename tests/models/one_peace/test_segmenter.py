"""The segmenter: transformers' contract, windows, names of the release, verbs, and errors of one line."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoBackbone, AutoModelForUniversalSegmentation, pipeline

import plait
from plait.cli import main
from plait.models.one_peace import OnePeaceConfig, OnePeaceForUniversalSegmentation, OnePeaceModel, OnePeaceProcessor

SMALL = {
    "stem_channels": 4, "num_points": 2, "num_heads": 2, "head_dim": 32, "head_heads": 2, "num_queries": 6,
    "head_mlp_dim": 32, "pixel_layers": 1, "query_layers": 2, "num_loss_points": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder() -> OnePeaceModel:
    torch.manual_seed(0)
    config = OnePeaceConfig.preset("nano", dim=32, num_heads=2, mlp_dim=48, modalities=["text", "image"])
    return OnePeaceModel(config).eval()


@pytest.fixture(scope="module")
def segmenter(encoder: OnePeaceModel) -> OnePeaceForUniversalSegmentation:
    torch.manual_seed(0)
    return OnePeaceForUniversalSegmentation.from_encoder(encoder, ["sky", "grass", "cow"], **SMALL).eval()


def labels() -> dict[str, list[torch.Tensor]]:
    masks = torch.zeros(2, 64, 64, dtype=torch.bool)
    masks[0, :32], masks[1, 32:] = True, True
    return {"mask_labels": [masks], "class_labels": [torch.tensor([0, 2])]}


def test_the_backbone_starts_with_the_encoders_weights(
    encoder: OnePeaceModel, segmenter: OnePeaceForUniversalSegmentation
) -> None:
    vision = segmenter.model.net.vision
    assert torch.equal(vision.trunk.layers[3].attn.q_proj.weight, encoder.trunk.layers[3].attn.q_proj.weight)
    assert not segmenter.model.net.injectors[0].gamma.any()
    assert segmenter.model.net.prior.stem[0][1].weight.eq(1).all()
    assert [len(maps[0, 0]) for maps in segmenter.model(torch.rand(1, 3, 64, 64)).feature_maps] == [16, 8, 4, 2]


def test_it_learns_one_picture(segmenter: OnePeaceForUniversalSegmentation) -> None:
    torch.manual_seed(0)
    model, pixels = copy.deepcopy(segmenter).train(), torch.rand(2, 3, 64, 64)
    both = {name: values * 2 for name, values in labels().items()}
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(25):
        out = model(pixel_values=pixels, **both)
        optimiser.zero_grad()
        out.loss.backward()
        optimiser.step()
        losses.append(float(out.loss.detach()))
    assert losses[-1] < 0.6 * losses[0]
    assert all(p.grad is not None for p in model.transformer.parameters())
    model.eval()
    with torch.no_grad():
        out = model(pixel_values=pixels)
    (found, _) = OnePeaceProcessor.from_config(model.config).post_process_semantic_segmentation(out, [(64, 64)] * 2)
    assert (found[:28] == 0).float().mean() > 0.8 and (found[36:] == 2).float().mean() > 0.8


def test_our_post_processing_is_that_of_mask2former(segmenter: OnePeaceForUniversalSegmentation) -> None:
    from transformers import Mask2FormerImageProcessorPil

    with torch.no_grad():
        out = segmenter(pixel_values=torch.rand(2, 3, 64, 64))
    sizes = [(64, 64), (64, 64)]
    ours = OnePeaceProcessor.from_config(segmenter.config).post_process_semantic_segmentation(out, sizes)
    theirs = Mask2FormerImageProcessorPil().post_process_semantic_segmentation(out, sizes)
    # Theirs resizes the masks to 384 pixels before they are weighed, hence a few other pixels at borders.
    for one, other in zip(ours, theirs, strict=True):
        assert (one == other).float().mean() > 0.9
    with pytest.raises(ValueError, match=r"expected 2 target_sizes, got 1; one per picture"):
        OnePeaceProcessor.from_config(segmenter.config).post_process_semantic_segmentation(out, sizes[:1])


def test_one_window_is_the_picture_and_windows_cover_larger_ones(segmenter: OnePeaceForUniversalSegmentation) -> None:
    from plait.nn.detection import semantic_map

    pixels = torch.rand(3, 64, 64)
    with torch.no_grad():
        out = segmenter(pixel_values=pixels[None])
        masks = torch.nn.functional.interpolate(out.masks_queries_logits, size=(64, 64), mode="bilinear")
        whole = semantic_map(out.class_queries_logits, masks)[0]
        torch.testing.assert_close(segmenter.segment(pixels), whole, atol=1e-5, rtol=1e-4)
        wide = torch.rand(3, 70, 130)
        found = segmenter.segment(wide, stride=40)
        assert found.shape == (3, 70, 130) and found.isfinite().all()
        # A corner is seen by one window alone.
        corner = segmenter.segment(wide[:, :64, :64])
        torch.testing.assert_close(found[:, :6, :40], corner[:, :6, :40], atol=1e-5, rtol=1e-4)
        small = segmenter.segment(torch.rand(3, 40, 64), scales=(0.5, 1.0, 1.25), flip=True)
        assert small.shape == (3, 40, 64) and small.isfinite().all()


def test_names_of_the_release_go_there_and_back(segmenter: OnePeaceForUniversalSegmentation) -> None:
    state, rules = segmenter.state_dict(), segmenter.key_map()
    official = rules.backward(state)
    assert "decode_head.transformer_decoder.layers.1.attentions.1.attn.in_proj_weight" in official
    assert "decode_head.pixel_decoder.encoder.layers.0.ffns.0.layers.0.0.weight" in official
    assert "backbone.interactions.3.extra_extractors.1.gamma" not in official and "backbone.level_embed" in official
    there, _ = rules.forward(official)
    assert there.keys() == state.keys() and all(torch.equal(there[key], state[key]) for key in state)


def test_a_saved_segmenter_answers_the_same_and_its_verb_writes_maps(
    segmenter: OnePeaceForUniversalSegmentation, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    model = tmp_path / "model"
    segmenter.save_pretrained(model)
    OnePeaceProcessor.from_config(segmenter.config).save_pretrained(model)
    pixels = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        wanted = segmenter(pixel_values=pixels).masks_queries_logits
        assert torch.equal(plait.load(model)[0](pixel_values=pixels).masks_queries_logits, wanted)
        loaded = AutoModelForUniversalSegmentation.from_pretrained(model).eval()
        assert torch.equal(loaded(pixel_values=pixels).masks_queries_logits, wanted)
    backbone = AutoBackbone.from_pretrained(model, out_features=["stage2", "stage4"]).eval()
    assert backbone.channels == [32] * 2 and backbone.out_indices == [1, 3]
    with torch.no_grad():
        for one, other in zip(backbone(pixels).feature_maps, segmenter.model(pixels).feature_maps[1::2], strict=True):
            assert torch.equal(one, other)
    backbone.save_pretrained(tmp_path / "two")
    assert AutoBackbone.from_pretrained(str(tmp_path / "two")).out_features == ["stage2", "stage4"]
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 90, 3), dtype=np.uint8)).save(tmp_path / "a.png")
    capsys.readouterr()
    options = ["--masks", str(tmp_path / "maps"), "--draw", str(tmp_path / "drawn"), "--json", "--device", "cpu"]
    assert main(["segment", str(model), str(tmp_path / "a.png"), *options]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    shares = {one["label"]: one["share"] for one in json.loads(line)["classes"]}
    assert sum(shares.values()) == pytest.approx(1, abs=1e-4) and shares.keys() <= {"sky", "grass", "cow"}
    with Image.open(tmp_path / "maps" / "a.png") as grey:
        assert grey.mode == "L" and grey.size == (90, 50) and np.asarray(grey).max() < 3
    assert (tmp_path / "drawn" / "a.png").is_file()
    assistant = plait.Assistant(model, device="cpu")
    assert assistant.segment(tmp_path / "a.png").shape == (50, 90)
    # What is looked at several times is the mean of these looks, by the scales that are published.
    prepared, size = assistant.skills.prepare("image", tmp_path / "a.png")
    with torch.no_grad():
        looks = [assistant.model.segment(prepared, scales=(side / 896,), flip=True) for side in range(384, 1153, 128)]
    mean = torch.nn.functional.interpolate(torch.stack(looks).mean(0)[None], size=size, mode="bilinear")[0].argmax(0)
    assert (assistant.segment(tmp_path / "a.png", multi_scale=True) == mean.numpy()).mean() > 0.999


def test_heads_of_transformers_stand_on_the_backbone(segmenter: OnePeaceForUniversalSegmentation) -> None:
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    sizes = {"hidden_size": 8, "auxiliary_channels": 8, "auxiliary_in_channels": 32, "pool_scales": [1, 2]}
    model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=segmenter.config, num_labels=3, **sizes))
    out = model(pixel_values=torch.rand(2, 3, 64, 64), labels=torch.randint(0, 3, (2, 64, 64)))
    out.loss.backward()
    assert out.logits.shape == (2, 3, 64, 64)
    assert model.backbone.net.vision.trunk.layers[0].attn.q_proj.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"out_features": ["stage5"]}, "expected out_features among stage1, stage2, stage3, stage4, got stage5"),
        ({"out_indices": [4]}, "expected out_indices from -4 to 3, got 4"),
        ({"out_features": ["stage1"], "out_indices": [2]}, "expected out_features and out_indices of the same maps"),
    ],
)
def test_wrong_maps_are_one_line(segmenter: OnePeaceForUniversalSegmentation, wanted: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AutoBackbone.from_config(segmenter.config, **wanted)


def test_it_works_in_mixed_precision(segmenter: OnePeaceForUniversalSegmentation) -> None:
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = segmenter(pixel_values=torch.rand(1, 3, 64, 64), **labels())
    assert out.class_queries_logits.isfinite().all() and out.masks_queries_logits.isfinite().all()
    assert out.loss.isfinite()


@pytest.mark.slow
def test_the_backbone_exports(segmenter: OnePeaceForUniversalSegmentation) -> None:
    backbone, pixels = segmenter.model, torch.rand(2, 3, 64, 64)
    free = {"pixel_values": {0: torch.export.Dim("batch", min=1, max=8)}}
    program = torch.export.export(backbone, (), {"pixel_values": pixels}, dynamic_shapes=free)
    with torch.no_grad():
        wanted = backbone(pixel_values=pixels[:1]).feature_maps
        found = program.module()(pixel_values=pixels[:1]).feature_maps
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize(
    ("part", "fields", "field"),
    [
        ("segmentation", {"num_points": "many"}, "num_points"),
        ("segmentation", {"head_dim": None}, "head_dim"),
        ("segmentation", {"groups": 3}, "groups"),
        ("detection", {"channels": "wide"}, "channels"),
        ("detection", {"window": 1.5}, "window"),
        ("detection", {"kept": float("inf")}, "kept"),
    ],
)
def test_sizes_of_another_type_are_one_line(part: str, fields: dict, field: str) -> None:
    with pytest.raises(ValueError, match=rf"expected .*{field} of \w+Config"):
        OnePeaceConfig.preset("nano", **{part: fields})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"class_labels": [torch.tensor([0, 3])]},
            r"labels 0: expected classes 0 to 2, got \[0, 3\]; map ids to classes",
        ),
        (
            {"mask_labels": [torch.zeros(2, 32, 64)]},
            r"expected masks \(2, 64, 64\), got \(2, 32, 64\); make them alike",
        ),
        ({"mask_labels": []}, r"expected labels of 1 pictures, got 0 and 1"),
        ({"mask_labels": None}, r"expected mask_labels and class_labels together, got one of them; give both"),
    ],
)
def test_wrong_labels_are_one_line(
    segmenter: OnePeaceForUniversalSegmentation, change: dict[str, list[torch.Tensor]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        segmenter(pixel_values=torch.rand(1, 3, 64, 64), **(labels() | change))


@pytest.mark.parametrize("reduces", [False, True])
def test_maps_become_labels_as_those_of_mask2former_do(
    segmenter: OnePeaceForUniversalSegmentation, reduces: bool
) -> None:
    from transformers import Mask2FormerImageProcessorPil

    generator = np.random.default_rng(0)
    picture = Image.fromarray(generator.integers(0, 255, (32, 128, 3), dtype=np.uint8))
    grid = np.repeat(np.repeat(generator.integers(0, 3, (4, 8)), 8, axis=0), 16, axis=1).astype(np.uint8)
    if not reduces:  # where 0 is of no class theirs takes 255 for class 254
        grid[:, :16] = 255
    ours = OnePeaceProcessor.from_config(segmenter.config).image_processor
    theirs = Mask2FormerImageProcessorPil(size={"height": 64, "width": 64}, ignore_index=255, do_reduce_labels=reduces)
    batch = ours([picture], segmentation_maps=[grid], do_reduce_labels=reduces, return_tensors="pt")
    other = theirs([picture], segmentation_maps=[grid], return_tensors="pt")
    assert torch.equal(batch["class_labels"][0], other["class_labels"][0])
    assert torch.equal(batch["mask_labels"][0].float(), other["mask_labels"][0])
    assert copy.deepcopy(segmenter).train()(**batch).loss.isfinite()
    with pytest.raises(ValueError, match=r"expected a map of integers \(32, 128\), got uint8 \(16, 128\)"):
        ours(picture, segmentation_maps=grid[:16])
    with pytest.raises(ValueError, match="expected maps of 1 images for a segmenter, got 2"):
        ours(picture, segmentation_maps=[grid, grid])


def test_pipelines_segment(segmenter: OnePeaceForUniversalSegmentation, tmp_path: Path) -> None:
    processor = OnePeaceProcessor.from_config(segmenter.config)
    segmenter.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    picture = Image.effect_mandelbrot((90, 50), (-2, -1, 1, 1), 20).convert("RGB")
    found = pipeline("image-segmentation", model=str(tmp_path), device="cpu")(picture, subtask="semantic")
    with torch.no_grad():
        outputs = segmenter(**processor(images=picture))
    (classes,) = processor.post_process_semantic_segmentation(outputs, [(50, 90)])
    assert [row["label"] for row in found] == [segmenter.config.id2label[c] for c in classes.unique().tolist()]
    assert sum((np.asarray(row["mask"]) == 255).sum() for row in found) == 50 * 90
