"""A judge's reply that is no verdict counts for nothing, whatever it holds."""

from __future__ import annotations

import pytest

from plait.metrics.answers import judge_verdict

from ..fuzzing import within

STRANGE = [
    "{'pred': 'yes', 'score': 1e999}",
    "{'pred': 'yes', 'score': 1e300}",
    "(" * 9000,
    "-" * 100_000 + "1",
    "[]",
    "",
]


@pytest.mark.parametrize("reply", STRANGE, ids=range(len(STRANGE)))
def test_a_strange_reply_is_no_verdict(reply: str) -> None:
    with within():
        assert judge_verdict(reply) is None
    assert judge_verdict("{'pred': 'yes', 'score': 4.5}") == (True, 4)
