"""What trains: stages by name, LoRA with PEFT, gradients that exist on every rank, layer-wise depth."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from plait.models.mplug_owl2.tasks import (
    decays,
    lora_saved,
    lora_targets,
    pretraining_names,
    vision_depth,
    without_tower,
)
from plait.training.stages import freeze

from .tiny import images, model_and_processor


def batch_of(processor, with_image: bool = True):
    asked = "<|image|>what?" if with_image else "what?"
    conversation = [{"from": "human", "value": asked}, {"from": "gpt", "value": "a cat"}]
    return processor.supervised([conversation], images()[:1] if with_image else None)


@pytest.mark.parametrize("routed", [("norm", "k", "v"), ()])
def test_a_batch_of_text_gives_towers_gradients_of_zero(routed) -> None:
    model, processor = model_and_processor(routed=routed)
    model.train()(**batch_of(processor, with_image=False)).loss.backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert all(grad is not None for grad in grads.values())
    for name, grad in grads.items():
        silent = name.startswith(("model.vision.", "model.abstractor.")) or ".visual." in name
        assert bool((grad != 0).any()) is not silent, name


def test_a_batch_with_images_gives_every_parameter_a_gradient() -> None:
    model, processor = model_and_processor()
    model.train()(**batch_of(processor)).loss.backward()
    dead = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # behind the last attention only text leads to the loss
    assert dead == ["model.decoder.layers.1.mlp_norm.visual.weight"]


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_disable` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_checkpointed_training_gives_the_same_gradients() -> None:
    model, processor = model_and_processor()
    model.train()
    found = []
    for switch in (model.gradient_checkpointing_disable, model.gradient_checkpointing_enable):
        switch()
        model.zero_grad()
        model(**batch_of(processor)).loss.backward()
        found.append([p.grad.clone() for p in model.parameters()])
    assert model.model.decoder.gradient_checkpointing and model.model.vision.gradient_checkpointing
    for a, b in zip(*found):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_lora_trains_adapters_and_abstractor_only(tmp_path) -> None:
    model, processor = model_and_processor()
    base = {name: value.clone() for name, value in model.state_dict().items()}
    settings = LoraConfig(r=2, lora_alpha=4, target_modules=lora_targets(model), modules_to_save=lora_saved())
    tuned = get_peft_model(model, settings)
    trained = {name for name, p in tuned.named_parameters() if p.requires_grad}
    abstractor = {name for name in trained if ".abstractor." in name}
    adapters = trained - abstractor
    assert all(".lora_A." in name or ".lora_B." in name for name in adapters)
    assert len(adapters) == 2 * 2 * 9  # two layers of q, o, k and v in two ways, gate, up, down; A and B each
    assert len(abstractor) == sum(1 for name in base if name.startswith("model.abstractor."))
    assert not any("vision" in name or "lm_head" in name for name in trained)
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        tuned(**batch_of(processor)).loss.backward()
        optimizer.step()
    tuned.save_pretrained(tmp_path)
    fresh, _ = model_and_processor()
    merged = PeftModel.from_pretrained(fresh, tmp_path).merge_and_unload()
    changed = {name for name, value in merged.state_dict().items() if not torch.equal(value, base[name])}
    expected = {f"{name}.weight" for name in lora_targets(merged)} | {
        n for n in base if n.startswith("model.abstractor.")
    }
    assert changed <= expected and {n for n in expected if "decoder" in n} <= changed
    batch = batch_of(processor)
    torch.testing.assert_close(merged.eval()(**batch).logits, tuned.eval()(**batch).logits, atol=1e-4, rtol=1e-4)


def test_pretraining_leaves_the_language_model_alone() -> None:
    model, processor = model_and_processor()
    before = model(**processor(text="words only")).logits
    trained, frozen = freeze(model, pretraining_names(model))
    assert all(name.startswith(("model.vision.", "model.abstractor.")) or ".visual." in name for name in trained)
    assert "lm_head.weight" in frozen
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1.0)
    assert torch.equal(model(**processor(text="words only")).logits, before)


def test_the_released_script_freezes_the_tower_only() -> None:
    model, _ = model_and_processor()
    left = {name for name, _ in model.named_parameters()} - set(without_tower(model))
    assert left and all(name.startswith("model.vision.") for name in left)


def test_decay_spares_biases_and_layer_norms() -> None:
    model, _ = model_and_processor()
    decayed = {name for name, p in model.named_parameters() if decays(model)(name, p)}
    assert "model.decoder.norm.weight" in decayed and "model.abstractor.end" in decayed
    assert "model.vision.pre_norm.weight" not in decayed and not any("bias" in name for name in decayed)


def test_depth_counts_the_layers_of_the_tower() -> None:
    depth = vision_depth(24)
    names = ["model.vision.position_embedding", "model.vision.layers.0.fc1.weight", "model.vision.layers.23.fc1.bias"]
    assert [depth(name) for name in names] == [0, 1, 24]
    assert depth("model.abstractor.end") == depth("lm_head.weight") == 25
