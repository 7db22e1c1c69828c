"""Every `forward` names what it takes, obeys it or refuses it, and its loss adds up over parts of a batch."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedModel, Trainer, TrainingArguments

from plait.models import mplug2, mplug_owl, mplug_owl2, one_peace

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny

FAMILIES = (one_peace, mplug2, mplug_owl, mplug_owl2)
MODELS = [
    cls
    for family in FAMILIES
    for name in family.__all__
    if isinstance(cls := getattr(family, name), type) and issubclass(cls, PreTrainedModel)
]
SIZES = {
    "dim": 16, "num_heads": 2, "num_layers": 1, "mlp_dim": 24, "vocab_size": 40, "text_bucket_size": 8,
    "max_text_positions": 20, "image_bucket_size": 4, "image_rel_bucket_size": 2, "audio_bucket_size": 16,
    "audio_conv_spec": ((8, 10, 5), (8, 3, 2)), "audio_position_groups": 4,
}  # fmt: skip


def classifier() -> Any:
    torch.manual_seed(0)
    config = one_peace.OnePeaceConfig(**SIZES, num_classes=3, pool_modality="image", use_projections=False)
    return one_peace.OnePeaceForClassification(config).eval()


def writer() -> Any:
    torch.manual_seed(0)
    return mplug2.MPlug2ForConditionalGeneration(mplug2.MPlug2Config.preset("tiny")).eval()


@pytest.mark.parametrize("cls", MODELS, ids=lambda cls: cls.__name__)
def test_forward_swallows_nothing(cls: type[PreTrainedModel]) -> None:
    parameters = inspect.signature(cls.forward).parameters
    open_ended = [p.name for p in parameters.values() if p.kind is inspect.Parameter.VAR_KEYWORD]
    # ONE-PEACE takes modalities that a user registered, by name, and checks the names.
    named = ["others"] if cls.__name__ in ("OnePeaceModel", "OnePeaceForPreTraining") else []
    assert open_ended == named or cls.forward is PreTrainedModel.forward or cls.__name__.endswith("PreTrainedModel")
    if "labels" in parameters:
        assert cls.accepts_loss_kwargs is ("num_items_in_batch" in parameters)


def test_what_a_model_does_not_have_is_refused_by_name() -> None:
    model = classifier()
    pixels = torch.randn(2, 3, 32, 32)
    assert model(pixel_values=pixels, output_attentions=None, inputs_embeds=None).logits.shape == (2, 3)
    with pytest.raises(ValueError, match="output_attentions"):
        model(pixel_values=pixels, output_attentions=True)
    with pytest.raises(TypeError, match="no_such"):
        model(pixel_values=pixels, no_such=1)
    with pytest.raises(ValueError, match="no_such"):
        model.model(pixel_values=pixels, no_such=1)
    (logits,) = model(pixel_values=pixels, return_dict=False)
    assert logits.shape == (2, 3)


@pytest.mark.parametrize("question", [False, True], ids=["captions", "answers"])
def test_parts_of_a_batch_add_up_to_its_loss(question: bool) -> None:
    model = writer()
    side = model.config.image_size
    g = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 90, (4, 6), generator=g)
    labels = ids.masked_fill(torch.arange(6) >= torch.tensor([2, 6, 4, 3])[:, None], -100)
    batch = {"pixel_values": torch.randn(4, 3, side, side, generator=g), "decoder_input_ids": ids, "labels": labels}
    if question:
        batch["input_ids"] = torch.randint(5, 90, (4, 5), generator=g)
    count = (labels[:, 1:] != -100).sum()
    whole = model(**batch, num_items_in_batch=count).loss
    parts = [model(**{k: v[i : i + 1] for k, v in batch.items()}, num_items_in_batch=count).loss for i in range(4)]
    assert torch.allclose(torch.stack(parts).sum(), whole, rtol=1e-5)
    if not question:  # with its own count the loss is the mean that it is without one
        assert torch.allclose(whole, model(**batch).loss, rtol=1e-5)


@pytest.mark.parametrize("family", ["owl", "owl2"])
def test_the_owls_divide_by_the_count_that_trainer_gives(family: str) -> None:
    model, _ = (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    loss = model(input_ids=ids, labels=ids).loss
    assert torch.allclose(model(input_ids=ids, labels=ids, num_items_in_batch=torch.tensor(48)).loss, loss * 12 / 48)


@pytest.mark.parametrize("family", ["owl", "owl2"])
def test_states_in_front_of_the_head_are_given_to_trainers_of_others(family: str) -> None:
    model, _ = (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()[:2]
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    states = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    assert torch.allclose(model.get_output_embeddings()(states), model(input_ids=ids).logits, atol=1e-5)


@pytest.mark.parametrize("family", ["owl", "owl2"])
def test_labels_copied_from_ids_name_no_position_of_media(family: str) -> None:
    tiny = owl_tiny if family == "owl" else owl2_tiny
    model, processor = tiny.model_and_processor()[:2]
    batch = processor(text=[f"{'<image>' if family == 'owl' else '<|image|>'} hi"], images=[owl2_tiny.images()[0]])
    batch["labels"] = batch["input_ids"].clone()
    is_image = torch.isin(batch["input_ids"], torch.tensor(processor.unspoken))
    assert is_image.any()
    assert torch.equal(batch["labels"], batch["input_ids"].masked_fill(is_image, -100))
    assert batch["labels"].max() < model.get_output_embeddings().weight.shape[0]


@pytest.mark.parametrize("family", ["owl", "owl2"])
def test_a_configuration_names_the_auto_class_of_its_directory(family: str, tmp_path: Path) -> None:
    model, _ = (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()[:2]
    assert not hasattr(model.config, "auto_map")
    model.save_pretrained(tmp_path)
    found = AutoConfig.from_pretrained(tmp_path)
    assert found.auto_map["AutoModelForImageTextToText"] == f"plait_model.{type(model).__name__}"
    assert "auto_map" not in found.to_dict()


def test_embeddings_compare_texts_with_pictures_and_clips() -> None:
    torch.manual_seed(0)
    model = one_peace.OnePeaceModel(one_peace.OnePeaceConfig(**SIZES)).eval()
    pixels, ids = torch.randn(2, 3, 32, 32), torch.randint(5, 30, (2, 4))
    found = model(input_ids=ids, pixel_values=pixels, return_loss=True)
    want = found.image_embeds @ found.text_embeds.T * model.temperature()
    assert torch.allclose(found.logits_per_image, want)
    assert torch.equal(found.logits_per_text, found.logits_per_image.T)
    pairs = torch.arange(2)
    both = [torch.nn.functional.cross_entropy(one, pairs) for one in (want, want.T)]
    assert torch.allclose(found.loss, torch.stack(both).mean())
    with pytest.raises(ValueError, match="give both"):
        model(pixel_values=pixels, return_loss=True)


@pytest.mark.parametrize("family", ["owl", "owl2", "mplug2"])
def test_smoothed_labels_are_those_of_the_loss(family: str, tmp_path: Path) -> None:
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "labels": ids}
    if family == "mplug2":
        model = writer()
        side = model.config.image_size
        batch = {"pixel_values": torch.randn(2, 3, side, side), "decoder_input_ids": ids, "labels": ids}
    else:
        model, _ = (owl_tiny if family == "owl" else owl2_tiny).model_and_processor()
    args = TrainingArguments(str(tmp_path), label_smoothing_factor=1e-7, use_cpu=True, report_to="none")
    smoothed = Trainer(model, args).compute_loss(model, dict(batch))
    assert torch.allclose(smoothed, model(**batch).loss, rtol=1e-4)


def test_arguments_that_a_processor_cannot_obey_are_refused() -> None:
    pair = (
        mplug2.MPlug2Processor.from_config(writer().config),
        one_peace.OnePeaceProcessor.from_config(one_peace.OnePeaceConfig(**SIZES)),
    )
    for processor in pair:
        assert processor(text=["a", "a b c"], padding=True)["input_ids"].shape[0] == 2
        for bad in ({"padding": False}, {"padding": "max_length"}, {"paddng": True}):
            with pytest.raises(ValueError, match="expected"):
                processor(text=["a", "a b c"], **bad)
    with pytest.raises(ValueError, match="truncation"):
        pair[1](text="a", truncation=False)
    assert writer().config.keys_to_ignore_at_inference == ["encoder_last_hidden_state"]


def test_a_denoising_decoder_is_no_language_model() -> None:
    from plait.models.one_peace import DecoderConfig, OnePeaceConfig

    config = OnePeaceConfig(decoder=DecoderConfig())
    assert isinstance(config.decoder, dict) and config.get_text_config() is config
