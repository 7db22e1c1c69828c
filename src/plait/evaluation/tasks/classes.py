"""One class, or several, per picture, video or sound: ImageNet and folders like it, Kinetics, Something-Something,
ESC-50, VGGSound, FSD50K.

    annotation files -> Item(image | video | audio, label | labels) -> a score of every class -> top-1, top-5 | mAP
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from plait.evaluation.base import Item, Method, Scored, Scoring, Source, Task, layout, means, published
from plait.evaluation.files import Row, read_lines, read_record, read_rows, read_table
from plait.metrics.checks import finite
from plait.metrics.classification import mean_per_class_accuracy, predictions, top_k_hits
from plait.metrics.tagging import mean_average_precision
from plait.types import Capability, Modality

LOWEST = float(np.finfo(np.float64).min)
"""Score of a class that a head does not have, or of a medium that is missing: behind everything, and finite."""


def scores_of_classes(scoring: Scoring, least: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of every class for every item, and which items have any.

    Predictions of others may name the best classes alone: these are then in that order, and all others behind
    them.

    Args:
        scoring: rows whose raw is a list of scores, or whose prediction is a list of classes, best first.
        least: classes that the result has at least.

    Returns:
        (items, classes) float64, and (items,) bool: False where the medium is missing.
    """
    raw, best = scoring.raw, scoring.predictions
    # a head may know more classes than the labels of a small part name, or fewer
    width = max([least, *(len(row) for row in raw.values() if isinstance(row, list))])
    scores, has = np.full((len(scoring.items), width), LOWEST), np.zeros(len(scoring.items), dtype=bool)
    for row, item in enumerate(scoring.items):
        if best[item.id] is None:  # its medium is missing
            continue
        has[row] = True
        if isinstance(raw[item.id], list):
            scores[row, : len(raw[item.id])] = finite(raw[item.id], f"scores of item {item.id}")
        else:
            for place, index in enumerate(best[item.id]):
                # 0, -1, -2 ...: only the order counts for top-k
                scores[row, index] = -place
    return scores, has


def top_k(scoring: Scoring) -> Scored:
    """Top-1 and top-5 accuracy, the mean of the classes' top-1, and top-1 of a uniform guess.

    Returns:
        Scores top1 (primary), top5, mean_per_class and chance_top1, in percent; categories: top-1 by class,
        where there are at most 100.

    Raises:
        NotScored: for a split without classes.
    """
    scoring.keep(lambda item: item.label is not None, "class")
    labels = np.array([item.label for item in scoring.items])
    scores, has = scores_of_classes(scoring, int(labels.max()) + 1)
    hits = top_k_hits(scores, labels, 1) & has
    scored = scoring.scored(hits.tolist())
    per_class = means((i.label_name or i.label, scored.units[i.id]) for i in scoring.items)
    # the classes that a head scores, not those that the items happen to have
    guesses = max((len(raw) for raw in scoring.raw.values() if isinstance(raw, list)), default=1)
    scored.scores = {
        "top1": scored.scores["accuracy"],
        "top5": 100 * float((top_k_hits(scores, labels, 5) & has).mean()),
        "mean_per_class": 100 * mean_per_class_accuracy(np.where(has, predictions(scores), -1), labels),
        "chance_top1": 100 / guesses,
    }
    # a page with a thousand rows helps nobody
    scored.categories = per_class if len(per_class) <= 100 else {}
    return scored


def tagging(scoring: Scoring) -> Scored:
    """Macro mean of the classes' average precision, in percent; classes without a positive are left out and counted.

    Returns:
        Score mAP with an interval of its own: it is no mean over items.

    Raises:
        NotScored: for a split without labels.
    """
    scoring.keep(lambda item: item.labels is not None, "labels")
    least = 1 + max((label for item in scoring.items for label in item.labels or []), default=0)
    scores, _ = scores_of_classes(scoring, least)
    targets = np.zeros(scores.shape, dtype=bool)
    for row, item in enumerate(scoring.items):
        targets[row, item.labels or []] = True
    empty = int((~targets.any(axis=0)).sum())
    notes = [f"{empty} of {targets.shape[1]} classes have no positive item and are left out"] if empty else []

    def mean_ap(drawn: np.ndarray) -> float:
        return 100 * mean_average_precision(scores[drawn], targets[drawn])

    return Scored({"mAP": mean_ap(np.arange(len(scores)))}, notes=notes, resampled=resampled(mean_ap, len(scores)))


