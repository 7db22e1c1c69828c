"""From a fresh installation to the first printed hit, downloads left out.

    python benchmarks/first_hit.py [--repeats 3]

wheel -> installed beside the packages that are here -> plait quickstart with empty caches and no byte code at all

Cold: the wheel is installed into an empty folder, and every module of every package (torch and transformers too) is
compiled anew, which pip does on installation; nothing is in Plait's cache. Warm: a new process with byte code.
Seconds of CPU time on one thread, which is what a person waits for on a machine that does nothing else; the wall time
of this run, which other work on the machine lengthens, stands beside it with the load.
"""

from __future__ import annotations

import argparse
import itertools
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from measure import write

ROOT = Path(__file__).parents[1]
BARS = {
    "installed_to_first_hit": 30.0,
    "first_vector_in_a_process_with_torch_loaded": 3.0,
    "cold_help": 0.5,
    "warm_help": 0.5,
}
RUN = "import sys; from plait.cli import main; sys.exit(main())"
HIT = re.compile(r"^1 +-?\d\.\d{3} ")
VECTOR = 'from plait import Embedder; print(Embedder("nano").embed(["a trumpet"]).shape)'
LOADED = """
import time
import torch, transformers
from plait import Embedder
import plait.embedder.towers, plait.models.auto
start, wall = time.process_time(), time.perf_counter()
Embedder("nano").embed(["a trumpet"])
print(time.process_time() - start, time.perf_counter() - wall)
"""


class Took(NamedTuple):
    """Seconds of CPU time and of wall time."""

    cpu: float
    wall: float

    def __add__(self, other: Took) -> Took:  # ty: ignore[invalid-method-override]
        return Took(self.cpu + other.cpu, self.wall + other.wall)


def install(place: Path) -> Took:
    """Build and install the wheel into `place`, without dependencies."""
    line = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    return took(lambda: subprocess.run([*line, "--target", str(place), str(ROOT)], check=True))


def first_hit(environment: dict[str, str], out: Path) -> tuple[Took, str]:
    """What passes until `plait quickstart` prints its first hit, and that line; the training after it is stopped."""
    lines: list[str] = []

    def run() -> None:
        command = [sys.executable, "-u", "-c", RUN, "quickstart", "--out", str(out)]
        with subprocess.Popen(command, env=environment, cwd=out.parent, stdout=subprocess.PIPE, text=True) as running:
            assert running.stdout is not None
            lines.extend(line.strip() for line in itertools.islice(filter(HIT.match, running.stdout), 1))
            running.kill()

    found = took(run)
    if not lines:
        raise RuntimeError("expected a hit, got none")
    return found, lines[0].replace(f"{out.parent}/", "")


def python(code: str, environment: dict[str, str], *arguments: str) -> Took:
    """What a process that runs `code` takes."""
    line = [sys.executable, "-c", code, *arguments]
    return took(lambda: subprocess.run(line, env=environment, capture_output=True, check=True))


def loaded(environment: dict[str, str]) -> Took:
    """What the first vector takes in a process that has imported torch."""
    line = [sys.executable, "-c", LOADED]
    printed = subprocess.run(line, env=environment, capture_output=True, text=True, check=True).stdout
    return Took(*map(float, printed.split()))


def took(call: Callable[[], object]) -> Took:
    """What a call takes with the processes it starts."""
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    call()
    wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    return Took(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime, wall)


def measure(root: Path, repeats: int) -> dict[str, Any]:
    """One cold run, then warm ones."""
    installing = install(root / "site")
    environment = {
        **os.environ,
        "PYTHONPATH": str(root / "site"),
        "PLAIT_CACHE": str(root / "cache"),
        "PYTHONPYCACHEPREFIX": str(root / "bytecode"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    cold_help = python(RUN, environment, "--help")
    cold, line = first_hit(environment, root / "cold")
    results = {
        "install": [installing],
        "cold_help": [cold_help],
        "cold_quickstart_to_first_hit": [cold],
        "installed_to_first_hit": [installing + cold],
        "warm_quickstart_to_first_hit": [first_hit(environment, root / f"warm{n}")[0] for n in range(repeats)],
        "warm_help": [python(RUN, environment, "--help") for _ in range(2 * repeats)],
        "new_process_to_first_vector": [python(VECTOR, environment) for _ in range(repeats + 1)][1:],
        "first_vector_in_a_process_with_torch_loaded": [loaded(environment) for _ in range(repeats)],
    }
    cpu = {name: round(median(one.cpu for one in runs), 2) for name, runs in results.items()}
    wall = {name: round(median(one.wall for one in runs), 2) for name, runs in results.items()}
    return {
        "load": os.getloadavg()[0],
        "first_hit": line,
        "cpu_seconds": cpu,
        "wall_seconds": wall,
        "bars": {name: {"bar": bar, "got": cpu[name], "holds": cpu[name] <= bar} for name, bar in BARS.items()},
    }


def main() -> None:
    """Measure in a folder that is removed afterwards."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        write("first_hit", measure(Path(root).resolve(), arguments.repeats))


if __name__ == "__main__":
    main()
