"""Tiny random peers in model directories: LLaVA, BLIP-2, CLIP, CLAP, a language model, classifiers, a detector."""

from __future__ import annotations

import json
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.models.yolos.image_processing_pil_yolos import YolosImageProcessorPil

SPECIAL = ["<pad>", "<unk>", "<s>", "</s>", "<image>"]
SIZE = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SIZE | {"image_size": 8, "patch_size": 4}
IDS = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
POSITIONS = 4096


def letters_tokenizer() -> tf.PreTrainedTokenizerFast:
    """One token per printable character."""
    vocabulary = {word: i for i, word in enumerate([*SPECIAL, *string.printable])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"<image>|[\s\S]"), "isolated")
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )


VOCABULARY = len(SPECIAL) + len(string.printable)


def pixels() -> CLIPImageProcessorPil:
    return CLIPImageProcessorPil(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})


def llama() -> tf.LlamaConfig:
    return tf.LlamaConfig(
        **SIZE, **IDS, num_key_value_heads=2, vocab_size=VOCABULARY, max_position_embeddings=POSITIONS
    )


def llava(place: Path) -> None:
    vision = tf.CLIPVisionConfig(**VISION)
    config = tf.LlavaConfig(vision_config=vision, text_config=llama(), image_token_index=4, vision_feature_layer=-1)
    save(tf.LlavaForConditionalGeneration(config), place)
    tf.LlavaProcessor(
        pixels(),
        letters_tokenizer(),
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
    ).save_pretrained(place)


def blip2(place: Path) -> None:
    text = tf.OPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        ffn_dim=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        word_embed_proj_dim=8,
        max_position_embeddings=POSITIONS,
        **IDS,
    )
    config = tf.Blip2Config(
        vision_config=tf.Blip2VisionConfig(**VISION),
        qformer_config=tf.Blip2QFormerConfig(**SIZE, encoder_hidden_size=8, vocab_size=8),
        text_config=text,
        num_query_tokens=2,
        image_token_index=4,
    )
    save(tf.Blip2ForConditionalGeneration(config), place)
    picture = BlipImageProcessorPil(size={"height": 8, "width": 8})
    tf.Blip2Processor(picture, letters_tokenizer(), num_query_tokens=2).save_pretrained(place)


def clip(place: Path) -> None:
    text = SIZE | IDS | {"vocab_size": VOCABULARY, "max_position_embeddings": 256}
    save(tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=VISION, projection_dim=8)), place)
    tf.CLIPProcessor(pixels(), letters_tokenizer()).save_pretrained(place)


def clap(place: Path) -> None:
    audio = {
        "spec_size": 64,
        "num_mel_bins": 16,
        "patch_stride": [4, 4],
        "patch_embeds_hidden_size": 8,
        "depths": [1, 1],
        "num_attention_heads": [1, 2],
        "hidden_size": 16,
        "window_size": 4,
        "projection_dim": 8,
        "num_classes": 4,
    }
    text = SIZE | {"vocab_size": VOCABULARY, "max_position_embeddings": 256, "pad_token_id": 0, "projection_dim": 8}
    save(tf.ClapModel(tf.ClapConfig(text_config=text, audio_config=audio, projection_dim=8)), place)
    extractor = tf.ClapFeatureExtractor(
        feature_size=16,
        sampling_rate=8000,
        max_length_s=1,
        fft_window_size=128,
        hop_length=32,
        frequency_max=4000,
        truncation="rand_trunc",
    )
    tf.ClapProcessor(extractor, letters_tokenizer()).save_pretrained(place)


def language(place: Path) -> None:
    save(tf.LlamaForCausalLM(llama()), place)
    letters_tokenizer().save_pretrained(place)


def texts(place: Path, classes: int) -> None:
    config = tf.BertConfig(**SIZE, vocab_size=VOCABULARY, num_labels=classes, max_position_embeddings=256)
    save(tf.BertForSequenceClassification(config), place)
    letters_tokenizer().save_pretrained(place)


