"""Bars show on terminals only, and text from files cannot move the cursor."""

from __future__ import annotations

import io
import sys

import pytest

from plait import terminal
from plait.terminal import printable, progress_bar


class Screen(io.StringIO):
    """A stderr that is a terminal, or is none."""

    def __init__(self, is_terminal: bool) -> None:
        super().__init__()
        self.is_terminal = is_terminal

    def isatty(self) -> bool:
        return self.is_terminal


@pytest.mark.parametrize(
    ("is_terminal", "show", "is_seen"),
    [(True, None, True), (False, None, False), (False, True, True), (True, False, False)],
)
def test_a_bar_is_seen_where_somebody_looks(
    monkeypatch: pytest.MonkeyPatch, is_terminal: bool, show: bool | None, is_seen: bool
) -> None:
    screen = Screen(is_terminal)
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setattr(terminal, "PATIENCE", 0.0)
    with progress_bar("reading", total=3, unit="file", show=show) as bar:
        bar.update(2)
    assert ("reading" in screen.getvalue()) is is_seen


def test_short_work_shows_no_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(True)
    monkeypatch.setattr(sys, "stderr", screen)
    with progress_bar("reading", total=3) as bar:
        bar.update(3)
    assert "reading" not in screen.getvalue()


def test_a_bar_goes_over_items(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen(False)
    monkeypatch.setattr(sys, "stderr", screen)
    assert list(progress_bar("reading", "abc", show=True)) == ["a", "b", "c"]
    assert "3/3" in screen.getvalue()


def test_control_characters_are_spelled_out() -> None:
    assert printable("a\x1b[2Jb\rc\nü") == "a\\x1b[2Jb\\rc\\nü"


@pytest.mark.parametrize(("patience", "is_told"), [(0.0, True), (60.0, False)])
def test_a_log_is_told_of_long_work_alone(monkeypatch: pytest.MonkeyPatch, patience: float, is_told: bool) -> None:
    log = Screen(False)
    monkeypatch.setattr(sys, "stderr", log)
    monkeypatch.setattr(terminal, "LOG_PATIENCE", patience)
    with progress_bar("reading", total=3, unit="file") as bar:
        bar.update(2)
    assert ("reading" in log.getvalue()) is is_told
