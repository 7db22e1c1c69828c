"""WordPieces are uncased BERT's, special tokens in a text are text, and targets end once unless officially twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.processing.wordpiece import (
    answer_target,
    build_backend,
    build_tokenizer,
    caption_target,
    clean_caption,
    clean_question,
    pieces,
)


def test_the_vocabulary_is_uncased_berts() -> None:
    assert len(pieces()) == 30522
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [pieces()[i] for i in (0, 100, 101, 102, 103, 2023)] == [*special, "this"]
    assert build_tokenizer()("This is Café unaffable")["input_ids"] == [101, 2023, 2003, 7668, 14477, 20961, 3468, 102]


def test_a_special_token_in_a_text_is_text() -> None:
    assert build_tokenizer()("a [SEP] b")["input_ids"].count(102) == 1


def test_save_and_load_round_trip(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = build_tokenizer(max_length=32)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    texts = ["A man's dog [SEP] runs!", "naïve 東京", ""]
    assert again(texts)["input_ids"] == tokenizer(texts)["input_ids"]
    assert again.model_max_length == 32
    assert again.decode([101, 1037, 2158, 102], skip_special_tokens=True) == "a man"


def test_cleaning_drops_punctuation_and_cuts_words() -> None:
    assert clean_caption("<person> jumps -- over: the/fence!!  ", 4) == "person jumps over the"
    assert clean_question("Who's  there?", 2) == "whos "


def test_answers_end_once_and_officially_twice() -> None:
    backend = build_backend()
    assert answer_target(backend, "a man").ids == [101, 1037, 2158, 102]
    assert answer_target(backend, "a man", official=True).ids == [101, 1037, 2158, 102, 102]


def test_prompt_and_caption_stand_apart_unless_officially_glued() -> None:
    backend = build_backend()
    ours = caption_target(backend, "a man", "a video of")
    assert ours.ids == [101, 1037, 2678, 1997, 1037, 2158, 102]
    assert ours.prompt_length == 4
    glued = caption_target(backend, "a man", "a video of", official=True)
    assert glued.ids[:4] == [101, 1037, 2678, 1997]
    assert pieces()[glued.ids[4]] == "##a"
    assert caption_target(backend, "a man").prompt_length == 0
    assert len(caption_target(backend, "word " * 50, max_length=20).ids) == 20


def test_a_vocabulary_without_special_pieces_is_refused() -> None:
    with pytest.raises(ValueError, match=r"got none of \[SEP\]"):
        build_backend(["[PAD]", "[UNK]", "[CLS]", "a"])
