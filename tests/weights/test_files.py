"""Checkpoint files: every container gives the same weights, nothing runs, damage is one clear line."""

from __future__ import annotations

import argparse
import collections
import enum
import io
import json
import os
import pickle
import random
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from plait.weights.files import CheckpointError, fingerprint, read_checkpoint
from plait.weights.unpickle import LazyTensor

from ..fuzzing import bounded_memory, within

CONFIG = {"task": {"_name": "image_text_retrieval", "patch_image_size": 256}, "model": {"layers": 2, "rate": 0.5}}
DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64)


class Colour(enum.Enum):
    RED = "red"


class Payload:
    """Unpickled the usual way, it makes the directory `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    base = torch.randint(0, 2, (4, 6), generator=draw)
    state = {f"layer.{i}.weight": base.to(dtype) for i, dtype in enumerate(DTYPES)}
    shared = torch.randn(10, generator=draw)
    return state | {
        "transposed": torch.randn(3, 5, generator=draw).T,
        "slice": shared[2:7],
        "other_slice": shared[5:],
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 3),
        "expanded": torch.arange(3.0).expand(2, 3),
    }


def same(state, expected) -> bool:
    return set(state) == set(expected) and all(
        state[k].dtype == expected[k].dtype and torch.equal(state[k], expected[k]) for k in expected
    )


def fairseq_like(state) -> dict:
    """What training code leaves behind: objects that a weights-only load refuses."""
    return {
        "args": argparse.Namespace(lr=0.1, name="x"),
        "cfg": CONFIG,
        "model": collections.OrderedDict(state),
        "extra_state": {"best": np.float64(84.1), "colour": Colour.RED},
    }


def nested_pickle(value, protocol: int) -> bytes:
    """pickle.dump of tensors: each storage becomes a legacy torch file inside the pickle."""
    return pickle.dumps(value, protocol=protocol)


def write(path: Path, kind: str, value) -> Path:
    if kind == "zip":
        torch.save(value, path)
    elif kind == "legacy":
        torch.save(value, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(nested_pickle(value, int(kind.removeprefix("pickle"))))
    return path


KINDS = ["zip", "legacy", "pickle2", "pickle4", "pickle5"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_container_gives_the_same_weights(kind, tmp_path):
    read = read_checkpoint(write(tmp_path / "wrong_extension.txt", kind, {"model": weights(), "cfg": CONFIG}))
    assert same(read.state, weights())
    assert read.config == CONFIG
    assert read.container == "model"
    assert read.format == {"zip": "torch zip", "legacy": "torch legacy"}.get(kind, "pickle")


@pytest.mark.parametrize("kind", KINDS)
def test_objects_beside_the_weights_do_not_matter(kind, tmp_path):
    path = write(tmp_path / "a.pt", kind, fairseq_like(weights()))
    if kind in {"zip", "legacy"}:
        with pytest.raises(pickle.UnpicklingError):
            torch.load(path, weights_only=True)
    read = read_checkpoint(path)
    assert same(read.state, weights())
    assert read.config == CONFIG
    assert read.ignored == ("args", "extra_state")


def test_weights_agree_with_what_torch_reads(tmp_path):
    module = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    path = tmp_path / "module.pt"
    torch.save(module.state_dict(), path)
    read = read_checkpoint(path)
    assert read.container == ""
    assert same(read.state, torch.load(path, weights_only=True))
    torch.save({"state_dict": dict(module.named_parameters())}, path)
    assert same(read_checkpoint(path).state, dict(module.named_parameters()))


@pytest.mark.parametrize(
    ("value", "container"),
    [
        ({"state_dict": weights(), "meta": {}}, "state_dict"),
        ({"module": {f"module.module.{k}": v for k, v in weights().items()}}, "module"),
        ({"model": {"state_dict": weights()}, "epoch": 3}, "model.state_dict"),
        ({"model": {"name": "a config"}, "state_dict": weights()}, "state_dict"),
        ({f"module.{k}": v for k, v in weights().items()}, ""),
    ],
)
def test_weights_are_found_and_wrapper_prefixes_removed(value, container, tmp_path):
    read = read_checkpoint(write(tmp_path / "a.pth", "zip", value))
    assert read.container == container
    assert same(read.state, weights())


def test_a_namespace_serves_as_configuration(tmp_path):
    namespace = argparse.Namespace(depth=3, out=Path("runs/x"), kind=Colour.RED, best=np.float32(0.5), flags=(1, None))
    read = read_checkpoint(write(tmp_path / "a.pth", "zip", {"model": weights(), "args": namespace}))
    assert read.config == {"depth": 3, "out": "runs/x", "kind": "red", "best": 0.5, "flags": [1, None]}


def test_a_configuration_of_unknown_objects_is_left_out_with_a_note(tmp_path):
    class_ = type("Thing", (), {"__module__": __name__, "__qualname__": "Thing"})
    sys.modules[__name__].Thing = class_
    thing = class_()
    thing.secret = 1
    read = read_checkpoint(write(tmp_path / "a.pth", "zip", {"model": weights(), "cfg": {"x": thing}}))
    assert read.config is None
    assert read.notes == (f"cfg was left out: expected plain data, got an object of {__name__}.Thing",)


def test_omegaconf_nodes_give_their_content(tmp_path, monkeypatch):
    """The classes exist only while the file is written, as omegaconf is not needed to read it."""
    module = types.ModuleType("omegaconf.dictconfig")

    class DictConfig:
        pass

    class AnyNode:
        pass

    for cls in (DictConfig, AnyNode):
        cls.__module__, cls.__qualname__ = module.__name__, cls.__name__
        setattr(module, cls.__name__, cls)
    monkeypatch.setitem(sys.modules, "omegaconf", types.ModuleType("omegaconf"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    leaf, inner, outer = AnyNode(), DictConfig(), DictConfig()
    leaf.__dict__ = {"_parent": inner, "_val": 256}
    inner.__dict__ = {"_parent": outer, "_content": {"patch_image_size": leaf}}
    outer.__dict__ = {"_parent": None, "_content": {"task": inner}}
    path = write(tmp_path / "a.pt", "zip", {"cfg": outer, "model": weights()})
    monkeypatch.undo()
    assert read_checkpoint(path).config == {"task": {"patch_image_size": 256}}


def test_safetensors_single_sharded_and_directory(tmp_path):
    plain = {k: v.clone().contiguous() for k, v in weights().items()}
    names = sorted(plain)
    save_file(plain, tmp_path / "single.bin")
    assert same(read_checkpoint(tmp_path / "single.bin").state, plain)
    save_file({k: plain[k] for k in names[:4]}, tmp_path / "a.safetensors")
    torch.save({k: plain[k] for k in names[4:]}, tmp_path / "b.bin")
    index = {"weight_map": {k: "a.safetensors" if k in names[:4] else "b.bin" for k in names}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text('{"model_type": "x"}')
    read = read_checkpoint(tmp_path)
    assert same(read.state, plain)
    assert read.config == {"model_type": "x"}
    assert read.format == "shards"


@pytest.mark.parametrize(
    ("weight_map", "message"),
    [
        ({"a": "../outside.bin"}, "something else than file names"),
        ({"a": "missing.bin"}, "no such file"),
        ({"a": "index.json"}, "names another index"),
        ({"a": 3}, "something else than file names"),
        ({}, "without a weight_map"),
    ],
)
def test_a_bad_shard_index_is_refused(weight_map, message, tmp_path):
    (tmp_path / "index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(tmp_path / "index.json")


@pytest.mark.parametrize("kind", KINDS)
def test_only_the_tensors_taken_are_read(kind, tmp_path, monkeypatch):
    read_names: list[tuple[int, ...]] = []
    original = LazyTensor.read
    monkeypatch.setattr(LazyTensor, "read", lambda self: read_names.append(self.shape) or original(self))
    state = read_checkpoint(write(tmp_path / "a.pt", kind, {"model": weights()})).state
    assert len(state) == len(weights())
    assert read_names == []
    assert torch.equal(state["slice"], weights()["slice"])
    assert read_names == [(5,)]


def test_changing_a_tensor_does_not_change_the_file(tmp_path):
    path = write(tmp_path / "a.pt", "zip", {"w": torch.zeros(4)})
    before = fingerprint(path)
    state = read_checkpoint(path).state
    state["w"].fill_(7)
    assert fingerprint(path) == before


# Nothing runs.


def call_opcodes(form: str, target: Path) -> bytes:
    """`os.mkdir(target)` as a pickle program that pushes one value, in every way a pickle can ask for a call."""
    text = str(target).encode()
    arg = b"X" + struct.pack("<I", len(text)) + text
    short = b"\x8c" + bytes([len(text)]) + text
    return {
        "GLOBAL": b"cos\nmkdir\n" + arg + b"\x85R",
        "STACK_GLOBAL": b"\x8c\x02os\x8c\x05mkdir\x93" + short + b"\x85R",
        "INST": b"(" + arg + b"ios\nmkdir\n",
        "OBJ": b"(cos\nmkdir\n" + arg + b"o",
        "NEWOBJ": b"cos\nmkdir\n" + arg + b"\x85\x81",
        "NEWOBJ_EX": b"cos\nmkdir\n" + arg + b"\x85}\x92",
        "BUILD": b"cplait_test_bomb\nBomb\n)\x81" + arg + b"b",
        "REDUCE of a result": b"cbuiltins\ngetattr\ncos\npath\nX\x05\x00\x00\x00mkdir\x86R" + arg + b"\x85R",
        "dotted name": b"\x8c\x02os\x8c\x0apath.mkdir\x93" + short + b"\x85R",
        "copyreg": b"ccopyreg\n__newobj__\ncos\nmkdir\n" + arg + b"\x86R",
    }[form]


FORMS = ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "REDUCE of a result", "dotted name"]
LIVE = ["GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "BUILD"]


def with_payload(payload: bytes) -> bytes:
    """A plain pickle: {"payload": <payload>, "model": {"w": tensor}}."""
    body = nested_pickle({"model": {"w": torch.ones(2)}}, 2)
    assert body[-2:] == b"s."
    return body[:-1] + b"X\x07\x00\x00\x00payload" + payload + b"s."


def as_zip(pickled: bytes) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
    return buffer.getvalue()


def zip_with_payload(payload: bytes) -> bytes:
    """A torch zip file whose pickle also holds the payload."""
    buffer, out = io.BytesIO(), io.BytesIO()
    torch.save({"model": {"w": torch.ones(2)}}, buffer)
    with zipfile.ZipFile(buffer) as source, zipfile.ZipFile(out, "w") as target:
        for info in source.infolist():
            data = source.read(info)
            if info.filename.endswith("data.pkl"):
                data = data[:-1] + b"X\x07\x00\x00\x00payload" + payload + b"s."
            target.writestr(info.filename, data)
    return out.getvalue()


def legacy_with_payload(payload: bytes) -> bytes:
    """A legacy torch file whose object is a tuple of the payload and a storage, as nested blobs would be."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2) + pickle.dumps(1001, 2) + pickle.dumps({"little_endian": True}, 2)
    return magic + b"\x80\x02" + payload + b"." + pickle.dumps([], 2)


