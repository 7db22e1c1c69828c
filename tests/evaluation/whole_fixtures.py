"""Fixtures of annotation formats made whole: every medium that the items name is composed beside the files."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Sequence
from pathlib import Path

import av
import numpy as np
import soundfile
from PIL import Image

from plait.evaluation.base import Item, Task
from plait.evaluation.tasks import read
from plait.types import Modality

FORMATS = Path(__file__).parents[1] / "goldens" / "formats"
FOLDERS = {
    "arc_easy": "arc",
    "arc_challenge": "arc",
    "imagenet_folder": "imagenet",
    "one_peace_aqa": "one_peace_audio",
    "one_peace_fsd50k": "one_peace_audio",
    "one_peace_vggsound": "one_peace_audio",
}
"""Layouts that lie in the fixture of another."""
SPLITS = {
    ("coco_caption", "coco_captions"): "val",
    ("flickr30k_caption", "owl2_captions"): "test",
    ("nlvr2", "one_peace_nlvr2"): "test",
    ("refcocog", "refcoco"): "testA",
    ("refcocog", "one_peace_grounding"): "testA",
    ("image_folder", "imagenet_folder"): "val",
    ("avqa", "one_peace_aqa"): "val",
}
"""Splits of fixtures that are not the task's own."""


MMHAL = [
    {
        "question_type": kind, "question_topic": "food", "image_id": "0a", "image_src": f"https://host/x/{kind}.jpg",
        "image_content": ["Apple", "Table"], "question": "What lies there?", "gt_answer": "An apple.",
        "model_answer": "",
    }
    for kind in ("attribute", "counting")
]  # fmt: skip
"""MMHal-Bench has no fixture among the goldens."""


def fixture(task: Task, layout: str, place: Path) -> tuple[Path, str]:
    """A copy of a layout's fixture in `place` with all media, and the split that it holds."""
    folder = "glue" if layout.startswith("glue_") else FOLDERS.get(layout, layout)
    if layout == "mmhal_bench":
        place.mkdir(parents=True)
        (place / "response_template.json").write_text(json.dumps(MMHAL))
    elif layout == "coco_stuff":  # no annotation file: the masks are all of it
        for number in range(2):
            for folder, values in (("images", np.full((10, 12, 3), 90 * number)), ("stuffthingmaps", np.eye(10, 12))):
                path = place / folder / "val2017" / f"{number}.{'jpg' if folder == 'images' else 'png'}"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values.astype(np.uint8)).save(path)
    else:
        shutil.copytree(FORMATS / folder, place, dirs_exist_ok=True)
        (place / "expected.json").unlink()
    if layout == "arc_easy":
        (place / "ARC-Challenge-Test.jsonl").rename(place / "ARC-Easy-Test.jsonl")
    if layout in ("one_peace_fsd50k", "one_peace_vggsound"):  # the tables hold indices only
        (place / "classes.txt").write_text("".join(f"sound {i}\n" for i in range(200)))
    split = SPLITS.get((task.name, layout), task.split)
    compose(place, read(place, (layout,), split)[0], task.media)
    return place, split


def compose(place: Path, items: Sequence[Item], modalities: Sequence[Modality]) -> None:
    """Write every medium that items name and that is not there."""
    for item in items:
        for modality, name in item.media(modalities):
            if isinstance(name, str) and not (place / name).exists():
                path = place / name if Path(name).suffix else place / f"{name}.jpg"
                path.parent.mkdir(parents=True, exist_ok=True)
                {"image": picture, "video": video, "audio": sound}[modality](path)


def _colour(path: Path) -> tuple[int, int, int]:
    number = zlib.crc32(path.name.encode())
    return number & 255, number >> 8 & 255, number >> 16 & 255


def picture(path: Path) -> None:
    """A small picture in a colour that follows from its name."""
    kind = {".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}.get(path.suffix.lower(), "PNG")
    Image.new("RGB", (12, 10), _colour(path)).save(path, kind)


def video(path: Path) -> None:
    """Four frames; an animated GIF where the name says so, else MP4 (readers go by content)."""
    frames = [Image.new("RGB", (32, 32), tuple((c + 20 * i) % 256 for c in _colour(path))) for i in range(4)]
    if path.suffix == ".gif":
        frames[0].save(path, "GIF", save_all=True, append_images=frames[1:])
        return
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width = stream.height = 32
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())


def sound(path: Path) -> None:
    """Half a second of a tone whose pitch follows from the name."""
    times = np.arange(4000) / 8000
    tone = 0.5 * np.sin(2 * np.pi * (200 + zlib.crc32(path.name.encode()) % 2000) * times)
    soundfile.write(path, tone.astype(np.float32), 8000, format="FLAC" if path.suffix == ".flac" else "WAV")
