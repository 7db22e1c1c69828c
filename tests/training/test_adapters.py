"""LoRA on a tiny model of every family: trained, saved, loaded, merged, taken out again, and merged as files."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlamaConfig, PreTrainedModel

import plait
from plait.cli import main
from plait.models.mplug2.config import MPlug2Config
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.models.mplug_owl.config import MPlugOwlConfig
from plait.models.mplug_owl.model import MPlugOwlForConditionalGeneration
from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration
from plait.models.one_peace.config import OnePeaceConfig
from plait.models.one_peace.pretraining import OnePeaceForPreTraining
from plait.models.one_peace.processor import OnePeaceProcessor
from plait.processing import wordpiece
from plait.processing.tokenizers import subset
from plait.recipes.mplug_owl import TOWERS
from plait.recipes.plan import plan_stage, with_cost
from plait.training import lora
from plait.training.loop import train
from plait.training.stages import Options, Stage
from plait.weights.files import StateError
from plait.weights.lora import read_adapter
from plait_studies.mplug2.training import SPECIAL

IDS = torch.randint(3, 30, (2, 6), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def redraw(model: PreTrainedModel) -> Any:
    """The model in evaluation mode with every parameter drawn from a fixed generator, so that each one matters."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + ("norm" in name))
    return model.eval()


def one_peace() -> Any:
    sizes = {"dim": 16, "num_heads": 2, "num_layers": 2, "mlp_dim": 16, "vocab_size": 30}
    return redraw(OnePeaceForPreTraining(OnePeaceConfig.preset("nano", **sizes, audio_position_groups=4)))


def mplug2() -> Any:
    return redraw(MPlug2ForConditionalGeneration(MPlug2Config.preset("tiny")))


