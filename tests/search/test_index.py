"""Index: what is added is found, nothing is added twice, filters filter, and a strange file stops nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image
from tiny_embedders import RATE, HueModel, HueProcessor, picture, tone

from plait import Embedder, Index, Sample
from plait.errors import MissingExtraError, UsageError
from plait.search import ann, exact
from plait.search.hits import Hit
from plait.search.index import LEAST

pytest.importorskip("lancedb")


@pytest.fixture(scope="module")
def embedder() -> Embedder:
    return Embedder((HueModel(), HueProcessor()))


@pytest.fixture
def media(tmp_path: Path) -> Path:
    folder = tmp_path / "media"
    (folder / "more").mkdir(parents=True)
    for n, colour in enumerate(("red", "green", "blue")):
        picture(folder / f"{colour}.png", colour, n)
        picture(folder / "more" / f"{colour}.png", colour, n + 10)
        soundfile.write(folder / f"{colour}.wav", tone(colour), RATE)
    return folder


@pytest.fixture
def index(tmp_path: Path, media: Path, embedder: Embedder) -> Index:
    made = Index.create(tmp_path / "media.lance", embedder)
    made.add(media)
    return made


def names(hits: list[Hit]) -> list[str]:
    return [Path(hit.path or hit.id).name for hit in hits]


def test_a_query_of_any_kind_finds_its_colour(index: Index) -> None:
    assert len(index) == 9
    for query in ("red", {"audio": tone("red")}, {"text": "red", "audio": tone("red")}):
        hits = index.search(query, k=3)
        assert sorted(names(hits)) == ["red.png", "red.png", "red.wav"]
        assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
        assert all(0.9 < hit.score <= 1.0001 for hit in hits)


def test_scores_are_cosine_similarities(index: Index, embedder: Embedder, media: Path) -> None:
    hits = index.search("blue", k=9)
    assert len(hits) == 9
    query = embedder.embed(["blue"])[0]
    for hit in hits:
        assert hit.path is not None
        assert hit.score == pytest.approx(float(embedder.embed([Path(hit.path)])[0] @ query), abs=1e-5)
    by_vector = index.search(query, k=9)
    assert names(by_vector) == names(hits)


def test_fused_and_negative_queries_rank_accordingly(index: Index) -> None:
    mixed = index.search({"text": "red", "audio": tone("blue")}, k=6, weights={"text": 2.0})
    assert {name.split(".")[0] for name in names(mixed)} == {"red", "blue"}
    assert {name.split(".")[0] for name in names(mixed)[:3]} == {"red"}
    turned = index.search({"text": ["red", "blue"], "not": {"text": "blue"}, "weights": {"not": 0.9}}, k=3)
    assert {name.split(".")[0] for name in names(turned)} == {"red"}


def test_filters_and_modality_hold_before_ranking(tmp_path: Path, embedder: Embedder, media: Path) -> None:
    made = Index.create(tmp_path / "i", embedder)
    rows = [
        Sample(id=str(n), image=path, text=f"it's {path.stem}", label=path.stem, meta={"year": 2000 + n, "tag": "t's"})
        for n, path in enumerate(sorted(media.rglob("*.png")))
    ]
    assert made.add(rows).added == 6
    made.add(Sample(id="word", text="blue"))
    assert {hit.label for hit in made.search("red", where="label = 'blue'")} == {"blue"}
    assert {hit.label for hit in made.search("red", where={"label": ["blue", "green"]})} == {"blue", "green"}
    late = made.search("red", where="meta.year >= 2004 AND caption LIKE 'it''s %'")
    assert {hit.id for hit in late} == {"4", "5"}
    assert [hit.id for hit in made.search("red", where={"year": 2003, "tag": "t's"})] == ["3"]
    assert [hit.caption for hit in made.search("blue", modality="text")] == ["blue"]
    assert made.search("red", where={"label": "none"}) == []
    hit = made.search("blue", k=1, where={"year": 2000})[0]
    assert (hit.caption, hit.modality, hit.meta) == ("it's blue", "image", {"year": 2000, "tag": "t's"})
    with pytest.raises(ValueError, match="colour"):
        made.search("red", where="colour = 3")
    with pytest.raises(ValueError, match="field of meta"):
        made.search("red", where={"a b": 3})


def test_adding_again_adds_nothing_and_changed_files_replace_their_rows(index: Index, media: Path) -> None:
    report = index.add(media)
    assert (report.added, report.replaced, report.unchanged, len(index)) == (0, 0, 9, 9)
    picture(media / "red.png", "blue", 99)
    picture(media / "new.png", "green", 98)
    report = index.add(media)
    assert (report.added, report.replaced, report.unchanged, len(index)) == (1, 1, 8, 10)
    assert "red.png" in names(index.search("blue", k=4))


def test_equal_content_is_added_once_unless_asked(index: Index, media: Path) -> None:
    shutil.copy(media / "red.png", media / "copy.png")
    report = index.add(media / "copy.png")
    assert report.added == 0
    assert report.duplicates[0].path.endswith("copy.png")
    assert report.duplicates[0].reason.endswith("red.png")
    assert index.add(str(media / "copy.png"), deduplicate=False).added == 1


def test_rows_of_equal_content_are_deleted_and_the_first_stays(index: Index, media: Path) -> None:
    before = {row["path"] for row in index.list()}
    copies = [media / f"copy'{n}.png" for n in range(3)]  # a quote in a name is part of the name
    for copy in copies:
        copy.write_bytes((media / "red.png").read_bytes())
    assert index.add(copies, deduplicate=False).added == 3
    found = index.deduplicate()
    assert sorted(problem.path for problem in found) == sorted(map(str, copies))
    assert all(problem.reason.startswith("same content as ") for problem in found)
    assert {row["path"] for row in index.list()} == before
    assert index.deduplicate() == []


def test_strange_files_are_skipped_with_reasons(index: Index, media: Path) -> None:
    strange = media / "strange"
    strange.mkdir()
    (strange / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    (strange / "empty.wav").write_bytes(b"")
    (strange / "notes.txt").write_text("milk")
    (strange / ".hidden.png").write_bytes(b"")
    os.mkfifo(strange / "pipe.png")
    (strange / "gone.png").symlink_to(strange / "nowhere.png")
    (strange / "loop").symlink_to(media)
    soundfile.write(strange / "short.wav", tone("red")[:10], RATE)
    picture(strange / "good.png", "red", 55)
    report = index.add(strange)
    assert report.added == 1
    reasons = {Path(problem.path).name: problem.reason for problem in report.skipped}
    assert set(reasons) == {"broken.png", "empty.wav", "notes.txt", "pipe.png", "gone.png", "short.wav"}
    assert all(reason and "\n" not in reason for reason in reasons.values())
    assert "400 samples" in reasons["short.wav"]
    assert "regular" in reasons["pipe.png"]
    assert names(index.search({"image": strange / "good.png"}, k=1)) == ["good.png"]


def test_manifests_are_read_with_their_captions(tmp_path: Path, embedder: Embedder, media: Path) -> None:
    rows = [
        {"id": "a", "image": "red.png", "text": "a red thing", "label": "red", "split": "train", "style": "flat"},
        {"id": "b", "audio": "blue.wav", "captions": ["beep"], "label": "blue"},
        {"id": "c", "image": "green.png", "audio": "green.wav"},
        {"id": "d", "text": "green"},
        {"id": "e", "image": "missing.png"},
    ]
    (media / "manifest.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n")
    made = Index.create(tmp_path / "i", embedder)
    report = made.add(media)
    assert report.added == 5
    assert [Path(problem.path).name for problem in report.skipped] == ["missing.png"]
    found = {row["id"]: row for row in made.list()}
    assert set(found) == {"a", "b", "c#image", "c#audio", "d"}
    assert found["a"]["caption"] == "a red thing"
    assert found["a"]["meta"] == {"split": "train", "style": "flat"}
    assert found["b"]["caption"] == "beep"
    assert found["d"]["path"] is None
    (media / "manifest.jsonl").write_text('{"id": "z", "text": "red"}\n{"image": "red.png"}\n')
    with pytest.raises(ValueError, match=r"manifest.jsonl, line 2: field 'id'"):
        made.add(media)
    taken = made.add(Sample(id="a", image=media / "blue.png"))
    assert "taken" in taken.skipped[0].reason


def test_rows_can_be_deleted_updated_and_listed(index: Index, media: Path) -> None:
    assert index.delete(paths=[media / "more"]) == 3
    assert index.delete({"modality": "audio"}) == 3
    assert index.delete("path LIKE '%nothing%'") == 0
    assert len(index.list()) == len(index) == 3
    assert len(index.list(limit=2, offset=2)) == 1
    assert index.update(f"path = '{media / 'red.png'}'", caption="it's red", meta={"stars": 5}) == 1
    assert [row["caption"] for row in index.list("meta.stars > 4")] == ["it's red"]
    assert names(index.search("red", k=1)) == ["red.png"]
    with pytest.raises(ValueError, match="expected a filter or paths"):
        index.delete()
    with pytest.raises(ValueError, match="caption, label or meta"):
        index.update("true")


NEIGHBOURS = ("more-x", "more_x", "moreax", "mo%", "mo_e", "mo're", "more.png.d", "more/deep", "More")


@pytest.mark.parametrize("name", ["more", "more_x", "mo%", "mo_e", "mo're"])
@pytest.mark.parametrize("spelt", ["path", "list", "text", "relative", "trailing"])
def test_deleting_a_folder_takes_whole_names_only(
    name: str, spelt: str, index: Index, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for n, neighbour in enumerate(NEIGHBOURS):
        (media / neighbour).mkdir()
        picture(media / neighbour / "1.png", "red", 100 + n)
    index.add(media)
    monkeypatch.chdir(media)
    before = {row["path"] for row in index.list()}
    doomed = {path for path in before if Path(path).relative_to(media).parts[0] == name}
    folder = media / name
    forms: dict[str, Any] = {
        "path": folder, "list": [folder], "text": str(folder), "relative": f"./{name}", "trailing": [f"{folder}/"],
    }  # fmt: skip
    assert index.delete(paths=forms[spelt]) == len(doomed) > 0
    assert {row["path"] for row in index.list()} == before - doomed


def test_deleting_a_file_leaves_files_whose_names_begin_alike(index: Index, media: Path) -> None:
    picture(media / "red.png.old.png", "red", 50)
    index.add(media)
    assert index.delete(paths=str(media / "red.png")) == 1
    assert {str(media / "red.png.old.png")} <= {row["path"] for row in index.list()}


def test_deleting_the_root_deletes_every_file(index: Index) -> None:
    assert index.delete({"modality": "audio"}, paths=["/"]) == 3
    assert index.delete(paths="/") == 6
    assert len(index) == 0


def test_stats_describe_the_index(index: Index, embedder: Embedder) -> None:
    stats = index.stats()
    assert stats["rows_by_modality"] == {"audio": 3, "image": 6}
    assert (stats["rows"], stats["dim"], stats["search"]) == (9, 8, "exact")
    assert stats["fingerprint"] == embedder.fingerprint
    assert stats["bytes"] > 0


def test_an_index_opens_with_its_own_model_only(index: Index, embedder: Embedder) -> None:
    assert len(Index.open(index.path, embedder)) == 9
    other = Embedder((HueModel(seed=1), HueProcessor()))
    with pytest.raises(ValueError, match=r"expected the model of .*use its own model"):
        Index.open(index.path, other)
    without = Index.open(index.path)
    assert without.search(embedder.embed(["red"])[0], k=1)[0].score > 0.9
    with pytest.raises(ValueError, match="pass the model"):
        without.search("red")


def test_wrong_calls_are_one_line_errors(index: Index, embedder: Embedder, tmp_path: Path) -> None:
    cases = {
        "expected no index": lambda: Index.create(index.path, embedder),
        "expected an index": lambda: Index.open(tmp_path / "nowhere"),
        "no such file or folder": lambda: index.add(tmp_path / "nowhere"),
        "path, a Sample or a list": lambda: index.add(3),
        "k of at least 1": lambda: index.search("red", k=0),
        "shape": lambda: index.search(np.zeros(3, np.float32)),
        "smell": lambda: index.search({"smell": "rose"}),
    }
    for message, call in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert len(index) == 9


def test_a_second_writer_is_refused_and_readers_see_commits(
    index: Index, embedder: Embedder, media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("plait.search.index.LOCK_SECONDS", 0.05)
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, filelock; lock = filelock.FileLock(sys.argv[1])\n"
            "with lock: print('held', flush=True); sys.stdin.read()",
            str(index.path / ".lock"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(ValueError, match="another process is writing"):
            index.add(media)
        reader = Index.open(index.path, embedder)
        assert len(reader.search("red")) == 9
        holder.kill()
    picture(media / "late.png", "red", 77)
    assert index.add(media).added == 1
    assert len(reader) == 10


@pytest.fixture
def many(tmp_path: Path, embedder: Embedder) -> Index:
    """320 plain pictures, added a few at a time."""
    made = Index.create(tmp_path / "i", embedder)
    colours = np.random.default_rng(0).integers(0, 256, (320, 1, 1, 3))
    pictures = [Image.fromarray(np.tile(colour, (2, 2, 1)).astype(np.uint8)) for colour in colours]
    made.add([Sample(id=str(n), image=one) for n, one in enumerate(pictures)], commit_rows=4)
    return made


def test_what_memory_does_not_hold_is_answered_by_an_index_of_lance_and_stays_complete(
    many: Index, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "MOST_BYTES", 300 * 32)
    many.optimize()
    assert many.stats()["search"] == "approximate" and many._table.stats()["fragment_stats"]["num_fragments"] < 10
    built = json.loads((many.path / "ann.json").read_text())
    assert built["kind"] == "sq" and built["recall"] >= 0.99 and built["rows"] == 320
    query = embedder.embed(["green"])[0]
    for k in (1, 10, 20):
        near, whole = (many.search(query, k=k, exact=every) for every in (False, True))
        assert [hit.score for hit in near] == pytest.approx([hit.score for hit in whole], abs=1e-4)
    many.add(Sample(id="new", text="green"))
    assert many.stats()["rows_not_in_ann"] == 1
    assert many.search("green", k=1)[0].id == "new"


def test_where_memory_binds_the_index_of_lance_takes_five_bits_a_number(
    many: Index, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    class Table:
        def __getattr__(self, name: str) -> Any:
            return getattr(many._table, name)

        def create_index(self, column: str, config: Any) -> None:
            asked.append((column, config))

    monkeypatch.setattr(ann, "available_bytes", lambda: 320)
    ann.build(Table(), many.path, 8)
    assert [(column, type(one).__name__, one.num_bits) for column, one in asked] == [("vector", "IvfRq", 5)]


def test_an_index_that_misses_what_is_near_is_dropped_and_not_built_again_soon(
    many: Index, embedder: Embedder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exact, "MOST_BYTES", 300 * 32)
    monkeypatch.setattr(ann, "WANTED", 1.01)  # which nothing reaches
    many.optimize()
    assert many.stats()["search"] == "exact" and json.loads((many.path / "ann.json").read_text())["kind"] is None
    assert not ann.may_pay(many.path, 639) and ann.may_pay(many.path, 640)
    assert told(many.search("green", 5)) == told(many.search("green", 5, exact=True))


def noisy(folder: Path, count: int = 3) -> Path:
    folder.mkdir()
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


def test_a_renamed_folder_takes_its_rows_along(tmp_path: Path, embedder: Embedder) -> None:
    noisy(tmp_path / "p")
    index = Index.create(tmp_path / "i.lance", embedder)
    index.add(tmp_path / "p", show_progress=False)
    index.update("true", caption="a day")
    before = {hit.checksum: hit.score for hit in index.search("red", 5)}
    (tmp_path / "p").rename(tmp_path / "holiday")
    report = index.add(tmp_path / "holiday", show_progress=False)
    assert (report.added, report.replaced, report.duplicates, len(index)) == (0, 3, [], 3)
    hits = index.search("red", 5)
    assert all(Path(hit.path or "").exists() and hit.caption == "a day" for hit in hits)
    assert {hit.checksum: hit.score for hit in hits} == pytest.approx(before)
    assert index.add(tmp_path / "holiday", show_progress=False).unchanged == 3


def test_a_copy_beside_its_original_stays_a_duplicate(tmp_path: Path, embedder: Embedder) -> None:
    noisy(tmp_path / "p", 1)
    index = Index.create(tmp_path / "i.lance", embedder)
    index.add(tmp_path / "p", show_progress=False)
    (tmp_path / "copy.png").write_bytes((tmp_path / "p" / "0.png").read_bytes())
    report = index.add(tmp_path / "copy.png", show_progress=False)
    assert (report.replaced, len(report.duplicates), len(index)) == (0, 1, 1)


def test_names_of_every_system_are_kept(tmp_path: Path, embedder: Embedder) -> None:
    """Spaces of macOS and Japan, joiners of Persian and of emoji, marks of direction, and a line end."""
    names = [
        "at 3.45\u202fPM",
        "v\u00a013",
        "\u5199\u771f\u30002024",
        "\u0645\u200c\u062e",
        "a\u200db",
        "\u200eImage",
        "two\nlines",
    ]
    folder = noisy(tmp_path / "p", len(names))
    for i, name in enumerate(names):
        (folder / f"{i}.png").rename(folder / f"{name}.png")
    index = Index.create(tmp_path / "i.lance", embedder)
    assert index.add(folder, show_progress=False).added == len(names)
    assert {Path(row["path"]).stem for row in index.list()} == set(names)
    assert index.delete(paths=folder / "two\nlines.png") == 1


def test_truth_values_and_numpy_values_in_filters(tmp_path: Path, embedder: Embedder) -> None:
    index = Index.create(tmp_path / "i.lance", embedder)
    rows = [{"id": f"s{i}", "text": f"t{i}", "year": 2000 + i, "score": i / 2, "flag": i % 2 == 0} for i in range(4)]
    index.add([Sample.from_row(row) for row in rows], show_progress=False)

    def ids(where) -> str:
        return "".join(sorted(row["id"][1:] for row in index.list(where)))

    assert ids("meta.flag = true") == ids("meta.flag IS TRUE") == ids({"flag": np.bool_(True)}) == "02"
    assert ids("meta.flag = FALSE AND META.year > 2001") == "3"
    assert ids({"score": np.float32(0.5)}) == ids({"year": np.int64(2001)}) == "1"
    with pytest.raises(ValueError, match="expected a finite number for score, got nan"):
        ids({"score": float("nan")})
    with pytest.raises(UsageError, match=r"got meta\.nested\.a; filter on a field of its own"):
        ids("meta.nested.a = 3")
    with pytest.raises(UsageError, match="Failed to convert to boolean"):
        ids({"year": True})


def test_query_vectors_are_finite_and_their_length_says_nothing(index: Index, embedder: Embedder) -> None:
    vector = embedder.embed(["red"])[0]
    expected = [(hit.id, pytest.approx(hit.score, abs=1e-6)) for hit in index.search(vector, 3)]
    assert [(hit.id, hit.score) for hit in index.search(7 * vector, 3)] == expected
    with pytest.raises(ValueError, match="of some length, got one of zeros"):
        index.search(np.zeros_like(vector), 3)
    with pytest.raises(ValueError, match="finite numbers"):
        index.search(np.full_like(vector, np.nan), 3)


def test_an_index_that_another_process_just_made_is_not_made_again(
    tmp_path: Path, embedder: Embedder, monkeypatch
) -> None:
    answers = iter([False, False, True])  # not there when asked first, there once the lock is held
    monkeypatch.setattr("plait.search.index.table_exists", lambda path: next(answers))
    with pytest.raises(ValueError, match="got one made just now; run the same command again"):
        Index.create(tmp_path / "i.lance", embedder)


def test_an_older_lancedb_is_named_before_anything_is_written(tmp_path, monkeypatch):
    import lancedb

    monkeypatch.setattr(lancedb, "__version__", "0.30.2")
    with pytest.raises(MissingExtraError, match=r"expected lancedb 0.33 or newer, got 0.30.2; install it with: pip"):
        Index.create(tmp_path / "i.lance", "nano")
    assert not (tmp_path / "i.lance").exists()
    wanted = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]["search"]
    assert wanted == [f"lancedb>={LEAST[0]}.{LEAST[1]}"]


def told(hits: list[Hit]) -> list[tuple[str, Any]]:
    return [(hit.id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]


def test_many_queries_find_what_each_finds_alone(index: Index, embedder: Embedder) -> None:
    queries = ["red", {"text": "blue", "not": "red"}, embedder.embed(["green"])[0]]
    for more in ({}, {"where": "path LIKE '%.png'"}, {"modality": "audio"}, {"where": "false"}):
        alone = [index.search(query, 4, **more) for query in queries]
        assert [told(hits) for hits in index.search_many(queries, 4, **more)] == [told(hits) for hits in alone]
    assert index.search_many([]) == []
    with pytest.raises(ValueError, match="expected a list of queries, got one str"):
        index.search_many("red")
    with pytest.raises(UsageError, match="expected a filter"):
        index.search_many(["red"], where="colour = 1")


def test_vectors_in_memory_follow_every_commit_of_anybody(index: Index, media: Path) -> None:
    first, again = index.search("red", 9), index.search("red", 9)  # read anew, then from memory
    assert told(again) == told(first) and index._memory.held is not None
    other = Index.open(index.path, index.embedder)
    other.delete(paths=first[0].path)
    assert first[0].id not in {hit.id for hit in index.search("red", 9)}
    other.update({"id": first[1].id}, caption="rouge")
    assert {hit.id: hit.caption for hit in index.search_many(["red"], 9)[0]}[first[1].id] == "rouge"


def test_equals_come_in_the_order_of_rows_and_filters_of_most_rows_rank_as_those_of_few() -> None:
    scores = np.float32([0.5, 1, 0.5, 0.5, 0.2])
    assert exact._largest(scores, 3).tolist() == [1, 0, 2]
    assert exact._largest(scores, 9).tolist() == [1, 0, 2, 3, 4]
