"""The page of claims: every row has evidence, and whatever it names exists."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from plait.cli import verbs
from plait.evaluation.tasks import TASKS
from plait.models.mplug2.composition import TABLE
from plait.models.mplug2.paper_tasks import PAPER_TASKS
from plait.recipes import RECIPES, find_recipe
from plait_studies.study import STUDIES

ROOT = Path(__file__).parents[1]
TESTS, SOURCE = ROOT / "tests", ROOT / "src"
PAGE = (ROOT / "docs" / "claims.md").read_text(encoding="utf-8")
VERDICTS = set(re.findall(r"^\| (\*{0,2}[a-z ]+\*{0,2}) \| ", PAGE.partition("\n## ")[0], re.MULTILINE)) - {"verdict"}


def rows(width: int) -> list[list[str]]:
    """Cells of every numbered row of `width` columns."""
    found = [[cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines()]
    return [cells for cells in found if len(cells) == width and re.fullmatch(r"[\d.]+", cells[0])]


CLAIMS = rows(7)
COMMANDS = sorted({command for cells in CLAIMS for command in re.findall(r"`(plait [^`]+)`", cells[3])})


def names(cell: str) -> list[str]:
    """What stands in backticks."""
    return re.findall(r"`([^`]+)`", cell)


def is_code(name: str) -> bool:
    """Whether `file:definition` is in the source."""
    file, _, definition = name.partition(":")
    path = next((base / file for base in (SOURCE / "plait", SOURCE) if (base / file).is_file()), None)
    if path is None:
        return False
    text = path.read_text(encoding="utf-8")
    return not definition or bool(re.search(rf"^(class |def )?{definition}\b", text, re.MULTILINE))


def is_test(name: str) -> bool:
    """Whether `file:test` is in the tests, or `golden case` beside them."""
    if name.startswith("golden "):
        return (TESTS / "goldens" / name.removeprefix("golden ")).exists()
    file, _, test = name.partition(":")
    path = TESTS / file
    return path.is_file() and f"\ndef test_{test}(" in path.read_text(encoding="utf-8")


def test_every_statement_stands_once() -> None:
    numbers = [cells[0] for cells in CLAIMS]
    assert len(numbers) >= 100 and len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("cells", CLAIMS, ids=lambda cells: cells[0])
def test_a_statement_has_evidence(cells: list[str]) -> None:
    _, statement, code, typed, proofs, figure, verdict = cells
    assert statement and names(code) and names(typed) and names(proofs) and figure
    assert not [name for name in names(code) if not is_code(name)]
    assert not [name for name in names(proofs) if not is_test(name)]
    assert verdict in VERDICTS
    if verdict.strip("*") in ("agrees", "mixed", "contradicted"):
        assert re.search(r"\d", figure), "a verdict of a measurement needs its figure"


def test_figures_stand_where_they_are_told_in_full() -> None:
    pages = [ROOT / "benchmarks" / "README.md", *(ROOT / "docs").rglob("*.md")]
    told = " ".join(page.read_text(encoding="utf-8") for page in pages if page.name != "claims.md")
    known = set(re.findall(r"(?<![\w.,])\d+\.\d+", told))
    for number, *_, figure, _ in CLAIMS:
        figures = re.findall(r"(?<![\w.,])\d+\.\d+", re.sub(r"see [\d.]+", "", figure))
        assert set(figures) <= known, f"{number}: no page tells of it any more"


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_typed_exists(command: str) -> None:
    _, verb, *rest = command.split()
    assert verb in verbs()
    if not rest:
        return
    known = {"eval": [*TASKS, "emergent"], "train": RECIPES, "study": STUDIES, "plan": [*RECIPES, "mplug2"]}[verb]
    assert rest[0] in known
    if rest[0] == "mplug2" and verb == "plan":
        assert rest[1] in TABLE
    settings = re.findall(r"--set (\w+)=", command)
    if verb == "train":
        assert not set(settings) - set(inspect.signature(find_recipe(rest[0])).parameters)


def test_the_tasks_are_those_of_the_plan() -> None:
    listed = [(cells[1], cells[2], *names(cells[3]), *names(cells[4])) for cells in rows(5)]
    for cells, one in zip(listed, PAPER_TASKS, strict=True):
        assert cells[0] == one.name
        if one.task is None:
            assert cells[1:] == (f"none: {one.about}",)
            continue
        cell, measured, trained = cells[1:]
        assert (cell, measured) == (f"{one.task} {one.medium}", f"plait eval {one.evaluation}")
        assert trained.split()[:3] == ["plait", "train", one.recipe]
