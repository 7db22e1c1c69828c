"""`plait study mplug2`: one small network learns pictures with names, then many tasks by picking modules; each measured
on drawings of a style, and on sentences, that it never saw, beside honest baselines and controls.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from plait.evaluation.summary import about
from plait.training.commands import INTERRUPTED, run_recipe
from plait.training.stages import Options, Recipe

SHUFFLED = "shuffled labels"
OPEN_COUNT, CLOSED_COUNT, CLIP_COUNT = 299, 400, 400


def study(
    out: Path,
    seeds: int = 1,
    pretrain_steps: int = 900,
    answer_steps: int = 1200,
    control_steps: int = 300,
    class_steps: int = 300,
    universal: bool = True,
    device: str | None = None,
    dtype: str = "float32",
) -> int:
    """mPLUG-2: modules picked per task, against majority, language alone, one frame, tf-idf and shuffled labels.

    universal: also pretrain with universal layers apart per modality at equal parameters, and compare the gap of the
    modalities. device, dtype: of training; `cuda` and `bfloat16` with more steps are the longer setting.
    """
    started = time.monotonic()
    results = []
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        recipes = plan(home, pretrain_steps, answer_steps, control_steps, class_steps, universal)
        for name, build in recipes.items():
            print(f"[seed {seed}] {name}", flush=True)
            result = run_recipe(build, home / name, seed=seed, device=device, dtype=dtype, options=Options())
            if result.interrupted is not None:
                print(f"stopped and saved; run the same command again to continue {out}")
                return INTERRUPTED
        path = home / "results.json"
        if not path.exists():
            _write(path, measured(home, universal))
        results.append(json.loads(path.read_text(encoding="utf-8")))
    summary = summarise(results) | {"seconds": round(time.monotonic() - started), "about": about()}
    _write(out / "summary.json", summary)
    print(as_text(summary))
    from plait.recipes.mplug2_report import report

    print(f"report: {report(out, summary)}")
    return 0


def plan(
    home: Path, pretrain_steps: int, answer_steps: int, control_steps: int, class_steps: int, universal: bool
) -> dict[str, Callable[[], Recipe]]:
    """Name of a run directory under `home` -> its recipe, in order; every later one begins with the first."""
    from plait.recipes import mplug2_small as small

    init = home / "pretraining" / "model"
    clips = partial(small.answering, init, tasks=small.CLIP_TASKS)
    runs: dict[str, Callable[[], Recipe]] = {"pretraining": partial(small.pretraining, pretrain_steps)}
    if universal:
        runs["pretraining-apart"] = partial(small.pretraining, pretrain_steps, universal_sharing="apart")
    return runs | {
        "answering": partial(small.answering, init, answer_steps),
        "answering-one-frame": partial(clips, max(1, answer_steps // 3), single_frame=True),
        "answering-shuffled": partial(small.answering, init, control_steps, shuffle_answers=True),
        "text": partial(small.reading, init, class_steps),
        "text-shuffled": partial(small.reading, init, control_steps, shuffle=True),
        "picture": partial(small.seeing, init, "kind", class_steps),
        "picture-shuffled": partial(small.seeing, init, "kind", control_steps, shuffle=True),
        "clip": partial(small.seeing, init, "motion", class_steps),
        "clip-one-frame": partial(small.seeing, init, "motion", class_steps, single_frame=True),
        "clip-shuffled": partial(small.seeing, init, "motion", control_steps, shuffle=True),
    }


def measured(home: Path, universal: bool) -> dict[str, Any]:
    """All figures of one seed: {"rows", "zero_shot", "gap", "examples"}."""
    from plait.recipes import mplug2_evaluate as evaluate

    rows = [*evaluate.answers(home), *evaluate.reading(home), *evaluate.seeing(home, "picture", "kind")]
    rows += evaluate.seeing(home, "clip", "motion")
    arms = ("pretraining", *(("pretraining-apart",) if universal else ()))
    return {
        "rows": [asdict(row) for row in rows],
        "zero_shot": [asdict(row) for row in evaluate.zero_shot(home / "pretraining" / "model")],
        "gap": {arm: evaluate.gap(home / arm / "model") for arm in arms},
        "examples": evaluate.shown(home),
    }


def summarise(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means over seeds with 95 % bootstrap intervals over examples, each example the mean of its seeds."""
    import numpy as np

    def combined(name: str) -> list[dict[str, Any]]:
        lines = []
        for rows in zip(*(result[name] for result in results), strict=True):
            hits = np.mean([row["hits"] for row in rows], axis=0)
            drawn = np.random.default_rng(0).integers(0, len(hits), (1000, len(hits)))
            low, high = np.percentile(hits[drawn].mean(1), [2.5, 97.5])
            line = {"task": rows[0]["task"], "arm": rows[0]["arm"], "chance": rows[0]["chance"], "n": len(hits)}
            per_seed = [float(np.mean(row["hits"])) for row in rows]
            lines.append(line | {"value": float(hits.mean()), "interval": [low, high], "per_seed": per_seed})
        return lines

    arms = results[0]["gap"]
    gaps = {arm: {key: float(np.mean([r["gap"][arm][key] for r in results])) for key in arms[arm]} for arm in arms}
    return {
        "seeds": len(results), "rows": combined("rows"), "zero_shot": combined("zero_shot"), "gap": gaps,
        "examples": results[0]["examples"],
    }  # fmt: skip


def as_text(summary: dict[str, Any]) -> str:
    """The table, one task per line: every arm's share of right answers in percent."""
    lines = []
    for title in ("rows", "zero_shot"):
        rows = summary[title]
        lines += ["", "after training" if title == "rows" else "zero-shot, after pretraining on pictures alone"]
        for task in dict.fromkeys(row["task"] for row in rows):
            own = [row for row in rows if row["task"] == task]
            parts = [f"{row['arm']} {100 * row['value']:.1f}" for row in own]
            low, high = (100 * bound for bound in own[0]["interval"])
            chance = "" if own[0]["chance"] is None else f", chance {100 * own[0]['chance']:.1f}"
            lines.append(f"  {task:<26}{'; '.join(parts)} (interval {low:.1f}-{high:.1f}, n {own[0]['n']}{chance})")
    for arm, figures in summary["gap"].items():
        name = "universal layers apart" if arm.endswith("apart") else "universal layers shared"
        told = ", ".join(f"{key.replace('_', ' ')} {value:.3f}" for key, value in figures.items())
        lines.append(f"  {name}: {told}")
    return "\n".join(lines)


def _write(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial_file = path.with_suffix(".partial")
    partial_file.write_text(json.dumps(value, indent=1) + "\n", encoding="utf-8")
    partial_file.replace(path)