def sentence(place: Path) -> None:
    """A directory of sentence-transformers: a transformer and mean pooling."""
    config = tf.BertConfig(**SIZE, vocab_size=VOCABULARY, max_position_embeddings=256)
    save(tf.BertModel(config), place)
    letters_tokenizer().save_pretrained(place)
    (place / "1_Pooling").mkdir()
    pooling = {"word_embedding_dimension": 8, "pooling_mode_mean_tokens": True}
    (place / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    modules(place, Transformer="", Pooling="1_Pooling")


def sentence_clip(place: Path) -> None:
    """CLIP as sentence-transformers keeps it."""
    clip(place / "0_CLIPModel")
    modules(place, CLIPModel="0_CLIPModel")


def modules(place: Path, **parts: str) -> None:
    """The list of modules of a sentence-transformers directory: name -> folder."""
    rows = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{name}"}
        for i, (name, path) in enumerate(parts.items())
    ]
    (place / "modules.json").write_text(json.dumps(rows))


def pictures(place: Path) -> None:
    save(tf.ViTForImageClassification(tf.ViTConfig(**VISION, num_labels=6)), place)
    ViTImageProcessorPil(size={"height": 8, "width": 8}).save_pretrained(place)


def videos(place: Path) -> None:
    from transformers.models.videomae.image_processing_pil_videomae import VideoMAEImageProcessorPil

    config = tf.VideoMAEConfig(**VISION, num_frames=2, tubelet_size=1, num_labels=6)
    save(tf.VideoMAEForVideoClassification(config), place)
    size = {"height": 8, "width": 8}
    VideoMAEImageProcessorPil(size={"shortest_edge": 8}, crop_size=size).save_pretrained(place)


def sounds(place: Path, classes: int) -> None:
    """A head of the kind that transformers calls ForSequenceClassification although it hears."""
    layers = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (10, 8), "num_conv_pos_embeddings": 4}
    config = tf.Wav2Vec2Config(
        **SIZE, **layers, num_feat_extract_layers=2, num_conv_pos_embedding_groups=2, num_labels=classes,
        classifier_proj_size=8, vocab_size=8, problem_type="multi_label_classification" if classes > 6 else None,
    )  # fmt: skip
    save(tf.Wav2Vec2ForSequenceClassification(config), place)
    tf.Wav2Vec2FeatureExtractor(sampling_rate=8000).save_pretrained(place)


def detector(place: Path) -> None:
    config = tf.YolosConfig(
        **(VISION | {"image_size": [16, 16]}), num_detection_tokens=3, id2label={0: "dog", 1: "bowl"}
    )
    save(tf.YolosForObjectDetection(config), place)
    YolosImageProcessorPil(size={"height": 16, "width": 16}, do_pad=False).save_pretrained(place)


def segmenter(place: Path) -> None:
    config = tf.SegformerConfig(
        num_encoder_blocks=2,
        depths=[1, 1],
        sr_ratios=[1, 1],
        hidden_sizes=[8, 8],
        patch_sizes=[3, 3],
        strides=[2, 2],
        num_attention_heads=[1, 1],
        mlp_ratios=[1, 1],
        decoder_hidden_size=8,
        num_labels=150,
    )
    save(tf.SegformerForSemanticSegmentation(config), place)
    SegformerImageProcessorPil(size={"height": 16, "width": 16}).save_pretrained(place)


def redraw(model: Any) -> None:
    """Draw every weight anew, larger than a library would, so that inputs matter."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.5)


def save(model: Any, place: Path) -> None:
    """Redraw and save."""
    redraw(model)
    model.save_pretrained(place)


BUILDERS: dict[str, Callable[[Path], None]] = {
    "llava": llava,
    "blip2": blip2,
    "clip": clip,
    "clap": clap,
    "language": language,
    "sentence": sentence,
    "sentence_clip": sentence_clip,
    "texts2": lambda place: texts(place, 2),
    "texts3": lambda place: texts(place, 3),
    "texts1": lambda place: texts(place, 1),
    "pictures": pictures,
    "videos": videos,
    "sounds": lambda place: sounds(place, 6),
    "tags": lambda place: sounds(place, 200),
    "detector": detector,
    "segmenter": segmenter,
}
