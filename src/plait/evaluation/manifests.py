"""Benchmarks as training data: the official files of one -> a manifest that every recipe reads.

    annotation files -> the reader that evaluation uses -> items of two splits -> rows -> leaks -> manifest

A row keeps what recipes ask for and nothing else: words, answers, choices, classes by name, boxes in pixels. What is
trained on is never what is measured: an item of both splits is refused, and not silently left out, since the official
lists of a benchmark do not overlap and a copy that does is wrong. Sentences alone do come twice in published lists.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from plait.data.manifest import MEDIA
from plait.data.packages import sha256
from plait.errors import UsageError
from plait.evaluation.base import Item, Task
from plait.evaluation.files import MediaFiles
from plait.evaluation.tasks import read, task_named
from plait.places import atomic_write
from plait.types import Sample

TEST_FOLD = 1
"""Of benchmarks that come in folds (ESC-50) the one that is held out where no other is named."""
_SUFFIXES = {b"\x89PNG": ".png", b"\xff\xd8\xff": ".jpg", b"RIFF": ".webp", b"GIF8": ".gif", b"fLaC": ".flac"}


@dataclass(frozen=True)
class Splits:
    """Which splits of a benchmark become which rows.

    Attributes:
        train: its name among the benchmark's files, or `TASK:SPLIT` where another benchmark of the same files tells it:
            MSRVTT's list for retrieval has test clips alone, and `msrvtt_caption:train` the others.
        test: what is held out, a split or a fold; None for the one that the benchmark is scored on.
    """

    train: str = "train"
    test: str | None = None


def rows_of(
    task: Task, root: str | Path, out: str | Path, splits: Splits, template: str | None = None
) -> tuple[list[Sample], list[str]]:
    """The rows of a benchmark, `train` and `test`, and lines that tell what was left out.

    Args:
        task: of `plait.evaluation.tasks`.
        root: directory of its official files and media.
        out: of the manifest; images that annotation files hold themselves are written to `out/media`.
        splits: which.
        template: how media files are called, as in `plait eval --media`.

    Raises:
        UsageError: for a benchmark that training reads as it is, or that no recipe learns.
        ValueError: for files that are absent or malformed, media that are missing, and splits that overlap.
    """
    check_learnable(task)
    files, test = MediaFiles(root, template), splits.test or task.split
    if splits.train == test and splits.test is not None:
        raise UsageError(f"expected two splits, got {test!r} twice: what is trained on says nothing about the rest")
    held_out = _items(task, root, test)
    owner, _, train = splits.train.rpartition(":")
    teller = task_named(owner) if owner else task
    if any("fold" in item.meta for item in held_out):
        fold = int(test) if test.isdigit() else TEST_FOLD
        whole = _items(task, root, task.split)
        if fold not in (folds := {item.meta["fold"] for item in whole}):
            raise ValueError(f"expected fold {fold} to hold out, got folds {', '.join(map(str, sorted(folds)))}")
        trained = [item for item in whole if item.meta["fold"] != fold]
        held_out = [item for item in whole if item.meta["fold"] == fold]
    else:
        trained = _items(teller, root, train)
    names = _class_names([*trained, *held_out])
    rows = []
    for split, of, items in (("train", teller, trained), ("test", task, held_out)):
        missing: list[str] = []
        for item in items:
            rows.append(_row(of, item, split, names, files, Path(out), missing))
        if missing:
            raise ValueError(
                f"expected the media of split {split} below {files.root}, got none for {len(missing)}: "
                f"{', '.join(missing[:4])}; add them, or name them with --media"
            )
    return apart(rows)


def check_learnable(task: Task) -> None:
    """Raise UsageError for a benchmark whose files are training data already, and for one without anything to learn."""
    if "segment" in task.methods.values() or "detect" in task.methods.values():
        verb = "segment" if "segment" in task.methods.values() else "detect"
        raise UsageError(
            f"expected a benchmark whose rows have to be made, got {task.name}: plait train finetune --set task={verb} "
            "reads its files as they are"
        )
    if "similarity" in task.methods.values():
        raise UsageError(
            f"expected a benchmark with answers or classes, got {task.name}, which has degrees of likeness"
        )


def _items(task: Task, root: str | Path, split: str) -> list[Item]:
    """Items of a split that can be learned from; ValueError where there are none."""
    items, _, _ = read(root, task.layouts, split)
    kept = [item for item in items if _target(item)]
    if not kept:
        raise ValueError(
            f"expected items with answers in split {split!r} of {task.name}, got {len(items)} without; name another"
        )
    return kept


def _class_names(items: Sequence[Item]) -> dict[Any, str]:
    """Names of classes by number, from the benchmark's own list or as the items spell them; empty without any."""
    listed = next((item.meta["classes"] for item in items if "classes" in item.meta), {})
    return {item.label: item.label_name for item in items if item.label_name is not None} | dict(listed)


