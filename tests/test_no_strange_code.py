"""Code that lies in a model directory is never run, whatever stands on standard input."""

from __future__ import annotations

import ast
import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import plait
from plait.cli import main
from plait.evaluation.models import open_model
from plait.models import shipped
from plait.models.auto import load_processor

SOURCE = Path(plait.__file__).parent
SUPER = "super()"
NO_CODE = (SUPER, "peft.PeftConfig")
"""Receivers of `from_pretrained` that read JSON alone or hand on what they were given."""
BY_NAME = ("pipeline", "SentenceTransformer", "CrossEncoder", "get_class_from_dynamic_module")


def calls(tree: ast.AST) -> Iterator[tuple[ast.Call, str, str]]:
    """Calls with what they are called on and their name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            yield node, ast.unparse(node.func.value), node.func.attr
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            yield node, "", node.func.id


def trusting(source: str) -> list[int]:
    """Lines of calls that may run the code of a model directory, since nothing in them forbids it."""
    found, tree = [], ast.parse(source)
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {one.asname: one.name for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for one in node.names}
    for node in ast.walk(tree):  # handed on, so that whoever calls it may trust what it reads
        if isinstance(node, ast.Attribute) and node.attr == "from_pretrained" and id(node) not in called:
            found.append(node.lineno)
        is_named = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "getattr"
        if is_named and any(isinstance(one, ast.Constant) and one.value == "from_pretrained" for one in node.args):
            found.append(node.lineno)
    for call, owner, name in calls(tree):
        name, owner = names.get(name, name), names.get(owner, owner)
        trusts = any(word.arg == "trust_remote_code" and ast.unparse(word.value) == "True" for word in call.keywords)
        reads = name == "from_pretrained" and (owner not in NO_CODE or trusts)
        builds = name == "from_config" and owner.rpartition(".")[2].startswith("Auto")
        forbids = any(
            word.arg == "trust_remote_code" and isinstance(word.value, ast.Constant) and word.value.value is False
            for word in call.keywords
        )
        if (reads or builds or name in BY_NAME) and not forbids:
            found.append(call.lineno)
    return found


def test_every_call_that_reads_a_model_forbids_its_code() -> None:
    files = {path.relative_to(SOURCE): path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py")}
    del files[Path("models", "registry.py")]  # hands a person's own AutoBackbone call on as it came
    found = [f"{path}:{line}" for path, source in files.items() for line in trusting(source)]
    assert found == []


@pytest.mark.parametrize(
    ("line", "is_trusting"),
    [
        ("AutoModel.from_pretrained(p)", True),
        ("AutoModel.from_pretrained(p, trust_remote_code=True)", True),
        ("AutoModel.from_pretrained(p, trust_remote_code=wanted)", True),
        ("getattr(transformers, reader).from_pretrained(p)", True),
        ("transformers.AutoModel.from_config(c)", True),
        ("pipeline('x', p)", True),
        ("from transformers import pipeline as run\nrun('x', p)", True),
        ("from transformers import AutoModel as Any\nAny.from_config(c)", True),
        ("f = AutoModel.from_pretrained\nf(p)", True),
        ("partial(AutoModel.from_pretrained, p)", True),
        ("getattr(AutoModel, 'from_pretrained')(p)", True),
        ("super().from_pretrained(p, trust_remote_code=True)", True),
        ("AutoModel.from_pretrained(p, trust_remote_code=False)", False),
        ("MPlugOwlProcessor.from_config(c, t)", False),
        ("super().from_pretrained(*args, **kwargs)", False),
    ],
)
def test_the_walk_tells_calls_apart(line: str, is_trusting: bool) -> None:
    assert bool(trusting(line)) is is_trusting


AUTO = ("Config", "Model", "ModelForCausalLM", "ImageProcessor", "FeatureExtractor", "Processor")
STRANGE = {"auto_map": {f"Auto{name}": "strange.Strange" for name in AUTO}}
STRANGE_WORDS = {"tokenizer_class": "Strange", "auto_map": {"AutoTokenizer": ["strange.Strange", None]}}


@pytest.fixture
def sentinel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 99))
    return tmp_path / "ran"


def stranger(directory: Path, sentinel: Path) -> Path:
    """A model whose every class is its own."""
    directory.mkdir(exist_ok=True)
    config = {"model_type": "strange", "architectures": ["StrangeForCausalLM"], **STRANGE}
    (directory / "config.json").write_text(json.dumps(config))
    (directory / "tokenizer_config.json").write_text(json.dumps(STRANGE_WORDS))
    (directory / "preprocessor_config.json").write_text(json.dumps(STRANGE))
    (directory / "strange.py").write_text(f"open({str(sentinel)!r}, 'w').close()\n\n\nclass Strange: ...\n")
    return directory


def sentence_stranger(directory: Path, sentinel: Path) -> Path:
    """The same as a sentence model."""
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    rows = [{"idx": n, "name": str(n), "path": path, "type": f"st.{kind}"} for n, (path, kind) in enumerate(kinds)]
    stranger(directory, sentinel)
    (directory / "modules.json").write_text(json.dumps(rows))
    return directory


def disguised(directory: Path, sentinel: Path) -> Path:
    """The shipped model, whose own classes are ours, with a tokenizer that is not."""
    shutil.copytree(str(shipped("nano")), directory)
    config = json.loads((directory / "config.json").read_text())
    own = stranger(directory, sentinel)
    (own / "config.json").write_text(json.dumps(config | STRANGE))
    return own


WAYS: dict[str, Callable[[Path], Any]] = {
    "load": plait.load,
    "load_processor": load_processor,
    "Embedder": plait.Embedder,
    "Chat": plait.Chat,
    "Assistant": plait.Assistant,
    "eval": lambda place: open_model(place, ["embed", "text"]),
    "eval of a peer": lambda place: open_model(f"hf:{place}", ["text", "embed"]),
}


@pytest.mark.parametrize("made", [stranger, disguised])
@pytest.mark.parametrize("way", WAYS)
def test_a_strangers_code_is_refused_in_one_line(
    way: str, made: Callable[[Path, Path], Path], tmp_path: Path, sentinel: Path
) -> None:
    place = made(tmp_path / "model", sentinel)
    with pytest.raises(ValueError) as caught:
        WAYS[way](place)
    assert not sentinel.exists()
    assert "\n" not in str(caught.value)
    assert "code of its own" in str(caught.value)
    assert "trust_remote_code" not in str(caught.value)


def test_a_sentence_models_code_is_refused_in_one_line(tmp_path: Path, sentinel: Path) -> None:
    with pytest.raises(ValueError, match="code of its own") as caught:
        plait.Embedder(sentence_stranger(tmp_path / "model", sentinel))
    assert "\n" not in str(caught.value)
    assert not sentinel.exists()


@pytest.mark.parametrize("made", [stranger, sentence_stranger, disguised])
def test_the_command_ends_with_one_line(
    made: Callable[[Path, Path], Path], tmp_path: Path, sentinel: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    place = made(tmp_path / "model", sentinel)
    assert main(["embed", str(place), "--text", "a", "--out", str(tmp_path / "v.npy")]) == 1
    out, err = capfd.readouterr()
    assert "code of its own" in err
    assert len(err.strip().splitlines()) == 1
    assert "[y/N]" not in out + err
    assert not sentinel.exists()
