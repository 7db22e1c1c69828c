"""A modality that a user wrote embeds, trains beside frozen ones, is saved and loads where the user's file was used."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import plait
from plait import modalities
from plait.cli import main
from plait.data.check import check
from plait.data.sources import open_samples
from plait.media import raised
from plait.media.values import medium
from plait.models.one_peace import OnePeaceConfig, OnePeaceModel, OnePeaceProcessor
from plait.models.one_peace.weights import modality_of
from plait.nn.adapters import Adapted
from plait.search import write_contact_sheet
from plait_studies.midi import write_notes

USERS_FILE = Path(__file__).parent / "fixtures" / "depth_modality.py"
SIZES = {
    "dim": 16, "num_heads": 2, "num_layers": 2, "mlp_dim": 16, "text_bucket_size": 8, "image_bucket_size": 4,
    "image_rel_bucket_size": 2, "audio_bucket_size": 16, "audio_conv_spec": ((8, 10, 5), (8, 3, 2), (8, 2, 2)),
    "audio_position_groups": 4, "layer_scale": 0.3, "vocab_size": 50264,
}  # fmt: skip
MAPS = [[[float(i + j * k) for j in range(16)] for i in range(16)] for k in range(3)]


@pytest.fixture
def depth(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The user's file, used for one test."""
    monkeypatch.setattr(modalities, "_REGISTRY", {})
    module = plait.use(USERS_FILE)
    yield
    del sys.modules[module.__name__]


@pytest.fixture
def trained(tmp_path: Path) -> Path:
    """A directory of a model that knows text and images."""
    torch.manual_seed(0)
    config = OnePeaceConfig(modalities=["text", "image"], **SIZES)
    model = OnePeaceModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2)
    model.save_pretrained(tmp_path / "trained")
    OnePeaceProcessor.from_config(config).save_pretrained(tmp_path / "trained")
    return tmp_path / "trained"


def test_a_new_modality_joins_a_trained_model_and_the_old_ones_stay_as_they_are(depth, trained: Path) -> None:
    before, _ = plait.load(trained)
    model, processor = plait.load(trained, modalities=["text", "image", "depth"], joint=[["text", "depth"]])
    ids = torch.tensor([[5, 6, 2], [7, 2, 1]])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(modality_of(name) == "depth")
    optimizer = torch.optim.SGD((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    batch = processor(depth=MAPS[:2])
    first = model.embed(batch)["depth"].detach()
    assert torch.allclose(first.norm(dim=-1), torch.ones(2))
    losses = []
    for _ in range(4):
        loss = -(model.embed(batch)["depth"] * before.get_text_features(ids)).sum()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.adapters["depth"].parameters())
        optimizer.step()
    assert losses[-1] < losses[0]
    with torch.no_grad():  # with gradients attention takes another path, whose last bits differ
        assert torch.equal(model.get_text_features(ids), before.get_text_features(ids))
    assert set(model.state_dict()) - set(before.state_dict()) == {
        name for name in model.state_dict() if modality_of(name) == "depth"
    }
    assert model(**batch, input_ids=ids).keys() == {"text_embeds", "depth_embeds"}
    joint = model.encode({"text": ids, **batch})
    assert [(m, x.shape[1]) for m, x in joint.features.items()] == [("text", 4), ("depth", 17)]
    with pytest.raises(ValueError, match=r"one modality, or text with depth, got image with depth.* add their unit"):
        model.encode({"image": torch.zeros(2, 3, 32, 32), **batch})


def test_it_loads_where_the_users_file_was_used_and_says_so_elsewhere(depth, trained: Path, tmp_path: Path) -> None:
    model, processor = plait.load(trained, modalities=["text", "image", "depth"])
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    wanted = model.embed(processor(depth=MAPS))["depth"]
    script = (
        "import sys, torch, plait\n"
        "for path in sys.argv[2:]: plait.use(path)\n"
        "model, processor = plait.load(sys.argv[1])\n"
        "maps = [[[float(i + j * k) for j in range(16)] for i in range(16)] for k in range(3)]\n"
        "print(model.embed(processor(depth=maps))['depth'].tolist())"
    )
    run = [sys.executable, "-W", "error", "-c", script, str(tmp_path / "saved")]
    found = subprocess.run([*run, str(USERS_FILE)], check=True, capture_output=True, text=True).stdout
    assert torch.equal(torch.tensor(json.loads(found)), wanted)
    failed = subprocess.run(run, check=False, capture_output=True, text=True)
    assert failed.returncode == 1
    last = failed.stderr.strip().splitlines()[-1]
    assert "expected modalities among text, image, audio" in last
    assert "plait.use(...) the file that registers depth" in last


def test_a_modality_that_the_model_lacks_is_an_error_that_lists_what_it_has(depth, trained: Path) -> None:
    model, processor = plait.load(trained)
    with pytest.raises(ValueError, match="expected inputs of text, image, got depth"):
        model.embed(processor(depth=MAPS))
    with pytest.raises(ValueError, match="expected inputs of text, image, got smell"):
        model.encode({"smell": torch.zeros(1, 4)})
    with pytest.raises(ValueError, match=r"expected modalities among text, image, audio.*registers smell"):
        OnePeaceConfig(modalities=["text", "smell"])
    with pytest.raises(ValueError, match=r"expected images, text, audio, got smell"):
        processor(smell=[1])


def test_adapters_that_arrive_built_keep_their_weights(depth) -> None:
    adapter = modalities.registered("depth").adapter(OnePeaceConfig(modalities=["depth"], **SIZES))
    before = {name: tensor.clone() for name, tensor in adapter.state_dict().items()}
    model = OnePeaceModel(OnePeaceConfig(modalities=["depth"], **SIZES), {"depth": adapter})
    assert model.adapters["depth"] is adapter
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapter.state_dict().items())


