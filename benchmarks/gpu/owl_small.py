"""`plait study owl` at its GPU setting: more steps and batch than the CPU setting, three seeds. Not run yet.

    python benchmarks/gpu/owl_small.py OUT

Needs one GPU and the packaged SmolLM2 (the `chat` extra). Prints the study's table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from plait_studies.owl import study


def main() -> int:
    """Run the study; refuses to start without a GPU."""
    if len(sys.argv) != 2 or not torch.cuda.is_available():
        print("expected a directory for the results and a GPU", file=sys.stderr)
        return 2
    steps = {"tower_steps": 4000, "warm_steps": 2000, "stage1_steps": 4000, "stage2_steps": 6000}
    return study(Path(sys.argv[1]), seeds=3, batch_size=64, count=400, device="cuda", **steps)


if __name__ == "__main__":
    sys.exit(main())
