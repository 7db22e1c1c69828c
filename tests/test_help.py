"""Every verb tells, in its help, how it is typed, what every option is without it, and in which unit."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from typing import Any

import pytest

from plait.cli import command, verbs

NOTHING = re.compile(r"without it|default|\belse\b")
"""Says what holds when an option is not given, where its default is no value that the help shows."""
NUMBERS = re.compile(
    r"seconds|mib|\bmb\b|pixels|tokens|items|results|rows|labels|answers|pictures|queries|beams|checkpoints|batches|"
    r"seed|share|score|distance|from 0 to 1|free one|step|layers|repetitions|temperature|likeliest|probability|"
    r"sampling|clips|processes|several|control|listen"
)
"""Units, and names of numbers that have none."""


def commands() -> Iterator[tuple[str, Any]]:
    for name in verbs():
        made = command(name)
        for sub, one in (getattr(made, "commands", None) or {"": made}).items():
            yield f"{name} {sub}".strip(), one


COMMANDS = dict(commands())


def options(one: Any) -> list[Any]:
    return [option for option in one.params if option.param_type_name == "option"]


@pytest.mark.parametrize("name", COMMANDS)
def test_help_ends_with_examples_that_can_be_typed(name: str) -> None:
    title, *lines = (COMMANDS[name].epilog or "").split("\n\n")
    assert title == "Examples:" and lines
    for line in lines:
        words = shlex.split(line.split("|")[-1] if "| plait" in line else line)
        assert words[: 1 + len(name.split())] == ["plait", *name.split()]
        COMMANDS[name].make_context(name, words[1 + len(name.split()) :]).close()  # raises for what it does not take


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_holds_without_it(name: str) -> None:
    silent = [
        option.opts[-1]
        for option in options(COMMANDS[name])
        if not option.help
        or (option.default is None and not (option.multiple or option.required) and not NOTHING.search(option.help))
    ]
    assert not silent
    hidden = [o.opts[-1] for o in options(COMMANDS[name]) if o.default not in (None, False) and not o.show_default]
    assert not hidden


@pytest.mark.parametrize("name", COMMANDS)
def test_every_number_has_its_unit(name: str) -> None:
    numbers = [option for option in options(COMMANDS[name]) if isinstance(option.default, float | int)]
    numbers = [option for option in numbers if not isinstance(option.default, bool)]
    assert not [option.opts[-1] for option in numbers if not NUMBERS.search(option.help.lower())]
