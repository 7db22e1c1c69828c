"""Every golden case of annotation formats holds, and what the readers say does not depend on the stored samples."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from plait.parity.cases import Case, Place, Settings, discover
from plait.parity.run import find, run_case, select
from plait.parity.runners import Runner

BUILT = [place.name for place in discover(Path(__file__).parents[1] / "goldens") if place.system == "formats"]


@pytest.mark.parametrize("name", BUILT)
def test_golden_case_holds(goldens: Path, name: str) -> None:
    (place,) = select(goldens, "formats", name)
    result = run_case(place, Settings())
    assert result.verdict == "ok", result.notes
    assert result.compared == result.stored


@pytest.mark.parametrize("name", BUILT)
def test_samples_do_not_depend_on_the_stored_ones(goldens: Path, tmp_path: Path, name: str) -> None:
    (place,) = select(goldens, "formats", name)
    runner = find("formats", name)
    assert isinstance(runner, Runner)
    shutil.copytree(place.directory, tmp_path / name)
    path = tmp_path / name / "expected.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    changed = {k: v if k in runner.json_inputs else _scrambled(v) for k, v in document.items()}
    path.write_text(json.dumps(changed), encoding="utf-8")
    cases = [Case(*Place("formats", name, d), json_inputs=runner.json_inputs) for d in (place.directory, path.parent)]
    assert runner.function(cases[0]) == runner.function(cases[1])
    assert run_case(Place("formats", name, path.parent), Settings()).verdict == "FAIL"


def _scrambled(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _scrambled(one) for key, one in value.items()}
    return [_scrambled(one) for one in value] if isinstance(value, list) else "scrambled"
