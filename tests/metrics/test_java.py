"""The adapter of the Java programs, held against a stand-in for the package that brings them and for `java` itself."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from plait.metrics import java

PROGRAM = """#!{python}
import sys

def words(line):
    return [part.split() for part in line.rstrip("\\n").split(" ||| ")[1:]]

if "-stdio" in sys.argv:
    for line in sys.stdin:
        if line.startswith("SCORE"):
            *references, said = words(line)
            print(len(set(said) & set(references[0])), len(references), flush=True)
        else:
            values = [float(part[0]) / 10 for part in words(line)]
            print(*values, sum(values), sep="\\n", flush=True)
else:
    for line in open(sys.argv[-1], encoding="utf-8"):
        print(line.lower().replace("n't", " n't"), end="")
"""
METEOR = """
import subprocess
starts = 0

class Meteor:
    def __init__(self):
        global starts
        starts += 1
        pipe = subprocess.PIPE
        self.meteor_p = subprocess.Popen(["java", "-stdio"], stdin=pipe, stdout=pipe, stderr=pipe)

    def ask(self, line):
        self.meteor_p.stdin.write(f"{line}\\n".encode())
        self.meteor_p.stdin.flush()
        return self.meteor_p.stdout.readline().decode().strip()

    def compute_score(self, gts, res):
        stats = [self.ask(" ||| ".join(["SCORE", *gts[i], res[i][0]])) for i in gts]
        first = float(self.ask(" ||| ".join(["EVAL", *stats])))
        rest = [float(self.meteor_p.stdout.readline()) for _ in stats]
        return rest[-1], [first, *rest[:-1]]
"""
TOKENIZER = """
import pathlib, subprocess

class PTBTokenizer:
    def tokenize(self, table):
        place = pathlib.Path(__file__).with_name("captions.txt")
        place.write_text("\\n".join(row[0]["caption"] for row in table.values()), encoding="utf-8")
        lines = subprocess.run(["java", str(place)], capture_output=True, text=True, check=True).stdout.split("\\n")
        return {key: [line] for key, line in zip(table, lines)}
"""
SPICE = """
class Spice:
    def compute_score(self, gts, res):
        items = [{"All": {"f": len(res[i][0].split()) / 10}} for i in gts]
        return sum(item["All"]["f"] for item in items) / len(items), items
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A stand-in package and program, on the paths where the adapter looks."""
    root = tmp_path / "site" / java.PACKAGE
    for name, text in {"meteor/meteor": METEOR, "tokenizer/ptbtokenizer": TOKENIZER, "spice/spice": SPICE}.items():
        (root / name).parent.mkdir(parents=True)
        (root / f"{name}.py").write_text(text, encoding="utf-8")
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(PROGRAM.format(python=sys.executable), encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.syspath_prepend(str(root.parent))
    monkeypatch.setenv("PATH", str(program.parent))
    java._meteor_tool.cache_clear()
    yield root
    if java._meteor_tool.cache_info().currsize:
        java._end(java._meteor_tool())
    java._meteor_tool.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == java.PACKAGE]:
        del sys.modules[name]


SAID, RIGHT = [["a", "dog"], ["snow"]], [[["a", "cat"], ["b"]], [["snow"]]]


@pytest.mark.usefixtures("package")
def test_meteor_asks_the_program_line_by_line_and_starts_it_once() -> None:
    assert java.missing() is None
    for _ in range(2):
        assert java.meteor(SAID, RIGHT) == (pytest.approx(0.2), [0.1, 0.1])
    assert sys.modules[f"{java.PACKAGE}.meteor.meteor"].starts == 1


@pytest.mark.usefixtures("package")
def test_meteor_starts_again_after_the_program_died() -> None:
    java.meteor(SAID, RIGHT)
    java._end(java._meteor_tool())
    with pytest.raises((OSError, ValueError)):
        java.meteor(SAID, RIGHT)
    assert java.meteor(SAID, RIGHT)[0] == pytest.approx(0.2)


@pytest.mark.usefixtures("package")
def test_captions_are_tokenised_in_two_calls_and_keep_their_order() -> None:
    said, right = java.tokenized(["It ISN'T", ""], [["A\nb", "c\u2028d"], ["E"]])
    assert said == [["it", "is", "n't"], []]
    assert right == [[["a", "b"], ["c", "d"]], [["e"]]]


def test_spice_runs_where_its_models_are(package: Path) -> None:
    reason = java.spice_missing()
    assert reason is not None
    assert "get_stanford_models" in reason
    with pytest.raises(RuntimeError, match="needs the parser models of SPICE"):
        java.spice(SAID, RIGHT)
    (package / java.SPICE_MODELS).parent.mkdir(parents=True)
    (package / java.SPICE_MODELS).touch()
    assert java.spice(SAID, RIGHT) == (pytest.approx(0.15), [0.2, 0.1])


def test_what_is_missing_is_one_line(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(java, "PACKAGE", "pycocoevalcap_absent")
    with pytest.raises(RuntimeError, match="needs Java: expected the package pycocoevalcap_absent, found none"):
        java.meteor(SAID, RIGHT)
    monkeypatch.setenv("PATH", str(package))
    with pytest.raises(RuntimeError, match="needs Java: expected the program java on the path, found none"):
        java.stanford_tokens(["a"])
