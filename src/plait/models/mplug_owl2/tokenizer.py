"""Tokenizers of the published models, rebuilt from their own files with today's tokenizers library.

tokenizer.model (SentencePiece, Llama) | qwen.tiktoken (Qwen) -> PreTrainedTokenizerFast
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from plait.processing.llama_tokenizer import llama_tokenizer

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def qwen_tokenizer(directory: str | Path) -> Any:
    """The Qwen tokenizer of a directory with qwen.tiktoken: no bos, `<|endoftext|>` ends and pads."""
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    backend = TikTokenConverter(
        str(Path(directory) / "qwen.tiktoken"), pattern=QWEN_PATTERN, extra_special_tokens=list(QWEN_SPECIAL)
    ).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=QWEN_SPECIAL[0], pad_token=QWEN_SPECIAL[0], padding_side="left"
    )


def find_tokenizer(directory: Path) -> Any:
    """The tokenizer that lies in a model directory, None where there is none."""
    if (directory / "tokenizer.json").exists():
        from transformers import PreTrainedTokenizerFast

        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    if (directory / "tokenizer.model").exists():
        return llama_tokenizer(directory)
    return qwen_tokenizer(directory) if (directory / "qwen.tiktoken").exists() else None
