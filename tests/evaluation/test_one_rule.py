"""One rule per benchmark: the golden cases of the metrics, asked as items of a task, give the golden values."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from plait.evaluation.base import Item, Scored, Scoring, score
from plait.evaluation.files import MediaFiles
from plait.evaluation.tasks import TASKS
from plait.evaluation.tasks.regions import segmentation
from plait.metrics.answers import gqa_normalised

GOLDENS = Path(__file__).parents[1] / "goldens" / "metrics"


def golden(kind: str) -> dict[str, tuple[Any, Any]]:
    """Name -> input and expected value of the entries of a golden metric case."""
    entries = json.loads((GOLDENS / kind / "data.json").read_text(encoding="utf-8"))["cases"]
    return {entry["name"]: (entry["input"], entry["expected"]) for entry in entries}


def scored(task: str, items: Sequence[Item], replies: Sequence[Any], **more: Any) -> Scored:
    rows = [{"id": item.id, "prediction": reply, "raw": reply} for item, reply in zip(items, replies, strict=True)]
    return score(TASKS[task], Scoring(items, rows, **more))


def judged(task: str, items: Sequence[Item], verdicts: Sequence[str], place: Path, **more: Any) -> Scored:
    """`scored` with stored replies of a judge."""
    rows = [{"id": item.id, "reply": one, "judge": "x"} for item, one in zip(items, verdicts, strict=True)]
    (place / "judge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return scored(task, items, ["said"] * len(items), judge=str(place / "judge.jsonl"), **more)


def test_gqa_counts_balanced_questions_alone() -> None:
    given, expected = golden("gqa")["suite"]
    said = {row["questionId"]: row["prediction"] for row in given["predictions"]}
    items = [
        Item(name, question=one["question"], answers=[one["answer"]], meta={"question_record": one})
        for name, one in given["questions"].items()
    ]
    # the tool compares as it is; we lower-case first, as models do, so that what differs there must differ here
    plain = [reply if reply == gqa_normalised(reply) else "differs" for reply in (said[item.id] for item in items)]
    found = scored("gqa", items, plain)
    balanced = {name for name, one in given["questions"].items() if one["isBalanced"]}
    assert 0 < len(balanced) < len(items)
    assert found.units.keys() == balanced
    for name in ("accuracy", "binary", "open", "consistency", "distribution"):
        assert found.scores[name] == pytest.approx(expected[name])
    assert np.mean(list(found.units.values())) == pytest.approx(expected["accuracy"])
    assert found.notes == [f"{len(items) - len(balanced)} unbalanced questions are not counted"]


def test_gqa_without_a_balanced_question_is_refused() -> None:
    record = {"isBalanced": False}
    with pytest.raises(ValueError, match="expected at least one balanced question, got none"):
        scored("gqa", [Item("1", answers=["a"], meta={"question_record": record})], ["a"])


def test_mme() -> None:
    given, expected = golden("mme")["suite"]
    items = [
        Item(str(i), answers=[row["answer"]], category=row["category"], group=f"{row['category']}/{row['image']}")
        for i, row in enumerate(given["rows"])
    ]
    found = scored("mme", items, [row["prediction"] for row in given["rows"]])
    assert found.scores == pytest.approx({name: expected[name] for name in ("perception", "cognition")})
    assert found.categories == pytest.approx(expected["scores"])
    assert np.mean(list(found.units.values())) == pytest.approx(expected["perception"])


def test_pope() -> None:
    rows, expected = golden("pope")["suite"]
    found = scored("pope", [Item(str(i), answers=[r["label"]]) for i, r in enumerate(rows)], [r["reply"] for r in rows])
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    assert found.scores == pytest.approx({name: 100 * expected[name] for name in names})


def test_mmbench() -> None:
    given, expected = golden("mmbench_circular")["circular"]
    items = []
    for row in given["rows"]:
        choices = [str(row[letter]) for letter in "ABCD" if row.get(letter)]
        item = Item(str(row["index"]), choices=choices, answer_index="ABCD".index(row["answer"]))
        item.category, item.category_group = row["category"], row["l2-category"]
        items.append(item)
    found = scored("mmbench", items, [row["prediction"] for row in given["rows"]])
    assert found.scores == {"circular": expected["circular_accuracy"], "vanilla": expected["vanilla_accuracy"]}
    assert found.units == {name: 100 * hit for name, hit in expected["hit_per_question"].items()}
    assert found.categories == pytest.approx(expected["by_category"] | expected["by_l2_category"])


@pytest.mark.parametrize("rule", ["official", "release"])
def test_mmmu(rule: str) -> None:
    rows, expected = golden("mmmu")[f"suite_{rule}_rule"]
    items = []
    for row in rows:
        answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
        item = Item(row["id"], answers=answers, choices=["", "", "", ""], question_type=row["question_type"])
        item.category = row["id"].split("_")[1]
        items.append(item)
    found = scored("mmmu", items, [row["prediction"] for row in rows], rule=rule)
    assert found.scores["accuracy"] == pytest.approx(expected.pop("overall"))
    assert found.categories == pytest.approx(expected)


def test_q_bench() -> None:
    rows, expected = golden("q_bench")["perception_mcq"]
    items = [
        Item(str(i), choices=r["candidates"], answer_index=r["candidates"].index(r["correct_ans"]),
             question_type=r["type"], meta={"question_concern": r["concern"]})
        for i, r in enumerate(rows)
    ]  # fmt: skip
    found = scored("q_bench", items, [row["prediction"] for row in rows])
    assert found.scores["accuracy"] == pytest.approx(expected["accuracy"])
    assert [value == 100 for value in found.units.values()] == expected["correct"]
    parts = {f"type {k}": v for k, v in expected["by_type"].items()}
    assert found.categories == pytest.approx(parts | {f"concern {k}": v for k, v in expected["by_concern"].items()})


def test_seed_bench() -> None:
    rows, expected = golden("seed_bench")["generated_letters"]
    items = [
        Item(row["question_id"], choices=list("wxyz"), answer_index="ABCD".index(row["answer"]),
             meta={"question_type_id": row["question_type_id"]})
        for row in rows
    ]  # fmt: skip
    found = scored("seed_bench", items, [row["prediction"] for row in rows])
    wanted = {"accuracy": "overall", "image accuracy": "image", "video accuracy": "video"}
    assert found.scores == pytest.approx({name: expected[key] for name, key in wanted.items()})


def test_scienceqa() -> None:
    given, expected = golden("scienceqa")["suite"]
    items = []
    for name, row in given["problems"].items():
        item = Item(name, image=row["image"] or None, choices=row["choices"], answer_index=row["answer"])
        item.context, item.meta = row["hint"], {key: row[key] for key in ("grade", "subject", "topic")}
        items.append(item)
    found = scored("scienceqa", items, [given["replies"][item.id] for item in items])
    assert found.scores == pytest.approx({"image_accuracy": expected["image_accuracy"]})
    table = {name: float(value) for name, value in expected["official_table"].items() if value != "-1"}
    assert found.categories == pytest.approx(table)


@pytest.mark.parametrize("entry", ["vqa_official", "vqa_model_release", "textvqa_evalai"])
def test_vqa(entry: str) -> None:
    given, expected = golden("vqa_accuracy")[entry]
    items = [Item(name, answers=one["answers"]) for name, one in given["items"].items()]
    found = scored("vqav2", items, [one["prediction"] for one in given["items"].values()], rule=given["rule"])
    assert found.scores["accuracy"] == pytest.approx(expected["overall"], abs=0.005)
    assert found.units == pytest.approx(expected["per_question"], abs=0.005)


def test_video_questions(tmp_path: Path) -> None:
    rows, expected = golden("video_qa")["exact_match"]
    items = [Item(str(i), answers=[row["answer"]]) for i, row in enumerate(rows)]
    found = scored("msvd_qa", items, [row["prediction"] for row in rows])
    assert found.scores["accuracy"] == pytest.approx(100 * expected["accuracy"])
    verdicts, expected = golden("video_qa")["judge_aggregation"]
    items = [Item(str(i), question="q", answers=["a"]) for i in range(len(verdicts))]
    found = judged("msvd_qa", items, verdicts, tmp_path, rule="judge")
    assert found.scores == {"accuracy": pytest.approx(100 * expected["accuracy"]), "score": expected["score"]}


def test_mm_vet(tmp_path: Path) -> None:
    given, expected = golden("mm_vet")["aggregate"]
    items = [Item(name, question="q", answers=["x"], meta={"capabilities": row["capability"]})
             for name, row in given["metadata"].items()]  # fmt: skip
    for run in range(len(expected["total"]["per_run"])):
        grades = [str(given["grades"][item.id][run]) for item in items]
        found = judged("mm_vet", items, grades, tmp_path)
        assert found.scores["score"] == pytest.approx(expected["total"]["per_run"][run])
        for part, share in found.categories.items():
            assert share == pytest.approx(expected[part]["per_run"][run])


@pytest.mark.parametrize("entry", sorted(golden("caption_suite")))
def test_captions(entry: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from plait.metrics import java

    monkeypatch.setattr(java, "missing", lambda: "not asked")  # our tokeniser, wherever this runs
    given, expected = golden("caption_suite")[entry]
    items = [Item(name, captions=given["references"][name]) for name in given["ids"]]
    found = scored("coco_caption", items, [given["predictions"][item.id] for item in items])
    shown = {"CIDEr": "cider", "ROUGE-L": "rouge_l", **{f"BLEU-{n}": f"bleu_{n}" for n in range(1, 5)}}
    assert found.scores == pytest.approx({name: 100 * expected[key] for name, key in shown.items()})


@pytest.mark.parametrize("entry", sorted(golden("image_text_retrieval")))
def test_retrieval(entry: str) -> None:
    given, expected = golden("image_text_retrieval")[entry]
    owners = given["text_image_ids"]
    items = [Item(str(name), captions=["c"] * owners.count(name)) for name in given["image_ids"]]
    rows = [
        {"id": f"{direction}:{name}", "prediction": rank, "raw": []}
        for direction, key, names in (
            ("image>text", "image_to_text", [item.id for item in items]),
            ("text>image", "text_to_image", [f"{owner}#{i}" for i, owner in enumerate(owners)]),
        )
        for name, rank in zip(names, expected[key]["ranks"], strict=True)
    ]
    found = score(TASKS["coco_retrieval"], Scoring(items, rows))
    assert found.scores["mean_recall"] == pytest.approx(expected["mean_recall"])
    assert np.mean(list(found.units.values())) == pytest.approx(expected["mean_recall"])
    for direction, key in (("image>text", "image_to_text"), ("text>image", "text_to_image")):
        for name in ("r@1", "r@5", "r@10", "median_rank", "mean_rank"):
            assert found.scores[f"{direction} {name.replace('r@', 'R@')}"] == pytest.approx(expected[key][name])


@pytest.mark.parametrize("entry", ["eight_classes", "imbalanced", "ties_first_index_wins"])
def test_classes(entry: str) -> None:
    given, expected = golden("classification")[entry]
    items = [Item(str(i), label=label) for i, label in enumerate(given["labels"])]
    found = scored("imagenet", items, given["logits"])
    for name in {"top1", "top5", "mean_per_class"} & expected.keys():
        assert found.scores[name] == pytest.approx(expected[name])


def test_tags() -> None:
    given, expected = golden("audio_tagging")["tied_scores"]
    items = [Item(str(i), labels=np.flatnonzero(row).tolist()) for i, row in enumerate(given["targets"])]
    assert scored("fsd50k", items, given["scores"]).scores["mAP"] == pytest.approx(100 * expected["map_macro"])


@pytest.mark.parametrize("entry", ["cola", "sst2", "mrpc", "stsb", "stsb_ties", "mrpc_no_positive_prediction"])
def test_glue(entry: str) -> None:
    given, expected = golden("glue")[entry]
    items = [Item(str(i), label=label) for i, label in enumerate(given["labels"])]
    is_score = entry.startswith("stsb")
    replies = [[one] if is_score else [int(one), 1 - int(one)] for one in given["predictions"]]
    rows = [{"id": item.id, "prediction": one, "raw": one} for item, one in zip(items, replies, strict=True)]
    found = score(TASKS["glue_stsb" if is_score else "glue_mrpc"], Scoring(items, rows)).scores
    unit = 1 if is_score else 100  # correlations of scores are shown as such
    for name in found.keys() & expected.keys():
        assert found[name] == pytest.approx(unit * expected[name])


@pytest.mark.parametrize("entry", sorted(golden("grounding")))
def test_boxes(entry: str) -> None:
    given, expected = golden("grounding")[entry]
    items = [Item(str(i), image="a", boxes=[box]) for i, box in enumerate(given["target_xyxy"])]
    replies = [", ".join(map(str, box)) for box in given["predicted_xyxy"]]
    found = scored("refcoco", items, replies, rule="pixel")
    assert found.scores["acc@0.5"] == pytest.approx(100 * expected["acc@0.5"])


def test_texts() -> None:
    given, expected = golden("text_benchmarks")["mmlu"]
    rows = [(subject, row) for subject, several in given.items() for row in several]
    items = [
        Item(str(i), choices=list("wxyz"), answer_index="ABCD".index(row["answer"]), category=subject)
        for i, (subject, row) in enumerate(rows)
    ]
    found = scored("mmlu", items, [row["choice_logprobs"] for _, row in rows])
    assert found.scores == pytest.approx({"accuracy": expected["micro"], "macro": expected["macro"]})
    assert found.categories == pytest.approx(expected["per_subject"])
    rows, expected = golden("text_benchmarks")["arc"]
    items = [Item(str(i), choices=r["choice_texts"], answer_index=r["answer_index"]) for i, r in enumerate(rows)]
    found = scored("arc_easy", items, [row["choice_logprobs"] for row in rows])
    assert found.scores == pytest.approx({"accuracy": expected["acc"], "acc_norm": expected["acc_norm"]})
    rows, expected = golden("text_benchmarks")["bbh"]
    items = [Item(str(i), answers=[row["target"]]) for i, row in enumerate(rows)]
    assert scored("bbh", items, [row["reply"] for row in rows]).scores["accuracy"] == pytest.approx(
        expected["accuracy"]
    )


@pytest.mark.parametrize("entry", ["plain_ignore_255", "absent_class"])
def test_masks(entry: str, tmp_path: Path) -> None:
    given, expected = golden("semantic_segmentation")[entry]
    items, rows = [], []
    for i, (said, right) in enumerate(zip(given["predictions"], given["targets"], strict=True)):
        stored = np.array(right, np.uint8) + np.uint8(1)  # the file's 0 is unlabelled: 255 + 1 comes round to it
        Image.fromarray(stored).save(tmp_path / f"{i}.png")
        buffer = io.BytesIO()
        Image.fromarray(np.array(said, np.uint8)).save(buffer, "PNG")
        items.append(Item(str(i), mask=f"{i}.png"))
        rows.append({"id": str(i), "prediction": base64.b64encode(buffer.getvalue()).decode(), "raw": ""})
    rule: Callable[[Scoring], Scored] = partial(segmentation, num_classes=given["num_classes"])
    found = rule(Scoring(items, rows, files=MediaFiles(tmp_path)))
    assert found.scores == pytest.approx({name: expected[name] for name in ("mIoU", "mAcc", "aAcc")})


BAD = [float("nan"), float("inf")]


@pytest.mark.parametrize("value", BAD)
def test_scores_that_are_not_finite_are_refused(value: float) -> None:
    """All-NaN scores gave top-1 100, MMLU 100 and an average precision of 1.0."""
    row = [value] * 4
    choices = Item("1", choices=list("wxyz"), answer_index=0, category="s")
    for task, item in {
        "imagenet": Item("1", label=0),
        "fsd50k": Item("1", labels=[0, 1, 2, 3]),
        "mmlu": choices,
        "arc_easy": choices,
        "glue_stsb": Item("1", label=0.5),
    }.items():
        reply = row if task != "glue_stsb" else row[:1]
        with pytest.raises(ValueError, match=r"expected finite .*, got (NaN|inf)"):
            scored(task, [item], [reply])
