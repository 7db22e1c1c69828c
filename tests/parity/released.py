"""What the released code does and Plait has no use for: samples, prompts, groups and orders that golden cases hold."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from plait.models.mplug_owl.conversation import AI, HUMAN, IMAGE
from plait.models.mplug_owl.model import IMAGE_RUN
from plait.processing.talking import Encode

DEMO_SYSTEM = (
    "The following is a conversation between a curious human and AI. "
    "The AI gives helpful, detailed, and polite answers to the human's questions."
)


def demo_prompt(messages: Sequence[tuple[str, str | None]], *, official: bool = False) -> tuple[str, str]:
    """The demo's messages as its template writes them and as the model gets them.

    Args:
        messages: (role, text or None), None where the answer is asked for.
        official: keep one image of several in a line, as the released demo does, which so loses frames of videos.

    Returns:
        The template's text, and the prompt with every placeholder in a line ahead of its message.

    Source:
        Specification mPLUG-Owl, section 8.
    """
    raw = f"{DEMO_SYSTEM}\n"
    for role, text in messages:
        raw += f"{role}: {text}\n" if text else f"{role}:"
    lines = []
    for line in raw.replace(f"\n{IMAGE}", IMAGE).split("\n"):
        count = line.count(IMAGE)
        lines += [f"Human: {IMAGE}"] * (min(count, 1) if official else count)
        lines.append(line.replace(IMAGE, ""))
    text = "\n".join(lines) + " "
    return raw, text.replace("\n Human", "\nHuman").replace("\n AI", "\nAI")


@dataclass(frozen=True)
class OfficialSample:
    """One training sample as the released pipeline makes it; masks are aligned with input_ids[1:].

    Args:
        input_ids: max_length + 1 of them, padded on the right.
        non_padding_mask, non_media_mask, prompt_mask: max_length numbers, 1 = a target; one is learned where all agree.
        seq_length: ids before padding.
        has_image: whether the text holds a placeholder.
    """

    input_ids: list[int]
    non_padding_mask: list[int]
    non_media_mask: list[int]
    prompt_mask: list[int]
    seq_length: int
    has_image: bool


def official_sample(
    text: str,
    encode: Encode,
    max_length: int,
    *,
    bos: int = 1,
    eos: int = 2,
    pad: int = 0,
    tokens_per_media: int = 65,
    official: bool = False,
) -> OfficialSample:
    """A conversation in the published text form to max_length + 1 ids and their masks (section 8.1).

    Args:
        text: the whole conversation, with `<image>` placeholders.
        encode: text -> ids, no special ids added.
        max_length: targets of a sample.
        bos, eos, pad: ids; a bos of 0 or less is left out.
        tokens_per_media: positions of an image.
        official: tokenize a placeholder at the very start as text, a bug of the release.

    Raises:
        ValueError: where the first piece does not fit, which is never cut.
    """
    has_image = IMAGE in text
    ids, learned = ([bos], [0]) if bos > 0 else ([], [])
    delimiters = f"({AI}|{HUMAN}|{IMAGE})" if has_image else f"({AI}|{HUMAN})"
    # Empty pieces count for text alone: behind "AI: " they are answers of nothing but the end.
    pieces = [piece for piece in re.split(delimiters, text) if piece or not has_image]
    for i, piece in enumerate(pieces):
        if has_image and len(ids) >= max_length + 1:
            break
        stop = False
        if piece == IMAGE and has_image and (i > 0 or not official):
            if len(ids) + tokens_per_media > max_length + 1:
                break
            new, label = [IMAGE_RUN] * tokens_per_media, 0
        elif i > 0 and pieces[i - 1] == AI:
            new, label = encode(piece), 1
            if len(ids) + len(new) >= max_length:
                new, stop = new[: max_length - len(ids)], True
            new = [*new, eos]  # a cut answer ends too
        else:
            new, label = encode(piece), 0
            if i > 0 and len(ids) + len(new) >= max_length + 1:
                new, stop = new[: max_length + 1 - len(ids)], True
        ids, learned = ids + new, learned + [label] * len(new)
        if stop and not has_image:  # with images the guard above ends the loop instead
            break
    length, width = len(ids), max_length + 1
    if length > width:
        raise ValueError(f"expected a conversation of at most {width} ids up to its first turn, got {length}")
    ids, learned = ids + [pad] * (width - length), learned + [0] * (width - length)
    return OfficialSample(
        input_ids=ids,
        non_padding_mask=[int(i < length - 1) for i in range(max_length)],
        non_media_mask=[int(i >= 0) if has_image else 1 for i in ids[1:]],
        prompt_mask=learned[1:],
        seq_length=length,
        has_image=has_image,
    )


def official_group(name: str) -> str:
    """Where the released optimiser puts a parameter of the official layout.

    Its exemption goes by name, "bias" and "LayerNorm.weight", so CLIP's `ln_*`, the visual norm,
    embeddings and latents decay. Momentum copies are listed but frozen, except the fusion
    encoder's, which is neither updated nor frozen, and the vision encoder's, which both filters
    miss.

    Args:
        name: of a parameter of an official file.

    Returns:
        `lr1_decay`, `lr1_nodecay`, `lr2_decay`, `lr2_nodecay`, these with `_frozen` behind them, or
            `none`.

    Source: specification mPLUG-2, section 12; golden case `optimizer_groups`.
    """
    module = name.partition(".")[0]
    if module == "visual_encoder_m":
        return "none"
    rate = "lr2" if module == "visual_encoder" else "lr1"
    decay = "nodecay" if "bias" in name or "LayerNorm.weight" in name else "decay"
    frozen = "_frozen" if module.endswith("_m") and module != "fusion_encoder_m" else ""
    return f"{rate}_{decay}{frozen}"


_ORDER = """
    logit_scale text_mask_token image_mask_token audio_mask_token encoder_wrapper decoder_wrapper text_proj
    image_proj audio_proj decoder_text_embed text_mask_head decoder_image_embed image_mask_head decoder_audio_embed
    audio_mask_head classify_head text_adapter image_adapter audio_adapter fusion_model cls_pos_embed cls_embedding
    pos_embed mask_embedding type_embedding type_embedding_2 position_idx rp_bucket embed_tokens embed_images
    embed_audios embed_positions rel_pos_table_list layers gamma_1 gamma_2 self_attn self_attn_layer_norm
    text_ffn image_ffn audio_ffn final_layer_norm text_layer_norm image_layer_norm audio_layer_norm ln k_proj
    v_proj q_proj out_proj conv_layers wi_0 wi_1 weight bias
""".split()  # noqa: SIM905


def official_order(keys: Iterable[str]) -> list[str]:
    """Official names in the order in which the official model registers its parameters.

    Golden optimiser groups list them so.

    Args:
        keys: official names, in any order.
    """
    # Numbers sort as numbers, so that layer 10 follows layer 9; unknown names come last.
    rank = {name: i for i, name in enumerate(_ORDER)}
    return sorted(
        keys, key=lambda key: [int(part) if part.isdigit() else rank.get(part, len(rank)) for part in key.split(".")]
    )


def official_buffers(keys: Iterable[str]) -> set[str]:
    """Those official keys that are constants rather than weights.

    Args:
        keys: official names.
    """
    return {key for key in keys if key.endswith((".rp_bucket", ".position_idx", "fusion_model.version"))}
