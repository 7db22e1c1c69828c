"""Golden cases of whole ONE-PEACE models: official weights and inputs in, every stored output out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from plait.models.one_peace.config import DecoderConfig, OnePeaceConfig
from plait.models.one_peace.model import Encoded, OnePeaceModel, OnePeacePreTrainedModel
from plait.models.one_peace.pretraining import (
    STAGE2_TRAINABLE,
    OnePeaceForPreTraining,
    PretrainingLosses,
    audio_text_losses,
    decays,
    image_text_losses,
    layer_id,
)
from plait.models.one_peace.tasks import OnePeaceForClassification
from plait.models.one_peace.weights import from_official, key_map
from plait.nn.adapters import AudioAdapter, ImageAdapter, TextAdapter
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.parity.shipped_runners import hidden, padding
from plait.training.stages import freeze
from plait.weights.files import read_checkpoint

from .released import official_buffers, official_order

Outputs = dict[str, Any]
M = TypeVar("M", bound=OnePeacePreTrainedModel)
Part = TypeVar("Part", bound=nn.Module)


def build(case: Case, model_class: type[M]) -> M:
    """The case's model through the public loader, with the official quirks."""
    model = from_official(
        replace(read_checkpoint(case.path / "weights.safetensors"), config=dict(case.config)),
        model_class=model_class,
        dtype=case.dtype,
        device=case.device,
        official=case.official,
    )
    model.set_attn_implementation(case.attn)
    return narrowed(model, model_class)


def narrowed(module: nn.Module, kind: type[Part]) -> Part:
    """The same module, known to be of `kind`."""
    if not isinstance(module, kind):
        raise ValueError(f"expected a {kind.__name__} in this case's weights, got a {type(module).__name__}")
    return module


def encode(model: OnePeaceModel, inputs: Mapping[str, Tensor], *names: str, **options: Any) -> Encoded:
    """One pass over the named modalities of a case's inputs."""
    sources = {"text": "src_tokens", "image": "src_images", "audio": "src_audios"}
    given: dict[str, Any] = {m: inputs[sources[m]] for m in names}
    if "audio" in given:
        given["audio"] = {"input_values": given["audio"], "frame_mask": frame_mask(inputs)}
    return model.encode(given, **options)


def frame_mask(inputs: Mapping[str, Tensor]) -> Tensor | None:
    """(batch, frames) bool, True = real, from the stored mask that counts CLS and says True for padding."""
    padding = inputs.get("audio_padding_masks")
    return None if padding is None else ~padding[:, 1:]


@runner("one_peace", "forward_image")
@torch.no_grad()
def forward_image(case: Case) -> Outputs:
    model = build(case, OnePeaceModel)
    encoded = encode(model, case.inputs, "image", output_hidden_states=True)
    adapted = encoded.adapted["image"]
    return hidden(encoded) | {
        "out.stem": narrowed(model.adapters["image"], ImageAdapter).stem(case.inputs["src_images"]).permute(0, 3, 1, 2),
        "out.adapter.x": adapted.x,
        "out.adapter.attn_bias": adapted.biases[0][0],
        "out.features": encoded.features["image"],
        "out.embedding": model.project(encoded.features["image"], "image"),
    }


@runner("one_peace", "forward_audio")
@torch.no_grad()
def forward_audio(case: Case) -> Outputs:
    model = build(case, OnePeaceModel)
    adapter = narrowed(model.adapters["audio"], AudioAdapter)
    encoded = encode(model, case.inputs, "audio", output_hidden_states=True)
    conv = adapter.waveform(case.inputs["src_audios"])
    frames = adapter.feature_proj(adapter.feature_norm(conv))
    outputs = hidden(encoded) | {
        "out.conv_features": conv.transpose(1, 2),
        "out.embed_audios": frames,
        "out.conv_positions": adapter.positions(frames),
        "out.adapter.x": encoded.adapted["audio"].x,
        "out.adapter.attn_bias": encoded.adapted["audio"].biases[0][0],
        "out.features": encoded.features["audio"],
        "out.embedding": model.project(encoded.features["audio"], "audio"),
    }
    if "alone.src_audios" in case.inputs:
        outputs["out.alone.embedding"] = model.get_audio_features(case.inputs["alone.src_audios"])
    return outputs


def joint(case: Case, other: str) -> Outputs:
    """Text with one other modality."""
    encoded = encode(build(case, OnePeaceModel), case.inputs, "text", other, output_hidden_states=True)
    return hidden(encoded) | {f"out.{m}_features": x for m, x in encoded.features.items()}


@runner("one_peace", "forward_vl")
@torch.no_grad()
def forward_vl(case: Case) -> Outputs:
    return joint(case, "image")


@runner("one_peace", "forward_al")
@torch.no_grad()
def forward_al(case: Case) -> Outputs:
    return joint(case, "audio")


