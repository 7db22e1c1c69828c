"""`plait study owl`: a small language model learns to see in two stages, and is asked with and without its eyes.

language model -> warm-up -> stage 1 -> stage 2 -> held-out drawings, controls, text before and after -> one table
"""

from __future__ import annotations

import json
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from plait.evaluation.summary import about
from plait.inspect.table import format_table
from plait.training.commands import INTERRUPTED, run_recipe
from plait.training.stages import Options

CONDITIONS = ("image", "removed", "shuffled")
NUM_SENTENCES, NUM_NEWS, NEWS_WORDS, BATCH = 200, 60, 50, 25


def study(
    out: Path,
    seeds: int = 1,
    llm: str = "",
    warm_steps: int = 800,
    stage1_steps: int = 250,
    stage2_steps: int = 350,
    batch_size: int = 16,
    count: int = 100,
    device: str | None = None,
    dtype: str = "bfloat16",
) -> int:
    """mPLUG-Owl: two stages on a language model of 135 M; held-out drawings beside removed and shuffled pictures.

    llm: a directory of a causal language model, the packaged SmolLM2 without it; count: held-out questions per task.
    The tower is fresh, warmed up on names in place of CLIP; tests use drawings of a style that training never shows.
    """
    from plait.data.small_llm import smollm2
    from plait.recipes import mplug_owl_small as small

    source, started = Path(llm) if llm else smollm2(), time.monotonic()
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        warm, first = home / "warm-up", home / "stage1"
        plan: dict[str, Any] = {
            "warm-up": partial(small.warm_up, source, warm_steps, seed=seed),
            "stage1": partial(small.seeing, warm / "model", stage1_steps, batch_size=batch_size),
            "stage2": partial(small.tuning, first / "model", stage2_steps, batch_size=batch_size),
        }
        for name, build in plan.items():
            print(f"[seed {seed}] {name}", flush=True)
            options = Options(checkpoint_seconds=600)
            run = run_recipe(build, home / name, seed=seed, device=device, dtype=dtype, options=options)
            if run.interrupted is not None:
                print(f"stopped and saved; run the same command again to continue {out}")
                return INTERRUPTED
            if name != "warm-up" and not (home / name / "results.json").exists():
                _measure(home / name, name, count, run.seconds, device, dtype)
    summary = summarise(out, count) | {"seconds": round(time.monotonic() - started), "about": about()}
    (out / "summary.json").write_text(json.dumps(summary) + "\n", encoding="utf-8")
    print(as_text(summary))
    return 0