@pytest.fixture
def bomb(tmp_path, monkeypatch) -> Path:
    """A directory that exists once something ran; the module holds a class whose `__setstate__` makes it."""
    module = types.ModuleType("plait_test_bomb")

    class Bomb:
        def __setstate__(self, path: str) -> None:
            os.mkdir(path)

    module.Bomb = Bomb
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return tmp_path / "executed"


@pytest.mark.parametrize("form", LIVE)
def test_the_payloads_are_live(form, bomb):
    pickle.loads(b"\x80\x04" + call_opcodes(form, bomb) + b".")
    assert bomb.is_dir()


@pytest.mark.parametrize("form", [*FORMS, "copyreg"])
@pytest.mark.parametrize("place", ["pickle", "torch zip", "nested"])
def test_a_pickle_that_would_execute_code_does_not(form, place, bomb, tmp_path):
    payload, path = call_opcodes(form, bomb), tmp_path / "evil.pkl"
    if place == "pickle":
        path.write_bytes(with_payload(payload))
    elif place == "torch zip":
        path.write_bytes(zip_with_payload(payload))
    else:
        blob = legacy_with_payload(payload)
        path.write_bytes(
            with_payload(b"ctorch.storage\n_load_from_bytes\nB" + struct.pack("<I", len(blob)) + blob + b"\x85R")
        )
    read = read_checkpoint(path)
    assert torch.equal(read.state["w"], torch.ones(2))
    assert read.ignored == ("payload",)
    assert not bomb.exists()


