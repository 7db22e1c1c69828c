"""Golden cases of mPLUG-2's data side: generation, transforms, sampling, text, schedules, groups, losses, metrics.

What to compute follows from the names and shapes of the stored outputs, so cases with other sizes or options run too.
"""

from __future__ import annotations

import random
import re
from typing import Any

import numpy as np
import torch
from PIL import Image

from plait.metrics.retrieval import recall_at_k
from plait.objectives.scst import scst_loss
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.processing import videos, wordpiece
from plait.processing.images import apply, square
from plait.training.schedules import released_rate

from .released import official_group

Outputs = dict[str, Any]
Row = dict[str, Any]


def sizes(case: Case, stem: str) -> list[int]:
    """The sizes asked for by outputs called `out.<stem>_<size>`."""
    found = (re.fullmatch(rf"out\.{stem}_(\d+)", name) for name in case.outputs)
    return [int(match[1]) for match in found if match]


@runner("mplug2", "preprocess_image_eval")
def preprocess_image_eval(case: Case) -> Outputs:
    image = Image.fromarray(case.stored_inputs["image"].numpy())
    return {f"out.image_{size}": square(image, size) for size in sizes(case, "image")}


@runner("mplug2", "preprocess_video_eval")
def preprocess_video_eval(case: Case) -> Outputs:
    frames = case.stored_inputs["frames"]
    return {f"out.video_{size}": videos.evaluation_clip(frames, size) for size in sizes(case, "video")}


@runner("mplug2", "preprocess_video_train")
def preprocess_video_train(case: Case) -> Outputs:
    out: Outputs = {}
    for n, crop in enumerate(case.config["crops"]):
        values = videos.crop_and_resize(
            case.stored_inputs["frames"], videos.Crop(*crop), case.config["image_res"], official=case.official
        )
        out |= {
            f"out.resized_int_{n}": values,
            f"out.uint8_wrapped_{n}": videos.wrap(values),
            f"out.video_{n}": videos.clip_to_tensor(values),
        }
    return out


@runner(
    "mplug2",
    "randaugment_ops",
    tolerance={f"out.{warp}_*": Tolerance(0.0, 0.0, steps=1) for warp in ("Shear?", "Translate?", "Rotate")},
)
def randaugment_ops(case: Case) -> Outputs:
    frame = case.stored_inputs["frame"].numpy()
    out: Outputs = {}
    for name in case.outputs:
        op, _, level = name.removeprefix("out.").rpartition("_")
        changed = apply(op, frame, float(level), official=case.official)
        out[name] = torch.from_numpy(np.ascontiguousarray(changed))
    return out


@runner(
    "mplug2",
    "frame_sampling",
    json_inputs=("num_frames", "vlen", "seed", "sample", "input_fps", "start_time", "end_time",
                 "start_end_rand.fps"),
)  # fmt: skip
def sampling(case: Case) -> Outputs:
    return {
        kind: [{**row, "indices": sampled(kind, row)} for row in rows]
        for kind, rows in case.document.items()
        if kind in ("middle", "rand", "fps", "interval", "start_end_rand")
    }


def sampled(kind: str, row: Row) -> list[int] | None:
    """Frame indices of one example; draws follow the stored seed."""
    seed = row.get("seed", 0)
    rng, permute = random.Random(seed), np.random.RandomState(seed).permutation
    frames, length = row.get("num_frames", 0), row["vlen"]
    if kind == "middle":
        return videos.middle_indices(frames, length)
    if kind == "fps":
        return videos.fps_indices(float(row["sample"].removeprefix("fps")), length, row["input_fps"])
    if kind == "interval":
        return videos.interval_indices(frames, length, row["input_fps"], rng)
    if kind == "rand":
        return videos.random_indices(frames, length, rng, permute)
    times = (row["start_time"], row["end_time"])
    choose = lambda count: videos.random_indices(frames, count, rng, permute)  # noqa: E731
    return videos.clip_indices(choose, length, row["fps"], *times)


TEXT_INPUTS = (
    "vocab", "max_words", "answer", "prompt", "caption", "pre_caption.text", "pre_question.text", "tokenize.text",
)  # fmt: skip


