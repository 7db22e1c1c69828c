"""Whatever writes spares what Plait did not make, is alone at its output, and ends alike however often it is killed."""

from __future__ import annotations

import json
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from plait.cli import main
from plait.models import shipped

from .planted import write_data
from .writers import Workshop, digest, strays

pytest.importorskip("lancedb")
OFFICIAL = Path(__file__).parent / "goldens" / "one_peace" / "embeddings_val"
SMALL = "--set steps=2 --set batch_size=4 --set denoise_every=0"

WRITERS = {
    "train": ("train one_peace.stage2 --set init={nano} --set data={data} " + SMALL + " --device cpu --out {out}"),
    "convert": "convert {official} {out}",
    "merge": "merge {nano} {adapter} {out}",
    "pack": "data pack {data} {out}",
    "embed": "embed nano {data}/images --out {out}.npy",
    "index add": "index add {out} {data}/images --model nano",
    "eval": "eval emergent nano --data {data} --out {out}",
    "parity": "parity {golden} --out {out}",
    "from-folder": "data from-folder {pictures} {out}",
    "search --html": "search {index} --image {data}/images/test/thing-1.png --html {out}.html",
    "leaderboard": "eval leaderboard {results} --out {out}.md",
}
"""Verbs that do their work with small files."""
REFUSED_AT_ONCE = {
    "upcycle": "upcycle {nano} {out}",
    "data build": "data build mini --shipped --out {out}",
    "data build anew": "data build mini --out {out}",
    "index create": "index create {out} --model nano",
    "quickstart": "quickstart --out {out}",
    "quickstart of a folder": "quickstart {pictures} --out {out}",
    "study": "study owl --out {out}",
    "train another": "train mplug_owl.stage1 --set llm={nano} --set data={data} --out {out}",
}
"""Verbs whose work takes long; what they refuse is refused before any of it."""
QUEUED = ("from-folder", "search --html", "leaderboard")
"""One file written in one step: the second waits for the first."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Places that commands read."""
    root = tmp_path_factory.mktemp("world")
    data = write_data(root / "data")
    (root / "pictures" / "squares").mkdir(parents=True)
    for colour in ("red", "green", "blue"):
        Image.new("RGB", (16, 16), colour).save(root / "pictures" / "squares" / f"{colour}.png")
    official = {"cfg": {"model": json.loads((OFFICIAL / "config.json").read_text())}}
    from safetensors.torch import load_file

    torch.save(official | {"model": load_file(OFFICIAL / "weights.safetensors")}, root / "official.pt")
    own = shipped("nano")
    assert own is not None
    nano = Path(shutil.copytree(own, root / "nano"))
    (root / "adapter").mkdir()
    (root / "adapter" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 1, "lora_alpha": 1}))
    weights = load_file(nano / "model.safetensors")
    name = next(key for key in weights if key.endswith("q_proj.weight"))
    rows, columns = weights[name].shape
    low = {f"base_model.model.{name.removesuffix('.weight')}.lora_A.weight": torch.ones(1, columns)}
    low |= {f"base_model.model.{name.removesuffix('.weight')}.lora_B.weight": torch.ones(rows, 1)}
    save_file(low, root / "adapter" / "adapter_model.safetensors")
    index = root / "index.lance"
    assert main(["index", "add", str(index), str(data / "images" / "test"), "--model", "nano"]) == 0
    result = {"task": "t", "model": {"name": "a | b"}, "score": 1.0, "primary": "p", "rule": None, "split": "test"}
    result |= {"scores": {}, "interval": None, "items": 1, "items_in_split": 1, "limit": None, "failures": {}}
    result |= {"date": "2026-01-01", "environment": {}, "about": "words"}
    (root / "results").mkdir()
    (root / "results" / "result.json").write_text(json.dumps(result))
    places = {"data": data, "pictures": root / "pictures", "official": root / "official.pt", "nano": nano}
    places |= {"adapter": root / "adapter", "index": index, "results": root / "results", "golden": OFFICIAL}
    return {key: str(value) for key, value in places.items()}


@pytest.fixture(scope="module")
def workshop() -> Iterator[Workshop]:
    with Workshop() as shop:
        yield shop


def argv(line: str, world: dict[str, str], out: Path) -> list[str]:
    return [word.format(**world, out=out) for word in line.split()]


def one_line(said: str) -> str:
    lines = [line for line in said.splitlines() if line.startswith("plait: ")]
    assert len(lines) == 1 and "Traceback" not in said, said
    return lines[0]


