"""Both Owls: a person's words stay words, media belong to their prompt, and arguments act or are refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.data.conversation import Talk
from plait.recipes import mplug_owl as owl_recipe
from plait.recipes import mplug_owl2 as owl2_recipe
from plait.types import Sample, as_words, spoken

from .mplug_owl import tiny as owl_tiny
from .mplug_owl2 import tiny as owl2_tiny

PICTURES = [Image.effect_mandelbrot((30, 20 + 9 * i), (-2 + 0.1 * i, -1, 1, 1), 20).convert("RGB") for i in range(3)]


@pytest.fixture(params=["owl", "owl2"])
def family(request: pytest.FixtureRequest) -> tuple[Any, Any, str]:
    """Model, processor and the placeholder of an image."""
    tiny = owl_tiny if request.param == "owl" else owl2_tiny
    return *tiny.model_and_processor(), "<image>" if request.param == "owl" else "<|image|>"


def learned(processor: Any, labels: torch.Tensor) -> str:
    return processor.decode(labels[labels != -100])


def supervised(processor: Any, question: str, answer: str, *images: Image.Image, **how: Any) -> Any:
    if isinstance(processor, type(owl_tiny.model_and_processor()[1])):
        return processor.supervised([[(question, answer)]], list(images), **how)
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return processor.supervised([turns], list(images), **how)


def test_words_come_back_as_they_were() -> None:
    for text in ("an <image> and a <|video|>", "<|image|><video>", "<img> 3 < 4"):
        assert spoken(as_words(text)) == text
        assert not any(mark in as_words(text) for mark in ("<image>", "<|image|>", "<video>", "<|video|>"))


def test_a_conversation_about_placeholders_goes_on(family: tuple[Any, Any, str]) -> None:
    model, processor, mark = family
    chat = plait.Chat((model, processor), max_new_tokens=2)
    chat.ask(f"What does {mark} mean?", images=[PICTURES[0]])
    chat.messages.append({"role": "user", "content": [{"type": "text", "text": "and?"}]})
    chat.messages.append({"role": "assistant", "content": f"write {mark}"})
    chat.ask("thanks")
    assert len(plait.Assistant((model, processor)).answer([*PICTURES], ["a?", f"what is {mark}?", "c?"])) == 3


def test_words_are_tokenized_as_they_are_spelled(family: tuple[Any, Any, str]) -> None:
    _, processor, mark = family
    ids = processor(text=f"a{as_words(mark)}b")["input_ids"][0]
    assert mark in processor.decode(ids) and not set(ids.tolist()) & set(processor.unspoken)
    batch = supervised(processor, f"{mark}q", f"write {mark}", PICTURES[0])
    assert learned(processor, batch["labels"][0]) == f"write {mark}"


def test_parts_and_roles_are_kept_or_refused(family: tuple[Any, Any, str]) -> None:
    _, processor, mark = family
    talk = [
        {"role": "system", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind."}]},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": f"a {mark}?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "yes"}, {"type": "text", "text": " it is"}]},
    ]
    text = processor.apply_chat_template(talk)
    assert "Be kind." in text and "yes it is" in text and text.count(mark) == 1 and f"a {mark}?" in spoken(text)
    with pytest.raises(ValueError, match="got one of 'tool'"):
        processor.apply_chat_template([{"role": "tool", "content": "x"}])
    with pytest.raises(ValueError, match="got image_url"):
        processor.apply_chat_template([{"role": "user", "content": [{"type": "image_url"}]}])


def test_media_are_dealt_prompt_by_prompt(family: tuple[Any, Any, str]) -> None:
    _, processor, mark = family
    texts = [f"{mark}one", "none"]
    want = processor(text=texts, images=[PICTURES[0]])["pixel_values"]
    for images in ([[PICTURES[0]], []], [PICTURES[0], None], [[np.asarray(PICTURES[0])], None]):
        assert torch.equal(processor(text=texts, images=images)["pixel_values"], want)
    with pytest.raises(ValueError, match="expected 2 images in prompt 0, got 1"):
        processor(text=[f"{mark}{mark}two", "none"], images=[[PICTURES[0]], [PICTURES[1]]])
    with pytest.raises(ValueError, match="give one list per prompt"):
        processor(text=texts, images=[[PICTURES[0]]])
    with pytest.raises(ValueError, match="at least one prompt"):
        processor(text=[])


def test_lengths_count_positions_of_media_too(family: tuple[Any, Any, str]) -> None:
    _, processor, mark = family
    whole = processor(text=f"ab{mark}c", images=PICTURES[0])["input_ids"].shape[1]
    assert processor(text=f"ab{mark}c", images=PICTURES[0], truncation=True, max_length=whole - 1).pixel_values.shape[0]
    short = processor(text=f"ab{mark}c", images=PICTURES[0], truncation=True, max_length=whole - 2)
    assert "pixel_values" not in short and short["input_ids"].shape[1] < whole - 2  # half an image is none
    with pytest.raises(ValueError, match="truncation=True"):
        processor(text="a long prompt", max_length=5)
    with pytest.raises(ValueError, match="got none in conversation 0"):
        supervised(processor, "q", "answer", max_length=4)


def test_arguments_of_a_call_act(family: tuple[Any, Any, str]) -> None:
    _, processor, _ = family
    texts = ["short", "a longer prompt"]
    assert processor(text=texts, padding="max_length", max_length=64)["input_ids"].shape == (2, 64)
    assert processor(text=texts, pad_to_multiple_of=16)["input_ids"].shape == (2, 16)
    assert processor(text=texts, text_kwargs={"padding_side": "right"})["attention_mask"][0, 0] == 1
    plain = processor(text="ab")["input_ids"].shape[1]
    assert processor(text="ab", add_special_tokens=False)["input_ids"].shape[1] <= plain
    for bad in ({"padding": False}, {"padding_side": "rigth"}, {"return_tensors": "np"}, {"padding": "longset"}):
        with pytest.raises(ValueError, match="expected"):
            processor(text=texts, **bad)
    with pytest.raises(ValueError, match="got size"):
        processor(text=texts, images_kwargs={"size": 3})


def test_system_messages_of_rows_reach_the_model() -> None:
    def batch(recipe: Any, processor: Any, said: str) -> str:
        messages = [{"role": "system", "content": said}, {"role": "user", "content": "hello"}]
        row = Sample("r", messages=[*messages, {"role": "assistant", "content": "bonjour"}])
        rng = np.random.default_rng(0)
        if recipe is owl_recipe:
            made = recipe.collate(processor, 256, [recipe.read(processor, row, rng)], rng)
        else:
            talk: Talk = recipe.read_talk(4, row, rng)
            made = recipe.talked(processor, 256, [talk])
        assert learned(processor, made["labels"][0]) == "bonjour"
        return processor.decode(made["input_ids"][0])

    for recipe, tiny in ((owl_recipe, owl_tiny), (owl2_recipe, owl2_tiny)):
        processor = tiny.model_and_processor()[1]
        assert batch(recipe, processor, "Answer in French.").startswith("Answer in French.")
        assert "pirate" in batch(recipe, processor, "Speak as a pirate.")


def test_added_tokens_take_the_ids_behind_the_vocabulary(family: tuple[Any, Any, str], tmp_path: Any) -> None:
    model, processor, mark = family
    asked = {"text": f"a{mark}look", "images": PICTURES[0]}
    first = processor(**asked)["input_ids"]
    want = model(**processor(**asked)).logits
    processor.tokenizer.add_tokens(["<loc0>"])
    model.resize_token_embeddings(320)  # of 64, as people round it: the table grows further than the tokenizer
    assert torch.equal(processor(**asked)["input_ids"], first)
    assert torch.allclose(model(**processor(**asked)).logits[..., :260], want, atol=1e-5)
    processor.tokenizer.add_tokens([f"<loc{i}>" for i in range(1, 8)])
    token = processor.tokenizer.convert_ids_to_tokens(processor.image_token_id)  # what was the image's is a word now
    assert token.startswith("<loc")
    words = processor(text=f"{token} here")
    assert model(**words).logits.shape[-1] == 320 and token in processor.decode(words["input_ids"][0])
    assert torch.allclose(model(**processor(**asked)).logits[..., :260], want, atol=1e-5)
    both = {"text": f"{token}{mark}look", "images": PICTURES[0]}
    assert model.generate(**processor(**both), max_new_tokens=2, num_beams=2, repetition_penalty=1.2).shape[0] == 1
    assert model.train()(**words, labels=words["input_ids"]).loss.isfinite()
    model.eval().save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, kept = plait.load(tmp_path)
    assert torch.allclose(again(**kept(**both)).logits, model(**processor(**both)).logits, atol=1e-5)


def test_labels_copied_from_ids_leave_media_out(family: tuple[Any, Any, str]) -> None:
    model, processor, mark = family
    batch = processor(text=f"a{mark}look", images=PICTURES[0])
    labels = batch["input_ids"].clone()
    loss = model(**batch, labels=labels).loss
    labels[labels == processor.image_token_id] = -100
    assert torch.equal(loss, model(**batch, labels=labels).loss)


@pytest.mark.parametrize("shown", ["nothing", "image", "video", "both"])
def test_every_parameter_takes_part_whatever_a_batch_shows(shown: str) -> None:
    model, processor = owl_tiny.model_and_processor(temporal=True)
    images = [PICTURES[0]] if shown in ("image", "both") else []
    videos = [PICTURES] if shown in ("video", "both") else []
    question = "<image>" * len(images) + "<|video|>" * len(videos) + "q"
    batch = processor.supervised([[(question, "answer")]], images, videos)
    model.train()(**batch).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []
    seen = model.vision.layers[0].temporal
    moved = any(p.grad.abs().sum() > 0 for p in seen.parameters())
    assert moved is (shown in ("video", "both"))