def test_a_payload_in_place_of_the_weights_is_an_error_and_does_not_run(bomb, tmp_path):
    for data in (call_opcodes("GLOBAL", bomb) + b".", as_zip(call_opcodes("INST", bomb) + b".")):
        path = tmp_path / "evil.pt"
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=r"a pickle of os\.mkdir instead of a state dict"):
            read_checkpoint(path)
    assert not bomb.exists()


def test_state_cannot_be_set_on_anything_that_is_really_there(tmp_path):
    """BUILD with slot state on an allowed name would change torch for the whole process."""
    before = torch._utils._rebuild_tensor_v2.__defaults__
    slots = b"ctorch._utils\n_rebuild_tensor_v2\n(N}X\x0c\x00\x00\x00__defaults__)stb"
    path = tmp_path / "evil.pkl"
    path.write_bytes(with_payload(slots))
    assert same(read_checkpoint(path).state, {"w": torch.ones(2)})
    assert torch._utils._rebuild_tensor_v2.__defaults__ == before


# Damage.


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "an empty file"),
        (b"hello, this is text", "expected a"),
        (b"PK\x03\x04 not a zip", "damaged one"),
        (b"{not json}", "no JSON"),
        (b'{"weights": 1}', "without a weight_map"),
        (b"\x80\x04N.", "a pickle of NoneType instead of a state dict"),
        (b"\x80\x04}.", "keys: none"),
        (b"\x80\x04}X\x05\x00\x00\x00epochK\x03s.", "keys: epoch"),
        (b"\x80\x04" + b"(" * 100, "expected 1 more bytes at 102, got 0"),
        (b"<html><body>Access denied</body></html>", "a web page or"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS pointer in place"),
    ],
)
def test_what_is_no_checkpoint_is_refused_in_one_line(content, message, tmp_path):
    path = tmp_path / "bad.pt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        read_checkpoint(path)
    line = str(caught.value)
    assert line.startswith(f"expected a torch zip, torch legacy, pickle or safetensors checkpoint, got {path}: ")
    assert "\n" not in line


