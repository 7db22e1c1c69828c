"""What the reader of pickles costs at worst, and the exact names that it answers."""

from __future__ import annotations

import pickle
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from plait.models.one_peace.config import parse_conv_spec
from plait.weights import unpickle
from plait.weights.files import CheckpointError, read_checkpoint

from ..fuzzing import bounded_memory, within
from .test_files import tensor_program


def zip_of(tmp_path: Path, pickled: bytes) -> Path:
    """A torch file with the program and one storage, empty."""
    path = tmp_path / "made.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickled)
        archive.writestr("archive/data/0", b"")
    return path


def test_these_globals_are_answered_and_no_others() -> None:
    assert set(unpickle._BUILDERS) == {
        "collections.OrderedDict",
        "collections.defaultdict",
        "_codecs.encode",
        "torch.Size",
        "torch._utils._rebuild_tensor",
        "torch._utils._rebuild_tensor_v2",
        "torch._utils._rebuild_tensor_v3",
        "torch._utils._rebuild_parameter",
        "torch._utils._rebuild_parameter_with_state",
        "torch._tensor._rebuild_from_type_v2",
        "copyreg._reconstructor",
        "copy_reg._reconstructor",
    }
    assert all(builder.__module__ == unpickle.__name__ for builder in unpickle._BUILDERS.values())
    kinds = "Double Float Half BFloat16 Long Int Short Char Byte Bool ComplexFloat ComplexDouble Untyped"
    assert set(unpickle._STORAGES) == {f"{kind}Storage" for kind in kinds.split()}
    assert all(isinstance(dtype, torch.dtype) for dtype in unpickle._DTYPES.values())


def unfolding(levels: int) -> bytes:
    """A value of tuples in tuples, each twice the one below: on the stack and under memory 0."""
    return b")q\x00" + b"0h\x00h\x00\x86q\x00" * levels


def entry(key: bytes, value: bytes = b"N") -> bytes:
    return key + value + b"s"


def model(inside: bytes = b"") -> bytes:
    """{"model": {"w": tensor}} and what else is put in."""
    weight = tensor_program(0, 0, (0,), (1,))[:-1]
    return b"}" + entry(b"X\x05\x00\x00\x00model", weight) + inside + b"."


def shared_dicts(width: int, depth: int, last: bytes) -> bytes:
    """Under `model` dictionaries of `width` entries, all of them one dictionary, `depth` deep."""
    made = last + b"q\x00"
    for _ in range(depth):
        made += b"0}(" + b"".join(b"K" + bytes([n]) + b"h\x00" for n in range(width)) + b"uq\x00"
    return b"}X\x05\x00\x00\x00model" + made + b"s."


def colliding_numbers(count: int) -> bytes:
    """Numbers with one hash: multiples of 2**61 - 1."""
    step = (1 << 61) - 1
    return b"}(" + b"".join(pickle.dumps(n * step, 2)[2:-1] + b"N" for n in range(count)) + b"u"


def colliding_tuples(count: int) -> bytes:
    """Tuples with one hash: that of -1 is that of -2."""
    ones = [tuple(-1 - (n >> bit & 1) for bit in range(16)) for n in range(count)]
    return b"}(" + b"".join(pickle.dumps(one, 2)[2:-1] + b"N" for one in ones) + b"u"


def v3(dtype: str) -> bytes:
    """{"w": tensor} of an element type by name."""
    program = tensor_program(0, 0, (0,), (1,)).replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v3")
    module, _, name = dtype.rpartition(".")
    return program.removesuffix(b"\x89}tRs.") + f"\x89}}c{module}\n{name}\n".encode("latin1") + b"tRs."


def memory(count: int) -> bytes:
    step = (1 << 61) - 1
    return b"N" + b"".join(b"p%d\n" % (n * step) for n in range(count)) + b"0}."