def _measure(place: Path, stage: str, count: int, seconds: float, device: str | None, dtype: str) -> None:
    """Write results.json of a stage: hits on held-out questions under each condition, text."""
    import torch

    from plait.data.build.snippets import reuters_r8
    from plait.recipes import mplug_owl_small as small
    from plait.recipes.mplug_owl import loaded
    from plait.recipes.mplug_owl2_measures import nats
    from plait.training.loop import DTYPES

    model, processor = loaded(str(place / "model"))
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
    held_out = small.snippets("test")
    sentences = held_out[:: max(1, len(held_out) // NUM_SENTENCES)][:NUM_SENTENCES]
    stories = [s.text or "" for s in reuters_r8() if s.split == "test"][:NUM_NEWS]
    drawn = small.drawings()
    precision = DTYPES[dtype]
    with torch.autocast(model.device.type, precision, enabled=precision != torch.float32):
        asked = {task: drawn.examples(task, "test", count) for task in small.TASKS}
        vqa = {
            task: {condition: answered(model, processor, examples, condition) for condition in CONDITIONS}
            for task, examples in asked.items()
        }
        texts = {"snippets": [s.text or "" for s in sentences], "news": [cut(story) for story in stories]}
        text: dict[str, Any] = {kind: nats(model, processor, some) for kind, some in texts.items()}  # ty: ignore[invalid-argument-type]
        text["feeling"] = felt(model, processor, sentences)
    results = {"stage": stage, "train_seconds": round(seconds), "vqa": vqa, "text": text}
    (place / "results.json").write_text(json.dumps(results) + "\n", encoding="utf-8")


def cut(story: str) -> str:
    """The beginning of a news story."""
    return " ".join(story.split()[:NEWS_WORDS])


def answered(model: Any, processor: Any, examples: Any, condition: str) -> list[int]:
    """1 where greedy decoding writes exactly the answer and ends, for each example.

    One forward pass tells: every position of the answer prefers the right piece, given the right ones before it.
    condition: `image`, `removed` (the question alone) or `shuffled` (the picture of another example).
    """
    import torch

    from plait.recipes.mplug_owl_small import batch_of

    if condition == "shuffled":
        frames = [example.frames for example in examples]
        examples = [replace(e, frames=other) for e, other in zip(examples, [*frames[1:], frames[0]], strict=True)]
    hits: list[int] = []
    with torch.no_grad():
        for start in range(0, len(examples), BATCH):
            batch = batch_of(processor, examples[start : start + BATCH], with_image=condition != "removed")
            labels = batch.pop("labels")[:, 1:].to(model.device)
            batch = {name: value.to(model.device) for name, value in batch.items()}
            right = (model(**batch, use_cache=False).logits[:, :-1].argmax(-1) == labels) | (labels == -100)
            hits += right.all(1).int().tolist()
    return hits


def felt(model: Any, processor: Any, samples: Any) -> list[int]:
    """1 where the right feeling is the likelier answer about a snippet."""
    import torch
    from torch.nn import functional as F

    from plait.recipes.mplug_owl_small import batch_of

    hits: list[int] = []
    with torch.no_grad():
        for start in range(0, len(samples), BATCH):
            chosen, scores = samples[start : start + BATCH], []
            for feeling in ("negative", "positive"):
                batch = batch_of(processor, (), [replace(sample, label=feeling) for sample in chosen])
                labels = batch.pop("labels")[:, 1:].to(model.device)
                logits = model(**{k: v.to(model.device) for k, v in batch.items()}, use_cache=False).logits[:, :-1]
                loss = F.cross_entropy(logits.float().transpose(1, 2), labels, reduction="none", ignore_index=-100)
                scores.append(loss.sum(1))
            best = torch.stack(scores).argmin(0).tolist()
            hits += [int(("negative", "positive")[i] == s.label) for i, s in zip(best, chosen, strict=True)]
    return hits


def summarise(out: Path, count: int) -> dict[str, Any]:
    """Means over seeds, with bootstrap intervals over questions, and what guessing the commonest answer gives."""
    import numpy as np

    from plait.recipes.mplug_owl2_measures import majority, perplexity
    from plait.recipes.mplug_owl2_table import resampled
    from plait.recipes.mplug_owl_small import TASKS, drawings

    rows = []
    for stage in ("stage1", "stage2"):
        files = sorted(out.glob(f"seed-*/{stage}/results.json"))
        found = [json.loads(file.read_text(encoding="utf-8")) for file in files]
        vqa = {}
        for condition in CONDITIONS:
            hits = {task: np.mean([one["vqa"][task][condition] for one in found], axis=0) for task in TASKS}
            means = {task: float(values.mean()) for task, values in hits.items()}
            vqa[condition] = {"tasks": means, **resampled(np.concatenate(list(hits.values())))}
        texts = {k: float(np.mean([perplexity(one["text"][k]) for one in found])) for k in ("snippets", "news")}
        feeling = resampled(np.mean([one["text"]["feeling"] for one in found], axis=0))
        seconds = float(np.mean([one["train_seconds"] for one in found]))
        rows.append({"stage": stage, "seeds": len(found), "vqa": vqa, "perplexity": texts, "feeling": feeling,
                     "train_seconds": seconds})  # fmt: skip
    return {"rows": rows, "majority": majority(drawings(), count)}


def as_text(summary: dict[str, Any]) -> str:
    """Accuracy in percent per stage, condition and task, then text. Perplexity after stage 1 is that of the source."""
    tasks = list(summary["majority"])
    lines = []
    for row in summary["rows"]:
        for condition in CONDITIONS:
            found = row["vqa"][condition]
            low, high = found["interval"]
            shares = [f"{100 * found['tasks'][task]:.1f}" for task in tasks]
            overall = f"{100 * found['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"
            text = [f"{row['perplexity'][kind]:.2f}" for kind in ("snippets", "news")]
            feeling = f"{100 * row['feeling']['value']:.1f}"
            lines.append([row["stage"], condition, *shares, overall, *(text if condition == "image" else ["", ""]),
                          feeling if condition == "image" else ""])  # fmt: skip
    guess = [f"{100 * summary['majority'][task]:.1f}" for task in tasks]
    lines.append(["", "majority", *guess, "", "", "", ""])
    head = ["stage", "picture", *tasks, "all (95 %)", "ppl snippets", "ppl news", "feeling"]
    return format_table(head, lines)
