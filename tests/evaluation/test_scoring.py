"""Scorers: what is read out of replies, and how units, groups and categories come together."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from plait.evaluation.base import Item, Scored, Scoring, clustered_interval, score
from plait.evaluation.tasks import TASKS
from plait.metrics import captions, java
from plait.metrics.answers import judge_verdict
from plait.metrics.choices import mmbench_scores, mmmu_scores, q_bench_scores, seed_bench_scores
from plait.metrics.replies import letter, open_answer_hit
from plait.metrics.suites import judge_grade, mme_scores, pope_scores
from plait.metrics.vqa import vqa_accuracy


def scored(name: str, items: list[Item], replies: list[Any], **more: Any) -> Scored:
    rows = [{"id": item.id, "prediction": reply, "raw": reply} for item, reply in zip(items, replies)]
    return score(TASKS[name], Scoring(items, rows, **more))


def test_three_vqa_rules_give_three_scores() -> None:
    answers = ["two"] * 10
    assert [vqa_accuracy("2", answers, rule) for rule in ("official", "release", "evalai")] == [0, 0, 1]
    assert vqa_accuracy("two", answers, "official") == 1
    mixed = ["a dog"] * 2 + ["dog"] + ["cat"] * 7
    assert vqa_accuracy("The dog.", mixed, "official") == pytest.approx(0.9)
    assert vqa_accuracy("The dog.", mixed, "release") == pytest.approx(0.3)
    with pytest.raises(ValueError, match="expected a rule of official, release, evalai"):
        vqa_accuracy("a", answers, "mine")


def test_the_rule_is_told_with_the_score() -> None:
    items = [Item("1", question="q", answers=["two"] * 10, question_type="how many")]
    assert scored("vqav2", items, ["2"], rule="evalai").scores == {"accuracy": 100}
    assert scored("vqav2", items, ["2"], rule="official").categories == {"how many": 0}


def test_captions_are_scored_with_meteor_and_spice_where_their_programs_are(monkeypatch: pytest.MonkeyPatch) -> None:
    items = [Item("1", captions=["A dog."]), Item("2", captions=["Snow"])]
    plain = scored("coco_caption", items, ["a dog", "ice"])
    assert plain.notes[1] == "tokenizer=python, no METEOR, no SPICE"
    monkeypatch.setattr(java, "missing", lambda: None)
    monkeypatch.setattr(java, "tokenized", captions.tokenized)
    monkeypatch.setattr(java, "meteor", lambda said, right: (len(said[0]) / 10, []))
    found = scored("coco_caption", items, ["a dog", "ice"])
    assert found.scores == plain.scores | {"METEOR": 20}
    assert found.notes[1] == "tokenizer=java, no SPICE"
    monkeypatch.setattr(java, "spice_missing", lambda: None)
    monkeypatch.setattr(java, "spice", lambda said, right: (len(right) / 10, []))
    assert scored("coco_caption", items, ["a dog", "ice"]).scores == found.scores | {"SPICE": 20}


def test_rotated_questions_count_once_and_only_when_all_are_right() -> None:
    items = [
        Item(str(base + turn * 1_000_000), choices=["x", "y"], answer_index=turn, group=str(base), category="c")
        for base in (1, 2)
        for turn in (0, 1)
    ]
    found = scored("mmbench", items, ["A", "B", "A", "A"])
    assert found.scores == {"circular": 50, "vanilla": 100}
    assert found.units == {"1": 100, "2": 0}
    assert scored("mmbench", items, ["A", "B", "A", "hm"]).unreadable == ["1000002"]


def test_mme_adds_pictures_with_both_questions_right() -> None:
    items = [
        Item(f"color/{p}/{q}", answers=[("Yes", "No")[q]], category="color", group=p) for p in "ab" for q in (0, 1)
    ]
    found = scored("mme", items, ["Yes", "no, none", "yes", "yes"])
    assert found.scores["perception"] == found.categories["color"] == 125
    assert np.mean(list(found.units.values())) == pytest.approx(125)


def test_boxes_are_read_by_the_named_rule() -> None:
    items = [Item("1", image="a", text="dog", boxes=[[10, 20, 60, 70]], image_size=(100, 100))]
    for rule, reply in (
        ("fraction", "[0.1, 0.2, 0.6, 0.7]"),
        ("thousandth", "100,200,600,700"),
        ("pixel", "10 20 60 70"),
    ):
        assert scored("refcoco", items, [reply], rule=rule).scores == {"acc@0.5": 100}
    assert scored("refcoco", items, ["over there"]).unreadable == ["1"]


def test_a_split_without_answers_is_submitted_not_scored() -> None:
    found = scored("vqav2", [Item("1", question="q")], ["x"])
    assert found.scores == {}
    assert found.notes == ["submitted, not scored: this split has no answers of item 1"]


def test_a_judge_reads_stored_replies_and_is_named(tmp_path: Path) -> None:
    path = tmp_path / "judge.jsonl"
    replies = ["{'pred': 'yes', 'score': 4.8}", "{'pred': 'no', 'score': 1}", "I think so"]
    rows = [{"id": str(i), "judge": "somebody", "reply": reply} for i, reply in enumerate(replies)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    items = [Item(str(i), question="q", answers=["a"], group="v") for i in range(3)]
    found = scored("msvd_qa", items, ["a", "b", "c"], rule="judge", judge=str(path))
    assert found.scores == {"accuracy": 50, "score": 2.5}
    assert (found.unreadable, found.notes) == (["2"], ["judge somebody"])
    with pytest.raises(ValueError, match=r"expected a reply for every item .* got none for id 9"):
        scored("msvd_qa", [Item("9", answers=["a"])], ["a"], rule="judge", judge=str(path))
    assert "needs --judge" in scored("mm_vet", items, ["a"] * 3).notes[0]


def test_verdicts_are_literals_and_never_run() -> None:
    assert judge_verdict("{'pred': 'Yes', 'score': '3'}") == (True, 3)
    assert judge_verdict("__import__('os')") is None
    assert judge_verdict("{'pred': 'perhaps', 'score': 1}") is None
    assert [judge_grade(text) for text in ("0.5 because", "1.0", "2", "good")] == [0.5, 1.0, None, None]


def test_intervals_draw_groups_whole() -> None:
    units = {str(i): float(i < 50) for i in range(100)}
    alone = clustered_interval(units, {})
    whole = clustered_interval(units, {str(i): str(i // 10) for i in range(100)})
    assert whole[1] - whole[0] > 2 * (alone[1] - alone[0])


def test_letters_and_open_answers_are_read_by_the_benchmark() -> None:
    choices = ["a dog", "a cat"]
    assert letter("B. a cat", choices, "scienceqa") == "B"
    assert letter("It is a cat", choices, "mmbench_2023") == "B"
    assert letter("nothing", choices, "mmmu_official") is None
    assert open_answer_hit("so the result is 1,200.", ["1200"])
    assert not open_answer_hit("it is blue", ["red"])
    with pytest.raises(ValueError, match="expected a rule of first_character"):
        letter("A", choices, "mine")


LETTER_REPLIES = ("A", "B. no", "(C)", "The answer is D.", "red", "hm", "A red one is there", "")


def drawn_questions(kind: str, count: int = 60) -> tuple[list[Item], list[str]]:
    """Random multiple-choice items and replies, some with options in the reply."""
    draw = np.random.default_rng(len(kind))
    items = [
        Item(
            f"validation_Art_{i}" if kind == "mmmu" else str(i),
            question="q",
            choices=["red", "blue", "two dogs", "none of these"],
            answer_index=int(draw.integers(4)),
            category=f"c{i % 3}",
            category_group=f"l{i % 2}",
        )
        for i in range(count)
    ]
    return items, [str(draw.choice(LETTER_REPLIES)) for _ in items]


def test_scores_of_letters_are_those_of_the_published_functions() -> None:
    items, replies = drawn_questions("mmbench")
    rows = [
        {"index": item.id, **dict(zip("ABCD", item.choices or [])), "answer": "ABCD"[item.answer_index or 0],
         "category": item.category, "l2-category": item.category_group, "prediction": reply}
        for item, reply in zip(items, replies)
    ]  # fmt: skip
    for item in items:
        item.group = item.id
    for rule in ("mmbench_2023", "mmbench_toolkit"):
        found, wanted = scored("mmbench", items, replies, rule=rule), mmbench_scores(rows, rule)
        assert found.scores["circular"] == pytest.approx(wanted["circular_accuracy"])
        assert found.categories == pytest.approx(wanted["by_category"] | wanted["by_l2_category"])
    for item in items:
        item.image, item.meta["question_type_id"] = "a.jpg", 1
    rows = [{"question_type_id": 1, "answer": row["answer"], "prediction": row["prediction"]} for row in rows]
    assert scored("seed_bench", items, replies).scores["accuracy"] == pytest.approx(seed_bench_scores(rows)["overall"])
    rows = [
        {"candidates": item.choices, "correct_ans": (item.choices or [])[item.answer_index or 0], "prediction": reply,
         "type": 0, "concern": 0}
        for item, reply in zip(items, replies)
    ]  # fmt: skip
    assert scored("q_bench", items, replies).scores["accuracy"] == pytest.approx(q_bench_scores(rows)["accuracy"])


@pytest.mark.parametrize("rule", ["official", "release"])
def test_scores_of_mmmu_are_those_of_the_published_function(rule: str) -> None:
    items, replies = drawn_questions("mmmu")
    for item in items:
        right: list[str] = ["ABCD"[item.answer_index or 0]]
        item.question_type, item.answers = "multiple-choice", right
    items.append(Item("validation_Art_60", question="q", answers=["7", "seven"], question_type="open", choices=[]))
    replies.append("so it is 7.00")
    rows = [
        {"id": item.id, "question_type": item.question_type, "answer": item.answers, "prediction": reply,
         "options": item.choices}
        for item, reply in zip(items, replies)
    ]  # fmt: skip
    found = scored("mmmu", items, replies, rule=rule)
    assert found.scores["accuracy"] == pytest.approx(mmmu_scores(rows, rule=rule)["overall"])


def test_scores_of_yes_and_no_are_those_of_the_published_functions() -> None:
    draw = np.random.default_rng(0)
    items = [
        Item(f"{category}/{i}/{q}", answers=["yes" if q == 0 else "no"], category=category, group=f"{category}/{i}")
        for category in ("OCR", "count", "code_reasoning")
        for i in range(7)
        for q in (0, 1)
    ]
    replies = [str(draw.choice(["Yes", "No.", "yes, it is", "not at all", "maybe"])) for _ in items]
    rows = [
        {"category": item.category, "image": item.group, "answer": (item.answers or [""])[0], "prediction": reply}
        for item, reply in zip(items, replies)
    ]
    found, wanted = scored("mme", items, replies), mme_scores(rows)
    assert found.scores == pytest.approx({name: wanted[name] for name in ("perception", "cognition")})
    assert found.categories == pytest.approx(wanted["scores"])
    assert np.mean(list(found.units.values())) == pytest.approx(wanted["perception"])
    truth = pope_scores(replies, [str(row["answer"]) for row in rows])
    names = ("accuracy", "precision", "recall", "f1", "yes_ratio")
    assert scored("pope", items, replies).scores == pytest.approx({name: 100 * truth[name] for name in names})


def test_answers_of_a_table_have_its_scores() -> None:
    item = Item("1", question="q", meta={"targets": [["red", 3, 1.0], ["dark red", 7, 0.3]]})
    found = scored("vqav2", [item, dataclasses.replace(item, id="2"), dataclasses.replace(item, id="3")],
                   ["red", "dark red", "blue"])  # fmt: skip
    assert found.scores["accuracy"] == pytest.approx(130 / 3)
    assert found.notes == ["answers have the scores of the table, whatever the rule"]


def test_ratings_of_hallucination_are_averaged_and_none_counts_as_zero(tmp_path: Path) -> None:
    items = [Item(str(i), question="q", answers=["a"], context="dog", category=f"c{i % 2}") for i in range(3)]
    replies = ["It is right. Rating: 5", "rating: 2", "Rating: 1 or rating: 2"]
    rows = [{"id": str(i), "judge": "x", "reply": reply} for i, reply in enumerate(replies)]
    (tmp_path / "judge.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = scored("mmhal_bench", items, ["a", "b", "c"], judge=str(tmp_path / "judge.jsonl"))
    assert found.scores == {"score": pytest.approx(7 / 3), "hallucination_rate": pytest.approx(2 / 3)}
    assert (found.unreadable, found.categories) == (["2"], {"c0": 2.5, "c1": 2})
    assert not scored("mmhal_bench", items, ["a", "b", "c"]).scores
