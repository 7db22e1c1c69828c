"""`plait study owl2`: the modality-adaptive module against a shared decoder, on a small language model.

language model -> warm-up -> arms tuned on the same batches -> held-out questions, text -> table, attention

mPLUG-Owl2, sections 3.2 and 4.4 (arXiv 2311.04257).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from plait.cli import INTERRUPTED
from plait.report.about import about

START = "before tuning"


def study(
    out: Path,
    seeds: int = 1,
    llm: str = "",
    only: Sequence[str] = ("adaptive", "shared", "abstractor only"),
    warm_steps: int = 800,
    steps: int = 500,
    batch_size: int = 16,
    lr: float = 5e-4,
    count: int = 100,
    full: bool = False,
    device: str | None = None,
    dtype: str = "bfloat16",
) -> int:
    """mPLUG-Owl2: the adaptive module against a shared decoder, equal data and steps, on a model of 135 M.

    llm: a directory of a Llama, the packaged SmolLM2 without it; only: arms to train, "all" for every switch of
    `plait_studies.owl2.training.ALL`; a name tells what an arm is ("adaptive", "shared 96 px 16 queries", "adaptive all
    ways tower trains", "shared text data"); arms that were trained before stay in the table; count: held-out questions
    per task; full: everything trains in every arm, for a GPU.
    """
    from plait.data.packages import smollm2
    from plait_studies.measures import Subject, as_text, in_points
    from plait_studies.owl2 import training as small
    from plait_studies.owl2.report import attention, report, summarise
    from plait_studies.summary import write_json
    from plait_studies.training import carry_out, folder

    started, asked = time.monotonic(), small.ALL if tuple(only) == ("all",) else only
    chosen = {name: small.arm_of(name) for name in (" ".join(words.split()) for words in asked)}
    source = Path(llm) if llm else smollm2()
    settings: dict[str, Any] = {"batch_size": batch_size, "lr": lr, "full": full}
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        warm = home / "warm-up" / "model"

        def measure(place: Path, arm: str, model: Any, processor: Any, seconds: float) -> None:
            examples = small.held_out(count, model.config.image_size)
            found = Subject(model, processor, small.batch_of).examined(examples, device, dtype, ranked=True)
            write_json(place / "results.json", {"arm": arm, "train_seconds": round(seconds), **found})

        def finished(name: str, run: Any, home: Path = home) -> None:
            place = home / folder(name)
            if name != "warm-up" and not (place / "results.json").exists():
                measure(place, name, *small.load(place / "model"), run.seconds)

        plan: dict[str, Any] = {"warm-up": partial(small.warm_up, source, warm_steps, seed=seed)}
        plan |= {name: partial(small.tuning, source, warm, arm, steps, **settings) for name, arm in chosen.items()}
        if not carry_out(plan, home, seed, device, dtype, finished):
            return INTERRUPTED
        if not (home / "start" / "results.json").exists():
            measure(home / "start", START, *small.begin(source, warm, small.arm_of("adaptive")), 0.0)
    summary = summarise(out, (START, *small.ALL), small.held_out(count))
    trained = {row["arm"]: out / "seed-0" / folder(row["arm"]) for row in summary["rows"] if row["arm"] != START}
    summary |= {"attention": attention(out, trained)}
    summary |= {"seconds": round(time.monotonic() - started), "about": about()}
    write_json(out / "summary.json", summary)
    print(as_text(summary, "arm"))
    for row in summary["rows"]:
        if "minus_adaptive" in row:
            print(f"{row['arm']} minus adaptive: {in_points(row['minus_adaptive'])}")
    print(f"report: {report(out, summary, trained)}")
    return 0
