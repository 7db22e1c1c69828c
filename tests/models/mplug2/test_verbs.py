"""`plait caption`, `answer`, `classify`, `ground`, `embed` and `info` on tiny real mPLUG-2 models on disk."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import plait
from plait.cli import main
from plait.models import auto
from plait.models.mplug2.alignment import MPlug2ForRetrieval
from plait.models.mplug2.pretraining import MPlug2ForPreTraining
from plait.models.mplug2.processor import MPlug2Processor
from plait.models.mplug2.tasks import (
    MPlug2ForConditionalGeneration,
    MPlug2ForGrounding,
    MPlug2ForImageClassification,
    MPlug2ForSequenceClassification,
    MPlug2ForVideoClassification,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]",
         "who", "what", "is", "he", "doing", "red", "green", "blue", "the",
         "a", "cat", "dog", "describe", "image", "video"]  # fmt: skip
VOCABULARY = [*WORDS, *(f"word{i}" for i in range(112 - len(WORDS)))]
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}


@pytest.fixture
def saved(build, tmp_path: Path):
    """(class, changes) -> the path of a model directory with its processor."""

    def save(model_class, **changes) -> str:
        folder = tmp_path / model_class.__name__
        model = build(model_class, **IDS, **changes)
        model.save_pretrained(folder)
        MPlug2Processor.build(12, VOCABULARY, num_frames=3, max_text_tokens=24).save_pretrained(folder)
        return str(folder)

    return save


@pytest.fixture
def media(tmp_path: Path) -> Path:
    """A folder with a picture and a clip of three seconds."""
    av = pytest.importorskip("av")
    folder = tmp_path / "media"
    folder.mkdir()
    noise = np.random.default_rng(0)
    Image.fromarray(noise.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(folder / "a.png")
    with av.open(str(folder / "b.mp4"), "w") as out:
        stream = out.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(12):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 20 * i, dtype=np.uint8), format="rgb24")
            for packet in stream.encode(frame):
                out.mux(packet)
        for packet in stream.encode():
            out.mux(packet)
    return folder


def lines(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    """What a verb prints with --json."""
    code = main([*arguments, "--json"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return [json.loads(line) for line in captured.out.splitlines()]


def test_captions_of_a_folder_are_those_of_its_files(saved, media: Path, capsys) -> None:
    model = saved(MPlug2ForConditionalGeneration)
    found = lines(capsys, "caption", model, str(media), "--num-beams", "2", "--max-length", "6")
    assert len(found) == 2
    assistant = plait.Assistant(model)
    alone = [assistant.caption(media / name, num_beams=2, max_length=6) for name in ("a.png", "b.mp4")]
    assert [text for row in found for key, text in row.items() if key == "caption"] == alone
    assert alone[0] != alone[1]


def test_answers_are_free_or_chosen(saved, media: Path, capsys) -> None:
    model = saved(MPlug2ForConditionalGeneration)
    (free,) = lines(capsys, "answer", model, str(media / "b.mp4"), "what is he doing?")
    assert isinstance(free["answer"], str)
    assert main(["answer", model, str(media / "a.png"), "what?", "--answers", "red,green,blue"]) == 0
    shown = capsys.readouterr().out
    assert sorted(part.split()[0] for part in shown.split("\t")[1].split(", ")) == ["blue", "green", "red"]


def test_a_pretraining_directory_writes_and_compares(saved, media: Path, capsys) -> None:
    model = saved(MPlug2ForPreTraining, instructions=True)
    assistant = plait.Assistant(model)
    assert assistant.tasks == ("answer", "caption", "classify", "rank")
    told, processor = auto.load(model)
    pixels = processor.pixels(media / "a.png")[None]
    expected = told.writer().generate(pixels, **processor.tokenize(["describe the image"]), num_beams=2, max_length=5)
    assert assistant.caption(media / "a.png", num_beams=2, max_length=5) == processor.decode_text(expected[0])
    assert {scored.text for scored in assistant.classify(media / "b.mp4", ["cat", "dog"])} == {"cat", "dog"}
    assert told.writer().model is told.model


def test_classifiers_name_what_they_see(saved, media: Path, capsys) -> None:
    picture = saved(MPlug2ForImageClassification, id2label={0: "cat", 1: "dog", 2: "sun"})
    assert main(["classify", picture, str(media / "a.png")]) == 0
    assert {"cat", "dog", "sun"} <= set(capsys.readouterr().out.replace("\t", " ").split())
    assert main(["classify", saved(MPlug2ForVideoClassification), str(media / "b.mp4")]) == 0
    assert main(["classify", saved(MPlug2ForRetrieval), str(media / "a.png"), "--labels", "cat,dog"]) == 0
    assert main(["classify", picture, str(media / "b.mp4")]) == 1
    assert "expected" in capsys.readouterr().err


def test_texts_are_classified(saved) -> None:
    from plait.types import Sample

    assistant = plait.Assistant(saved(MPlug2ForSequenceClassification, num_labels=2))
    scored = assistant.classify(Sample("one", text="what is he doing"))
    assert sum(one.probability for one in scored) == pytest.approx(1.0)


def test_a_phrase_is_found_inside_the_picture(saved, media: Path) -> None:
    box = plait.Assistant(saved(MPlug2ForGrounding)).ground(media / "a.png", "the cat")
    assert 0 <= box.x0 <= box.x1 <= 50
    assert 0 <= box.y0 <= box.y1 <= 40


def test_media_and_texts_are_embedded(saved, media: Path, tmp_path: Path, capsys) -> None:
    model = saved(MPlug2ForRetrieval)
    assert main(["embed", model, str(media), "--out", str(tmp_path / "v.npy")]) == 0
    rows = np.load(tmp_path / "v.npy")
    assert rows.shape == (2, 6)
    embedder = plait.Embedder(model)
    assert embedder.modalities == ("text", "image", "video")
    again = embedder.embed([media / "a.png", media / "b.mp4"])
    assert np.allclose(rows, again, atol=1e-5)
    assert np.allclose(np.linalg.norm(embedder.embed(["a cat", "the dog"]), axis=1), 1, atol=1e-5)


def test_info_names_family_parts_and_media(saved, capsys) -> None:
    assert main(["info", saved(MPlug2ForConditionalGeneration)]) == 0
    shown = capsys.readouterr().out
    assert "mplug2 (MPlug2ForConditionalGeneration)" in shown
    assert "image, video" in shown
    assert "universal" in shown


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["caption", "nowhere.png"], 1, "nowhere.png"),
        (["caption", "empty.mp4"], 1, "empty.mp4"),
        (["answer", "a.png", "word1 " * 30], 1, "expected a text of at most 24 tokens"),
        (["answer", "a.png", "what", "--answers", ""], 2, "expected at least one of --answers"),
        (["ground", "a.png", "cat"], 1, "expected a model that can ground"),
    ],
)
def test_wrong_inputs_are_one_line(saved, media: Path, capsys, arguments: list[str], code: int, message: str) -> None:
    model = saved(MPlug2ForConditionalGeneration)
    (media / "empty.mp4").write_bytes(b"")
    capsys.readouterr()  # what saving printed
    verb, file, *rest = arguments
    assert main([verb, model, str(media / file), *rest]) == code
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_model_of_another_family_is_one_line(media: Path, capsys) -> None:
    assert main(["caption", "nano", str(media / "a.png")]) in (1, 2)
    assert "expected a model that can caption" in capsys.readouterr().err
