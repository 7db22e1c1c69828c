"""What `generate` does with prompts that hold media: from embeddings too; what needs passes of its own is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny

FAMILIES = {"owl": (owl_tiny, "<image>"), "owl2": (owl2_tiny, "<|image|>")}
SIX = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}


def asked(family: str) -> tuple[Any, Any]:
    """A model and a batch of two prompts, of which one has a picture."""
    tiny, mark = FAMILIES[family]
    model, processor = tiny.model_and_processor()
    picture = Image.effect_mandelbrot((30, 40), (-2, -1, 1, 1), 20).convert("RGB")
    return model, processor(text=[f"USER: {mark}hello ASSISTANT:", "USER: x ASSISTANT:"], images=picture)


def embedded(model: Any, batch: Any) -> dict[str, Any]:
    ids, pixels = batch["input_ids"], batch["pixel_values"]
    if hasattr(model, "language_model"):
        return {"inputs_embeds": model.embed(ids, pixels), "attention_mask": batch["attention_mask"]}
    embeds, is_image = model.model.embed(ids, pixels)
    return {"inputs_embeds": embeds, "modality_ids": is_image.long(), "attention_mask": batch["attention_mask"]}


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("beams", [1, 3])
def test_embeddings_give_the_new_ids_of_the_run_from_ids(family: str, beams: int) -> None:
    model, batch = asked(family)
    length = batch["input_ids"].shape[1]
    want = model.generate(**batch, num_beams=beams, **SIX)[:, length:]
    assert torch.equal(model.generate(**embedded(model, batch), num_beams=beams, **SIX), want)


@pytest.mark.filterwarnings("ignore:Passing `repetition_penalty` with `inputs_embeds`:UserWarning")
@pytest.mark.parametrize("family", list(FAMILIES))
def test_rules_about_repetition_run_from_embeddings(family: str) -> None:
    model, batch = asked(family)
    found = model.generate(**embedded(model, batch), repetition_penalty=1e4, **SIX)
    assert all(len(set(row)) == 6 for row in found.tolist())


def test_embeddings_of_routed_models_say_which_positions_are_images() -> None:
    model, batch = asked("owl2")
    inputs = embedded(model, batch)
    del inputs["modality_ids"]
    with pytest.raises(ValueError, match="expected modality_ids"):
        model.generate(**inputs, **SIX)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_what_runs_passes_without_media_is_refused_by_name(family: str) -> None:
    model, batch = asked(family)
    for options in ({"guidance_scale": 1.5}, {"prefill_chunk_size": 4}, {"assistant_model": model}):
        with pytest.raises(ValueError, match=f"expected no {next(iter(options))}"):
            model.generate(**batch, **options, **SIX)
    tiny, _ = FAMILIES[family]
    _, processor = tiny.model_and_processor()
    words = processor(text="USER: x ASSISTANT:")
    assert model.generate(**words, guidance_scale=1.5, **SIX).shape == model.generate(**words, **SIX).shape


@pytest.mark.parametrize("family", list(FAMILIES))
def test_prompt_lookup_and_stop_strings_change_nothing_that_they_should_not(family: str) -> None:
    model, batch = asked(family)
    _, processor = FAMILIES[family][0].model_and_processor()
    one = {name: value[:1] for name, value in batch.items()}
    want = model.generate(**one, **SIX)
    assert torch.equal(model.generate(**one, prompt_lookup_num_tokens=2, **SIX), want)
    stopped = model.generate(**one, stop_strings=["no such words"], tokenizer=processor.tokenizer, **SIX)
    assert torch.equal(stopped, want)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_beams_of_prompts_with_several_pictures_keep_their_own(family: str) -> None:
    tiny, mark = FAMILIES[family]
    model, processor = tiny.model_and_processor()
    pictures = [Image.new("RGB", (30, 40), colour) for colour in ("black", "white", "red")]
    texts = [f"USER: {mark}and {mark} ASSISTANT:", f"USER: {mark}hello ASSISTANT:"]
    options = {**SIX, "num_beams": 3, "num_return_sequences": 2}
    batch = processor(text=texts, images=pictures)
    together = model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]
    for row, own in enumerate((pictures[:2], pictures[2:])):
        one = processor(text=texts[row], images=own)
        alone = model.generate(**one, **options)[:, one["input_ids"].shape[1] :]
        assert torch.equal(together[2 * row : 2 * row + 2], alone)
    # embeddings hold each picture in its place already, whatever becomes of the rows
    assert torch.equal(model.generate(**embedded(model, batch), **options), together)
    swapped = processor(text=texts, images=[pictures[1], pictures[0], pictures[2]])
    found = model.generate(**swapped, **options)[:, batch["input_ids"].shape[1] :]
    assert not torch.equal(found[:2], together[:2]), "the pictures make no difference"