@runner("mplug2", "text_preprocess", json_inputs=TEXT_INPUTS)
def text_preprocess(case: Case) -> Outputs:
    document = case.document
    backend = wordpiece.build_backend(document["vocab"])
    special = (wordpiece.PAD, wordpiece.UNK, wordpiece.CLS, wordpiece.SEP, wordpiece.MASK)
    backend.add_special_tokens([piece for piece in special if piece in document["vocab"]])
    backend.encode_special_tokens = False  # to the released tokenizer "[SEP]" in a text is the special piece

    def ids(text: str, limit: int | None = None) -> list[int]:
        return wordpiece.framed(backend, wordpiece.content_ids(backend, text), limit)

    def tokenized(row: Row) -> Row:
        limits = {key: int(key.removeprefix("max_length_")) for key in row if key.startswith("max_length_")}
        return {"text": row["text"], "ids": ids(row["text"])} | {k: ids(row["text"], n) for k, n in limits.items()}

    def answer(row: Row) -> Row:
        found = wordpiece.answer_target(backend, row["answer"], official=case.official)
        return {"answer": row["answer"], "text": row["answer"] + wordpiece.SEP, "ids": found.ids}

    def caption(row: Row) -> Row:
        (key,) = (key for key in row if key.startswith("ids_max"))
        limit = int(key.removeprefix("ids_max"))
        prompt = row["prompt"]
        found = wordpiece.caption_target(backend, row["caption"], prompt, max_length=limit, official=case.official)
        labels = [-100] * found.prompt_length + found.ids[found.prompt_length :]
        return {
            "prompt": prompt,
            "caption": row["caption"],
            "text": prompt + row["caption"] + wordpiece.SEP,
            key: found.ids,
            "labels_before_shift": labels,
            "prompt_length": len(ids(prompt)) - 1,
        }

    makers = {
        "pre_caption": lambda row: row | {"out": wordpiece.clean_caption(row["text"], row["max_words"])},
        "pre_question": lambda row: row | {"out": wordpiece.clean_question(row["text"], row["max_words"])},
        "tokenize": tokenized,
        "answer_targets": answer,
        "caption_targets": caption,
    }
    return {kind: [make(row) for row in document[kind]] for kind, make in makers.items() if kind in document}


LR_INPUTS = (
    "sched", "lr1", "lr2", "epochs", "steps_per_epoch", "warmup_epochs", "warmup_lr", "min_lr", "decay_rate",
    "step_size",
)  # fmt: skip


@runner("mplug2", "lr_schedule", tolerance={"*": Tolerance(1e-12, 1e-6)}, json_inputs=LR_INPUTS)
def lr_schedule(case: Case) -> Outputs:
    """Rates are millionths, so the general absolute tolerance would compare nothing."""
    return {
        str(n): {**row, "lr_used_at_iteration": [rates(row, i) for i in range(len(row["lr_used_at_iteration"]))]}
        for n, row in enumerate(case.document)
    }


def rates(row: Row, iteration: int) -> list[float]:
    """The two learning rates of an iteration, which `decay_rate` does not change in a single cycle.

    Raises ValueError for a schedule that no release uses.
    """
    if row["sched"] not in ("cosine", "cosine_step"):
        raise ValueError(f"expected sched cosine or cosine_step, got {row['sched']}")
    return [
        released_rate(
            iteration,
            peak=row[peak],
            floor=row["min_lr"],
            start=row["warmup_lr"],
            warmup=row["warmup_epochs"],
            epochs=row["epochs"],
            steps_per_epoch=row["steps_per_epoch"],
            per_step=row["sched"] == "cosine_step",
            step_size=row["step_size"],
        )
        for peak in ("lr1", "lr2")
    ]


@runner("mplug2", "scst_loss", tolerance={"*": Tolerance(1e-6, 1e-4)})
def scst(case: Case) -> Outputs:
    scores = case.inputs["scores"].clone().requires_grad_()
    loss = scst_loss(scores, case.inputs["cider"], case.inputs["lengths"], official=case.official)
    loss.backward()
    return {"out.loss": loss, "out.grad.scores": scores.grad}


@runner("mplug2", "retrieval_metrics", json_inputs=("scores_i2t", "scores_t2i", "img2txt", "txt2img"))
def retrieval_metrics(case: Case) -> Outputs:
    document = case.document
    to_text, to_image = np.array(document["scores_i2t"]), np.array(document["scores_t2i"])
    texts, images = np.zeros(to_text.shape, bool), np.zeros(to_image.shape, bool)
    for image, right in document["img2txt"].items():
        texts[int(image), right] = True
    for text, image in document["txt2img"].items():
        images[int(text), image] = True
    found = {f"txt_r{k}": 100 * recall_at_k(to_text, texts, k) for k in (1, 5, 10)}
    found |= {f"img_r{k}": 100 * recall_at_k(to_image, images, k) for k in (1, 5, 10)}
    for side in ("txt", "img"):
        found[f"{side}_r_mean"] = sum(found[f"{side}_r{k}"] for k in (1, 5, 10)) / 3
    found["r_mean"] = (found["txt_r_mean"] + found["img_r_mean"]) / 2
    return {"result": found}


@runner("mplug2", "optimizer_groups")
def optimizer_groups(case: Case) -> Outputs:
    return {name: official_group(name) for name in case.document}
