"""Every task by name: `TASKS`. The published numbers are what others reported, never a bar that code must pass."""

from __future__ import annotations

from plait.evaluation.registry.classes import TASKS as CLASSES
from plait.evaluation.registry.language import TASKS as LANGUAGE
from plait.evaluation.registry.llm import TASKS as LLM
from plait.evaluation.registry.mini import TASKS as MINI
from plait.evaluation.registry.retrieval import TASKS as RETRIEVAL
from plait.evaluation.registry.vision_language import TASKS as VISION_LANGUAGE
from plait.evaluation.tasks import Task

TASKS: dict[str, Task] = {task.name: task for task in (*VISION_LANGUAGE, *RETRIEVAL, *LLM, *LANGUAGE, *CLASSES, *MINI)}
"""Tasks in the order of `plait eval --list`."""


def task_named(name: str) -> Task:
    """A task by its name. Raises UsageError with the nearest names where there is none."""
    from difflib import get_close_matches

    from plait.errors import UsageError

    if name not in TASKS:
        close = ", ".join(get_close_matches(name, TASKS, n=3, cutoff=0.4)) or "none close"
        raise UsageError(f"expected a task (plait eval --list shows them), got {name!r}; similar: {close}")
    return TASKS[name]
