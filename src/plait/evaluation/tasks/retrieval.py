"""Media and texts that find each other: pictures (COCO, Flickr30k), videos (MSRVTT 1k-A, DiDeMo, LSMDC) and sounds
(AudioCaps, Clotho).

    annotation files -> Item(image | video | audio, captions) -> ranks of both directions -> recall, median, mean rank
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from plait.evaluation.base import Item, Scored, Scoring, Source, Task, layout, published
from plait.evaluation.files import read_rows, read_table
from plait.evaluation.tasks.captions import listed
from plait.evaluation.tasks.classes import clip_of
from plait.metrics.two_way_retrieval import RECALLS, mean_recall, rank_scores
from plait.types import Modality


def retrieval(scoring: Scoring) -> Scored:
    """R@1/5/10 in percent, median and mean rank of both directions; mean_recall = the mean of the six recalls.

    Units are items: the mean over the item's own query and its captions' queries, each direction weighted
    alike. An item without its medium is found by nothing and finds nothing: its rank and its captions' lie
    behind everything.

    Returns:
        Scores named "image>text R@1" and so on, and mean_recall (primary).

    Raises:
        ValueError: for ids of no direction or item, and where every medium is missing.
    """
    known = {item.id: item for item in scoring.items}
    missing = [known[row["id"]] for row in scoring.rows if row.get("failed") and row["id"] in known]
    ranks: dict[str, dict[str, int]] = {}
    for row in (row for row in scoring.rows if not row.get("failed")):
        direction, _, name = row["id"].partition(":")
        if name.partition("#")[0] not in known or ">" not in direction:
            raise ValueError(f"expected ids such as image>text:ITEM of this split, got {row['id']!r}")
        ranks.setdefault(direction, {})[name] = int(row["prediction"])
    if not ranks:
        raise ValueError("expected ranks to score, got none; was every medium missing?")
    # behind every gallery and behind the tenth place, so that no recall counts a missing medium
    behind = 1 + max(10, len(known), sum(len(item.captions or []) for item in known.values()))
    for direction, found in ranks.items():
        asks_in_text = direction.startswith("text>")
        for item in missing:
            names = [f"{item.id}#gone{i}" for i in range(len(item.captions or []))] if asks_in_text else [item.id]
            found |= dict.fromkeys(names, behind)
    scores, recalls = {}, []
    for direction, found in ranks.items():
        values = rank_scores(np.array(list(found.values())))
        scores |= {f"{direction} {name.replace('r@', 'R@')}": value for name, value in values.items()}
        # the mean of the three recalls of a direction; both directions then weigh alike
        recalls.append(mean_recall(values))
    scores["mean_recall"] = float(np.mean(recalls))
    # A query weighs one over the number of queries of its direction, so that the mean of the units is mean_recall.
    owners = {name.partition("#")[0] for found in ranks.values() for name in found}
    units: dict[str, float] = dict.fromkeys(owners, 0.0)
    for found in ranks.values():
        share = len(owners) / (len(found) * len(ranks))
        for name, rank in found.items():
            units[name.partition("#")[0]] += share * float(np.mean([100.0 * (rank <= k) for k in RECALLS]))
    note = f"{len(missing)} items without media count as rank {behind} in both directions"
    return Scored(scores, dict(sorted(units.items())), notes=[note] if missing else [])


AUDIOCAPS_SECONDS = 10


@layout("msrvtt_retrieval_1ka", {"annotations": ("MSRVTT_JSFUSION_{split}.csv", "*1k*{split}*.csv")})
def msrvtt_1ka(source: Source) -> list[Item]:
    """MSRVTT 1k-A: one text per video.

    The id is the row's `key`; the file is called by its `video_id`.
    """
    return [
        Item(row.text("key"), video=f"{row.text('video_id')}.mp4", captions=[row.text("sentence")])
        for row in read_table(source["annotations"])
    ]


@layout("didemo", {"annotations": "{split}_data.json", "list": "{split}_list.txt"}, optional=("list",))
def didemo(source: Source) -> list[Item]:
    """DiDeMo, paragraph retrieval: all descriptions of a video in file order, joined by a space."""
    # the paragraph setting: one text per video
    told: dict[str, list[str]] = {}
    for row in read_rows(source["annotations"]):
        told.setdefault(row.text("video"), []).append(row.text("description"))
    names = listed(source.get("list"), told, source["annotations"])
    return [Item(name, video=name, captions=[" ".join(told[name])]) for name in names]


_LSMDC = ("clip", "start_aligned", "end_aligned", "start_extracted", "end_extracted", "sentence")


@layout("lsmdc", {"annotations": ("LSMDC16_challenge_1000_public*.csv", "LSMDC*{split}*.csv")})
def lsmdc(source: Source) -> list[Item]:
    """LSMDC: six tab-separated columns, no header, quotes are text; a clip may have several sentences.

    The id is the clip, its file the clip with .avi.
    """
    told: dict[str, list[str]] = {}
    for row in read_table(source["annotations"], columns=_LSMDC, delimiter="\t", quoting=False):
        told.setdefault(row.text("clip"), []).append(row.text("sentence"))
    return [Item(clip, video=f"{clip}.avi", captions=captions) for clip, captions in told.items()]


@layout("audiocaps", {"annotations": "{split}.csv"})
def audiocaps(source: Source) -> list[Item]:
    """AudioCaps: ten-second clips; rows of one clip (youtube_id, start_time) are its captions."""
    items: dict[str, Item] = {}
    for row in read_table(source["annotations"]):
        # by id and start, as one video may give several clips
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
    """Clotho: five caption columns; file names may hold spaces and commas.

    Splits evaluation, validation and development answer to test, val and train.
    """
    items = []
    for row in read_table(source["annotations"]):
        file = row.text("file_name")
        columns = [name for name in row if name.startswith("caption_")]
        if not columns:
            raise ValueError(f"{row.place}: expected columns caption_1 to caption_5, got {', '.join(row)}")
        items.append(Item(Path(file).stem, audio=file, captions=[row.text(name) for name in columns]))
    return items


def _retrieval(name: str, about: str, layouts: tuple[str, ...], size: int, media: Modality, *known: str) -> Task:
    """A task of media and texts that find each other."""
    return Task(
        name, about, layouts, "test", (media,), {"embed": "retrieve"}, retrieval, "mean_recall", size=size,
        published=published(*known),
    )  # fmt: skip


TASKS = (
    _retrieval(
        "coco_retrieval", "COCO 5k, R@1 of text then image retrieval",
        ("coco_karpathy_official", "retrieval_json_list", "one_peace_image_text_retrieval"), 5000, "image",
        "readme ONE-PEACE: 84.1 / 65.4", "readme mPLUG large: 82.8 / 65.8",
        "recalled ONE-PEACE: 64.7 / 48.0 (zero-shot)",
    ),
    _retrieval(
        "flickr30k_retrieval", "Flickr30k 1k, R@1 of text then image retrieval",
        ("flickr30k_karpathy_official", "retrieval_json_list", "one_peace_image_text_retrieval"), 1000, "image",
        "readme ONE-PEACE: 97.6 / 89.6", "readme mPLUG large: 97.6 / 88.4",
        "recalled ONE-PEACE: 90.9 / 77.2 (zero-shot)",
    ),
    _retrieval(
        "msrvtt_retrieval", "MSRVTT 1k-A, one text per video", ("msrvtt_retrieval_1ka",), 1000, "video",
        "web mPLUG-2: 53.1/77.6/84.7; zero-shot 47.1", "readme mPLUG large: R@1 38.1 (zero-shot)",
    ),
    _retrieval(
        "didemo_retrieval", "DiDeMo, a paragraph per video", ("didemo",), 1003, "video",
        "web mPLUG-2: 56.4/79.1/85.2; zero-shot 45.7",
    ),
    _retrieval(
        "lsmdc_retrieval", "LSMDC, public test", ("lsmdc",), 1000, "video",
        "recalled mPLUG-2: 34.4/55.2/65.1; zero-shot 24.1",
    ),
    _retrieval(
        "audiocaps_retrieval", "AudioCaps, R@1 of text-to-audio, audio-to-text", ("audiocaps", "one_peace_audio"), 960,
        "audio", "readme ONE-PEACE: 42.5 / 51.0",
    ),
    _retrieval(
        "clotho_retrieval", "Clotho, R@1 of text-to-audio, audio-to-text", ("clotho", "one_peace_audio"), 1045, "audio",
        "readme ONE-PEACE: 22.4 / 27.1",
    ),
)  # fmt: skip
