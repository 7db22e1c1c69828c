"""`plait study owl`: a small language model learns to see in two stages, and is asked with and without its eyes.

language model -> warm-up -> stage 1 -> stage 2 -> held-out pictures and clips, controls, text before and after -> table
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

from plait.cli.train import INTERRUPTED
from plait.report.about import about
from plait.training.run import run_recipe
from plait.training.stages import Options

STAGES = ("stage1", "stage2")
NUM_SENTENCES, NUM_NEWS, NEWS_WORDS = 200, 60, 50


def study(
    out: Path,
    seeds: int = 1,
    llm: str = "",
    more: bool = True,
    tower_steps: int = 1200,
    warm_steps: int = 300,
    stage1_steps: int = 60,
    stage2_steps: int = 120,
    batch_size: int = 16,
    count: int = 60,
    device: str | None = None,
    dtype: str = "bfloat16",
) -> int:
    """mPLUG-Owl: two stages on a language model of 135 M; held-out pictures and clips beside controls.

    llm: a directory of a causal language model, the packaged SmolLM2 without it; more: photographs (Tux Paint) and
    animated emoji beside the shipped drawings, packages of 326 MB together; count: held-out questions per task. The
    tower is fresh, warmed up on names in place of CLIP, alone (tower_steps) and with the abstractor (warm_steps); tests
    show what training never does.
    """
    from plait.data.packages import smollm2
    from plait_studies.owl import training as small
    from plait_studies.owl.measures import as_text, summarise
    from plait_studies.owl.training import prepare, sights

    source = Path(llm) if llm else smollm2()
    seen = sights(prepare(out / "data") if more else None)
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        warm, first = home / "warm-up", home / "stage1"
        plan: dict[str, Any] = {
            "warm-up": partial(small.warm_up, source, seen, (tower_steps, warm_steps), seed=seed),
            "stage1": partial(small.seeing, warm / "model", seen, stage1_steps, batch_size=batch_size),
            "stage2": partial(small.tuning, first / "model", seen, stage2_steps, batch_size=batch_size),
        }
        for name, build in plan.items():
            print(f"[seed {seed}] {name}", flush=True)
            options = Options(checkpoint_seconds=600)
            run = run_recipe(build, home / name, seed=seed, device=device, dtype=dtype, options=options)
            if run.interrupted is not None:
                print(f"stopped and saved; run the same command again to continue {out}")
                return INTERRUPTED
        for place in (home / name for name in STAGES if not (home / name / "results.json").exists()):
            print(f"[seed {seed}] asking {place.name}", flush=True)
            measure(place, seen, count, device, dtype)
    summary = summarise(out, seen, count) | {"about": about()}
    (out / "summary.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(as_text(summary))
    return 0


def measure(place: Path, seen: Any, count: int, device: str | None, dtype: str) -> None:
    """Write results.json of a stage: hits on held-out questions under each condition, text."""
    import torch

    from plait.recipes.mplug_owl import loaded
    from plait.weights.dtypes import resolve_dtype
    from plait_studies.build.stamps import reuters_r8
    from plait_studies.owl import training as small
    from plait_studies.owl.measures import asked, felt, nats

    model, processor = loaded(str(place / "model"))
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    held_out = small.snippets("test")
    sentences = held_out[:: max(1, len(held_out) // NUM_SENTENCES)][:NUM_SENTENCES]
    stories = [s.text or "" for s in reuters_r8() if s.split == "test"][:NUM_NEWS]
    precision = resolve_dtype(dtype)
    with torch.no_grad(), torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
        vqa = {task: asked(model, processor, seen.examples(task, "test", count)) for task in seen.tasks}
        texts = {"snippets": [s.text or "" for s in sentences], "news": [cut(story) for story in stories]}
        text: dict[str, Any] = {kind: nats(model, processor, some) for kind, some in texts.items()}
        text["feeling"] = felt(model, processor, sentences)
    results = {"stage": place.name, "vqa": vqa, "text": text}
    (place / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")


def cut(story: str) -> str:
    """The beginning of a news story."""
    return " ".join(story.split()[:NEWS_WORDS])
