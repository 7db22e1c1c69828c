"""Twenty wrong inputs, each through the `plait` command: one line (expected, got, remedy), the right exit code, and an
index and run directories that work afterwards.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import resource
import shutil
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from plait.cli import main
from plait.models import shipped

pytest.importorskip("lancedb")

OFFICIAL = Path(__file__).parent / "goldens" / "one_peace" / "embeddings_val"
PLAIT = [sys.executable, "-c", "import sys; from plait.cli import main; sys.exit(main())"]
CAP_DAC_OVERRIDE, PR_CAPBSET_DROP = 1, 24
Capture = pytest.CaptureFixture[str]


class Payload:
    """Unpickled the usual way, it makes the directory `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return os.mkdir, (str(self.path),)


def bomb(side: int) -> bytes:
    """A PNG of a few hundred bytes that promises side x side pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + body + chunk(b"IEND", b"")


def silent_video(path: Path) -> Path:
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width = stream.height = 32
        for level in (0, 120, 250):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), level, np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def changed_model(path: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> Path:
    """The shipped model with other weights."""
    shutil.copytree(nano(), path)
    state = load_file(path / "model.safetensors")
    change(state)
    save_file(state, path / "model.safetensors", metadata={"format": "pt"})
    return path


def nano() -> Path:
    found = shipped("nano")
    assert found is not None
    return found


def official_state() -> dict[str, torch.Tensor]:
    return load_file(OFFICIAL / "weights.safetensors")


def save_official(path: Path, state: dict[str, torch.Tensor]) -> Path:
    torch.save({"cfg": {"model": json.loads((OFFICIAL / "config.json").read_text())}, "model": state}, path)
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an index of three pictures, and everything that is wrong."""
    root = tmp_path_factory.mktemp("wrong")
    for name in ("pictures", "empty", "texts"):
        (root / name).mkdir()
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), colour).save(root / "pictures" / f"{colour}.png")
    (root / "texts" / "milk.txt").write_text("milk")
    (root / "texts" / "milk.wav").write_text("milk, in words")
    (root / "corrupt.png").write_bytes((root / "pictures" / "red.png").read_bytes()[:40])
    (root / "bomb.png").write_bytes(bomb(60_000))
    silent_video(root / "silent.mp4")
    (root / "bad.jsonl").write_text('{"id": "a", "image": "pictures/red.png"}\n{"id": "b", "image": 3}\n')
    (root / "smell.jsonl").write_text('{"id": "a", "smell": "pictures/red.png"}\n')
    whole = save_official(root / "whole.pt", official_state()).read_bytes()
    (root / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    state = official_state()
    lost = "text_proj.weight"
    save_official(root / "missing-key.pt", {key: value for key, value in state.items() if key != lost})
    save_official(root / "another-family.pt", {"transformer.h.0.attn.weight": torch.ones(2)})
    (root / "evil.pt").write_bytes(pickle.dumps(Payload(root / "executed")))
    shutil.copytree(nano(), root / "evil-model", ignore=shutil.ignore_patterns("*.safetensors"))
    (root / "evil-model" / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(root / "executed")))
    shutil.copytree(nano(), root / "no-weights", ignore=shutil.ignore_patterns("*.safetensors"))
    changed_model(root / "other-model", lambda state: [value.mul_(1.5) for value in state.values()])
    changed_model(root / "lacking-model", lambda state: state.pop("model.projections.text.weight"))
    other = root / "other-family"
    other.mkdir()
    (other / "config.json").write_text(json.dumps({"model_type": "bert"}))
    assert main(["index", "add", str(root / "pictures.lance"), str(root / "pictures"), "--model", "nano"]) == 0
    return root


def still_works(index: Path, capfd: Capture, rows: int = 3) -> None:
    """The index answers, holds its rows and takes new ones."""
    capfd.readouterr()
    assert main(["search", str(index), "--image", str(index.parent / "pictures" / "red.png"), "-k", "1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)[0]["path"].endswith("red.png")
    assert main(["index", "add", str(index), str(index.parent / "pictures"), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["rows"] == rows


def one_line(err: str, *said: str) -> None:
    """Exactly one line, and in the form `expected ..., got ...; remedy`."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    assert lines[0].startswith("plait: ")
    for part in said or ("expected ", "got ", "; "):
        assert part in lines[0], lines[0]


WRONG = {
    "missing file": ("index add {index} gone.jpg", 1, "got gone.jpg: no such file"),
    "missing file as a query": ("search {index} --image gone.jpg", 1, "no such file"),
    "empty folder": ("index add {index} empty", 1, "got none in empty"),
    "folder without media": ("index add {index} texts", 1, "the first of 2"),
    "corrupt image": ("index add {index} corrupt.png", 1, "corrupt.png: a truncated or damaged PNG file; check"),
    "corrupt image as a query": ("search {index} --image corrupt.png", 1, "a truncated or damaged PNG file; check"),
    "decompression bomb": ("index add {index} bomb.png", 1, "3600000000 pixels, more than"),
    "decompression bomb as a query": ("search {index} --image bomb.png", 1, "3600000000 pixels, more than"),
    "text file as audio": ("search {index} --audio texts/milk.wav", 1, "content of no kind known here; convert"),
    "video without audio asked for audio": ("search {index} --audio silent.mp4", 1, "without a sound track"),
    "unknown modality": ("search {index} --text red --modality smell", 2, "text, image, video, audio, got 'smell'"),
    "unknown modality in a manifest": (
        "index add {index} smell.jsonl",
        1,
        "sample a of smell.jsonl: none of text, image, video, audio",
    ),
    "unknown preset": ("train one_peace.stage1 --set preset=giant --out {run}", 2, "got 'giant'"),
    "unknown preset of a plan": ("plan one_peace.stage1 --set preset=giant", 2, "got 'giant'"),
    "unknown option": ("search {index} --imge a.png", 2, "did you mean '--image'?"),
    "checkpoint of another family": ("convert another-family.pt {run}", 1, "expected an official checkpoint of"),
    "directory of another family": (
        "train one_peace.stage2 --set init=other-family --out {run}",
        2,
        "expected a model directory of one_peace, got other-family of bert",
    ),
    "model that cannot talk": ("chat nano", 1, "expected a model that talks"),
    "truncated checkpoint": ("convert truncated.pt {run}", 1, "truncated.pt"),
    "checkpoint with a missing key": ("convert missing-key.pt {run}", 1, "1 missing: projections.text.weight"),
    "model directory with a missing key": (
        "search {index} --text red --model lacking-model",
        1,
        "projections.text.weight",
    ),
    "pickle that would execute code": ("convert evil.pt {run}", 1, "mkdir instead of a state dict"),
    "model whose pickle would execute code": (
        "search {index} --text red --model evil-model",
        1,
        "mkdir instead of a state dict",
    ),
    "model directory without weights": ("search {index} --text red --model no-weights", 1, "no-weights"),
    "facts of a directory without weights": ("info no-weights", 1, "no-weights"),
    "index built with another model": ("search {index} --text red --model other-model", 1, "other-model"),
    "add with another model": ("index add {index} pictures --model other-model", 1, "other-model"),
    "manifest with a bad row": ("index add {index} bad.jsonl", 1, "bad.jsonl, line 2: field 'image': expected"),
    "filter with a mistake": ("search {index} --text red --where label=", 2, "expected a filter such as"),
    "filter on no column": ("index list {index} --where colour='x'", 2, "No field named colour"),
    "device that is not here": ("search {index} --text red --device abacus", 2, "got 'abacus'; pass --device cpu"),
    "disk full": ("search {index} --text red --html /dev/full", 1, "no space left on device; free some space"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_one_line_and_harms_nothing(
    name: str, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Capture
) -> None:
    line, code, said = WRONG[name]
    index, run = place / "pictures.lance", tmp_path / "run"
    monkeypatch.chdir(place)
    capfd.readouterr()
    assert main(line.format(index=index, run=run).split()) == code
    one_line(capfd.readouterr().err, "expected ", "got ", "; " if "?" not in said else "", said)
    assert not (place / "executed").exists()
    assert not (run / "config.json").exists()  # the corrected command may have the directory
    still_works(index, capfd)


def test_the_payload_would_run_when_read_the_usual_way(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Payload(tmp_path / "executed")))
    assert (tmp_path / "executed").is_dir()


def test_code_in_a_pickle_runs_in_no_verb(place: Path, tmp_path: Path, capfd: Capture) -> None:
    evil = str(place / "evil-model")
    for line in (["info", evil], ["embed", evil, "--text", "a", "--out", str(tmp_path / "v.npy")], ["chat", evil]):
        assert main(line) == 1, line
    train = ["train", "one_peace.stage2", "--set", f"init={evil}", "--set", "steps=1", "--out", str(tmp_path / "run")]
    assert main(train) == 1
    capfd.readouterr()
    assert not (place / "executed").exists()


def test_a_wrong_run_leaves_its_directory_to_the_corrected_one(place: Path, tmp_path: Path, capfd: Capture) -> None:
    run = ["train", "one_peace.stage2", "--out", str(tmp_path / "run"), "--device", "cpu"]
    assert main([*run, "--set", f"init={place / 'no-weights'}"]) == 1
    rows, _, error = capfd.readouterr().err.partition("\n")  # which rows it takes is told first
    assert "rows with audio and text" in rows
    one_line(error)
    small = ["--set", "steps=1", "--set", "batch_size=4", "--set", "denoise_every=0"]
    assert main([*run, "--set", f"init={nano()}", *small]) == 0
    assert (tmp_path / "run" / "model" / "model.safetensors").is_file()


def run(arguments: list[str], before: Callable[[], object] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*PLAIT, *arguments], preexec_fn=before, capture_output=True, text=True, check=False)


def own_index(place: Path, tmp_path: Path) -> Path:
    shutil.copytree(place / "pictures", tmp_path / "pictures")
    shutil.copytree(place / "pictures.lance", tmp_path / "pictures.lance")
    return tmp_path / "pictures.lance"


def small_files() -> None:
    """From now on no file may grow beyond 100 bytes, as on a disk that is full."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))


def test_a_disk_that_fills_while_the_index_is_written_loses_no_row(place: Path, tmp_path: Path, capfd: Capture) -> None:
    index = own_index(place, tmp_path)
    done = run(["index", "update", str(index), "--where", "true", "--caption", "word " * 100], small_files)
    assert done.returncode == 1
    one_line(done.stderr, "expected ", "got ", "; free some")
    still_works(index, capfd)


def test_without_permission_nothing_is_written_and_reading_goes_on(place: Path, tmp_path: Path, capfd: Capture) -> None:
    index = own_index(place, tmp_path)
    folders = [index, *(path for path in index.rglob("*") if path.is_dir())]
    for folder in folders:
        folder.chmod(0o555)
    drop = ctypes.CDLL(None).prctl if os.geteuid() == 0 else None
    as_anybody = (lambda: drop(PR_CAPBSET_DROP, CAP_DAC_OVERRIDE)) if drop else None
    for line in (
        ["index", "delete", str(index), "--where", "true"],
        ["train", "one_peace.stage1", "--out", str(index / "run")],
        ["convert", str(place / "whole.pt"), str(index / "made")],
    ):
        done = run(line, as_anybody)
        assert done.returncode == 1, done.stderr
        one_line(done.stderr, "expected ", "got ", "ermission denied", "; check its owner and permissions")
    listed = run(["index", "list", str(index), "--json"], as_anybody)
    assert (listed.returncode, len(listed.stdout.splitlines())) == (0, 3)
    for folder in folders:
        folder.chmod(0o755)
    still_works(index, capfd)


@pytest.mark.parametrize("pause", [0.0, 0.05])
def test_an_add_interrupted_twice_says_one_line_and_keeps_what_was_committed(
    pause: float, place: Path, tmp_path: Path, capfd: Capture
) -> None:
    index, many = own_index(place, tmp_path), tmp_path / "many"
    many.mkdir()
    for n in range(1500):
        Image.new("RGB", (48, 48), (n % 256, n // 256, 7)).save(many / f"{n}.png", compress_level=0)
    before = sum(1 for _ in (index / "items.lance" / "_versions").iterdir())
    with subprocess.Popen(
        [*PLAIT, "index", "add", str(index), str(many)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as adding:
        deadline = time.monotonic() + 600
        while sum(1 for _ in (index / "items.lance" / "_versions").iterdir()) == before:
            assert adding.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(2):
            adding.send_signal(signal.SIGINT)
            time.sleep(pause)
        _, err = adding.communicate(timeout=300)
    assert adding.returncode == 130
    one_line("\n".join(line for line in err.splitlines() if "%|" not in line), "plait: index was interrupted")
    capfd.readouterr()
    assert main(["index", "stats", str(index), "--json"]) == 0
    rows = json.loads(capfd.readouterr().out)["rows"]
    assert 3 + 64 <= rows < 3 + 1500
    still_works(index, capfd, rows=rows)


def test_a_training_interrupted_twice_stops_at_once_and_goes_on_later(tmp_path: Path, capfd: Capture) -> None:
    line = ["train", "one_peace.stage2", "--set", f"init={nano()}", "--set", "steps=40", "--set", "batch_size=4"]
    line += ["--set", "denoise_every=0", "--out", str(tmp_path / "run"), "--device", "cpu"]
    metrics = tmp_path / "run" / "metrics.jsonl"
    with subprocess.Popen([*PLAIT, *line], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as training:
        deadline = time.monotonic() + 600
        while not metrics.is_file() or not metrics.read_text():
            assert training.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        for _ in range(2):
            training.send_signal(signal.SIGINT)
            time.sleep(0.001)
        _, err = training.communicate(timeout=300)
    assert training.returncode == 130
    assert "Traceback" not in err
    assert main(line) == 0
    capfd.readouterr()
    steps = [json.loads(row)["step"] for row in metrics.read_text().splitlines()]
    assert steps[-1] == 40 and len(steps) == len(set(steps))
