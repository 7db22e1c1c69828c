"""The verb `plait chat` in a terminal and in a pipe."""

from __future__ import annotations

import io
import json
import sys

import pytest
from PIL import Image

from plait.chat import Chat
from plait.cli import main
from plait.cli.chat import HELP, converse

from ..models.mplug_owl2.tiny import model_and_processor


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    directory = tmp_path_factory.mktemp("owl2")
    for part in model_and_processor():
        part.save_pretrained(directory)
    Image.new("RGB", (20, 9), "navy").save(directory / "a.png")
    return directory


def run(monkeypatch, lines, *args, terminal=False) -> int:
    monkeypatch.setattr(sys, "stdin", (Terminal if terminal else io.StringIO)("\n".join(lines) + "\n"))
    return main(["chat", *map(str, args)])


def test_a_pipe_asks_line_by_line(place, monkeypatch, capsys):
    options = (place, "--image", place / "a.png", "--max-new-tokens", "4", "--json")
    assert run(monkeypatch, ["what?", "", "and now?"], *options) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["question"] for row in rows] == ["what?", "and now?"]
    chat = Chat(str(place), max_new_tokens=4)
    assert rows[0]["answer"] == chat.ask("what?", images=[place / "a.png"])
    assert rows[1]["answer"] == chat.ask("and now?")


def test_a_terminal_shows_forgets_and_survives_mistakes(place, monkeypatch, capsys):
    lines = [
        f"/image {place / 'a.png'}",
        "what?",
        "/image nowhere.png",
        "/dance",
        "/imagine",
        "/new",
        "hi",
        "/exit",
        "no",
    ]
    assert run(monkeypatch, lines, place, "--max-new-tokens", "3", terminal=True) == 0
    out, err = capsys.readouterr()
    assert HELP in out and "expected a file to show, got nowhere.png" in err
    assert "expected one of /image" in err and out.count("you: ") == 8


def test_a_pipe_with_a_mistake_fails(place, monkeypatch, capsys):
    assert run(monkeypatch, ["/image nowhere.png"], place) == 1
    assert "expected a file to show" in capsys.readouterr().err
    assert run(monkeypatch, ["x"], place, "--image", "nowhere.png") == 1


class Stopped:
    """A chat whose answer is interrupted after a piece."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def stream(self, question, images, videos):
        self.asked.append(question)
        yield "well"
        raise KeyboardInterrupt


def test_ctrl_c_stops_an_answer_and_a_line_but_not_the_chat(monkeypatch, capsys):
    typed = iter(["first", KeyboardInterrupt, "second", EOFError])

    def read(prompt=""):
        value = next(typed)
        if isinstance(value, str):
            return value
        raise value

    monkeypatch.setattr("builtins.input", read)
    monkeypatch.setattr(sys, "stdin", Terminal())
    talk = Stopped()
    assert converse(talk, [], []) == 0
    assert talk.asked == ["first", "second"]
    assert capsys.readouterr().out.count("well (stopped)") == 2


@pytest.mark.parametrize(("terminal", "shown"), [(True, "a[2Jb\tü\n"), (False, "a\x1b[2Jb\tü\n\n")])
def test_an_answer_does_not_steer_the_terminal(monkeypatch, capsys, terminal, shown):
    class Hostile:
        def stream(self, question, images, videos):
            yield from ("a\x1b[2J", "b\tü\n\x9b" if terminal else "b\tü\n")

    monkeypatch.setattr(sys, "stdin", (Terminal if terminal else io.StringIO)("hi\n"))
    assert converse(Hostile(), [], []) == 0
    assert shown in capsys.readouterr().out


def test_the_verb_is_in_the_first_help(capsys):
    assert main(["--help"]) == 0
    assert "talk with a model" in capsys.readouterr().out.partition("more:")[0]