@runner("one_peace", "embeddings_val")
@torch.no_grad()
def embeddings_val(case: Case) -> Outputs:
    model = build(case, OnePeaceModel)
    text, image, audio = (
        model.project(encode(model, case.inputs, m).features[m], m) for m in ("text", "image", "audio")
    )
    fused = audio + image
    return {
        "out.text_embedding": text,
        "out.image_embedding": image,
        "out.audio_embedding": audio,
        "out.sim_i2t": image @ text.T,
        "out.sim_a2t": audio @ text.T,
        "out.sim_a2i": audio @ image.T,
        "out.fused_audio_image_sum": fused,
        "out.fused_sim": fused @ image.T,
        "out.logit_scale_exp": model.temperature(),
    }


@runner("one_peace", "masked_encoding")
@torch.no_grad()
def masked_encoding(case: Case) -> Outputs:
    model = build(case, OnePeaceModel)
    keep = {m: case.inputs[f"{m}_preserve_ids"] for m in model.modalities}
    outputs: Outputs = {}
    for m in model.modalities:
        encoded = encode(model, case.inputs, m, keep={m: keep[m]})
        adapted = encoded.adapted[m]
        outputs |= {
            f"out.{m}.x": adapted.x,
            f"out.{m}.attn_bias": adapted.biases[0],
            f"out.{m}.padding_mask": padding(adapted),
            f"out.{m}.features": encoded.features[m],
        }
    for name, other in (("vl", "image"), ("al", "audio")):
        if other in keep:
            encoded = encode(model, case.inputs, "text", other, keep={m: keep[m] for m in ("text", other)})
            outputs |= {f"out.{name}.{m}_features": x for m, x in encoded.features.items()}
    return outputs


def pass_outputs(losses: PretrainingLosses, names: Mapping[str, str]) -> Outputs:
    """Intermediate tensors of the denoising passes under their stored names; names: pass -> prefix."""
    outputs: Outputs = {}
    for name, student in losses.students.items():
        for m in student.student:
            stored = m if name == m else f"{name}_{m}"
            outputs |= {
                f"out.student_enc.{stored}": student.encoded.features[m],
                f"out.decoder.{stored}": student.decoded[m],
                f"out.student.{stored}": student.student[m],
            }
    for name, teacher in losses.teachers.items():
        for m, x in teacher.features.items():
            if (stored := names.get(f"{name}.{m}")) is not None:
                outputs[stored] = x
    return outputs


def official_gradients(case: Case, model: OnePeacePreTrainedModel) -> dict[str, Tensor | None]:
    """Gradients by official parameter name; None where nothing reached a parameter."""
    parameters = dict(model.named_parameters())
    rules = key_map(model.config, base="model.")
    grads = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}
    idle = {name for name, p in parameters.items() if p.grad is None}
    official = rules.backward(grads)
    _, report = rules.forward(official)
    return {key: None if set(report.moved[key]) & idle else official[key] for key in official_order(report.moved)}


def masks_of(inputs: Mapping[str, Tensor], names: tuple[str, ...]) -> dict[str, Tensor]:
    """Stored masks without their CLS column."""
    return {name: inputs[f"{name}_mask_indices"][:, 1:] for name in names}


@runner("one_peace", "pretrain_vl", config_outputs=("params_without_grad",))
def pretrain_vl(case: Case) -> Outputs:
    model = build(case, OnePeaceForPreTraining)
    names = ("text", "image", "vl_text", "vl_image")
    weights = {name: case.config["criterion"][f"dcl_{name}_alpha"] for name in names}
    losses = image_text_losses(
        model, case.inputs["src_tokens"], case.inputs["src_images"], masks_of(case.inputs, names), weights=weights
    )
    losses.total.backward()
    grads = official_gradients(case, model)
    teachers = {"text.text": "out.teacher.text", "image.image": "out.teacher.image"}
    teachers |= {"vl.text": "out.teacher.vl_text", "vl.image": "out.teacher.vl_image"}
    return (
        pass_outputs(losses, teachers)
        | loss_outputs(losses, grads)
        | {
            "out.itc_loss": losses.contrast.loss,
            "out.t2i_ncorrect": losses.contrast.num_correct_a_to_b.float(),
            "out.i2t_ncorrect": losses.contrast.num_correct_b_to_a.float(),
            "out.logit_scale_exp": model.model.temperature(),
            "config.params_without_grad": [name for name, grad in grads.items() if grad is None],
        }
    )


