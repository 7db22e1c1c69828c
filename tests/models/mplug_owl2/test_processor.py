"""Prompts and images in, batches out: every placeholder gets its image, labels cover answers, errors are one line."""

from __future__ import annotations

import base64
import json
import re

import pytest
import torch
from PIL import Image

import plait.models.auto  # noqa: F401 (registers the image processor)
from plait.data.order import length_grouped, modality_grouped
from plait.models.mplug_owl2.conversation import (
    EVALUATION_GENERATION,
    EVALUATION_PROMPTS,
    TEMPLATES,
    answer_labels,
    evaluation_prompt,
    image_first,
    official_labels,
    tokenize,
    turns_of,
)
from plait.models.mplug_owl2.processor import (
    MPlugOwl2Processor,
    padded_square,
    pixels,
    stretched_square,
)
from plait.processing.tokenizers import find_tokenizer, llama_tokenizer

from .tiny import GOLDENS, byte_tokenizer, config, images

IMAGE_ID = 260


@pytest.fixture
def processor() -> MPlugOwl2Processor:
    return MPlugOwl2Processor.from_config(config(), byte_tokenizer())


def messages(*values: str) -> list[dict[str, str]]:
    return [{"from": ("human", "gpt")[i % 2], "value": value} for i, value in enumerate(values)]


def test_every_image_gets_its_positions_in_reading_order(processor) -> None:
    held = images()[:3]
    batch = processor(text=["a<|image|>b<|image|>", "c", "<|image|>"], images=held)
    counts = (batch["input_ids"] == IMAGE_ID).sum(dim=1).tolist()
    assert counts == [8, 0, 4] and batch["attention_mask"].sum(dim=1).tolist() == [10, 1, 4]
    assert batch["input_ids"][1, -1] != IMAGE_ID and batch["attention_mask"][1].tolist() == [0] * 9 + [1]
    for made, image in zip(batch["pixel_values"], held, strict=True):
        assert torch.equal(made, processor.image_processor.pixels(image))
    nested = processor(text=["a<|image|>b<|image|>", "c", "<|image|>"], images=[held[:2], [], held[2:]])
    assert torch.equal(nested["pixel_values"], batch["pixel_values"])


def test_a_video_becomes_consecutive_images(processor) -> None:
    frames = images()
    batch = processor(text="x<|video|>y<|image|>", videos=[frames[:4]], images=frames[4])
    ids = batch["input_ids"][0].tolist()
    assert ids.count(IMAGE_ID) == 20 and ids[1:17] == [IMAGE_ID] * 16 and ids[17] != IMAGE_ID
    assert torch.equal(batch["pixel_values"][-1], processor.image_processor.pixels(frames[4]))


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("<|image|><|image|>", 1, r"expected 2 images for 2 <\|image\|> placeholders, got 1; pass one image per"),
        ("hello", 1, r"expected 0 images for 0 <\|image\|> placeholders, got 1"),
        ("<|video|>", 0, r"expected 1 videos for 1 <\|video\|> placeholders, got 0"),
    ],
)
def test_media_without_a_place_are_refused(processor, text, count, message) -> None:
    with pytest.raises(ValueError, match=message):
        processor(text=text, images=images()[:count])


def test_unknown_arguments_are_refused(processor) -> None:
    with pytest.raises(ValueError, match="got imagse"):
        processor(text="a", imagse=[])
    with pytest.raises(ValueError, match="expected text, no audio"):
        processor(images=images()[:1])


def test_cutting_a_prompt_cuts_its_images_too(processor) -> None:
    batch = processor(text=["ab<|image|>cd<|image|>e", "<|image|>"], images=images()[:3], truncation=True, max_length=7)
    assert (batch["input_ids"] == IMAGE_ID).sum(dim=1).tolist() == [4, 4]
    assert torch.equal(batch["pixel_values"][1], processor.image_processor.pixels(images()[2]))


def test_chat_messages_become_the_published_prompt(processor) -> None:
    content = [{"type": "image", "image": images()[0]}, {"type": "text", "text": "hi"}]
    chat = [
        {"role": "user", "content": content},
        {"role": "assistant", "content": "yo"},
        {"role": "user", "content": "x"},
    ]
    text = processor.apply_chat_template(chat, add_generation_prompt=True)
    turns = [("<|image|>hi", "yo"), ("x", None)]
    assert text == processor.conversation.prompt(turns) == "USER: <|image|>hi ASSISTANT: yo<|end|>USER: x ASSISTANT:"
    batch = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True)
    direct = processor(text=text, images=images()[:1])
    assert torch.equal(batch["input_ids"], direct["input_ids"])
    assert torch.equal(batch["pixel_values"], direct["pixel_values"])


def test_labels_cover_answers_and_their_ends(processor) -> None:
    samples = [messages("<|image|>what?", "a cat", "sure?", "yes"), messages("b", "no")]
    batch = processor.supervised(samples, images()[:1])
    learned = [processor.tokenizer.decode([i for i in row if i != -100]) for row in batch["labels"].tolist()]
    assert learned == [" a cat<|end|> yes<|end|>", " no<|end|>"]
    kept = batch["labels"] != -100
    assert torch.equal(batch["labels"][kept], batch["input_ids"][kept])
    assert batch["attention_mask"][1].tolist() == sorted(batch["attention_mask"][1].tolist(), reverse=True)
    assert not kept[batch["input_ids"] == IMAGE_ID].any()


