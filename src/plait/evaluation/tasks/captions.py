"""Captions of pictures and videos: COCO and its kin, Karpathy's splits, MSRVTT, MSVD, VATEX, mPLUG-2's files.

annotation files -> Item(image | video, captions) -> a caption -> BLEU, ROUGE-L, CIDEr of the COCO kit
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from plait.evaluation.base import (
    Item,
    Pairs,
    Scored,
    Scoring,
    Source,
    Task,
    layout,
    means,
    number_of,
    published,
    write_json,
)  # fmt: skip
from plait.evaluation.files import Row, read_lines, read_record, read_rows, read_text
from plait.metrics import java
from plait.metrics.captions import token_scores, tokenized


def captions(scoring: Scoring) -> Scored:
    """BLEU, ROUGE-L and CIDEr (times 100) of the COCO kit; CIDEr of a domain uses the weights of all references.

    Where Java is there, its tokens are scored, and METEOR, and SPICE where its models are there as well.

    Returns:
        Scores CIDEr (primary), ROUGE-L, BLEU-1 to BLEU-4, METEOR and SPICE; units: CIDEr of every item;
        categories: CIDEr by domain. The notes name the tokenizer, since numbers of the two do not compare.

    Raises:
        NotScored: for a split without references.
    """
    scoring.keep(lambda item: bool(item.captions), "reference captions")
    has_java = java.missing() is None
    tokenize = java.tokenized if has_java else tokenized
    # document frequencies come from these references alone: a part of a set has another CIDEr scale than the whole
    said, right = tokenize(scoring.replies(), [item.captions or [] for item in scoring.items])
    found = token_scores(said, right)
    cider = {item.id: 100 * value for item, value in zip(scoring.items, found.cider, strict=True)}
    shown = {"CIDEr": "cider", "ROUGE-L": "rouge_l", **{f"BLEU-{n}": f"bleu_{n}" for n in range(1, 5)}}
    scores = {name: 100 * found.corpus[key] for name, key in shown.items()}
    scores |= {"METEOR": 100 * java.meteor(said, right)[0]} if has_java else {}
    scores |= {"SPICE": 100 * java.spice(said, right)[0]} if java.spice_missing() is None else {}
    absent = "".join(f", no {name}" for name in ("METEOR", "SPICE") if name not in scores)
    notes = [
        f"CIDEr weighs words by the references of these {len(cider)} items",
        f"tokenizer={'java' if has_java else 'python'}{absent}",
    ]
    domains = means((item.category, cider[item.id]) for item in scoring.items if item.category)
    return Scored(scores, cider, categories=domains, notes=notes)


def submitted(pairs: Pairs, out: Path, model: str) -> Path:
    """Write what the servers of COCO and NoCaps take: [{image_id, caption}], ids as numbers."""
    rows = [{"image_id": number_of(item.id), "caption": text} for item, text in pairs]
    return write_json(out / "submission.json", rows)


def _coco(source: Source, file_field: str) -> list[Item]:
    """Items of a COCO file: one per picture, with all of its captions in the order of the file."""
    record = read_record(source["annotations"])
    items = {
        row.text("id"): Item(row.text("id"), image=row.text(file_field), category=row.get("domain"), captions=[])
        for row in record.records("images")
    }
    # test files have pictures alone
    for row in record.records("annotations") if "annotations" in record else ():
        known_captions(items, row, "image_id", "images").append(row.text("caption"))
    return list(items.values())


def known_captions(items: dict[str, Item], row: Row, name: str, of: str) -> list[str]:
    """The captions of the item that a row belongs to, to be added to.

    Raises ValueError for an id that is not among the items. of: what the ids name, for the message.
    """
    if (found := items.get(row.text(name))) is None:
        raise row.wrong(name, f"an id of the {of}", row[name])
    assert found.captions is not None
    return found.captions


@layout("coco_captions", {"annotations": ("captions_{split}????.json", "captions_{split}.json")})
def coco_captions(source: Source) -> list[Item]:
    """COCO: images and captions in two lists; captions are grouped by image_id.

    Items hold id, image and captions (about five), in the order of `images`.
    """
    return _coco(source, "file_name")


@layout("nocaps", {"annotations": ("nocaps_{split}*captions.json", "nocaps_{split}*.json")})
def nocaps(source: Source) -> list[Item]:
    """NoCaps: as COCO, with the domain of every image as its category; the test file has images only."""
    items = _coco(source, "file_name")
    for number, item in enumerate(items, 1):
        if item.captions and item.category is None:
            place = f"{source['annotations'].name}, images, row {number}"
            raise ValueError(f"{place}: expected field 'domain' of image {item.id}, got none; is this the right file?")
    return items


@layout("owl2_captions", {"annotations": "*karpathy_{split}.json"})
def owl2_captions(source: Source) -> list[Item]:
    """Owl2's converted files: as COCO with the path in `image`.

    The names of the files say Karpathy's splits; ids, images and captions lie as in COCO's own.
    """
    return _coco(source, "image")


def _karpathy(source: Source, id_field: str, *, has_folder: bool) -> list[Item]:
    # restval are pictures of COCO's validation part that he moved into training
    """Items of one split of Karpathy's file, with all raw sentences."""
    splits = ("train", "restval") if source.split == "train" else (source.split,)
    items = []
    for row in read_record(source["annotations"]).records("images"):
        if row.text("split") in splits:
            folder = f"{row.text('filepath')}/" if has_folder else ""
            sentences = [sentence.text("raw") for sentence in row.records("sentences")]
            items.append(Item(row.text(id_field), image=folder + row.text("filename"), captions=sentences))
    return items


