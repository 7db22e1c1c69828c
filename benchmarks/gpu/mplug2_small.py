"""The study of mPLUG-2 at its longer setting, on a GPU: eight times the steps, bfloat16, three seeds, both sharings.

Not run on a GPU yet; --tiny runs the same code for one step per run on a CPU, which checks the script and nothing else.
Run it: python benchmarks/gpu/mplug2_small.py --out runs/mplug2-gpu   (again to continue)

Fetches the same packages as `plait study mplug2`; on a machine that reaches no registry copy Plait's cache there and
set PLAIT_CACHE. Writes results/gpu_mplug2_small.json: every arm with its interval, the bars, and the time it took.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch

from plait_studies.mplug2 import study

sys.path.insert(0, str(Path(__file__).parents[1]))
from measure import write

SETTING: dict[str, Any] = {
    "pretrain_steps": 3600,
    "answer_steps": 6400,
    "control_steps": 1200,
    "class_steps": 1200,
    "animated": True,
    "device": "cuda",
    "dtype": "bfloat16",
}
TINY: dict[str, Any] = {
    "pretrain_steps": 1,
    "answer_steps": 1,
    "control_steps": 1,
    "class_steps": 1,
    "device": "cpu",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="one step per run on a CPU: checks the script")
    parser.add_argument("--out", type=Path, default=Path("runs/mplug2-gpu"))
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    if not chosen.tiny and not torch.cuda.is_available():
        sys.exit("expected a CUDA device, found none; --tiny checks the script on a CPU")
    setting = TINY if chosen.tiny else SETTING
    started = time.monotonic()
    code = study(chosen.out, 1 if chosen.tiny else chosen.seeds, **setting)
    if code:
        sys.exit(code)
    summary = json.loads((chosen.out / "summary.json").read_text(encoding="utf-8"))
    result = {
        "setting": setting,
        "seconds": round(time.monotonic() - started),
        **{name: summary[name] for name in ("seeds", "rows", "zero_shot", "bars", "gap")},
    }
    if chosen.tiny:
        print(f"ran {len(result['rows'])} rows and {len(result['bars'])} bars")
        return
    result["peak_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    write("gpu_mplug2_small", result, "cuda")


if __name__ == "__main__":
    main()