@pytest.mark.parametrize("text", ["a", " a", "   a", " ", "a  b ", "a</s> b", "<unk> a", "\n a"])
def test_every_piece_of_text_gets_a_space_in_front_even_before_a_space(text) -> None:
    tokenizer = llama_tokenizer(GOLDENS / "prompts_tokenize")
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])
    spelled = "".join("\n" if token == "<0x0A>" else token for token in tokens)
    between = re.split("(</s>|<unk>)", text)
    expected = (p if p.startswith("<") else "▁" + p.replace(" ", "▁") for p in between if p)
    assert spelled == "<s>" + "".join(expected)


def test_both_label_rules_agree_on_every_golden_sample() -> None:
    tokenizer = llama_tokenizer(GOLDENS / "prompts_tokenize")
    document = json.loads((GOLDENS / "label_masking" / "data.json").read_text())

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    for item in document["examples"]:
        template, given = TEMPLATES[item["template"]], turns_of(item["after_multimodal"])
        text = template.prompt(given)
        ids = tokenize(text, encode, 1)
        ours = answer_labels(ids, given, template, encode, 1)
        assert ours == official_labels(ids, text, template, encode, 1) == item["labels"]


def test_the_official_rule_drops_a_sample_whose_lengths_differ() -> None:
    tokenizer = llama_tokenizer(GOLDENS / "prompts_tokenize")
    template, given = TEMPLATES["mplug_owl2"], [("q", "see ASSISTANT: there")]

    def encode(text: str) -> list[int]:
        return tokenizer(text)["input_ids"]

    text = template.prompt(given)
    ids = tokenize(text, encode, 1)
    assert set(official_labels(ids, text, template, encode, 1)) == {-100}
    assert set(answer_labels(ids, given, template, encode, 1)) != {-100}


def test_official_training_keeps_one_image_per_message_and_ours_keeps_all(processor) -> None:
    sample = messages("a <|image|> b <|image|>", "c")
    assert image_first(sample)[0]["value"] == "<|image|>\na  b"
    assert (processor.supervised([sample], images()[:2])["input_ids"] == IMAGE_ID).sum() == 8
    with pytest.raises(ValueError, match="expected 1 images"):
        processor.supervised([sample], images()[:2], official=True)


def test_roles_that_do_not_alternate_are_refused() -> None:
    assert turns_of(messages("q", "a")[1:] + messages("q", "a")) == [("q", "a")]
    with pytest.raises(ValueError, match="expected message 1 from gpt, got 'human'"):
        turns_of([messages("q")[0], messages("q")[0]])


def test_image_modes_keep_what_they_promise() -> None:
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (30, 0, 60, 20))
    assert stretched_square(wide).size == padded_square(wide).size == (60, 60)
    assert padded_square(wide).getpixel((5, 5)) == (122, 116, 104)
    shapes = {aspect: pixels(wide, 12, aspect).shape for aspect in ("resize", "pad", "crop")}
    assert set(shapes.values()) == {(3, 12, 12)}
    with pytest.raises(ValueError, match="expected image_aspect among resize, pad, crop, got 'square'"):
        pixels(wide, 12, "square")


def test_the_mode_of_training_is_saved_with_the_processor(tmp_path) -> None:
    made = MPlugOwl2Processor.from_config(config(image_aspect="pad"), byte_tokenizer())
    made.save_pretrained(tmp_path)
    again = MPlugOwl2Processor.from_pretrained(tmp_path)
    assert again.image_processor.image_aspect == "pad" and again.image_processor.size["height"] == 16
    assert again.answer_end == "<|end|>" and again.image_token_id == IMAGE_ID
    first, second = (p(text="a<|image|>", images=images()[:1]) for p in (made, again))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_published_prompts_end_in_a_space_and_begin_with_their_image() -> None:
    assert set(EVALUATION_PROMPTS) == set(EVALUATION_GENERATION)
    assert all(prompt.endswith(" ASSISTANT: ") for prompt in EVALUATION_PROMPTS.values())
    asked = evaluation_prompt("mmbench", question="Which?", options=["red", "blue"])
    assert asked == (
        "USER: <|image|>N/A\nWhich?\nA. red\nB. blue\n"
        "Answer with the option’s letter from the given choices directly. ASSISTANT: "
    )
    assert "yes or no" not in evaluation_prompt("mme", question="Is it? Please answer yes or no.")
    with pytest.raises(ValueError, match="expected a task among caption"):
        evaluation_prompt("snli")


def test_grouped_orders_are_permutations_with_full_batches_of_one_modality() -> None:
    lengths = [5, -7, 9, -3, 4, 8, -6, -2, 11, 3, -1]
    order = modality_grouped(lengths, 2, 2, torch.Generator().manual_seed(0))
    assert sorted(order) == list(range(11))
    assert all(len({lengths[i] > 0 for i in order[k : k + 4]}) == 1 for k in (0, 4))
    assert sorted(length_grouped([1] * 7, 2, 2)) == list(range(7))
    with pytest.raises(ValueError, match="other than 0, got 0 at 1"):
        modality_grouped([1, 0], 1, 1)


def test_a_qwen_vocabulary_becomes_a_tokenizer_without_bos(tmp_path) -> None:
    pieces = [bytes([i]) for i in range(256)] + [b"he", b"ll", b"hell", b"hello"]
    lines = [f"{base64.b64encode(piece).decode()} {rank}" for rank, piece in enumerate(pieces)]
    (tmp_path / "qwen.tiktoken").write_text("\n".join(lines))
    tokenizer = find_tokenizer(tmp_path)
    assert tokenizer("hello a")["input_ids"] == [259, 32, 97]
    assert tokenizer.bos_token is None and tokenizer.eos_token == tokenizer.pad_token == "<|endoftext|>"
    assert tokenizer("<|endoftext|>")["input_ids"] == [tokenizer.eos_token_id] == [260]
    assert tokenizer.decode([259, 32, 97]) == "hello a"
    assert find_tokenizer(tmp_path / "none") is None