def test_missing_file_and_empty_directory(tmp_path):
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(tmp_path / "missing.pt")
    with pytest.raises(CheckpointError, match="a directory without"):
        read_checkpoint(tmp_path)


@pytest.mark.parametrize("kind", [*KINDS, "safetensors"])
def test_a_truncated_file_is_refused_wherever_it_ends(kind, tmp_path):
    whole, path = tmp_path / "whole", tmp_path / "cut"
    state = {"a": torch.arange(64.0), "b": torch.ones(3, dtype=torch.float16)}
    if kind == "safetensors":
        save_file(state, whole)
    else:
        write(whole, kind, {"model": state})
    data = whole.read_bytes()
    for size in random.Random(0).sample(range(len(data)), 60):
        path.write_bytes(data[:size])
        with pytest.raises(CheckpointError):
            dict(read_checkpoint(path).state)


def zip_of(tmp_path: Path, pickled: bytes) -> Path:
    path = tmp_path / "made.pt"
    path.write_bytes(as_zip(pickled))
    return path


def tensor_program(numel: int, offset: int, shape: tuple, stride: tuple) -> bytes:
    """A zip pickle of {"w": tensor} over one storage, written by hand."""
    identity = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
    identity += pickle.dumps(numel, 2)[2:-1] + b"tQ"
    parts = b"".join(pickle.dumps(part, 2)[2:-1] for part in (offset, shape, stride))
    return b"}X\x01\x00\x00\x00wctorch._utils\n_rebuild_tensor_v2\n(" + identity + parts + b"\x89}tRs."