def mplug_owl2() -> Any:
    config = MPlugOwl2Config(
        vocab_size=40, dim=32, num_layers=2, num_heads=4, num_kv_heads=2, mlp_dim=48,
        vision=VisionConfig(dim=16, num_heads=2, num_layers=2, mlp_dim=24, image_size=16, patch_size=4),
        abstractor=AbstractorConfig(num_queries=3, num_heads=2, num_layers=2, mlp_dim=24, grid_size=4),
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return redraw(MPlugOwl2ForConditionalGeneration(config))


def mplug_owl() -> Any:
    vision, reader = TOWERS["tiny"]
    llm = LlamaConfig(
        vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        bos_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return redraw(MPlugOwlForConditionalGeneration(MPlugOwlConfig(vision=vision, abstractor=reader, text_config=llm)))


def embeds(model: Any) -> Tensor:
    network = getattr(model, "model", model)
    return network.get_text_features(IDS) + network.get_image_features(PIXELS)


def answers(model: Any) -> Tensor:
    pixels = PIXELS[:, :, : model.config.vision_sizes.image_size, : model.config.vision_sizes.image_size]
    return model(input_ids=IDS, pixel_values=pixels, decoder_input_ids=IDS, labels=IDS)["logits"]


def writes(model: Any) -> Tensor:
    return model(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


def looks_and_writes(model: Any) -> Tensor:
    pixels = PIXELS[:, :, :16, :16]
    seen = model.encode(pixels) if hasattr(model, "encode") else model.model.encode_images(pixels)
    return writes(model) + seen.mean()


FAMILIES = {
    "one_peace": (one_peace, embeds),
    "mplug2": (mplug2, answers),
    "mplug_owl": (mplug_owl, looks_and_writes),
    "mplug_owl2": (mplug_owl2, looks_and_writes),
}


def loss(run: Any) -> Any:
    def objective(model: nn.Module, batch: Any, step: int, generator: torch.Generator) -> tuple[Tensor, dict[str, Any]]:
        return run(model).float().square().mean(), {}

    return objective


class Nothing:
    """A source whose batches hold no data."""

    def __len__(self) -> int:
        return 4

    def rows(self, seed: int, step: int, batch_size: int) -> list[int]:
        return list(range(batch_size))

    def load(self, rows: Any, rng: Any) -> dict[str, Any]:
        return {}

    def names(self, rows: Any) -> list[str]:
        return []


def trained(name: str, run_dir: Path, **how: Any) -> tuple[Any, Tensor]:
    """A model with an adapter after three steps, and what it says."""
    build, run = FAMILIES[name]
    torch.manual_seed(0)
    model = build()
    patterns = lora.add_lora(model, 3, **how)
    stage = Stage(
        name="lora", objective=loss(run), batches=Nothing, batch_size=2, steps=3, peak_lr=1e-2, warmup=0,
        trainable=patterns,
    )  # fmt: skip
    train(model, [stage], run_dir, device="cpu", options=Options(progress=False))
    model.eval()
    with torch.no_grad():
        return model, run(model)


@pytest.fixture(scope="module", params=list(FAMILIES))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Any, Tensor, Path]:
    """Name of a family, a model of it with a trained adapter, its output, and the directory of the adapter."""
    place = tmp_path_factory.mktemp(request.param)
    model, output = trained(request.param, place / "run")
    return request.param, model, output, lora.save_adapter(model, place / "adapter", base="base")


@torch.no_grad()
def test_only_adapters_train_and_a_loaded_one_says_the_same(family: tuple[str, Any, Tensor, Path]) -> None:
    name, model, output, directory = family
    build, run = FAMILIES[name]
    base = build()
    assert not torch.allclose(run(base), output, atol=1e-3)
    own = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items()}
    assert all(torch.equal(own[key], value) for key, value in base.state_dict().items())
    lora.load_adapter(base, directory)
    torch.testing.assert_close(run(base), output, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_merging_equals_the_adapter_and_unmerging_restores(family: tuple[str, Any, Tensor, Path]) -> None:
    name, _, output, directory = family
    build, run = FAMILIES[name]
    model, before = build(), build().state_dict()
    lora.load_adapter(model, directory)
    lora.merge_adapter(model)
    torch.testing.assert_close(run(model), output, atol=1e-5, rtol=1e-4)
    lora.unmerge_adapter(model)
    torch.testing.assert_close(run(model), output, atol=1e-5, rtol=1e-4)
    plain = {key.replace(".base_layer", ""): value for key, value in model.state_dict().items() if "lora_" not in key}
    for key, value in before.items():
        torch.testing.assert_close(plain[key], value, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_a_folded_model_has_no_trace_of_the_adapter(family: tuple[str, Any, Tensor, Path]) -> None:
    name, _, output, directory = family
    build, run = FAMILIES[name]
    model = build()
    lora.load_adapter(model, directory)
    assert lora.folded(model) is model
    torch.testing.assert_close(run(model), output, atol=1e-5, rtol=1e-4)
    assert list(model.state_dict()) == list(build().state_dict())
    assert not lora.has_adapter(model)
    merged = read_adapter(directory).merged(build().state_dict())
    for key, value in model.state_dict().items():
        torch.testing.assert_close(value, merged[key], atol=1e-6, rtol=1e-5)


def test_a_step_reaches_every_adapter_that_the_outputs_depend_on(tmp_path: Path) -> None:
    model, _ = trained("one_peace", tmp_path)
    idle = {n for n, p in model.named_parameters() if ".lora_B." in n and not p.detach().any()}
    assert idle == {n for n, _ in model.named_parameters() if ".lora_B." in n and (".audio." in n or "decoder" in n)}


@torch.no_grad()
def test_peft_itself_loads_what_was_saved(family: tuple[str, Any, Tensor, Path]) -> None:
    import warnings

    import peft

    name, _, output, directory = family
    build, run = FAMILIES[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # PEFT asks transformers for a name it renamed
        loaded = peft.PeftModel.from_pretrained(build(), str(directory))
    assert json.loads((directory / "adapter_config.json").read_text())["base_model_name_or_path"] == "base"
    torch.testing.assert_close(run(loaded.get_base_model()), output, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("rslora", [False, True])
def test_modules_that_train_whole_travel_with_the_adapter(rslora: bool, tmp_path: Path) -> None:
    model, output = trained("one_peace", tmp_path, whole=["projections.text"], targets=["*.attn.*"], rslora=rslora)
    directory = lora.save_adapter(model, tmp_path / "adapter")
    base = one_peace()
    assert lora.load_adapter(base, directory, trains=True) == lora.TRAINABLE
    merged = one_peace()
    merged.load_state_dict(dict(read_adapter(directory).merged(merged.state_dict())))
    changed = {n for (n, a), b in zip(merged.named_parameters(), one_peace().parameters()) if not torch.equal(a, b)}
    assert {"model.projections.text.weight", "model.projections.text.bias"} < changed
    assert all(".attn." in n or "projections.text" in n for n in changed)
    with torch.no_grad():
        torch.testing.assert_close(embeds(base), output, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(embeds(merged), output, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(embeds(lora.folded(base)), output, atol=1e-5, rtol=1e-4)
    assert list(base.state_dict()) == list(one_peace().state_dict())


@pytest.fixture(scope="module")
def directories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model directories of ONE-PEACE and mPLUG-2, and adapters trained on them."""
    place = tmp_path_factory.mktemp("directories")
    kept = subset([])
    config = OnePeaceConfig.preset("nano", dim=16, num_heads=2, num_layers=2, mlp_dim=16, vocab_size=len(kept))
    model = redraw(OnePeaceForPreTraining(config))
    model.save_pretrained(place / "one_peace", max_shard_size="20KB")
    OnePeaceProcessor.from_config(config, kept).save_pretrained(place / "one_peace")
    pieces = [*SPECIAL, *(p for p in wordpiece.pieces() if len(p) == 1 and p.isascii())]
    ids = {f"{name}_token_id": pieces.index(p) for name, p in (("pad", "[PAD]"), ("bos", "[CLS]"), ("eos", "[SEP]"))}
    writer = redraw(MPlug2ForConditionalGeneration(MPlug2Config.preset("tiny", vocab_size=len(pieces), **ids)))
    writer.save_pretrained(place / "mplug2")
    MPlug2Processor.build(writer.config.vision_sizes.image_size, pieces).save_pretrained(place / "mplug2")
    for name, one in {"one_peace": model, "mplug2": writer}.items():
        lora.add_lora(one, 2)
        with torch.no_grad():
            for key, parameter in one.named_parameters():
                if ".lora_B." in key:
                    nn.init.normal_(parameter, std=0.5)
        lora.save_adapter(one, place / f"{name}-adapter")
    return {path.name: path for path in place.iterdir()}


def tensors(path: Path, **options: Any) -> dict[str, Tensor]:
    return plait.load(path, **options)[0].state_dict()


@pytest.mark.parametrize("name", ["one_peace", "mplug2"])
def test_merge_writes_a_directory_equal_to_the_adapter(
    name: str, directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = directories[name], directories[f"{name}-adapter"]
    assert main(["merge", str(base), str(adapter), str(tmp_path / "merged")]) == 0
    assert "weights changed by" in capsys.readouterr().out
    assert {path.name for path in base.iterdir()} - {path.name for path in (tmp_path / "merged").iterdir()} == set()
    merged, applied, plain = tensors(tmp_path / "merged"), tensors(base, adapter=adapter), tensors(base)
    assert all(torch.equal(merged[key], applied[key]) for key in plain)
    assert any(not torch.equal(merged[key], plain[key]) for key in plain)
    assert main(["merge", str(base), str(adapter), str(tmp_path / "merged")]) == 2
    assert "a directory that does not exist yet" in capsys.readouterr().err


def test_an_adapter_of_another_model_is_one_line(directories: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(StateError, match=r"expected an adapter of this base in .*pass the base it was trained on"):
        plait.load(directories["one_peace"], adapter=directories["mplug2-adapter"])
    with pytest.raises(ValueError, match=r"expected adapter_config\.json and adapter_model\.safetensors"):
        plait.load(directories["one_peace"], adapter=tmp_path)
    assert main(["merge", str(directories["one_peace"]), str(directories["mplug2-adapter"]), str(tmp_path / "x")]) == 1
    assert not list(tmp_path.iterdir())


def test_a_branch_takes_its_part_of_the_adapter(directories: dict[str, Path]) -> None:
    adapter = directories["one_peace-adapter"]
    whole = tensors(directories["one_peace"], adapter=adapter)
    image = tensors(directories["one_peace"], adapter=adapter, branch=("image",))
    assert all(torch.equal(value, whole[key]) for key, value in image.items())


def test_verbs_take_an_adapter(
    directories: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def embedded(*words: str) -> Tensor:
        out = tmp_path / "vectors.npy"
        argv = ["embed", str(directories["one_peace"]), "--text", "a", "--text", "b", "--out", str(out), "--overwrite"]
        assert main([*argv, *words]) == 0
        return torch.from_numpy(np.load(out))

    adapter = str(directories["one_peace-adapter"])
    plain, adapted = embedded(), embedded("--adapter", adapter)
    assert not torch.allclose(plain, adapted, atol=1e-2)
    assert torch.equal(adapted, embedded("--adapter", adapter))
    index, model = str(tmp_path / "texts.lance"), str(directories["one_peace"])
    picture = str(tmp_path / "a.png")
    Image.new("RGB", (20, 20), "red").save(picture)
    assert main(["index", "add", index, picture, "--model", model, "--adapter", adapter]) == 0
    assert main(["search", index, "--image", picture]) == 0
    assert "1.000" in capsys.readouterr().out  # the index remembers the adapter
    assert main(["search", index, "--image", picture, "--model", model]) == 1
    said = []
    for words in ((), ("--adapter", str(directories["mplug2-adapter"]))):
        verb = ["answer", str(directories["mplug2"]), picture, "a", "--answers", "b,c,d", "--json"]
        capsys.readouterr()
        assert main([*verb, *words]) == 0
        said.append(json.loads(capsys.readouterr().out)["answers"])
    assert said[0] != said[1]


def test_a_base_of_few_bits_without_its_package_is_one_line() -> None:
    if find_spec("bitsandbytes") is None:
        with pytest.raises(ValueError, match="expected bitsandbytes for a base of 4 bits, found none"):
            lora.quantise(one_peace(), 4)
    with pytest.raises(ValueError, match="expected 4 or 8 bits, got 5"):
        lora.quantise(one_peace(), 5)


@pytest.mark.parametrize(("package", "bits"), [("torchao", 8), ("bitsandbytes", 8), ("bitsandbytes", 4)])
@pytest.mark.filterwarnings("ignore")  # of packages that the suite is not pinned to
def test_adapters_train_on_a_base_of_few_bits(package: str, bits: int, tmp_path: Path) -> None:
    """The plan counts its few bytes; the loop trains beside it, stops, and goes on from a checkpoint without it."""
    if find_spec(package) is None or (package == "bitsandbytes" and bits == 8 and find_spec("torchao")):
        pytest.skip(f"needs {package}" if find_spec(package) is None else "torchao comes first")

    def prepared() -> Any:
        model = mplug_owl2()
        lora.quantise(model, bits)
        torch.manual_seed(0)
        lora.add_lora(model, 2)
        return model

    def stage(*after: Any) -> Stage:
        return Stage(
            name="lora", objective=loss(writes), batches=Nothing, batch_size=2, steps=4, peak_lr=1e-2, warmup=0,
            trainable=lora.TRAINABLE, after_step=after,
        )  # fmt: skip

    def stops(model: nn.Module, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    quiet, base = Options(progress=False), mplug_owl2()
    with torch.no_grad():
        difference = writes(prepared()) - writes(base)
        assert 0 < float(difference.norm() / writes(base).norm()) < 0.5
    model = prepared()
    planned = with_cost(plan_stage(model, stage()), model, stage())
    whole = plan_stage(base, replace(stage(), trainable=()))
    adapter = sum(planned.trainable.values())
    assert planned.note == "" and planned.flops and sum(planned.frozen.values()) == sum(whole.trainable.values())
    assert planned.bytes["parameters"] - 4 * adapter < 0.75 * whole.bytes["parameters"]
    train(model, [stage()], tmp_path / "whole", device="cpu", options=quiet)
    train(prepared(), [stage(stops)], tmp_path / "stopped", device="cpu", options=quiet)
    again = prepared()
    train(again, [stage()], tmp_path / "stopped", device="cpu", options=quiet)
    for (name, value), other in zip(model.named_parameters(), again.parameters(), strict=True):
        assert ".lora_" not in name or torch.equal(value, other), name
    with pytest.raises(ValueError, match="expected a base in full precision"):
        lora.merge_adapter(model)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"rank": 0}, "expected a rank of at least 1, got 0"),
        ({"targets": ["*.nothing"]}, "expected target pattern '\\*.nothing' to match a linear layer"),
        ({"whole": ["nothing"]}, "expected names of modules to train whole, got nothing"),
    ],
)
def test_what_does_not_fit_is_one_line(how: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        lora.add_lora(one_peace(), **how)


def test_a_second_adapter_and_a_missing_one_are_refused(family: tuple[str, Any, Tensor, Path]) -> None:
    _, model, _, directory = family
    for call in (lambda: lora.add_lora(model), lambda: lora.load_adapter(model, directory)):
        with pytest.raises(ValueError, match="expected a model without adapter"):
            call()
    for call in (lora.merge_adapter, lora.unmerge_adapter):
        with pytest.raises(ValueError, match="expected a model with an adapter, got none"):
            call(nn.Linear(2, 2))


def test_kinds_that_merge_otherwise_are_named(family: tuple[str, Any, Tensor, Path], tmp_path: Path) -> None:
    directory = family[3]
    for change, what in ({"use_dora": True}, "DoRA"), ({"peft_type": "IA3"}, "IA3"), ({"lora_bias": True}, "biases"):
        settings = json.loads((directory / "adapter_config.json").read_text()) | change
        (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
        (tmp_path / "adapter_model.safetensors").write_bytes((directory / "adapter_model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=f"expected a plain LoRA adapter in .*{what}"):
            read_adapter(tmp_path)


def test_adapters_of_a_base_in_bfloat16_stay_in_float32() -> None:
    model = mplug_owl2().to(torch.bfloat16)
    lora.add_lora(model, 2)
    kinds = {p.dtype for n, p in model.named_parameters() if ".lora_" in n}
    assert kinds == {torch.float32} and writes(model).dtype == torch.bfloat16


def test_without_peft_the_install_line_is_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    with pytest.raises(ImportError, match="peft"):
        lora.add_lora(one_peace())
