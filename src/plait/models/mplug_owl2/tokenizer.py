"""Tokenizers of the published models, rebuilt from their own files with today's tokenizers library.

tokenizer.model (SentencePiece, Llama) | qwen.tiktoken (Qwen) -> PreTrainedTokenizerFast
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def llama_tokenizer(directory: str | Path) -> Any:
    """The Llama tokenizer of a directory with tokenizer.model, as the published models were trained with it.

    Every piece of text starts with bos, also has a space put in front behind special tokens (the behaviour of
    transformers 4.31, "legacy"), padding on the left with unk.
    """
    from tokenizers import pre_tokenizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    backend = LlamaTokenizer.from_pretrained(str(directory)).backend_tokenizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=False)
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
    )


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

        return PreTrainedTokenizerFast.from_pretrained(directory)
    if (directory / "tokenizer.model").exists():
        return llama_tokenizer(directory)
    return qwen_tokenizer(directory) if (directory / "qwen.tiktoken").exists() else None
