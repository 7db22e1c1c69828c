"""A resized checkpoint goes on where it was: how far its features and its answers move, against wrong tables."""

from __future__ import annotations

import pytest
import torch

from plait.models.mplug_owl2.config import AbstractorConfig, VisionConfig
from plait.models.mplug_owl2.processor import MPlugOwl2Processor
from plait.models.mplug_owl2.weights import resized

from .tiny import byte_tokenizer, images, model_and_processor, redraw

VISION = VisionConfig(dim=32, num_heads=2, num_layers=2, mlp_dim=48, image_size=64, patch_size=4)
READER = AbstractorConfig(num_queries=8, num_heads=2, num_layers=2, mlp_dim=48, grid_size=16)


@pytest.fixture(scope="module")
def model():
    found, _ = model_and_processor(vision=VISION, abstractor=READER)
    redraw(found, std=0.1)
    with torch.no_grad():  # trained position tables are smooth
        coarse = torch.randn(1, 32, 4, 4, generator=torch.Generator().manual_seed(0)) / 2
        table = torch.nn.functional.interpolate(coarse, size=16, mode="bicubic", align_corners=False)
        found.model.vision.position_embedding[0, 1:] = table.flatten(2)[0].T
    return found


@torch.no_grad()
def seen(model):
    """Logits of the first answer piece (vocabulary,), and the picture's features (queries, dim)."""
    processor = MPlugOwl2Processor.from_config(model.config, byte_tokenizer())
    batch = processor(text="USER: <|image|>What is it? ASSISTANT:", images=[images()[3]])
    return model(**batch).logits[0, -1], model.model.encode_images(batch["pixel_values"])[0, :-1]


def distance(a, b):
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("side", [32, 96, 128])
def test_another_image_size_moves_answers_little(model, side):
    logits, features = seen(model)
    larger, wrong = resized(model, image_size=side), resized(model, image_size=side)
    with torch.no_grad():
        wrong.model.vision.position_embedding.normal_()
    found, found_features = seen(larger)
    assert distance(found, logits) < 0.02 and distance(found_features, features) < 0.1
    assert 3 * distance(found, logits) < distance(seen(wrong)[0], logits)


@pytest.mark.parametrize("count", [4, 12, 16])
def test_more_or_fewer_queries_read_what_the_old_ones_read(model, count):
    _, features = seen(model)
    _, found = seen(resized(model, num_queries=count))
    scale = features.norm(dim=1).mean()
    assert len(found) == count and torch.cdist(found, features).min(1).values.max() < 0.03 * scale
    if count == 16:  # every old one twice
        assert distance(found.mean(0), features.mean(0)) < 0.02


@torch.no_grad()
def test_text_alone_is_untouched_and_the_same_sizes_change_nothing(model):
    ids = torch.randint(2, 258, (1, 9))
    changed = resized(model, image_size=96, num_queries=12)
    assert torch.equal(changed(ids).logits, model(ids).logits)
    again = resized(model, image_size=64, num_queries=8)
    assert torch.equal(seen(again)[0], seen(model)[0])
