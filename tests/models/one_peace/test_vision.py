"""Pictures and clips with heads of their own: transformers' contract, official names, and what is fresh."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoModelForVideoClassification

import plait
from plait.models.one_peace import (
    OnePeaceBackbone,
    OnePeaceConfig,
    OnePeaceForUniversalSegmentation,
    OnePeaceImageClassifier,
    OnePeaceProcessor,
    OnePeaceVideoClassifier,
    from_official,
)
from plait.weights.files import read_checkpoint

FIELDS = {"modalities": ["image"], "norm_ways": {}, "use_projections": False, "num_classes": 3, "dim": 32,
          "num_heads": 2, "mlp_dim": 48}  # fmt: skip
OFFICIAL = {"attention_heads": 2, "bucket_size": 4, "embed_dim": 32, "ffn_embed_dim": 48, "layers": 4,
            "shared_rp_bias": True, "num_classes": 3}  # fmt: skip


@pytest.fixture(scope="module")
def clips() -> OnePeaceVideoClassifier:
    torch.manual_seed(0)
    model = OnePeaceVideoClassifier(OnePeaceConfig.preset("nano", **{**FIELDS, "num_frames": 2}))
    return model.eval()


def stirred(model: torch.nn.Module) -> torch.nn.Module:
    """The model with every fresh zero drawn, so that every parameter matters."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    return model


def test_fresh_adapters_leave_frames_alone_and_trained_ones_see_time(clips: OnePeaceVideoClassifier) -> None:
    torch.manual_seed(0)
    assert not clips.time_embedding.any() and not clips.adapters[0].time.up.weight.any()
    video = torch.rand(1, 2, 3, 64, 64)
    model = stirred(OnePeaceVideoClassifier(clips.config)).eval()
    with torch.no_grad():
        there, back = clips.get_video_features(video), clips.get_video_features(video.flip(1))
        torch.testing.assert_close(there, back)  # frames apart, averaged
        there, back = model.get_video_features(video), model.get_video_features(video.flip(1))
    assert (there - back).abs().max() > 1e-3 and there.norm().item() == pytest.approx(1, rel=1e-5)


def test_a_saved_clip_model_answers_the_same_and_names_clips(clips: OnePeaceVideoClassifier, tmp_path: Path) -> None:
    clips.config.id2label = {0: "runs", 1: "walks", 2: "sits"}
    model = stirred(OnePeaceVideoClassifier(clips.config)).eval()
    model.save_pretrained(tmp_path)
    OnePeaceProcessor.from_config(model.config).save_pretrained(tmp_path)
    video = torch.rand(2, 2, 3, 64, 64)
    with torch.no_grad():
        wanted = model(pixel_values=video, labels=torch.tensor([0, 2]))
        loaded, _ = plait.load(tmp_path)
        assert isinstance(loaded, OnePeaceVideoClassifier) and torch.equal(loaded(video).logits, wanted.logits)
        theirs = AutoModelForVideoClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(theirs(video).logits, wanted.logits) and wanted.loss.isfinite()
    assistant = plait.Assistant(tmp_path, device="cpu")
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    (best, *_) = assistant.classify(tuple(frames))
    assert best.text in ("runs", "walks", "sits")
    with pytest.raises(ValueError, match=r"expected 2 frames, got 3; sample as many"):
        model(pixel_values=torch.rand(1, 3, 3, 64, 64))
    with pytest.raises(ValueError, match=r"expected config.num_frames for a model of videos, got 0"):
        OnePeaceVideoClassifier(OnePeaceConfig.preset("nano", **FIELDS))


@pytest.mark.slow
def test_clips_are_found_by_clips(clips: OnePeaceVideoClassifier, tmp_path: Path) -> None:
    pytest.importorskip("lancedb")
    model = stirred(OnePeaceVideoClassifier(clips.config)).eval()
    model.save_pretrained(tmp_path / "model")
    OnePeaceProcessor.from_config(model.config).save_pretrained(tmp_path / "model")
    av = pytest.importorskip("av")
    films, colours = tmp_path / "films", ("red", "blue", "green")
    films.mkdir()
    for number, colour in enumerate(colours):
        frames = [Image.new("RGB", (64, 48), colour) for _ in range(6)]
        frames[number].paste("white", (5, 5, 30, 30))
        with av.open(str(films / f"{colour}.mp4"), "w") as film:
            stream = film.add_stream("mpeg4", rate=10)
            stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
            for frame in [*map(av.VideoFrame.from_image, frames), None]:
                film.mux(stream.encode(frame))
    frames[0].save(films / "still.png")
    embedder = plait.Embedder(tmp_path / "model", device="cpu")
    assert embedder.modalities == embedder.accepts == ("video",) and embedder.dim == 32
    index = plait.Index.create(tmp_path / "index", embedder)
    added = index.add(films)
    assert len(index) == 3, added
    for colour in colours:
        (best, *_) = index.search({"video": films / f"{colour}.mp4"}, k=2)
        assert best.path.endswith(f"{colour}.mp4") and best.score == pytest.approx(1, abs=1e-4)
    with pytest.raises(ValueError, match="expected"):
        index.search("a red film")


