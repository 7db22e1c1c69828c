"""Tiny models for embedding tests: one that knows three colours in words, pictures and tones, and random CLIP-likes."""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

RATE = 8000
TONES = {"red": 440.0, "green": 880.0, "blue": 1760.0}
COLOURS = {"red": (230, 20, 20), "green": (20, 200, 20), "blue": (20, 20, 230)}
WORDS = list(COLOURS)


class HueModel(nn.Module):
    """Colour words, mean colour and tone energy in one space; follows the contract of Plait's models."""

    modalities = ("text", "image", "audio")

    def __init__(self, seed: int = 0, delay: float = 0.0) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(seed))).Q
        self.projection = nn.Parameter(basis[:3])
        tones = torch.arange(400) / RATE * 2 * torch.pi
        self.register_buffer("waves", torch.stack([torch.sin(tones * f) for f in TONES.values()]))
        self.delay = delay
        self.batches: list[tuple[int, ...]] = []

    def _project(self, hues: Tensor) -> Tensor:
        time.sleep(self.delay)
        return nn.functional.normalize(hues @ self.projection, dim=-1)

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """input_ids: (batch, seq), index of the colour + 1."""
        self.batches.append(tuple(input_ids.shape))
        hues = nn.functional.one_hot(input_ids, 4)[..., 1:].float() * attention_mask[..., None]
        return self._project(hues.sum(1) + 1e-3)

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """pixel_values: (batch, 3, 8, 8)."""
        self.batches.append(tuple(pixel_values.shape))
        return self._project(pixel_values.mean((2, 3)) ** 2 + 1e-3)

    def get_audio_features(self, input_values: Tensor, attention_mask: Tensor) -> Tensor:
        """input_values: (batch, samples)."""
        self.batches.append(tuple(input_values.shape))
        if input_values.shape[1] < 400:
            raise ValueError("expected at least 400 samples")
        return self._project((input_values[:, :400] @ self.waves.T).abs() + 1e-3)


class HueProcessor:
    """Words, pictures and clips -> the inputs of `HueModel`."""

    sampling_rate = RATE

    def __call__(
        self,
        text: list[str] | None = None,
        images: list[Image.Image] | None = None,
        audio: list[np.ndarray] | None = None,
    ) -> dict[str, Tensor]:
        if text is not None:
            rows = [torch.tensor([WORDS.index(w) + 1 for w in t.split() if w in WORDS] or [0]) for t in text]
            ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
            return {"input_ids": ids, "attention_mask": (ids > 0).long()}
        if images is not None:
            arrays = [np.asarray(image.convert("RGB").resize((8, 8)), np.float32) / 255 for image in images]
            return {"pixel_values": torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)}
        assert audio is not None
        clips = [torch.from_numpy(np.asarray(clip, np.float32)) for clip in audio]
        values = nn.utils.rnn.pad_sequence(clips, batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones(len(clip)) for clip in clips], batch_first=True)
        return {"input_values": values, "attention_mask": mask}


def tone(colour: str, seconds: float = 0.2, rate: int = RATE) -> np.ndarray:
    """The tone that stands for a colour: float32 (samples,)."""
    return np.sin(2 * np.pi * TONES[colour] * np.arange(int(seconds * rate)) / rate).astype(np.float32)


def picture(path: Path, colour: str, seed: int = 0) -> Path:
    """A noisy 16 x 16 picture of one colour; equal seeds give equal files."""
    noise = np.random.default_rng(seed).integers(-18, 18, (16, 16, 3))
    Image.fromarray(np.clip(np.array(COLOURS[colour]) + noise, 0, 255).astype(np.uint8)).save(path)
    return path


def _word_tokenizer(names: dict[str, str]) -> object:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocab = {name: n for n, name in enumerate([*names.values(), "red", "green", "blue", "a", "very", "long", "text"])}
    backend = Tokenizer(models.WordLevel(vocab, unk_token=names["unk_token"]))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    first, last = names["bos_token"], names["eos_token"]
    backend.post_processor = processors.TemplateProcessing(
        single=f"{first} $A {last}", special_tokens=[(first, vocab[first]), (last, vocab[last])]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=16, **names)


SPECIAL = {"pad_token": "<pad>", "unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}


def save_clip(directory: Path, seed: int = 0) -> Path:
    """A random CLIP of 12 dimensions as a model directory."""
    from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPProcessor

    torch.manual_seed(seed)
    common = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config={**common, "vocab_size": 16, "max_position_embeddings": 16, "eos_token_id": 3, "bos_token_id": 2},
        vision_config={**common, "image_size": 16, "patch_size": 8},
        projection_dim=12,
    )
    CLIPModel(config).save_pretrained(directory)
    size = {"height": 16, "width": 16}
    images = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=size)
    CLIPProcessor(images, _word_tokenizer(SPECIAL)).save_pretrained(directory)
    return directory


def save_siglip(directory: Path) -> Path:
    """A random SigLIP of 16 dimensions as a model directory."""
    from transformers import SiglipConfig, SiglipImageProcessorPil, SiglipModel, SiglipProcessor

    torch.manual_seed(0)
    common = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = SiglipConfig(
        text_config={**common, "vocab_size": 16, "max_position_embeddings": 12, "projection_size": 16},
        vision_config={**common, "image_size": 16, "patch_size": 8},
    )
    SiglipModel(config).save_pretrained(directory)
    images = SiglipImageProcessorPil(size={"height": 16, "width": 16})
    SiglipProcessor(images, _word_tokenizer(SPECIAL)).save_pretrained(directory)
    return directory


def save_clap(directory: Path, *, fusion: bool) -> Path:
    """A random CLAP of 12 dimensions as a model directory."""
    from transformers import ClapConfig, ClapFeatureExtractor, ClapModel, ClapProcessor

    torch.manual_seed(0)
    config = ClapConfig(
        text_config={
            "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
            "vocab_size": 16, "max_position_embeddings": 24, "projection_dim": 12, "pad_token_id": 0,
        },
        audio_config={
            "spec_size": 64, "num_mel_bins": 16, "patch_size": 4, "patch_stride": [4, 4], "patch_embeds_hidden_size": 8,
            "depths": [1, 1], "num_attention_heads": [1, 2], "hidden_size": 16, "window_size": 4, "projection_dim": 12,
            "num_classes": 4, "enable_fusion": fusion,
        },
        projection_dim=12,
    )  # fmt: skip
    ClapModel(config).save_pretrained(directory)
    extractor = ClapFeatureExtractor(
        feature_size=16, sampling_rate=RATE, max_length_s=1, fft_window_size=128, hop_length=32, frequency_max=4000,
        truncation="fusion" if fusion else "rand_trunc",
    )  # fmt: skip
    ClapProcessor(extractor, _word_tokenizer(SPECIAL)).save_pretrained(directory)
    return directory


def save_sentence_model(directory: Path, pooling: dict[str, object]) -> Path:
    """A random BERT of 16 dimensions in the layout of sentence-transformers."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=16, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=16,
    )  # fmt: skip
    BertModel(config).save_pretrained(directory)
    _word_tokenizer(SPECIAL).save_pretrained(directory)  # type: ignore[attr-defined]
    package = "sentence_transformers.models"
    modules = [("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize")]
    rows = [
        {"idx": n, "name": str(n), "path": path, "type": f"{package}.{kind}"} for n, (path, kind) in enumerate(modules)
    ]
    (directory / "modules.json").write_text(json.dumps(rows))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 8, "do_lower_case": True}))
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 16, **pooling}))
    return directory
