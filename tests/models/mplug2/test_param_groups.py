"""The vision encoder learns slower, and what has no direction to shrink to does not decay."""

from __future__ import annotations

from torch import nn

from plait.models.mplug2.pretraining import decays, layer_id
from plait.training.optim import parameter_groups

from ...parity.released import official_group


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = nn.ModuleDict(
        {"vision": nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3)), "text": nn.Linear(3, 3), "teacher": nn.Linear(2, 2)}
    )
    model["teacher"].requires_grad_(False)
    groups = parameter_groups(
        model.named_parameters(),
        weight_decay=0.02,
        no_decay=lambda name, parameter: not decays(name, parameter.ndim),
        layer_id=layer_id,
        layer_decay=0.1,
    )
    found = {name: (group["weight_decay"], group["lr_scale"]) for group in groups for name in group["names"]}
    assert found == {
        "vision.0.weight": (0.02, 0.1),
        "vision.0.bias": (0.0, 0.1),
        "vision.1.weight": (0.0, 0.1),
        "vision.1.bias": (0.0, 0.1),
        "text.weight": (0.02, 1.0),
        "text.bias": (0.0, 1.0),
    }
    assert sum(len(group["params"]) for group in groups) == len(found)


def test_tables_and_latents_do_not_decay() -> None:
    assert not decays("text.position_embeddings.weight", 2)
    assert not decays("text.layers.22.latents", 2)
    assert decays("text.word_embeddings.weight", 2)


def test_officially_norms_of_clip_decay() -> None:
    assert official_group("visual_encoder.visual.ln_pre.weight") == "lr2_decay"
    assert official_group("text_encoder.embeddings.LayerNorm.weight") == "lr1_nodecay"
    assert official_group("fusion_encoder_m.encoder.layer.0.output.dense.weight") == "lr1_decay"
    assert official_group("visual_encoder_m.visual.proj") == "none"