@pytest.mark.parametrize("name", [*WRITERS, *REFUSED_AT_ONCE])
def test_a_foreign_file_in_the_place_survives(
    name: str, world: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    line, out = (WRITERS | REFUSED_AT_ONCE)[name], tmp_path / "out"
    kept = {out / "photo.jpg": b"of years", out / "model" / "a.txt": b"mine", out / "manifest.jsonl": b"{}\n"}
    kept |= {tmp_path / f"out.{end}": b"mine too" for end in ("npy", "jsonl", "html", "md")}
    for path, content in kept.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    before = sorted(tmp_path.rglob("*"))
    for again in ((), ("--no-resume",) if name.startswith("train") else ()):
        assert main([*argv(line, world, out), *again]) in (1, 2)
        assert "nothing was changed" in (said := one_line(capfd.readouterr().err)) or "choose" in said
    assert {path: path.read_bytes() for path in kept} == kept
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line", ["search {index} --text a --html {out}/page.html", WRITERS["leaderboard"] + "/a.md"])
def test_a_page_makes_no_directories(line: str, world: dict[str, str], tmp_path: Path) -> None:
    assert main(argv(line, world, tmp_path / "out")) == 2
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "line",
    [
        "merge {out} {adapter} {out}/merged",
        "parity {out} --out {out}/values",
        "quickstart {out} --out {out}/run",
        "train one_peace.stage2 --set init={out}/model --out {out} --no-resume",
        "train one_peace.stage2 --set data={out}/data --out {out}",
    ],
)
def test_an_output_that_holds_what_is_read_is_refused(
    line: str, world: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = Path(shutil.copytree(world["nano"], tmp_path / "out"))
    shutil.copytree(world["nano"], out / "model")
    shutil.copytree(OFFICIAL, out / "case")
    shutil.copytree(world["data"], out / "data")
    (out / ".plait").touch()  # Plait's own, so nothing else stands in the way
    before = digest(out)
    assert main(argv(line, world, out)) == 2
    one_line(capfd.readouterr().err)
    assert digest(out) == before


def result_of(name: str, out: Path) -> object:
    """What an output holds, told so that two of them compare."""
    if name == "index add":
        from plait import Index

        rows = Index.open(out).list()
        return sorted((row["id"], row["checksum"]) for row in rows)
    places = [out.parent / f"out{end}" for end in ("", ".npy", ".jsonl", ".html", ".md")]
    return [digest(place) for place in places if place.exists()]


def alone(name: str, world: dict[str, str], folder: Path, workshop: Workshop) -> None:
    """While one process is at its output, the same command says so in a line; afterwards all is as from one alone."""
    command, gate = argv(WRITERS[name], world, folder / "out"), folder / "go"
    first = workshop.start(command, folder / "first.log", gate)
    deadline = time.monotonic() + 60
    while not gate.with_suffix(".held").exists():
        assert time.monotonic() < deadline, (folder / "first.log").read_text()
        time.sleep(0.005)
    code, said = workshop.run(command, folder / "second.log")
    assert code in (1, 2), said
    assert "another process" in one_line(said)
    gate.touch()
    assert workshop.wait(first) == 0, (folder / "first.log").read_text()


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=() if name in ("train", "embed", "pack", "convert") else pytest.mark.slow)
        for name in WRITERS
        if name not in QUEUED
    ],
)
def test_the_second_of_two_processes_ends_in_one_line(
    name: str, world: dict[str, str], tmp_path: Path, workshop: Workshop
) -> None:
    alone(name, world, tmp_path, workshop)
    assert strays(tmp_path) == []


def kill_and_compare(name: str, world: dict[str, str], tmp_path: Path, workshop: Workshop, kills: int) -> int:
    """Kill a command at random moments and run it again: the outcome is that of a run that was left alone."""
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    start = time.monotonic()
    code, said = workshop.run(argv(WRITERS[name], world, whole / "out"), tmp_path / "log")
    assert code == 0, said
    took, rng, died = time.monotonic() - start, random.Random(name), 0
    for _ in range(kills):
        died += workshop.killed(argv(WRITERS[name], world, torn / "out"), tmp_path / "log", rng.random() * took)
    code, said = workshop.run(argv(WRITERS[name], world, torn / "out"), tmp_path / "log")
    if code:  # the last of the others was not killed in time, and its output is there
        assert "does not exist yet" in said or "expected no file" in said or "without a manifest" in said, said
    made = json.dumps(result_of(name, torn / "out")).replace(str(torn), str(whole))
    assert made == json.dumps(result_of(name, whole / "out"))
    assert strays(torn) == []
    return died


@pytest.mark.parametrize("name", ["embed", "convert"])
def test_a_killed_command_ends_like_one_that_was_left_alone(
    name: str, world: dict[str, str], tmp_path: Path, workshop: Workshop
) -> None:
    kill_and_compare(name, world, tmp_path, workshop, 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", WRITERS)
def test_ten_kills_of_every_writer_change_nothing(
    name: str, world: dict[str, str], tmp_path: Path, workshop: Workshop
) -> None:
    died = kill_and_compare(name, world, tmp_path, workshop, 10)
    print(f"{name}: {died} of 10 died at work")
