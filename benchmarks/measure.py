"""Timing that holds on a busy machine: CPU time, arms interleaved, the median over pairs; results with their origin."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


def interleaved(arms: Mapping[str, Callable[[], Any]], rounds: int = 60, warmup: int = 5) -> dict[str, list[float]]:
    """CPU seconds of every arm in every round; the order turns by one each round, so that no arm always comes first."""
    names = list(arms)
    for name in names * warmup:
        arms[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            arms[name]()
            seconds[name].append(time.process_time() - start)
    return seconds


def compare(seconds: Mapping[str, list[float]], arm: str, base: str) -> dict[str, float]:
    """The ratio arm / base over pairs taken in the same round: median and quartiles."""
    ratios = [a / b for a, b in zip(seconds[arm], seconds[base])]
    low, _, high = quantiles(ratios, n=4)
    return {"median": round(median(ratios), 3), "quartile_1": round(low, 3), "quartile_3": round(high, 3)}


def milliseconds(seconds: Mapping[str, list[float]]) -> dict[str, float]:
    """Median CPU milliseconds of every arm."""
    return {name: round(1000 * median(values), 3) for name, values in seconds.items()}


def peak_memory(call: Callable[[], Any]) -> float:
    """MiB that `call` takes at its highest above what is there before it, in a copy of this process."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            before = _status("VmRSS")
            Path("/proc/self/clear_refs").write_text("5")  # the highest mark starts anew
            call()
            os.write(writer, f"{(_status('VmHWM') - before) / 1024:.1f}".encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        return float(pipe.read())


def _status(name: str) -> int:
    """A line of /proc/self/status, in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def origin(device: str = "cpu") -> dict[str, Any]:
    """Date, hardware, versions and commit, to stand beside every number."""
    root = Path(__file__).parent
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False
    )
    changed = subprocess.run(
        ["git", "status", "--short", "--", "../src"], cwd=root, capture_output=True, text=True, check=False
    )
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": torch.cuda.get_device_name() if device == "cuda" else _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": (commit.stdout.strip() or "unknown") + ("+changes" if changed.stdout.strip() else ""),
    }


def write(name: str, result: Mapping[str, Any], device: str = "cpu") -> None:
    """Print `result` and store it with its origin as results/<name>.json."""
    RESULTS.mkdir(exist_ok=True)
    text = json.dumps({"benchmark": name, **origin(device), **result}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n", encoding="utf-8")
    print(text)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return f"{names[0]}, {len(names)} cores"
    return platform.processor() or platform.machine()
