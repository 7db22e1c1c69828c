"""On what a result was made: versions, commit and machine, for result files and pages."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any


def about() -> dict[str, Any]:
    """Versions, commit and hardware of this process, for result files and pages.

    Returns:
        versions: name -> version, None where it is not installed; commit: short hash or None; hardware:
            machine,
        processor and number of cores.
    """
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("plait", "torch", "transformers", "numpy", "lancedb")},
        "commit": _commit(),
        "hardware": {"machine": platform.machine(), "processor": _processor(), "cores": os.cpu_count()},
    }


def _version(name: str) -> str | None:
    """The installed version of a package, None without."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the source tree that this package runs from; None for an installed copy or without git."""
    # src/plait/report/about.py: three folders up lies the root of the source tree
    home = Path(__file__).resolve().parents[3]
    if not (home / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--short", "HEAD"], cwd=home, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None


def _processor() -> str:
    """The processor's own name where the system tells it (Linux), else what Python knows."""
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
