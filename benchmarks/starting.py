"""What a process spends before it is any use: CPU seconds of whole processes, with byte code, files in the page cache.

    python benchmarks/starting.py [--rounds 5]

torch alone | transformers' base class of models | one picture embedded | plait --help | plait plan | plait search

Every arm is a process of its own; arms take turns, and what is told is the median over the rounds of the difference
to `import torch` in the same round, and of the ratio.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from measure import write

BAR = 1.0
"""Seconds that one picture may take over torch."""
PLAN_BAR = 2.0
CLI = "import sys; from plait.cli import main; sys.exit(main())"
PICTURE = 'import sys, plait; print(plait.Embedder("nano").embed([{"image": sys.argv[1]}]).shape)'
IMAGE = Path(__file__).parents[1] / "docs" / "images"


def seconds(code: str, *arguments: str) -> float:
    """CPU seconds of a process that runs `code`."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    picture = str(IMAGE / "page-look.webp")
    with tempfile.TemporaryDirectory() as root:
        os.environ["PYTHONPYCACHEPREFIX"] = f"{root}/bytecode"
        index = f"{root}/one.lance"
        seconds(CLI, "index", "add", index, picture, "--model", "nano")
        arms = {
            "torch": ("import torch",),
            "transformers_model_class": ("from transformers import PreTrainedModel",),
            "one_picture": (PICTURE, picture),
            "help": (CLI, "--help"),
            "plan": (CLI, "plan", "one_peace.stage1"),
            "search": (CLI, "search", index, "--text", "a drum"),
        }
        for arm in arms.values():  # byte code of every package is written here
            seconds(*arm)
        names = list(arms)
        taken: dict[str, list[float]] = {name: [] for name in names}
        for turn in range(arguments.rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                taken[name].append(seconds(*arms[name]))
    over = {name: round(median(a - b for a, b in zip(taken[name], taken["torch"])), 2) for name in names}
    result = {
        "rounds": arguments.rounds,
        "load": round(os.getloadavg()[0], 1),
        "cpu_seconds": {name: round(median(values), 2) for name, values in taken.items()},
        "seconds_over_torch": over,
        "ratio_to_torch": {
            name: round(median(a / b for a, b in zip(taken[name], taken["torch"])), 2) for name in names
        },
        "bars": {
            "one_picture_over_torch": {"bar": BAR, "got": over["one_picture"], "holds": over["one_picture"] <= BAR},
            "plan_over_torch": {"bar": PLAN_BAR, "got": over["plan"], "holds": over["plan"] <= PLAN_BAR},
        },
    }
    write("starting", result)


if __name__ == "__main__":
    main()
