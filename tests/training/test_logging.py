from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
import torch

from plait.training.logging import MetricsLog, ProgressLine, read_metrics, to_floats


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


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "ends"), [(Terminal(), "\r"), (io.StringIO(), "\n")])
def test_progress_shows_loss_rate_and_what_is_left(
    stream: io.StringIO, ends: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 0.1, 100.0, 200.0])
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr("plait.training.logging.time.monotonic", lambda: next(clock))
    line = ProgressLine("stage1", total=300, done=100, batch_size=8)
    line.update(101, 9.0)  # too early to draw
    line.update(200, 2.5)
    line.update(300, 1.25)
    line.close()
    drawn = [part for part in stream.getvalue().split(ends) if part.strip()]
    assert len(drawn) == 2
    assert drawn[0].startswith("stage1:  67%")
    assert "200/300 [01:40<01:40,  1.00step/s, loss 2.5, 8 samples/s]" in drawn[0]
    assert stream.getvalue().endswith("\n")


def test_progress_can_be_silent(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine("stage1", 10, 0, 8, is_shown=False)
    line.update(10, 1.0)
    line.close()
    assert capsys.readouterr() == ("", "")


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
