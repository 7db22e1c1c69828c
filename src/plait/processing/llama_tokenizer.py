"""The SentencePiece tokenizer of LLaMA as the Owl models were trained with it, with today's tokenizers library.

tokenizer.model -> PreTrainedTokenizerFast that puts a space in front of every piece of text
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def llama_tokenizer(directory: str | Path, *, add_bos: bool = True) -> Any:
    """The Llama tokenizer of a directory with tokenizer.model, padding on the left with unk.

    add_bos: start every piece of text with bos. Text behind special tokens gets its space in front too (the behaviour
    of transformers 4.31, "legacy"), and text that begins with a space gets another one.
    """
    from tokenizers import normalizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    backend = LlamaTokenizer.from_pretrained(str(directory), trust_remote_code=False).backend_tokenizer
    # Metaspace puts no space in front of one, as SentencePiece does
    backend.pre_tokenizer = None
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    start = [("<s>", backend.token_to_id("<s>"))] if add_bos else []
    single = "<s> $A" if add_bos else "$A"
    backend.post_processor = processors.TemplateProcessing(single=single, special_tokens=start)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        pad_token="<unk>",
        padding_side="left",
    )
