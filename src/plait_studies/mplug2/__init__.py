"""`plait study mplug2`: one small network learns pictures with names, then many tasks by picking modules.

pictures with names -> answering, classification by other paths -> every arm beside baselines and controls -> report

Each is measured on drawings of a style, and on sentences, that it never saw.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from plait.cli import INTERRUPTED
from plait.errors import UsageError
from plait.report.about import about
from plait.training.stages import Recipe


def study(
    out: Path,
    seeds: int = 1,
    pretrain_steps: int = 450,
    answer_steps: int = 800,
    control_steps: int = 150,
    class_steps: int = 150,
    universal: bool = True,
    animated: bool = False,
    keep: Path | None = None,
    device: str | None = None,
    dtype: str = "float32",
) -> int:
    """mPLUG-2: modules picked per task, against majority, language alone, one frame, tf-idf and shuffled labels.

    universal: also pretrain with universal layers apart per modality at equal parameters, and compare the gap of the
    modalities. animated: also zero-shot on animated emoji, a package of 165 MB. keep: an empty directory for the first
    seed's model that answers, small enough to ship. device, dtype: of training; `cuda` and
    `bfloat16` with more steps are the longer setting.
    """
    from plait_studies.summary import write_json
    from plait_studies.training import carry_out

    if keep is not None and keep.exists() and any(keep.iterdir()):
        raise UsageError(f"expected an empty directory to keep the model in, got {keep}; pass another one")
    results = []
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        spent = Spent(home / "cpu_seconds.txt")
        runs = plan(home, pretrain_steps, answer_steps, control_steps, class_steps, universal)
        if not carry_out(runs, home, seed, device, dtype, lambda name, run, spent=spent: spent.add()):
            spent.add()
            return INTERRUPTED
        path = home / "results.json"
        if not path.exists():
            write_json(path, measured(home, universal, animated))
        results.append(json.loads(path.read_text(encoding="utf-8")) | {"cpu_seconds": round(spent.add())})
    from plait_studies.mplug2.report import as_text, report, summarise

    if keep is not None:
        from plait_studies.mplug2.training import without_snippets

        without_snippets(out / "seed-0" / "answering" / "model", keep)
    summary = summarise(results) | {"about": about()}
    write_json(out / "summary.json", summary)
    print(as_text(summary))
    print(f"report: {report(out, summary)}")
    return 0


class Spent:
    """CPU seconds that a seed took, over all runs of the command, kept in a file."""

    def __init__(self, path: Path) -> None:
        self.path, self.mark = path, time.process_time()

    def add(self) -> float:
        """Add what was spent since the last call; returns the sum."""
        now, before = time.process_time(), float(self.path.read_text()) if self.path.exists() else 0.0
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(f"{before + now - self.mark:.1f}\n")
        self.mark = now
        return float(self.path.read_text())


def plan(
    home: Path, pretrain_steps: int, answer_steps: int, control_steps: int, class_steps: int, universal: bool
) -> dict[str, Callable[[], Recipe]]:
    """Name of a run directory under `home` -> its recipe, in order; all but the last begin with the first."""
    from plait_studies.mplug2 import training as small

    init = home / "pretraining" / "model"
    of_clips = partial(small.answering, init, answer_steps, batch_size=8, shares={"clip": 1})
    moving = partial(small.seeing, init, "motion", lr=1.2e-3)  # at lower rates nothing is learnt for 300 steps
    runs: dict[str, Callable[[], Recipe]] = {
        "pretraining": partial(small.pretraining, pretrain_steps),
        "answering": partial(small.answering, init, answer_steps),
        "answering-one-frame": partial(of_clips, single_frame=True),
        "answering-shuffled": partial(small.answering, init, control_steps, shuffle_answers=True),
        "text": partial(small.reading, init, class_steps),
        "text-shuffled": partial(small.reading, init, control_steps, shuffle=True),
        "picture": partial(small.seeing, init, "kind", class_steps),
        "picture-shuffled": partial(small.seeing, init, "kind", control_steps, shuffle=True),
        "clip": partial(moving, 2 * class_steps),
        "clip-one-frame": partial(moving, 2 * class_steps, single_frame=True),
        "clip-shuffled": partial(moving, control_steps, shuffle=True),
    }
    if universal:
        runs["pretraining-apart"] = partial(small.pretraining, pretrain_steps, universal_sharing="apart")
    return runs


def measured(home: Path, universal: bool, animated: bool) -> dict[str, Any]:
    """All figures of one seed: {"rows", "zero_shot", "gap", "examples"}."""
    from plait_studies.mplug2 import measures as evaluate

    rows = [*evaluate.answers(home), *evaluate.reading(home), *evaluate.seeing(home, "picture", "kind")]
    rows += evaluate.seeing(home, "clip", "motion")
    arms = ("pretraining", *(("pretraining-apart",) if universal else ()))
    return {
        "rows": [asdict(row) for row in rows],
        "zero_shot": [asdict(row) for row in evaluate.zero_shot(home / "pretraining" / "model", animated)],
        "gap": {arm: evaluate.gap_of_arm(home / arm / "model") for arm in arms},
        "examples": evaluate.shown(home),
    }
