"""Readers find the files of a data set, and say in one line what is wrong with them."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest

from plait.evaluation.base import LAYOUTS, Item, Source
from plait.evaluation.tasks import read

FORMATS = Path(__file__).parents[2] / "goldens" / "formats"


@pytest.fixture
def copy(tmp_path: Path) -> Any:
    """A function that copies a fixture, to be damaged."""
    return lambda name: Path(shutil.copytree(FORMATS / name, tmp_path / name))


def change(path: Path, edit: Any) -> None:
    """Let `edit` change the decoded content of a JSON file."""
    document = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(edit(document) or document), encoding="utf-8")


def message(root: Path, layout: str, split: str) -> str:
    """The one line that reading raises."""
    with pytest.raises(ValueError) as caught:
        read(root, (layout,), split)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "layouts", "split", "count"),
    [
        ("vqav2", ("vqav2",), "val", 3),
        ("coco_karpathy_official", ("owl2_captions", "coco_karpathy_official"), "train", 1),
        ("mmlu", ("mmlu",), "test", 2),
        ("kinetics", ("kinetics",), "val", 3),
        ("imagenet", ("imagenet_folder",), "val", 2),
        ("refcoco", ("refcoco",), "testA", 2),
        ("nlvr2_official", ("nlvr2_official",), "test-P", 2),
        ("glue", ("glue_mnli",), "dev", 1),
        ("msrvtt_captions", ("msrvtt_captions",), "val", 1),
        ("one_peace_vqa", ("one_peace_vqa",), "val", 2),
    ],
)
def test_files_are_found_by_their_published_names(name: str, layouts: tuple[str, ...], split: str, count: int) -> None:
    items, _, layout = read(FORMATS / name, layouts, split)
    assert len(items) == count
    assert layout == layouts[-1]


def test_a_missing_file_is_named_with_every_layout_that_was_tried(tmp_path: Path) -> None:
    found = message(tmp_path, "vqav2", "val")
    assert "v2_OpenEnded_mscoco_val2014*questions.json" in found
    assert "(vqav2)" in found


def test_a_missing_field_is_an_error_with_file_and_row(copy: Any) -> None:
    root = copy("vizwiz")
    change(root / "val.json", lambda rows: rows[1].pop("question") and None)
    found = message(root, "vizwiz", "val")
    assert "val.json, row 2: expected field 'question', got the fields image, answers" in found


def test_an_unknown_id_is_an_error_with_file_and_row(copy: Any) -> None:
    root = copy("coco_captions")
    change(root / "captions_val2014.json", lambda d: d["annotations"][3].update(image_id=9))
    assert "captions_val2014.json, annotations, row 4" in message(root, "coco_captions", "val")


def test_an_annotation_of_an_unknown_question_is_an_error(copy: Any) -> None:
    root = copy("vqav2")
    change(root / "v2_mscoco_val2014_annotations.json", lambda d: d["annotations"][1].update(question_id=1))
    assert "annotations, row 2: expected an id of v2_OpenEnded" in message(root, "vqav2", "val")


def test_a_question_without_answers_is_an_error_unless_the_split_has_none(copy: Any) -> None:
    root = copy("vqav2")
    change(root / "v2_mscoco_val2014_annotations.json", lambda d: d["annotations"].pop() and None)
    assert "expected answers to every question, got none for question_id 700000" in message(root, "vqav2", "val")
    (root / "v2_mscoco_val2014_annotations.json").unlink()
    assert [item.answers for item in read(root, ("vqav2",), "val")[0]] == [None] * 3


def test_a_wrong_number_of_columns_is_an_error_with_its_line(copy: Any) -> None:
    root = copy("audiocaps")
    (root / "test.csv").write_text("audiocap_id,youtube_id,start_time,caption\n900,a,30\n")
    assert message(root, "audiocaps", "test").startswith("test.csv, line 2: expected 4 columns")


def test_a_wrong_type_is_an_error_with_field_and_content(copy: Any) -> None:
    root = copy("esc50")
    path = root / "meta" / "esc50.csv"
    path.write_text(path.read_text().replace(",10,rain", ",ten,rain"))
    assert "esc50.csv, line 3: expected a whole number in field 'target', got 'ten'" in message(root, "esc50", "all")


def test_broken_json_lines_name_their_line(copy: Any) -> None:
    root = copy("pope")
    path = root / "coco_pope_random.json"
    path.write_text(path.read_text() + "{broken\n")
    assert message(root, "pope", "random").startswith("coco_pope_random.json, line 3: expected JSON")


def test_an_id_that_comes_twice_is_an_error(copy: Any) -> None:
    root = copy("vizwiz")
    change(root / "val.json", lambda rows: rows + rows[:1])
    assert "expected every id once, got 'VizWiz_val_00000700' twice" in message(root, "vizwiz", "val")


def test_an_answer_outside_the_options_is_an_error(copy: Any) -> None:
    root = copy("q_bench")
    change(root / "llvisionqa_dev.json", lambda rows: rows[0].update(correct_ans="Perhaps"))
    assert "llvisionqa_dev.json, row 1: expected one of Yes, No in field 'correct_ans'" in message(
        root, "q_bench", "dev"
    )


def test_options_that_are_a_program_are_refused(copy: Any) -> None:
    root = copy("mmmu")
    path = root / "validation.jsonl"
    path.write_text(path.read_text().replace('"[]"', '"__import__(1)"'))
    assert "line 2: expected the text of a list in field 'options'" in message(root, "mmmu", "val")


def test_a_pickle_with_a_program_in_it_is_refused(copy: Any) -> None:
    root = copy("refcoco")

    class Program:
        def __reduce__(self) -> tuple[Any, ...]:
            return (print, ("it ran",))

    (root / "refs(unc).p").write_bytes(pickle.dumps([Program()]))
    assert "expected a record" in message(root, "refcoco", "all") or "refs(unc).p" in message(root, "refcoco", "all")


def test_a_rotated_row_follows_the_index_to_its_picture(copy: Any) -> None:
    root = copy("mmbench")
    path = root / "mmbench_dev_20230712.tsv"
    lines = path.read_text().splitlines()
    cells = lines[2].split("\t")
    cells[9] = "241"
    lines[2] = "\t".join(cells)
    path.write_text("\n".join(lines) + "\n")
    first, second, _ = read(root, ("mmbench",), "dev")[0]
    assert isinstance(first.image, bytes)
    assert first.image == second.image


def test_a_mask_without_its_picture_is_an_error(copy: Any) -> None:
    root = copy("ade20k")
    (root / "images/validation/ADE_val_00000700.png").unlink()
    assert "ADE_val_00000700.png: expected a picture" in message(root, "ade20k", "val")


def test_a_list_of_clips_must_know_its_clips(copy: Any) -> None:
    root = copy("msvd_captions")
    (root / "test_list.txt").write_text("clip1_1_11\nclip9\n")
    assert "test_list.txt, row 2: expected a name of AllVideoDescriptions.txt" in message(root, "msvd_captions", "test")


def test_mme_counts_two_questions_of_one_picture_and_knows_its_folders(tmp_path: Path) -> None:
    (tmp_path / "landmark.txt").write_text("a.jpg\tIs it?\tYes\na.jpg\tIs it not?\tNo\tno\n")
    items, _, _ = read(tmp_path, ("mme",), "all")
    assert [item.id for item in items] == ["landmark/a.jpg/0", "landmark/a.jpg/1"]
    assert items[0].image == "landmark/images/a.jpg"
    assert items[1].meta["prediction"] == "no"


def test_every_layout_is_covered_by_a_fixture() -> None:
    apart = {
        "plait_mini_pictures",
        "plait_mini_sounds",
        "arc_challenge",
        "arc_easy",
        "one_peace_aqa",
        "one_peace_fsd50k",
        "one_peace_vggsound",
        "imagenet_folder",
        "q_bench_iqa",
        "mmhal_bench",
        "coco_stuff",  # tests/evaluation/test_masks.py makes both of its forms
    }
    fixtures = {path.name for path in FORMATS.iterdir() if path.is_dir()}
    assert {n for n in LAYOUTS if not n.startswith("glue_")} - apart == fixtures - {"glue"}


def test_an_item_tells_its_pictures() -> None:
    assert Item("a", image="x.jpg").pictures == ["x.jpg"]
    assert Item("a", images=["x.jpg", "y.jpg"]).pictures == ["x.jpg", "y.jpg"]
    assert Item("a").pictures == []


def test_a_source_without_a_file_says_which(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="expected a file for 'questions'"):
        Source(tmp_path, {}, "val")["questions"]


def test_every_subject_of_mmmu_is_read_although_their_files_have_one_name(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    for subject in ("Art", "Accounting"):
        image = {"bytes": b"picture", "path": None}
        row = {"id": f"validation_{subject}_1", "question": "<image 1>?", "options": "['a', 'b']", "answer": "B",
               "question_type": "multiple-choice", "image_1": image, "image_2": None}  # fmt: skip
        (tmp_path / subject).mkdir()
        table = pyarrow.Table.from_pylist([row])
        pyarrow.parquet.write_table(table, tmp_path / subject / "validation-00000-of-00001.parquet")
    items = read(tmp_path, ("mmmu",), "val")[0]
    assert [item.category for item in items] == ["Accounting", "Art"]
    assert items[0].images == [b"picture"]


@pytest.mark.parametrize("word", ["val", "validate", "validation"])
def test_kinetics_is_read_whatever_it_calls_its_validation_split(word: str, tmp_path: Path) -> None:
    head = "label,youtube_id,time_start,time_end,split\n"
    (tmp_path / "val.csv").write_text(f'{head}"a, b",x,1,11,{word}\nc,y,0,10,train\n')
    assert [item.video for item in read(tmp_path, ("kinetics",), "val")[0]] == ["x_000001_000011.mp4"]


def test_newer_files_of_mmbench_are_found_by_their_capitals(copy: Any) -> None:
    root = copy("mmbench")
    (root / "mmbench_dev_20230712.tsv").rename(root / "MMBench_DEV_EN_V11.tsv")
    assert read(root, ("mmbench",), "dev")[0]


def test_mmhal_bench_names_its_picture_by_the_end_of_its_source(tmp_path: Path) -> None:
    row = {"question_type": "relation", "image_src": "https://host/a/b.jpg", "image_content": ["Dog", "Tree"],
           "question": "q", "gt_answer": "a"}  # fmt: skip
    (tmp_path / "response_template.json").write_text(json.dumps([row]))
    (item,) = read(tmp_path, ("mmhal_bench",), "test")[0]
    assert (item.image, item.context, item.category, item.answers) == ("b.jpg", "Dog, Tree", "relation", ["a"])
    del row["gt_answer"]
    (tmp_path / "response_template.json").write_text(json.dumps([row]))
    assert "response_template.json, row 1: expected field 'gt_answer'" in message(tmp_path, "mmhal_bench", "test")
