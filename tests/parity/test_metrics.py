"""Every golden case of published metrics holds, every stored figure compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from plait.parity.cases import Settings, discover
from plait.parity.run import run_case, select

BUILT = [place.name for place in discover(Path(__file__).parents[1] / "goldens") if place.system == "metrics"]
NEEDS_JAVA = {"meteor"}


@pytest.mark.parametrize("name", BUILT)
def test_golden_case_holds(goldens: Path, name: str) -> None:
    (place,) = select(goldens, "metrics", name)
    result = run_case(place, Settings())
    if name in NEEDS_JAVA and result.verdict == "unavailable":
        pytest.skip("needs Java")
    assert result.verdict == "ok", result.notes
    assert result.compared == result.stored
