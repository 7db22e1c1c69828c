"""A data set and a model directory of every family, small enough to train each recipe in a second.

Pictures are PNG, sounds WAV and clips FFV1, which every build of every decoder reads alike, so that what becomes of
them can be compared with what was stored.
"""

from __future__ import annotations

import json
import string
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"
COLOURS = {"red": (250, 0, 0), "blue": (0, 0, 250), "green": (0, 200, 0), "black": (0, 0, 0)}


def write_data(root: Path) -> Path:
    """Manifests below `root`: `all` (every kind of row of four colours), and one of each kind."""
    import soundfile

    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("images", "sounds", "videos", "texts", "talks")}
    for c, (name, colour) in enumerate(COLOURS.items()):
        for style in range(3):
            ident, split = f"{name}-{style}", "test" if style == 2 else "train"
            box = [6 + 5 * c, 4 + 4 * style, 40 + 4 * c, 30 + 4 * style]
            picture = Image.new("RGB", (60, 48), "white")
            ImageDraw.Draw(picture).rectangle(box, fill=colour)
            picture.save(root / f"{ident}.png")
            wave = 0.5 * np.sin(np.arange(16000) * (0.02 + 0.03 * c) * (1 + style))
            soundfile.write(root / f"{ident}.wav", wave.astype(np.float32), 16000)
            shared = {"text": name, "label": name, "split": split}
            asked = {"question": "which colour", "answers": [name, name, "dark"], "boxes": [[float(x) for x in box]]}
            rows["images"].append({"id": f"i{ident}", "image": f"{ident}.png", **shared, **asked})
            rows["sounds"].append({"id": f"a{ident}", "audio": f"{ident}.wav", **shared})
        frames = [np.full((16, 16, 3), [int(x * k / 5) for x in colour], np.uint8) for k in range(6)]
        write_clip(root / f"{name}.mkv", frames)
        captions = [name, f"a {name} clip"]
        clip = {"captions": captions, "label": name, "question": "which colour", "answers": [name, "dark"]}
        rows["videos"].append({"id": f"v{c}", "video": f"{name}.mkv", **clip})
        rows["texts"].append({"id": f"t{c}", "text": f"the {name} thing", "label": "long" if c % 2 else "short"})
        shown = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": f"{name} box"}]
        rows["talks"] += [
            {"id": f"m{c}", "image": f"{name}-0.png", "messages": shown},
            {"id": f"q{c}", "question": f"one and {c}?", "answers": [str(c + 1)]},
            {"id": f"c{c}", "image": f"{name}-1.png", "question": "is it?", "answers": ["yes", "no"]},
        ]
    rows["pairs"] = [
        {"id": f"p{i}", "images": [f"{a}-0.png", f"{b}-1.png"], "text": f"a {a} thing", "label": str(i % 2)}
        for i, (a, b) in enumerate(zip(COLOURS, [*COLOURS][::-1], strict=True))
    ]
    words = [row for row in rows["talks"] if "image" not in row]
    rows["owl"] = [*rows["images"][:6], *rows["videos"], *words]
    rows["media"] = [*rows["images"], *rows["videos"], *rows["texts"]]
    rows["manifest"] = [*rows["images"], *rows["sounds"]]
    for name, several in rows.items():
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in several), "utf-8")
    return root


def write_clip(path: Path, frames: list[np.ndarray]) -> None:
    """Frames (height, width, 3) uint8 at 4 a second, without loss."""
    import av

    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("ffv1", rate=4)
        stream.height, stream.width, stream.pix_fmt = *frames[0].shape[:2], "bgr0"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24").reformat(format="bgr0")))
        file.mux(stream.encode(None))


def write_models(root: Path) -> Path:
    """`mplug2`, `one_peace` (as stage 1 leaves it) and `llm` below `root`; the Owls are saved directories."""
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from plait.models.mplug2 import MPlug2Config, MPlug2Processor
    from plait.models.mplug2.pretraining import MPlug2ForPreTraining
    from plait.models.one_peace import OnePeaceConfig, OnePeaceProcessor
    from plait.models.one_peace.pretraining import OnePeaceForPreTraining
    from plait.processing.tokenizers import encode, subset

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words = [
        *COLOURS,
        *["which", "colour", "a", "clip", "box", "the", "thing", "dark", "describe", "image", "video", "of"],
    ]
    pieces = [*special, *words, *string.ascii_lowercase, *(f"##{x}" for x in string.ascii_lowercase)]
    pieces = list(dict.fromkeys(pieces))
    ids = {f"{name}_token_id": pieces.index(p) for name, p in (("pad", "[PAD]"), ("bos", "[CLS]"), ("eos", "[SEP]"))}
    torch.manual_seed(0)
    mplug2 = MPlug2Config.preset("tiny", vocab_size=len(pieces), queue_size=8, **ids, grounding_start_id=10)
    MPlug2ForPreTraining(mplug2).save_pretrained(root / "mplug2")
    MPlug2Processor.build(12, pieces, num_frames=3, max_text_tokens=12).save_pretrained(root / "mplug2")

    kept = subset(piece for row in encode([*COLOURS, "this is a sound of", "a picture of"]) for piece in row)
    config = OnePeaceConfig.preset("nano", vocab_size=len(kept))
    torch.manual_seed(0)
    OnePeaceForPreTraining(config).save_pretrained(root / "one_peace")
    OnePeaceProcessor.from_config(config, kept).save_pretrained(root / "one_peace")

    torch.manual_seed(0)
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    llama = LlamaConfig(
        vocab_size=104, hidden_size=24, intermediate_size=32, num_hidden_layers=2, num_attention_heads=4, **ids
    )
    LlamaForCausalLM(llama).save_pretrained(root / "llm")
    PreTrainedTokenizerFast.from_pretrained(SAVED / "mplug_owl").save_pretrained(root / "llm")
    return root


