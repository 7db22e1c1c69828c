"""Every door a stranger's bytes or words come through, under fire: an answer, or one line of the library's own.

odd value -> door -> nothing executed, no hang over five seconds, memory within a gigabyte, a ValueError or an exit code

`python -m pytest tests/test_attack.py -m slow` tries twenty thousand inputs of a kind, and prints how they ended.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from plait.cli import main
from plait.cli import verbs as all_verbs
from plait.models import mplug2, mplug_owl, mplug_owl2, one_peace, shipped
from plait.models.auto import load_config, load_processor
from plait.search.filters import to_sql
from plait.weights.files import read_checkpoint

from .fuzzing import bounded_memory, within

SAVED = Path(__file__).parent / "fixtures" / "saved"
CONFIGS: tuple[Any, ...] = (
    one_peace.OnePeaceConfig,
    mplug2.MPlug2Config,
    mplug_owl.MPlugOwlConfig,
    mplug_owl2.MPlugOwl2Config,
)
DIRECTORIES = ("one_peace", "mplug2_captions", "mplug_owl", "mplug_owl2")
ODD: tuple[Any, ...] = (
    *(None, True, "", "x", "9" * 30, "\x00", "\x1b[2J", "../..", "\ud800", -1, 0, 3.5, -5.5, 1e300, float("inf")),
    *(
        float("nan"),
        10**30,
        1 << 40,
        [],
        [None],
        [[1]],
        [[[]]],
        [1, 2, 3],
        ["text", "image"],
        {},
        {"a": 1},
        {"text": {}},
    ),
)
PIECES = (
    *(b"null", b"[", b"]" * 50, b"{", b"}", b'"', b"\x00", b"\xff", b"\n", b"\\u0000", b"1e999", b"-", b"NaN", b","),
    *(b"[" * 5_000, b'{"a":' * 2_000, b"9" * 5_000, b'"id":', b"true", b"-1", b"1099511627776", b"\xe2\x80\xa8"),
)
FULL = 20_000


def damaged(data: bytes, rng: random.Random, front: int | None = None) -> bytes:
    """`data` with some bytes changed, removed or put in; front: only among so many first bytes."""
    made = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 6])):
        at = rng.randrange(min(len(made), front or len(made)) + 1)
        match rng.randrange(4):
            case 0:
                made[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                del made[at : at + rng.randrange(1, 30)]
            case 2:
                made[at:at] = rng.choice(PIECES)
            case 3:
                made[at:at] = made[rng.randrange(len(made) + 1) :][:60]
    return bytes(made)


def odd_json(value: Any, rng: random.Random) -> Any:
    """`value` of JSON with something odd somewhere inside."""
    if isinstance(value, dict) and value and rng.random() < 0.85:
        name = rng.choice(list(value))
        return value | {name: odd_json(value[name], rng)}
    if isinstance(value, list) and value and rng.random() < 0.6:
        place = rng.randrange(len(value))
        return [*value[:place], odd_json(value[place], rng), *value[place + 1 :]]
    return rng.choice(ODD)


def attempts(count: int, seed: int, attack: Callable[[random.Random], str]) -> Counter[str]:
    """Try an attack so often. It names what it gave; how each ended is counted."""
    ends: Counter[str] = Counter()
    for turn in range(count):
        rng = random.Random(seed * 1_000_003 + turn)
        try:
            with within():
                attack(rng)
            ends["taken"] += 1
        except ValueError as error:
            said = str(error)
            # a JSON reader's own class is a ValueError too; the library's lines are single ones
            assert said and "\n" not in said and len(said) < 3_000, f"turn {turn}: {said[:400]!r}"
            ends["refused"] += 1
        except (FileNotFoundError, IsADirectoryError) as error:
            assert error.filename is not None
            ends["no file"] += 1
        except Exception as error:
            raise AssertionError(f"turn {turn} of seed {seed}: an untyped {type(error).__name__}: {error}") from error
    print(dict(ends))
    return ends


def counts(bounded: int, full: int = FULL) -> pytest.MarkDecorator:
    """A bounded form that always runs, and the full one that `make test-all` runs."""
    return pytest.mark.parametrize("count", [bounded, pytest.param(full, marks=pytest.mark.slow)])


@pytest.fixture(scope="module", autouse=True)
def known() -> None:
    """Every family is imported before anything is watched: some packages look at the machine when they are imported."""
    for name in DIRECTORIES:
        load_processor(SAVED / name)


@pytest.fixture
def copies(tmp_path: Path) -> dict[str, Path]:
    """Model directories without their weights, to be spoilt."""
    ignored = shutil.ignore_patterns("*.safetensors", "answers*")
    return {name: Path(shutil.copytree(SAVED / name, tmp_path / name, ignore=ignored)) for name in DIRECTORIES}


@bounded_memory()
@counts(150)
def test_odd_fields_of_configurations(count: int) -> None:
    bases = [config().to_dict() for config in CONFIGS]

    def attack(rng: random.Random) -> str:
        number = rng.randrange(len(CONFIGS))
        fields = odd_json(odd_json(bases[number], rng), rng)
        CONFIGS[number](**fields if isinstance(fields, dict) else {})
        return ""

    assert attempts(count, 1, attack)["refused"] > count // 4


def spoil(place: Path, name: str, rng: random.Random, front: int | None = None) -> bytes:
    """Make a file of a directory odd, as JSON or as bytes; what it held before."""
    before = (place / name).read_bytes()
    if rng.random() < 0.5:
        (place / name).write_bytes(damaged(before, rng, front))
    else:
        (place / name).write_text(json.dumps(odd_json(json.loads(before), rng)))
    return before


@bounded_memory()
@pytest.mark.parametrize("name", ["config.json", "processor_config.json", "tokenizer_config.json", "tokenizer.json"])
@counts(20, FULL // 2)
def test_odd_files_of_model_directories(count: int, name: str, copies: dict[str, Path]) -> None:
    def attack(rng: random.Random) -> str:
        number = rng.randrange(len(DIRECTORIES))
        place = copies[DIRECTORIES[number]]
        before = spoil(place, name, rng, 3_000 if name == "tokenizer.json" else None)
        try:
            if name == "config.json":
                load_config(place, CONFIGS[number])
            else:
                load_processor(place)
        finally:
            (place / name).write_bytes(before)
        return name

    attempts(count, 2, attack)


def odd_input(rng: random.Random, kind: str) -> Any:
    """Something for the keyword `kind` of a processor, right or odd."""
    right: dict[str, Callable[[], Any]] = {
        "text": lambda: rng.choice(["a dog", ["a", "b"], "<image> what?", "<|image|><|image|>", ""]),
        "images": lambda: rng.choice(
            [Image.new("RGB", (9, 7)), [Image.new("L", (5, 5))], np.zeros((8, 8, 3), np.uint8)]
        ),
        "videos": lambda: [np.zeros((2, 8, 8, 3), np.uint8)],
        "audio": lambda: rng.choice([np.zeros(800, np.float32), [np.ones(900)]]),
    }
    strange: list[Callable[[], Any]] = [
        lambda: np.zeros(rng.choice([(), (0,), (0, 0, 3), (1, 1), (3, 4, 5, 6, 7), (2, 2, 99)])),
        lambda: np.full((4, 4, 3), np.nan),
        lambda: np.array(["a", None], dtype=object),
        lambda: torch.zeros(rng.choice([(), (3,), (3, 0, 4), (2, 3, 4, 4)])),
        lambda: Image.new(rng.choice(["F", "I", "CMYK", "1"]), (rng.choice([1, 7]), 3)),
        lambda: b"\x89PNG",
        object,
        lambda: [Image.new("RGB", (2, 2)), None, "x"],
        lambda: rng.choice(ODD),
    ]
    return right[kind]() if kind in right and rng.random() < 0.5 else rng.choice(strange)()


@bounded_memory()
@pytest.mark.parametrize("name", DIRECTORIES)
@counts(60, FULL // 4)
def test_odd_inputs_of_processors(count: int, name: str) -> None:
    processor = load_processor(SAVED / name)
    parts = [processor.image_processor, getattr(processor, "feature_extractor", None)]

    def attack(rng: random.Random) -> str:
        if rng.random() < 0.2 and (part := rng.choice(parts)) is not None:
            part(odd_input(rng, rng.choice(["images", "audio"])))
            return ""
        kinds = ["text", "images", "videos", "audio", "padding", "max_length", "truncation", "return_tensors", "x"]
        processor(**{kind: odd_input(rng, kind) for kind in rng.sample(kinds, rng.randrange(1, 4))})
        return ""

    attempts(count, 3, attack)


@bounded_memory()
@counts(150)
def test_damaged_safetensors(count: int, tmp_path: Path) -> None:
    from safetensors.torch import save

    data = save({"a.weight": torch.ones(3, 4), "b": torch.zeros(2, dtype=torch.int8), "c": torch.ones(())}, {"k": "v"})
    path = tmp_path / "model.safetensors"

    def attack(rng: random.Random) -> str:
        path.write_bytes(damaged(data, rng))
        state = read_checkpoint(path).state
        for key in list(state):
            state[key]
        return ""

    attempts(count, 4, attack)


WORDS = (
    *("label", "caption", "meta.x", "modality", "id", "=", "<>", "<", "IN", "(", ")", "'", "'dog'", "AND", "OR", "NOT"),
    *("NULL", "IS", "LIKE", "lower(", "repeat(", "1", "-1e999", "true", ";", "--", "/*", "\x00", "\ud800", "meta.a.b"),
    *("CASE", "CAST(", "||", "*", "SELECT", "x'00'", "INTERVAL", "::", "[", "{", "`", '"', "BETWEEN", "regexp_like("),
)


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A small index with a label and a field of its own."""
    pytest.importorskip("lancedb")
    from plait import Index
    from plait.types import Sample

    made = Index.create(tmp_path_factory.mktemp("attack") / "i.lance", "nano")
    made.add([Sample(id=str(n), text=f"thing {n}", label="dog", meta={"x": n}) for n in range(3)])
    return made


