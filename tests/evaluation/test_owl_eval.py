"""OwlEval from questions to answers for people, and from their grades to its tables."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from PIL import Image

from plait.cli import main
from plait.evaluation.run import score_file
from plait.evaluation.tasks import task_named
from plait.generation.asking import Asking
from plait.models.mplug_owl.conversation import prompt
from plait.models.mplug_owl.tasks import MPlugOwlSkills
from plait.models.mplug_owl2.tasks import MPlugOwl2Skills

from ..models.mplug_owl.tiny import LLAMA, model_and_processor

QUESTIONS = [
    {"image": "1.jpg", "question_id": 1, "question": "Why?", "ability": "a,b,e", "category": ["single_turn"]},
    {"image": "2.jpg", "question_id": 2, "question": "Text?", "ability": "a,c",
     "category": ["single_turn", "multi_turn"]},
    {"image": "2.jpg", "question_id": 3, "question": "Which?", "ability": "a,f", "category": ["multi_turn"]},
    {"image": "2.jpg", "question_id": 4, "question": "Where?", "ability": "a,f", "category": ["multi_turn"]},
]  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("owl_eval")
    longer = {**LLAMA, "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 0}
    for part in model_and_processor(text_config=longer):
        part.save_pretrained(directory / "owl")
    (directory / "data").mkdir()
    for name in ("1.jpg", "2.jpg"):
        Image.new("RGB", (20, 30), "navy").save(directory / "data" / name)
    (directory / "data" / "questions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS))
    return directory


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_answers_come_in_the_published_layout_and_grades_become_its_tables(place, capsys):
    command = ["eval", "owl_eval", str(place / "owl"), "--data", str(place / "data"), "--out", str(place / "run")]
    assert main(command) == 0
    assert "not scored: OwlEval needs people's grades" in capsys.readouterr().out
    answers = lines(place / "run" / "answers.jsonl")
    assert [{k: v for k, v in row.items() if k not in ("answer", "model_id")} for row in answers] == QUESTIONS
    assert all(row["answer"] and row["model_id"] == "owl" for row in answers)
    grades = zip((1, 2, 3, 4), "ABDB", strict=True)
    judged = [json.dumps({"id": str(name), "reply": mark, "judge": "people"}) for name, mark in grades]
    (place / "grades.jsonl").write_text("\n".join(judged) + "\n")
    assert main([*command, "--judge", str(place / "grades.jsonl")]) == 0
    found = json.loads((place / "run" / "result.json").read_text())
    assert found["scores"] == {"A+B": 75, "A": 25, "B": 50, "C": 0, "D": 25}
    parts = found["categories"]
    assert (parts["single turn: A"], parts["single turn: A+B"], parts["multi turn: D"]) == (
        50,
        100,
        pytest.approx(100 / 3),
    )
    assert (parts["ability f: B"], parts["ability f: D"], parts["ability c: A+B"]) == (50, 50, 100)


def test_turns_of_one_picture_are_one_dialogue(place):
    main(["eval", "owl_eval", str(place / "owl"), "--data", str(place / "data"), "--out", str(place / "talk")])
    alone, first, second, third = lines(place / "talk" / "predictions.jsonl")
    turns = [("<image>Text?", first["prediction"]), ("Which?", second["prediction"]), ("Where?", None)]
    assert third["prompt"] == prompt(turns)
    assert alone["prompt"].count("Human:") == 2  # one for the picture, one for the question


def test_further_turns_read_as_the_family_writes_them():
    said = [("a?", "b"), ("c?", "d")]
    owl, owl2 = (object.__new__(skills) for skills in (MPlugOwlSkills, MPlugOwl2Skills))
    assert owl.dialogue(said, "e?") == "a?\nAI: b\nHuman: c?\nAI: d\nHuman: e?"
    assert owl2.dialogue(said, "e?") == "a? ASSISTANT: b</s>USER: c? ASSISTANT: d</s>USER: e?"
    assert Asking().dialogue(said[:1], "e?") == "a?\nb\ne?"
    assert Asking().dialogue([], "e?") == "e?"


def test_a_long_dialogue_keeps_its_last_turns(monkeypatch):
    from plait.evaluation import predict
    from plait.evaluation.base import Item

    words_of = []

    def answered(items, wordings, setting):
        words_of.extend(wordings)
        return [{"id": item.id, "prediction": f"a{item.id}"} for item in items]

    monkeypatch.setattr(predict, "replies", answered)
    items = [Item(str(i), image="1.jpg", question=f"q{i}", group="1.jpg", meta={"turn": i}) for i in range(8)]
    task, model = SimpleNamespace(kind="open"), SimpleNamespace(asking=object.__new__(MPlugOwlSkills))
    rows = predict.prompt(items, SimpleNamespace(task=task, model=model))
    assert [row["id"] for row in rows] == [item.id for item in items]
    assert words_of[1] == "q0\nAI: a0\nHuman: q1"
    assert words_of[7].startswith("q2\nAI: a2") and words_of[7].endswith("q6\nAI: a6\nHuman: q7")


def test_answers_of_others_can_be_graded_too(place):
    rows = [{**row, "answer": "yes", "model_id": "other"} for row in QUESTIONS]
    (place / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = score_file(task_named("owl_eval"), place / "other.jsonl", place / "data", None)
    assert result["notes"] and result["items"] == 4