RUNS: dict[str, tuple[str, dict[str, str]]] = {
    "one_peace.stage1": (
        "one_peace.stage1",
        {
            "data": "D", "denoise_every": "2", "lr": "1e-3", "floor": "2e-6", "warmup": "0.04", "composed": "0.15",
            "augmentation": "0.7", "bare_names": "0.8",
        },
    ),
    "one_peace.stage2": (
        "one_peace.stage2",
        {
            "init": "M/one_peace", "data": "D", "denoise_every": "2", "lr": "2e-3", "floor": "1e-5",
            "augmentation": "0.5",
        },
    ),
    "mplug_owl.stage1": (
        "mplug_owl.stage1",
        {"data": "D/owl.jsonl", "llm": "M/llm", "tower": "tiny", "temporal": "true", "warmup": "0", "lr": "1e-3"},
    ),
    "mplug_owl.stage2": (
        "mplug_owl.stage2",
        {"data": "D/owl.jsonl", "init": "S/mplug_owl", "lora": "2", "lora_dropout": "0", "warmup": "0", "lr": "1e-2"},
    ),
    "mplug_owl2.pretrain": (
        "mplug_owl2.pretrain",
        {"data": "D/images.jsonl", "init": "S/mplug_owl2", "image_size": "16", "warmup": "0", "lr": "1e-2"},
    ),
    "mplug_owl2.joint": (
        "mplug_owl2.joint",
        {"data": "D/talks.jsonl", "init": "S/mplug_owl2", "warmup": "0", "lr": "1e-3"},
    ),
    "mplug2.pretraining": ("mplug2.pretraining", {"data": "D/media.jsonl", "queue_size": "8"}),
    "mplug2.captioning": ("mplug2.captioning", {"data": "D/videos.jsonl"}),
    "mplug2.self_critical": (
        "mplug2.self_critical",
        {"data": "D/images.jsonl", "num_beams": "3", "min_length": "1", "max_length": "4"},
    ),
    "mplug2.answering": ("mplug2.answering", {"data": "D/images.jsonl"}),
    "mplug2.mixture": ("mplug2.mixture", {"data": "D/media.jsonl"}),
    "mplug2.retrieval": ("mplug2.retrieval", {"data": "D/images.jsonl", "queue_size": "8"}),
    "mplug2.grounding": ("mplug2.grounding", {"data": "D/images.jsonl"}),
    "mplug2.classification": ("mplug2.classification", {"data": "D/images.jsonl", "medium": "image"}),
    "mplug2.comparison": ("mplug2.comparison", {"data": "D/pairs.jsonl"}),
    "finetune one_peace retrieval": (
        "finetune",
        {"model": "M/one_peace", "data": "D/manifest.jsonl", "task": "retrieval", "medium": "image"},
    ),
    "finetune one_peace classify": (
        "finetune",
        {"model": "M/one_peace", "data": "D/manifest.jsonl", "task": "classify", "medium": "audio"},
    ),
    "finetune mplug2 vqa": ("finetune", {"model": "M/mplug2", "data": "D/images.jsonl", "task": "vqa"}),
    "finetune mplug_owl vqa": ("finetune", {"model": "S/mplug_owl", "data": "D/images.jsonl", "task": "vqa"}),
    "finetune mplug_owl2 caption": (
        "finetune",
        {"model": "S/mplug_owl2", "data": "D/images.jsonl", "task": "caption", "lora": "2"},
    ),
}  # fmt: skip
"""Name -> recipe and settings, where D stands for the data, M for the models and S for the saved directories."""


def command(name: str, data: Path, models: Path, **changes: object) -> list[str]:
    """`plait train` of a run in `RUNS`; changes: other settings."""
    recipe, settings = RUNS[name]
    if recipe.startswith("mplug2."):
        settings = {"init": "M/mplug2", "lr": "1e-3", "vision_lr": "1e-3", **settings}
    if recipe == "finetune":
        settings = {"lr": "1e-3", **settings}
    places = {"D": str(data), "M": str(models), "S": str(SAVED)}
    given: dict[str, object] = {"batch_size": "4", "steps": "3"}
    for key, value in settings.items():
        first, slash, rest = value.partition("/")
        given[key] = f"{places[first]}{slash}{rest}" if first in places else value
    words = [word for key, value in {**given, **changes}.items() for word in ("--set", f"{key}={value}")]
    return ["train", recipe, *words, "--device", "cpu"]
