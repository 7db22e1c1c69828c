"""A text and a picture: a matching head says whether they fit; a model that ranks answers is asked for yes or no."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from plait import Assistant

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue", "green")]


def test_the_matching_head_gives_the_probability_of_its_class() -> None:
    assistant = Assistant(SAVED / "mplug2_retrieval")
    assert "match" in assistant.tasks
    texts = ["a dog", "a cat", "snow"]
    shares = assistant.match(pictures(), texts)
    assert all(0 < share < 1 for share in shares)
    assert [assistant.match(*pair) for pair in zip(pictures(), texts, strict=True)] == pytest.approx(shares, abs=1e-5)
    assert assistant.match(pictures(), texts[::-1]) != pytest.approx(shares, abs=1e-4)


def test_a_model_that_ranks_answers_is_asked_for_yes() -> None:
    assistant = Assistant(SAVED / "mplug_owl2")
    assert "match" not in assistant.tasks
    shares = assistant.match(pictures()[:2], "a dog")
    yes = [
        dict(row)["yes"]
        for row in assistant.rank(pictures()[:2], "Does this show: a dog? Answer yes or no.", ("yes", "no"))
    ]
    assert shares == pytest.approx(yes) and all(0 < share < 1 for share in shares)
    assert assistant.match(pictures()[0], "a dog") == pytest.approx(yes[0])
    with pytest.raises(ValueError, match="expected a question or phrase"):
        assistant.match(pictures()[0], " ")


def test_a_model_that_does_neither_says_so() -> None:
    with pytest.raises(ValueError, match="expected a model that can match"):
        Assistant(SAVED / "mplug2_grounding").match(pictures()[0], "a dog")