@bounded_memory()
@counts(120)
def test_odd_filters(count: int, index: Any) -> None:
    def attack(rng: random.Random) -> str:
        where: Any = " ".join(rng.choice(WORDS) for _ in range(rng.randrange(1, 9)))
        if rng.random() < 0.2:
            where = rng.choice([{rng.choice(["label", "x", "a b", "", "\x00"]): rng.choice(ODD)}, rng.choice(ODD)])
        to_sql(where)
        index.list(where, limit=2)
        return ""

    attempts(count, 5, attack)


LONG = {"quickstart", "study", "doctor", "parity", "ui", "serve", "train", "get"}
"""Verbs whose work, were an odd line to ask for it by chance, takes minutes or a network."""


def lines(rng: random.Random) -> list[str]:
    """An odd command line: a verb, some of its options, words of all kinds."""
    verb = rng.choice([name for name in all_verbs() if name not in LONG] + ["nonsense", "", "--", "-k"])
    options = (
        "--out",
        "--json",
        "--data",
        "--text",
        "--image",
        "-k",
        "--set",
        "--model",
        "--device",
        "--dtype",
        "--html",
    )
    options += ("--where", "--limit", "--batch-size", "--adapter", "--split", "--media", "--on-bad", "--nonsense", "-")
    words = (
        "nano",
        "gone",
        "",
        "\x00",
        "\x1b[2J",
        "a b",
        "9" * 40,
        "-1",
        "nan",
        "é",
        "\udce9",
        "x=y",
        "/dev/null",
        ".",
        "..",
    )
    words += (
        "add",
        "list",
        "check",
        "pack",
        "create",
        "update",
        "emergent",
        "compare",
        "vqav2",
        "{}",
        "*",
        "~",
        "a=1,b=",
    )
    return [verb, *(rng.choice(rng.choice((options, words, words))) for _ in range(rng.randrange(7)))]


