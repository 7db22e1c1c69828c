"""The `plait` command: exit codes, one-line errors, suggestions, and documents that name only what exists."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from safetensors import SafetensorError

from plait import __version__
from plait.cli import INTERRUPTED, VERBS, Verb, command, main
from plait.cli import verbs as all_verbs
from plait.errors import MissingExtraError, UsageError, extra_of, import_extra

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "examples").rglob("*.md"))]

app = typer.Typer()


@app.command("build")
def build(target: Annotated[str, typer.Argument()]) -> None:
    """A sub-verb."""
    print(f"built {target}")


def work(outcome: Annotated[str, typer.Argument()] = "ok", number: Annotated[int, typer.Option("--number")] = 0) -> Any:
    """A verb that ends as it is told."""
    raisers = {
        "value": ValueError("expected a model,\n got a cat; give a model"),
        "usage": UsageError("expected a query, got none; add --text"),
        "file": FileNotFoundError(2, "No such file or directory", "a.jpg"),
        "bug": KeyError("inside"),
        "interrupt": KeyboardInterrupt(),
        "package": ModuleNotFoundError("No module named 'lancedb'", name="lancedb"),
        "own": ModuleNotFoundError("No module named 'plait.nowhere'", name="plait.nowhere"),
        "exit": typer.Exit(1),
        "memory": MemoryError(),
        "levels": RecursionError("maximum recursion depth exceeded"),
        "overflow": OverflowError("int too large to convert to float"),
        "type": TypeError("'NoneType' object is not subscriptable"),
        "damaged": SafetensorError("invalid header"),
        "full": SafetensorError("I/O error: No space left on device (os error 28)"),
        "coloured": ValueError("expected a name, got \x1b[2Jgone\x07"),
        "half": ValueError("expected a name, got \udcff"),
    }
    if outcome in raisers:
        raise raisers[outcome]
    if outcome == "speak":
        print("a cat\x1b[2J \u202egnp\x9b31m \udcff", file=sys.stdout)
        return None
    print(f"number {number}")
    return 1 if outcome == "one" else None


@pytest.fixture
def verbs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "work", Verb(f"{__name__}:work", "test"))
    monkeypatch.setitem(VERBS, "things", Verb(f"{__name__}:app", "test"))


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("work value", 1, "plait: expected a model, got a cat; give a model"),
        ("work memory", 1, "plait: expected work that fits in memory, got more"),
        ("work levels", 1, "nested too deep"),
        ("work overflow", 1, "got OverflowError: int too large"),
        ("work type", 1, "got TypeError: 'NoneType'"),
        ("work damaged", 1, "got SafetensorError: invalid header"),
        ("work full", 1, "no space left on device; free some space"),
        ("work coloured", 1, r"got \x1b[2Jgone\x07"),
        ("work half", 1, r"got \udcff"),
        ("work usage", 2, "plait: expected a query, got none; add --text"),
        ("work file", 1, "plait: expected to read or write a.jpg, got no such file or directory; check the path"),
        (
            "work package",
            1,
            "plait: expected the package lancedb, found none; install it with: pip install 'plait[search]'",
        ),
        ("work --nmber 3", 2, "--number"),
        ("work --number x", 2, "valid integer"),
        ("work a b c", 2, "expected no more arguments, got b c; see plait work --help"),
        ("wrok", 2, "did you mean 'plait work'?"),
        ("zzzzzz", 2, "plait --help lists the verbs"),
        ("--verbose", 2, "expected a verb, got '--verbose'"),
        ("work --colour red", 2, "expected an option of this verb, got '--colour'; see plait work --help"),
        ("work --number", 2, "expected a value after '--number', got none; see plait work --help"),
        ("things", 2, "expected a sub-verb, got none; see plait things --help"),
        ("things buidl x", 2, "expected a sub-verb, got 'buidl'; did you mean 'build'?; see plait things --help"),
        ("things build", 2, "expected the argument 'target', got none"),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(line: str, code: int, said: str, capsys: pytest.CaptureFixture) -> None:
    assert main(line.split()) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err
    assert err.startswith("plait: ") and err.count("\n") == 1


def test_a_verb_of_sub_verbs_alone_shows_its_help_and_no_error(capsys: pytest.CaptureFixture) -> None:
    assert main(["index"]) == 2
    out, err = capsys.readouterr()
    assert "dedup" in out
    assert err == ""


@pytest.mark.usefixtures("verbs")
def test_work_that_succeeds_exits_0(capsys: pytest.CaptureFixture) -> None:
    assert main(["work", "--number", "3"]) == 0
    assert main(["things", "build", "houses"]) == 0  # an app with one sub-verb still names it
    assert capsys.readouterr().out == "number 3\nbuilt houses\n"


@pytest.mark.usefixtures("verbs")
def test_a_verb_can_choose_its_exit_code() -> None:
    assert main(["work", "one"]) == 1
    assert main(["work", "exit"]) == 1


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize("line", ["--debug work value", "work value --debug"])
def test_debug_shows_the_traceback(line: str, capsys: pytest.CaptureFixture) -> None:
    assert main(line.split()) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.usefixtures("verbs")
@pytest.mark.parametrize(("outcome", "error"), [("bug", KeyError), ("own", ModuleNotFoundError)])
def test_a_bug_is_not_dressed_up_as_a_user_error(outcome: str, error: type[Exception]) -> None:
    with pytest.raises(error):
        main(["work", outcome])


@pytest.mark.usefixtures("verbs")
def test_an_interrupt_is_said_and_exits_130(capsys: pytest.CaptureFixture) -> None:
    assert main(["work", "interrupt"]) == INTERRUPTED == 130
    assert capsys.readouterr().err == "\nplait: work was interrupted\n"


@pytest.mark.parametrize("args", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(args: list[str], capsys: pytest.CaptureFixture) -> None:
    assert main(args) == 0
    out = capsys.readouterr().out
    for name, verb in all_verbs().items():
        assert re.search(rf"^  {name} +{re.escape(verb.help)}$", out, re.MULTILINE)


def test_version_is_printed(capsys: pytest.CaptureFixture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"plait {__version__}\n"


@pytest.mark.parametrize("name", all_verbs())
def test_every_verb_exists_and_explains_itself(name: str, capsys: pytest.CaptureFixture) -> None:
    assert main([name, "--help"]) == 0
    assert "--help" in capsys.readouterr().out


def commands_in(document: Path) -> list[str]:
    """The `plait ...` lines of a document's shell blocks, comments and prompts removed."""
    blocks = re.findall(r"```(?:bash|sh|console)\n(.*?)```", document.read_text(encoding="utf-8"), re.DOTALL)
    lines = (line.removeprefix("$ ").strip() for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.startswith("plait ")]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_documents_name_only_verbs_and_options_that_exist(document: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("plait.models.plugins.use", lambda file: None)  # files of a reader's own are not here
    for line in commands_in(document):
        name, *args = shlex.split(line, comments=True)[1:]
        if name.startswith("--"):
            continue
        assert name in all_verbs(), f"{document.name}: {line}"
        verb = command(name)
        if hasattr(verb, "commands"):
            assert args[0] in verb.commands, f"{document.name}: {line}"
            verb, args = verb.commands[args[0]], args[1:]
        context = verb.make_context(
            name, args, resilient_parsing=False
        )  # raises on an unknown option or a missing argument
        context.close()


def test_every_verb_that_reads_media_can_raise_their_limits() -> None:
    for name in VERBS:
        options = {option for one in getattr(command(name), "params", ()) for option in one.opts}
        assert "media" not in options or "--limit" in options, name


def test_the_readme_shows_commands() -> None:
    assert len(commands_in(ROOT / "README.md")) >= 4


def test_extras_are_found_in_the_package_metadata() -> None:
    assert (extra_of("av"), extra_of("lancedb"), extra_of("resvg_py"), extra_of("torch")) == (
        "media",
        "search",
        "build",
        None,
    )
    with pytest.raises(MissingExtraError, match="pip install not_a_package"):
        import_extra("not_a_package.part")
    assert import_extra("typer") is import_module("typer")


@pytest.mark.usefixtures("verbs")
def test_what_a_verb_prints_cannot_move_the_cursor(capsys: pytest.CaptureFixture) -> None:
    assert main(["work", "speak"]) == 0
    assert capsys.readouterr().out == "a cat\\x1b[2J \\u202egnp\\x9b31m \\udcff\n"


def test_words_that_the_locale_lacks_are_spelled_out() -> None:
    name = r"b'na\xefve-\xff'.decode('utf-8', 'surrogateescape')"
    code = f"from plait.cli import main; import sys; sys.exit(main(['info', {name}]))"
    env = os.environ | {"LC_ALL": "C", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("plait: expected") and done.stderr.count("\n") == 1
