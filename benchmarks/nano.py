"""What the shipped `nano` finds among the held-out drawings and notes of the shipped data: docs/demo.md's table.

python benchmarks/nano.py -> results/nano.json: each metric with its 95 % interval, chance, queries and gallery.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from measure import write

from plait.cli import main

KEPT = ("value", "interval", "chance", "queries", "gallery")


def measure() -> dict[str, dict[str, float]]:
    """The metrics of `plait eval emergent nano` on the data of `plait data build mini --shipped`."""
    with tempfile.TemporaryDirectory() as scratch:
        data, out = Path(scratch, "data"), Path(scratch, "out")
        if main(["data", "build", "mini", "--shipped", "--out", str(data)]):
            sys.exit(1)
        if main(["eval", "emergent", "nano", "--data", str(data), "--out", str(out)]):
            sys.exit(1)
        found = json.loads((out / "evaluation.json").read_text(encoding="utf-8"))["metrics"]
    return {name: {key: metric[key] for key in KEPT} for name, metric in found.items() if metric is not None}


if __name__ == "__main__":
    write("nano", {"metrics": measure()})
