"""Prompts, chat template, labels and images as they go into the model."""

from __future__ import annotations

import pytest
import torch

from plait.models.mplug_owl.conversation import (
    IMAGE,
    clean_answer,
    prompt,
    training_pieces,
    training_row,
)
from plait.models.mplug_owl.model import count_runs
from plait.models.mplug_owl.processor import draw, training_pixels, turns_of
from plait.processing.videos import centred_indices

from ...parity.released import demo_prompt, official_sample
from .tiny import images, model_and_processor


def encode(text: str) -> list[int]:
    return [3, *(byte + 4 for byte in text.encode())] if text else []


def test_the_chat_template_writes_the_published_prompt() -> None:
    _, processor = model_and_processor()
    messages = [
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A cat."}]},
        {"role": "user", "content": "Sure?"},
    ]
    found = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert found == prompt([(f"{IMAGE}What is it?", "A cat."), ("Sure?", None)])
    assert found.endswith("\nHuman: <image>\nHuman: What is it?\nAI: A cat.\nHuman: Sure?\nAI: ")


def test_turns_train_as_the_released_rule_does_on_the_same_text() -> None:
    turns = [(f"{IMAGE}what?", "a cat"), ("colour?", "black")]
    text = prompt(turns)
    released = official_sample(text, encode, 300)
    row = training_row(training_pieces(turns), encode, 1, 2, 300)
    assert row.ids == released.input_ids[: len(row.ids)] and len(row.ids) == released.seq_length
    learned = [label for label in row.labels if label != -100]
    mask = [0, *released.prompt_mask]
    assert learned == [i for i, kept in zip(released.input_ids, mask) if kept]


def test_a_name_in_the_text_opens_no_answer() -> None:
    row = training_row(training_pieces([("what did OpenAI: say", "ok")]), encode, 1, 2, 500)
    assert [i for i in row.labels if i != -100] == [*encode("ok"), 2]


def test_a_conversation_may_begin_with_an_image() -> None:
    assert official_sample("<image>What?AI: a dog", encode, 90).input_ids[1:66] == [-1] * 65
    assert -1 not in official_sample("<image>What?AI: a dog", encode, 90, official=True).input_ids


def test_labels_are_answers_and_media_that_do_not_fit_are_left_out() -> None:
    _, processor = model_and_processor()
    talks = [[(f"{IMAGE}What?", "a cat")], [("first", "one"), (f"{IMAGE}{IMAGE}then?", "two")]]
    batch = processor.supervised(talks, images(3))
    decoded = [processor.tokenizer.decode([i for i in row if i != -100]) for row in batch["labels"].tolist()]
    assert decoded == ["a cat<|end|>", "one<|end|>two<|end|>"]
    assert batch["input_ids"][0, -1] == 0 and batch["attention_mask"][0, -1] == 0
    last = int((batch["input_ids"][1] == processor.image_token_id).nonzero()[-1])
    short = processor.supervised(talks[1:], images(2), max_length=last)
    assert short["input_ids"].shape[1] <= last and len(short["pixel_values"]) == 1
    with pytest.raises(ValueError, match="expected an answer within 30 positions, got none in conversation 0"):
        processor.supervised(talks, images(3), max_length=30)


def test_runs_of_neighbours_count_by_length() -> None:
    assert count_runs([5, -1, -1, -1, -1, 6, -1, -1], -1, 2) == 3
    with pytest.raises(ValueError, match="expected 2 positions per medium"):
        count_runs([-1, -1, -1], -1, 2)


def test_the_demo_keeps_all_images_unless_asked_to_do_as_released() -> None:
    messages = [("Human", "clip\n<image>\n<image>"), ("AI", None)]
    assert demo_prompt(messages)[1].count("<image>") == 2
    assert demo_prompt(messages, official=True)[1].count("<image>") == 1


def test_the_demo_writes_a_line_per_message_and_images_ahead_of_theirs() -> None:
    raw, text = demo_prompt([("Human", "a\nb\n<image>"), ("AI", "c"), ("Human", ""), ("AI", None)])
    assert raw.splitlines()[1:] == ["Human: a", "b", "<image>", "AI: c", "Human:AI:"]
    assert text.splitlines()[1:] == ["Human: a", "Human: <image>", "b", "AI: c", "Human:AI: "]
    assert demo_prompt([("Human", "a"), ("AI", "c")])[1].endswith("\nAI: c\n ")


def test_names_of_special_tokens_are_no_answer() -> None:
    assert clean_answer("<s> [UNK]a[gMASK] <|startofpiece|>b</s>\n") == "a b"


def test_training_crops_are_drawn_from_the_generator() -> None:
    image = images(1)[0].resize((90, 70))
    first, again, other = (draw(*image.size, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again != other
    assert 0 <= first.top <= first.top + first.height <= image.height
    assert training_pixels(image, 16, first).shape == (3, 16, 16)


def test_frames_are_centred() -> None:
    assert centred_indices(4, 100) == [12, 37, 62, 86]
    assert centred_indices(4, 3) == [0, 0, 1, 2]


def test_messages_become_turns() -> None:
    assert turns_of([{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]) == [("a", "b")]
    with pytest.raises(ValueError, match="expected messages from human and gpt in turn"):
        turns_of([{"from": "gpt", "value": "b"}])
