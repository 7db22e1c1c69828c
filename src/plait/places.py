"""Whose a directory is: Plait removes and fills only what it made itself.

claim(new or empty directory) -> marker, written before anything else -> may be filled, cleared and continued later
anything else that is not empty -> UsageError, nothing touched
"""

from __future__ import annotations

import shutil
from pathlib import Path

from plait.errors import UsageError

MARK = ".plait"
"""A file of this name says that Plait made the directory. It comes first, so a kill never leaves our work unmarked."""

_WORDS = "Plait made this directory, and may replace what is in it. Without this file Plait leaves it alone.\n"


def is_ours(directory: Path) -> bool:
    """Whether Plait made the directory."""
    return (directory / MARK).is_file()


def check_free(directory: Path) -> None:
    """Raise UsageError unless the directory is absent, empty or ours."""
    if not directory.exists() or is_ours(directory):
        return
    if not directory.is_dir() or any(directory.iterdir()):
        got = "that Plait did not make" if directory.is_dir() else "that is no directory"
        raise UsageError(
            f"expected a new or empty directory, got {directory} {got}; choose another, nothing was changed"
        )


def claim(directory: Path) -> None:
    """Make the directory, or take an empty one, and mark it. UsageError as `check_free`."""
    check_free(directory)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / MARK).write_text(_WORDS, encoding="utf-8")


def remove(directory: Path) -> None:
    """Remove a directory with everything in it. UsageError, and nothing removed, where it is not ours."""
    check_free(directory)
    if directory.exists():
        shutil.rmtree(directory)


def check_apart(source: Path, out: Path) -> None:
    """Raise UsageError where one of two directories is, or holds, the other."""
    read, written = source.resolve(), out.resolve()
    if read == written or read in written.parents or written in read.parents:
        raise UsageError(
            f"expected an output apart from what is read, got {out} for {source}; choose an --out outside of it"
        )
