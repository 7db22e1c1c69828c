"""A model begins as CLIP and BERT: where their layers run alone, ours gives what theirs gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, CLIPVisionConfig, CLIPVisionModel

from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.model import MPlug2Model
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.models.mplug2.weights import start_from


@pytest.fixture
def clip(tmp_path: Path) -> CLIPVisionModel:
    config = CLIPVisionConfig(
        hidden_size=24, num_attention_heads=3, num_hidden_layers=2, intermediate_size=96, image_size=12, patch_size=4,
        hidden_act="quick_gelu",
    )  # fmt: skip
    model = CLIPVisionModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    model.save_pretrained(tmp_path / "clip")
    return model


@pytest.fixture
def bert(tmp_path: Path) -> BertForMaskedLM:
    config = BertConfig(
        hidden_size=24, num_attention_heads=3, num_hidden_layers=4, intermediate_size=64, vocab_size=112,
        max_position_embeddings=24, layer_norm_eps=1e-12,
    )  # fmt: skip
    model = BertForMaskedLM(config).eval()
    model.save_pretrained(tmp_path / "bert")
    return model


@torch.no_grad()
def test_vision_begins_as_clip(clip: CLIPVisionModel, tmp_path: Path, pictures: torch.Tensor) -> None:
    model = MPlug2Model(MPlug2Config.preset("tiny")).eval()
    fresh = start_from(model, clip=tmp_path / "clip")
    assert {name.split(".")[3] for name in fresh if name.startswith("vision.")} == {"temporal1", "temporal2"}
    theirs = clip(pictures).last_hidden_state
    ours = model.vision(pictures[:, :, None], model.attend)  # fresh temporal modules add nothing
    norm = model.vision.post_norm
    assert torch.allclose(ours, norm(theirs), atol=1e-5)


@torch.no_grad()
def test_layouts_of_clip_agree(clip: CLIPVisionModel, tmp_path: Path) -> None:
    one, two = (MPlug2Model(MPlug2Config.preset("tiny")) for _ in range(2))
    start_from(one, clip=tmp_path / "clip")
    released = openai_layout(clip)
    torch.save(released, tmp_path / "ViT.pt")
    start_from(two, clip=tmp_path / "ViT.pt")
    state = two.vision.state_dict()
    assert all(torch.equal(v, state[k]) for k, v in one.vision.state_dict().items() if ".temporal" not in k)


def openai_layout(clip: CLIPVisionModel) -> dict[str, torch.Tensor]:
    """The names of OpenAI's release."""
    theirs = {k.removeprefix("vision_model."): v for k, v in clip.state_dict().items()}
    made = {
        "visual.class_embedding": theirs["embeddings.class_embedding"],
        "visual.positional_embedding": theirs["embeddings.position_embedding.weight"],
        "visual.conv1.weight": theirs["embeddings.patch_embedding.weight"],
        "visual.proj": torch.zeros(24, 8),
        "logit_scale": torch.zeros(()),
    }
    for p in ("weight", "bias"):
        made[f"visual.ln_pre.{p}"] = theirs[f"pre_layrnorm.{p}"]
        made[f"visual.ln_post.{p}"] = theirs[f"post_layernorm.{p}"]
        for i in range(2):
            a, b = f"encoder.layers.{i}.", f"visual.transformer.resblocks.{i}."
            made[f"{b}attn.in_proj_{p}"] = torch.cat([theirs[f"{a}self_attn.{n}_proj.{p}"] for n in "qkv"])
            for ours, name in (
                ("attn.out_proj", "self_attn.out_proj"), ("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"),
                ("mlp.c_fc", "mlp.fc1"), ("mlp.c_proj", "mlp.fc2"),
            ):  # fmt: skip
                made[f"{b}{ours}.{p}"] = theirs[f"{a}{name}.{p}"]
    return made


@torch.no_grad()
def test_patches_are_inflated_and_positions_resized(clip: CLIPVisionModel, tmp_path: Path) -> None:
    sizes = MPlug2Config.preset("tiny").vision_sizes
    sizes.image_size, sizes.temporal_kernel, sizes.temporal_stride = 20, 3, 2
    model = MPlug2Model(MPlug2Config.preset("tiny", vision=sizes))
    start_from(model, clip=tmp_path / "clip")
    kernel = model.vision.patch_embedding.weight
    assert torch.equal(kernel[:, :, 1], clip.get_input_embeddings().weight)
    assert not kernel[:, :, 0].any()
    assert model.vision.position_embedding.shape == (26, 24)
    assert model.vision.position_embedding.any(dim=1).all()


@torch.no_grad()
def test_text_begins_as_bert(bert: BertForMaskedLM, tmp_path: Path, texts: dict[str, torch.Tensor]) -> None:
    config = MPlug2Config.preset("tiny", num_text_layers=2, num_universal_layers=2)
    model = MPlug2ForPreTraining(config).eval()
    fresh = start_from(model, bert=tmp_path / "bert")
    states, _ = model.model.read(**texts)
    theirs = bert.bert(**texts).last_hidden_state
    seen = texts["attention_mask"].bool()
    assert torch.allclose(states[seen], theirs[seen], atol=1e-5)
    table = model.model.text.embeddings.token_embedding.weight
    assert torch.allclose(model.model.masked_lm(states, table)[seen], bert(**texts).logits[seen], atol=1e-4)
    assert not any(name.startswith(("text.", "masked_lm.")) for name in fresh)
    last, first = model.model.fusion.layers[-1], model.model.decoder.layers[0]
    layers = bert.bert.encoder.layer
    assert torch.equal(last.fc1.weight, layers[3].intermediate.dense.weight)
    assert torch.equal(first.fc1.weight, layers[0].intermediate.dense.weight)
    assert {name.split(".cross_attn.")[0] for name in fresh if ".cross_attn." in name}


def test_universal_layers_apart_take_attention_only(bert: BertForMaskedLM, tmp_path: Path) -> None:
    config = MPlug2Config.preset("tiny", num_text_layers=1, universal_sharing="apart")
    model = MPlug2Model(config)
    fresh = start_from(model, bert=tmp_path / "bert")
    for way in ("text", "visual"):
        assert f"universal.stacks.{way}.0.fc1.weight" in fresh
        query = model.universal.stacks[way][0].attn.q_proj.weight
        assert torch.equal(query, bert.bert.encoder.layer[1].attention.self.query.weight)


def test_a_teacher_begins_with_its_student(bert: BertForMaskedLM, tmp_path: Path) -> None:
    model = MPlug2ForConditionalGeneration(MPlug2Config.preset("tiny", distill=True))
    start_from(model, bert=tmp_path / "bert")
    assert torch.equal(model.teacher.decoder.head.bias, bert.cls.predictions.bias)


def test_files_of_other_models_and_sizes_are_one_line(clip, bert, tmp_path: Path) -> None:
    model = MPlug2Model(MPlug2Config.preset("tiny", num_text_layers=3))
    with pytest.raises(ValueError, match="expected a CLIP checkpoint with a ViT, got keys such as"):
        start_from(model, clip=tmp_path / "bert")
    with pytest.raises(ValueError, match="expected a BERT checkpoint, got keys such as"):
        start_from(model, bert=tmp_path / "clip")
    with pytest.raises(ValueError, match="expected a BERT of at least 5 layers, got 4"):
        start_from(model, bert=tmp_path / "bert")
    small = MPlug2Model(MPlug2Config.preset("tiny", mlp_dim=60))
    with pytest.raises(ValueError, match=r"expected weights of the model's size, got text\.layers"):
        start_from(small, bert=tmp_path / "bert")
