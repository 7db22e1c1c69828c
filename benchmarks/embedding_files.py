"""Files into vectors: `Embedder` against loops that people write over the same model.

    python benchmarks/embedding_files.py [--files 60] [--layers 12]

photographs, large and small -> plait | transformers, a file at a time | transformers, batches of 32

All arms use one CLIP of ViT-B/32's shape with random weights, which do not change the time; with fewer layers decoding
weighs more. Photographs are JPEGs of 12, 3 and 0.3 megapixels. CPU seconds of all threads, one of them torch's: what
decoding and the model cost, not how far cores are kept busy. sentence-transformers' CLIP is the same loop in batches.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from measure import write
from PIL import Image

from plait import Embedder

BAR = 1.5
BATCH = 32


def photographs(folder: Path, count: int) -> list[Path]:
    """JPEGs cut from one drawing: two in ten of 12 megapixels, three of 3, five of 0.3."""
    rng = np.random.default_rng(0)
    drawn = [Image.fromarray(rng.integers(0, 256, (rows, rows, 3), dtype=np.uint8)) for rows in (9, 300)]
    large = Image.blend(*(one.resize((4000, 3000), Image.Resampling.BICUBIC) for one in drawn), alpha=0.4)
    kinds = [(4000, 3000)] * 2 + [(2048, 1536)] * 3 + [(640, 480)] * 5
    paths = []
    for number in range(count):
        width, height = kinds[number % len(kinds)]
        left, top = (int(rng.integers(0, edge - side + 1)) for edge, side in ((4000, width), (3000, height)))
        paths.append(folder / f"{number:05d}.jpg")
        large.crop((left, top, left + width, top + height)).save(paths[-1], quality=90)
    return paths


def clip(layers: int) -> tuple[Any, Any]:
    """A random CLIP of ViT-B/32's shape and its processor of pictures."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel

    torch.manual_seed(0)
    return CLIPModel(CLIPConfig(vision_config={"num_hidden_layers": layers})).eval(), CLIPImageProcessorPil()


@torch.inference_mode()
def looped(model: Any, images: Any, paths: list[Path], batch: int) -> np.ndarray:
    """Unit vectors as the pages of transformers show it: open, process, `get_image_features`."""
    rows = []
    for start in range(0, len(paths), batch):
        opened = [Image.open(path).convert("RGB") for path in paths[start : start + batch]]
        features = model.get_image_features(**images(opened, return_tensors="pt"))
        rows.append(features if isinstance(features, torch.Tensor) else features.pooler_output)
    return torch.nn.functional.normalize(torch.cat(rows)).numpy()


def measure(paths: list[Path], layers: int, rounds: int) -> dict[str, Any]:
    """Seconds of every arm, in turn, and the ratios to ours."""
    model, images = clip(layers)
    embedder = Embedder((model, _Pair(images)))
    arms: dict[str, Callable[[], np.ndarray]] = {
        "plait": lambda: embedder.embed(paths, show_progress=False),
        "transformers_one_by_one": lambda: looped(model, images, paths, 1),
        "transformers_batches": lambda: looped(model, images, paths, BATCH),
    }
    taken: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for name in names:
        arms[name]()
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            start = time.process_time()
            arms[name]()
            taken[name].append(time.process_time() - start)
    ratios = {
        name: round(median(a / b for a, b in zip(taken[name], taken["plait"])), 3) for name in names if name != "plait"
    }
    return {
        "files": len(paths),
        "layers": layers,
        "cpu_seconds": {name: round(median(values), 2) for name, values in taken.items()},
        "times_as_fast": ratios,
        "bars": {name: {"bar": BAR, "got": got, "holds": got >= BAR} for name, got in ratios.items()},
    }


class _Pair:
    """A processor that takes pictures by the name that `Embedder` has for them."""

    def __init__(self, images: Any) -> None:
        self.image_processor = images

    def __call__(self, images: Any, **options: Any) -> Any:
        return self.image_processor(images, **options)


def main() -> None:
    """Write files, measure, remove them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--layers", type=int, default=12)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(photographs(Path(folder), arguments.files), arguments.layers, arguments.rounds)
    write("embedding_files", {"load": os.getloadavg()[0], **found})


if __name__ == "__main__":
    main()
