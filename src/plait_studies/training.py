"""What the studies share while they train: drawings and sentences, questions drawn anew, the warm-up, how runs go on.

shipped drawings | movie snippets -> Questions -> collate(examples, sentences, rng) -> stage -> carry_out
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.data.manifest import read_manifest
from plait.data.mini import cached_mini
from plait.training.loop import TrainResult
from plait.training.run import run_recipe
from plait.training.stages import Options, Recipe, Stage
from plait.types import Sample
from plait_studies.build.stamps import movie_snippets, reuters_r8
from plait_studies.drawings import Drawings, Example

FEELINGS = ("negative", "positive")
# So many held-out texts are read by every model of a study; of a news story the beginning, in words.
NUM_SENTENCES, NUM_NEWS, NEWS_WORDS = 200, 60, 50
SHARPNESS = 20.0
"""What cosines are multiplied by before softmax: the inverse of a temperature of 0.05."""


class Seen(Protocol):
    """What questions are about: `Drawings`, or drawings with photographs and animations beside them."""

    def example(self, task: str, split: str, rng: np.random.Generator) -> Example:
        """A fresh example of a task."""
        ...

    @property
    def numbers(self) -> Callable[[str], list[int]]:
        """Split -> numbers of its drawings."""
        ...


@cache
def drawings(size: int, num_frames: int) -> Drawings:
    """The shipped drawings. size: side in pixels; num_frames: of a clip."""
    return Drawings([sample for sample in read_manifest(cached_mini()) if sample.image is not None], size, num_frames)


@cache
def snippets(split: str) -> tuple[Sample, ...]:
    """Movie snippets of a split."""
    return tuple(sample for sample in movie_snippets() if sample.split == split)


def sentences() -> Sequence[Sample]:
    """Some held-out snippets, evenly chosen because their file is sorted by feeling."""
    held_out = snippets("test")
    return held_out[:: max(1, len(held_out) // NUM_SENTENCES)][:NUM_SENTENCES]


def news() -> list[str]:
    """Beginnings of news stories, text of a kind that nothing trains on."""
    stories = (sample.text or "" for sample in reuters_r8() if sample.split == "test")
    return [" ".join(story.split()[:NEWS_WORDS]) for story in islice(stories, NUM_NEWS)]


def review(sample: Sample) -> tuple[str, str]:
    """The question what a snippet feels, and its answer."""
    return f'"{sample.text}" Is this review positive or negative?', sample.label or ""


class Questions:
    """Questions drawn anew at every step: about things to see, or about sentences, never both.

    The two are not mixed because a sentence is twice as long, and every row costs what the longest does.

    Args:
        seen: what there is to see.
        tasks: of `seen`, each as likely; one named twice is twice as likely.
        collate: examples, sentences, generator -> batch; one of the two lists is empty.
        sentences: to ask about.
        turn: seed, step -> whether the step asks about sentences. It depends on nothing else, so a run that continues
            goes on with the same steps.
    """

    def __init__(
        self,
        seen: Seen,
        tasks: Sequence[str],
        collate: Callable[[list[Example], list[Sample], np.random.Generator], Any],
        sentences: Sequence[Sample] = (),
        turn: Callable[[int, int], bool] = lambda seed, step: False,
    ) -> None:
        self.seen, self.tasks, self.collate = seen, tuple(tasks), collate
        self.sentences, self.turn = sentences, turn

    def __len__(self) -> int:
        return len(self.seen.numbers("train")) + len(self.sentences)

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        """1 for sentences, 0 for things to see; which ones comes from the step's generator."""
        return [int(self.turn(seed, step))] * batch_size

    def load(self, rows: Sequence[int], rng: np.random.Generator) -> Any:
        """One batch of one kind."""
        if rows[0]:
            return self.collate([], [self.sentences[int(rng.integers(len(self.sentences)))] for _ in rows], rng)
        drawn = [self.seen.example(self.tasks[rng.integers(len(self.tasks))], "train", rng) for _ in rows]
        return self.collate(drawn, [], rng)

    def names(self, rows: Sequence[int]) -> list[str]:
        """What was asked about, for messages."""
        return [("drawings", "sentences")[row] for row in rows]