RESAMPLES = 200
"""Fewer than of means: a score of a whole set is measured anew on every draw."""


def resampled(measure: Callable[[np.ndarray], float], count: int) -> tuple[float, float]:
    """95 % interval of a score of a whole set, measured on items drawn with replacement.

    Args:
        measure: numbers of the items drawn -> the score; NaN where it is not defined on a draw, which is left
            out.
        count: of items.

    Returns:
        (low, high); the score itself twice where nothing can be drawn.
    """
    generator = np.random.default_rng(0)
    drawn = [measure(generator.integers(0, count, count)) for _ in range(RESAMPLES if count > 1 else 0)]
    # where every draw misses a class the score itself stands for the interval
    drawn = drawn if drawn and not np.isnan(drawn).all() else [measure(np.arange(count))]
    low, high = np.nanquantile(drawn, [0.025, 0.975])
    return float(low), float(high)


_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
VGGSOUND_SECONDS = 10
_VALIDATION = ("val", "validate", "validation")
"""What files of Kinetics call their validation split."""


@layout("imagenet", {"list": "{split}.txt", "classes": ("classes.txt", "*synset*.txt")}, optional=("classes",))
def read_imagenet(source: Source) -> list[Item]:
    """ImageNet, list layout: lines "file index"; id = file stem.

    Raises ValueError for a class that the list of names does not have.
    """
    names = class_names(source.get("classes"))
    path = source["list"]
    # the list of the release has no other id than the file
    items = []
    for file, index in _file_and_index(path):
        if names and not 0 <= index < len(names):
            raise ValueError(f"{path.name}: expected classes 0 to {len(names) - 1}, got {index} for {file}")
        item = Item(Path(file).stem, image=file, label=index, label_name=names[index] if names else None)
        items.append(named(item, names))
    return items


def named(item: Item, names: dict[int, str]) -> Item:
    """The item with the names of all classes beside it, where the data set tells them."""
    if names:
        item.meta["classes"] = names
    return item


