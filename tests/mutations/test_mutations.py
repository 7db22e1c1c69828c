"""Faults put in by hand: the lists fit the code, and the tests notice nearly all of them."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

RUN = Path(__file__).with_name("run.py")
LEAST = 0.95
"""Share of the faults that the tests must notice."""


def test_every_fault_fits_the_code_of_today(monkeypatch: pytest.MonkeyPatch) -> None:
    spec = importlib.util.spec_from_file_location("mutations_run", RUN)
    assert spec is not None and spec.loader is not None
    run = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, run)  # dataclasses look their module up
    spec.loader.exec_module(run)
    faults = run.read_faults()
    assert len({(fault.file, fault.old, fault.new) for fault in faults}) == len(faults)
    for fault in faults:
        assert fault.text()
        assert all((run.ROOT / test.split("::")[0]).exists() for test in fault.tests), fault.why


@pytest.mark.slow
def test_the_tests_notice_nearly_every_fault(tmp_path: Path) -> None:
    out = tmp_path / "faults.json"
    subprocess.run([sys.executable, RUN, "--out", out], check=False)
    counts = json.loads(out.read_text())["counts"]
    assert counts.get("killed", 0) >= LEAST * sum(counts.values()), counts