HOSTILE = {
    "stand-in as key": model(entry(b"cos\nsystem\n" + unfolding(80) + b"\x85R")),
    "stand-in in a key": model(entry(b"cos\nsystem\n" + unfolding(80) + b"\x85R\x85")),
    "stand-in as key of the weights": b"}X\x01\x00\x00\x00w"
    + tensor_program(0, 0, (0,), (1,))[:-1]
    + b"s"
    + entry(b"cos\nsystem\n" + unfolding(80) + b"\x85R")
    + b".",
    "shape": tensor_program(0, 0, (0,), (1,)).replace(
        pickle.dumps((0,), 2)[2:-1] + pickle.dumps((1,), 2)[2:-1], unfolding(80) + b"K\x01\x85"
    ),
    "sizes without end": tensor_program(0, 0, (1,) * 100_000, (0,) * 100_000),
    "shared dictionaries": shared_dicts(100, 7, b"N"),
    "shared dictionaries with a tensor": shared_dicts(100, 7, tensor_program(0, 0, (0,), (1,))[:-1]),
    "long names": shared_dicts(2, 7, b"}X\x00\x00\x10\x00" + b"a" * (1 << 20) + b"}s"),
    "colliding numbers": model(colliding_numbers(50_000)),
    "colliding tuples": model(colliding_tuples(1 << 15)),
    "colliding memory": memory(100_000),
    "element type that is a module": v3("torch._inductor"),
    "element type that is elsewhere": v3("torch.nn.modules"),
    "numbers without end": model(b"X\x01\x00\x00\x00n" + pickle.dumps(1 << 8000, 2)[2:-1] + b"s"),
    "values without end": b"\x8f" * 3_000_000,
    "deep": b"]" * 1_000_000 + b"a" * 999_999 + b".",
    "lines without end": b"V" + b"a" * (1 << 24) + b"\n0}.",
}


@pytest.mark.parametrize("program", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_pickle_is_done_in_seconds(program: bytes, tmp_path: Path) -> None:
    before = set(sys.modules)
    with bounded_memory(), within():
        try:
            dict(read_checkpoint(zip_of(tmp_path, program)).state)
        except CheckpointError as error:
            assert len(str(error)) < 1000
    assert not {name for name in set(sys.modules) - before if name.startswith("torch.")}


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (tensor_program(0, 0, (0,), (1,)).replace(b"ctorch\n", b"cos\n"), "a torch storage class, got os.FloatStorage"),
        (tensor_program(0, 0, (0,), (1,)).replace(b"FloatStorage", b"load"), "a torch storage class, got torch.load"),
        (tensor_program(0, 0, (0,) * 65, (1,) * 65), "at most 64 sizes and as many steps, got 65 and 65"),
        (tensor_program(0, 0, (0,), (1, 1)), "as many steps, got 1 and 2"),
        (tensor_program(0, 0, (-1,), (1,)), "an offset, sizes and steps from 0"),
        (tensor_program(0, 0, (0,), (True,)), "an offset, sizes and steps from 0"),
        (tensor_program(0, 0, (1,), (1,)), "inside its 0 elements"),
        (v3("torch._inductor"), "a torch dtype, got torch._inductor"),
    ],
)
def test_what_is_wrong_with_a_tensor_is_told(program: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=message):
        dict(read_checkpoint(zip_of(tmp_path, program)).state)


def test_a_shared_path_is_joined_a_bounded_number_of_times(tmp_path: Path) -> None:
    long = b"X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20)
    path = b"cpathlib\nPosixPath\n" + long + b"\x85Rq\x00"
    shared = b"}(X\x01\x00\x00\x00a" + path + b"X\x01\x00\x00\x00b](" + b"h\x00" * 90_000 + b"eu"
    program = model(entry(b"X\x03\x00\x00\x00cfg", shared))
    with bounded_memory(), within():
        assert read_checkpoint(zip_of(tmp_path, program)).config is None


def test_a_number_above_64_bits_beside_the_weights_loses_nothing(tmp_path: Path) -> None:
    state = b"X\x03\x00\x00\x00rng" + pickle.dumps(1 << 100, 2)[2:-1] + b"s"
    assert list(read_checkpoint(zip_of(tmp_path, model(state))).state) == ["w"]


@pytest.mark.parametrize("spec", ["[(512,10,5)] * 99999999", "[(512,10,5)] * 40 + [(512,3,2)] * 40", "(" * 9000])
def test_a_written_out_convolution_stack_is_bounded(spec: str) -> None:
    with bounded_memory(100), within(), pytest.raises(ValueError, match="channels, kernel, stride"):
        parse_conv_spec(spec)


@pytest.mark.parametrize("start", range(4))
def test_what_is_read_lies_where_its_type_may_lie(start: int) -> None:
    """Bytes of a legacy file begin anywhere; a float32 view of them would be slow here and a fault elsewhere."""
    values = torch.tensor([1.0, 2.0, 3.0, 4.0])
    held = bytearray(16 + 4)
    held[start : start + 16] = values.numpy().tobytes()
    storage = unpickle.Storage(torch.float32, 4, memoryview(held)[start : start + 16])
    read = unpickle.LazyTensor(storage, 1, (3,), (1,), torch.float32).read()
    assert read.data_ptr() % 4 == 0 and torch.equal(read, values[1:])
