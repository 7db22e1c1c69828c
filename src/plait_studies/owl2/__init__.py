"""`plait study owl2`: the modality-adaptive module against a shared decoder, on a small language model.

language model -> warm-up -> arms tuned on the same batches -> held-out questions, text -> table, attention
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from plait.cli.train import INTERRUPTED
from plait.places import atomic_write
from plait.report.about import about
from plait.training.run import run_recipe
from plait.training.stages import Options

START = "before tuning"
NUM_SENTENCES, NUM_NEWS, NEWS_WORDS = 200, 60, 50


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

    llm: a directory of a Llama, the packaged SmolLM2 without it; only: arms to train, "all" for those of
    `mplug_owl2_arms.ALL`; a name tells what an arm is ("adaptive", "shared 96 px 16 queries", "adaptive all ways tower
    trains", "shared text data"); arms that were trained before stay in the table; count: held-out questions per task;
    full: everything trains in every arm, for a GPU.
    """
    from plait_studies.owl2 import training as small
    from plait_studies.owl2.report import REFERENCE, as_text, attention, report, summarise
    from plait_studies.owl2.training import ALL, arm_of

    started, asked = time.monotonic(), ALL if tuple(only) == ("all",) else only
    chosen = {name: arm_of(name) for name in (" ".join(words.split()) for words in asked)}
    source = Path(llm) if llm else _language_model()
    settings: dict[str, Any] = {"batch_size": batch_size, "lr": lr, "full": full}
    for seed in range(seeds):
        home = out / f"seed-{seed}"
        warm = home / "warm-up" / "model"
        plan: dict[str, Any] = {"warm-up": partial(small.warm_up, source, warm_steps, seed=seed)}
        plan |= {name: partial(small.tuning, source, warm, arm, steps, **settings) for name, arm in chosen.items()}
        if not _train(home, plan, seed, count, device, dtype):
            print(f"stopped and saved; run the same command again to continue {out}")
            return INTERRUPTED
        if not (home / "start" / "results.json").exists():
            _measure(home / "start", START, small.begin(source, warm, arm_of(REFERENCE)), count, 0.0, device, dtype)
    summary = summarise(out, (START, *ALL), small.drawings(), count)
    trained = {row["arm"]: out / "seed-0" / folder(row["arm"]) for row in summary["rows"] if row["arm"] != START}
    summary |= {"attention": attention(out, trained)}
    summary |= {"seconds": round(time.monotonic() - started), "about": about()}
    write_json(out / "summary.json", summary)
    print(as_text(summary))
    print(f"report: {report(out, summary, trained)}")
    return 0


def _train(home: Path, plan: Mapping[str, Any], seed: int, count: int, device: str | None, dtype: str) -> bool:
    """Train what is not trained and measure arms that are not measured; False when it was interrupted."""
    for name, build in plan.items():
        print(f"[seed {seed}] {name}", flush=True)
        place = home / folder(name)
        run = run_recipe(build, place, seed=seed, device=device, dtype=dtype, options=Options(checkpoint_seconds=600))
        if run.interrupted is not None:
            return False
        if name != "warm-up" and not (place / "results.json").exists():
            _measure(place, name, load(place / "model"), count, run.seconds, device, dtype)
    return True


def folder(name: str) -> str:
    """An arm's directory."""
    return name.replace(" ", "-")


def load(directory: Path) -> tuple[Any, Any]:
    """Model and processor of an arm."""
    from plait.models.auto import load as load_any

    model, processor = load_any(directory)
    model.set_attn_implementation("sdpa")
    return model, processor


def _language_model() -> Path:
    from plait.data.packages import smollm2

    return smollm2()


def _measure(
    place: Path, arm: str, loaded: tuple[Any, Any], count: int, seconds: float, device: str | None, dtype: str
) -> None:
    """Write results.json of one arm: what held-out questions and texts give, and how long training took."""
    import torch

    from plait.weights.dtypes import resolve_dtype
    from plait_studies.owl2 import training as small
    from plait_studies.owl2.measures import measured

    model, processor = loaded
    held_out = small.snippets("test")
    sentences = held_out[:: max(1, len(held_out) // NUM_SENTENCES)][:NUM_SENTENCES]  # the file is sorted by feeling
    drawings = small.drawings(model.config.image_size)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found = measured(model, processor, drawings, sentences, news(), count, resolve_dtype(dtype))
    write_json(place / "results.json", {"arm": arm, "train_seconds": round(seconds), **found})


def news() -> list[str]:
    """Beginnings of news stories, text of a kind that no arm trains on."""
    from plait_studies.build.stamps import reuters_r8

    stories = (sample.text or "" for sample in reuters_r8() if sample.split == "test")
    return [" ".join(story.split()[:NEWS_WORDS]) for story in islice(stories, NUM_NEWS)]


def write_json(path: Path, value: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    atomic_write(path, json.dumps(value) + "\n")
