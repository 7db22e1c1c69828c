"""Pictures of two things and the pairs that training never sees."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from plait.data.pairs import compose, held_out_pairs

SOUNDING = [f"sound{i}" for i in range(15)]
THINGS = [f"thing{i}" for i in range(280)]


def test_both_drawings_are_in_the_picture_left_and_right():
    red, blue = Image.new("RGB", (32, 32), "red"), Image.new("RGB", (32, 32), "blue")
    picture = np.asarray(compose(red, blue, 64, seed=3))
    assert picture.shape == (64, 64, 3)
    is_red, is_blue = ((picture == color).all(-1) for color in ((255, 0, 0), (0, 0, 255)))
    assert is_red[:, :32].sum() > 600 and not is_red[:, 32:].any()
    assert is_blue[:, 32:].sum() > 600 and not is_blue[:, :32].any()
    assert (is_red | is_blue | (picture == 255).all(-1)).all()


def test_the_seed_decides_where_things_are():
    left, right = Image.new("RGB", (20, 20), "red"), Image.new("RGB", (20, 20), "blue")
    same, again, other = (np.asarray(compose(left, right, 64, seed=s)) for s in (1, 1, 2))
    assert (same == again).all() and (same != other).any()
    assert compose(left, right).size == (20, 20)
    with pytest.raises(ValueError, match="size of at least 8"):
        compose(left, right, 4)


def test_held_out_pairs_are_distinct_balanced_and_independent_of_order():
    pairs = held_out_pairs(SOUNDING, THINGS + SOUNDING)
    assert len(pairs) == len(set(pairs)) == 160
    assert pairs == held_out_pairs(SOUNDING[::-1], (SOUNDING + THINGS)[::-1])
    assert pairs != held_out_pairs(SOUNDING, THINGS, seed=1)
    sounds, objects = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    assert set(sounds) == set(SOUNDING) and not set(objects) & set(SOUNDING)
    assert set(sounds.values()) == {10, 11}
    assert min(objects.values()) >= 5, "an object in few pictures would give the picture away"


def test_most_pairs_are_left_for_training():
    held = {frozenset(pair) for pair in held_out_pairs(SOUNDING, THINGS)}
    assert len(held) < 0.05 * len(SOUNDING) * len(THINGS)


def test_small_folders_give_the_pairs_they_have():
    assert sorted(held_out_pairs(["a", "b"], ["x", "y", "a"])) == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    assert held_out_pairs([], ["x"]) == [] == held_out_pairs(["a"], ["a"])
    with pytest.raises(ValueError, match="count of at least 1"):
        held_out_pairs(["a"], ["b"], count=0)
