"""plait-mini: the library's own small data set, held-out part, as ordinary tasks."""

from __future__ import annotations

from plait.evaluation.tasks import Task

TASKS = (
    Task(
        "mini_pictures",
        "plait-mini: name a held-out drawing, zero-shot",
        ("plait_mini_pictures",),
        "test",
        ("image",),
        {"embed": "zero_shot"},
        "top_k",
        "top1",
        labels="{label}",
    ),
    Task(
        "mini_sounds",
        "plait-mini: name a held-out sound, zero-shot",
        ("plait_mini_sounds",),
        "test",
        ("audio",),
        {"embed": "zero_shot"},
        "top_k",
        "top1",
        labels="{label}",
    ),
    Task(
        "mini_questions",
        "plait-mini: what is drawn here, answered in words",
        ("plait_mini_pictures",),
        "test",
        ("image",),
        {"generate": "prompt"},
        "naming",
        "accuracy",
        prompt="short",
    ),
)
