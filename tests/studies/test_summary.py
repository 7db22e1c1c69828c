"""summary.json over seeds: means, nulls, the control and the bars."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from plait_studies.summary import BARS, Bar, summarise, write_summary

from ..planted import Planted, write_data


def stored(value: float, chance: float = 0.1) -> dict[str, Any]:
    units = {"a": value, "b": value}
    return {"value": value, "chance": chance, "interval": [value, value], "queries": 2, "gallery": 9, "units": units}


def evaluation(**values: float | None) -> dict[str, Any]:
    return {"metrics": {name: None if value is None else stored(value) for name, value in values.items()}}


def test_seeds_are_averaged_and_listed() -> None:
    summary = summarise([evaluation(audio_to_image_r1=0.4), evaluation(audio_to_image_r1=0.6)])
    found = summary["metrics"]["audio_to_image_r1"]
    assert summary["seeds"] == 2
    assert (found["value"], found["chance"], found["per_seed"]) == (0.5, 0.1, [0.4, 0.6])
    assert found["interval"] == [0.5, 0.5]


def test_what_was_not_measured_is_null() -> None:
    summary = summarise([evaluation(unseen_font_audio_to_image_r1=None, image_to_text_r1=0.5)])
    nothing = {"value": None, "chance": None, "per_seed": []}
    assert summary["metrics"]["unseen_font_audio_to_image_r1"] == nothing
    assert summary["metrics"]["shuffled_audio_to_image_r1"] == nothing
    assert set(summary["bars"]) == {"image_to_text_r1"}


def test_the_control_stands_beside_the_scores() -> None:
    summary = summarise([evaluation(audio_to_image_r1=0.6)], [evaluation(audio_to_image_r1=0.12)])
    assert summary["metrics"]["shuffled_audio_to_image_r1"]["value"] == 0.12
    assert summary["bars"]["shuffled_audio_to_image_r1"]["met"]
    summary = summarise([evaluation(audio_to_image_r1=0.6)], [evaluation(audio_to_image_r1=0.2)])
    assert not summary["bars"]["shuffled_audio_to_image_r1"]["met"]


@pytest.mark.parametrize(("fused", "met"), [(0.219, False), (0.23, True)])
def test_a_fused_query_is_held_to_the_better_of_its_parts(fused: float, met: bool) -> None:
    metrics = {"fused": stored(fused), "audio": stored(0.1), "text": stored(0.2)}
    check = Bar("fused", times=1.1, than=("audio", "text")).check(metrics)
    assert check is not None and check["met"] is met


def test_the_file_has_the_promised_layout(tmp_path: Path) -> None:
    from plait.evaluation.emergent import evaluate_emergent

    result = json.loads(json.dumps(evaluate_emergent(Planted(), write_data(tmp_path / "data")).to_json()))
    path = write_summary(tmp_path / "summary.json", summarise([result], [result]), {"stage1": 12.34})
    summary = json.loads(path.read_text())
    assert summary["seeds"] == 1
    assert summary["seconds"] == {"stage1": 12.3}
    promised = (
        "image_to_text_r1 text_to_image_r1 audio_to_text_r1 audio_to_image_r1 audio_to_image_r5 audio_to_all_images_r1 "
        "audio_to_all_images_r5 fused_to_image_r5 audio_only_to_image_r5 text_only_to_image_r5 "
        "shuffled_audio_to_image_r1 unseen_font_audio_to_image_r1"
    )
    for name in promised.split():
        assert {"value", "chance", "per_seed"} <= set(summary["metrics"][name]), name
    assert {bar.metric for bar in BARS} == set(summary["bars"])
    assert summary["about"]["versions"]["plait"]


def test_no_seed_at_all_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one seed"):
        summarise([])
