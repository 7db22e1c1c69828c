"""Every Python and shell block of the pages runs, or is counted with the reason why it cannot.

page -> its blocks in order, in one folder with what a reader would have: pictures, sounds, a clip, tiny models under
the names that pages use

A block that cannot run here has `<!-- not run: REASON -->` above its fence; `LINES` says which lines of shell blocks
cannot. Training is cut to two steps, answers to eight tokens. Commands run in this process, through `plait.cli.main`.
"""

from __future__ import annotations

import base64
import doctest
import io
import re
import shlex
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partialmethod
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from PIL import Image, ImageDraw

import plait
from plait import modalities
from plait.chat import Chat
from plait.cli import main

ROOT = Path(__file__).parents[1]
SAVED = ROOT / "tests" / "fixtures" / "saved"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), ROOT / "examples" / "README.md"]
QUICK = {"README.md", "docs/official-weights.md", "docs/owl.md", "docs/owl2.md"}
REASONS = {
    "network": "needs a package index, a hub or an official file",
    "processes": "starts several processes, or one that serves until it is stopped; has tests of its own",
    "long": "takes minutes or hours even when it is cut; has tests of its own",
    "package": "needs a package that no extra of the tests brings",
    "elsewhere": "another test runs it, on data of its own",
    "sketch": "shows a shape: it has names for what the reader brings",
}
LINES = (
    ("network", r"pip |python3 -m venv|\. \.venv|plait (get|convert|models --remove)\b|.*\b(openai/clip|hf:)"),
    ("network", r"plait .*(mplug-owl2-llama2-7b|ViT-L-14\.pt|tower=small|data build full)"),
    ("processes", r"torchrun |export |plait .*--engine\b|plait (serve|ui)\b|make "),
    ("long", r"plait (study|quickstart|doctor|parity)\b|plait .*(preset=4b|runs/mine/stage|pictures\.lance)"),
)
"""Which lines of shell blocks are left out: a reason, and a pattern of how they begin."""
MOST = {"network": 24, "processes": 11, "long": 19, "package": 1, "sketch": 13, "elsewhere": 10}
MODELS = {
    "owl": "mplug_owl", "owl-dir": "mplug_owl", "owl2": "mplug_owl2", "owl2-dir": "mplug_owl2",
    "owl2-small": "mplug_owl2", "captioner": "mplug2_captions", "vqa": "mplug2_captions", "one-peace": "nano",
    "one-peace-dir": "nano", "pretrained": "mplug2_captions", "mplug2-dir": "mplug2_captions",
}  # fmt: skip


class Block(NamedTuple):
    page: str
    line: int
    language: str
    text: str
    reason: str


def blocks(page: Path) -> Iterator[Block]:
    """The Python and shell blocks of a page, with the reason of the mark above each."""
    text = page.read_text(encoding="utf-8")
    for found in re.finditer(r"(?:<!-- not run: (.*?) -->\n+)?^```(python|bash|sh)\n(.*?)^```", text, re.DOTALL | re.M):
        name = str(page.relative_to(ROOT))
        yield Block(name, text[: found.start(2)].count("\n") + 1, found[2], found[3], found[1] or "")


def commands(block: Block) -> list[str]:
    """Lines of a shell block, each whole, without comments."""
    lines = [re.sub(r"(^|\s)#.*", "", line) for line in block.text.replace("\\\n", " ").splitlines()]
    return [line for line in lines if line.strip()]


def why_not(line: str) -> str:
    """The reason for which a line of shell is left out, or nothing."""
    return next((reason for reason, pattern in LINES if re.match(pattern, line.strip())), "")


