"""Captions, answers and ranked answers of mPLUG-Owl2 through `plait.Assistant`."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from plait.assistant import Assistant
from plait.types import Sample

from .tiny import images, model_and_processor


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant(model_and_processor(), batch_size=3)


def test_batches_of_any_size_write_what_single_items_write(assistant) -> None:
    pictures = images()
    together = assistant.answer(pictures, "what?", max_length=6)
    assert together == [assistant.answer(one, "what?", max_length=6) for one in pictures]
    assert assistant.caption(pictures[0], max_length=4, num_beams=2) is not None
    assert assistant.tasks == ("answer", "caption", "classify", "rank")


def test_clips_and_texts_are_answered_about(assistant) -> None:
    clip = tuple(images()[:3])
    assert isinstance(assistant.answer(clip, "what happens?", max_length=3), str)
    assert isinstance(assistant.answer(Sample("t", text="it rains"), "is it wet?", max_length=3), str)


def test_ranks_are_the_likelihoods_of_whole_answers(assistant) -> None:
    model, processor, picture = assistant.model, assistant.processor, images()[0]
    answers = ["yes", "no", "a very long answer"]
    found = {one.text: one.probability for one in assistant.rank(picture, "is it?", answers)}
    likelihoods = []
    for answer in answers:
        turns = [{"from": "human", "value": "<|image|>is it?"}, {"from": "gpt", "value": answer}]
        batch = processor.supervised([turns], [picture])
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits[:, :-1]
        likelihoods.append(-F.cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="sum"))
    expected = torch.stack(likelihoods).softmax(0)
    assert [found[answer] for answer in answers] == pytest.approx(expected.tolist(), rel=1e-3)
    clip = tuple(images()[:2])
    assert assistant.answer(clip, "is it?", answers) in answers
    assert {one.text for one in assistant.classify(picture, ["cat", "dog"])} == {"cat", "dog"}


def test_what_it_does_not_do_is_one_clear_line(assistant) -> None:
    with pytest.raises(ValueError, match="expected a model that can ground"):
        assistant.ground(images()[0], "the cat")
    with pytest.raises(ValueError, match="expected labels to choose from"):
        assistant.classify(images()[0])
    with pytest.raises(ValueError, match="expected a text of less than"):
        assistant.answer(images()[0], "x" * 5000)


def test_more_pictures_than_the_context_holds_are_one_clear_line() -> None:
    model, processor = model_and_processor(max_position_embeddings=40)
    short, clip = Assistant((model, processor)), tuple(images()[:1] * 20)
    assert isinstance(short.answer(images()[0], "what?", max_length=2), str)
    with pytest.raises(ValueError, match=r"expected a prompt of less than 40 positions, got \d+; show less or shorten"):
        short.answer(clip, "what?", max_length=2)
    with pytest.raises(ValueError, match="expected a prompt of less than 40 positions"):
        short.rank(clip, "what?", ["yes", "no"])


def test_a_tokenizer_of_another_model_is_one_clear_line() -> None:
    model, processor = model_and_processor(vocab_size=40)  # its image id, 40, is no letter of the prompt
    with pytest.raises(ValueError, match=r"expected ids below 40, got \d+; use the tokenizer of this model"):
        Assistant((model, processor)).answer(images()[0], "xyz", max_length=1)


def test_a_text_that_ends_an_answer_is_cut_off() -> None:
    model, processor = model_and_processor()
    assert processor.stop_strings == ()
    processor.answer_end = "</s>"
    assert processor.stop_strings == ("</s>",)
    processor.batch_decode = lambda rows: ["a cat </s>USER: and"] * len(rows)
    assert Assistant((model, processor)).answer(images()[0], "what?", max_length=1) == "a cat"
