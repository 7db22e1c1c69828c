"""Golden cases of ONE-PEACE's leaves: losses, masks, tokenizer, transforms, tables, optimiser, files, key lists.

What to compute follows from the names of the stored outputs, so cases with other sizes or options run too.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from plait.media.audio import load_audio
from plait.models.one_peace.config import OnePeaceConfig, parse_conv_spec
from plait.models.one_peace.dense import AdapterSizes, DetectionBackbone, SegmentationBackbone
from plait.models.one_peace.vision import OnePeaceImageClassifier, OnePeaceVideoClassifier
from plait.models.one_peace.weights import key_map, vision_key_map
from plait.nn.positions import image_bucket_index, resize_absolute, resize_relative, token_bucket_index
from plait.objectives import classification, contrastive, denoising
from plait.parity.cases import Case
from plait.parity.runners import NotRun, Tolerance, runner
from plait.processing import images, masking, tokenizers, waveforms
from plait.training.optim import AdamW
from plait.training.schedules import cosine
from plait.weights.files import read_checkpoint
from plait.weights.keymap import KeyMap

from .key_lists import INDEX_BUFFERS, both_ways, read_list
from .one_peace_model import official_groups

Outputs = dict[str, Any]


def parsed(case: Case, pattern: str) -> list[tuple[str, ...]]:
    """The groups of `pattern` in every stored output name that it fits, without repetition."""
    found = (re.fullmatch(pattern, name) for name in case.outputs)
    return list(dict.fromkeys(match.groups() for match in found if match))


@runner("one_peace", "losses")
def losses(case: Case) -> Outputs:
    """Losses and gradients on given tensors."""
    return _contrast(case) | _denoising(case) | _classification(case) | _hinge_and_box(case)


def _contrast(case: Case) -> Outputs:
    out: Outputs = {}
    ranks = {rank for _, rank, _ in parsed(case, r"out\.itc\.ls([\d.]+)\.rank(\d+)\.(\w+)")}
    for smoothing, rank in parsed(case, r"out\.itc\.ls([\d.]+)\.rank(\d+)\.\w+"):
        image_all, text_all = case.inputs["itc.image_all"], case.inputs["itc.text_all"]
        batch = len(image_all) // len(ranks)
        rows = slice(int(rank) * batch, (int(rank) + 1) * batch)
        image, text = image_all[rows].clone().requires_grad_(), text_all[rows].clone().requires_grad_()
        result = contrastive.contrastive_loss(
            image,
            text,
            case.inputs["itc.logit_scale_exp"],
            a_all=image_all,
            b_all=text_all,
            offset=rows.start,
            label_smoothing=float(smoothing),
        )
        result.loss.backward()
        name = f"out.itc.ls{smoothing}.rank{rank}"
        out[f"{name}.loss"] = result.loss
        out[f"{name}.grad_image"], out[f"{name}.grad_text"] = image.grad, text.grad
        out[f"{name}.i2t_ncorrect"] = result.num_correct_a_to_b.float()
        out[f"{name}.t2i_ncorrect"] = result.num_correct_b_to_a.float()
    return out


def _denoising(case: Case) -> Outputs:
    out: Outputs = {}
    for padding, smoothing in parsed(case, r"out\.dcl\.(pad|nopad)\.ls([\d.]*\d)(?:\.grad_student)?"):
        student = case.inputs["dcl.student"].clone().requires_grad_()
        real = ~case.inputs["dcl.padding_masks"] if padding == "pad" else None
        loss = denoising.denoising_contrast(
            student[:, 1:],
            case.inputs["dcl.teacher"][:, 1:],
            case.inputs["dcl.mask_indices"][:, 1:],
            real,
            scale=case.config.get("dcl_logit_scale", 2.5),
            label_smoothing=float(smoothing),
        )
        loss.backward()
        out[f"out.dcl.{padding}.ls{smoothing}"] = loss
        out[f"out.dcl.{padding}.ls{smoothing}.grad_student"] = student.grad
    return out


def _classification(case: Case) -> Outputs:
    out: Outputs = {}
    for target, smoothing in parsed(case, r"out\.cls\.([a-z_]+?)(?:_ls([\d.]+))?\.(?:loss_sum|n_correct)"):
        logits, wanted = case.inputs["cls.logits"], case.inputs[f"cls.{target}"]
        if target == "multi_label":
            loss, correct = classification.multi_label_sum(logits, wanted)
        else:
            loss, correct = classification.cross_entropy_sum(logits, wanted, float(smoothing or 0.0))
        name = f"out.cls.{target}" + (f"_ls{smoothing}" if smoothing else "")
        out |= {f"{name}.loss_sum": loss, f"{name}.n_correct": correct.float()}
    return out


def _hinge_and_box(case: Case) -> Outputs:
    out: Outputs = {}
    if "hinge.logits" in case.inputs:
        target = case.inputs["hinge.target"]
        scores = case.inputs["hinge.logits"].reshape(len(target), -1)
        out["out.hinge.loss_sum"], out["out.hinge.n_correct"] = classification.choice_hinge_sum(scores, target)
    if "box.logits" in case.inputs:
        logits = case.inputs["box.logits"].clone().requires_grad_()
        out["out.box.loss"] = classification.box_loss(logits, case.inputs["box.target"])
        out["out.box.loss"].backward()
        out["out.box.grad"] = logits.grad
    return out


def check_masks(case: Case, actual: Mapping[str, Any]) -> list[str]:
    """Counts, whole words and subsets that CASE.md of mask_sampling demands."""
    problems = [f"{name} has another shape" for name, spec in case.outputs.items() if actual[name].shape != spec.shape]
    starts = tokenizers.whole_word_starts()

    def demand(name: str, holds: bool, what: str) -> None:
        if not holds:
            problems.append(f"{name} {what}")

    for text, ratio in parsed(case, r"out\.(\w+)\.whole_word\.([\d.]+)"):
        name = f"out.{text}.whole_word.{ratio}"
        words = starts[case.stored_inputs[f"{text}.ids"]].long().cumsum(0)
        masked = words[actual[name]].unique()
        demand(name, len(masked) == math.ceil(int(words[-1]) * float(ratio)), "masks another number of words")
        demand(name, torch.equal(torch.isin(words, masked), actual[name]), "masks parts of words")
    for (text,) in parsed(case, r"out\.(\w+)\.vl_mask_after_whole_word"):
        name, first = f"out.{text}.vl_mask_after_whole_word", actual[f"out.{text}.whole_word.0.15"]
        count, visible = int(0.4 * len(first)), int((~first).sum())
        demand(name, int(actual[name].sum()) == count, "masks another number of tokens")
        overlap = int((actual[name] & first).sum())
        demand(name, overlap == max(0, count - visible), "masks tokens of the text-only mask")
    for frames, ratio in parsed(case, r"out\.audio\.(\d+)\.([\d.]+)"):
        name = f"out.audio.{frames}.{ratio}"
        demand(name, int(actual[name].sum()) == int(int(frames) * float(ratio)), "masks another number of frames")
    if {"out.image_mask", "out.vl_image_mask"} <= actual.keys():
        first, joint = actual["out.image_mask"], actual["out.vl_image_mask"]
        demand("out.image_mask", int(first.sum()) == int(0.75 * len(first)), "masks another number of patches")
        demand("out.vl_image_mask", int(joint.sum()) == int(0.6875 * len(first)), "masks another number of patches")
        demand("out.vl_image_mask", bool((first | joint).all()), "shares visible patches with the image-only mask")
    return problems


@runner("one_peace", "mask_sampling", properties=("out.*",), check=check_masks)
def mask_sampling(case: Case) -> Outputs:
    """Masks in the order of draws that CASE.md describes."""
    seed, starts = case.config["seed"], tokenizers.whole_word_starts()
    out: Outputs = {}

    def generator(offset: int) -> torch.Generator:
        return torch.Generator().manual_seed(seed + offset)

    for text, ratio in parsed(case, r"out\.(text\d+)\.whole_word\.([\d.]+)"):
        words = starts[case.stored_inputs[f"{text}.ids"]]
        out[f"out.{text}.whole_word.{ratio}"] = masking.whole_word_mask(words, float(ratio), generator(_number(text)))
    for (text,) in parsed(case, r"out\.(text\d+)\.vl_mask_after_whole_word"):
        draws = generator(_number(text))
        first = masking.whole_word_mask(starts[case.stored_inputs[f"{text}.ids"]], 0.15, draws)
        out[f"out.{text}.vl_mask_after_whole_word"] = masking.joint_text_mask(first, 0.4, draws)
    for frames, ratio in parsed(case, r"out\.audio\.(\d+)\.([\d.]+)"):
        mask = masking.audio_mask(int(frames), float(ratio), generator=generator(int(frames)))
        out[f"out.audio.{frames}.{ratio}"] = mask
    if "out.image_mask" in case.outputs:
        draws = generator(0)
        first = masking.image_mask(case.outputs["out.image_mask"].shape[0], generator=draws)
        out |= {"out.image_mask": first, "out.vl_image_mask": masking.joint_image_mask(first, generator=draws)}
    return out


def _number(name: str) -> int:
    return int(re.sub(r"\D", "", name))


@runner("one_peace", "tokenizer", config_outputs=("processed",))
def tokenizer(case: Case) -> Outputs:
    """Ids of the inference interface, of data sets, of questions with answers and of grounding texts."""
    texts = case.config["texts"]
    processed = [tokenizers.clean_caption(text) for text in texts]
    out = {
        "config.processed": processed,
        "out.hub_ids": _padded(tokenizers.encode(texts)),
        "out.dataset_ids": _padded(tokenizers.encode(processed)),
    }
    if "out.aqa_ids" in case.outputs:  # stored with the leading space that `encode` puts in front
        texts = (text.removeprefix(" ") for text in case.config["aqa"])
        out["out.aqa_ids"] = _padded(tokenizers.encode(texts, lowercase=False, max_tokens=None))
    if "out.refcoco_ids_tail" in case.outputs:
        long = tokenizers.cut_words(tokenizers.clean_caption(" ".join(["pneumonoultramicroscopic"] * 80)))
        grounding = torch.tensor(tokenizers.encode([long], max_tokens=None)[0])
        tail = case.outputs["out.refcoco_ids_tail"].shape[0]
        out |= {"out.refcoco_len": torch.tensor(len(grounding)), "out.refcoco_ids_tail": grounding[-tail:]}
    return out


def _padded(rows: list[list[int]]) -> Tensor:
    rows_of_ids = [torch.tensor(row) for row in rows]
    return torch.nn.utils.rnn.pad_sequence(rows_of_ids, batch_first=True, padding_value=tokenizers.PAD_ID)


@runner("one_peace", "image_preprocess", tolerance={"out.*": Tolerance(1e-5, 1e-4)})
def image_preprocess(case: Case) -> Outputs:
    """Square input, ImageNet evaluation, and the grounding transform with its boxes."""
    inputs, size = case.stored_inputs, case.config["size"]
    mean, std = case.config["mean"], case.config["std"]
    image = Image.fromarray(inputs["image"].numpy())
    grounded = images.grounding(image, inputs["box"], size)
    pixels = inputs["coords"] * torch.tensor([image.width, image.height] * 2)
    return {
        "out.square": images.square(image, size, mean, std),
        "out.imagenet_eval": images.shorter_side_and_centre_crop(image, size, mean, std),
        "out.grounding.image": grounded.pixel_values,
        "out.grounding.boxes": grounded.boxes,
        "out.grounding.resize_ratios_wh": grounded.ratios,
        "out.grounding.size": torch.tensor(grounded.pixel_values.shape[:0:-1]),
        "out.coords_hub": pixels,
        "out.coords_eval": inputs["coords"] * size / grounded.ratios.repeat(2),
    }


@runner("one_peace", "audio_preprocess", tolerance={"out.long.*": Tolerance(2e-5, 1e-4)})
def audio_preprocess(case: Case) -> Outputs:
    """Waveforms from a formula and from files, cut into the stored slices."""
    rate, spec = case.config["sample_rate"], parse_conv_spec(case.config["feature_encoder_spec"])
    out: Outputs = {}
    for clip in dict.fromkeys(clip for clip, _ in parsed(case, r"out\.(\w+)\.(\w+)")):
        waveform = _waveform(case, clip)
        names = [name for name in case.outputs if name.startswith(f"out.{clip}.")]
        if isinstance(waveform, NotRun):
            out |= dict.fromkeys(names, waveform)
            continue
        seconds = float(clip.removeprefix("max")) if re.fullmatch(r"max\d+", clip) else case.config["max_duration"]
        ready = torch.from_numpy(
            waveforms.prepare_waveform(
                waveform, sampling_rate=rate, max_duration=seconds, min_duration=case.config["min_duration"]
            )
        )
        stride = {"stereo": 50}.get(clip, 997 if f"{clip}.n" in case.inputs else 100)
        size = {name: case.outputs[name].shape for name in names}
        values = {
            "head": lambda n, x=ready: x[: n[0]],
            "tail": lambda n, x=ready: x[-n[0] :],
            "strided": lambda n, x=ready, s=stride: x[::s],
            "len": lambda n, x=ready: torch.tensor(len(x)),
            "frames": lambda n, x=ready: torch.tensor(waveforms.conv_output_length(len(x), spec)),
        }
        out |= {name: values[name.rsplit(".", 1)[1]](size[name]) for name in names}
    return out


def _waveform(case: Case, clip: str) -> np.ndarray | NotRun:
    if f"{clip}.n" in case.inputs:
        return _synthetic(int(case.stored_inputs[f"{clip}.n"]))
    if clip == "stereo":
        return np.stack([_synthetic(20000, 440.0, 3.0), _synthetic(20000, 100.0, 55.0)], axis=1)
    if re.fullmatch(r"max\d+", clip):
        return _synthetic(330000)
    path = case.file(f"{clip}.flac")
    return (
        NotRun("absent", f"{clip}.flac is not in this copy")
        if path is None
        else load_audio(path, case.config["sample_rate"])
    )


def _synthetic(samples: int, sine: float = 440.0, cos: float = 97.5) -> np.ndarray:
    """The test signal of config.json, computed in float64."""
    turn = 2 * np.pi * np.arange(samples, dtype=np.float64) / 16000
    return (0.3 * np.sin(turn * sine) + 0.1 * np.cos(turn * cos) + 0.05).astype(np.float32)


@runner(
    "one_peace",
    "position_interpolation",
    tolerance={"*.rel_pos_table": Tolerance(1e-4, 1e-4), "*.pos_embed": Tolerance(1e-5, 1e-4)},
)
def position_interpolation(case: Case) -> Outputs:
    """Resized position tables and bucket indices."""
    out: Outputs = {}
    for old, new, table in parsed(case, r"out\.(\d+)to(\d+)\.(\w+)"):
        name = f"{old}to{new}.{table}"
        source = case.stored_inputs[name]
        resized = resize_absolute(source, int(new)) if table == "pos_embed" else None
        out[f"out.{name}"] = resize_relative(source, int(old), int(new)) if resized is None else resized
    for (width,) in parsed(case, r"out\.image_bucket\.(\d+)"):
        out[f"out.image_bucket.{width}"] = image_bucket_index(int(width))
    for bucket, part in parsed(case, r"out\.token_bucket\.(\d+)\.(\w+)"):
        name, index = f"out.token_bucket.{bucket}.{part}", token_bucket_index(1024, int(bucket))
        lines = {"first_col": index[:, 1], "first_row": index[1], "col0": index[:, 0], "row0": index[0]}
        out[name] = lines[part][: case.outputs[name].shape[0]]
    return out


@runner(
    "one_peace",
    "optim",
    tolerance={"out.*": Tolerance(1e-6, 1e-6), "config.*": Tolerance(1e-12, 1e-9)},
    config_outputs=("classify_vl_groups", "pretrain_weight_decay"),
)
def optim(case: Case) -> Outputs:
    """Learning rates, four steps of the optimiser, and parameter groups by official name."""
    schedule = case.config["cosine"]
    rates = [
        cosine(u, schedule["total"], peak=schedule["base_lr"], floor=schedule["min_lr"], warmup=schedule["warmup"])
        for u in case.stored_inputs["updates"].tolist()
    ]
    return _adam(case) | official_groups(case) | {"out.cosine_lr": torch.tensor(rates, dtype=torch.float64)}


def _adam(case: Case) -> Outputs:
    p = torch.nn.Parameter(case.inputs["adam.p0"].clone())
    optimizer = AdamW([p], lr=1e-2, betas=(0.9, 0.98), eps=1e-8, weight_decay=0.05)
    out: Outputs = {}
    for step, grad in enumerate(case.inputs["adam.grads"], start=1):
        p.grad = grad.clone()
        optimizer.step()
        out[f"out.adam.p{step}"] = p.detach().clone()
    return out


@runner("one_peace", "checkpoint_files", tolerance={"*": Tolerance(0.0, 0.0)}, config_outputs=("*",))
def checkpoint_files(case: Case) -> Outputs:
    """Tensors and configuration out of every container format, nothing executed; all files of a format agree."""
    out: Outputs = {}
    for path in sorted(p for p in case.path.iterdir() if p.suffix in {".pt", ".pkl"}):
        found = read_checkpoint(path)
        prefix = f"out{path.suffix}."
        values: Outputs = {prefix + key: value for key, value in found.state.items() if prefix + key in case.outputs}
        values |= {f"config.{key}": value for key, value in (found.config or {}).items()}
        for name, value in values.items():
            known = out.setdefault(name, value)
            if not (torch.equal(known, value) if isinstance(value, Tensor) else known == value):
                raise ValueError(f"expected {name} alike in all files of a format, got another value in {path.name}")
    return out


@runner("one_peace", "keys")
def keys(case: Case) -> Outputs:
    """Published key lists: every key converts to our layout and back."""
    out: Outputs = {}
    for name, path in case.key_lists.items():
        shapes = {key: shape for key, (shape, _) in read_list(path).items()}
        out[name] = both_ways(shapes, rules_of(shapes), lost=() if is_whole(shapes) else INDEX_BUFFERS)
    return out


def is_whole(keys: Iterable[str]) -> bool:
    """Whether a file holds a model, not its vision branch or what was built on that."""
    return any(key.startswith("encoder_wrapper.") for key in keys)


def rules_of(shapes: Mapping[str, Sequence[int]]) -> KeyMap:
    """The rules for a file, which its keys tell; buckets of picture positions follow the index buffer's size."""
    if is_whole(shapes):
        modalities = [m for m in ("text", "image", "audio") if f"encoder_wrapper.{m}_adapter.cls_embedding" in shapes]
        positions = shapes.get("encoder_wrapper.image_adapter.rp_bucket", (16**2 + 1,))[0]
        return key_map(OnePeaceConfig(modalities=modalities, image_rel_bucket_size=math.isqrt(positions - 1)))
    if "backbone.level_embed" in shapes:
        config = OnePeaceConfig(modalities=["image"])
        with torch.device("meta"):
            return SegmentationBackbone(config, AdapterSizes()).key_map()
    if any(key.startswith("backbone.net.") for key in shapes):
        return DetectionBackbone.key_map(cast("DetectionBackbone", None))  # it asks nothing of the module
    if any(key.startswith("backbone.") for key in shapes):
        return OnePeaceVideoClassifier.key_map()
    return OnePeaceImageClassifier.key_map() if "head.weight" in shapes else vision_key_map()
