"""The official files of a benchmark are rows to train on; `tests/recipes/test_benchmark_rows.py` trains on them."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from whole_fixtures import fixture, picture, sound

from plait.cli import main
from plait.errors import UsageError
from plait.evaluation.base import LAYOUTS
from plait.evaluation.manifests import Splits, apart, rows_of
from plait.evaluation.tasks import TASKS, read
from plait.types import Sample

LEARNABLE = [
    name
    for name, task in TASKS.items()
    if not {"segment", "detect", "similarity"} & set(task.methods.values()) and not name.startswith("mini_")
]
NO_ANSWERS = ("owl_eval",)


def twice(name: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, str]:
    """A fixture whose reader gives the split `train` too: the same items under other ids, words and pictures."""
    task = TASKS[name]
    layout = task.layouts[0]
    data, split = fixture(task, layout, place)
    reader = LAYOUTS[layout]
    held_out, source, _ = read(data, (layout,), split)

    def renamed(file: Any, prefix: str = "other") -> Any:
        if not isinstance(file, str):
            return file
        found = next(iter(data.rglob(f"{Path(file).stem}.*")), None) or next(data.rglob(Path(file).name))
        other = found.with_name(f"{prefix}-{found.name}")
        if not other.exists():  # other bytes, the same picture or sound
            shutil.copy(found, other)
            with other.open("ab") as end:
                end.write(prefix.encode())
        return other.name

    first = held_out[0]
    if first.label is not None and len({item.label for item in held_out}) == 1 and "classes" in first.meta:
        label, name = next((n, word) for n, word in first.meta["classes"].items() if n != first.label)
        media = {kind: renamed(getattr(first, kind), "second") for kind in ("image", "video", "audio")}
        held_out.append(replace(first, id="second", label=label, label_name=name, **media))

    def find(root: Path, asked: str) -> Any:
        return replace(source, split=asked)

    def function(found: Any) -> Any:
        if found.split == split:
            return held_out
        trained = [
            replace(
                item,
                image=renamed(item.image),
                images=None if item.images is None else [renamed(one) for one in item.images],
                video=renamed(item.video),
                audio=renamed(item.audio),
                text=None if item.text is None else f"{item.text} again",
                question=None if item.question is None else f"{item.question} again",
            )
            for item in held_out
        ]
        classes = trained[0].meta.get("classes", {})
        more = [replace(trained[0], id=f"more-{n}", label=n, label_name=classes[n]) for n in list(classes)[:2]]
        return trained + (more if trained[0].label is not None else [])

    changed = replace(reader, function=function)
    object.__setattr__(changed, "find", find)
    monkeypatch.setitem(LAYOUTS, layout, changed)
    return data, split


@pytest.mark.parametrize("name", [name for name in LEARNABLE if name not in (*NO_ANSWERS, "esc50")])
def test_every_benchmark_with_answers_becomes_rows(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, split = twice(name, tmp_path / "data", monkeypatch)
    rows, _ = rows_of(TASKS[name], data, tmp_path / "out", Splits("train", split))
    items = read(data, TASKS[name].layouts[:1], split)[0]
    tests = [row for row in rows if row.split == "test"]
    assert len(rows) >= 2 * len(tests) > 0 and len({row.id for row in rows}) == len(rows)
    by_id = {f"test/{item.id}": item for item in items}
    for row in tests:
        item = by_id[row.id]
        assert (row.question, row.text, row.captions, row.boxes) == (
            item.question, item.text, item.captions, item.boxes
        )  # fmt: skip
        if item.answers:
            assert row.answers == item.answers
        elif item.answer_index is not None:
            assert row.answers == [item.choices[item.answer_index]] and row.meta["choices"] == item.choices
        if item.label_name is not None:
            assert row.label == item.label_name
        assert (row.meta.get("labels") is None) == (item.labels is None)
        named = [row.image, row.video, row.audio, *row.meta.get("images", [])]
        assert len([one for one in named if one]) == len(item.media(TASKS[name].seen))
        assert all(Path(one).is_file() for one in named if one)


def test_folds_are_the_splits_where_a_benchmark_has_no_others(tmp_path: Path) -> None:
    data, split = fixture(TASKS["esc50"], "esc50", tmp_path / "data")
    items = read(data, ("esc50",), split)[0]
    folds = {item.id: item.meta["fold"] for item in items}
    if set(folds.values()) == {1}:
        with pytest.raises(ValueError, match="expected items"):
            rows_of(TASKS["esc50"], data, tmp_path / "out", Splits())
        return
    rows, _ = rows_of(TASKS["esc50"], data, tmp_path / "out", Splits())
    assert {row.id: row.split for row in rows} == {
        f"{'test' if fold == 1 else 'train'}/{name}": "test" if fold == 1 else "train" for name, fold in folds.items()
    }


def test_any_fold_can_be_held_out(tmp_path: Path) -> None:
    (tmp_path / "meta").mkdir()
    (tmp_path / "audio").mkdir()
    lines = ["filename,fold,target,category,esc10,src_file,take"]
    for fold in (1, 2, 3):
        for label, name in enumerate(("dog", "rain")):
            sound(tmp_path / "audio" / f"{fold}-{name}.wav")
            lines.append(f"{fold}-{name}.wav,{fold},{label},{name},False,1,A")
    (tmp_path / "meta" / "esc50.csv").write_text("\n".join(lines) + "\n")
    for test, fold in ((None, "1"), ("3", "3")):
        rows, _ = rows_of(TASKS["esc50"], tmp_path, tmp_path / "out", Splits(test=test))
        assert {row.id for row in rows if row.split == "test"} == {f"test/{fold}-dog", f"test/{fold}-rain"}
        assert len(rows) == 6
    with pytest.raises(ValueError, match="expected items with answers in split '9'"):
        rows_of(TASKS["esc50"], tmp_path, tmp_path / "out", Splits(test="9"))


def test_scored_answers_of_the_releases_tables_are_kept(tmp_path: Path) -> None:
    data, _ = fixture(TASKS["vqav2"], "one_peace_vqa", tmp_path / "data")
    held_out = read(data, ("one_peace_vqa",), "val")[0]
    lines = (data / "vqa_val.tsv").read_text().splitlines(keepends=True)
    (data / "vqa_train.tsv").write_text("".join([lines[0], *(line.replace("is it", "was it") for line in lines[1:])]))
    rows, _ = rows_of(TASKS["vqav2"], data, tmp_path / "out", Splits())
    found = {row.id: row for row in rows}
    assert len(rows) == 2 * len(held_out) > 0
    for item in held_out:
        scores = {answer: score for answer, _, score in item.meta["targets"]}
        assert found[f"test/{item.id}"].meta["answer_scores"] == scores
        assert scores[(found[f"test/{item.id}"].answers or [""])[0]] == max(scores.values())


def test_classes_that_one_split_counts_are_named_by_the_other(tmp_path: Path) -> None:
    for name in ("train/n1/1.png", "train/n2/2.png", "val/a.png", "val/b.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        picture(tmp_path / name)
    (tmp_path / "val.txt").write_text("a.png 0\nb.png 1\n")
    for names in (("n1", "n2"), ("red", "blue")):
        rows, _ = rows_of(TASKS["imagenet"], tmp_path, tmp_path / "out", Splits())
        assert {row.id: row.label for row in rows if row.split == "test"} == {"test/a": names[0], "test/b": names[1]}
        assert {row.label for row in rows if row.split == "train"} == set(names)
        (tmp_path / "classes.txt").write_text("n1 red\nn2 blue\n")


def row(name: str, split: str, image: Path | None = None, **words: Any) -> Sample:
    return Sample(name, image=None if image is None else str(image), split=split, **words)


def test_what_is_measured_is_not_trained_on(tmp_path: Path) -> None:
    first, copy, other = (tmp_path / name for name in ("a.png", "copy.png", "b.png"))
    first.write_bytes(b"one picture"), copy.write_bytes(b"one picture"), other.write_bytes(b"another one")
    for leak in (first, copy):  # by its name, and by its bytes
        captioned = [row("t", "train", first, captions=["x"]), row("v", "test", leak, captions=["y"])]
        with pytest.raises(ValueError, match="share no item, got 1 in both, the first v and t"):
            apart(captioned)
        asked = [row("t", "train", first, question="who?"), row("v", "test", leak, question="who?")]
        with pytest.raises(ValueError, match="share no item"):
            apart(asked)
        others = [row("t", "train", first, question="who?"), row("v", "test", leak, question="where?")]
        assert apart(others) == (others, ["1 files are in both splits, with other questions"])
    fine = [row("t", "train", first, captions=["x"]), row("v", "test", other, captions=["x"])]
    assert apart(fine) == (fine, [])
    words = [
        row("t", "train", text="it rained"),
        row("u", "train", text="it snowed"),
        row("v", "test", text="it rained"),
    ]
    assert apart(words) == (words[1:], ["left out 1 training rows whose words are those of a test row"])
    two = [
        row("t", "train", text="dogs", meta={"images": [str(first), str(other)]}),
        row("v", "test", text="dogs", meta={"images": [str(copy), str(other)]}),
    ]
    with pytest.raises(ValueError, match="share no item"):
        apart(two)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("coco_detection", "--set task=detect"),
        ("ade20k", "--set task=segment"),
        ("glue_stsb", "degrees of likeness"),
    ],
)
def test_what_needs_no_rows_or_has_none_is_told(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        rows_of(TASKS[name], tmp_path, tmp_path, Splits())


def test_wrong_inputs_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, _ = fixture(TASKS["vqav2"], "vqav2", tmp_path / "data")
    for words, said in (
        (["vqav3", str(data)], "expected a task"),
        (["vqav2", str(tmp_path / "none")], "expected a data set directory"),
        (["vqav2", str(data)], "found none for split 'train'"),
        (["vqav2", str(data), "--train", "val", "--test", "val"], "expected two splits"),
        (["vqav2", str(data), "--train", "val"], "share no item"),
    ):
        assert main(["data", "from-benchmark", *words, str(tmp_path / "out")]) in (1, 2)
        error = capsys.readouterr().err
        assert said in error and error.count("\n") == 1, error
    assert not (tmp_path / "out" / "manifest.jsonl").exists()
    for path in data.rglob("*.jpg"):
        path.unlink()
    assert main(["data", "from-benchmark", "vqav2", str(data), str(tmp_path / "out"), "--train", "val"]) == 1
    assert "expected the media of split train" in capsys.readouterr().err
