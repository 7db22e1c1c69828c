"""Key rules under fire: random rules on random keys either convert there and back bit for bit, or say why not."""

from __future__ import annotations

import random
import string

import pytest
import torch
from torch import Tensor

from plait.weights.files import StateError
from plait.weights.keymap import Alias, Concat, Drop, KeyMap, Rename, Rule, Split, Transpose, prefixed

from ..fuzzing import bounded_memory, within

FIELDS = ("{i}", "{j}", "{p:weight|bias}", "{way:text|image}", "{rest:.+}", "{_:.*}")
LITERALS = ("layers.", "a.", "b", "w[0]", ".", "qkv", "(x)", "t+", "0", "", "\\d", "$", "é", "\n", "weight")


def pattern(rng: random.Random, fields: list[str]) -> str:
    """Literals around the given fields, in any order."""
    parts = [rng.choice(LITERALS) for _ in range(rng.randrange(1, 4))] + fields
    rng.shuffle(parts)
    return "".join(parts)


def rule(rng: random.Random) -> Rule:
    """Any rule of the module, its patterns with the same fields (nearly always)."""
    fields = rng.sample(FIELDS, rng.randrange(0, 3))

    def make() -> str:
        return pattern(rng, fields if rng.random() < 0.97 else fields[1:])

    many = tuple(make() for _ in range(rng.randrange(1, 4)))
    sizes = rng.choice([None, None, tuple(rng.randrange(-1, 4) for _ in many)])
    dim = rng.randrange(-3, 3)
    made = rng.choice(
        [
            lambda: Rename(make(), make()),
            lambda: Alias(make(), make()),
            lambda: Transpose(make(), make(), dims=tuple(rng.sample(range(3), rng.randrange(1, 4)))),
            lambda: Split(make(), many, dim=dim, sizes=sizes),
            lambda: Concat(many, make(), dim=dim, sizes=sizes),
            lambda: Drop(make(), "not needed"),
        ]
    )()
    return prefixed([made], official=rng.choice(["", "m."]), native=rng.choice(["", "n."]))[0]


def key(rng: random.Random, rules: list[Rule]) -> str:
    """A key that fits a pattern of the rules, sometimes damaged, or nonsense."""
    if rng.random() < 0.1:
        return "".join(rng.choices(string.printable, k=rng.randrange(40)))
    made = rng.choice([p for r in rules for p in r.official])
    values = {"{i}": "3", "{j}": "10", "{p:weight|bias}": "bias", "{way:text|image}": "text", "{rest:.+}": "x.y"}
    for field, value in {**values, "{_:.*}": "any"}.items():
        made = made.replace(field, value)
    if rng.random() < 0.2 and made:
        at = rng.randrange(len(made))
        made = made[:at] + rng.choice(["", ".", "9", "\n", "a" * 2000]) + made[at + 1 :]
    return made


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def convert(rng: random.Random, tensors: list[Tensor]) -> bool:
    """One round: random rules on random keys; whether they converted. Whatever is no ValueError escapes."""
    try:
        rules = [rule(rng) for _ in range(rng.randrange(1, 4))]
        state = {key(rng, rules): rng.choice(tensors) for _ in range(rng.randrange(1, 4))}
        native, report = KeyMap(rules).forward(state)
        there = dict(native)
        back = dict(KeyMap(rules).backward(there))
    except ValueError as error:  # StateError is one
        assert isinstance(error, StateError) or "expected" in str(error)
        return False
    renamed = [k for k in report.moved if isinstance(KeyMap(rules).explain([k])[k], Alias)]
    if not report.dropped and not renamed:
        assert equal(back, state)
    return True


@bounded_memory()
@pytest.mark.parametrize("count", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_random_rules_convert_there_and_back_or_say_why_not(count: int) -> None:
    rng, converted = random.Random(11), 0
    tensors = [torch.arange(12.0).view(shape) for shape in ((12,), (3, 4), (2, 3, 2))] + [torch.tensor(1)]
    for _ in range(count):
        with within():
            converted += convert(rng, tensors)
    assert converted > count // 10
