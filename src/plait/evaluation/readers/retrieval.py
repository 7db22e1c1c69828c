"""Media with the texts that should find them: videos (MSRVTT 1k-A, DiDeMo, LSMDC) and sounds (AudioCaps, Clotho)."""

from __future__ import annotations

from pathlib import Path

from plait.evaluation.readers.captions import listed
from plait.evaluation.readers.classes import clip_of
from plait.evaluation.readers.files import read_rows, read_table
from plait.evaluation.readers.item import Item
from plait.evaluation.readers.layout import Source, layout

AUDIOCAPS_SECONDS = 10


@layout("msrvtt_retrieval_1ka", {"annotations": ("MSRVTT_JSFUSION_{split}.csv", "*1k*{split}*.csv")})
def msrvtt_1ka(source: Source) -> list[Item]:
    """MSRVTT 1k-A: one text per video."""
    return [
        Item(row.text("key"), video=f"{row.text('video_id')}.mp4", captions=[row.text("sentence")])
        for row in read_table(source["annotations"])
    ]


@layout("didemo", {"annotations": "{split}_data.json", "list": "{split}_list.txt"}, optional=("list",))
def didemo(source: Source) -> list[Item]:
    """DiDeMo, paragraph retrieval: all descriptions of a video in file order, joined by a space."""
    told: dict[str, list[str]] = {}
    for row in read_rows(source["annotations"]):
        told.setdefault(row.text("video"), []).append(row.text("description"))
    names = listed(source.get("list"), told, source["annotations"])
    return [Item(name, video=name, captions=[" ".join(told[name])]) for name in names]


_LSMDC = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")


@layout("lsmdc", {"annotations": ("LSMDC16_challenge_1000_public*.csv", "LSMDC*{split}*.csv")})
def lsmdc(source: Source) -> list[Item]:
    """LSMDC: six tab-separated columns, no header, quotes are text; a clip may have several sentences."""
    told: dict[str, list[str]] = {}
    for row in read_table(source["annotations"], columns=_LSMDC, delimiter="\t", quoting=False):
        told.setdefault(row.text("clip"), []).append(row.text("sentence"))
    return [Item(clip, video=f"{clip}.avi", captions=captions) for clip, captions in told.items()]


@layout("audiocaps", {"annotations": "{split}.csv"})
def audiocaps(source: Source) -> list[Item]:
    """AudioCaps: ten-second clips; rows of one clip (youtube_id, start_time) are its captions."""
    items: dict[str, Item] = {}
    for row in read_table(source["annotations"]):
        name = f"{row.text('youtube_id')}_{row.text('start_time')}"
        item = items.setdefault(name, Item(name, audio=f"{name}.wav", captions=[]))
        item.media_start, item.media_end = clip_of(row, "start_time", AUDIOCAPS_SECONDS)
        assert item.captions is not None
        item.captions.append(row.text("caption"))
    return list(items.values())


@layout(
    "clotho",
    {"annotations": "clotho_captions_{split}.csv"},
    aliases={"test": "evaluation", "val": "validation", "train": "development"},
)
def clotho(source: Source) -> list[Item]:
    """Clotho: five caption columns; file names may hold spaces and commas."""
    items = []
    for row in read_table(source["annotations"]):
        file = row.text("file_name")
        columns = [name for name in row if name.startswith("caption_")]
        if not columns:
            raise ValueError(f"{row.place}: expected columns caption_1 to caption_5, got {', '.join(row)}")
        items.append(Item(Path(file).stem, audio=file, captions=[row.text(name) for name in columns]))
    return items
