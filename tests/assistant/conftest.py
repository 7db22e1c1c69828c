from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from plait.assistant import Assistant, Scored


class Parrot:
    """Skills without a model: they tell what they were given."""

    tasks = frozenset({"caption", "answer", "rank", "ground", "classify"})
    kinds = frozenset({"text", "image", "video"})
    num_frames = 3
    labels = ("bright", "dark")
    limit = 40

    def __init__(self) -> None:
        self.batches: list[tuple[str, int]] = []

    def prepare(self, kind, value):
        if kind == "text":
            return value
        frames = [value] if kind == "image" else value
        return round(float(np.mean([np.asarray(frame) for frame in frames])))

    def check_text(self, text):
        if len(text) > self.limit:
            raise ValueError(f"expected a text of at most {self.limit} letters, got {len(text)}; shorten it")

    def caption(self, kind, prepared, options):
        self.batches.append((kind, len(prepared)))
        return [f"{kind} {one}" + "".join(f" {k}={v}" for k, v in options.items()) for one in prepared]

    def answer(self, kind, prepared, questions, options):
        return [f"{question} {one}" for one, question in zip(prepared, questions, strict=True)]

    def rank(self, kind, prepared, questions, answers):
        return [[Scored(answers[-1], 0.75), Scored(answers[0], 0.25)] for _ in prepared]

    def ground(self, prepared, phrases):
        return [(-0.5, 0.25, 0.5, 2.0) for _ in prepared]

    def classify(self, kind, prepared, labels):
        return [[Scored(label, 1 / len(labels or self.labels)) for label in labels or self.labels] for _ in prepared]


@pytest.fixture
def parrot(monkeypatch: pytest.MonkeyPatch) -> Parrot:
    """A parrot behind every model directory."""
    from plait.models import auto

    skills = Parrot()
    monkeypatch.setattr(auto, "load", lambda *args, **options: (torch.nn.Linear(1, 1), None))
    monkeypatch.setattr(auto, "skills", lambda model, processor: skills)
    return skills


@pytest.fixture
def assistant(parrot: Parrot) -> Assistant:
    return Assistant("anywhere", device="cpu", batch_size=2)


def grey(value: int, size: tuple[int, int] = (8, 6)) -> Image.Image:
    return Image.new("RGB", size, (value, value, value))


def write_video(path: Path, values: list[int], size: tuple[int, int] = (16, 16)) -> Path:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
        for value in values:
            container.mux(stream.encode(av.VideoFrame.from_image(grey(value, size))))
        container.mux(stream.encode())
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Two pictures, a clip, a damaged picture, a sound, notes and an empty video."""
    import soundfile

    place = tmp_path / "media"
    (place / "deep").mkdir(parents=True)
    grey(10).save(place / "a.png")
    grey(200).save(place / "deep" / "b.png")
    write_video(place / "c.mp4", [100] * 6)
    (place / "d.png").write_bytes((place / "a.png").read_bytes()[:40])
    soundfile.write(place / "e.wav", np.zeros(100, np.float32), 16000)
    (place / "notes.txt").write_text("nothing to see")
    (place / "z.mp4").write_bytes(b"")
    yield place