@pytest.mark.parametrize(
    ("offset", "shape", "stride"),
    [
        (0, (5,), (1,)),
        (3, (2,), (1,)),
        (0, (2, 2), (3, 1)),
        (-1, (2,), (1,)),
        (0, (2,), (-1,)),
        (0, (1 << 40,), (0,)),
        (0, (1 << 40, 1 << 40), (0, 0)),
        (0, (2,), (1, 1)),
        (0, (2.0,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(offset, shape, stride, tmp_path):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("archive/data.pkl", tensor_program(4, offset, shape, stride))
        archive.writestr("archive/data/0", np.arange(4, dtype="<f4").tobytes())
    path = tmp_path / "bad.pt"
    path.write_bytes(buffer.getvalue())
    with pytest.raises(CheckpointError, match=r"expected a .*tensor (w in|of|with)"):
        dict(read_checkpoint(path).state)


def test_a_storage_larger_than_its_bytes_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="bytes for storage 0, got 0"):
        read_checkpoint(zip_of(tmp_path, tensor_program(1 << 50, 0, (1,), (1,))))


def test_a_compressed_zip_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.pt"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x00" * 10_000_000)
    with pytest.raises(CheckpointError, match="uncompressed entries"):
        read_checkpoint(path)


BIG = b"X\x00\x00\x01\x00" + b"a" * 65536 + b"q\x000"


@pytest.mark.parametrize(
    ("program", "message"),
    [
        pytest.param(b"]" + b"\x85" * 200_000 + b"q\x000}h\x00Ns.", "plain dictionary keys", id="deep key"),
        pytest.param(b"]q\x00" + b"h\x00h\x00\x86q\x00" * 40 + b".", "a pickle of tuple", id="doubling"),
        pytest.param(b"c_codecs\nencode\nq\x010" + BIG + b"h\x01h\x00\x85R0" * 1000 + b"}.", "repeats", id="copies"),
        pytest.param(BIG + b"h\x00h\x00\x930" * 100 + b"}.", "name of at most", id="long names"),
        pytest.param(b"\x8b\xff\xff\xff\x7f", "at most 1024 bytes", id="huge number"),
        pytest.param(b"\x8e" + b"\xff" * 8, "more bytes", id="huge bytes"),
        pytest.param(b"L" + b"9" * 5000 + b"L\n.", "expected a number", id="long number"),
        pytest.param(b"h\x07.", "remembered as 7", id="unknown memory"),
        pytest.param(b"}N" * 5 + b"s.", "dictionary to fill", id="item of none"),
        pytest.param(b"X\x01\x00\x00\x00aQ.", "without persistent ids", id="persistent id"),
        pytest.param(b"\x97.", "byte 0x97", id="out of band buffer"),
        pytest.param(b"c_codecs\nencode\nX\x02\x00\x00\x00\xcf\x80\x85R.", "latin-1 text", id="no latin-1"),
    ],
)
def test_a_hostile_pickle_costs_little(program, message, tmp_path):
    path = tmp_path / "hostile.pkl"
    path.write_bytes(b"\x80\x04" + program)
    with pytest.raises(CheckpointError, match=message):
        read_checkpoint(path)


def test_an_unfolding_configuration_is_left_out(tmp_path):
    value: list = []
    for _ in range(40):
        value = [value, value]
    read = read_checkpoint(write(tmp_path / "a.pt", "zip", {"model": weights(), "cfg": {"x": value}}))
    assert read.config is None
    assert "more" in read.notes[0]


def mutated(data: bytes, rng: random.Random) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice([1, 2, 8])):
        at = rng.randrange(len(made))
        match rng.randrange(4):
            case 0:
                made[at] = rng.randrange(256)
            case 1:
                del made[at : at + rng.randrange(1, 20)]
            case 2:
                made[at:at] = rng.randbytes(rng.randrange(1, 8))
            case 3:
                made[at:at] = made[rng.randrange(len(made)) :][:40]
        made = made or bytearray(b"x")
    return bytes(made)


def fuzz(tmp_path: Path, count: int) -> int:
    """Read `count` damaged files, half with a payload; returns how many were refused. Other errors escape."""
    rng, refused, path, executed = random.Random(5), 0, tmp_path / "fuzzed", tmp_path / "executed"
    state = {"model": {"module.a": torch.ones(3, 3), "module.b": torch.ones(2).half()}, "args": argparse.Namespace(x=1)}
    states = [state, state | {"args": Payload(executed)}]
    seeds = [write(tmp_path / kind, kind, state).read_bytes() for kind in KINDS for state in states]
    save_file(state["model"], tmp_path / "safetensors")
    seeds.append((tmp_path / "safetensors").read_bytes())
    for _ in range(count):
        path.write_bytes(mutated(rng.choice(seeds), rng))
        try:
            with within():
                dict(read_checkpoint(path).state)
        except CheckpointError as error:
            assert "\n" not in str(error)
            refused += 1
    assert not executed.exists()
    return refused


def test_damaged_files_are_read_or_refused(tmp_path):
    with bounded_memory():
        assert fuzz(tmp_path, 1500) > 500


@pytest.mark.slow
def test_a_hundred_thousand_damaged_files_are_read_or_refused(tmp_path):
    with bounded_memory():
        assert fuzz(tmp_path, 100_000) > 50_000


def test_the_stored_case_of_published_containers_gives_its_tensors():
    """Files written by the official tools, one in each container of the published checkpoints."""
    case = Path(__file__).parents[1] / "goldens" / "one_peace" / "checkpoint_files"
    expected = load_file(case / "tensors.safetensors")
    for name, prefix in {"plain.pt": "out.pt.", "with_objects.pt": "out.pt.", "vision.pkl": "out.pkl."}.items():
        read = read_checkpoint(case / name)
        wanted = {k.removeprefix(prefix): v for k, v in expected.items() if k.startswith(prefix)}
        assert same(read.state, wanted)
        assert read.config == (None if name == "vision.pkl" else json.loads((case / "config.json").read_text()))