@runner("one_peace", "pretrain_al", config_outputs=("trainable", "frozen", "trainable_without_grad"))
def pretrain_al(case: Case) -> Outputs:
    model = build(case, OnePeaceForPreTraining)
    _, frozen = freeze(model, [f"re:^{pattern}$" for pattern in STAGE2_TRAINABLE])
    names = ("audio", "al_text", "al_audio")
    weights = {name: case.config["criterion"][f"dcl_{name}_alpha"] for name in names}
    losses = audio_text_losses(
        model,
        case.inputs["src_tokens"],
        case.inputs["src_audios"],
        masks_of(case.inputs, names),
        frame_mask=frame_mask(case.inputs),
        weights=weights,
    )
    losses.total.backward()
    grads = official_gradients(case, model)
    fixed = set(
        key_map(model.config, base="model.").backward(
            {n: p.detach() for n, p in model.named_parameters() if n in frozen}
        )
    )
    fixed -= official_buffers(fixed)
    teachers = {"al.text": "out.teacher.al_text", "al.audio": "out.teacher.al_audio", "text.text": "out.teacher.text"}
    teachers |= {"audio_full.audio": "out.audio_full"}
    return (
        pass_outputs(losses, teachers)
        | loss_outputs(losses, grads)
        | {
            "out.atc_loss": losses.contrast.loss,
            "out.t2a_ncorrect": losses.contrast.num_correct_a_to_b.float(),
            "out.a2t_ncorrect": losses.contrast.num_correct_b_to_a.float(),
            "out.logit_scale_exp": model.model.temperature(),
            "config.trainable": [name for name in grads if name not in fixed],
            "config.frozen": [name for name in grads if name in fixed],
            "config.trainable_without_grad": [
                name for name, grad in grads.items() if grad is None and name not in fixed
            ],
        }
    )


def loss_outputs(losses: PretrainingLosses, grads: Mapping[str, Tensor | None]) -> Outputs:
    """The total, its denoising parts and the gradients."""
    return (
        {"out.loss": losses.total}
        | {f"out.dcl_{name}_loss": loss for name, loss in losses.denoising.items()}
        | {f"out.grad.{name}": grad for name, grad in grads.items() if grad is not None}
    )


@runner(
    "one_peace",
    "checkpoint_upgrade",
    tolerance={"out.*": Tolerance(1e-4, 1e-4)},
    config_outputs=("keys_after", "dropped_keys"),
)
@torch.no_grad()
def checkpoint_upgrade(case: Case) -> Outputs:
    model = build(case, OnePeaceForClassification)
    adapters = model.model.adapters
    official = key_map(model.config, base="model.").backward(model.state_dict())
    rules = key_map(model.config, base="model.")
    source = rules.backward(rules.forward(case.weights())[0])  # the whole file, index buffers included
    image, text = narrowed(adapters["image"], ImageAdapter), narrowed(adapters["text"], TextAdapter)
    encoded = encode(model.model, case.inputs, "image")
    outputs = model(case.inputs["src_tokens"], case.inputs["src_images"])
    return {
        "out.image_adapter.x": encoded.adapted["image"].x,
        "out.pos_embed_interp": image.positions(),
        "out.rel_pos_table": image.bias.tables[0],
        "out.rel_pos_table_last": image.bias.tables[-1],
        "out.text_rel_pos_table_last": text.bias.tables[-1],
        "out.logits": outputs["logits"],
        "config.keys_after": sorted(official),
        "config.dropped_keys": sorted(set(source) - set(official)),
    }


def official_groups(case: Case) -> Outputs:
    """Learning-rate scales and weight decays by official name: a classifier with layer decay, a pretraining model."""
    tiny = {
        "encoder": {"embed_dim": 16, "attention_heads": 2, "layers": case.config["layers"], "ffn_embed_dim": 24,
                    "text_adapter": {"bucket_size": 8, "add_type_embedding": True},
                    "image_adapter": {"bucket_size": 4, "rel_bucket_size": 4, "add_type_embedding": True},
                    "audio_adapter": {"bucket_size": 8, "conv_pos_groups": 4,
                                      "feature_encoder_spec": "[(12, 10, 5)] + [(12, 3, 2)] * 2 + [(12,2,2)]"}},
        "vocab_size": 60,
    }  # fmt: skip
    decay, scale = case.config["weight_decay"], case.config["layer_decay"]
    num_layers = case.config["layers"]
    config = OnePeaceConfig.from_official(tiny | {"head_type": "vl", "num_classes": 4}, official=case.official)
    vl = named_officially(OnePeaceForClassification(config))
    groups = {
        key: [
            scale ** (num_layers + 1 - layer_id(name, num_layers)),
            decay if decays(name, p.ndim, official=case.official) else 0.0,
        ]
        for key, (name, p) in vl.items()
    }
    decoder = DecoderConfig(dim=12, num_heads=3, num_layers=2, mlp_dim=20, image_bucket_size=4, max_audio_positions=18)
    config = OnePeaceConfig.from_official(
        tiny | {"head_type": "val"}, official=case.official, decoder=decoder, type_embeddings=()
    )
    pretraining = named_officially(OnePeaceForPreTraining(config))
    return {
        "config.classify_vl_groups": groups,
        "config.pretrain_weight_decay": {
            key: decay if decays(name, p.ndim, official=case.official) else 0.0
            for key, (name, p) in pretraining.items()
        },
    }


def named_officially(model: OnePeacePreTrainedModel) -> dict[str, tuple[str, Tensor]]:
    """Official name -> (our name, parameter)."""
    rules = key_map(model.config, base="model.")
    parameters = dict(model.named_parameters())
    official = rules.backward({name: p.detach() for name, p in parameters.items()})
    _, report = rules.forward(official)
    return {key: (ours[0], parameters[ours[0]]) for key, ours in report.moved.items()}
