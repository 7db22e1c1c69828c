"""The script that measures a GPU runs at tiny sizes on a CPU."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "gpu" / "mfu.py"


@pytest.mark.parametrize("arm", ["contrast", "one_peace_trunk", "owl2_lora", "owl2_full"])
def test_every_arm_trains_at_tiny_sizes_and_counts_its_work(arm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SCRIPT.parents[1]))
    spec = importlib.util.spec_from_file_location("mfu_script", SCRIPT)
    assert spec is not None and spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    assert arm in script.ARMS and set(script.BARS) == set(script.ARMS)
    found = script.measure(arm, True, 2, None, 0)
    assert found["gflops_per_step"] >= 0 and found["samples_per_second"] > 0
    assert found["mfu"] is None and found["bar"] >= 0.35  # the peak of a CPU is not known
