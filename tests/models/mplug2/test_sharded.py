"""A sharded mPLUG-2 has the loss and the gradients of a whole one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_a_sharded_pretraining_step_equals_a_whole_one() -> None:
    script = Path(__file__).with_name("sharded_run.py")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run([*launcher, str(script)], capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.strip().splitlines()[-1])
    assert found["losses"][0] == pytest.approx(found["losses"][1], rel=1e-6)
    assert found["error"] < 2e-5
    assert found["parameters"] > 200
