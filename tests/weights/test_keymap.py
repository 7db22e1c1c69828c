"""Key rules: what they match, that they come back bit for bit, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from plait.weights.files import LazyState, StateError, load_strict
from plait.weights.keymap import Alias, Concat, Drop, KeyMap, Rename, Split, Transpose, prefixed

FFN = Rename("layers.{i}.{way:text|image|audio}_ffn.0.wi_0.weight", "trunk.layers.{i}.ffn.{way}.gate_proj.weight")


def buffer(state) -> dict[str, Tensor]:
    return {"rp_bucket": torch.arange(6).view(2, 3)} if "v" in state else {}


RULES = (
    FFN,
    Split("layers.{i}.qkv.{p:weight|bias}", tuple(f"trunk.layers.{{i}}.{n}.{{p}}" for n in "qkv")),
    Split("gates", ("gate.wide", "gate.narrow"), dim=1, sizes=(3, 1)),
    Concat(("w_a.{i}", "w_b.{i}"), "w.{i}"),
    Concat(("big", "small"), "joined", sizes=(2, 1)),
    Transpose("conv", "kernel", dims=(2, 0, 1)),
    Alias("old_v", "v"),
    Rename("new_v", "v"),
    Drop("rp_bucket", "the configuration determines it", restore=buffer),
    Drop("optimizer.{_:.+}", "training state"),
)


def official_state(seed: int = 0) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    shapes = {
        "layers.0.text_ffn.0.wi_0.weight": (4, 2),
        "layers.11.audio_ffn.0.wi_0.weight": (4, 2),
        "layers.0.qkv.weight": (6, 2),
        "layers.0.qkv.bias": (6,),
        "gates": (2, 4),
        "w_a.0": (2, 2),
        "w_b.0": (2, 2),
        "big": (2, 3),
        "small": (1, 3),
        "conv": (2, 3, 4),
        "new_v": (),
    }
    state = {key: torch.randn(shape, generator=draw) for key, shape in shapes.items()}
    state["big"], state["small"] = state["big"].bfloat16(), state["small"].bfloat16()
    return state | {"rp_bucket": torch.arange(6).view(2, 3)}


def same(a, b) -> bool:
    return set(a) == set(b) and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def test_there_and_back_is_bit_exact_including_restored_buffers():
    state = official_state()
    native, report = KeyMap(RULES).forward(state)
    assert "trunk.layers.11.ffn.audio.gate_proj.weight" in native
    assert report.dropped == {"rp_bucket": "the configuration determines it"}
    assert report.moved["layers.0.qkv.bias"] == tuple(f"trunk.layers.0.{n}.bias" for n in "qkv")
    assert same(KeyMap(RULES).backward(native), state)


def test_native_tensors_hold_what_the_rules_say():
    state = official_state()
    native, _ = KeyMap(RULES).forward(state)
    assert torch.equal(native["trunk.layers.0.k.weight"], state["layers.0.qkv.weight"][2:4])
    assert torch.equal(native["gate.narrow"], state["gates"][:, 3:])
    assert torch.equal(native["w.0"], torch.cat([state["w_a.0"], state["w_b.0"]]))
    assert native["kernel"].shape == (4, 2, 3)
    assert torch.equal(native["kernel"][1], state["conv"][:, :, 1])


def test_old_spelling_is_read_and_new_spelling_written():
    native, _ = KeyMap(RULES).forward({"old_v": torch.ones(2)})
    assert list(native) == ["v"]
    assert set(KeyMap(RULES).backward(native)) == {"new_v", "rp_bucket"}


def test_dropped_tensors_are_never_read():
    def burn() -> Tensor:
        raise AssertionError("read a tensor that nobody needs")

    native, report = KeyMap(RULES).forward(LazyState({"optimizer.0": burn, "new_v": lambda: torch.ones(1)}))
    assert dict(native) == {"v": torch.ones(1)}
    assert report.dropped == {"optimizer.0": "training state"}


def test_patterns_match_whole_keys_only_and_dots_are_literal():
    rules = KeyMap([Rename("a.{i}.b", "c.{i}")])
    assert rules.explain(["a.1.b", "xa.1.b", "a.1.bc", "aX1.b", "a.x.b", "a.1.b\n"]) == {
        "a.1.b": rules.rules[0],
        **dict.fromkeys(["xa.1.b", "a.1.bc", "aX1.b", "a.x.b", "a.1.b\n"]),
    }


def test_rules_run_on_shapes_only():
    shapes = {"layers.3.text_ffn.0.wi_0.weight": [[6144, 1536], "float32"], "layers.3.qkv.bias": [[9], "bfloat16"]}
    state = {
        key: torch.empty(shape, dtype=getattr(torch, dtype), device="meta") for key, (shape, dtype) in shapes.items()
    }
    native, _ = KeyMap(RULES).forward(state)
    assert native["trunk.layers.3.q.bias"].shape == (3,)
    back = KeyMap(RULES).backward(native)
    assert {k: [list(v.shape), str(v.dtype).removeprefix("torch.")] for k, v in back.items()} == shapes


def test_every_unexplained_key_is_named():
    with pytest.raises(StateError, match=r"2 others: alien\.0, alien\.1") as caught:
        KeyMap(RULES).forward({"alien.0": torch.ones(1), "new_v": torch.ones(1), "alien.1": torch.ones(1)})
    assert caught.value.keys == ("alien.0", "alien.1")


def test_long_lists_are_counted_in_the_message_and_whole_in_the_error():
    with pytest.raises(StateError, match="and 80 more") as caught:
        KeyMap([]).forward({f"k{i}": torch.ones(1) for i in range(100)})
    assert len(caught.value.keys) == 100


def test_a_missing_part_is_named():
    with pytest.raises(StateError, match=r"none of: w_b\.7"):
        KeyMap(RULES).forward({"w_a.7": torch.ones(1)})


def test_two_sources_for_one_target_are_refused():
    with pytest.raises(StateError, match="one source for v"):
        KeyMap(RULES).forward({"new_v": torch.ones(1), "old_v": torch.ones(1)})


def test_rules_that_could_not_come_back_are_refused():
    with pytest.raises(StateError, match="lead back to b"):
        KeyMap([Rename("a", "c"), Rename("b", "c")]).forward({"b": torch.ones(1)})


def test_fields_must_agree_on_both_sides():
    with pytest.raises(ValueError, match="same fields"):
        Rename("a.{i}", "b.{j}")


@pytest.mark.parametrize("state", [{"gates": torch.ones(2, 5)}, {"layers.0.qkv.bias": torch.ones(7)}])
def test_tensors_that_cannot_be_cut_as_written_are_refused(state):
    native, _ = KeyMap(RULES).forward(state)
    with pytest.raises(ValueError, match=r"expected .* to split"):
        dict(native)


def test_parts_of_unequal_size_or_dtype_are_refused():
    for other in (torch.ones(3, 2), torch.ones(2, 2).half()):
        native, _ = KeyMap(RULES).forward({"w_a.0": torch.ones(2, 2), "w_b.0": other})
        with pytest.raises(ValueError, match="one dtype"):
            dict(native)


def test_prefixed_rules_serve_a_sub_module():
    rules = KeyMap(prefixed(RULES, "{tower:left|right}_wrapper.", "towers.{tower}."))
    state = {f"left_wrapper.{key}": value for key, value in official_state().items() if key != "rp_bucket"}
    native, _ = rules.forward(state)
    assert all(key.startswith("towers.left.") for key in native)
    assert same(rules.backward(native), state)


def test_prefixed_drop_restores_under_its_prefix():
    rules = KeyMap(prefixed(RULES, "enc.", "trunk."))
    state = {f"enc.{key}": value for key, value in official_state().items()}
    assert same(rules.backward(rules.forward(state)[0]), state)


def test_restoring_a_foreign_key_is_refused():
    rules = KeyMap([Rename("a", "b"), Drop("c", "why", restore=lambda state: {"a": torch.ones(1)})])
    with pytest.raises(StateError, match="keys of its own, got a"):
        rules.backward({"b": torch.ones(1)})


names = st.text("abcdefgh_0123456789", min_size=1, max_size=6)


@settings(max_examples=60, deadline=None)
@given(
    depth=st.lists(st.integers(0, 10_000), min_size=1, max_size=4, unique=True),
    word=names,
    parts=st.integers(1, 4),
    dim=st.integers(0, 2),
    dims=st.permutations([0, 1, 2]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.bool]),
)
def test_random_rules_come_back_bit_for_bit(*, depth, word, parts, dim, dims, dtype):
    rules = KeyMap(
        [
            Transpose("t.{i}.{w:[a-h_0-9]+}", "native.{w}.t{i}", dims=tuple(dims)),
            Split("s.{i}", tuple(f"native.{p}.s.{{i}}" for p in range(parts)), dim=dim),
            Concat(tuple(f"c.{p}.{{i}}" for p in range(parts)), "native.c.{i}", dim=dim),
            Rename("{rest:.+}[0]", "{rest}.first"),
        ]
    )
    shape = [2, 3, 5]
    shape[dim] *= parts
    draw = torch.Generator().manual_seed(len(word))
    cube = torch.randint(0, 2**15, shape, generator=draw, dtype=torch.int16)
    state = {}
    for i in depth:
        state |= {f"t.{i}.{word}": cube, f"s.{i}": cube + 1, f"{word}.{i}[0]": cube + 2}
        state |= {f"c.{p}.{i}": cube + p for p in range(parts)}
    state = {key: value.to(dtype) for key, value in state.items()}
    native, report = rules.forward(state)
    assert set(report.moved) == set(state)
    assert same(rules.backward(native), state)


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.register_buffer("count", torch.zeros(1, dtype=torch.int64))


def good() -> dict[str, Tensor]:
    return {
        "linear.weight": torch.full((3, 2), 2.0),
        "linear.bias": torch.full((3,), 3.0),
        "scale": torch.tensor(4.0),
        "count": torch.tensor([5]),
    }


def test_load_strict_loads_everything():
    module = Tiny()
    assert load_strict(module, good()) == ()
    assert same(module.state_dict(), good())


def test_load_strict_lists_all_that_is_wrong_and_changes_nothing():
    module, before = Tiny(), {k: v.clone() for k, v in Tiny().state_dict().items()}
    module.load_state_dict(before)
    state = good() | {"linear.weight": torch.ones(2, 3), "alien": torch.ones(1)}
    del state["linear.bias"]
    with pytest.raises(StateError) as caught:
        load_strict(module, state)
    assert caught.value.keys == ("linear.bias", "alien", "linear.weight")
    assert "linear.weight expected (3, 2) got (2, 3)" in str(caught.value)
    assert same(module.state_dict(), before)


def test_load_strict_names_optional_keys_that_were_absent():
    state = good()
    del state["scale"]
    assert load_strict(Tiny(), state, optional=["scale", "count"]) == ("scale",)


def test_load_strict_fills_a_meta_module_by_assignment_only():
    with torch.device("meta"):
        module = Tiny()
    with pytest.raises(ValueError, match="assign=True"):
        load_strict(module, good())
    load_strict(module, good(), assign=True, dtype=torch.bfloat16)
    assert module.linear.weight.dtype == torch.bfloat16
    assert module.count.dtype == torch.int64
    assert module.linear.weight.requires_grad
    assert module.scale.item() == 4.0


def test_load_strict_casts_to_the_module_when_copying():
    module = Tiny().half()
    load_strict(module, good())
    assert module.linear.bias.dtype == torch.float16
    assert module.linear.bias.tolist() == [3.0] * 3
