"""Embedder: items of every kind become unit vectors, fused as asked, the same alone and in a batch."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from tiny_embedders import (
    RATE,
    HueModel,
    HueProcessor,
    picture,
    save_clap,
    save_clip,
    save_sentence_model,
    save_siglip,
    tone,
)

import plait
from plait import Embedder, Sample
from plait.cli import main
from plait.errors import UsageError
from plait.models.registry import FAMILIES


@pytest.fixture
def hue() -> Embedder:
    return Embedder((HueModel(), HueProcessor()))


@pytest.fixture(scope="module")
def clip_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


def test_every_kind_of_item_lands_near_its_colour(hue: Embedder, tmp_path: Path) -> None:
    png = picture(tmp_path / "red.png", "red")
    wav = tmp_path / "red.wav"
    soundfile.write(wav, tone("red"), RATE)
    items = [
        "red",
        png,
        wav,
        {"image": str(png)},
        {"image": png.read_bytes()},
        {"audio": tone("red")},
        {"audio": (tone("red", rate=4 * RATE), 4 * RATE)},
        Image.open(png),
        Sample(id="a", image=png, text="blue"),
        Sample(id="b", text="red"),
    ]
    vectors = hue.embed(items)
    assert vectors.shape == (10, 8)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    red, green, blue = hue.embed(["red", "green", "blue"])
    assert (vectors @ red > 0.9).all()
    assert (vectors @ np.stack([green, blue]).T < 0.3).all()


def test_rows_keep_the_order_of_items_whatever_the_batches(hue: Embedder, tmp_path: Path) -> None:
    colours = ["blue", "red", "green", "red", "blue"]
    items = [
        item
        for n, c in enumerate(colours)
        for item in ({"audio": tone(c, 0.1 + 0.05 * n)}, " ".join([c] * (n + 1)), picture(tmp_path / f"{n}.png", c, n))
    ]
    together = hue.embed(items, batch_size=4)
    alone = np.concatenate([hue.embed([item]) for item in items])
    assert np.allclose(together, alone, atol=1e-6)


def test_audio_is_batched_by_length() -> None:
    model = HueModel()
    clips = [{"audio": tone("red", seconds)} for seconds in (0.1, 1.0, 0.11, 0.99, 0.12, 0.98)]
    Embedder((model, HueProcessor()), batch_size=3).embed(clips)
    assert [shape[1] for shape in model.batches] == [960, 8000]


def test_long_clips_make_smaller_batches() -> None:
    model = HueModel()
    Embedder((model, HueProcessor()), batch_size=2).embed([{"audio": tone("red", 14 + n)} for n in range(2)])
    assert [shape[0] for shape in model.batches] == [2]
    Embedder((model, HueProcessor()), batch_size=2).embed([{"audio": tone("red", 16 + n)} for n in range(2)])
    assert [shape[0] for shape in model.batches] == [2, 1, 1]


def test_equal_parts_are_encoded_once() -> None:
    model = HueModel()
    Embedder((model, HueProcessor())).embed(["red", {"text": "red"}, {"text": ["red", "blue"]}])
    assert [shape[0] for shape in model.batches] == [2]


def test_a_fused_query_is_the_weighted_sum_of_unit_vectors(hue: Embedder) -> None:
    red, green, blue = hue.embed(["red", "green", "blue"])
    plain, weighted, negative, several = hue.embed(
        [
            {"text": "red", "audio": tone("green")},
            {"text": "red", "audio": tone("green"), "weights": {"text": 3, "audio": 0.5}},
            {"text": "red", "not": {"text": "blue"}},
            {"text": ["red", "green"], "not": [{"text": "blue"}, "red"], "weights": {"not": 1.0}},
        ]
    )
    heard = hue.embed([{"audio": tone("green")}])[0]
    for got, expected in (
        (plain, red + heard),
        (weighted, 3 * red + 0.5 * heard),
        (negative, red - 0.5 * blue),
        (several, red + green - blue - red),
    ):
        assert np.allclose(got, expected / np.linalg.norm(expected), atol=1e-5)
    by_call = hue.embed([{"text": "red", "audio": tone("green")}], weights={"text": 3, "audio": 0.5})[0]
    assert np.allclose(by_call, weighted, atol=1e-6)


def test_parts_that_cancel_out_are_an_error(hue: Embedder) -> None:
    with pytest.raises(ValueError, match="cancel out"):
        hue.embed([{"text": "red", "not": "red", "weights": {"not": 1}}])


def test_bad_items_are_one_line_errors(hue: Embedder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnot a picture")
    cases = {
        "no such file": {"image": tmp_path / "gone.png"},
        "smell": {"smell": "rose"},
        "broken.png": {"image": tmp_path / "broken.png"},
        "at least one of": {"image": None},
        "expected weights for text, image": {"text": "a", "weights": {"touch": 1}},
        "finite number": {"text": "a", "weights": {"text": float("nan")}},
        "mono clip": {"audio": np.zeros((2, 800), np.float32)},
        "at least 400 samples": {"audio": np.zeros(10, np.float32)},
        "expected text as a str": {"text": 3},
        "got int": 3,
    }
    for message, item in cases.items():
        with pytest.raises(ValueError, match=message) as caught:
            hue.embed(["red", item])
        assert "\n" not in str(caught.value)


def test_bad_items_can_be_skipped_and_are_listed(hue: Embedder, tmp_path: Path) -> None:
    (tmp_path / "broken.png").write_bytes(b"not a picture")
    items = ["red", {"image": tmp_path / "broken.png"}, {"audio": np.zeros(9, np.float32)}, {"smell": 1}, "blue"]
    vectors = hue.embed(items, on_bad="skip")
    assert np.allclose(vectors, hue.embed(["red", "blue"]))
    hue.embed(items, on_bad="skip")
    assert [bad.index for bad in hue.skipped] == [1, 2, 3]
    assert "broken.png" in hue.skipped[0].name
    assert "400 samples" in hue.skipped[1].reason
    assert hue.embed_readable(items).kept == [0, 4]
    with pytest.raises(ValueError, match="'raise' or 'skip'"):
        hue.embed(items, on_bad="ignore")  # type: ignore[arg-type]


def test_one_item_without_a_list_is_an_error(hue: Embedder) -> None:
    with pytest.raises(ValueError, match="wrap it in a list"):
        hue.embed("red")
    assert hue.embed([]).shape == (0, 0)


def test_a_stream_gives_one_vector_per_item(hue: Embedder) -> None:
    colours = ["red", "green", "blue", "red", "red"]
    streamed = np.stack(list(hue.stream((c for c in colours), chunk_size=2)))
    assert np.allclose(streamed, hue.embed(colours))


def test_video_is_the_mean_of_its_frames(hue: Embedder, tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.width = stream.height = 32
        for n in range(16):
            frame = Image.new("RGB", (32, 32), (230, 20, 20) if n < 8 else (20, 20, 230))
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    red, green, blue = hue.embed(["red", "green", "blue"])
    (video,) = hue.embed([path])
    assert video @ red > 0.6
    assert video @ blue > 0.6
    assert video @ green < 0.2
    assert "video" in hue.accepts
    assert "video" not in hue.modalities


def test_clip_directories_embed_text_and_images(clip_dir: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    embedder = Embedder(clip_dir)
    assert embedder.modalities == ("text", "image")
    assert embedder.dim == 12
    image = Image.open(picture(tmp_path / "a.png", "red"))
    texts = ["red", "a very long text " * 20]
    vectors = embedder.embed([*texts, image])
    model = CLIPModel.from_pretrained(clip_dir).eval()
    inputs = embedder._tower.processor(text=["red"], images=[image], return_tensors="pt")
    outputs = model(**inputs)
    assert np.allclose(vectors[0], outputs.text_embeds.detach()[0], atol=1e-5)
    assert np.allclose(vectors[2], outputs.image_embeds.detach()[0], atol=1e-5)
    assert np.allclose(vectors[0], embedder.embed(["red"])[0], atol=1e-5)
    with pytest.raises(ValueError, match="expected text, image, video for this model, got audio"):
        embedder.embed([{"audio": tone("red")}])


def test_siglip_directories_embed_text_padded_to_full_length_and_images(tmp_path: Path) -> None:
    from transformers import SiglipModel

    directory = save_siglip(tmp_path / "siglip")
    embedder = Embedder(directory)
    assert embedder.modalities == ("text", "image")
    image = Image.open(picture(tmp_path / "a.png", "red"))
    vectors = embedder.embed(["red", "a very long text " * 20, image])
    processor = embedder._tower.processor
    inputs = processor(text=["red"], images=[image], padding="max_length", max_length=12, return_tensors="pt")
    outputs = SiglipModel.from_pretrained(directory).eval()(
        input_ids=inputs["input_ids"], pixel_values=inputs["pixel_values"]
    )
    assert np.allclose(vectors[0], outputs.text_embeds.detach()[0], atol=1e-5)
    assert np.allclose(vectors[2], outputs.image_embeds.detach()[0], atol=1e-5)


@pytest.mark.parametrize("fusion", [False, True])
def test_clap_directories_embed_text_and_audio_the_same_every_time(tmp_path: Path, fusion: bool) -> None:
    embedder = Embedder(save_clap(tmp_path, fusion=fusion))
    assert embedder.modalities == ("text", "audio")
    assert embedder.sampling_rate == RATE
    clips = [{"audio": tone("red", seconds)} for seconds in (0.3, 1.7)]
    together = embedder.embed([*clips, "red"])
    alone = np.concatenate([embedder.embed([item]) for item in [*clips, "red"]])
    assert np.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    "pooling",
    [
        {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True},
        {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        {"pooling_mode_max_tokens": True},
        {"pooling_mode_lasttoken": True},
    ],
)
def test_sentence_transformers_directories_pool_as_they_say(tmp_path: Path, pooling: dict[str, object]) -> None:
    import torch
    from transformers import AutoTokenizer, BertModel

    embedder = Embedder(save_sentence_model(tmp_path, pooling))
    texts = ["RED green", "a very long text " * 5, "blue"]
    vectors = embedder.embed(texts)
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), BertModel.from_pretrained(tmp_path).eval()
    for text, vector in zip(texts, vectors, strict=True):
        inputs = tokenizer([text.lower()], truncation=True, max_length=8, return_tensors="pt")
        tokens = model(**inputs).last_hidden_state[0].detach()
        mode = next(name for name, used in pooling.items() if used)
        expected = {
            "pooling_mode_mean_tokens": tokens.mean(0),
            "pooling_mode_cls_token": tokens[0],
            "pooling_mode_max_tokens": tokens.amax(0),
            "pooling_mode_lasttoken": tokens[-1],
        }[mode]
        assert np.allclose(vector, torch.nn.functional.normalize(expected, dim=0), atol=1e-5)


def test_a_sentence_model_with_other_modules_says_what_it_expects(tmp_path: Path) -> None:
    save_sentence_model(tmp_path, {"pooling_mode_mean_tokens": True})
    modules = (tmp_path / "modules.json").read_text().replace("models.Normalize", "models.LSTM")
    (tmp_path / "modules.json").write_text(modules)
    with pytest.raises(ValueError, match="expected modules Transformer, Pooling, Normalize"):
        Embedder(tmp_path)


def test_the_fingerprint_follows_weights_and_config_only(clip_dir: Path, tmp_path: Path) -> None:
    from transformers import CLIPModel

    first = Embedder(clip_dir)
    assert Embedder(clip_dir, dtype="bfloat16").fingerprint == first.fingerprint
    CLIPModel.from_pretrained(clip_dir).save_pretrained(tmp_path)
    again = CLIPModel.from_pretrained(tmp_path)
    processor = first._tower.processor
    assert Embedder((again, processor)).fingerprint == first.fingerprint
    again.text_projection.weight.data.mul_(1.1)
    assert Embedder((again, processor)).fingerprint != first.fingerprint


def test_models_that_cannot_embed_and_wrong_settings_are_refused(clip_dir: Path, tmp_path: Path) -> None:
    import torch

    with pytest.raises(ValueError, match="no such file or directory"):
        Embedder(tmp_path / "nowhere")
    for name in ("nobody/nothing", Path("nobody/nothing")):  # commands pass paths
        with pytest.raises(ValueError, match="no such directory, not in the cache, and the hub was not reached"):
            Embedder(name)
    with pytest.raises(UsageError, match="expected a device of this machine, got 'abacus'; pass --device cpu"):
        Embedder(clip_dir, device="abacus")
    with pytest.raises(ValueError, match="expected a model with get_text_features"):
        Embedder((torch.nn.Linear(2, 2), None))
    with pytest.raises(ValueError, match="expected float32, bfloat16 or int8"):
        Embedder(clip_dir, dtype="int4")
    with pytest.raises(ValueError, match="batch_size"):
        Embedder(clip_dir, batch_size=0)


def test_importing_the_embedder_loads_no_torch() -> None:
    code = "import sys, plait.embedder, plait.cli.search; assert plait.Embedder; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert plait.Embedder is Embedder


def test_one_picture_brings_in_no_package_and_no_family_that_it_has_no_use_for(tmp_path: Path) -> None:
    Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    code = """