@pytest.fixture(scope="session")
def readers_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What somebody who follows the pages has beside them."""
    av, soundfile = pytest.importorskip("av"), pytest.importorskip("soundfile")
    pytest.importorskip("lancedb")
    folder = tmp_path_factory.mktemp("reader")
    time = np.arange(8000) / 16000
    for number, name in enumerate(
        ["a", "b", "cat", "dog", "sketch", "street", "beach", "photos/rex", "photos/sea", "x"]
    ):
        image = Image.new("RGB", (48, 40), (20 * number, 90, 200 - 20 * number))
        ImageDraw.Draw(image).ellipse((8, 6, 20 + 2 * number, 30), fill=(220, 200, 10 * number))
        for suffix in (".jpg", ".png"):
            file = folder / (name + suffix)
            file.parent.mkdir(exist_ok=True)
            image.save(file)
    for number, name in enumerate(["bird", "bell", "bark", "rain", "photos/bell"]):
        soundfile.write(folder / f"{name}.wav", (0.3 * np.sin(900 * (number + 1) * time)).astype(np.float32), 16000)
    with av.open(str(folder / "clip.mp4"), "w") as film:
        stream = film.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 40, "yuv420p"
        for _ in range(8):
            film.mux(stream.encode(av.VideoFrame.from_image(image)))
        film.mux(stream.encode())
    (folder / "clips").mkdir()
    shutil.copy(folder / "clip.mp4", folder / "clips" / "one.mp4")
    for name in ("drum", "guitar", "bell"):
        for number in range(6):
            place = folder / "mine" / name / f"{number}.jpg"
            place.parent.mkdir(parents=True, exist_ok=True)
            image.rotate(10 * number + len(name)).save(place)
    for place in ("runs/demo/data", "photos/kinds"):
        shutil.copytree(folder / "mine", folder / place)
    drawn = folder / "runs/demo/data/images/twemoji"
    drawn.mkdir(parents=True)
    for name in ("cat", "bus", "camera"):
        image.save(drawn / f"{name}.webp")
    (folder / "examples").symlink_to(ROOT / "examples")
    (folder / "tests").symlink_to(ROOT / "tests")
    for name, kind in MODELS.items():
        (folder / name).symlink_to(ROOT / "src/plait/models/shipped/nano" if kind == "nano" else SAVED / kind)
    return folder


@pytest.fixture
def desk(readers_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that folder, which is where the page's blocks run."""
    shutil.copytree(readers_folder, tmp_path / "desk", symlinks=True)
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


def names_in_prose(desk: Path) -> dict[str, Any]:
    """What the text around Python blocks speaks of: a picture, a sound, files as base64."""
    picture = Image.open(desk / "a.png").convert("RGB")
    wave = (0.3 * np.sin(np.arange(16000) / 9)).astype(np.float32)
    coded = {name: base64.b64encode((desk / file).read_bytes()).decode() for name, file in CODED.items()}
    return {"picture": picture, "image": picture, "waveform": wave, **coded}


CODED = {"encoded_png": "a.png", "encoded_wav": "bird.wav"}


SHORT = {
    "train": ["--set", "steps=2", "--set", "batch_size=2"],
    "caption": ["--max-length", "8"],
    "answer": ["--max-length", "8"],
    "chat": ["--max-new-tokens", "8"],
}


def run_line(line: str) -> int:
    """One command, cut short where it trains or writes; of a data set that it builds, every twentieth row stays."""
    words = shlex.split(line, comments=True)
    is_ranked = "--answers" in words
    code = main(words[1:] + ([] if is_ranked else SHORT.get(words[1], [])))
    if words[1:3] == ["data", "build"]:
        manifest = Path(words[-1]) / "manifest.jsonl"
        manifest.write_text("\n".join(manifest.read_text().splitlines()[::20]) + "\n")
    return code


