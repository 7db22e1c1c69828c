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


def test_re_ve_and_ll_are_no_token_at_the_very_end_of_a_text() -> None:
    assert ptb_tokens("look, they're") == ["look", "they", "re"]
    assert ptb_tokens("look, they're ") == ["look", "they", "'re"]
    assert ptb_tokens("look, it's") == ["look", "it", "'s"]
    lines = ptb_tokens_of(["what we've", "what we've"])
    assert lines == [["what", "we", "'ve"], ["what", "we", "ve"]]


def test_no_tokens_of_no_text() -> None:
    assert ptb_tokens_of(["", " \n", "'"]) == [[], [], []]
