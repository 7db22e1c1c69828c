"""The run itself: what is asked, kept, resumed, listed, written and refused."""

from __future__ import annotations

import html
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from whole_fixtures import fixture

from plait.cli.evaluate import evaluate as command
from plait.evaluation.base import Item
from plait.evaluation.cache import ResponseCache, collect, key_of
from plait.evaluation.compare import as_lines, compare
from plait.evaluation.files import MediaFiles, frames_of
from plait.evaluation.result import said_of
from plait.evaluation.run import Options, evaluate, load_items, score_file, used_by
from plait.evaluation.tasks import TASKS
from plait.generation.asking import Asking
from plait.report.run import said_section
from plait.types import Ask, Decoding, Modality, Question, QuestionKind


class Parrot:
    """Answers with the number of letters it was asked; counts what it is asked, and may fail after some answers."""

    name, family, fingerprint = "parrot", "parrot", "0"
    capabilities = ("generate",)
    asking = Asking()

    def __init__(self, fail_after: int | None = None, reply: str | None = None) -> None:
        self.asked: list[str] = []
        self.fail_after, self.reply = fail_after, reply

    def prompt(self, ask: Ask) -> str:
        return f"[{len(ask.images) + len(ask.video)}] {self.asking.layout(ask)}"

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        if self.fail_after is not None and len(self.asked) + len(asks) > self.fail_after:
            raise RuntimeError("the lights went out")
        self.asked += [self.prompt(ask) for ask in asks]
        return [self.reply if self.reply is not None else f" {len(ask.words)}" for ask in asks]


QUIET = Options(show_progress=False, batch_size=1)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """The NLVR2 fixture with its pictures."""
    return fixture(TASKS["nlvr2"], "nlvr2_official", tmp_path / "data")[0]


def test_a_failed_run_goes_on_where_it_stopped(pictures: Path, tmp_path: Path) -> None:
    first = Parrot(fail_after=1)
    with pytest.raises(RuntimeError, match="lights"):
        evaluate(TASKS["nlvr2"], first, pictures, tmp_path / "out", QUIET)
    second = Parrot()
    result = evaluate(TASKS["nlvr2"], second, pictures, tmp_path / "out", QUIET)
    assert (len(first.asked), len(second.asked)) == (1, 1)
    assert result["items"] == 2


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_run import Parrot, QUIET
from plait.evaluation.tasks import TASKS
from plait.evaluation.run import evaluate

class Mortal(Parrot):
    def generate(self, asks, decoding):
        if self.asked:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().generate(asks, decoding)