@pytest.mark.parametrize(("name", "words"), [("image", "a new word"), ("two words", "a new word"), ("", "a new word")])
def test_names_that_weights_cannot_carry_are_refused(name: str, words: str) -> None:
    with pytest.raises(plait.errors.UsageError, match=words):
        modalities.register(name, load=str, process=dict, adapter=str)


def test_use_runs_a_file_once_and_refuses_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text("import builtins\nbuiltins.times = getattr(builtins, 'times', 0) + 1\ntimes = builtins.times\n")
    module = plait.use(file)
    assert plait.use(str(file)) is module
    assert module.times == 1
    (tmp_path / "broken.py").write_text("raise KeyError('mine')")
    with pytest.raises(KeyError, match="mine"):
        plait.use(tmp_path / "broken.py")
    assert not any(name.endswith("_broken") for name in sys.modules)
    for wrong in (tmp_path / "absent.py", tmp_path):
        with pytest.raises(plait.errors.UsageError, match="expected a Python file"):
            plait.use(wrong)


def test_it_is_embedded_indexed_and_found(depth, trained: Path, tmp_path: Path) -> None:
    model, processor = plait.load(trained, modalities=["text", "image", "depth"])
    embedder = plait.Embedder((model, processor))
    assert embedder.modalities == ("text", "image", "depth")
    assert embedder.accepts == ("text", "image", "video", "depth")
    maps = [np.array(one, np.float32) for one in MAPS]
    with torch.no_grad():
        wanted = model.embed(processor(depth=maps))["depth"].numpy()
    np.testing.assert_allclose(embedder.embed([{"depth": one} for one in maps]), wanted, atol=1e-6)
    fused = embedder.embed([{"depth": maps[0], "text": "near", "weights": {"depth": 0.5}}], weights={"depth": 2.0})
    assert fused.shape == (1, embedder.dim) == (1, 16)
    rows = [plait.Sample(f"d{i}", text="a wall", meta={"depth": one, "place": "hall"}) for i, one in enumerate(maps)]
    np.testing.assert_allclose(embedder.embed(rows), wanted, atol=1e-6)
    index = plait.Index.create(tmp_path / "maps.lance", embedder)
    assert index.add([*rows, plait.Sample("t", text="a wall")]).added == 4
    found = index.search({"depth": maps[1]}, k=2, modality="depth")
    assert (found[0].id, found[0].modality, found[0].caption) == ("d1", "depth", "a wall")
    assert found[0].meta == {"place": "hall"} and found[0].score == pytest.approx(1, abs=1e-5)
    write_contact_sheet(tmp_path / "page.html", [({"depth": maps[1]}, found)])
    with pytest.raises(ValueError, match="the keys text, image, video, audio, depth, not, weights, got 'smell'"):
        embedder.embed([{"smell": 1}])
    with pytest.raises(ValueError, match="expected text, image, video for this model, got depth"):
        plait.Embedder(plait.load(trained)).embed([{"depth": maps[0]}])


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The example of the page, used for one test."""
    monkeypatch.setattr(modalities, "_REGISTRY", {})
    module = plait.use(Path(__file__).parents[1] / "examples" / "midi_modality.py")
    yield
    del sys.modules[module.__name__]


def tunes(folder: Path, count: int = 4) -> list[Path]:
    """MIDI files, two of low and two of high notes."""
    found = []
    for i in range(count):
        notes = [(40 + 30 * (i % 2) + k % 5 + i, 0.25 * k, 0.2, 64) for k in range(6 + i)]
        found.append(folder / f"{i}.mid")
        write_notes(found[-1], notes)
    return found


def test_a_modality_is_added_in_place_and_old_vectors_and_indexes_answer_as_before(
    tune, trained: Path, tmp_path: Path
) -> None:
    pictures = [Image.new("RGB", (40, 32), color) for color in ("red", "green", "blue")]
    before = plait.Embedder(plait.load(trained))
    old = before.embed([*pictures, "a red wall"])
    index = plait.Index.create(tmp_path / "old.lance", before)
    index.add([plait.Sample(str(i), image=one) for i, one in enumerate(pictures)])
    wanted = index.search("a red wall")
    model, processor = plait.load(trained)
    assert plait.add_modality(model, "midi", like="image") is model
    assert model.modalities == ("text", "image", "midi") and not model.training
    copied = model.trunk.layers[0].mlp
    assert torch.equal(copied["midi"].up_proj.weight, copied["image"].up_proj.weight)
    assert model.adapters["midi"].positions.data_ptr() != 0
    model.save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    for after in (plait.Embedder((model, processor)), plait.Embedder(tmp_path / "saved")):
        np.testing.assert_array_equal(after.embed([*pictures, "a red wall"]), old)
        opened = plait.Index.open(tmp_path / "old.lance", after)
        assert opened.search("a red wall") == wanted
    files = tunes(tmp_path)
    assert opened.add(tmp_path).added == 4  # the folder: its other files are no media
    assert {row["modality"] for row in opened.list()} == {"image", "midi"}
    assert opened.search(files[2], k=1)[0].path == str(files[2])
    assert opened.search({"midi": files[1], "text": "red", "weights": {"midi": 2}, "not": {"image": pictures[0]}})
    assert plait.Index.open(tmp_path / "old.lance", before).search("a red wall", modality="image") == wanted
    with torch.no_grad():
        model.adapters["midi"].positions.add_(1.0)
    with pytest.raises(ValueError, match=r"expected the midi that the rows .* were made with .* add them anew"):
        plait.Index.open(tmp_path / "old.lance", plait.Embedder((model, processor)))
    opened.delete("modality = 'midi'")
    assert len(plait.Index.open(tmp_path / "old.lance", plait.Embedder((model, processor)))) == 3


def test_fresh_ways_are_drawn_and_shared_cells_stay_shared(depth, trained: Path) -> None:
    model, _ = plait.load(trained)
    plait.add_modality(model, "depth")
    mlp = model.trunk.layers[0].mlp
    assert not torch.equal(mlp["depth"].up_proj.weight, mlp["text"].up_proj.weight)
    assert torch.equal(model.projections["depth"].bias, torch.zeros(16))
    config = OnePeaceConfig(modalities=["text", "image"], mlp_ways={"all": ["text", "image"]}, **SIZES)
    shared = plait.add_modality(OnePeaceModel(config), "depth", like="text")
    assert list(shared.trunk.layers[0].mlp) == ["all", "depth"]
    again = OnePeaceModel(OnePeaceConfig.from_dict(shared.config.to_dict()))
    assert again.state_dict().keys() == shared.state_dict().keys()


class Narrow(torch.nn.Linear):
    """An adapter of another width than its model."""

    load, process = staticmethod(lambda value: value), staticmethod(lambda values: {"x": torch.stack(values)})

    def __init__(self, config: OnePeaceConfig) -> None:
        super().__init__(4, config.dim + 1)

    def forward(self, x: torch.Tensor) -> Adapted:
        return Adapted(super().forward(x), None)


class NarrowAtOnce(Narrow):
    """One that says so before it is used."""

    example = staticmethod(lambda: torch.zeros(3, 4))


def test_wrong_additions_are_one_line_each(depth, trained: Path, tmp_path: Path) -> None:
    model, processor = plait.load(trained)
    refused = partial(pytest.raises, plait.errors.UsageError)
    with refused(match=r"a modality that was added \(depth\), got 'smell'; plait.use"):
        plait.add_modality(model, "smell")
    with refused(match=r"a new word for a modality, other than .* got 'video'"):
        plait.add_modality(model, "video", Narrow)
    with refused(match="expected an adapter class with load, process, forward for smell, got none of"):
        plait.add_modality(model, "smell", dict)
    with refused(match="one file that registers depth, got plait_plugin.* and tests.test_modalities"):
        plait.add_modality(model, "depth", Narrow)
    with refused(match="expected like among text, image, got 'audio'"):
        plait.add_modality(model, "depth", like="audio")
    with refused(match="tokens of width 16 from the adapter of wide, got 17; build it with config.dim"):
        plait.add_modality(model, "wide", NarrowAtOnce)
    with refused(match="modalities are open, got tuple; pass the first of the two"):
        plait.add_modality((model, processor), "depth")
    assert model.modalities == ("text", "image")
    plait.add_modality(model, "depth")
    with refused(match="a modality that the model lacks, got depth; it has text, image, depth"):
        plait.add_modality(model, "depth")
    plait.add_modality(model, "narrow", Narrow)
    with refused(match="tokens of width 16 from the adapter of narrow, got 17"):
        model.embed({"narrow": torch.zeros(2, 3, 4)})
    with refused(match=r"endings of files such as \('.mid',\) for smell, got '.mid'"):
        modalities.modality("smell", suffixes=".mid")(Narrow)


@pytest.mark.parametrize("name", ["antigravity", "plait.cli", "os", "../tune", "tests.fixtures.depth_modality"])
def test_no_name_in_a_directory_imports_anything(name: str, trained: Path) -> None:
    config = json.loads((trained / "config.json").read_text())
    config["modalities"].append(name)
    (trained / "config.json").write_text(json.dumps(config))
    before = set(sys.modules)
    with pytest.raises(ValueError, match=r"expected modalities among text, image, audio"):
        plait.load(trained)
    assert not {one for one in set(sys.modules) - before if name.strip("./") in one}


def test_verbs_take_it_from_files_by_their_ending(tune, trained: Path, tmp_path: Path, capsys) -> None:
    model, processor = plait.load(trained)
    plait.add_modality(model, "midi").save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    data = tmp_path / "data"
    data.mkdir()
    rows = [
        {"id": f"t{i}", "midi": one.name, "text": ("low", "high")[i % 2], "label": str(i % 2), "split": "test"}
        for i, one in enumerate(tunes(data))
    ]
    (data / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    assert main(["index", "add", str(tmp_path / "t.lance"), str(data), "--model", str(tmp_path / "saved")]) == 0
    query = ["search", str(tmp_path / "t.lance"), "--with", f"midi={data / '3.mid'}", "--json", "-k", "1"]
    capsys.readouterr()
    assert main(query) == 0
    assert json.loads(capsys.readouterr().out)[0]["id"] == "t3"
    assert main([*query[:3], "midi", "--text", "x"]) == 2
    assert "expected --with NAME=FILE such as depth=room.npy, got 'midi'" in capsys.readouterr().err
    assert main([*query[:3], "image=a.png"]) == 2 and "write --image a.png" in capsys.readouterr().err
    assert main(["embed", str(tmp_path / "saved"), str(data), "--out", str(tmp_path / "v.npy")]) == 0
    assert np.load(tmp_path / "v.npy").shape == (4, 16)
    for task, metric in (("midi_names", "top1"), ("midi_retrieval", "mean_recall")):
        out = tmp_path / task
        assert main(["eval", task, str(tmp_path / "saved"), "--data", str(data), "--out", str(out)]) == 0
        assert 0 <= json.loads((out / "result.json").read_text())["scores"][metric] <= 100
    capsys.readouterr()
    assert main(["eval", "--list"]) == 0 and "midi_retrieval" in capsys.readouterr().out


@pytest.fixture
def with_midi(tune, trained: Path, tmp_path: Path) -> Path:
    """A directory of a model to which music was added."""
    model, processor = plait.load(trained)
    plait.add_modality(model, "midi").save_pretrained(tmp_path / "saved")
    processor.save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


def rows_of(folder: Path) -> list[dict[str, str]]:
    """A data set of tunes with words, half of which is held out; the rows of its manifest."""
    folder.mkdir()
    rows = [
        {"id": f"t{i}", "midi": one.name, "text": ("low", "high")[i % 2], "split": ("train", "test")[i // 2]}
        for i, one in enumerate(tunes(folder))
    ]
    (folder / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def as_parquet(folder: Path, out: Path, rows: list[dict[str, str]], kind: str) -> Path:
    """The rows as a table: names of files beside it, bytes, or both as `datasets` writes them."""
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    out.mkdir()
    cells: list[object] = [row["midi"] for row in rows]
    for name in cells:
        shutil.copy(folder / str(name), out)
    if kind != "paths":
        cells = [(folder / str(name)).read_bytes() for name in cells]
    if kind == "both":
        cells = [{"bytes": cell, "path": "elsewhere.mid"} for cell in cells]
    rest = {name: [row[name] for row in rows] for name in ("id", "text", "split")}
    parquet.write_table(pa.table({**rest, "midi": cells}), out / "rows.parquet")
    return out


@pytest.mark.parametrize("stored", ["manifest", "shards", "webdataset", "paths", "bytes", "both"])
def test_every_kind_of_data_set_holds_it(tune, trained: Path, tmp_path: Path, stored: str) -> None:
    folder, data = tmp_path / "data", tmp_path / "stored"
    rows = rows_of(folder)
    if stored == "manifest":
        data = folder
    elif stored == "shards":
        assert main(["data", "pack", str(folder), str(data)]) == 0
        shutil.rmtree(folder)  # a packed set leads nowhere else
    elif stored == "webdataset":
        data.mkdir()
        with tarfile.open(data / "a.tar", "w") as tar:
            for row in rows:
                (tmp_path / "words").write_text(row["text"])
                tar.add(folder / row["midi"], f"{row['id']}.mid")
                tar.add(tmp_path / "words", f"{row['id']}.txt")
    else:
        as_parquet(folder, data, rows, stored)
    samples = list(open_samples(data))
    embedder = plait.Embedder(_with_midi(trained))
    (tmp_path / "again").mkdir()
    np.testing.assert_array_equal(
        embedder.embed(samples), embedder.embed([{"midi": one} for one in tunes(tmp_path / "again")])
    )
    report = check(data)
    assert not report.problems
    assert sum(counts["midi"] for counts in report.counts.values()) == 4
    assert report.bytes == {"midi": sum(one.stat().st_size for one in (tmp_path / "again").glob("*.mid"))}


def _with_midi(trained: Path) -> tuple[OnePeaceModel, OnePeaceProcessor]:
    model, processor = plait.load(trained)
    torch.manual_seed(3)
    return plait.add_modality(model, "midi"), processor


def test_a_check_finds_files_of_it_that_are_damaged_missing_elsewhere_or_held_out_and_trained_on(
    tune, tmp_path: Path
) -> None:
    rows = rows_of(tmp_path / "data")
    (tmp_path / "data" / "0.mid").write_bytes(b"no tune")
    (tmp_path / "data" / "1.mid").unlink()
    shutil.copy(tmp_path / "data" / "2.mid", tmp_path / "data" / "copy.mid")
    more = [{"id": "copy", "midi": "copy.mid", "split": "train"}, {"id": "far", "midi": "../far.mid"}]
    tunes(tmp_path, 1)[0].rename(tmp_path / "far.mid")
    (tmp_path / "data" / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows + more))
    report = check(tmp_path / "data")
    assert [line[:3] for line in report.damaged] == ["t0:"] and "MThd" in report.damaged[0]
    assert [line[:3] for line in report.missing] == ["t1:"] and "expected the midi" in report.missing[0]
    assert report.leaks == ["t2 (test) is the same file as copy (train)"]
    assert any("far.mid" in line for line in report.misfits)
    with pytest.raises(ValueError, match=r"field 'midi': expected a file inside .*leads outside"):
        open_samples(tmp_path / "data")
    (tmp_path / "data" / "manifest.jsonl").write_text('{"id": "a", "midi": "s3://photos/a.mid"}')
    with pytest.raises(ValueError, match="field 'midi': expected a path, got a URL"):
        open_samples(tmp_path / "data")


def test_files_of_it_are_ordinary_ones_within_the_limits(tune, tmp_path: Path) -> None:
    file = tunes(tmp_path, 1)[0]
    os.mkfifo(tmp_path / "pipe.mid")
    with pytest.raises(ValueError, match=r"expected a midi file, got .*pipe.mid: a pipe"):
        medium("midi").load(tmp_path / "pipe.mid", 0)
    with raised(max_bytes=10), pytest.raises(ValueError, match=r"expected a midi file, .*more than 10"):
        medium("midi").load(file, 0)
    wanted = medium("midi").load(file, 0)
    assert torch.equal(medium("midi").load(file.read_bytes(), 0), wanted)
    with pytest.raises(ValueError, match=r"^expected a MIDI file, got no MThd header"):
        medium("midi").load(b"no tune", 0)


def test_shards_with_columns_of_a_strangers_making_are_refused(tune, tmp_path: Path) -> None:
    rows_of(tmp_path / "data")
    assert main(["data", "pack", str(tmp_path / "data"), str(tmp_path / "packed")]) == 0
    facts = json.loads((tmp_path / "packed" / "index.json").read_text())
    for columns in ([*facts["columns"][:-1], "other"], facts["columns"][::-1], facts["columns"][:-1], "columns", [1]):
        (tmp_path / "packed" / "index.json").write_text(json.dumps(facts | {"columns": columns}))
        with pytest.raises(ValueError, match=r"expected an index of shards in .*; pack anew"):
            open_samples(tmp_path / "packed")


def test_the_server_embeds_searches_and_fuses_it(with_midi: Path, tmp_path: Path) -> None:
    testing = pytest.importorskip("fastapi.testclient")
    from plait.serving import Models, Settings, create_app

    embedder = plait.Embedder(with_midi)
    index = plait.Index.create(tmp_path / "t.lance", embedder)
    rows_of(tmp_path / "data")
    index.add(tmp_path / "data")
    files = sorted((tmp_path / "data").glob("*.mid"))
    sent = [{"type": "midi", "midi": base64.b64encode(one.read_bytes()).decode()} for one in files]
    with testing.TestClient(create_app(Models.load(index=tmp_path / "t.lance"), Settings())) as client:
        fused = [sent[0], {"type": "text", "text": "low", "weight": 0.5}]
        found = client.post("/v1/embeddings", json={"input": [[sent[1]], fused]}).json()["data"]
        wanted = embedder.embed([{"midi": files[1]}, {"midi": files[0], "text": "low", "weights": {"text": 0.5}}])
        np.testing.assert_allclose([one["embedding"] for one in found], wanted, atol=1e-6)
        asked = {"query": [sent[2]], "k": 1, "modality": "midi"}
        assert client.post("/v1/search", json=asked).json()["data"][0]["id"] == "t2"
        assert client.post("/v1/search", json=asked | {"modality": "smell"}).status_code == 400
        refused = client.post("/v1/embeddings", json={"input": [[{"type": "smell", "smell": "AAAA"}]]})
        assert refused.status_code == 400 and "smell" in refused.json()["error"]["message"]


def test_mteb_and_folders_take_it(tune, trained: Path, tmp_path: Path) -> None:
    from plait.evaluation.mteb import MtebEncoder

    files = tunes(tmp_path, 2)
    encoder = MtebEncoder(plait.Embedder(_with_midi(trained)))
    batches = [{"midi": files, "text": ["low", "high"]}]
    wanted = encoder.embedder.embed([{"midi": files[0], "text": "low"}, {"midi": files[1], "text": "high"}])
    np.testing.assert_allclose(encoder.encode(batches), wanted, atol=1e-6)
    for number, name in enumerate(("low", "high")):
        (tmp_path / "named" / name).mkdir(parents=True)
        shutil.copy(files[number], tmp_path / "named" / name)
    assert main(["data", "from-folder", str(tmp_path / "named"), str(tmp_path / "set")]) == 0
    assert {(one.text, Path(one.meta["midi"]).name) for one in open_samples(tmp_path / "set")} == {
        ("low", "0.mid"),
        ("high", "1.mid"),
    }
