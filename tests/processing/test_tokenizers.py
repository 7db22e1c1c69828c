from __future__ import annotations

from pathlib import Path

import pytest
import torch

from plait.processing import tokenizers as tk

TEXTS = ["A man riding a WAVE.", "naïve café – 日本語 😀", "12,345.67 kg & 3x4=12", "the </s> token <pad>", "don't"]


def test_a_transformers_tokenizer_gives_the_same_ids() -> None:
    tokenizer = tk.build_tokenizer()
    assert len(tokenizer) == 50264
    assert tokenizer(TEXTS)["input_ids"] == tk.encode(TEXTS)
    long = "pneumonoultramicroscopic " * 30
    assert tokenizer(long, truncation=True)["input_ids"] == tk.encode([long])[0]
    assert len(tk.encode([long])[0]) == 71
    assert tokenizer.decode(tk.encode(TEXTS[:1])[0], skip_special_tokens=True) == " a man riding a wave."


def test_special_ids_and_padding() -> None:
    tokenizer = tk.build_tokenizer()
    ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id)
    assert ids == (0, 1, 2, 3)
    batch = tokenizer(["cow", "a man riding"], padding=True, return_tensors="pt")
    assert set(batch) == {"input_ids", "attention_mask"}
    assert batch["input_ids"][0].tolist() == [12094, 2, 1, 1]
    assert batch["attention_mask"][0].tolist() == [1, 1, 0, 0]


def test_special_words_in_a_text_stay_text() -> None:
    assert tk.encode(["</s> <pad> <s>"])[0].count(tk.EOS_ID) == 1
    assert tk.PAD_ID not in tk.encode(["</s> <pad> <s>"])[0]


def test_an_empty_text_is_one_space() -> None:
    assert tk.encode([""]) == tk.encode([""], lowercase=False) == [[1437, 2]]


def test_case_and_length_can_be_kept() -> None:
    upper, lower = tk.encode(["Dog"], lowercase=False)[0], tk.encode(["dog"])[0]
    assert upper != lower
    assert len(tk.encode(["dog " * 100], max_tokens=None)[0]) > 100


@pytest.mark.parametrize(
    "text, clean", [("  Two   dogs\tplay ", "two dogs play"), ("...#Hi; you\n", "hi; you"), ("", "")]
)
def test_captions_are_cleaned(text: str, clean: str) -> None:
    assert tk.clean_caption(text) == clean


def test_grounding_texts_are_cut_in_words() -> None:
    assert tk.cut_words("a b c d", 3) == "a b c"


def test_a_subset_tokenizes_its_texts_as_before_and_others_without_unknowns(tmp_path: Path) -> None:
    full = tk.encode(TEXTS)
    kept = tk.subset(i for row in full for i in row)
    small = tk.build_tokenizer(kept)
    assert len(small) == len(kept) < 400
    assert [[kept[i] for i in row] for row in small(TEXTS)["input_ids"]] == full
    other = small("completely unseen Χρώμα")["input_ids"]
    assert tk.UNK_ID not in other
    assert small.decode(other, skip_special_tokens=True) == " completely unseen χρώμα"


def test_a_saved_subset_comes_back(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    small = tk.build_tokenizer(tk.subset(tk.encode(TEXTS)[0]))
    small.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    assert again(TEXTS)["input_ids"] == small(TEXTS)["input_ids"]
    assert (again.pad_token_id, again.eos_token_id, again.model_max_length) == (1, 2, 71)
    assert tk.encode_with(again.backend_tokenizer, ["", "cow"]) == tk.encode_with(small.backend_tokenizer, ["", "cow"])


def test_word_starts_of_a_subset_are_those_of_its_rows() -> None:
    table = tk.whole_word_starts()
    assert table.shape == (50264,)
    kept = tk.subset(tk.encode(["unbelievable surfboards"])[0])
    assert torch.equal(tk.whole_word_starts(tk.build_tokenizer(kept)), table[kept])
