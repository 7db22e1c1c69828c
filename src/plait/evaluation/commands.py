"""`plait eval TASK MODEL --data DIR`: measure a model on a task and print each number beside its chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from plait.errors import UsageError

if TYPE_CHECKING:
    from plait.evaluation.emergent import Evaluation


def _emergent(model: Path, data: Path, out: Path | None) -> Evaluation:
    from plait.embedder import Embedder
    from plait.evaluation.emergent import evaluate_emergent

    embedder = Embedder(model)
    gallery = None if out is None else out / "gallery"
    return evaluate_emergent(embedder, data, gallery=gallery, audio="audio" in embedder.modalities)


TASKS: dict[str, Callable[[Path, Path, Path | None], Evaluation]] = {"emergent": _emergent}
"""Task name -> function of (model directory, data directory, output directory)."""


def evaluate(
    task: Annotated[str, typer.Argument(help=f"what to measure: {', '.join(TASKS)}")],
    model: Annotated[Path, typer.Argument(help="model directory")],
    data: Annotated[Path, typer.Option(help="data set directory (manifest.jsonl and its files)")],
    out: Annotated[
        Path | None, typer.Option(help="keep evaluation.json, vectors.npz and what was searched here")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Measure MODEL on TASK with the held-out part of a data set."""
    if task not in TASKS:
        raise UsageError(f"expected a task of {', '.join(TASKS)}, got {task!r}; plait eval --help lists them")
    result = TASKS[task](model, data, out)
    if out is not None:
        result.save(out)
    stored = result.to_json()["metrics"]
    print(json.dumps(stored) if as_json else as_table(stored))


def as_table(metrics: dict[str, Any]) -> str:
    """Lines of `name value [interval] chance queries gallery` for people; what was not measured is left out."""
    lines = [f"{'metric':<32}{'value':>7}  {'95 % interval':<15}{'chance':>7}{'queries':>9}{'gallery':>9}"]
    for name, found in metrics.items():
        if found is not None:
            low, high = found["interval"]
            lines.append(
                f"{name:<32}{found['value']:>7.3f}  {f'{low:.3f} to {high:.3f}':<15}{found['chance']:>7.3f}"
                f"{found['queries']:>9}{found['gallery']:>9}"
            )
    return "\n".join(lines)
