"""mPLUG-2 on disk: directories keep everything, official files become models, tasks take what they need."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoImageProcessor, AutoModel, AutoProcessor

from plait.cli import main
from plait.models import auto
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.config import MPlug2Config, config_fields
from plait.models.mplug2.model import MPlug2Model
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import MPlug2ForConditionalGeneration
from plait.models.mplug2.weights import CLASSES, NEVER_RUN, assemble, class_for, finetuning_name, key_map
from plait.weights.files import LazyState

GOLDENS = Path(__file__).parents[2] / "goldens" / "mplug2"
DECODED_VIDEO = "videocaption_a"


def official(case: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return load_file(GOLDENS / case / "weights.safetensors"), json.loads((GOLDENS / case / "config.json").read_text())


def written(folder: Path, state: dict[str, Tensor], config: dict[str, Any], wrapper: str | None = "model") -> Path:
    """A checkpoint as the released code saves it."""
    folder.mkdir(exist_ok=True)
    path = folder / "checkpoint_best.pth"
    torch.save({wrapper: state, "config": config, "epoch": 3} if wrapper else state, path)
    return path


def saved(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    MPlug2Processor.from_config(model.config).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("name", list(CLASSES))
@pytest.mark.parametrize("queue_size", [0, 6])
def test_a_directory_keeps_every_tensor(build, tmp_path: Path, name: str, queue_size: int) -> None:
    model = build(CLASSES[name], queue_size=queue_size, distill=bool(queue_size))
    for key, buffer in model.named_buffers():
        buffer.copy_(torch.randint(0, 3, buffer.shape).to(buffer.dtype))
        assert key in model.state_dict()  # nothing that a checkpoint would forget
    saved(model, tmp_path)
    state = model.state_dict()
    trainable = {n for n, p in model.named_parameters() if p.requires_grad}
    for again in (auto.load(tmp_path)[0], CLASSES[name].from_pretrained(tmp_path)):
        assert type(again) is CLASSES[name]
        assert again.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in again.state_dict().items())
        assert {n for n, p in again.named_parameters() if p.requires_grad} == trainable
    assert all(not n.startswith("teacher.") and ".teacher_" not in n for n in trainable)


@pytest.mark.parametrize("name", ["MPlug2ForConditionalGeneration", "MPlug2ForRetrieval", "MPlug2ForGrounding"])
def test_transformers_finds_the_network_in_a_directory(build, tmp_path: Path, name: str) -> None:
    model = build(CLASSES[name])
    saved(model, tmp_path)
    network, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert isinstance(network, MPlug2Model)
    assert not report["missing_keys"]
    state = model.model.state_dict()
    assert network.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert type(AutoProcessor.from_pretrained(tmp_path)).__name__ == "MPlug2Processor"
    assert type(AutoImageProcessor.from_pretrained(tmp_path)).__name__ == "MPlug2ImageProcessor"


@pytest.mark.parametrize("wrapper", ["model", "module", None])
def test_official_wrappers_are_understood(tmp_path: Path, wrapper: str | None) -> None:
    state, config = official(DECODED_VIDEO)
    path = written(tmp_path, state, config, wrapper)
    options = {} if wrapper else {"official_config": config}
    model, processor = auto.load(path, task="caption", **options)
    assert isinstance(model, MPlug2ForConditionalGeneration)
    assert not hasattr(model.model, "fusion")
    assert processor.num_frames == config["model_num_frames"]
    assert torch.equal(model.model.universal.latents, state["text_encoder.encoder.layer.1.latents"])


def test_names_under_module_are_stripped(tmp_path: Path) -> None:
    state, config = official(DECODED_VIDEO)
    path = written(tmp_path, {f"module.{key}": value for key, value in state.items()}, config)
    assert isinstance(auto.load(path)[0], MPlug2ForConditionalGeneration)


def test_there_and_back_is_exact(tmp_path: Path) -> None:
    state, config = official("videoqa_momentum_distill")
    model, _ = auto.load(written(tmp_path, state, config), task="answer", distill=True)
    back = key_map(model.config).backward(model.state_dict())
    dead = {key for key in state if key not in back}
    rules = key_map(model.config)
    _, report = rules.forward(state)
    assert {report.dropped[key] for key in dead} <= set(NEVER_RUN.values())
    assert all(torch.equal(back[key], state[key]) for key in back)
    assert set(back) <= set(state)


def test_pretraining_names_become_finetuning_names(tmp_path: Path) -> None:
    state, config = official("videoqa_a")
    older = {}
    for key, value in state.items():
        for part in ("text_encoder", "fusion_encoder"):
            inner = "fusion." if part == "fusion_encoder" and ".encoder." in key else "bert."
            key = key.replace(f"{part}.", f"{part}.{inner}") if key.startswith(f"{part}.") else key
        older[key] = value
    one, _ = auto.load(written(tmp_path, state, config), task="answer")
    two, _ = auto.load(written(tmp_path / "older", older, config), task="answer")
    assert all(torch.equal(value, two.state_dict()[key]) for key, value in one.state_dict().items())


def test_finetuning_from_a_finetuned_file_keeps_the_fusion_module(tmp_path: Path) -> None:
    state, config = official("videoqa_a")
    model, _ = auto.load(written(tmp_path, state, config), task="answer")
    own = model.model.fusion.layers[-1].fc1.weight
    assert torch.equal(own, state["fusion_encoder.encoder.layer.2.intermediate.dense.weight"])


def test_a_tensor_under_two_names_is_an_error(tmp_path: Path) -> None:
    state, config = official("videoqa_a")
    state["text_encoder.bert.embeddings.LayerNorm.bias"] = state["text_encoder.embeddings.LayerNorm.bias"] + 1
    with pytest.raises(ValueError, match="expected one tensor per name, got two of"):
        auto.load(written(tmp_path, state, config))


@torch.no_grad()
def test_resolution_change_resizes_the_position_table(tmp_path: Path) -> None:
    state, config = official(DECODED_VIDEO)
    path = written(tmp_path, state, config)
    model, processor = auto.load(path, task="caption", image_size=20)
    old = state["visual_encoder.visual.positional_embedding"]
    new = model.model.vision.position_embedding
    assert (len(old), len(new)) == (10, 26)
    assert torch.equal(new[0], old[0])
    grid = torch.nn.functional.interpolate(old[1:].T.view(1, -1, 3, 3), (5, 5), mode="bilinear", align_corners=False)
    assert torch.allclose(new[1:], grid.flatten(2)[0].T, atol=1e-6)
    assert processor.image_size == 20
    saved(model, tmp_path / "dir")
    again, processor = auto.load(tmp_path / "dir", image_size=12)
    assert again.model.vision.position_embedding.shape == old.shape
    assert processor.image_size == 12
    assert again.generate(torch.zeros(1, 3, 12, 12), max_length=4).shape[0] == 1


def test_a_resized_teacher_is_resized_too(tmp_path: Path) -> None:
    state, config = official("videoqa_momentum_distill")
    model, _ = auto.load(written(tmp_path, state, config), task="answer", distill=True, image_size=20)
    assert model.teacher.vision.position_embedding.shape == model.model.vision.position_embedding.shape


def test_a_teacher_that_the_file_lacks_is_a_copy(tmp_path: Path) -> None:
    state, config = official("videoqa_a")
    model, _ = auto.load(written(tmp_path, state, config), task="answer", distill=True, image_size=20)
    student = model.model.state_dict()
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, student[key])
        assert value.data_ptr() != student[key].data_ptr()


def test_an_official_file_starts_every_task(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, config = official("videoqa_a")
    path = written(tmp_path, state, config)
    expected = {
        ("caption", None): "MPlug2ForConditionalGeneration", ("retrieve", None): "MPlug2ForRetrieval",
        ("classify", ("video",)): "MPlug2ForVideoClassification",
        ("classify", ("image",)): "MPlug2ForImageClassification",
        ("classify", ("text",)): "MPlug2ForSequenceClassification", ("entail", None): "MPlug2ForSequenceClassification",
        ("pretrain", None): "MPlug2ForPreTraining",
    }  # fmt: skip
    for (task, branch), name in expected.items():
        model, _ = auto.load(path, task=task, branch=branch)
        assert type(model).__name__ == name
        assert not any(p.is_meta for p in model.parameters())
    assert torch.equal(model.model.masked_lm.dense.weight, model.model.decoder.head.dense.weight)
    assert "fresh: alignment" in caplog.text
    with pytest.raises(ValueError, match="expected coordinate tokens below vocab_size"):
        auto.load(path, task="ground")


def test_a_task_reads_only_its_own_tensors(build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(build(MPlug2ForPreTraining), tmp_path)
    from plait.models.mplug2 import weights

    taken: set[str] = set()

    class Watched(LazyState):
        def __getitem__(self, key: str) -> Tensor:
            taken.add(key)
            return super().__getitem__(key)

    original = weights.read_checkpoint

    def watched(path: Path):
        checkpoint = original(path)
        checkpoint.state.__class__ = Watched
        return checkpoint

    monkeypatch.setattr(weights, "read_checkpoint", watched)
    model, _ = auto.load(tmp_path, task="caption", branch=("image",))
    assert {key.split(".")[1] for key in taken} == {"vision", "universal", "decoder"}
    assert not any("temporal" in key for key in taken)
    assert set(model.state_dict()) == taken


def test_a_directory_becomes_a_model_of_another_task(build, tmp_path: Path) -> None:
    whole = build(MPlug2ForPreTraining, queue_size=6)
    saved(whole, tmp_path)
    model, processor = auto.load(tmp_path, task="classify", branch=("image",), id2label={0: "cat", 1: "dog", 2: "sun"})
    assert model.config.num_labels == 3
    assert torch.equal(model.model.vision.patch_embedding.weight, whole.model.vision.patch_embedding.weight)
    saved(model, tmp_path / "classifier")
    again, _ = auto.load(tmp_path / "classifier")
    assert again.config.id2label[2] == "sun"
    assert processor.image_size == 12
    encoder, _ = auto.load(tmp_path, model_class=MPlug2Model)
    assert torch.equal(encoder.text.embeddings.norm.weight, whole.model.text.embeddings.norm.weight)


def test_convert_writes_a_directory_and_accounts_for_every_key(tmp_path: Path, capsys) -> None:
    state, config = official("videoqa_b_projected_stride2")
    source = written(tmp_path, state, config)
    assert main(["convert", str(source), str(tmp_path / "out"), "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["model_type"] == "mplug2"
    assert set(record["dropped"].values()) <= {*NEVER_RUN.values(), *RESTORED}
    assert not record["added"]
    model, _ = auto.load(tmp_path / "out")
    assert model.config.fusion_stride == 2
    again, _ = auto.load(source)
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in model.state_dict().items())


def test_convert_keeps_what_a_task_needs(tmp_path: Path, capsys) -> None:
    state, config = official("videoqa_a")
    source = str(written(tmp_path, state, config))
    assert main(["convert", source, str(tmp_path / "out"), "--task", "caption", "--branch", "video", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert "text_encoder.embeddings.word_embeddings.weight" in record["dropped"]
    model, _ = auto.load(tmp_path / "out")
    assert model.config.task == "caption"
    assert sum(p.numel() for p in model.parameters()) == record["parameters"]
    assert {name.split(".")[1] for name, _ in model.named_parameters()} == {"vision", "universal", "decoder"}
    assert main(["convert", source, str(tmp_path / "again"), "--task", "dance"]) == 1
    assert "expected a task among caption" in capsys.readouterr().err


RESTORED = (
    "position numbers, which the configuration determines",
    "a second name of the token table and of the bias",
)


@pytest.mark.parametrize("case", ["mplug1_image_vqa", "mplug1_grounding", "mplug1_retrieval_scoring", "videocaption_a"])
def test_convert_knows_the_released_layouts(tmp_path: Path, capsys, case: str) -> None:
    state, config = official(case)
    out = tmp_path / "out"
    assert main(["convert", str(written(tmp_path, state, config)), str(out)]) == 0, capsys.readouterr().err
    names = {
        "mplug1_grounding": "MPlug2ForGrounding", "mplug1_retrieval_scoring": "MPlug2ForRetrieval",
    }  # fmt: skip
    assert type(auto.load(out)[0]).__name__ == names.get(case, "MPlug2ForConditionalGeneration")


def test_grounding_constants_come_from_the_file(tmp_path: Path) -> None:
    state, config = official("mplug1_grounding")
    del config["grounding_prefix"], config["grounding_bins"]
    model, _ = auto.load(written(tmp_path, state, config))
    assert (model.config.grounding_start_id, model.config.grounding_bins) == (105, 20)


def test_files_of_other_models_are_one_clear_line(tmp_path: Path, capsys) -> None:
    torch.save({"model": {"visual.trunk.weight": torch.zeros(2)}}, tmp_path / "other.pth")
    assert main(["convert", str(tmp_path / "other.pth"), str(tmp_path / "out")]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "expected an official checkpoint of mplug2, mplug_owl" in error
    state, config = official(DECODED_VIDEO)
    state["text_decoder.pooler.weight"] = torch.zeros(2)
    assert main(["convert", str(written(tmp_path, state, config)), str(tmp_path / "out")]) == 1
    assert "text_decoder.pooler.weight" in capsys.readouterr().err
    del state["text_decoder.pooler.weight"], state["text_decoder.bert.encoder.layer.1.output.dense.bias"]
    assert main(["convert", str(written(tmp_path, state, config)), str(tmp_path / "out")]) == 1
    assert "decoder.layers.1.fc2.bias" in capsys.readouterr().err


def test_settings_nobody_knows_are_an_error(tmp_path: Path) -> None:
    state, config = official(DECODED_VIDEO)
    with pytest.raises(ValueError, match="expected settings of mPLUG-2, got wings"):
        auto.load(written(tmp_path, state, config | {"wings": 2}))
    config["bert_config"]["hidden_act"] = "relu"
    with pytest.raises(ValueError, match="expected hidden_act gelu, got 'relu'"):
        auto.load(written(tmp_path, state, config))


def test_settings_of_released_runs_change_nothing_but_the_size_of_pictures(tmp_path: Path) -> None:
    state, config = official(DECODED_VIDEO)
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    plain = config_fields(config, shapes)
    said = {"momentum": 0.9, "bos": "[CLS]", "mlm_task": True, "image_size": 256, "lr": 1e-5}
    assert config_fields(config | said, shapes) == plain
    assert plain["vision"].image_size == 12  # three patches of 4
    assert config_fields(config | {"image_res": 14}, shapes)["vision"].image_size == 14  # three and a rim
    assert config_fields(config | {"image_res": 24}, shapes)["vision"].image_size == 12  # the file knows better


def test_grounding_cuts_the_text_encoder_to_the_stride(tmp_path: Path) -> None:
    state, config = official("mplug1_grounding")
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    config["bert_config"]["text_encoder_layers"] = 7
    assert config_fields(config, shapes)["num_text_layers"] == 2


def test_a_bert_configuration_may_be_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    state, config = official("videoqa_b_projected_stride2")
    named = {"bert_config": "configs/config_bert_stride3.json", "xclip": config["xclip"]}
    fields = config_fields(named, {key: tuple(value.shape) for key, value in state.items()})
    assert (fields["fusion_stride"], fields["num_fusion_layers"]) == (3, 6)
    assert not caplog.text
    fields = config_fields(named | {"bert_config": "mine.json"}, {k: tuple(v.shape) for k, v in state.items()})
    assert fields["fusion_stride"] == 1000
    assert "got mine" in caplog.text


def test_untied_tables_are_an_error(tmp_path: Path) -> None:
    state, config = official(DECODED_VIDEO)
    state["text_decoder.cls.predictions.decoder.weight"] = state["text_decoder.cls.predictions.decoder.weight"] + 1
    with pytest.raises(ValueError, match=r"to equal text_decoder\.bert\.embeddings\.word_embeddings\.weight"):
        auto.load(written(tmp_path, state, config))


def test_official_is_a_switch_of_both(build, tmp_path: Path) -> None:
    state, config = official(DECODED_VIDEO)
    model, processor = auto.load(written(tmp_path, state, config), official=True)
    assert (model.config.official, processor.official) == (True, True)
    saved(model, tmp_path / "dir")
    model, processor = auto.load(tmp_path / "dir")
    assert (model.config.official, processor.official) == (True, True)
    model, processor = auto.load(tmp_path / "dir", official=False)
    assert (model.config.official, processor.official) == (False, False)


def test_wrong_options_say_what_is_expected(build, tmp_path: Path) -> None:
    saved(build(MPlug2ForConditionalGeneration, modalities=["image"]), tmp_path)
    for options, message in (
        ({"branch": ("video",)}, "expected branches among text, image, got video"),
        ({"wings": 2}, "expected fields of MPlug2Config, got wings"),
        ({"task": "dance"}, "expected a task among caption"),
        ({"branch": ("text",), "task": "caption"}, "expected a modality for caption, got text"),
    ):
        with pytest.raises(ValueError, match=message):
            auto.load(tmp_path, **options)


@pytest.mark.parametrize(
    ("name", "model_class"),
    [
        ("large_pretrain_inferred", "MPlug2ForConditionalGeneration"),
        ("large_videoqa", "MPlug2ForConditionalGeneration"),
        ("base_videocaption", "MPlug2ForConditionalGeneration"), ("mplug1_base_vqa", "MPlug2ForConditionalGeneration"),
        ("mplug1_large_caption", "MPlug2ForConditionalGeneration"), ("mplug1_large_grounding", "MPlug2ForGrounding"),
        ("mplug1_large_retrieval", "MPlug2ForRetrieval"),
    ],
)  # fmt: skip
def test_listed_files_load_strictly_as_what_they_are(name: str, model_class: str) -> None:
    """On the meta device: names and shapes, no numbers."""
    listed = json.loads(gzip.decompress((GOLDENS / f"keys_{name}.json.gz").read_bytes()))["keys"]
    shapes = {finetuning_name(key) or key: tuple(shape) for key, shape in listed.items()}
    config = MPlug2Config.from_official(None, shapes)
    native, _ = key_map(config).forward({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    model = assemble(config, class_for(config, native), native, device="meta")
    assert type(model).__name__ == model_class
    assert config.is_predecessor == name.startswith("mplug1")
    taught = assemble(config.changed({"distill": True}), type(model), native, device="meta")
    assert all(p.is_meta for p in taught.parameters())


def test_presets_and_official_sizes_agree() -> None:
    for preset, name in (("large", "large_videoqa"), ("base", "base_videoqa")):
        listed = json.loads(gzip.decompress((GOLDENS / f"keys_{name}.json.gz").read_bytes()))["keys"]
        found = MPlug2Config.from_official(None, {key: tuple(shape) for key, shape in listed.items()}).to_dict()
        expected = MPlug2Config.preset(preset).to_dict()
        assert {k: v for k, v in found.items() if v != expected[k]} == {}
    with pytest.raises(ValueError, match="expected a preset among large, base"):
        MPlug2Config.preset("huge")


def test_queues_that_a_directory_lacks_begin_as_fresh_ones(tmp_path: Path) -> None:
    MPlug2ForRetrieval(MPlug2Config.preset("tiny")).save_pretrained(tmp_path)
    heads = MPlug2ForRetrieval.from_pretrained(tmp_path, queue_size=6).alignment
    assert heads.id_queue.tolist() == [[-100] * 6] and heads.queue_pointer.tolist() == [0]
    torch.testing.assert_close(heads.vision_queue.norm(dim=0), torch.ones(6))
