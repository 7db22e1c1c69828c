from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from plait.training.logging import MetricsLog, read_metrics, to_floats


def written(path: Path, *steps: int) -> None:
    log = MetricsLog(path, steps[0] - 1)
    for step in steps:
        log.write({"step": step, "stage": "s", "loss": step / 2})
    log.close()


def test_a_resumed_log_forgets_what_comes_after_and_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    written(path, 1, 2, 3, 4, 5)
    with path.open("a") as file:
        file.write('{"step": 6, "stage": "s", "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3, 4, 5]
    written(path, 4, 5)
    assert path.read_text() == "".join(
        json.dumps({"step": step, "stage": "s", "loss": step / 2}) + "\n" for step in (1, 2, 3, 4, 5)
    )


def test_a_broken_line_in_the_middle_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\nnot json\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"expected JSON in line 2 of .*, got 'not json'"):
        read_metrics(path)


def test_lines_reach_the_file_when_flushed(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.write({"step": 1, "stage": "s", "loss": 1.0})
    log.flush()
    assert [row["loss"] for row in read_metrics(log.path)] == [1.0]
    log.close()


def test_tensors_and_numbers_become_numbers_in_order() -> None:
    rows = [{"a": torch.tensor(1.5), "b": 2, "c": torch.tensor(3)}, {"a": torch.tensor(4.0), "d": True}]
    assert to_floats(rows, torch.device("cpu")) == [{"a": 1.5, "b": 2.0, "c": 3.0}, {"a": 4.0, "d": 1.0}]


def test_tensorboard_gets_the_same_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    log = MetricsLog(tmp_path / "metrics.jsonl", tensorboard=True)
    for step in (1, 2):
        log.write({"step": step, "stage": "s", "loss": step / 4})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [(event.step, event.value) for event in events.Scalars("s/loss")] == [(1, 0.25), (2, 0.5)]
