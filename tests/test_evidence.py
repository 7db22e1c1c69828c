"""Figures on pages have a result file behind them, which was made from a clean commit of this history.

A block of a page that tells of a measurement ends with `<!-- evidence: benchmarks/results/NAME.json -->`: its decimal
numbers have to be in the file, as they are, in percent or as a ratio. Bounds, dates and versions are not looked at.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("*.json"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "benchmarks" / "README.md"]
EVIDENCE = re.compile(r"<!-- evidence: ([^>]+) -->")
# bounds, chances, dates and versions are no measurements
SKIPPED = re.compile(
    r"\d{4}-\d\d-\d\d|(?:torch|Python|transformers|lancedb|commit) [\w.]+|"
    r"(?:bar|bars|at most|at least|under|chance|above|below|of dim|cosine of) (?:of )?[\d.,]+|\([^)]*\bbar\b[^)]*\)"
)
NUMBER = re.compile(r"(?<![\w.,])\d[\d,]*\.\d+(?![\w.]*\d)")


def numbers_in(value: Any) -> Iterator[float]:
    """Every number of a result file."""
    if isinstance(value, bool):
        return
    if isinstance(value, int | float):
        yield float(value)
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from numbers_in(one)


def stands_in(figure: str, found: list[float]) -> bool:
    """Whether a figure is one of the numbers, rounded as written: as it is, in percent, in other units, turned."""
    value, digits = float(figure.replace(",", "")), len(figure.partition(".")[2])
    near = 0.51 * 10**-digits
    for one in found:
        forms = [one * scale for scale in (1, 100, 1000, 1e-3, 1e-6, 1e-9, 2**-10, 2**-20, 2**-30)]
        forms += [1 / one] if one else []
        if any(abs(value - form) <= near for form in forms):
            return True
    return False


def blocks() -> list[tuple[str, str, list[Path]]]:
    """(page, text, files) of every block that names its evidence."""
    found = []
    for page in PAGES:
        text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
        for block in re.split(r"\n\s*\n", text):
            if named := EVIDENCE.search(block):
                found.append((page.name, EVIDENCE.sub("", block), [ROOT / one for one in named[1].split()]))
    return found


def commits_in(value: Any) -> set[str]:
    """Every commit that a result file names."""
    if isinstance(value, dict):
        own = {value["commit"]} if isinstance(value.get("commit"), str) else set()
        return own.union(*map(commits_in, value.values()))
    return set().union(*map(commits_in, value)) if isinstance(value, list) else set()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_was_made_at_a_clean_commit_of_this_history(path: Path) -> None:
    commits = commits_in(json.loads(path.read_text(encoding="utf-8")))
    assert commits and not [commit for commit in commits if not re.fullmatch(r"[0-9a-f]{7,40}", commit)]
    if not (ROOT / ".git").exists():
        pytest.skip("no history here")
    for commit in commits:
        asked = ["git", "-C", str(ROOT), "merge-base", "--is-ancestor", commit, "HEAD"]
        assert subprocess.run(asked, check=False, capture_output=True).returncode == 0, commit


def test_every_benchmark_on_its_page_names_its_evidence() -> None:
    named = {path for _, _, files in blocks() for path in files}
    assert set(RESULTS) <= named, "a result that no page tells of"


@pytest.mark.parametrize(("page", "text", "files"), blocks())
def test_figures_are_those_of_the_result_file(page: str, text: str, files: list[Path]) -> None:
    found = [number for path in files for number in numbers_in(json.loads(path.read_text(encoding="utf-8")))]
    figures = NUMBER.findall(SKIPPED.sub(" ", text))
    assert figures, f"{page} names evidence for a block without figures"
    assert not [figure for figure in figures if not stands_in(figure, found)]
