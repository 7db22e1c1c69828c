"""Official files of both splits -> a manifest -> each published finetuning, in two commands."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image, ImageDraw

from plait.cli import main

from .tiny_world import COLOURS, write_clip

NAMES = ("red", "blue")
SPLITS = {"train": 3, "test": 1}
"""Items of each colour; the pictures, sounds and clips of all differ."""


def _picture(path: Path, colour: str, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.new("RGB", (60, 48), "white")
    ImageDraw.Draw(picture).rectangle([6, 4 + number, 40, 30 + number], fill=COLOURS[colour])
    picture.save(path)
    return path.name


def _sound(path: Path, colour: str, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    wave = 0.5 * np.sin(np.arange(16000) * (0.02 + 0.03 * NAMES.index(colour)) * (1 + number))
    soundfile.write(path, wave.astype(np.float32), 16000)
    return path.stem


def _clip(path: Path, colour: str, number: int) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    frames = [np.full((16, 16, 3), [x * (k + number) // 20 for x in COLOURS[colour]], np.uint8) for k in range(6)]
    write_clip(path.with_suffix(".mkv"), frames)
    path.with_suffix(".mkv").rename(path)  # readers go by content
    return path.stem


def _each(split: str) -> list[tuple[int, str]]:
    """(number, colour) of the items of a split; no number is in two splits."""
    first = 0 if split == "train" else SPLITS["train"]
    return [(first + i, colour) for i in range(SPLITS[split]) for colour in NAMES]


def _table(path: Path, rows: list[list[Any]], delimiter: str = ",") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)


def _lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def coco(root: Path) -> None:
    images = [
        {
            "cocoid": 10 * n + NAMES.index(c), "imgid": 10 * n + NAMES.index(c), "filepath": "val2014",
            "filename": _picture(root / "val2014" / f"{c}-{n}.png", c, n), "split": split,
            "sentences": [{"raw": f"a {c} box"}, {"raw": f"{c} thing"}],
        }
        for split in SPLITS for n, c in _each(split)
    ]  # fmt: skip
    for name in ("dataset_coco.json", "dataset_flickr30k.json"):
        (root / name).write_text(json.dumps({"images": images, "dataset": "coco"}))


def vqav2(root: Path) -> None:
    for split, year in (("train", "train2014"), ("test", "val2014")):
        questions, annotations = [], []
        for n, c in _each(split):
            ident = 10 * n + NAMES.index(c)
            _picture(root / year / f"COCO_{year}_{ident:012d}.jpg", c, n)
            shared = {"image_id": ident, "question_id": 10 * ident}
            questions.append({**shared, "question": "which colour?"})
            said = [{"answer": c, "answer_id": i, "answer_confidence": "yes"} for i in range(9)]
            other = {"answer": "dark", "answer_id": 9, "answer_confidence": "no"}
            kinds = {"question_type": "which", "answer_type": "other", "multiple_choice_answer": c}
            annotations.append({**shared, **kinds, "answers": [*said, other]})
        head = {"data_subtype": year, "data_type": "mscoco", "task_type": "Open-Ended"}
        (root / f"v2_OpenEnded_mscoco_{year}_questions.json").write_text(json.dumps({**head, "questions": questions}))
        (root / f"v2_mscoco_{year}_annotations.json").write_text(json.dumps({**head, "annotations": annotations}))


def nlvr2(root: Path) -> None:
    for file, split in (("train", "train"), ("test1", "test")):
        rows = []
        for n, c in _each(split):
            stem = f"{file}-{n}-{NAMES.index(c)}"
            for i, shown in enumerate((c, "red")):
                _picture(root / f"{stem}-img{i}.png", shown, 10 * n + 2 * i + NAMES.index(c))
            label = "True" if c == "red" else "False"
            rows.append({"identifier": f"{stem}-0", "sentence": "both are red", "label": label})
        _lines(root / f"{file}.json", rows)


def refcoco(root: Path) -> None:
    refs, images, annotations = [], [], []
    for split, name in (("train", "train"), ("test", "testA")):
        for n, c in _each(split):
            ident = 10 * n + NAMES.index(c)
            file = _picture(root / "images" / f"{c}-{n}.png", c, n)
            images.append({"id": ident, "file_name": file, "width": 60, "height": 48})
            annotations.append({"id": ident, "image_id": ident, "bbox": [6, 4 + n, 34, 26], "category_id": 1})
            sentences = [{"sent_id": ident, "sent": f"the {c} box"}]
            refs.append({"ref_id": ident, "ann_id": ident, "image_id": ident, "split": name, "sentences": sentences})
    (root / "refs(unc).p").write_bytes(pickle.dumps(refs))
    categories = [{"id": 1, "name": "box"}]
    whole = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(whole))


def avqa(root: Path) -> None:
    for file, split in (("train", "train"), ("val", "test")):
        rows = [
            {
                "id": 10 * n + NAMES.index(c), "video_name": _sound(root / "sounds" / f"{c}-{n}.wav", c, n),
                "question_text": "what is it?", "multi_choice": list(NAMES), "answer": NAMES.index(c),
                "question_type": "Which",
            }
            for n, c in _each(split)
        ]  # fmt: skip
        (root / f"{file}_qa.json").write_text(json.dumps(rows))


def fsd50k(root: Path) -> None:
    _table(root / "vocabulary.csv", [[i, name, f"/m/{i}"] for i, name in enumerate((*NAMES, "tone"))])
    for folder, split in (("dev", "train"), ("eval", "test")):
        rows: list[list[Any]] = [["fname", "labels", "mids", *(["split"] if folder == "dev" else [])]]
        for n, c in _each(split):
            ident = 10 * n + NAMES.index(c)
            _sound(root / f"FSD50K.{folder}_audio" / f"{ident}.wav", c, n)
            labels, mids = f"{c},tone", f"/m/{NAMES.index(c)},/m/2"
            rows.append([ident, labels, mids, *(["train"] if folder == "dev" else [])])
        _table(root / f"{folder}.csv", rows)


def vggsound(root: Path) -> None:
    rows = []
    for split in SPLITS:
        for n, c in _each(split):
            _sound(root / "clips" / f"{c}_{n:06d}.wav", c, n)
            rows.append([c, n, c, split])
    _table(root / "vggsound.csv", rows)


def audiocaps(root: Path) -> None:
    for split in SPLITS:
        rows: list[list[Any]] = [["audiocap_id", "youtube_id", "start_time", "caption"]]
        for n, c in _each(split):
            _sound(root / "clips" / f"{c}_{n}.wav", c, n)
            rows.append([10 * n + NAMES.index(c), c, n, f"a {c} sound"])
        _table(root / f"{split}.csv", rows)


def imagenet(root: Path) -> None:
    for folder, split in (("train", "train"), ("val", "test")):
        for n, c in _each(split):
            _picture(root / folder / f"n{NAMES.index(c):08d}" / f"{c}-{n}.png", c, n)
    (root / "classes.txt").write_text("".join(f"n{i:08d} {name}, paint\n" for i, name in enumerate(NAMES)))


def kinetics(root: Path) -> None:
    for file, split in (("train", "train"), ("validate", "test")):
        rows: list[list[Any]] = [["label", "youtube_id", "time_start", "time_end", "split"]]
        for n, c in _each(split):
            _clip(root / "clips" / f"{c}{n}_{n:06d}_{n + 10:06d}.mp4", c, n)
            rows.append([c, f"{c}{n}", n, n + 10, file])
        _table(root / f"{file}.csv", rows)


def msrvtt(root: Path) -> None:
    videos, sentences = [], []
    for split in SPLITS:
        for n, c in _each(split):
            name = _clip(root / "clips" / f"video{10 * n + NAMES.index(c)}.mp4", c, n)
            videos.append({"video_id": name, "split": split, "category": 0})
            sentences += [{"sen_id": len(sentences), "video_id": name, "caption": f"a {c} clip"}]
        qa = [
            {"id": n * 10 + i, "video_id": 10 * n + NAMES.index(c), "category_id": 0, "question": "which colour?",
             "answer": c}
            for i, (n, c) in enumerate(_each(split))
        ]  # fmt: skip
        (root / f"{split}_qa.json").write_text(json.dumps(qa))
    (root / "videodatainfo.json").write_text(json.dumps({"videos": videos, "sentences": sentences}))
    told = [[f"ret{n}", "msr", f"video{10 * n + NAMES.index(c)}", f"a {c} clip"] for n, c in _each("test")]
    told = [[f"{row[0]}-{i}", *row[1:]] for i, row in enumerate(told)]
    _table(root / "MSRVTT_JSFUSION_test.csv", [["key", "vid_key", "video_id", "sentence"], *told])


def snli_ve(root: Path) -> None:
    for split in SPLITS:
        rows = [
            {
                "pairID": f"{split}{n}{c}", "Flickr30K_ID": Path(_picture(root / "flickr" / f"{n}{c}.jpg", c, n)).stem,
                "sentence2": "it is red", "gold_label": "entailment" if c == "red" else "contradiction",
            }
            for n, c in _each(split)
        ]  # fmt: skip
        _lines(root / f"snli_ve_{split}.jsonl", rows)


def sst2(root: Path) -> None:
    for file, split in (("train", "train"), ("dev", "test")):
        rows = [[f"the {c} thing {n}", NAMES.index(c)] for n, c in _each(split)]
        _table(root / "SST-2" / f"{file}.tsv", [["sentence", "label"], *rows], "\t")


Run = tuple[Callable[[Path], None], str, list[str], str, dict[str, str]]
ONE_PEACE: dict[str, Run] = {
    "COCO": (coco, "coco_retrieval", [], "retrieval", {"benchmark": "coco"}),
    "Flickr30k": (coco, "flickr30k_retrieval", [], "retrieval", {"benchmark": "flickr30k"}),
    "AudioCaps": (audiocaps, "audiocaps_retrieval", [], "retrieval", {}),
    "VQA": (vqav2, "vqav2", [], "vqa", {}),
    "NLVR2": (nlvr2, "nlvr2", [], "compare", {}),
    "RefCOCO": (refcoco, "refcoco", [], "ground", {"benchmark": "refcoco"}),
    "audio QA": (avqa, "avqa", [], "audio_qa", {}),
    "FSD50K": (fsd50k, "fsd50k", [], "tag", {}),
    "VGGSound": (vggsound, "vggsound", [], "classify", {}),
    "ImageNet": (imagenet, "imagenet", [], "classify", {}),
    "Kinetics": (kinetics, "kinetics400", [], "classify", {}),
}
MPLUG2: dict[str, Run] = {
    "caption": (coco, "coco_caption", [], "caption", {}),
    "video caption": (msrvtt, "msrvtt_caption", [], "caption", {}),
    "video retrieval": (msrvtt, "msrvtt_retrieval", ["--train", "msrvtt_caption:train"], "retrieval", {}),
    "VQA": (vqav2, "vqav2", [], "vqa", {}),
    "video QA": (msrvtt, "msrvtt_qa", [], "vqa", {}),
    "RefCOCO": (refcoco, "refcoco", [], "ground", {}),
    "SNLI-VE": (snli_ve, "snli_ve", [], "classify", {}),
    "Kinetics": (kinetics, "kinetics400", [], "classify", {}),
    "SST-2": (sst2, "glue_sst2", [], "classify", {"medium": "text"}),
}
"""Setting -> writer of the files, task of `plait eval`, options, task of `plait train finetune`, its settings."""


def _walk(run: Run, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], **more: str) -> dict[str, Any]:
    write, name, options, task, settings = run
    (tmp_path / "files").mkdir()
    write(tmp_path / "files")
    said = main(["data", "from-benchmark", name, str(tmp_path / "files"), str(tmp_path / "rows"), *options])
    shown = capsys.readouterr()
    assert not said and f"train {2 * SPLITS['train']}, test {2 * SPLITS['test']}\n" in shown.out, shown
    given = {"model": model, "data": tmp_path / "rows", "task": task, "steps": 1, "batch_size": 4, **settings, **more}
    words = [word for key, value in given.items() for word in ("--set", f"{key}={value}")]
    said = main(["train", "finetune", *words, "--out", str(tmp_path / "run"), "--device", "cpu"])
    assert not said, capsys.readouterr().err
    return json.loads((tmp_path / "run" / "finetune.json").read_text())


@pytest.mark.parametrize("setting", ONE_PEACE)
def test_a_published_finetuning_of_one_peace_is_two_commands(
    setting: str, world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _walk(ONE_PEACE[setting], world[1] / "one_peace", tmp_path, capsys, published="true")
    assert found["rows"] == {"train": 2 * SPLITS["train"], "test": 2 * SPLITS["test"]}
    assert 0 <= found["after"]["value"] <= 1


@pytest.mark.parametrize("setting", MPLUG2)
def test_a_finetuning_of_mplug2_is_two_commands(
    setting: str, world: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = _walk(MPLUG2[setting], world[1] / "mplug2", tmp_path, capsys)
    assert found["rows"] == {"train": 2 * SPLITS["train"], "test": 2 * SPLITS["test"]}