def test_films_of_several_clips_are_the_mean_of_these(clips: OnePeaceVideoClassifier) -> None:
    processor = OnePeaceProcessor.from_config(clips.config)
    frames = [Image.new("RGB", (80, 64), colour) for colour in ("red", "blue", "green", "white")]
    film = processor(videos=frames)["pixel_values"]
    assert film.shape == (1, 4, 3, 64, 64) and processor(videos=[frames, frames])["pixel_values"].shape[0] == 2
    with torch.no_grad():
        both = torch.stack([clips.pooled(clips.frames(part.transpose(1, 2))) for part in film.split(2, dim=1)])
        wanted = torch.nn.functional.normalize(both.mean(0), dim=-1)
        torch.testing.assert_close(clips.get_video_features(film), wanted)
        with pytest.raises(ValueError, match=r"expected clips of 2 frames, got 3 frames"):
            clips.get_video_features(film[:, :3])
    with pytest.raises(ValueError, match=r"expected films of equally many frames, got 4, 2"):
        processor(videos=[frames, frames[:2]])
    with pytest.raises(ValueError, match=r"expected images or videos, got both"):
        processor(images=frames[0], videos=frames)


def official(model: torch.nn.Module, rules: object, tmp_path: Path, **fields: object) -> torch.nn.Module:
    """What the public door makes of an official file of this model."""
    state = {key: value.clone() for key, value in rules.backward(model.state_dict()).items()}
    save_file(state, tmp_path / "file.safetensors")
    checkpoint = replace(read_checkpoint(tmp_path / "file.safetensors"), config=OFFICIAL | fields)
    return from_official(checkpoint)[0]


def test_files_of_all_heads_open(clips: OnePeaceVideoClassifier, tmp_path: Path) -> None:
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 64, 64)
    config = OnePeaceConfig.preset("nano", **FIELDS)
    picture = stirred(OnePeaceImageClassifier(config)).eval()
    with torch.no_grad():
        again = official(picture, picture.key_map(), tmp_path)
        assert torch.equal(again(pixels).logits, picture(pixels).logits)
        again = official(clips, clips.key_map(), tmp_path, num_frames=2)
        assert isinstance(again, OnePeaceVideoClassifier) and torch.equal(again.head.weight, clips.head.weight)
        sizes = {"window": 2, "windowed": [0, 2]}
        backbone = stirred(OnePeaceBackbone(OnePeaceConfig.preset("nano", **{**FIELDS, "detection": sizes}))).eval()
        fields = {"window_size": 2, "window_block_indexes": [0, 2]}
        again = official(backbone.net, backbone.net.key_map(), tmp_path, **fields)
        assert isinstance(again, OnePeaceBackbone)
        assert torch.equal(again(pixels).feature_maps[0], backbone(pixels).feature_maps[0])
        groups = [[0, 0], [1, 1], [2, 2], [3, 3]]
        adapted = {"groups": groups, "stem_channels": 4, "num_heads": 2}
        backbone = OnePeaceBackbone(
            OnePeaceConfig.preset("nano", **{**FIELDS, "per_layer_bias": True, "segmentation": adapted})
        ).eval()
        fields = {"conv_inplane": 4, "deform_num_heads": 2, "interaction_indexes": groups, "shared_rp_bias": False}
        again = official(backbone.net, backbone.net.key_map(), tmp_path, **fields)
        assert len(again(pixels).feature_maps) == 4 and not isinstance(again, OnePeaceForUniversalSegmentation)
        for one, other in zip(again(pixels).feature_maps, backbone(pixels).feature_maps, strict=True):
            assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"expected the settings of a vision model beside its file, got none"):
        from_official(read_checkpoint(tmp_path / "file.safetensors"))
