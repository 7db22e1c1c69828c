"""Models that talk, on one's own rows: captions, answers, labels, conversations; every family of them the same way.

row -> its question and answer (or its turns) -> the family's conversation -> cross entropy of answers -> job
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from plait.assistant import Assistant
from plait.data.reader import Reader
from plait.models.auto import skills
from plait.recipes.finetune import Job, Request
from plait.training.parallel import alone
from plait.training.stages import Objective, Source, Stage
from plait.types import Sample

BATCH, MAX_LENGTH, MAX_ANSWER = 8, 2048, 32
WHOLE = 1 << 20
"""Positions of a conversation that is measured: none is cut."""

IGNORED = -100
Predict = Callable[[nn.Module, Any, Sequence[Sample]], Any]
Collate = Callable[[Any, int, list[Any], np.random.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Talker:
    """What a family brings. load: directory -> (model, processor), ready to train; decode: `(sample, rng) -> part`.

    collate, measured: `(processor, max_length, parts, rng) -> batch` with labels, with augmentation and without;
    objective: the mean cross entropy over learned positions; save: `(processor, model, directory)`.
    """

    load: Callable[[str], tuple[Any, Any]]
    decode: Callable[[Sample, np.random.Generator], Any]
    collate: Collate
    measured: Collate
    objective: Objective
    save: Callable[..., None]
    full_lr: float = 1e-5
    lora_lr: float = 2e-4

    def jobs(self) -> dict[str, Callable[[Request], Job]]:
        """Task -> function (Request) -> Job: classify, caption, vqa and chat."""
        return {
            "classify": self.classify,
            "caption": partial(self.job, ask=_described, predict=_captions),
            "vqa": partial(self.job, ask=_asked, predict=_answers),
            "chat": partial(self.job, ask=_as_it_is, predict=self.nats),
        }

    def classify(self, request: Request) -> Job:
        """The label as the answer to what is there; the likeliest of all labels is what the model says."""
        labels = sorted({sample.label or "" for sample in request.train})

        def predict(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
            found = Assistant((model, processor), batch_size=BATCH).classify(_alone(rows, request.medium), labels)
            return [one[0].text for one in found]

        return self.job(request, ask=partial(_named, request.medium), predict=predict)

    def job(self, request: Request, ask: Callable[[Any, Sample], Sample], predict: Predict) -> Job:
        """What a task trains. ask: (skills, row) -> the row with the question and answers of the task alone."""
        model, processor = self.load(str(request.model))
        spoken, first = skills(model, processor), [model]

        def decode(sample: Sample, rng: np.random.Generator) -> Any:
            asked = ask(spoken, sample)
            if asked.answers:
                asked = replace(asked, answers=[asked.answers[int(rng.integers(len(asked.answers)))]])
            return self.decode(asked, rng)

        def batches() -> Source:
            return Reader(request.train, partial(self.collate, processor, MAX_LENGTH), decode, **request.reading)

        def predicted(model: nn.Module, rows: Sequence[Sample]) -> Any:
            was_training = model.training
            try:
                with torch.no_grad():
                    return predict(model.eval(), processor, rows)
            finally:
                model.train(was_training)

        lr = request.lr or (self.lora_lr if request.lora else self.full_lr)
        stage = Stage(
            name=request.task,
            objective=self.objective,
            batches=batches,
            batch_size=request.batch_size,
            steps=request.steps,
            epochs=request.epochs,
            peak_lr=lr,
            floor=lr / 20,
            warmup=0.1,
            weight_decay=1e-4,
            clip=1.0,
        )

        def build() -> nn.Module:
            return first.pop() if first else self.load(str(request.model))[0]

        return Job(build, stage, predicted, partial(self.save, processor))

    def nats(self, model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[float]:
        """Negative log likelihood of all answers of each row, their ends included."""
        device, drawing, found = next(model.parameters()).device, np.random.default_rng(0), []
        for sample in rows:
            batch = self.measured(processor, WHOLE, [self.decode(sample, drawing)], drawing)
            count = int((batch["labels"][:, 1:] != IGNORED).sum())
            with alone():
                batch = {name: value.to(device) for name, value in batch.items()}
                loss, _ = self.objective(model, batch, 0, torch.Generator(device))
            found.append(float(loss) * count)
        return found


def _described(spoken: Any, sample: Sample) -> Sample:
    kind = "image" if sample.image is not None else "video" if sample.video is not None else "text"
    return _question(sample, spoken.describe.format(kind=kind), sample.captions or [sample.text or ""])


def _asked(spoken: Any, sample: Sample) -> Sample:
    if not sample.question:
        raise ValueError(f"expected a question beside the answers of row {sample.id!r}, got none; add it")
    return _question(sample, sample.question or "", sample.answers)


def _named(medium: str, spoken: Any, sample: Sample) -> Sample:
    """A text stands in the question itself, as `plait.generation.talking` asks it."""
    question = spoken.name.format(kind=medium)
    if medium == "text":
        question = spoken.asked("text", sample.text, question)
    return _question(_alone([sample], medium)[0], question, [sample.label or ""])


def _question(sample: Sample, question: str, answers: Sequence[str] | None) -> Sample:
    media = {"image": sample.image, "video": sample.video}
    return Sample(sample.id, **media, question=question, answers=list(answers or ()))


def _as_it_is(spoken: Any, sample: Sample) -> Sample:
    return replace(sample, question=None, answers=None, text=None, captions=None)


def _alone(rows: Sequence[Sample], medium: str) -> list[Sample]:
    return [Sample(sample.id, **{medium: getattr(sample, medium)}) for sample in rows]


def _captions(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
    return Assistant((model, processor), batch_size=BATCH).caption(list(rows), max_length=MAX_ANSWER)


def _answers(model: nn.Module, processor: Any, rows: Sequence[Sample]) -> list[str]:
    questions = [sample.question or "" for sample in rows]
    return Assistant((model, processor), batch_size=BATCH).answer(list(rows), questions, max_length=MAX_ANSWER)
