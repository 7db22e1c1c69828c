"""Tokens as the Stanford tokeniser of the caption kit cuts them; what it does was seen by running it (Java 17)."""

from __future__ import annotations

import pytest

from plait.metrics.ptb import ptb_tokens, ptb_tokens_of


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [
        ("two men said they couldn't", "two men said they could n't"),
        ("gotta' run, cannot' stay", "got ta run can not stay"),
        ("a 'n b, rock 'n' roll", "a 'n b rock 'n' roll"),
        ("the shop 'n.", "the shop n."),
        ("in '98 and the '90s", "in '98 and the '90s"),
        ("since '98", "since 98"),
        ("V'WX0 and d'a", "v'wx 0 and d' a"),
        ("he opens photo 12.jpg, then 7.zip", "he opens photo 12.jpg then 7 zip"),
        ("mail me@home or @my_friend #one2", "mail me@home or @my_friend #one 2"),
        ("** sale ** @@", "** sale ** @@"),
        ("+5 3/4 in. or 1 3/4 in.", "+5 3/4 in or 1\u00a03/4 in"),
        ("a face :( and :[ here", "a face :-lrb- and :[ here"),
        ("etc.-no., ok", "etc.-no. ok"),
        ("it’s five o’clock, we don’t care", "it 's five o’clock we do n't care"),
        ("a\u200bb 「c」 3😀4 \x07d\x0be", "a b c 3 4 d e"),
        ("cafe\u0301 noir", "cafe\u0301 noir"),
    ],
)
def test_a_caption_is_cut_as_the_original_cuts_it(caption: str, tokens: str) -> None:
    assert " ".join(ptb_tokens(caption)) == tokens


@pytest.mark.parametrize(
    ("caption", "tokens"),
    [  # as the original (CoreNLP 3.4.1) cuts them; ~ is a space that does not break lines
        ("a 1~1/2 inch nail", "a 1~1/2 inch nail"),
        ("x 3~1/2-inch, 1~12/2000", "x 3~1/2 inch 1~12/2000"),
        ("1 1/2/3 of 1~1/2a", "1~1/2 / 3 of 1~1/2 a"),
        ("x1 1/2 and 12345 1/2", "x1 1/2 and 12345 1/2"),
        ("-1~1/2 1~2~3/4", "-1 1/2 1 2~3/4"),
        ("2~1⁄2 and 1 1\\/2", "2~1⁄2 and 1~1\\/2"),
        ("½1~1/2", "1/2 1~1/2"),
        ("10~000~000 people, 1~000 cats", "10~000~000 people 1 000 cats"),
        ("call 555 123 4567 or (555)~123-4567", "call 555~123~4567 or -lrb-555-rrb-~123-4567"),
        ("+1 020 7946~0958", "+1 020~7946~0958"),
        ("a~dog, 5~kg, 12\u200b345 6789", "a dog 5 kg 12 345 6789"),
        ("No. 5, No.~~5, No.½", "no. 5 no 5 no 1/2"),
        ("plan C. Mr. Smith", "plan c mr. smith"),
    ],
)
def test_spaces_within_numbers_belong_to_them(caption: str, tokens: str) -> None:
    assert ptb_tokens(caption.replace("~", "\u00a0")) == [one.replace("~", "\u00a0") for one in tokens.split(" ")]


def test_a_final_period_is_judged_by_the_next_caption() -> None:
    assert ptb_tokens_of(["plan C.", "The dog", "No.", "5 cats", "No.", " 5"]) == [
        ["plan", "c"], ["the", "dog"], ["no."], ["5", "cats"], ["no"], ["5"],
    ]  # fmt: skip


def test_re_ve_and_ll_are_no_token_at_the_very_end_of_a_text() -> None:
    assert ptb_tokens("look, they're") == ["look", "they", "re"]
    assert ptb_tokens("look, they're ") == ["look", "they", "'re"]
    assert ptb_tokens("look, it's") == ["look", "it", "'s"]
    lines = ptb_tokens_of(["what we've", "what we've"])
    assert lines == [["what", "we", "'ve"], ["what", "we", "ve"]]


def test_no_tokens_of_no_text() -> None:
    assert ptb_tokens_of(["", " \n", "'"]) == [[], [], []]
