"""Every benchmark: `TASKS`, and `read`, which finds the files of one.

A file of this folder is a group of benchmarks: their rules, the readers of their layouts, and a tuple `TASKS` of rows.
A new file is found by being here; nothing else lists it. Published numbers are what others reported, never a bar that
code must pass.
"""

from __future__ import annotations

from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

from plait.errors import UsageError
from plait.evaluation.base import LAYOUTS, Item, Source, Task
from plait.evaluation.tasks import own
from plait.modalities import names as modalities
from plait.types import MODALITIES

GROUPS = tuple(import_module(f"{__name__}.{module.name}") for module in iter_modules(__path__))
"""The files of this folder, in the order of their names; importing one registers its layouts."""
TASKS: dict[str, Task] = {task.name: task for group in GROUPS for task in group.TASKS}
"""Tasks in the order of `plait eval --list`."""


def all_tasks() -> list[Task]:
    """`TASKS`, and those of modalities that a user added."""
    added = [f"{modality}_{kind}" for modality in modalities() if modality not in MODALITIES for kind in own.KINDS]
    return [*TASKS.values(), *map(task_named, added)]


def task_named(name: str) -> Task:
    """A task by its name.

    Args:
        name: as `plait eval --list` shows it.

    Raises:
        UsageError: with the nearest names where there is none.

    Example:
        >>> task_named("vqav2").primary
        'accuracy'
    """
    if (one := own.own_task(name)) is not None:
        return one
    if name not in TASKS:
        close = ", ".join(get_close_matches(name, TASKS, n=3, cutoff=0.4)) or "none close"
        raise UsageError(f"expected a task (plait eval --list shows them), got {name!r}; similar: {close}")
    return TASKS[name]


def read(root: str | Path, names: tuple[str, ...], split: str) -> tuple[list[Item], Source, str]:
    """Items of the first layout whose files lie in a directory.

    Args:
        root: the directory of the data set.
        names: of layouts, tried in order.
        split: filled into the names of files.

    Returns:
        The items, where they were found, and the layout's name.

    Raises:
        ValueError: that says which files were looked for, or what is wrong with one.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"expected a data set directory, got {root}; pass the one that holds the annotation files")
    wanted = []
    for name in names:
        source = LAYOUTS[name].find(root, split)
        if isinstance(source, Source):
            return LAYOUTS[name].read(source), source, name
        wanted.append(f"{source} ({name})")
    raise ValueError(f"expected in {root}: {'; or '.join(wanted)}; found none for split {split!r}")