def _target(item: Item) -> bool:
    """Whether an item says what is right."""
    told = item.meta.get("targets")  # tables of ONE-PEACE's release
    named = (item.answers, item.captions, item.labels, item.boxes, item.answer_index, item.label, told)
    return any(value is not None and value != [] for value in named)


def _row(
    task: Task, item: Item, split: str, names: dict[Any, str], files: MediaFiles, out: Path, missing: list[str]
) -> Sample:
    """One item as a row; names of media that are not there are added to `missing`."""
    found: dict[str, list[str]] = defaultdict(list)
    for modality, name in item.media(task.seen):
        place = files.find(name, modality)
        if place is None:
            missing.append(str(name))
        else:
            found[modality].append(str(_kept(place, out, f"{split}-{item.id}-{len(found[modality])}")))
    # of NLVR2 a row has two
    meta: dict[str, Any] = {"images": found.pop("image")} if len(found["image"]) > 1 else {}
    choice = None if item.choices is None or item.answer_index is None else item.choices[item.answer_index]
    meta |= {
        "choices": item.choices, "text_pair": item.text_pair, "box_labels": item.box_labels, "group": item.group,
        "labels": item.label_names or [names.get(one, str(one)) for one in item.labels or []] or None,
    }  # fmt: skip
    # tables of ONE-PEACE's release hold (answer, class, score) in place of what people said
    scored = sorted(item.meta.get("targets") or (), key=lambda target: -target[2])
    if scored:
        meta["answer_scores"] = {answer: score for answer, _, score in scored}
    said = item.answers or [answer for answer, *_ in scored] or ([choice] if choice is not None else None)
    label = item.label_name if item.label_name is not None else names.get(item.label, item.label)
    return Sample(
        # the same id may stand in both splits of a benchmark that numbers its lines
        f"{split}/{item.id}",
        text=item.text,
        image=next(iter(found["image"]), None),
        video=next(iter(found["video"]), None),
        audio=next(iter(found["audio"]), None),
        captions=item.captions,
        question=item.question,
        answers=said,
        label=None if label is None else str(label),
        boxes=item.boxes,
        split=split,
        meta={name: value for name, value in meta.items() if value is not None},
    )


def _kept(place: Path | bytes, out: Path, name: str) -> Path:
    """A file as it is, or bytes that an annotation held, written beside the manifest."""
    if isinstance(place, Path):
        return place.absolute()
    suffix = next((end for start, end in _SUFFIXES.items() if place.startswith(start)), ".bin")
    path = out / "media" / (name.replace("/", "_") + suffix)
    path.parent.mkdir(parents=True, exist_ok=True)
    return atomic_write(path, place).absolute()


def apart(rows: Sequence[Sample]) -> tuple[list[Sample], list[str]]:
    """The rows without training rows that are a test row's equal in words alone, and what a person must know.

    Two rows are the same item where their media are the same and what is asked of them is: an image with another
    question is another item, but an image with other captions is not. Files are the same by name or by their bytes,
    which are read only of sizes that both sides have.

    Raises:
        ValueError: where a training row with media is a test row too.
    """
    sides = {split: [row for row in rows if row.split == split] for split in ("train", "test")}
    files = {split: {file for row in of for file in _media(row)} for split, of in sides.items()}
    sizes = {split: {Path(file).stat().st_size for file in of} for split, of in files.items()}
    both = sizes["train"] & sizes["test"]
    known = {
        file: sha256(Path(file)) if Path(file).stat().st_size in both else file
        for file in files["train"] | files["test"]
    }
    tested = {_item(row, known): row.id for row in sides["test"]}
    same = [(tested[_item(row, known)], row) for row in sides["train"] if _item(row, known) in tested]
    if with_media := [(test, row.id) for test, row in same if _media(row)]:
        raise ValueError(
            f"expected splits that share no item, got {len(with_media)} in both, the first {with_media[0][0]} and "
            f"{with_media[0][1]}; take the official lists of both splits"
        )
    gone = {row.id for _, row in same}
    notes = [f"left out {len(gone)} training rows whose words are those of a test row"] if gone else []
    shared = {known[file] for file in files["train"]} & {known[file] for file in files["test"]}
    notes += [f"{len(shared)} files are in both splits, with other questions"] if shared else []
    return [row for row in rows if row.id not in gone], notes


def _media(row: Sample) -> list[str]:
    """The files that a row names."""
    named = [getattr(row, name) for name in MEDIA] + list(row.meta.get("images", []))
    return [str(file) for file in named if file is not None]


def _item(row: Sample, known: Mapping[str, str]) -> tuple[Any, ...]:
    """What two rows have in common that are the same item."""
    return (row.text, row.meta.get("text_pair"), row.question, *(known[file] for file in _media(row)))
