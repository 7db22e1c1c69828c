"""The peer of the leaderboard: a small CLIP of transformers, trained on plait-mini's training drawings alone.

    plait data build mini --shipped --out data/mini
    python docs/leaderboard/train_clip.py data/mini clip-mini
    plait eval mini_pictures hf:clip-mini --data data/mini

Drawings with a name or keyword each, symmetric InfoNCE, random shifts and mirror images; minutes on two CPU cores.
"""

from __future__ import annotations

import math
import random
import sys
from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from plait.data.manifest import read_manifest

SIDE, EPOCHS, BATCH, RATE = 64, 120, 128, 1e-3
SPECIAL = ["<pad>", "<s>", "</s>"]
LAYERS = {"hidden_size": 128, "intermediate_size": 384, "num_attention_heads": 4}


def tokenizer_of(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-pair merges learnt from the training texts."""
    backend = Tokenizer(models.BPE())
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.ByteLevel()
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=2000, special_tokens=SPECIAL, initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="<pad>", bos_token="<s>", eos_token="</s>")


def shifted(pixels: torch.Tensor) -> torch.Tensor:
    """Every picture (3, side, side) moved by up to four pixels, and half of them mirrored."""
    pixels = pixels.roll((random.randint(-4, 4), random.randint(-4, 4)), (1, 2))
    return pixels.flip(2) if random.random() < 0.5 else pixels


def main(data: Path, out: Path) -> None:
    """Train and save."""
    random.seed(0)
    torch.manual_seed(0)
    rows = [row for row in read_manifest(data / "manifest.jsonl") if row.split == "train" and row.image is not None]
    words = [[text for text in (row.text, *(row.captions or [])) if text] for row in rows]
    reader = CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    pictures = [Image.open(data / str(row.image)).convert("RGB") for row in rows]
    pixels = torch.as_tensor(reader(pictures, return_tensors="pt")["pixel_values"])
    tokenizer = tokenizer_of([text for texts in words for text in texts])
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    text = LAYERS | ids | {"num_hidden_layers": 2, "vocab_size": len(tokenizer), "max_position_embeddings": 32}
    vision = LAYERS | {"num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=128)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.1)
    steps = EPOCHS * math.ceil(len(rows) / BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for epoch in range(EPOCHS):
        order = torch.randperm(len(rows)).tolist()
        for start in range(0, len(rows), BATCH):
            chosen = order[start : start + BATCH]
            said = [words[i][0] if random.random() < 0.5 else random.choice(words[i]) for i in chosen]
            inputs = tokenizer(said, padding=True, truncation=True, max_length=32, return_tensors="pt")
            seen = torch.stack([shifted(pixels[i]) for i in chosen])
            ids_of, mask = inputs["input_ids"], inputs["attention_mask"]
            loss = model(input_ids=ids_of, attention_mask=mask, pixel_values=seen, return_loss=True).loss
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
        if epoch % 10 == 9:
            print(f"epoch {epoch + 1}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(out)
    CLIPProcessor(reader, tokenizer).save_pretrained(out)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