import gc, sys, plait
plait.Embedder("nano").embed([{"image": sys.argv[1]}])
assert gc.isenabled(), "collections stay off"
wanted = sorted(sys.modules)
print(*(name for name in wanted if name.split(".")[0] in UNUSED or name.startswith(UNUSED_PARTS)))
"""
    others = {"av", "datasets", "fastapi", "gradio", "lancedb", "pandas", "peft", "pyarrow", "scipy", "sklearn"}
    others |= {"tensorboard", "torchaudio", "torchvision", "webdataset"}  # soundfile comes with transformers
    parts = ["plait.evaluation", "plait.parity", "plait.recipes", "plait.search", "plait.serving", "plait.training"]
    parts += [f"plait.models.{name}" for name in FAMILIES if name != "one_peace"]
    parts += ["transformers.trainer", "transformers.pipelines", "transformers.generation.utils"]
    head = f"UNUSED, UNUSED_PARTS = {others}, {tuple(parts)}\n"
    line = [sys.executable, "-c", head + code, str(tmp_path / "red.png")]
    assert subprocess.run(line, check=True, capture_output=True, text=True).stdout.split() == []


def photograph(path: Path, width: int, height: int, **how: Any) -> Path:
    """A picture of large and small things, as a JPEG file."""
    rng = np.random.default_rng(width)
    parts = [Image.fromarray(rng.integers(0, 256, (rows, rows, 3), dtype=np.uint8)) for rows in (6, 48)]
    coarse, fine = (part.resize((width, height), Image.Resampling.BICUBIC) for part in parts)
    Image.blend(coarse, fine, 0.4).save(path, "JPEG", quality=92, **how)
    return path


@pytest.mark.parametrize(("width", "height"), [(1600, 1200), (700, 2000), (1030, 515)])
def test_large_jpegs_are_shrunk_while_they_are_decoded_and_vectors_stay(tmp_path: Path, width, height, monkeypatch):
    turned = Image.Exif()
    turned[0x0112] = 6
    path = photograph(tmp_path / "large.jpg", width, height, exif=turned)
    shrinking, whole = Embedder("nano"), Embedder("nano", shrink=False)
    sizes: list[tuple[int, int]] = []
    draft = JpegImageFile.draft

    def noted(self: JpegImageFile, mode: str | None, size: tuple[int, int]) -> Any:
        sizes.append(size)
        return draft(self, mode, size)

    monkeypatch.setattr(JpegImageFile, "draft", noted)
    near, exact = shrinking.embed([path]), whole.embed([path])
    assert len(sizes) == 1 and min(sizes[0]) == 2 * shrinking._tower.processor.image_size
    assert float(near[0] @ exact[0]) >= 0.99
    # what is no large JPEG is the same to the last bit
    small = photograph(tmp_path / "small.jpg", 150, 140)
    png = tmp_path / "large.png"
    Image.open(path).save(png)
    assert np.array_equal(shrinking.embed([small, png]), whole.embed([small, png]))


def test_processors_say_how_large_they_want_pictures(clip_dir: Path) -> None:
    tower = Embedder(clip_dir)._tower
    assert tower.loading["image"]["at_least"] == 2 * tower.processor.image_processor.size["shortest_edge"]
    assert "image" not in Embedder((HueModel(), HueProcessor()))._tower.loading


class DeadModel(HueModel):
    """Gives zeros for blue."""

    def _project(self, hues: torch.Tensor) -> torch.Tensor:
        return super()._project(hues) * (hues.argmax(-1, keepdim=True) != 2)


def test_a_vector_without_a_direction_is_an_error() -> None:
    dead = Embedder((DeadModel(), HueProcessor()))
    with pytest.raises(ValueError, match="zeros, which have no direction"):
        dead.embed(["red", "blue"])
    found = dead.embed_readable(["red", "blue"])
    assert found.kept == [0]
    assert "no direction" in found.skipped[0].reason


@pytest.mark.parametrize(("text", "said"), [("bad \ud83d half", "U[+]D83D alone"), ("", "words in it"), (" ", "words")])
def test_half_a_character_and_empty_texts_are_errors(hue: Embedder, text: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        hue.embed([text])
    with pytest.raises(ValueError, match=said):
        hue.embed([{"text": ["red", text]}])
    assert hue.embed(["red", text], on_bad="skip").shape == (1, 8)


def test_a_model_that_embeds_classifies_without_training(hue: Embedder, tmp_path: Path) -> None:
    png = picture(tmp_path / "blue.png", "blue")
    with pytest.raises(ValueError, match="at least one label"):
        hue.classify([png], [])
    rows = hue.classify(["red", "green"], ["red", "green", "blue"])
    assert [row[0][0] for row in rows] == ["red", "green"]
    assert all(sum(share for _, share in row) == pytest.approx(1) for row in rows)


def test_foreign_models_classify_from_the_command_line(
    clip_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(tmp_path / "red.png", "red")
    (tmp_path / "bad.png").write_bytes(b"bad")
    assert main(["classify", str(clip_dir), str(tmp_path / "red.png"), "--labels", "red,blue", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["labels"]
    assert {one["text"] for one in said} == {"red", "blue"}
    assert main(["classify", str(clip_dir), str(tmp_path), "--labels", "red,blue"]) == 1
    assert main(["classify", str(clip_dir), str(tmp_path), "--labels", "red,blue", "--on-bad", "skip"]) == 0
    said = capsys.readouterr()
    assert len(said.out.splitlines()) == 1
    assert "skipped: " in said.err


def test_sounds_longer_than_the_model_takes_come_in_windows_and_are_told() -> None:
    model, processor = plait.load("nano", dtype="float32")
    rate = processor.sampling_rate
    extractor = processor.feature_extractor
    extractor.max_seconds = 1.0
    rng = np.random.default_rng(0)
    long, short = rng.standard_normal(int(2.5 * rate)).astype(np.float32), rng.standard_normal(rate).astype(np.float32)
    embedder = Embedder((model, processor))
    found = embedder.embed([{"audio": long}, {"audio": short}])
    assert list(embedder.windowed.values()) == [3]
    pieces = [long[start : start + rate] for start in (0, int(0.75 * rate), int(1.5 * rate))]
    mean = embedder.embed([{"audio": one} for one in pieces]).mean(0)
    np.testing.assert_allclose(found[0], mean / np.linalg.norm(mean), atol=1e-6)
    np.testing.assert_allclose(found[1], embedder.embed([{"audio": short}])[0], atol=1e-6)
    cut = Embedder((model, processor), long_sounds="cut")
    with torch.inference_mode():
        wanted = model.get_audio_features(**processor(audio=[long], sampling_rate=rate)).numpy()
    np.testing.assert_allclose(cut.embed([{"audio": long}]), wanted, atol=1e-6)
    assert cut.windowed is None and not np.allclose(found[0], wanted[0], atol=1e-3)
    with pytest.raises(ValueError, match="expected long_sounds windows or cut, got 'none'"):
        Embedder((model, processor), long_sounds="none")
