from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from plait.assistant import Assistant
from plait.models.mplug2.skills import MPlug2Skills

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"
# small models with random weights: the first says something else of a dark, a grey and a bright picture
TALKING, GROUNDING = SAVED / "mplug2_captions", SAVED / "mplug2_grounding"


@pytest.fixture(scope="session")
def assistant() -> Assistant:
    """Captions, answers, ranks and classifies by labels, two at a time."""
    return Assistant(TALKING, device="cpu", batch_size=2)


@pytest.fixture(scope="session")
def grounding() -> Assistant:
    return Assistant(GROUNDING, device="cpu", batch_size=2)


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """(kind, items) of every batch that reaches the captions of the model."""
    found: list[tuple[str, int]] = []
    caption = MPlug2Skills.caption

    def counted(self, kind, prepared, options):
        found.append((kind, len(prepared)))
        return caption(self, kind, prepared, options)

    monkeypatch.setattr(MPlug2Skills, "caption", counted)
    return found


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
