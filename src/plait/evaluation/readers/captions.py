"""Captions of pictures and videos: COCO and its kin, Karpathy's splits, MSRVTT, MSVD, VATEX, mPLUG-2's files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from plait.evaluation.readers.files import Row, read_lines, read_record, read_rows, read_text
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout


def _coco(source: Source, file_field: str) -> list[Item]:
    record = read_record(source["annotations"])
    items = {
        row.text("id"): Item(row.text("id"), image=row.text(file_field), category=row.get("domain"), captions=[])
        for row in record.records("images")
    }
    for row in record.records("annotations") if "annotations" in record else ():
        known_item(items, row, "image_id", "images").append(row.text("caption"))
    return list(items.values())


def known_item(items: dict[str, Item], row: Row, name: str, of: str) -> list[str]:
    """The captions of the item that a row belongs to. ValueError for an id that is not among the items."""
    if (found := items.get(row.text(name))) is None:
        raise row.wrong(name, f"an id of the {of}", row[name])
    assert found.captions is not None
    return found.captions


@layout("coco_captions", {"annotations": ("captions_{split}????.json", "captions_{split}.json")})
def coco_captions(source: Source) -> list[Item]:
    """COCO: images and captions in two lists; captions are grouped by image_id."""
    return _coco(source, "file_name")


@layout("nocaps", {"annotations": ("nocaps_{split}*captions.json", "nocaps_{split}*.json")})
def nocaps(source: Source) -> list[Item]:
    """NoCaps: as COCO, with the domain of every image as its category; the test file has pictures only."""
    items = _coco(source, "file_name")
    for number, item in enumerate(items, 1):
        if item.captions and item.category is None:
            place = f"{source['annotations'].name}, images, row {number}"
            raise ValueError(f"{place}: expected field 'domain' of image {item.id}, got none; is this the right file?")
    return items


@layout("owl2_captions", {"annotations": "*karpathy_{split}.json"})
def owl2_captions(source: Source) -> list[Item]:
    """Owl2's converted files: as COCO with the path in `image`."""
    return _coco(source, "image")


def _karpathy(source: Source, id_field: str, *, has_folder: bool) -> list[Item]:
    splits = ("train", "restval") if source.split == "train" else (source.split,)
    items = []
    for row in read_record(source["annotations"]).records("images"):
        if row.text("split") in splits:
            folder = f"{row.text('filepath')}/" if has_folder else ""
            captions = [sentence.text("raw") for sentence in row.records("sentences")]
            items.append(Item(row.text(id_field), image=folder + row.text("filename"), captions=captions))
    return items


@layout("coco_karpathy_official", {"annotations": "dataset_coco.json"})
def coco_karpathy(source: Source) -> list[Item]:
    """Karpathy's split of COCO: all raw sentences are references; train = train + restval."""
    return _karpathy(source, "cocoid", has_folder=True)


@layout("flickr30k_karpathy_official", {"annotations": "dataset_flickr30k.json"})
def flickr30k_karpathy(source: Source) -> list[Item]:
    """Karpathy's split of Flickr30k: no folder and no other id than imgid."""
    return _karpathy(source, "imgid", has_folder=False)


@layout("retrieval_json_list", {"annotations": ("*_{split}.json", "{split}.json")})
def retrieval_json_list(source: Source) -> list[Item]:
    """List of ALBEF, BLIP and mPLUG: test rows hold a list of captions, train rows one. id = row number."""
    rows = read_rows(source["annotations"])
    return [
        Item(str(i), image=row.text("image"), captions=_one_or_more(row, "caption"), group=row.get("image_id"))
        for i, row in enumerate(rows)
    ]


def _one_or_more(row: Row, name: str) -> list[str]:
    return row.texts(name) if isinstance(row[name], list) else [row.text(name)]


@layout("vatex", {"annotations": ("vatex_*{split}*.json",)}, aliases={"test": "public_test", "val": "validation"})
def vatex(source: Source) -> list[Item]:
    """VATEX: the English references; videoID = YouTube id, start, end."""
    return [
        Item(row.text("videoID"), video=f"{row.text('videoID')}.mp4", captions=row.texts("enCap"))
        for row in read_rows(source["annotations"])
    ]


@layout("msrvtt_captions", {"annotations": ("videodatainfo.json", "*videodatainfo*.json")})
def msrvtt_captions(source: Source) -> list[Item]:
    """MSRVTT: videos of the official split (train, validate, test), sentences grouped by video_id."""
    split = {"val": "validate", "validation": "validate"}.get(source.split, source.split)
    record = read_record(source["annotations"])
    videos = record.records("videos")
    items = {v.text("video_id"): Item(v.text("video_id"), video=f"{v['video_id']}.mp4", captions=[]) for v in videos}
    for row in record.records("sentences"):
        known_item(items, row, "video_id", "videos").append(row.text("caption"))
    return [items[v.text("video_id")] for v in videos if v.text("split") == split]


@layout("msvd_captions", {"annotations": "AllVideoDescriptions.txt", "list": ("{split}_list.txt", "{split}list.txt")})
def msvd_captions(source: Source) -> list[Item]:
    """MSVD: lines "clip caption"; a list names the clips of a split."""
    captions: dict[str, list[str]] = {}
    path = source["annotations"]
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip() and not line.startswith("#"):
            clip, _, caption = line.strip().partition(" ")
            if not caption:
                raise ValueError(f"{path.name}, line {number}: expected a clip name and a caption, got {line!r:.60}")
            captions.setdefault(clip, []).append(caption)
    return [
        Item(clip, video=f"{clip}.avi", captions=captions[clip]) for clip in listed(source.get("list"), captions, path)
    ]


def listed(path: Path | None, known: Iterable[str], where: Path) -> list[str]:
    """The names of a list file in its order, or all known ones without a file. ValueError for a name not known."""
    known = list(known)
    if path is None:
        return known
    names, have = read_lines(path), set(known)
    if (missing := next((name for name in names if name not in have), None)) is not None:
        raise ValueError(
            f"{path.name}, row {names.index(missing) + 1}: expected a name of {where.name}, got {missing!r}"
        )
    return names


@layout(
    "mplug2_video_caption",
    {"test": ("*caption_{split}.jsonl", "*{split}.jsonl"), "train": "*caption_train.jsonl"},
    optional=("train",),
)
def mplug2_video_caption(source: Source) -> list[Item]:
    """mPLUG-2's caption files: golden captions, lower-cased when read; training rows have one `caption` each."""
    if source.split == "train":
        rows = read_rows(source["train"])
        return [
            Item(str(i), video=video_file(row.text("video_id")), captions=[row.text("caption")])
            for i, row in enumerate(rows)
        ]
    return [
        Item(
            row.text("video_id"),
            video=video_file(row.text("video_id")),
            captions=[caption.lower() for caption in row.texts("golden_captions")],
        )
        for row in read_rows(source["test"])
    ]


def video_file(video_id: str) -> str:
    """The file of a video id in mPLUG-2's releases: .gif for ids of tumblr, else .mp4 (.avi is tried as well)."""
    return f"{video_id}.gif" if video_id.startswith("tumblr") else f"{video_id}.mp4"