def run_page(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    namespace = names_in_prose(desk)
    monkeypatch.setattr(Chat, "__init__", partialmethod(Chat.__init__, max_new_tokens=8))  # random weights ramble
    for block in blocks(page):
        where = f"{block.page}:{block.line}"
        if block.reason:
            continue
        if block.language == "python":
            code = compile(block.text, where, "exec")
            exec(code, namespace)
            continue
        for line in commands(block):
            if not why_not(line):
                monkeypatch.setattr(sys, "stdin", io.StringIO("What is this?\n"))  # for who talks
                assert run_line(line) == 0, f"{where}: {line}"


QUICK_PAGES = [page for page in PAGES if str(page.relative_to(ROOT)) in QUICK]
OTHER_PAGES = [page for page in PAGES if page not in QUICK_PAGES and any(blocks(page))]


@pytest.mark.parametrize("page", QUICK_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_a_page_run(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, desk, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("page", OTHER_PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_blocks_of_the_other_pages_run(page: Path, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_page(page, desk, monkeypatch)


def test_what_does_not_run_has_a_reason_and_is_counted() -> None:
    counted: Counter[str] = Counter()
    for block in (block for page in PAGES for block in blocks(page)):
        if block.reason:
            assert block.reason in REASONS, f"{block.page}:{block.line}: {block.reason}"
            counted[block.reason] += 1
        elif block.language != "python":
            counted.update(reason for line in commands(block) if (reason := why_not(line)))
    assert not {reason: (count, MOST[reason]) for reason, count in counted.items() if count > MOST[reason]}
    print(dict(counted))


WORDS = "import numpy as np, torch, plait; from pathlib import Path; from PIL import Image; from torch import nn"
TRAINING = """
class Rows:
    def __len__(self): return 4
    def rows(self, seed, step, batch_size): return list(range(batch_size))
    def load(self, rows, rng): return torch.ones(len(rows), 2)
    def names(self, rows): return [str(row) for row in rows]

from plait.training.loop import train
from plait.training.run import run_recipe
from plait.training.stages import Stage
source, model = Rows(), nn.Linear(2, 2)
def objective(model, batch, step, generator): return model(batch).square().mean(), {}
stage = Stage(name="all", objective=objective, batches=lambda: source, batch_size=2, steps=3)
"""
GIVEN = {
    "plait.assistant": "assistant = plait.Assistant('captioner')",
    "plait.chat": "chat = plait.Chat('owl2-dir')",
    "plait.embedder": "embedder = plait.Embedder('nano')",
    "plait.embedder.towers": "model = nn.Linear(2, 2)",
    "plait.models.mplug_owl": "model, processor = plait.load('owl-dir'); tokenizer = processor.tokenizer",
    "plait.models.mplug_owl2": "model, processor = plait.load('owl2-dir'); tokenizer = processor.tokenizer",
    "plait.search": "index = plait.Index.create('found', 'nano'); index.add('photos')",
    "plait.search.vectors": "",
    "plait.serving": "model, processor = plait.load('owl2-dir'); inputs = processor(text=['Hello'])",
    "plait.training": TRAINING,
}
"""What docstrings of a module take for granted beside `WORDS`; the longest name counts."""
ELSEWHERE = {
    "plait.evaluation.emergent.evaluate_emergent": "needs a data set",
    "plait.evaluation.run.evaluate": "needs a data set",
    "plait.models.convert.convert": "needs an official file",
    "plait.models.fetch.get": "needs the network",
    "plait.models.mplug_owl.weights.around": "needs a language model",
    "plait.models.mplug_owl2.upcycle.upcycle": "needs a language model",
    "plait.search.index.Index.to_arrow": "needs polars",
    "plait.weights.files.read_checkpoint": "needs an official file",
}
"""Examples that cannot run as they stand; each has tests of its own."""
EXAMPLES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "src" / "plait").rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


class Said(doctest.OutputChecker):
    """Output is compared where the docstring tells it; elsewhere it is enough that the line runs."""

    def check_output(self, want: str, got: str, optionflags: int) -> bool:
        return not want or super().check_output(want, got, optionflags)


@pytest.fixture
def nothing_added(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What examples add (modalities, files of a user's own) is gone behind them: other tests add the same names."""
    held = {name: sys.modules.pop(name) for name in list(sys.modules) if name.startswith("plait_plugin_")}
    monkeypatch.setattr(modalities, "_REGISTRY", {})
    yield
    for name in [name for name in sys.modules if name.startswith("plait_plugin_")]:
        del sys.modules[name]
    sys.modules.update(held)


@pytest.mark.usefixtures("nothing_added")
@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_of_docstrings_run(name: str, desk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = import_module(name)
    given = max((known for known in GIVEN if f"{name}.".startswith(f"{known}.")), key=len, default="")
    names = names_in_prose(desk)
    exec(f"{WORDS}\n{GIVEN.get(given, '')}", names)
    monkeypatch.setattr(Chat, "__init__", partialmethod(Chat.__init__, max_new_tokens=8))
    runner = doctest.DocTestRunner(Said(), optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    for example in doctest.DocTestFinder().find(module, name):
        if example.name not in ELSEWHERE:
            example.globs = {**names, **example.globs}
            told: list[str] = []
            runner.run(example, out=told.append)
            assert not told, "".join(told)


@pytest.mark.parametrize("name", sorted({*plait.__all__} - {"__version__"}))
def test_what_everybody_uses_has_an_example(name: str) -> None:
    assert ">>> " in (getattr(plait, name).__doc__ or "")