@layout("imagenet_folder", {"classes": ("classes.txt", "*synset*.txt")}, optional=("classes",))
def imagenet_folder(source: Source) -> list[Item]:
    """ImageNet and data sets like it, folder layout: <split>/<class>/<file>; class = position of the sorted folder.

    The id is folder and stem, since stems may repeat. Raises ValueError where there are no folders.
    """
    place = source.root / source.split
    # torchvision's ImageFolder numbers classes the same way
    folders = sorted(path for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    if not folders:
        raise ValueError(f"expected folders of classes in {place}, got none; pass the directory above {source.split}")
    words = class_names(source.get("classes"), by_folder=True)
    names = {index: words.get(folder.name, folder.name) for index, folder in enumerate(folders)}
    items = []
    for index, folder in enumerate(folders):
        for path in sorted(path for path in folder.iterdir() if path.suffix.lower() in _PICTURES):
            image = path.relative_to(source.root).as_posix()
            name = names[index]
            items.append(named(Item(f"{folder.name}/{path.stem}", image=image, label=index, label_name=name), names))
    return items


def class_names(path: Path | None, *, by_folder: bool = False) -> dict:
    """Names of classes from lines "wnid name, synonym".

    Args:
        path: of the list, None gives no names.
        by_folder: wnid -> name, for folders called by it; else position -> name.
    """
    if path is None:
        return {}
    rows = [line.partition(" ") for line in read_lines(path)]
    return {wnid if by_folder else i: name or wnid for i, (wnid, _, name) in enumerate(rows)}


def _file_and_index(path: Path) -> list[tuple[str, int]]:
    """Lines "file index", where the file may hold spaces. Raises ValueError with the row."""
    rows = []
    for number, line in enumerate(read_lines(path), 1):
        file, _, index = line.rpartition(" ")
        if not file or not index.isdigit():
            raise ValueError(f"{path.name}, row {number}: expected a file name and a class index, got {line!r:.60}")
        rows.append((file.strip(), int(index)))
    return rows


@layout(
    "kinetics",
    {"official": ("{split}.csv", "*_{split}.csv"), "list": "kinetics*_{split}_list_videos.txt"},
    optional=("official", "list"),
    aliases={"val": "val*"},
)
def read_kinetics(source: Source) -> list[Item]:
    """Kinetics: the official CSV (clip file = id, start and end in six digits), else ONE-PEACE's list "path index"."""
    if (path := source.get("official")) is None:
        return [Item(Path(f).stem, video=f, label=index) for f, index in _file_and_index(source["list"])]
    rows = read_table(path)
    order = {name: i for i, name in enumerate(sorted({row.text("label") for row in rows if row.optional("label")}))}
    wanted = _VALIDATION if source.split in _VALIDATION else (source.split,)
    items = []
    for row in (row for row in rows if row.get("split", source.split) in wanted):
        name, label = row.text("youtube_id"), row.optional("label")
        clip = f"{name}_{row.integer('time_start'):06d}_{row.integer('time_end'):06d}.mp4"
        item = Item(name, video=clip, label_name=label, label=None if label is None else order[label])
        items.append(named(item, {index: name for name, index in order.items()}))
    return items


@layout(
    "something_something_v2", {"annotations": "*{split}.json", "labels": "*labels.json"}, aliases={"val": "validation"}
)
def something_something(source: Source) -> list[Item]:
    """Something-Something v2: the template without brackets is the key of labels.json.

    Test files have no template, so their items have no label.
    """
    labels = read_record(source["labels"])
    names = {labels.integer(name): name for name in labels}
    items = []
    for row in read_rows(source["annotations"]):
        item = Item(row.text("id"), video=f"{row.text('id')}.webm")
        if "template" in row:
            item.label_name = row.text("template").replace("[", "").replace("]", "")
            if item.label_name not in labels:
                raise row.wrong("template", f"a template of {source['labels'].name}", item.label_name)
            item.label = labels.integer(item.label_name)
        items.append(named(item, names))
    return items


@layout("esc50", {"annotations": "esc50.csv"})
def read_esc50(source: Source) -> list[Item]:
    """ESC-50: 50 classes in five folds; split `all`, or the number of a fold.

    meta holds the fold; audio lies in `audio/`.
    """
    items = []
    for row in read_table(source["annotations"]):
        # the folds are for five runs of training; zero-shot takes all
        if source.split in ("all", row.text("fold")):
            file = row.text("filename")
            item = Item(Path(file).stem, audio=f"audio/{file}", label=row.integer("target"))
            item.label_name = row.text("category")
            item.meta["fold"] = row.integer("fold")
            items.append(item)
    return items


@layout("fsd50k", {"annotations": ("{split}.csv", "dev.csv"), "vocabulary": "vocabulary.csv"})
def read_fsd50k(source: Source) -> list[Item]:
    """FSD50K: comma-joined class names in one cell; dev.csv has a column split (train, val)."""
    vocabulary = read_table(source["vocabulary"], columns=("index", "name", "mid"))
    index = {row.text("name"): row.integer("index") for row in vocabulary}
    folder = "dev" if source["annotations"].stem == "dev" else "eval"
    items = []
    for row in read_table(source["annotations"]):
        if row.get("split", source.split) not in (source.split,) and source.split != "dev":
            # dev.csv holds train and val: split dev takes both
            continue
        names = row.text("labels").split(",")
        item = Item(row.text("fname"), audio=f"FSD50K.{folder}_audio/{row.text('fname')}.wav", label_names=names)
        if (unknown := next((name for name in names if name not in index), None)) is not None:
            raise row.wrong("labels", f"names of {source['vocabulary'].name}", unknown)
        item.labels = [index[name] for name in names]
        items.append(named(item, {number: name for name, number in index.items()}))
    return items


@layout("vggsound", {"annotations": "vggsound.csv"})
def read_vggsound(source: Source) -> list[Item]:
    """VGGSound: no header; class = position among the sorted labels of the file.

    The file of a clip is YouTube id and start in six digits; clips are ten seconds long.
    """
    rows = read_table(source["annotations"], columns=("youtube_id", "start", "label", "split"))
    # published class numbers are the places of the sorted names
    order = {name: i for i, name in enumerate(sorted({row.text("label") for row in rows}))}
    items = []
    for row in (row for row in rows if row.text("split") == source.split):
        name = f"{row.text('youtube_id')}_{row.integer('start'):06d}"
        item = Item(name, audio=f"{name}.wav", label_name=row.text("label"), label=order[row.text("label")])
        item.media_start, item.media_end = clip_of(row, "start", VGGSOUND_SECONDS)
        items.append(named(item, {index: name for name, index in order.items()}))
    return items


def clip_of(row: Row, name: str, seconds: int) -> tuple[float, float]:
    """Start and end of a clip of fixed length, in seconds, from the field of a row that tells its start."""
    start = row.number(name)
    return start, start + seconds


def _classes(name: str, about: str, layouts: tuple[str, ...], split: str, media: Modality, labels: str, **more) -> Task:
    """A task with one class, or several, of one medium; a trained head goes before zero-shot."""
    rule, primary = more.pop("rule", top_k), more.pop("primary", "top1")
    methods: Mapping[Capability, Method] = {"classify": "class_scores", "embed": "zero_shot"}
    return Task(name, about, layouts, split, (media,), methods, rule, primary, labels=labels, **more)


SOUND = "This is a sound of {label}"
TASKS = (
    _classes(
        "imagenet", "ImageNet-1K", ("imagenet", "imagenet_folder"), "val", "image", "a photo of a {label}.", size=50000,
        published=published("readme ONE-PEACE: 89.6 (384 px), 89.8 (512 px)", "recalled mPLUG-2: 87.7"),
    ),
    _classes(
        "image_folder", "any folder of classes (Flowers102, Food101, Pets, DTD ...)", ("imagenet_folder",), "test",
        "image", "a photo of a {label}.", published=published("web mPLUG-2: 97.1 (Flowers102)"),
    ),
    _classes(
        "kinetics400", "Kinetics-400", ("kinetics",), "val", "video", "a video of {label}.",
        published=published("readme ONE-PEACE: 88.0/97.8 and 88.1/97.8", "web mPLUG-2: 87.1/97.7"),
    ),
    _classes(
        "kinetics600", "Kinetics-600", ("kinetics",), "val", "video", "a video of {label}.",
        published=published("recalled mPLUG-2: 89.8/98.3"),
    ),
    _classes(
        "kinetics700", "Kinetics-700", ("kinetics",), "val", "video", "a video of {label}.",
        published=published("recalled mPLUG-2: 80.4/94.9"),
    ),
    _classes(
        "something_something_v2", "Something-Something v2", ("something_something_v2",), "val", "video",
        "a video of {label}.", size=24777,
    ),
    _classes(
        "esc50", "ESC-50, zero-shot over all folds", ("esc50",), "all", "audio", SOUND, size=2000,
        published=published("readme ONE-PEACE: 91.8"),
    ),
    _classes(
        "vggsound", "VGGSound, sound alone", ("vggsound", "one_peace_vggsound"), "test", "audio", SOUND, size=15400,
        published=published("readme ONE-PEACE: 68.2"),
    ),
    _classes(
        "fsd50k", "FSD50K, several classes per clip", ("fsd50k", "one_peace_fsd50k"), "eval", "audio", SOUND,
        rule=tagging, primary="mAP", size=10231, published=published("readme ONE-PEACE: 69.7"),
    ),
)  # fmt: skip
