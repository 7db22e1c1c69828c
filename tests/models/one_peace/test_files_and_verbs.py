"""Every listed file with a head loads through `plait.load` and answers in the verbs that its line names.

Golden weights are wrapped in the layout of each file; logits of golden inputs must come out of the loaded model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from safetensors.torch import load_file

import plait
from plait import cli
from plait.assistant import Assistant
from plait.models.one_peace.vision import OnePeaceVideoClassifier
from plait.types import Sample

GOLDENS = Path(__file__).parents[2] / "goldens" / "one_peace"
VOCABULARY = 50264
FILES = {
    "vision_imagenet": "onepeace_ft_21kto1k_384.pth",
    "vision_video": "onepeace_video_k400.pth",
    "classify_vqa": "finetune_vqa.pt",
    "classify_grounding": "finetune_refcoco.pt",
    "classify_nlvr2": "finetune_nlvr2.pt",
    "classify_aqa": "finetune_aqa.pt",
    "classify_fsd50k": "finetune_fsd50k.pt",
    "classify_vggsound": "finetune_vggsound.pt",
}
"""Golden case -> the file of `plait models` that has this layout."""
INPUTS = {
    "src_images": "pixel_values", "src_images_2": "second_pixel_values", "src_tokens": "input_ids",
    "src_audios": "input_values", "video": "pixel_values",
}  # fmt: skip


def write_file(case: str, place: Path) -> Path:
    """The golden weights of a case in the layout of its published file, with room for the whole vocabulary."""
    state, config = (
        load_file(GOLDENS / case / "weights.safetensors"),
        json.loads((GOLDENS / case / "config.json").read_text()),
    )
    words = "encoder_wrapper.text_adapter.embed_tokens.weight"
    if words in state:
        table = torch.randn(VOCABULARY, state[words].shape[1], generator=torch.Generator().manual_seed(0))
        table[: len(state[words])] = state[words]
        state[words], config["vocab_size"] = table, VOCABULARY
    whole: dict[str, Any] = {"cfg": {"model": config}, "model": state}
    if case == "vision_imagenet":
        whole = {"model": state, "epoch": 3}
    elif case == "vision_video":
        whole = {"state_dict": state, "meta": {}}
    torch.save(whole, place / FILES[case])
    return place / FILES[case]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("files")
    return {case: write_file(case, place) for case in FILES}


@pytest.fixture(scope="module")
def media(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two pictures, a film of 40 frames and a sound."""
    import av

    place = tmp_path_factory.mktemp("media")
    for i in range(2):
        Image.effect_mandelbrot((48, 36), (-2 + i, -1, 1, 1), 30).convert("RGB").save(place / f"{i}.png")
    with av.open(str(place / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for i in range(40):
            container.mux(stream.encode(av.VideoFrame.from_image(Image.new("RGB", (48, 32), (6 * i, 90, 40)))))
        container.mux(stream.encode())
    times = np.arange(8000) / 16000
    soundfile.write(place / "sound.wav", (0.4 * np.sin(2700 * times)).astype(np.float32), 16000)
    return place


@pytest.mark.parametrize("case", FILES)
def test_the_file_gives_the_golden_logits(case: str, files: dict[str, Path]) -> None:
    tensors = load_file(GOLDENS / case / "tensors.safetensors")
    model, _ = plait.load(files[case], official=True)
    given = {INPUTS[name[3:]]: value for name, value in tensors.items() if name[3:] in INPUTS and name[:3] == "in."}
    if "in.audio_padding_masks" in tensors:  # per frame, True = padding
        given["frame_mask"] = ~tensors["in.audio_padding_masks"].bool()[:, 1:]  # CLS stands first
    for name in ("input_values", "frame_mask"):
        if case == "classify_aqa":  # four answers share a clip
            given[name] = given[name].repeat_interleave(len(given["input_ids"]) // len(given[name]), dim=0)
    if case == "vision_video":  # as models of transformers take videos
        given["pixel_values"] = given["pixel_values"].transpose(1, 2)
    if "input_ids" in given:
        given["attention_mask"] = given["input_ids"] != 1
    with torch.no_grad():
        found = model(**given).logits
    wanted = tensors["out.cls_score" if case == "vision_video" else "out.logits"]
    torch.testing.assert_close(found, wanted, atol=2e-5, rtol=1e-4)


VERBS = {
    "vision_imagenet": ["classify", "0.png"],
    "vision_video": ["classify", "film.mp4"],
    "classify_vqa": ["answer", "0.png", "what is it?"],
    "classify_grounding": ["ground", "0.png", "the dog"],
    "classify_nlvr2": ["answer", "pairs.jsonl"],
    "classify_aqa": ["answer", "sound.wav", "what is heard?", "--answers", "a dog,a bell"],
    "classify_fsd50k": ["classify", "sound.wav"],
    "classify_vggsound": ["classify", "sound.wav"],
}
"""What the line of the file promises."""


@pytest.mark.parametrize("case", VERBS)
def test_the_file_answers_in_its_verb(
    case: str, files: dict[str, Path], media: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": 1, "question": "both show a dog", "images": [str(media / "0.png"), str(media / "1.png")]}
    (media / "pairs.jsonl").write_text(json.dumps(row) + "\n")
    verb, name, *rest = VERBS[case]
    assert cli.main([verb, str(files[case]), str(media / name), *rest, "--json"]) == 0
    (found,) = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    if verb == "ground":
        assert len(found["box"]) == 4
    elif "answer" in found:
        assert found["answer"] in (("True", "False") if case == "classify_nlvr2" else [f"LABEL_{i}" for i in range(9)])
    else:
        rows = found.get("answers") or found["labels"]
        assert sum(one["probability"] for one in rows) <= 1 + 1e-5
        assert {one["text"] for one in rows} <= {"a dog", "a bell", *(f"LABEL_{i}" for i in range(20))}


def test_a_film_is_seen_in_three_clips_and_three_crops(
    files: dict[str, Path], media: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen, forward = [], OnePeaceVideoClassifier.forward

    def watched(self: Any, pixel_values: Any, **rest: Any) -> Any:
        seen.append(pixel_values)
        return forward(self, pixel_values, **rest)

    monkeypatch.setattr(OnePeaceVideoClassifier, "forward", watched)
    assistant = Assistant(files["vision_video"])
    (found,) = [assistant.classify(media / "film.mp4")]
    assert [tuple(views.shape) for views in seen] == [(9, 4, 3, 32, 32)]
    logits = forward(assistant.model, seen[0]).logits
    mean = logits.softmax(-1).mean(0)
    assert [share for _, share in found] == pytest.approx(sorted(mean.tolist(), reverse=True), abs=1e-6)
    frames = tuple(Image.new("RGB", (48, 32), (9 * i, 0, 0)) for i in range(4))
    assistant.classify(frames)
    assert len(seen[-1]) == 3  # one clip in memory has three crops
    with pytest.raises(ValueError, match="expected clips of 4 frames, got 3 frames"):
        assistant.classify(frames[:3])


def test_words_name_every_class_or_none(files: dict[str, Path], media: Path) -> None:
    assistant = Assistant(files["classify_vqa"])
    words = [f"word {i}" for i in range(9)]
    assert assistant.answer(media / "0.png", "what?", words) in words
    with pytest.raises(ValueError, match="expected 9 words, got 2"):
        assistant.answer(media / "0.png", "what?", words[:2])
    pair = Assistant(files["classify_nlvr2"])
    pictures = tuple(Image.open(media / f"{i}.png") for i in range(2))
    assert pair.answer(pictures, "both show a dog") in ("True", "False")
    with pytest.raises(ValueError, match="expected 2 pictures"):
        pair.answer(media / "0.png", "both show a dog")
    hearing = Assistant(files["classify_vggsound"])
    sound = np.sin(np.arange(4000) / 3).astype(np.float32)
    as_array, as_sample = hearing.classify([sound, Sample("s", audio=sound, meta={"sampling_rate": 16000})])
    assert [share for _, share in as_array] == pytest.approx([share for _, share in as_sample], abs=1e-5)


def test_a_saved_classifier_opens_again(files: dict[str, Path], tmp_path: Path) -> None:
    for case in ("vision_imagenet", "vision_video"):
        model, processor = plait.load(files[case])
        model.save_pretrained(tmp_path / case)
        processor.save_pretrained(tmp_path / case)
        again, _ = plait.load(tmp_path / case)
        assert type(again) is type(model)
        assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
