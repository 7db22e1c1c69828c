"""A tiny data set on disk and embedders whose answers are known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

WORDS = [f"thing {i}" for i in range(12)]
SOUNDING = WORDS[:4]
NOTES = 3


def slug(word: str) -> str:
    """The label of a concept's name."""
    return word.replace(" ", "-")


def write_data(root: Path, *, sounds: bool = True, unseen_font: bool = False) -> Path:
    """12 concepts with a training and a held-out drawing each; 4 of them with training and held-out notes.

    A drawing is one flat colour that says its concept: red = 20 x number + 5.
    """
    rows = []
    for i, word in enumerate(WORDS):
        for split, blue in (("train", 0), ("test", 255)):
            file = f"images/{split}/{slug(word)}.png"
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (20 * i + 5, 0, blue)).save(root / file)
            rows.append({"id": f"{split}/{i}", "image": file, "text": word, "label": slug(word), "split": split})
    splits = ("train", "test", "unseen_font") if unseen_font else ("train", "test")
    for word in SOUNDING if sounds else ():
        for split in splits:
            for note in range(NOTES):
                file = f"audio/{slug(word)}/{split}-{note}.wav"
                write_tone(root / file, 100 * (1 + SOUNDING.index(word)) + note)
                rows.append({"id": file, "audio": file, "text": word, "label": slug(word), "split": split})
    (root / "manifest.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def write_tone(path: Path, frequency: float) -> None:
    """A tenth of a second at 16 kHz."""
    import wave

    path.parent.mkdir(parents=True, exist_ok=True)
    clip = (20000 * np.sin(2 * np.pi * frequency * np.arange(1600) / 16000)).astype("<i2")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(16000)
        file.writeframes(clip.tobytes())


class Planted:
    """Gives every concept its own direction, whatever the modality; a picture of two things has the sum of both.

    noise: standard deviation added to every component (1 is much more than the signal).
    """

    def __init__(self, noise: float = 0.0, seed: int = 0) -> None:
        self.directions = np.eye(len(WORDS), 16)
        self.noise, self.rng = noise, np.random.default_rng(seed)
        self.calls: list[int] = []

    def embed(self, items: Sequence[Any], /) -> np.ndarray:
        self.calls.append(len(items))
        rows = np.stack([sum(self.directions[WORDS.index(word)] for word in self.words(item)) for item in items])
        rows = rows + self.noise * self.rng.standard_normal(rows.shape)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    def words(self, item: dict[str, Any]) -> list[str]:
        """The concepts an item is about, told from its content."""
        ((modality, value),) = item.items()
        if modality == "text":
            return value.split(" and ")
        if modality == "audio":
            return [Path(value).parent.name.replace("-", " ")]
        picture = value if isinstance(value, Image.Image) else Image.open(value)
        pixels = np.asarray(picture.convert("RGB")).reshape(-1, 3)
        reds = {int(red) for red, green, _ in pixels if green == 0 and (red - 5) % 20 == 0}
        return [WORDS[(red - 5) // 20] for red in sorted(reds)]
