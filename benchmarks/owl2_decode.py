"""What the second way costs: mPLUG-Owl2's decoder against transformers' Llama of the same size and the same weights.

A decoding step behind a prompt with an image (only the text way may run), and the prefill of prompts with images
between words. sdpa, fp32, one thread; vision is left out of both arms.
"""

from __future__ import annotations

import torch
from measure import compare, interleaved, milliseconds, write
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from plait.models.mplug_owl2.config import AbstractorConfig, MPlugOwl2Config, VisionConfig
from plait.models.mplug_owl2.model import MPlugOwl2ForConditionalGeneration

DIM, LAYERS, HEADS, HIDDEN, VOCAB, ROUNDS = 768, 12, 12, 2048, 8192, 60
ROWS, IMAGE_TOKENS, TEXT_TOKENS = 2, 65, 127


def models() -> tuple[MPlugOwl2ForConditionalGeneration, LlamaForCausalLM]:
    """Both decoders with the same weights in the text way."""
    small_vision = VisionConfig(dim=64, num_heads=4, num_layers=1, mlp_dim=64, image_size=28, patch_size=14)
    reader = AbstractorConfig(num_queries=IMAGE_TOKENS - 1, num_heads=4, num_layers=1, mlp_dim=64, grid_size=2)
    config = MPlugOwl2Config(
        vocab_size=VOCAB, dim=DIM, num_layers=LAYERS, num_heads=HEADS, mlp_dim=HIDDEN,
        vision=small_vision, abstractor=reader, eos_token_id=None,
    )  # fmt: skip
    owl = MPlugOwl2ForConditionalGeneration(config).eval()
    llama = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=DIM,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=HIDDEN,
            rms_norm_eps=config.eps,
            eos_token_id=None,
        )
    ).eval()
    names = {"input_layernorm": "attn_norm", "post_attention_layernorm": "mlp_norm", "self_attn": "attn"}
    routed = ("attn_norm", "mlp_norm", "attn.k_proj", "attn.v_proj")
    state = owl.state_dict()
    for key, value in llama.state_dict().items():
        ours = key.replace("model.layers.", "model.decoder.layers.").replace("model.norm", "model.decoder.norm")
        ours = ours.replace("embed_tokens", "token_embedding")
        for theirs, name in names.items():
            ours = ours.replace(f".{theirs}.", f".{name}.")
        if any(f".{part}." in ours for part in routed):
            ours = ours.removesuffix("weight") + "text.weight"
        state[ours].copy_(value)
    for model in (owl, llama):
        model.set_attn_implementation("sdpa")
    return owl, llama


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    owl, llama = models()
    embeds = torch.randn(ROWS, IMAGE_TOKENS + TEXT_TOKENS, DIM)
    ids = torch.zeros(ROWS, IMAGE_TOKENS + TEXT_TOKENS, dtype=torch.long)
    for row in range(ROWS):
        ids[row, 9 + row : 9 + row + IMAGE_TOKENS] = 1  # the image stands elsewhere in every row
    text = torch.randint(0, VOCAB, (ROWS, 40))
    torch.testing.assert_close(owl(text).logits, llama(text).logits)

    prefill = interleaved(
        {
            "owl2": lambda: owl(inputs_embeds=embeds, modality_ids=ids, use_cache=True, logits_to_keep=1),
            "llama": lambda: llama(inputs_embeds=embeds, use_cache=True, logits_to_keep=1),
        },
        ROUNDS,
    )
    caches = {"owl2": DynamicCache(), "llama": DynamicCache()}
    owl(inputs_embeds=embeds[:1], modality_ids=ids[:1], cache=caches["owl2"], use_cache=True)
    llama(inputs_embeds=embeds[:1], cache=caches["llama"], use_cache=True)
    token = text[:1, :1]
    decode = interleaved(
        {
            "owl2": lambda: owl(token, cache=caches["owl2"], use_cache=True),
            "llama": lambda: llama(token, cache=caches["llama"], use_cache=True),
        },
        ROUNDS,
    )
    sizes = {"dim": DIM, "layers": LAYERS, "heads": HEADS, "hidden": HIDDEN, "vocabulary": VOCAB, "dtype": "float32"}
    write(
        "owl2_decode",
        {
            "pairs": ROUNDS,
            "sizes": sizes,
            "decode": {
                "batch": 1,
                "keys_before": IMAGE_TOKENS + TEXT_TOKENS,
                "owl2_over_llama": compare(decode, "owl2", "llama"),
                "cpu_milliseconds": milliseconds(decode),
                "bar": 1.03,
            },
            "prefill": {
                "batch": ROWS,
                "image_tokens": IMAGE_TOKENS,
                "text_tokens": TEXT_TOKENS,
                "owl2_over_llama": compare(prefill, "owl2", "llama"),
                "cpu_milliseconds": milliseconds(prefill),
                "bar": 1.08,
            },
        },
    )


if __name__ == "__main__":
    main()