@bounded_memory()
@counts(60)
def test_odd_command_lines(
    count: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PLAIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def attack(rng: random.Random) -> str:
        line = lines(rng)
        code = main(line)
        said = [one for one in capsys.readouterr().err.splitlines() if one.startswith("plait: ")]
        assert code in (0, 1, 2) and len(said) == (1 if code and said else len(said)), (line, code, said)
        if code:
            raise ValueError(said[0] if said else "its help")
        return ""

    attempts(count, 6, attack)


class Payload:
    """Unpickled the usual way, it makes a directory."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.path,)


def hostile_pickles(ran: Path, rng: random.Random) -> Iterator[bytes]:
    """Programs that would run something, or damaged ones; without end."""
    calls = ("os\nsystem", "builtins\neval", "builtins\nexec", "subprocess\nPopen", "torch._inductor\nx", "nt\nsystem")
    while True:
        name, argument = rng.choice(calls), f"mkdir {ran}"
        whole = pickle.dumps({"model": {"w": Payload(str(ran))}, "cfg": None}, protocol=rng.randrange(6))
        kinds = (
            f"c{name}\n(V{argument}\ntR.".encode(),
            f"(V{argument}\ni{name}\n.".encode(),
            b"\x80\x02}" + b"q\x00h\x00h\x00s" * rng.randrange(1, 400) + b".",
            b"\x80\x02" + b"(" * rng.randrange(1, 90_000) + b"t" * 10 + b".",
            b"\x80\x04\x8a\xff" + b"9" * 255 + b".",
            whole,
            damaged(whole, rng),
        )
        yield rng.choice(kinds)


MODEL_VERBS = ("info {m}", "convert {m} {o}", "embed {m} --text a --out {o}.npy", "caption {m} {p}", "chat {m}")
MODEL_VERBS += ("merge {m} {a} {o}", "merge nano {m} {o}", "upcycle {m} {o}", "index create {o} --model {m}")
MODEL_VERBS += ("embed nano --adapter {m} --text a --out {o}.npy", "eval emergent {m} --data {p} --out {o}")
MODEL_VERBS += (
    "classify {m} {p} --classes a,b",
    "ground {m} {p} a",
    "answer {m} {p} what?",
    "search {i} --text a --model {m}",
)


def through_the_verbs(model: Path, place: Path, world: dict[str, Path], chosen: list[str]) -> None:
    """A model or adapter through verbs: an exit code, one line, and nothing that was not there before."""
    for verb in chosen:
        values = {"m": model, "o": place / "out", "p": world["picture"], "a": world["adapter"], "i": world["index"]}
        line = [word.format(**{k: str(v) for k, v in values.items()}) for word in verb.split()]
        with within():
            assert main(line) in (1, 2), line
        assert not world["ran"].exists(), line


@pytest.fixture
def world(tmp_path: Path, index: Any) -> dict[str, Path]:
    Image.new("RGB", (8, 8)).save(tmp_path / "p.png")
    (tmp_path / "adapter").mkdir()
    places = {"picture": tmp_path / "p.png", "adapter": tmp_path / "adapter", "index": index.path}
    return places | {"ran": tmp_path / "ran"}


@bounded_memory()
@pytest.mark.parametrize("count", [12, pytest.param(1_000, marks=pytest.mark.slow)])
def test_hostile_pickles_run_in_no_verb(
    count: int, tmp_path: Path, world: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rng, programs = random.Random(7), hostile_pickles(world["ran"], random.Random(8))
    own = shipped("nano")
    assert own is not None
    place = Path(shutil.copytree(own, tmp_path / "m", ignore=shutil.ignore_patterns("*.safetensors")))
    for _ in range(count):
        program = next(programs)
        as_file = rng.random() < 0.4
        model = tmp_path / "m.pt" if as_file else place
        (model if as_file else model / "pytorch_model.bin").write_bytes(program)
        through_the_verbs(model, tmp_path, world, rng.sample(MODEL_VERBS, 3))
        assert "Traceback" not in capsys.readouterr().err


@bounded_memory()
@pytest.mark.parametrize("count", [6, pytest.param(60, marks=pytest.mark.slow)])
def test_hostile_directories_run_in_no_verb(
    count: int, tmp_path: Path, world: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(9)
    names = ("config.json", "processor_config.json", "tokenizer.json", "model.safetensors", "tokenizer_config.json")
    for number in range(count):
        place = Path(shutil.copytree(SAVED / rng.choice(DIRECTORIES), tmp_path / f"m{number}"))
        name = names[number % len(names)]
        match rng.randrange(5):
            case 0:
                (place / name).unlink()
                os.mkfifo(place / name)
            case 1:
                (place / name).unlink()
                (place / name).symlink_to("/dev/zero")
            case 2:
                (place / name).write_bytes(b"[" * 100_000)
            case 3:
                (place / name).write_bytes((place / name).read_bytes()[: rng.randrange(1, 200)])
            case 4:
                config = json.loads((place / "config.json").read_text())
                own = {"auto_map": {f"Auto{kind}": "evil.Evil" for kind in ("Config", "Model", "Processor")}}
                (place / "config.json").write_text(json.dumps(config | {"model_type": "evil"} | own))
                (place / "evil.py").write_text(f"import os\nos.mkdir({str(world['ran'])!r})\n")
        through_the_verbs(place, tmp_path, world, rng.sample(MODEL_VERBS, 5) if count < 30 else list(MODEL_VERBS))
        assert "Traceback" not in capsys.readouterr().err
        shutil.rmtree(place)
