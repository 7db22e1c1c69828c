"""One class, or several, per picture, video or sound."""

from __future__ import annotations

from pathlib import Path

from plait.evaluation.readers.files import Row, read_lines, read_record, read_rows, read_table
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout

_PICTURES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm"}
VGGSOUND_SECONDS = 10
_VALIDATION = ("val", "validate", "validation")
"""What files of Kinetics call their validation split."""


@layout("imagenet", {"list": "{split}.txt", "classes": ("classes.txt", "*synset*.txt")}, optional=("classes",))
def imagenet(source: Source) -> list[Item]:
    """ImageNet, list layout: lines "file index"; id = file stem."""
    names = class_names(source.get("classes"))
    path = source["list"]
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
    """ImageNet and data sets like it, folder layout: <split>/<class>/<file>; class = position of the sorted folder."""
    place = source.root / source.split
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
    """Names of classes from lines "wnid name, synonym": by index, or by folder."""
    if path is None:
        return {}
    rows = [line.partition(" ") for line in read_lines(path)]
    return {wnid if by_folder else i: name or wnid for i, (wnid, _, name) in enumerate(rows)}


def _file_and_index(path: Path) -> list[tuple[str, int]]:
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
def kinetics(source: Source) -> list[Item]:
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
    """Something-Something v2: the template without brackets is the key of labels.json."""
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
def esc50(source: Source) -> list[Item]:
    """ESC-50: 50 classes in five folds; split `all`, or the number of a fold."""
    items = []
    for row in read_table(source["annotations"]):
        if source.split in ("all", row.text("fold")):
            file = row.text("filename")
            item = Item(Path(file).stem, audio=f"audio/{file}", label=row.integer("target"))
            item.label_name = row.text("category")
            item.meta["fold"] = row.integer("fold")
            items.append(item)
    return items


@layout("fsd50k", {"annotations": ("{split}.csv", "dev.csv"), "vocabulary": "vocabulary.csv"})
def fsd50k(source: Source) -> list[Item]:
    """FSD50K: comma-joined class names in one cell; dev.csv has a column split (train, val)."""
    vocabulary = read_table(source["vocabulary"], columns=("index", "name", "mid"))
    index = {row.text("name"): row.integer("index") for row in vocabulary}
    folder = "dev" if source["annotations"].stem == "dev" else "eval"
    items = []
    for row in read_table(source["annotations"]):
        if row.get("split", source.split) not in (source.split,) and source.split != "dev":
            continue
        names = row.text("labels").split(",")
        item = Item(row.text("fname"), audio=f"FSD50K.{folder}_audio/{row.text('fname')}.wav", label_names=names)
        if (unknown := next((name for name in names if name not in index), None)) is not None:
            raise row.wrong("labels", f"names of {source['vocabulary'].name}", unknown)
        item.labels = [index[name] for name in names]
        items.append(named(item, {number: name for name, number in index.items()}))
    return items


@layout("vggsound", {"annotations": "vggsound.csv"})
def vggsound(source: Source) -> list[Item]:
    """VGGSound: no header; class = position among the sorted labels of the file."""
    rows = read_table(source["annotations"], columns=("youtube_id", "start", "label", "split"))
    order = {name: i for i, name in enumerate(sorted({row.text("label") for row in rows}))}
    items = []
    for row in (row for row in rows if row.text("split") == source.split):
        name = f"{row.text('youtube_id')}_{row.integer('start'):06d}"
        item = Item(name, audio=f"{name}.wav", label_name=row.text("label"), label=order[row.text("label")])
        item.media_start, item.media_end = clip_of(row, "start", VGGSOUND_SECONDS)
        items.append(named(item, {index: name for name, index in order.items()}))
    return items


def clip_of(row: Row, name: str, seconds: int) -> tuple[float, float]:
    """Start and end in seconds of a clip of fixed length."""
    start = row.number(name)
    return start, start + seconds
