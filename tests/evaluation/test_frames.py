"""Every verb sees a film as the family's release does: its own number of frames, by its own rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import pytest
from PIL import Image
from tiny_families import FAMILIES

from plait.assistant import Assistant
from plait.embedder import Embedder
from plait.evaluation.files import frames_of
from plait.evaluation.models import open_model
from plait.evaluation.run import Options, used_by
from plait.evaluation.tasks import TASKS
from plait.media.video import load_video
from plait.processing.videos import FRAME_RULES, chooser

LENGTH, RATE = 37, 10


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A film whose frame i is grey of 20 + 6 i."""
    path = tmp_path_factory.mktemp("film") / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE, options={"qscale": "1", "g": "1"})
        stream.width = stream.height = 32
        for i in range(LENGTH):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (32, 32), (20 + 6 * i,) * 3))))
        container.mux(stream.encode())
    return path


def numbers(frames: Any) -> list[int]:
    return [round((frame.getpixel((16, 16))[0] - 20) / 6) for frame in frames]


@pytest.mark.parametrize("rule", FRAME_RULES)
def test_a_rule_chooses_the_frames_of_a_real_film_by_their_numbers(rule: str, film: Path) -> None:
    wanted = FRAME_RULES[rule](6, LENGTH, float(RATE))
    assert numbers(load_video(film, 6, choose=chooser(rule, 6)).frames) == wanted


def test_a_part_of_a_film_is_cut_out(film: Path) -> None:
    assert numbers(frames_of(film, 4, chooser("middle", 4, 1.0, 2.0))) == [10, 13, 15, 18]
    assert set(numbers(frames_of(film, 4, chooser("time", 4, 1.0, 2.0)))) <= set(range(10, 20))
    assert numbers(frames_of(film, 2, chooser("middle", 2, 3.6, 9.0))) == [36, 36]
    with pytest.raises(ValueError, match="expected frames by one of time, middle"):
        chooser("nonsense", 4)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("families")
    for name in ("mplug2", "mplug2_retrieval", "mplug_owl", "mplug_owl2"):
        FAMILIES[name](place / name)
    return {name: place / name for name in ("mplug2", "mplug2_retrieval", "mplug_owl", "mplug_owl2")}


@pytest.mark.parametrize(
    ("name", "frames"), [("mplug2", (None, "middle")), ("mplug_owl", (2, "centred")), ("mplug_owl2", (8, "time"))]
)
def test_an_evaluation_takes_the_familys_frames_and_says_so(name: str, frames: Any, places: dict[str, Path]) -> None:
    model = open_model(places[name], ("generate",))
    used = used_by(TASKS["msvd_qa"], model, Options())
    count = model.asking.processor.num_frames if frames[0] is None else frames[0]
    assert (used["num_frames"], used["frames"]) == (count, frames[1])
    assert used_by(TASKS["msvd_qa"], model, Options(frames="time"))["frames"] == "time"
    with pytest.raises(ValueError, match="expected frames by one of"):
        used_by(TASKS["msvd_qa"], model, Options(frames="nonsense"))


def test_assistant_and_embedder_of_mplug2_show_its_own_frames(
    places: dict[str, Path], film: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from plait.models.mplug2.processor import MPlug2Processor

    seen, clip = [], MPlug2Processor.clip

    def watched(self: Any, frames: Any, *rest: Any) -> Any:
        seen.append(numbers(frames))
        return clip(self, frames, *rest)

    monkeypatch.setattr(MPlug2Processor, "clip", watched)
    assistant = Assistant(places["mplug2"])
    count = assistant.skills.num_frames
    assistant.caption(film)
    assert seen[-1] == FRAME_RULES["middle"](count, LENGTH, RATE)
    Embedder(places["mplug2_retrieval"]).embed([{"video": film}])
    assert seen[-1] == FRAME_RULES["middle"](count, LENGTH, RATE)
    Assistant(places["mplug2"], frames="time").caption(film)
    assert seen[-1] == numbers(load_video(film, count).frames)
    with pytest.raises(ValueError, match="expected frames 'published' or 'time'"):
        Assistant(places["mplug2"], frames="best")  # ty: ignore[invalid-argument-type]


def test_an_owl_with_temporal_modules_reads_films_as_clips(places: dict[str, Path], film: Path) -> None:
    from plait.types import Ask, Decoding

    model = open_model(places["mplug_owl"], ("generate",))
    seen, generate = [], model.model.generate
    model.model.generate = lambda **inputs: seen.append(inputs) or generate(**inputs)
    frames = tuple(frames_of(film, 2, chooser("centred", 2)))
    model.generate([Ask("what?", video=frames), Ask("what?", images=frames[:1])], Decoding(max_new_tokens=2))
    assert seen[0]["pixel_values_videos"].shape[:3] == (1, 3, 2)
    assert len(seen[0]["pixel_values"]) == 1
    assert model.prompt(Ask("what?", video=frames)).splitlines()[1:] == ["Human: <|video|>", "Human: what?", "AI: "]
