"""Tasks made of drawings: answers that the frames bear out, balanced, and blind to a frame without its time."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from plait.types import Sample
from plait_studies.drawings import GROUPS as TOGETHER
from plait_studies.drawings import KINDS, MOTIONS, Drawings

COLOURS = {"cat": (250, 0, 0), "bus": (0, 0, 250), "pie": (0, 250, 0), "owl": (250, 0, 250), "key": (0, 0, 0)}
GROUPS = dict(zip(COLOURS, ("Animals & Nature", "Travel & Places", "Food & Drink", "Animals & Nature", "Objects")))


def sample(name, split):
    picture = Image.new("RGB", (20, 20), COLOURS[name])
    meta = {"group": GROUPS[name]}
    return Sample(f"{split}/{name}", text=name, image=picture, label=name, captions=["thing"], split=split, meta=meta)


@pytest.fixture(scope="module")
def drawings():
    return Drawings([sample(name, split) for split in ("train", "test") for name in COLOURS], size=40)


def seen(frame):
    """Names of the things in a frame, from left to right."""
    found = {}
    for name, colour in COLOURS.items():
        columns = np.flatnonzero((np.abs(frame.astype(int) - colour).sum(-1) < 30).any(0))
        if len(columns):
            found[name] = columns.mean()
    return sorted(found, key=found.__getitem__)


def centre(frame):
    rows, columns = np.nonzero((frame < 200).any(-1))
    return columns.mean(), rows.mean(), len(rows)


def test_the_same_seed_gives_the_same_examples(drawings):
    for task in drawings.tasks:
        first, again = drawings.examples(task, "test", 3), drawings.examples(task, "test", 2)
        for a, b in zip(first, again):
            assert (a.question, a.answer) == (b.question, b.answer)
            assert np.array_equal(a.frames, b.frames)


def test_every_answer_is_one_of_the_choices(drawings):
    for task in drawings.tasks:
        for example in drawings.examples(task, "train", 20):
            assert example.choices is None or example.answer in example.choices
            assert example.frames.dtype == np.uint8 and example.frames.shape[1:] == (40, 40, 3)


def test_scenes_hold_what_the_answers_say(drawings):
    for example in drawings.examples("count", "test", 20):
        assert example.choices.index(example.answer) + 1 == len(seen(example.frames[0]))
    for example in drawings.examples("is_there", "test", 20):
        asked = example.question.removesuffix("?").split()[-1]
        assert (asked in seen(example.frames[0])) == (example.answer == "yes")
    for example in drawings.examples("beside", "test", 20):
        left, right = seen(example.frames[0])
        asked = example.question.removesuffix("?").split()[-1]
        assert example.answer == (left if "left of" in example.question else right)
        assert asked == (right if "left of" in example.question else left)
    for example in drawings.examples("is_kind", "test", 20):
        (name,) = seen(example.frames[0])
        assert (KINDS[GROUPS[name]] in example.question) == (example.answer == "yes")


def test_clips_show_what_the_answers_say(drawings):
    for example in drawings.examples("order", "test", 20):
        assert seen(example.frames[0]) == [example.answer] != seen(example.frames[-1])
    for example in drawings.examples("motion", "test", 40):
        moved = np.subtract(centre(example.frames[-1]), centre(example.frames[0]))
        direction = np.array(MOTIONS[example.answer])
        assert moved @ direction > 4
        assert np.abs(moved[:2] * (1 - np.abs(direction[:2]))).max() < 2


def test_answers_are_balanced_and_the_first_name_is_no_hint(drawings):
    order = drawings.examples("order", "test", 400)
    assert 160 < sum(e.answer == e.choices[0] for e in order) < 240
    for task, share in {"is_kind": 0.5, "is_there": 0.5, "count": 0.25, "motion": 1 / 6}.items():
        counts = Counter(e.answer for e in drawings.examples(task, "test", 400))
        assert max(counts.values()) < 400 * share * 1.4, task


def test_a_frame_without_its_time_tells_no_motion(drawings):
    """The centres of a leftward and of a rightward clip are spread alike."""
    centres = {"left": [], "right": []}
    for example in drawings.examples("motion", "test", 1500):
        if example.answer in centres:
            centres[example.answer] += [centre(frame)[0] for frame in example.frames]
    left, right = (np.sort(values) for values in centres.values())
    assert abs(left.mean() - right.mean()) < 0.05 * 40
    assert abs(left.std() - right.std()) < 0.05 * 40


def test_wrong_tasks_and_empty_manifests_are_one_line(drawings):
    with pytest.raises(ValueError, match=r"expected a task among caption, .*, got 'dance'"):
        drawings.example("dance", "test", np.random.default_rng(0))
    with pytest.raises(ValueError, match="expected rows with an image"):
        Drawings([Sample("x", text="x")])
    with pytest.raises(ValueError, match="expected at least 2 things in split 'other', got 0"):
        drawings.example("order", "other", np.random.default_rng(0))


@pytest.mark.parametrize("group", TOGETHER)
def test_questions_asked_together_share_their_picture_and_cover_the_group(drawings, group):
    rng = np.random.default_rng(0)
    tasks = set()
    for _ in range(30):
        asked = drawings.together(group, "train", rng)
        assert all(example.frames is asked[0].frames for example in asked)
        tasks |= {example.task for example in asked}
        for task in ("is_kind", "is_there"):
            answers = [example.answer for example in asked if example.task == task]
            assert not answers or sorted(answers) == ["no", "yes"]
    assert tasks == set(TOGETHER[group])


def test_questions_asked_together_are_answered_by_what_is_seen(drawings):
    rng = np.random.default_rng(1)
    numbers = ("", "one", "two", "three", "four")
    for _ in range(30):
        for example in drawings.together("scene", "train", rng):
            there = seen(example.frames[0])
            if example.task == "count":
                assert numbers[len(there)] == example.answer
            elif example.task == "is_there":
                name = example.question.split()[-1].rstrip("?")
                assert (name in there) == (example.answer == "yes")
            else:
                side, name = example.question.split()[2], example.question.split()[-1].rstrip("?")
                assert there == ([example.answer, name] if side == "left" else [name, example.answer])
        for example in drawings.together("drawing", "train", rng):
            (name,) = seen(example.frames[0])
            if example.task == "is_there":
                assert (name in example.question) == (example.answer == "yes")
            elif example.task == "is_kind":
                assert (KINDS[GROUPS[name]] in example.question) == (example.answer == "yes")
        for example in drawings.together("clip", "train", rng):
            if example.task == "order":
                assert seen(example.frames[0]) == [example.answer] and seen(example.frames[-1]) != [example.answer]


def test_an_unknown_group_is_refused(drawings):
    with pytest.raises(ValueError, match="expected a group among drawing, scene, clip, got 'film'"):
        drawings.together("film", "train", np.random.default_rng(0))