evaluate(TASKS["nlvr2"], Mortal(), Path({data!r}), Path({out!r}), QUIET)
"""


def test_a_killed_run_loses_no_answer(pictures: Path, tmp_path: Path) -> None:
    script = KILLED.format(tests=str(Path(__file__).parent), data=str(pictures), out=str(tmp_path / "out"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    with (tmp_path / "out" / "cache.jsonl").open("ab") as file:
        file.write(b'{"key": "torn')  # the kill may come in the middle of a line
    survivor = Parrot()
    evaluate(TASKS["nlvr2"], survivor, pictures, tmp_path / "out", QUIET)
    assert len(survivor.asked) == 1


def test_answers_of_another_model_are_refused(pictures: Path, tmp_path: Path) -> None:
    evaluate(TASKS["nlvr2"], Parrot(), pictures, tmp_path / "out", QUIET)
    other = Parrot()
    other.fingerprint = "1"
    with pytest.raises(ValueError, match="expected answers of the same model"):
        evaluate(TASKS["nlvr2"], other, pictures, tmp_path / "out", QUIET)


def test_a_damaged_cache_is_an_error(tmp_path: Path) -> None:
    with ResponseCache(tmp_path / "c.jsonl", {"a": 1}) as cache:
        cache.add({"k": "v"})
    (tmp_path / "c.jsonl").write_bytes((tmp_path / "c.jsonl").read_bytes() + b"nonsense\n")
    with pytest.raises(ValueError, match=r"c\.jsonl, line 3: expected JSON"):
        ResponseCache(tmp_path / "c.jsonl", {"a": 1})


def test_equal_questions_are_asked_once_and_a_short_batch_is_an_error() -> None:
    asked: list[Any] = []
    with ResponseCache(None, {}) as cache:
        found = collect({"a": 1, "b": 2}, lambda batch: asked.append(batch) or batch, cache, batch_size=5)
        assert (found, asked) == ({"a": 1, "b": 2}, [[1, 2]])
        collect({"b": 2, "c": 3}, lambda batch: asked.append(batch) or batch, cache, batch_size=5)
        assert asked == [[1, 2], [3]]
        with pytest.raises(ValueError, match="expected 1 answers of the model, got 0"):
            collect({"d": 4}, lambda batch: [], cache, batch_size=5)
    assert key_of("x", ["a"]) != key_of("x", ["b"])


def test_missing_media_are_listed_before_the_model_is_asked(pictures: Path, tmp_path: Path) -> None:
    (pictures / "test1-0-1-img0.png").unlink()
    parrot = Parrot()
    with pytest.raises(ValueError, match=r"got none for 1: test1-0-1-img0\.png; add them"):
        evaluate(TASKS["nlvr2"], parrot, pictures, tmp_path / "out", QUIET)
    assert parrot.asked == []
    skipping = Options(show_progress=False, skip_missing=True)
    result = evaluate(TASKS["nlvr2"], parrot, pictures, tmp_path / "out", skipping)
    assert result["failures"]["media missing"] == {"count": 1, "ids": ["test1-0-1-0"]}
    assert len(parrot.asked) == 1


def test_an_empty_reply_is_wrong_and_counted(pictures: Path, tmp_path: Path) -> None:
    result = evaluate(TASKS["nlvr2"], Parrot(reply=" "), pictures, tmp_path / "out", QUIET)
    assert result["score"] == 0
    assert result["failures"]["empty reply"]["count"] == 2
    assert result["failures"]["unreadable"]["count"] == 2


def test_the_result_says_what_was_asked_and_of_how_many(pictures: Path, tmp_path: Path) -> None:
    limited = Options(show_progress=False, limit=1)
    result = evaluate(TASKS["nlvr2"], Parrot(reply="Yes."), pictures, tmp_path / "out", limited)
    words = "There are two dogs in total. Is this statement true? Answer yes or no."
    assert result["prompt"] == f"[2] {words}"
    assert (result["items"], result["items_in_split"], result["limit"]) == (1, 2, 1)
    assert (result["score"], result["interval"]) == (100, [100, 100])
    assert words in (tmp_path / "out" / "result.html").read_text()


def test_predictions_are_scored_without_the_model(pictures: Path, tmp_path: Path) -> None:
    first = evaluate(TASKS["nlvr2"], Parrot(reply="no"), pictures, tmp_path / "out", QUIET)
    again = score_file(TASKS["nlvr2"], tmp_path / "out" / "predictions.jsonl", pictures, None, QUIET)
    assert again["score"] == first["score"] == 50
    assert again["model"] == first["model"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows + rows[:1], "expected every id once"),
        (lambda rows: rows[:1], "expected a prediction for every item, got none for 1: test1-0-1-0"),
        (lambda rows: [*rows, rows[0] | {"id": "else"}], "got the id 'else'"),
    ],
)
def test_predictions_with_wrong_ids_are_refused(change: Any, message: str, pictures: Path, tmp_path: Path) -> None:
    evaluate(TASKS["nlvr2"], Parrot(), pictures, tmp_path / "out", QUIET)
    path = tmp_path / "out" / "predictions.jsonl"
    rows = change([json.loads(line) for line in path.read_text().splitlines()])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ValueError, match=message):
        score_file(TASKS["nlvr2"], path, pictures, None, QUIET)


def test_two_results_are_compared_item_by_item(pictures: Path, tmp_path: Path) -> None:
    for name, reply in (("a", "yes"), ("b", "maybe")):
        evaluate(TASKS["nlvr2"], Parrot(reply=reply), pictures, tmp_path / name, QUIET)
    found = compare(tmp_path / "a" / "result.json", tmp_path / "b")
    assert found["scores"] == [50, 0]
    assert found["difference"] == 50
    assert found["interval"] == [0, 100]
    assert 0 < found["p_value"] <= 1
    assert "paired bootstrap over 2 units" in as_lines(found)


def test_results_of_other_items_do_not_compare(pictures: Path, tmp_path: Path) -> None:
    evaluate(TASKS["nlvr2"], Parrot(), pictures, tmp_path / "a", QUIET)
    evaluate(TASKS["nlvr2"], Parrot(), pictures, tmp_path / "b", Options(show_progress=False, limit=1))
    with pytest.raises(ValueError, match="expected results on the same items, got 1"):
        compare(tmp_path / "a", tmp_path / "b")


def test_media_are_found_in_other_folders_and_with_other_endings(tmp_path: Path) -> None:
    for name in ("clips/a.avi", "x/1/image.png", "y/2/image.png", "both/b.wav", "again/b.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    files = MediaFiles(tmp_path)
    assert files.find("a.mp4", "video") == tmp_path / "clips/a.avi"
    assert files.find("2/image.png", "image") == tmp_path / "y/2/image.png"
    assert files.find("gone.jpg", "image") is None
    assert MediaFiles(tmp_path, "clips/{stem}.avi").find("a.wav", "audio") == tmp_path / "clips/a.avi"
    with pytest.raises(ValueError, match=r"expected one file b\.wav"):
        files.find("b.wav", "audio")
    with pytest.raises(ValueError, match="expected a media name inside"):
        files.find("../secret.png", "image")


def test_an_animated_gif_is_a_video(tmp_path: Path) -> None:
    from whole_fixtures import video

    video(tmp_path / "a.gif")
    frames = frames_of(tmp_path / "a.gif", 2)
    assert [frame.mode for frame in frames] == ["RGB", "RGB"]
    assert not np.array_equal(np.asarray(frames[0]), np.asarray(frames[1]))
    (tmp_path / "b.gif").write_bytes(b"GIF89a and then nothing")
    with pytest.raises(ValueError, match="expected an animated picture"):
        frames_of(tmp_path / "b.gif", 2)


def test_the_command_lists_scores_and_compares(pictures: Path, tmp_path: Path, capsys: Any) -> None:
    command(listing=True)
    assert "mPLUG-Owl2 137.3 [readme]" in capsys.readouterr().out
    evaluate(TASKS["nlvr2"], Parrot(reply="yes"), pictures, tmp_path / "out", QUIET)
    command("nlvr2", data=pictures, predictions=tmp_path / "out" / "predictions.jsonl", as_json=True)
    assert json.loads(capsys.readouterr().out)["score"] == 50
    command("compare", str(tmp_path / "out"), other=str(tmp_path / "out"))
    assert "difference +0.00" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "nlvr2", "model": "m"}, "expected --data DIR"),
        ({"task": "nlvr2", "data": Path()}, "expected a model for nlvr2"),
        ({"task": "compare", "model": "a"}, "expected two results"),
        ({"task": "nlvr2", "data": Path(), "rule": "odd", "model": "m"}, "expected no --rule for nlvr2"),
        ({}, "expected a task, got none"),
    ],
)
def test_a_wrong_command_says_what_was_expected(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        command(**arguments)


class Terse(Asking):
    """A family with words, frames and lengths of its own."""

    num_frames = 3

    def prompt(self, kind: QuestionKind, item: Question) -> str:
        return f"{kind}? {item.question}"

    def decoding(self, kind: QuestionKind, medium: Modality) -> Decoding:
        return Decoding(max_new_tokens=7, num_beams=4)


class TerseParrot(Parrot):
    """Remembers with how many pictures and with which decoding it was asked."""

    asking = Terse()

    def __init__(self) -> None:
        super().__init__(reply="x")
        self.seen: list[tuple[int, Decoding]] = []

    def generate(self, asks: Sequence[Ask], decoding: Decoding) -> list[str]:
        self.seen += [(len(ask.images) + len(ask.video), decoding) for ask in asks]
        return super().generate(asks, decoding)


def test_words_frames_and_decoding_are_the_familys_and_the_result_says_so(tmp_path: Path) -> None:
    data, split = fixture(TASKS["msvd_qa"], "msvd_qa", tmp_path / "data")
    parrot, quiet = TerseParrot(), Options(split=split, show_progress=False)
    result = evaluate(TASKS["msvd_qa"], parrot, data, tmp_path / "out", quiet)
    used = {"max_new_tokens": 7, "min_new_tokens": 1, "num_beams": 4, "length_penalty": 1.0}
    assert set(parrot.seen) == {(3, Decoding(**used))}
    assert result["model"]["decoding"] == used
    assert (result["model"]["kind"], result["model"]["num_frames"]) == ("short", 3)
    assert result["prompt"].startswith("[3] short? ")
    page = (tmp_path / "out" / "result.html").read_text()
    assert "max_new_tokens 7" in page and "num_beams 4" in page and result["prompt"] in html.unescape(page)
    told = Options(split=split, show_progress=False, num_frames=2, decoding=Decoding(max_new_tokens=5))
    other = evaluate(TASKS["msvd_qa"], parrot, data, tmp_path / "other", told)
    assert (other["model"]["num_frames"], other["model"]["decoding"]["max_new_tokens"]) == (2, 5)
    assert parrot.seen[-1] == (2, Decoding(max_new_tokens=5))


def test_methods_without_words_use_no_decoding() -> None:
    model = SimpleNamespace(name="e", capabilities=("embed",))
    assert used_by(TASKS["coco_retrieval"], model, Options()) == {"method": "retrieve"}


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_says_no_number_is_stopped(value: float, tmp_path: Path) -> None:
    data, split = fixture(TASKS["imagenet"], "imagenet", tmp_path / "data")
    head = SimpleNamespace(name="h", family="h", fingerprint="0", capabilities=("classify",))
    head.scores = lambda batch: np.full((len(batch), 4), value)
    with pytest.raises(ValueError, match=r"expected finite scores of item .*, got (NaN|inf)"):
        evaluate(TASKS["imagenet"], head, data, None, Options(split=split, show_progress=False))
    embedder = SimpleNamespace(name="e", family="e", fingerprint="0", capabilities=("embed",))
    embedder.embed = lambda batch: np.full((len(batch), 4), value)
    data, split = fixture(TASKS["coco_retrieval"], "coco_karpathy_official", tmp_path / "captions")
    with pytest.raises(ValueError, match=r"expected finite vectors of media, got (NaN|inf)"):
        evaluate(TASKS["coco_retrieval"], embedder, data, None, Options(split=split, show_progress=False))


def test_the_page_escapes_everything(pictures: Path, tmp_path: Path) -> None:
    reply = "<script>alert(1)</script>"
    result = evaluate(TASKS["nlvr2"], Parrot(reply=reply), pictures, tmp_path / "out", QUIET)
    page = (tmp_path / "out" / "result.html").read_text()
    assert reply not in page
    assert "&lt;script&gt;alert(1)" in page
    assert result["about"] in html.unescape(page)


def tables(page: Path) -> list[list[list[str]]]:
    """The cells of every table of a page."""
    text = page.read_text()
    rows = [re.findall(r"<tr>(.*?)</tr>", table, re.S) for table in re.findall(r"<table.*?</table>", text, re.S)]
    cells = [[re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.S) for row in table] for table in rows]
    return [[[html.unescape(re.sub(r"<.*?>", "", cell)) for cell in row] for row in table] for table in cells]


def test_the_page_tells_which_class_was_taken_for_which_and_shows_both_kinds_of_examples(tmp_path: Path) -> None:
    data, split = fixture(TASKS["imagenet"], "imagenet", tmp_path / "data")
    options = Options(split=split, show_progress=False)
    items = load_items(TASKS["imagenet"], data, options).items
    wrong = items[0]
    other = next(item for item in items if item.label != wrong.label)
    head = SimpleNamespace(name="h", family="h", fingerprint="0", capabilities=("classify",))
    width = max(int(item.label) for item in items) + 1
    labels = iter([other.label, *(item.label for item in items[1:])])
    head.scores = lambda batch: np.stack([np.eye(width)[int(next(labels))] for _ in batch])
    evaluate(TASKS["imagenet"], head, data, tmp_path / "out", options)
    found = tables(tmp_path / "out" / "result.html")
    table = next(one for one in found if one[0][0] == "is, said:")
    counted = {(row[0], name): cell for row in table[1:] for name, cell in zip(table[0][1:], row[1:], strict=True)}
    assert counted[wrong.label_name, other.label_name] == "1"
    rights = Counter(item.label_name for item in items[1:])
    assert {name: int(counted[name, name] or 0) for name in rights} == rights
    wrongs, right = [one[1:] for one in found if one[0] == ["row", "is", "said"]]
    assert wrongs == [[wrong.id, wrong.label_name, other.label_name]]
    assert {row[0] for row in right} <= {item.id for item in items[1:]} and all(row[1] == row[2] for row in right)
    page = html.unescape((tmp_path / "out" / "result.html").read_text())
    assert f"plait eval imagenet h --data {data} --split {split}" in page


def test_a_page_of_many_classes_lists_the_commonest_mistakes() -> None:
    rows = [{"id": str(n), "right": [f"c{n}"], "said": f"c{n}"} for n in range(40)]
    rows += [{"id": f"x{n}", "right": ["c1"], "said": "c2"} for n in range(3)] + [
        {"id": "y", "right": ["c5"], "said": "c6"}
    ]
    page = said_section({"task": "classify", "said": rows})
    assert page.index("<td>c1</td><td>c2</td><td>3</td>") < page.index("<td>c5</td><td>c6</td><td>1</td>")
    assert "is, said:" not in page


def test_words_count_as_right_as_their_rule_says() -> None:
    """Half a point is no mistake: right and wrong follow the score of an item and no comparison of strings."""
    item = Item(id="a", question="what?", answers=["red", "red", "dark red"])
    said = [{"id": "a", "prediction": "Red."}]
    assert said_of([item], said, {"a": 0.6})[0]["is_right"] and not said_of([item], said, {"a": 0.0})[0]["is_right"]
    chosen = Item(id="b", choices=["x", "y"], answer_index=1)
    assert said_of([chosen], [{"id": "b", "prediction": 0}], {"b": 0.0}) == [
        {"id": "b", "right": ["y"], "said": "x", "is_right": False}
    ]
    assert said_of([chosen], [{"id": "b", "prediction": None}], {"b": 0.0}) == []
