"""ONE-PEACE as a model: batches equal singles, branches stand alone, saving keeps everything."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import AutoModel

from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.model import OnePeaceModel
from plait.models.one_peace.pretraining import (
    STAGE2_TRAINABLE,
    OnePeaceForPreTraining,
    audio_text_losses,
    image_text_losses,
)
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.models.one_peace.vision import OnePeaceImageClassifier
from plait.models.one_peace.weights import from_directory
from plait.processing.images import shorter_side_and_centre_crop
from plait.processing.masking import image_mask
from plait.processing.tokenizers import encode
from plait.training.stages import freeze

SIZES = {
    "dim": 16, "num_heads": 2, "num_layers": 2, "mlp_dim": 24, "layer_scale": 0.3, "vocab_size": 40,
    "text_bucket_size": 8, "max_text_positions": 20, "image_bucket_size": 4, "image_rel_bucket_size": 4,
    "audio_bucket_size": 16, "audio_conv_spec": ((8, 10, 5), (8, 3, 2), (8, 2, 2)), "audio_position_groups": 4,
}  # fmt: skip
DECODER = {
    "dim": 12,
    "num_heads": 2,
    "num_layers": 1,
    "mlp_dim": 16,
    "image_bucket_size": 4,
    "max_audio_positions": 130,
}


def redraw(model: torch.nn.Module) -> torch.nn.Module:
    """Random norms, biases and tables, so that every parameter matters."""
    g = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=g) * 0.2)
    return model.eval()


def build(model_class=OnePeaceModel, **changes):
    torch.manual_seed(0)
    return redraw(model_class(OnePeaceConfig(**{**SIZES, **changes})))


def ids(*rows: list[int]) -> torch.Tensor:
    width = max(len(row) for row in rows) + 1
    return torch.tensor([[*row, 2] + [1] * (width - 1 - len(row)) for row in rows])


def images(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, 3, 64, 64, generator=torch.Generator().manual_seed(seed))


def waves(*lengths: int) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), max(lengths), generator=g) * mask, mask


@pytest.mark.parametrize("attn", ["eager", "sdpa"])
def test_a_text_does_not_depend_on_its_batch_mates(attn):
    model = build(attn_implementation=attn)
    rows = [[5, 6, 7, 8, 9], [10], [11, 12]]
    batch = model.get_text_features(ids(*rows))
    for row, vector in zip(rows, batch):
        torch.testing.assert_close(model.get_text_features(ids(row))[0], vector, atol=1e-5, rtol=1e-4)


def test_a_clip_does_not_depend_on_its_batch_mates():
    model = build()
    wave, mask = waves(900, 640, 410)
    batch = model.get_audio_features(wave, mask)
    for i, length in enumerate((900, 640, 410)):
        alone = model.get_audio_features(wave[i : i + 1, :length])
        torch.testing.assert_close(alone[0], batch[i], atol=1e-5, rtol=1e-4)


def test_official_padding_leaks_between_clips():
    model = build(official=True)
    wave, mask = waves(900, 410)
    alone = model.get_audio_features(wave[1:, :410])
    assert (alone[0] - model.get_audio_features(wave, mask)[1]).abs().max() > 1e-3


@pytest.mark.parametrize("model_class", [OnePeaceModel, OnePeaceForPreTraining, OnePeaceForClassification])
def test_saving_and_loading_keeps_every_tensor(tmp_path, model_class):
    model = build(model_class, decoder=DECODER, num_classes=3)
    model.save_pretrained(tmp_path)
    for again in (model_class.from_pretrained(tmp_path), from_directory(tmp_path)):
        assert type(again) is model_class
        want, got = model.state_dict(), again.state_dict()
        assert want.keys() == got.keys()
        assert all(torch.equal(want[key], got[key]) for key in want)
        assert {n for n, _ in model.named_buffers()} == {n for n, _ in again.named_buffers()}


def test_auto_model_finds_the_family(tmp_path):
    import plait.models.auto  # noqa: F401 (registers)

    build().save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(tmp_path)) is OnePeaceModel


def test_the_encoder_loads_from_a_pretraining_directory(tmp_path):
    model = build(OnePeaceForPreTraining, decoder=DECODER)
    model.save_pretrained(tmp_path)
    encoder = from_directory(tmp_path, model_class=OnePeaceModel)
    torch.testing.assert_close(encoder.get_image_features(images(2)), model.model.get_image_features(images(2)))


def test_one_branch_loads_alone_and_computes_the_same(tmp_path):
    model = build()
    model.save_pretrained(tmp_path)
    image = from_directory(tmp_path, branch=("image",))
    assert image.modalities == ("image",)
    assert not any("text" in name or "audio" in name for name in image.state_dict())
    torch.testing.assert_close(image.get_image_features(images(2)), model.get_image_features(images(2)))
    with pytest.raises(ValueError, match="load that branch too"):
        image.get_text_features(ids([5]))


def test_image_with_audio_is_refused_with_the_remedy():
    with pytest.raises(ValueError, match="add their unit vectors"):
        build().encode({"image": images(1), "audio": waves(500)[0]})


def test_images_of_another_size_are_refused():
    with pytest.raises(ValueError, match="64 x 64"):
        build().get_image_features(torch.zeros(1, 3, 96, 96))


def test_too_long_a_text_is_refused():
    with pytest.raises(ValueError, match="truncate"):
        build().get_text_features(torch.full((1, 30), 5))


def test_positions_grow_with_the_image():
    model = build(image_rel_bucket_size=6)
    assert model.get_image_features(torch.randn(1, 3, 96, 96)).shape == (1, 16)


def test_every_parameter_that_is_read_learns_in_stage_one():
    model = build(OnePeaceForPreTraining, decoder=DECODER, modalities=("text", "image")).train()
    masks = {"text": torch.tensor([[True, False, False, False]] * 2), "image": torch.stack([image_mask(16)] * 2)}
    masks |= {"vl_text": ~masks["text"] & torch.tensor([False, True, True, False]), "vl_image": ~masks["image"]}
    losses = image_text_losses(model, ids([5, 6, 7], [8, 9, 10]), images(2), masks)
    losses.total.backward()
    idle = {name for name, p in model.named_parameters() if p.grad is None}
    assert idle == {"decoder.branches.text.cls_embedding", "decoder.branches.image.cls_embedding"}
    assert set(losses.denoising) == {"text", "image", "vl_text", "vl_image"}


def test_stage_two_leaves_text_and_images_bit_identical():
    model = build(OnePeaceForPreTraining, decoder=DECODER)

    @torch.no_grad()
    def embed():
        encoder = model.eval().model
        return (
            encoder.get_text_features(ids([5, 6])),
            encoder.get_image_features(images(2)),
            encoder.get_audio_features(waves(600)[0]),
        )

    text, image, audio = embed()
    freeze(model, [f"re:^{pattern}$" for pattern in STAGE2_TRAINABLE])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model.train()
    for _ in range(2):
        optimizer.zero_grad()
        audio_text_losses(model, ids([5, 6], [7]), waves(600, 600)[0]).total.backward()
        optimizer.step()
    new_text, new_image, new_audio = embed()
    assert torch.equal(new_text, text)
    assert torch.equal(new_image, image)
    assert not torch.equal(new_audio, audio)


def test_gradient_checkpointing_changes_nothing():
    model = build().train()
    pixels = images(2)
    want = torch.autograd.grad(
        model.get_image_features(pixels).square().sum(), model.trunk.layers[0].attn.q_proj.weight
    )
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()  # renamed in 5.2x
    assert model.trunk.gradient_checkpointing
    got = torch.autograd.grad(model.get_image_features(pixels).square().sum(), model.trunk.layers[0].attn.q_proj.weight)
    torch.testing.assert_close(got[0], want[0])


def test_the_bias_is_computed_once_and_not_expanded_over_the_batch():
    encoded = build().encode({"text": ids([5, 6], [7]), "image": images(2)})
    assert [b.shape[0] for part in encoded.adapted.values() for b in part.biases] == [1, 1]


def test_compiles_into_one_graph():
    model = build()
    compiled = torch.compile(model.get_image_features, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(images(2)), model.get_image_features(images(2)))


@pytest.mark.parametrize("name", ["4b", "base", "nano"])
def test_presets_build(name):
    with torch.device("meta"):
        model = OnePeaceModel(OnePeaceConfig.preset(name))
    if name == "4b":
        assert sum(p.numel() for p in model.parameters()) == 3_884_740_545


def test_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="preset among 4b"):
        OnePeaceConfig.preset("5b")


def test_a_setting_that_no_model_has_is_one_line():
    with pytest.raises(ValueError, match="expected fields of OnePeaceConfig, got dmi; leave them out"):
        OnePeaceConfig.preset("nano", dmi=3)


def test_texts_of_data_sets_are_read_as_published() -> None:
    processor = OnePeaceProcessor.from_config(OnePeaceConfig.preset("nano"))

    def ids(made: Mapping[str, Any]) -> list[list[int]]:
        return [row[mask].tolist() for row, mask in zip(made["input_ids"], made["attention_mask"])]

    assert ids(processor.captions(["#A  Dog\truns. "])) == encode(["a dog runs."])
    words = ["The", *["pneumonoultramicroscopic"] * 79]
    assert ids(processor.phrases([" ".join(words)])) == encode([" ".join(words[:70])], max_tokens=None)
    assert len(ids(processor.captions([" ".join(words)]))[0]) == 71
    question = "What is it? answer: A Dog"
    assert ids(processor.choices([question])) == encode([question], lowercase=False, max_tokens=None)
    assert ids(processor(text=[question])) == encode([question])


def test_the_middle_of_a_picture_can_be_cut_out() -> None:
    config, ramp = OnePeaceConfig.preset("nano"), Image.linear_gradient("L").resize((200, 100)).convert("RGB")
    processor = OnePeaceProcessor.from_config(config)
    processor.image_processor.do_center_crop = True
    assert torch.equal(processor(images=ramp)["pixel_values"][0], shorter_side_and_centre_crop(ramp, config.image_size))


def test_a_classifier_of_cls_leaves_the_configuration_it_is_given() -> None:
    config = OnePeaceConfig.preset(
        "nano", modalities=["image"], norm_ways={}, use_projections=False, num_classes=3, num_layers=1
    )
    model = OnePeaceImageClassifier(config, mean=False)
    assert config.norm_ways == {} and model.config.norm_ways == {"image": ["image"]} and model.norm is None
    assert OnePeaceImageClassifier(config).norm is not None


@pytest.mark.parametrize("foreign", ['[{"idx": 0, "name": "0", "path": "", "type": "mine.Dense"}]', "{damaged"])
def test_saving_keeps_the_modules_that_somebody_wrote_for_sentence_transformers(foreign, tmp_path):
    model = from_directory(Path(__file__).parents[2] / "fixtures" / "saved" / "one_peace")
    model.save_pretrained(tmp_path)
    ours = (tmp_path / "modules.json").read_text()
    model.save_pretrained(tmp_path)  # our own are written again
    assert (tmp_path / "modules.json").read_text() == ours and "sentence_transformers" in ours
    (tmp_path / "modules.json").write_text(foreign)
    (tmp_path / "sentence_bert_config.json").write_text("{}")
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modules.json").read_text() == foreign
    assert (tmp_path / "sentence_bert_config.json").read_text() == "{}"
