"""What every study measures with: hits and their intervals, guesses and simple baselines, and questions to a model.

model, held-out examples -> 1 or 0 per question and condition | nats per text -> means over seeds, intervals -> table
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from plait.metrics.bootstrap import bootstrap_mean
from plait.report.tables import format_table
from plait.training.optim import AdamW
from plait.types import Sample
from plait.weights.dtypes import resolve_dtype
from plait_studies import training
from plait_studies.drawings import Example

CONDITIONS = ("shown", "removed", "shuffled", "one frame")
TEXTS = ("snippets", "news")
BATCH = 20
"""Questions of one forward pass; it bounds memory and changes no result but for rounding."""
Hits = tuple[float, ...]


@dataclass(frozen=True)
class Subject:
    """A talking model, and how questions reach it.

    Args:
        model, processor: of the family that is studied.
        batch_of: processor, examples, sentences, shown=... -> supervised batch; shown=False leaves pictures and clips
            out.
    """

    model: Any
    processor: Any
    batch_of: Callable[..., dict[str, Tensor]]

    def autocast(self, dtype: str) -> AbstractContextManager[Any]:
        """Matrix products in `dtype` on the model's device."""
        precision = resolve_dtype(dtype)
        return torch.autocast(self.model.device.type, precision, enabled=precision != torch.float32)

    def answers(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits (batch, places, vocabulary) and labels (batch, places), where a row of the batch has one to say."""
        batch = {name: value.to(self.model.device) for name, value in batch.items()}
        labels = batch.pop("labels")[:, 1:]
        # Logits of the whole vocabulary at every position would be the largest tensor by far.
        places = (labels != -100).any(dim=0).nonzero().flatten()
        return self.model(**batch, logits_to_keep=places, use_cache=False).logits.float(), labels[:, places]

    def losses(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Negative log likelihood (batch,) of what each row has to say, and its number of pieces (batch,)."""
        logits, labels = self.answers(batch)
        loss = F.cross_entropy(logits.transpose(1, 2), labels, reduction="none", ignore_index=-100)
        return loss.sum(1), (labels != -100).sum(1)

    @torch.no_grad()
    def answered(self, examples: Sequence[Example], *, shown: bool = True) -> list[int]:
        """1 where greedy decoding writes exactly the answer and ends, for each example.

        It does so exactly where every position of the answer and its end prefers the right piece, given the right
        pieces before it: one forward pass tells.
        """
        hits: list[int] = []
        for start in range(0, len(examples), BATCH):
            logits, labels = self.answers(self.batch_of(self.processor, examples[start : start + BATCH], shown=shown))
            hits += ((logits.argmax(-1) == labels) | (labels == -100)).all(1).int().tolist()
        return hits

    def asked(self, examples: Sequence[Example]) -> dict[str, list[int]]:
        """Condition -> 1 where the answer is right.

        `shown` as it is; `removed`: the question alone; `shuffled`: the picture or clip of the next example; for clips
        also `one frame`: their second frame, over and over.
        """
        frames = [example.frames for example in examples]
        conditions = {"shown": frames, "shuffled": [*frames[1:], frames[0]]}
        if len(frames[0]) > 1:
            conditions["one frame"] = [np.repeat(clip[1:2], len(clip), axis=0) for clip in frames]
        found = {
            name: self.answered([replace(e, frames=given) for e, given in zip(examples, pages, strict=True)])
            for name, pages in conditions.items()
        }
        # without its picture a pair of question and answer needs asking only once
        once = {(example.question, example.answer): example for example in examples}
        hits = dict(zip(once, self.answered(list(once.values()), shown=False), strict=True))
        return found | {"removed": [hits[example.question, example.answer] for example in examples]}

    @torch.no_grad()
    def ranked(self, examples: Sequence[Example]) -> list[int]:
        """1 where the right one of an example's choices is the likeliest answer, its end included.

        Fairer than `answered` to a model that never learnt to write the bare answer. Raises ValueError without choices.
        """
        hits: list[int] = []
        for example in examples:
            if example.choices is None:
                raise ValueError(f"expected questions with choices, got {example.task!r}")
            batch = self.batch_of(self.processor, [replace(example, answer=choice) for choice in example.choices])
            hits.append(int(example.choices[int(self.losses(batch)[0].argmin())] == example.answer))
        return hits

    @torch.no_grad()
    def nats(self, texts: Sequence[str]) -> list[tuple[float, int]]:
        """Negative log likelihood and number of predicted pieces of each text: its perplexity is exp(sum / sum)."""
        found: list[tuple[float, int]] = []
        for start in range(0, len(texts), BATCH):
            rows = [torch.tensor(self.processor.tokenizer(text)["input_ids"]) for text in texts[start : start + BATCH]]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            labels = ids.masked_fill(mask == 0, -100)
            loss, counts = self.losses({"input_ids": ids, "attention_mask": mask, "labels": labels})
            found += list(zip(loss.tolist(), counts.tolist(), strict=True))
        return found

    @torch.no_grad()
    def felt(self, samples: Sequence[Sample]) -> list[int]:
        """1 where the right feeling is the likelier answer about a snippet."""
        hits: list[int] = []
        for start in range(0, len(samples), BATCH):
            chosen = samples[start : start + BATCH]
            batches = ([replace(one, label=feeling) for one in chosen] for feeling in training.FEELINGS)
            losses = torch.stack([self.losses(self.batch_of(self.processor, (), some))[0] for some in batches])
            best = zip(losses.argmin(0).tolist(), chosen, strict=True)
            hits += [int(training.FEELINGS[i] == sample.label) for i, sample in best]
        return hits

    def examined(
        self, examples: Mapping[str, Sequence[Example]], device: str | None, dtype: str, *, ranked: bool = False
    ) -> dict[str, Any]:
        """Everything about the model: {"vqa": {task: {condition: hits}}, "ranked": {task: hits}, "text": {...}}.

        examples: task -> held-out questions; ranked: also which choice is likeliest, of tasks that have choices.
        """
        self.model.to(device or ("cuda" if torch.cuda.is_available() else "cpu")).eval()
        sentences = training.sentences()
        with self.autocast(dtype):
            chosen = {task: some for task, some in examples.items() if ranked and some[0].choices is not None}
            return {
                "vqa": {task: self.asked(some) for task, some in examples.items()},
                "ranked": {task: self.ranked(some) for task, some in chosen.items()},
                "text": {
                    "snippets": self.nats([sample.text or "" for sample in sentences]),
                    "news": self.nats(training.news()),
                    "feeling": self.felt(sentences),
                },
            }


def perplexity(found: Sequence[Sequence[float]]) -> float:
    """exp(nats per piece) over texts."""
    sums = np.asarray(found, dtype=np.float64).sum(0)
    return float(np.exp(sums[0] / sums[1]))


def interval(values: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Mean and its 95 % bootstrap interval over examples.

    Args:
        values: (examples,), means over seeds where there are several: the interval tells how much depends on the
            questions.
    """
    found = bootstrap_mean(values)
    return {"value": found.estimate, "interval": [found.lower, found.upper]}


def over_seeds(results: Sequence[Mapping[str, Any]], *path: str) -> np.ndarray:
    """Hits found under `path` in the results of every seed: their mean for every example."""
    found: list[Any] = []
    for one in results:
        for key in path:
            one = one[key]
        found.append(one)
    return np.asarray(found, dtype=np.float64).mean(axis=0)


def gained(
    results: Sequence[Mapping[str, Any]], others: Sequence[Mapping[str, Any]], condition: str = "shown"
) -> dict[str, Any]:
    """How much more often `results` are right, shown the picture, than `others` under a condition.

    Question by question, so that what makes some of them hard drops out of the interval.
    """
    tasks = results[0]["vqa"]
    found = [over_seeds(results, "vqa", task, "shown") - over_seeds(others, "vqa", task, condition) for task in tasks]
    return interval(np.concatenate(found))


def combined(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Results of one model's seeds, as `Subject.examined` gives them -> a row of the table.

    {"seeds", "vqa": {condition: {"tasks": {task: figures}, **figures of all}}, "perplexity", "feeling"}, figures as of
    `interval`; "likeliest" too where choices were ranked.
    """
    asked = results[0]["vqa"]
    vqa = {}
    for condition in CONDITIONS:
        hits = {task: over_seeds(results, "vqa", task, condition) for task in asked if condition in asked[task]}
        if hits:
            tasks = {task: interval(values) for task, values in hits.items()}
            vqa[condition] = {"tasks": tasks, **interval(np.concatenate(list(hits.values())))}
    row = {
        "seeds": len(results),
        "vqa": vqa,
        "perplexity": {k: float(np.mean([perplexity(one["text"][k]) for one in results])) for k in TEXTS},
        "feeling": interval(over_seeds(results, "text", "feeling")),
    }
    if ranked := results[0]["ranked"]:
        row["likeliest"] = interval(np.concatenate([over_seeds(results, "ranked", task) for task in ranked]))
    return row


def guessing(examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """{"questions": their number by task, "majority": what always giving a task's commonest answer scores, and all}."""
    answers = {task: Counter(example.answer for example in some) for task, some in examples.items()}
    most = {task: counts.most_common(1)[0][1] for task, counts in answers.items()}
    questions = {task: counts.total() for task, counts in answers.items()}
    majority = {task: most[task] / questions[task] for task in answers}
    return {
        "questions": questions,
        "majority": majority | {"all": sum(most.values()) / sum(questions.values())},
    }


def as_text(summary: Mapping[str, Any], title: str) -> str:
    """Accuracy in percent by row, condition and task, then text.

    summary: {"rows": of `combined`, each with its name under `title`, **`guessing`}.
    """
    tasks = list(summary["questions"])
    ranked = any("likeliest" in row for row in summary["rows"])
    lines = []
    for row in summary["rows"]:
        text = [f"{row['perplexity'][kind]:.1f}" for kind in TEXTS] + [with_range(row["feeling"])]
        if ranked:
            text.insert(0, with_range(row["likeliest"]))
        for condition, found in row["vqa"].items():
            shares = [f"{100 * found['tasks'][task]['value']:.1f}" if task in found["tasks"] else "" for task in tasks]
            overall = with_range(found) if len(found["tasks"]) == len(tasks) else ""
            last = text if condition == "shown" else [""] * len(text)
            lines.append([row[title], condition, *shares, overall, *last])
    head = [title, "picture", *tasks, "all (95 %)", *(["likeliest (95 %)"] if ranked else [])]
    head += [*(f"ppl {kind}" for kind in TEXTS), "feeling (95 %)"]
    guess = [f"{100 * summary['majority'][task]:.1f}" for task in (*tasks, "all")]
    for words in (["", "commonest answer", *guess], ["", "questions", *map(str, summary["questions"].values())]):
        lines.append(words + [""] * (len(head) - len(words)))
    return format_table(head, lines)


def with_range(found: Mapping[str, Any]) -> str:
    """47.8 (43.6-52.2), in percent."""
    low, high = found["interval"]
    return f"{100 * found['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})"


def in_points(found: Mapping[str, Any]) -> str:
    """+4.7 points (+1.0 to +8.2): a difference."""
    low, high = found["interval"]
    return f"{100 * found['value']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"


def guessed(
    known: Sequence[Example], examples: Sequence[Example], choices: Sequence[Sequence[str]], *, by_question: bool
) -> Hits:
    """Hits of the answer that was most frequent in training among each example's choices.

    by_question: most frequent for the same question, where training had it; a caption may be any of its references.
    """
    seen: dict[str | None, Counter[str]] = defaultdict(Counter)
    for example in known:
        for answer in example.references or (example.answer,):
            seen[example.question][answer] += 1
            seen[None][answer] += 1
    hits = []
    for example, own in zip(examples, choices, strict=True):
        counts = (seen.get(example.question) if by_question else None) or seen[None]
        best = max(own or counts, key=lambda answer: counts[answer])
        hits.append(float(best in (example.references or (example.answer,))))
    return tuple(hits)


def majority(answers: Sequence[str], known: Sequence[str]) -> Hits:
    """Hits of the most frequent training answer."""
    most = Counter(known).most_common(1)[0][0]
    return tuple(float(answer == most) for answer in answers)


def tf_idf(known: Sequence[tuple[str, int]], asked: Sequence[tuple[str, int]], steps: int = 300) -> Hits:
    """Hits of logistic regression on tf-idf of words and word pairs, the usual baseline for short texts.

    L2 penalty as of scikit-learn's default (C = 1). Words and pairs that training lacks are left out; each text's
    weights have length 1.
    """
    texts = [[text.lower().split() for text, _ in rows] for rows in (known, asked)]
    features = [[{*words, *(f"{a} {b}" for a, b in pairwise(words))} for words in some] for some in texts]
    seen = Counter(feature for own in features[0] for feature in own)
    number = {feature: i for i, feature in enumerate(seen)}
    idf = {feature: 1 + math.log((1 + len(known)) / (1 + count)) for feature, count in seen.items()}
    y, table = torch.tensor([label for _, label in known]), torch.zeros(len(number), 2, requires_grad=True)

    def scored(some: Sequence[set[str]]) -> Callable[[], Tensor]:
        bags = [[feature for feature in own if feature in idf] for own in some]
        ids = torch.tensor([number[feature] for bag in bags for feature in bag], dtype=torch.long)
        starts = torch.tensor([0, *(len(bag) for bag in bags[:-1])]).cumsum(0)
        norms = [math.sqrt(sum(idf[feature] ** 2 for feature in bag)) for bag in bags]
        weights = torch.tensor([idf[feature] / norm for bag, norm in zip(bags, norms, strict=True) for feature in bag])
        return lambda: F.embedding_bag(ids, table, starts, mode="sum", per_sample_weights=weights)

    train, test = (scored(some) for some in features)
    optimizer = torch.optim.Adam([table], lr=0.1)
    for _ in range(steps):
        loss = F.cross_entropy(train(), y) + table.square().sum() / (2 * len(known))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        said = test().argmax(1).tolist()
    return tuple(float(found == label) for found, (_, label) in zip(said, asked, strict=True))


def line(x: Tensor, labels: Sequence[int], x_test: Tensor, labels_test: Sequence[int], steps: int = 300) -> Hits:
    """Hits of logistic regression on vectors, each brought to length 1.

    Args:
        x, labels: (n, dim) and their classes, from 0, to learn from.
        x_test, labels_test: held out.
        steps: of AdamW, on 512 drawn rows each.
    """
    x, x_test, y = F.normalize(x, dim=1), F.normalize(x_test, dim=1), torch.tensor(labels)
    layer = nn.Linear(x.shape[1], int(y.max()) + 1)
    nn.init.zeros_(layer.weight)  # every class as likely to begin with, whatever the seed
    optimizer = AdamW(layer.parameters(), lr=0.05, weight_decay=1e-4)
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        rows = torch.randint(len(y), (512,), generator=generator)
        loss = F.cross_entropy(layer(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return tuple((layer(x_test).argmax(1) == torch.tensor(labels_test)).float().tolist())


def separability(first: Tensor, second: Tensor) -> float:
    """Held-out accuracy of a line that tells two sets of vectors (n, dim) apart; every other row trains."""
    x = torch.cat([first, second])
    y = torch.cat([torch.ones(len(first)), -torch.ones(len(second))])
    train = torch.arange(len(x)) % 2 == 0
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    a = x[train]
    # Least squares towards 1 and -1 with a small ridge, in closed form: nothing to tune, nothing drawn.
    weights = torch.linalg.solve(a.T @ a + 1e-3 * torch.eye(a.shape[1]), a.T @ y[train])
    return float(((x[~train] @ weights > 0) == (y[~train] > 0)).float().mean())
