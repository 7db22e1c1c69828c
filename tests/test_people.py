"""What people type in a notebook or a script: loading, vectors, an index as other Python objects, a saved talk."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait.assistant import request_of
from plait.cli import main
from plait.errors import UsageError

from .models.mplug_owl import tiny as owl
from .models.mplug_owl2 import tiny as owl2


@pytest.fixture(scope="module")
def embedder() -> plait.Embedder:
    return plait.Embedder("nano")


@pytest.fixture
def picture() -> Image.Image:
    return Image.effect_mandelbrot((30, 20), (-2, -1, 1, 1), 20).convert("RGB")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory, embedder: plait.Embedder) -> plait.Index:
    place = tmp_path_factory.mktemp("index")
    Image.new("RGB", (20, 20), "red").save(place / "red.png")
    found = plait.Index.create(place / "index", embedder)
    found.add(place / "red.png")
    found.add([plait.Sample(id="words", text="two <b>words</b>", meta={"year": 1999})])
    return found


def test_loading_takes_dtypes_devices_and_attention_as_transformers_does() -> None:
    model, _ = plait.load("nano", dtype="auto", device="auto", attn_implementation="eager")
    assert model.dtype == torch.float16
    assert model.config._attn_implementation == "eager"
    for device_map in ("auto", "cpu", {"": "cpu"}):
        assert plait.load("nano", device_map=device_map)[0].device.type == "cpu"
    with pytest.raises(UsageError, match="such as sdpa or eager, got 'none'"):
        plait.load("nano", attn_implementation="none")
    with pytest.raises(UsageError, match="expected device or device_map, got both"):
        plait.Embedder("nano", device="cpu", device_map="auto")
    with pytest.raises(ValueError, match="got colour"):
        plait.load("nano", **{"colour": 1})


@pytest.mark.parametrize("tiny", [owl, owl2], ids=["owl", "owl2"])
def test_attention_reaches_every_part(tiny: Any, tmp_path: Path) -> None:
    for one in tiny.model_and_processor()[:2]:
        one.save_pretrained(tmp_path)
    model, _ = plait.load(tmp_path, attn_implementation="eager")
    inside = {one.config._attn_implementation for one in model.modules() if hasattr(one, "config")}
    assert inside == {"eager"}


def test_vectors_of_one_item_and_similarities(embedder: plait.Embedder, picture: Image.Image) -> None:
    items = ["a dog", "snow"]
    rows = embedder.embed(items)
    assert np.array_equal(embedder.embed_one("a dog"), embedder.embed(["a dog"])[0])
    tensor = embedder.embed(items, convert_to_tensor=True)
    assert torch.equal(tensor, torch.from_numpy(rows))
    assert embedder.similarity(items, [picture]) == pytest.approx(rows @ embedder.embed([picture]).T, abs=1e-6)
    assert embedder.similarity(3 * tensor) == pytest.approx(rows @ rows.T, abs=1e-6)
    with pytest.raises(ValueError, match="vectors of one width"):
        embedder.similarity(rows, rows[:, :3])


def test_arrays_tensors_and_bytes_are_media(embedder: plait.Embedder, picture: Image.Image, tmp_path: Path) -> None:
    array = np.asarray(picture)
    picture.save(tmp_path / "a.png")
    content = (tmp_path / "a.png").read_bytes()
    same = [picture, array, torch.from_numpy(array.copy()), torch.from_numpy(array / 255).permute(2, 0, 1), content]
    rows = embedder.embed([*same, *({"image": one} for one in same)])
    assert rows == pytest.approx(np.repeat(rows[:1], len(rows), axis=0), abs=1e-3)
    frames = np.stack([array, 255 - array])
    films = [{"video": one} for one in (frames, list(frames), torch.from_numpy(frames), [picture, 255 - array])]
    rows = embedder.embed([frames, *films])
    assert rows == pytest.approx(np.repeat(rows[:1], len(rows), axis=0), abs=1e-6)
    wave = np.linspace(-1, 1, 16000, dtype=np.float32)
    rows = embedder.embed([wave, torch.from_numpy(wave), {"audio": torch.from_numpy(wave)}])
    assert rows == pytest.approx(np.repeat(rows[:1], 3, axis=0), abs=1e-6)
    with pytest.raises(ValueError, match="got an array of shape"):
        embedder.embed([np.zeros((4, 4))])
    with pytest.raises(ValueError, match="got 3 of none"):
        embedder.embed([b"abc"])
    kinds = [request_of(one).kind for one in (array, frames, torch.from_numpy(wave), content)]
    assert kinds == ["image", "video", "audio", "image"]


def test_a_text_that_is_the_name_of_a_file_is_an_error(embedder: plait.Embedder, tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"pass \{'image': '.*a\.png'\}"):
        embedder.embed([str(tmp_path / "a.png")])
    embedder.embed(["a picture, e.g. a.png", {"text": str(tmp_path / "a.png")}])


def test_an_index_is_a_python_object_like_others(index: plait.Index) -> None:
    with plait.Index.open(index.path) as found:
        assert [row["modality"] for row in found] == ["image", "text"]
        assert found.vectors.shape == (2, found.embedder.dim)
        frame = found.to_pandas({"modality": "text"})
        assert frame["meta"].tolist() == [{"year": 1999}]
        assert frame["vector"][0] == pytest.approx(found.vectors[1])
        kinds = {field.name: str(field.type) for field in found.to_arrow().schema}
        assert kinds == dict.fromkeys(("id", "modality", "path", "caption", "label", "checksum", "meta"), "string") | {
            "vector": f"fixed_size_list<item: float>[{found.embedder.dim}]"
        }
    again = pickle.loads(pickle.dumps(index))
    assert [hit.id for hit in again.search("words", k=2)] == [hit.id for hit in index.search("words", k=2)]
    assert "2 rows" in repr(again)


def test_polars_reads_an_index(index: plait.Index) -> None:
    polars = pytest.importorskip("polars", reason="polars is not installed; pip install 'plait[neighbours]'")
    frame = polars.from_arrow(index.to_arrow())
    assert frame.select(polars.col("meta").str.json_path_match("$.year"))["meta"].to_list() == [None, "1999"]


def test_notebooks_show_hits_and_the_index_with_words_escaped(index: plait.Index) -> None:
    hits = index.search("words", k=2)
    shown = hits._repr_html_()
    assert "data:image" in shown
    assert "<b>" not in shown and "&lt;b&gt;" in shown
    assert "data:image" in next(hit for hit in hits if hit.path)._repr_html_()
    assert "<td>2</td>" in index._repr_html_()


@pytest.mark.parametrize("family", [owl, owl2], ids=["owl", "owl2"])
def test_a_conversation_goes_on_from_its_file(family: Any, tmp_path: Path, picture: Image.Image) -> None:
    pair = family.model_and_processor()[:2]
    chat = plait.Chat(pair, max_new_tokens=5)
    chat.ask("what?", images=[picture], videos=[[picture, picture]] if family is owl else [])
    chat.save(tmp_path / "talk.json")
    other = plait.Chat(pair, max_new_tokens=5)
    other.restore(tmp_path / "talk.json")
    assert other.ask("and?") == chat.ask("and?")
    found = json.loads((tmp_path / "talk.json").read_text())
    found["messages"][0]["content"][0]["image"] = str(tmp_path / "a.png")  # a stranger's file opens no other
    (tmp_path / "talk.json").write_text(json.dumps(found))
    with pytest.raises(ValueError, match="expected pictures inside the conversation"):
        other.restore(tmp_path / "talk.json")
    (tmp_path / "talk.json").write_text('{"format": "plait.chat/1", "messages": [{"role": "user"}]}')
    with pytest.raises(ValueError, match="expected a conversation"):
        other.restore(tmp_path / "talk.json")
    with pytest.raises(ValueError, match="expected a list of images, got one str"):
        chat.ask("what?", images="a.png")  # ty: ignore[invalid-argument-type]


def test_options_that_nobody_has_are_refused(picture: Image.Image) -> None:
    assistant = plait.Assistant(owl2.model_and_processor()[:2])
    said = assistant.answer(picture, "what?", max_new_tokens=3)
    assert said == assistant.answer(picture, "what?", max_length=3)
    with pytest.raises(ValueError, match="got num_beam; leave it out"):
        assistant.answer(picture, "what?", **{"num_beam": 3})


def test_shells_complete_verbs_and_options(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["--show-completion", "bash"]) == 0
    (tmp_path / "plait.sh").write_text(capsys.readouterr().out)
    asked = ["se", "index cr", "search ix --im"]
    lines = [
        f'COMP_WORDS=(plait {one}); COMP_CWORD={len(one.split())}; _plait; echo "${{COMPREPLY[@]}}"' for one in asked
    ]
    code = "\n".join(["source plait.sh", *lines])
    done = subprocess.run(["bash", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["search serve segment", "create", "--image"]
    assert main(["--show-completion", "fish"]) == 0
    assert "__fish_seen_subcommand_from index; and __fish_seen_subcommand_from create" in capsys.readouterr().out
    assert main(["--show-completion", "cmd"]) == 2


@pytest.mark.slow
def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "plait", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("plait ")
