"""Golden cases of what surrounds mPLUG-Owl: images, frames, prompts, tokens, labels, batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from plait.models.mplug_owl.conversation import (
    clean_answer,
    tokenize,
)
from plait.models.mplug_owl.processor import draw, pixels, training_pixels
from plait.parity.cases import Case
from plait.parity.runners import Tolerance, runner
from plait.processing.videos import centred_indices

from .released import demo_prompt, official_sample

Outputs = dict[str, Any]
EXACT = {"out.*": Tolerance(1e-6, 0)}
BOS, EOS, PAD = 1, 2, 0


def fake_encode(text: str) -> list[int]:
    """The tokenizer of the cases: 3 for the space in front, then every byte plus 4."""
    return [3, *(byte + 4 for byte in text.encode())] if text else []


def indexed(items: list[Any]) -> Outputs:
    """The entries of a document that is a list."""
    return {str(i): item for i, item in enumerate(items)}


@runner("mplug_owl", "preprocess_image", tolerance=EXACT)
def preprocess_image(case: Case) -> Outputs:
    side = case.config["size"]["shortest_edge"]
    statistics = case.config["image_mean"], case.config["image_std"]
    return {
        f"out.pixel_values{name.removeprefix('image')}": pixels(
            Image.fromarray(x.numpy()), side, *statistics, official=case.official
        )[None]
        for name, x in case.stored_inputs.items()
    }


@runner("mplug_owl", "preprocess_training", tolerance=EXACT)
def preprocess_training(case: Case) -> Outputs:
    side, statistics = case.config["image_size"], (case.config["image_mean"], case.config["image_std"])
    images = {name: Image.fromarray(x.numpy()) for name, x in case.stored_inputs.items()}
    outputs: Outputs = {
        f"out.eval{name.removeprefix('image')}": pixels(image, side, *statistics)
        for name, image in images.items()
        if name != "image_train"
    }
    for k, item in enumerate(case.config["draws"]):
        generator = torch.Generator().manual_seed(item["torch_seed"])
        image = images["image_train"]
        drawn = draw(*image.size, generator, scale=(case.config["min_scale"], 1.0))
        outputs[f"out.train{k}"] = training_pixels(image, side, drawn, *statistics)
    return outputs


@runner("mplug_owl", "preprocess_video_frames", tolerance=EXACT)
def preprocess_video_frames(case: Case) -> Outputs:
    side, statistics = case.config["size"]["shortest_edge"], (case.config["image_mean"], case.config["image_std"])
    frames = [pixels(Image.fromarray(frame.numpy()), side, *statistics) for frame in case.stored_inputs["frames"]]
    return {"out.video_pixel_values": torch.stack(frames, dim=1)[None]}


@runner("mplug_owl", "frame_indices", json_inputs=("num_frames", "num_segments"))
def frame_indices(case: Case) -> Outputs:
    return indexed([
        {**item, "indices": centred_indices(item["num_segments"], item["num_frames"])} for item in case.document
    ])  # fmt: skip


@runner("mplug_owl", "tokenize_prompts", json_inputs=("prompts", "media_lengths"))
def tokenize_prompts(case: Case) -> Outputs:
    return indexed([{**item, **prompt_batch(item)} for item in case.document])


def prompt_batch(item: Mapping[str, Any]) -> Outputs:
    """Prompts as the released processor batches them: padded on the right with the end id."""
    runs = {kind: (-1 - i, length) for i, (kind, length) in enumerate(item["media_lengths"].items())}
    rows = [tokenize(text, fake_encode, BOS, runs=runs) for text in item["prompts"]]
    width = max(map(len, rows))
    return {
        "input_ids": [row + [EOS] * (width - len(row)) for row in rows],
        "attention_mask": [[1.0] * len(row) + [0.0] * (width - len(row)) for row in rows],
    }


@runner("mplug_owl", "tokenize_training", json_inputs=("text", "max_length", "note", "error"))
def tokenize_training(case: Case) -> Outputs:
    return indexed([{**item, **training_sample(item, case.official)} for item in case.document])


def training_sample(item: Mapping[str, Any], official: bool) -> Outputs:
    """One conversation by the released rules; where they fail, so do we."""
    try:
        made = official_sample(
            item["text"], fake_encode, item["max_length"], bos=BOS, eos=EOS, pad=PAD, official=official
        )
    except ValueError as error:
        return {"error": item.get("error", str(error))}
    return {
        "input_ids": made.input_ids,
        "non_padding_mask": made.non_padding_mask,
        "non_media_mask": made.non_media_mask,
        "prompt_mask": made.prompt_mask,
        "seq_length": made.seq_length,
        "prompt_length": [-2 if made.has_image else -1],
    }


def official_batch(samples: Sequence[Mapping[str, Tensor | None]]) -> dict[str, Tensor | None]:
    """Samples stacked as the released collator does.

    samples: input_ids, masks, and image (k, 3, side, side) where there is one; `num_images` counts images, also those
    whose place was cut away. pixel_values is None where no sample has an image.
    """
    names = [name for name in samples[0] if name != "image"]
    batch: dict[str, Tensor | None] = {
        name: torch.stack([value for sample in samples if (value := sample[name]) is not None]) for name in names
    }
    images = [sample.get("image") for sample in samples]
    held = [image for image in images if image is not None]
    ids = batch["input_ids"]
    return batch | {
        "labels": None if ids is None else ids.clone(),
        "pixel_values": torch.cat(held) if held else None,
        "num_images": torch.tensor([0 if image is None else len(image) for image in images]),
    }


@runner("mplug_owl", "collate")
def collate(case: Case) -> Outputs:
    given = case.stored_inputs
    count = len({name.partition(".")[0] for name in given})
    names = [name.removeprefix("0.") for name in given if name.startswith("0.") and name != "0.image"]
    samples = [
        {name: given[f"{k}.{name}"] for name in names} | {"image": given.get(f"{k}.image")} for k in range(count)
    ]
    return {f"out.{name}": value for name, value in official_batch(samples).items() if value is not None}


@runner("mplug_owl", "chat_prompt", json_inputs=("messages", "raw"))
def chat_prompt(case: Case) -> Outputs:
    chats = []
    for item in case.document["chats"]:
        raw, prompt = demo_prompt(item["messages"], official=case.official)
        chats.append({**item, "prompt_raw": raw, "prompt": prompt})
    cleaned = [{**item, "cleaned": clean_answer(item["raw"])} for item in case.document["post_process"]]
    return {"chats": chats, "post_process": cleaned}
