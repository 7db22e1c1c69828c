"""Conversations: what streams is what is remembered, over turns, with media, stopped in the middle, in both Owls."""

from __future__ import annotations

import os
import signal
import threading
import time
from threading import Event

import pytest
import torch
from PIL import Image

from plait.chat import Chat, Pieces

from ..models.mplug_owl import tiny as owl
from ..models.mplug_owl2 import tiny as owl2

FAMILIES = {"mplug_owl": owl, "mplug_owl2": owl2}


@pytest.fixture(params=sorted(FAMILIES))
def chat(request) -> Chat:
    found = FAMILIES[request.param].model_and_processor()
    return Chat((found[0], found[1]), max_new_tokens=12)


def picture(width: int = 30, height: int = 17) -> Image.Image:
    return Image.effect_mandelbrot((width, height), (-2, -1, 1, 1), 20).convert("RGB")


def test_pieces_are_the_answer_that_generate_gives(chat: Chat) -> None:
    answer = "".join(chat.stream("what?", images=[picture()]))
    inputs = chat._inputs([{**chat.messages[0], "role": "user"}])
    new = chat.model.generate(**inputs, max_new_tokens=12, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    assert answer == chat.processor.decode(new) and answer
    assert chat.messages[-1] == {"role": "assistant", "content": answer}


def test_earlier_turns_are_part_of_the_prompt_and_other_conversations_are_not(chat: Chat) -> None:
    first = chat.ask("what?", images=[picture()])
    other = chat.another()
    again = chat.ask("what?")
    assert [m["role"] for m in chat.messages] == ["user", "assistant"] * 2
    assert other.messages == [] and other.ask("what?", images=[picture()]) == first
    assert len(chat.messages) == 4  # of its own
    prompts = [talk._inputs(talk.messages)["input_ids"].shape[1] for talk in (chat, other)]
    assert prompts[0] > prompts[1]
    chat.clear()
    assert chat.messages == [] and chat.ask("what?", images=[picture()]) == first
    assert isinstance(again, str)


def test_several_images_of_any_size_and_videos_in_one_turn() -> None:
    chat = Chat(owl2.model_and_processor(), max_new_tokens=2)
    list(chat.stream("and?", images=[picture(9, 50), picture(64, 5)], videos=[[picture()] * 3]))
    ids = chat._inputs(chat.messages)["input_ids"]
    assert (ids == chat.model.config.image_id).sum() == 5 * chat.model.config.tokens_per_image


def test_files_are_read(tmp_path) -> None:
    picture().save(tmp_path / "a.png")
    chat = Chat(owl2.model_and_processor(), max_new_tokens=3)
    assert chat.ask("what?", images=[tmp_path / "a.png"]) == chat.another().ask("what?", images=[picture()])
    with pytest.raises((ValueError, OSError), match=r"missing\.png"):
        chat.stream("what?", images=[tmp_path / "missing.png"])
    assert len(chat.messages) == 2


def test_a_closed_answer_stops_and_is_remembered_as_far_as_it_was_read(chat: Chat) -> None:
    chat.max_new_tokens, steps = 500, []
    chat.model.register_forward_pre_hook(lambda *_: steps.append(1))
    chat.model.generation_config.eos_token_id = None
    pieces = chat.stream("go on")
    said = next(pieces)
    pieces.close()
    assert len(steps) < 400 and chat.messages[-1]["content"] == said
    assert "plait-chat" not in {thread.name for thread in threading.enumerate()}
    chat.max_new_tokens = 3
    assert chat.ask("and now?") is not None  # the chat goes on


def test_an_interrupt_stops_the_answer_and_not_the_chat() -> None:
    chat = Chat(owl2.model_and_processor(), max_new_tokens=500)
    chat.model.generation_config.eos_token_id = None
    steps: list[int] = []

    def interrupt(*_: object) -> None:
        steps.append(1)
        if len(steps) == 10:
            os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.02)

    chat.model.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        list(chat.stream("go on"))
    assert 10 <= len(steps) < 450
    assert 0 < len(chat.messages[-1]["content"]) < 450
    chat.max_new_tokens = 2
    chat.ask("still there?")


def test_an_interrupt_of_an_interrupt_leaves_the_chat_usable(monkeypatch) -> None:
    chat = Chat(owl2.model_and_processor(), max_new_tokens=30)
    pieces = chat.stream("go on")
    said = next(pieces)
    join = threading.Thread.join

    def interrupted(thread, *args):
        join(thread, *args)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pieces.close()
    assert chat.messages[-1]["content"] == said
    chat.ask("still there?")


def test_an_error_while_answering_reaches_the_reader_and_leaves_no_trace() -> None:
    chat = Chat(owl2.model_and_processor(), max_new_tokens=3)

    def broken(*_):
        raise RuntimeError("out of memory")

    chat.model.register_forward_pre_hook(broken)
    with pytest.raises(RuntimeError, match="out of memory"):
        chat.ask("what?")
    assert chat.messages == []


def test_sampling_follows_the_seed() -> None:
    chat = Chat(owl2.model_and_processor(), max_new_tokens=12, temperature=0.9, top_p=0.95)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(chat.another().ask("what?"))
    assert found[0] == found[1] != found[2]


def test_what_does_not_fit_is_one_clear_line() -> None:
    model, processor = owl2.model_and_processor(max_position_embeddings=20)
    chat = Chat((model, processor))
    with pytest.raises(ValueError, match="expected a question, got none"):
        chat.ask(" ")
    with pytest.raises(ValueError, match="expected a conversation of less than 20 positions, got 3"):
        chat.ask("hello, how are you?")
    with pytest.raises(ValueError, match="expected at least 1 new token"):
        Chat((model, processor), max_new_tokens=0)
    with pytest.raises(ValueError, match="expected a model that talks, got Linear"):
        Chat((torch.nn.Linear(1, 1), None))
    short = chat.another()
    short.model.generation_config.eos_token_id = None
    assert len(short.ask("x")) <= 20  # an answer ends where the context does


def test_two_answers_of_one_conversation_do_not_mix() -> None:
    chat = Chat(owl2.model_and_processor(), max_new_tokens=40)
    pieces = chat.stream("what?")
    next(pieces)
    with pytest.raises(ValueError, match="expected the last answer to be over"):
        chat.stream("and?")
    pieces.close()


def stream(texts: list[str], stops: tuple[str, ...] = ()) -> list[str]:
    """What is said when decoding gives these texts one after another."""
    said: list[str] = []
    pieces = Pieces(lambda ids: texts[len(ids) - 1] if ids else "", stops, said.append, Event())
    pieces.put(torch.zeros(1, 4, dtype=torch.long))
    for _ in texts:
        if not pieces.stop.is_set():
            pieces.put(torch.zeros(1, dtype=torch.long))
    pieces.end()
    return said


def test_half_characters_and_beginnings_of_a_stop_are_held_back() -> None:
    assert stream(["a", "a \ufffd", "a \u00e4", "a \u00e4!"]) == ["a", " ", "\u00e4", "!"]
    assert stream(["yes", "yes <", "yes </", "yes </s>", "yes </s>more"], ("</s>",)) == ["yes"]
    assert stream(["1", "1 <", "1 < 2"], ("</s>",)) == ["1", " < 2"]
    assert stream(["1", "1 <"], ("</s>",)) == ["1", " <"]