@layout("coco_karpathy_official", {"annotations": "dataset_coco.json"})
def coco_karpathy(source: Source) -> list[Item]:
    """Karpathy's split of COCO: all raw sentences are references; train = train + restval."""
    # cocoid is the number that COCO's own files use, imgid only a position
    return _karpathy(source, "cocoid", has_folder=True)


@layout("flickr30k_karpathy_official", {"annotations": "dataset_flickr30k.json"})
def flickr30k_karpathy(source: Source) -> list[Item]:
    """Karpathy's split of Flickr30k: no folder and no other id than imgid."""
    return _karpathy(source, "imgid", has_folder=False)


@layout("retrieval_json_list", {"annotations": ("*_{split}.json", "{split}.json")})
def retrieval_json_list(source: Source) -> list[Item]:
    """List of ALBEF, BLIP and mPLUG: test rows hold a list of captions, train rows one. id = row number."""
    # the lists hold no id, so their order is what names an item
    rows = read_rows(source["annotations"])
    return [
        Item(str(i), image=row.text("image"), captions=texts_of(row, "caption"), group=row.get("image_id"))
        for i, row in enumerate(rows)
    ]


def texts_of(row: Row, name: str) -> list[str]:
    """A field that holds one text or a list, as a list. Raises ValueError for other content."""
    return row.texts(name) if isinstance(row[name], list) else [row.text(name)]


@layout("vatex", {"annotations": ("vatex_*{split}*.json",)}, aliases={"test": "public_test", "val": "validation"})
def vatex(source: Source) -> list[Item]:
    """VATEX: the English references; videoID = YouTube id, start, end.

    Items hold id, video and captions (about ten); the Chinese ones of the file are not read.
    """
    return [
        Item(row.text("videoID"), video=f"{row.text('videoID')}.mp4", captions=row.texts("enCap"))
        for row in read_rows(source["annotations"])
    ]


@layout("msrvtt_captions", {"annotations": ("videodatainfo.json", "*videodatainfo*.json")})
def msrvtt_captions(source: Source) -> list[Item]:
    """MSRVTT: videos of the official split (train, validate, test), sentences grouped by video_id."""
    # the official file calls its validation split validate
    split = {"val": "validate", "validation": "validate"}.get(source.split, source.split)
    record = read_record(source["annotations"])
    videos = record.records("videos")
    items = {v.text("video_id"): Item(v.text("video_id"), video=f"{v['video_id']}.mp4", captions=[]) for v in videos}
    for row in record.records("sentences"):
        known_captions(items, row, "video_id", "videos").append(row.text("caption"))
    return [items[v.text("video_id")] for v in videos if v.text("split") == split]


@layout("msvd_captions", {"annotations": "AllVideoDescriptions.txt", "list": ("{split}_list.txt", "{split}list.txt")})
def msvd_captions(source: Source) -> list[Item]:
    """MSVD: lines "clip caption"; a list names the clips of a split.

    Without a list every clip of the file is an item. Raises ValueError for a line without a caption.
    """
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
    """The names of a list file in its order, or all known ones without a file.

    Args:
        path: of the list, None takes all.
        known: names of the annotation file, in its order.
        where: that file, for the message.

    Raises:
        ValueError: for a name not known.
    """
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
            # the release lower-cases references, its own decoder writes lower case
            captions=[caption.lower() for caption in row.texts("golden_captions")],
        )
        for row in read_rows(source["test"])
    ]


def video_file(video_id: str) -> str:
    """The file of a video id in mPLUG-2's releases: .gif for ids of tumblr, else .mp4 (.avi is tried as well)."""
    return f"{video_id}.gif" if video_id.startswith("tumblr") else f"{video_id}.mp4"


def _caption(name: str, about: str, layouts: tuple[str, ...], split: str, size: int, **more) -> Task:
    """A task that is scored as captions."""
    media = more.pop("media", ("image",))
    return Task(
        name, about, layouts, split, media, {"generate": "prompt"}, captions, "CIDEr", "caption", size=size, **more
    )


TASKS = (
    _caption(
        "coco_caption", "COCO captions, Karpathy's test split",
        ("coco_karpathy_official", "coco_captions", "owl2_captions", "retrieval_json_list"), "test", 5000,
        published=published(
            "readme mPLUG-Owl2: 137.3", "readme mPLUG-Owl2.1: 135.3", "readme mPLUG large: 141.0 (CE), 155.1 (SCST)",
            "recalled mPLUG-2: 137.7 (CE)",
        ),
    ),
    _caption(
        "flickr30k_caption", "Flickr30k captions, zero-shot", ("flickr30k_karpathy_official", "owl2_captions"), "test",
        1000, published=published("readme mPLUG-Owl2: 85.1", "readme mPLUG-Owl2.1: 78.5"),
    ),
    _caption("nocaps", "captions of novel objects", ("nocaps",), "val", 4500, submission=submitted),
    _caption(
        "msrvtt_caption", "MSRVTT captions, official test split (the release does not name its split)",
        ("msrvtt_captions", "mplug2_video_caption"), "test", 2990, media=("video",),
        published=published("readme mPLUG-2: 80.3"),
    ),
    _caption(
        "msvd_caption", "MSVD captions", ("msvd_captions", "mplug2_video_caption"), "test", 670, media=("video",),
        published=published("readme mPLUG-2: 165.8"),
    ),
    _caption(
        "vatex_caption", "VATEX captions, public test", ("vatex",), "test", 6000, media=("video",),
        published=published("readme mPLUG large: 42.0 (zero-shot)"),
    ),
)  # fmt: skip