def in_turn(cycle: Sequence[int]) -> Callable[[int, int], bool]:
    """Seed, step -> an entry of `cycle`: every turn through it has its own order."""

    def turn(seed: int, step: int) -> bool:
        number, place = divmod(step, len(cycle))
        return bool(cycle[np.random.default_rng((seed, number)).permutation(len(cycle))[place]])

    return turn


def as_pixels(frames: np.ndarray) -> Tensor:
    """frames: (n, side, side, 3) uint8 -> (n, 3, side, side) from 0 to 1."""
    return torch.tensor(frames).permute(0, 3, 1, 2).float().div(255)


def normalised(pixels: Tensor, image_processor: Any) -> Tensor:
    """Pixels (n, 3, side, side) from 0 to 1 as a model of this image processor reads them."""
    mean, std = (torch.tensor(v)[:, None, None] for v in (image_processor.image_mean, image_processor.image_std))
    return (pixels - mean) / std


def towards_words(
    words: Sequence[Sequence[int]],
    read: Callable[[Any, Tensor], Tensor],
    model: nn.Module,
    batch: dict[str, Tensor],
    step: int,
    generator: torch.Generator,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Which of all words is it: cosine between mean positions and mean embeddings, and a tenth of their distance.

    Stands for the CLIP tower and the pairs that the published models begin with.

    Args:
        words: ids of each.
        read: model, pixels -> positions (batch, n, dim).
        model: whose token table gives the goals; it gets no gradient from them.
        batch: pixel_values, pixel_values_videos or both, and labels (batch, parts): the words that the parts of the
            positions should mean, one for all of them, or one for each half.
        step, generator: of an objective; not used.

    Returns:
        The loss, and `right` (share of parts nearest to their word) and `distance` to show.
    """
    table: Tensor = model.get_input_embeddings().weight  # ty: ignore[not-callable]
    with torch.no_grad():
        goals, middle = torch.stack([table[ids].mean(0) for ids in words]), table.mean(0)
    labels = batch["labels"]
    given = [batch[name] for name in ("pixel_values", "pixel_values_videos") if name in batch]
    positions = torch.cat([read(model, pixels) for pixels in given]).float()
    parts = positions.unflatten(1, (labels.shape[1], -1))  # (batch, parts, n / parts, dim)
    # embeddings share a large mean: without taking it away every cosine is near 1
    logits = SHARPNESS * F.normalize(parts.mean(2) - middle, dim=-1) @ F.normalize(goals - middle, dim=-1).T
    goal = goals[labels]
    distance = (parts - goal[:, :, None]).square().mean() / goal.square().mean()
    loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten()) + 0.1 * distance
    return loss, {"right": (logits.argmax(-1) == labels).float().mean(), "distance": distance.detach()}


def stage(
    name: str, objective: Any, source: Callable[[], Any], steps: int, batch_size: int, lr: float, **changes: Any
) -> Stage:
    """A stage of the studies: a peak rate that falls to a hundredth, gradients clipped at 1.

    Args:
        name, steps, batch_size: of the stage.
        objective: model, batch, step, generator -> loss and what to show.
        source: makes the batches.
        lr: the peak rate.
        changes: other fields of `Stage`.
    """
    fields: dict[str, Any] = {"weight_decay": 0.0, "clip": 1.0, "floor": lr / 100} | changes
    return Stage(
        name=name, objective=objective, batches=source, batch_size=batch_size, steps=steps, peak_lr=lr, **fields
    )


def folder(name: str) -> str:
    """The directory of a run."""
    return name.replace(" ", "-")


def carry_out(
    plan: Mapping[str, Callable[[], Recipe]],
    home: Path,
    seed: int,
    device: str | None,
    dtype: str,
    finished: Callable[[str, TrainResult], Any] = lambda name, run: None,
) -> bool:
    """Train what is not trained yet, each run in a directory under `home`.

    Args:
        plan: name of a run -> its recipe, in order; later ones may read models of earlier ones.
        home: of the seed.
        seed, device, dtype: as in `plait train`.
        finished: called with every run, trained now or before.

    Returns:
        False when a signal stopped it; the same call continues.
    """
    for name, build in plan.items():
        print(f"[seed {seed}] {name}", flush=True)
        options = Options(checkpoint_seconds=600)
        run = run_recipe(build, home / folder(name), seed=seed, device=device, dtype=dtype, options=options)
        if run.interrupted is not None:
            print(f"stopped and saved; run the same command again to continue {home.parent}")
            return False
        finished(name, run)
    return True
