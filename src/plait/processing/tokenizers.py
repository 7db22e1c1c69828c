"""ONE-PEACE's tokenizer: text -> " " + lower case -> GPT-2 byte-level pieces -> ids in dictionary order -> ids + </s>.

The dictionary is the one of RoBERTa and BART without <mask> (section 5.1 of the released layout). `build_tokenizer`
gives an ordinary transformers tokenizer, whole or cut to the pieces a data set needs; `encode` gives plain ids.

Below it, what language models bring: LLaMA's SentencePiece as the Owls were trained with it, Qwen's tiktoken, and the
tokenizer that lies in a directory, whichever it is.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from plait.errors import no_code_of
from plait.types import whole_text

if TYPE_CHECKING:
    import tokenizers
    import torch
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
BOS_ID, PAD_ID, EOS_ID, UNK_ID = range(4)
MAX_TOKENS = 70
"""Longest text, not counting the end token; anything behind is cut off."""

_FILLERS = ("madeupword0000", "madeupword0001", "madeupword0002")
_SPACE = "Ġ"


def build_tokenizer(kept: Sequence[int] | None = None) -> PreTrainedTokenizerFast:
    """ONE-PEACE's tokenizer as transformers knows them.

    It lower-cases, puts a space in front, ends every text with </s>, and writes and reads itself
    with `save_pretrained` and `AutoTokenizer`. Call it with `truncation=True` for the published
    limit of 70 pieces and the end token.

    Args:
        kept: ids of the full vocabulary to keep, as `subset` returns them, in ascending order;
            None keeps all 50264.

    Example:
        >>> build_tokenizer()(["A dog"], truncation=True)["input_ids"][0][-1]
        2
    """
    from transformers import PreTrainedTokenizerFast

    names = dict(zip(("bos_token", "pad_token", "eos_token", "unk_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(
        tokenizer_object=build_backend(kept),
        model_max_length=MAX_TOKENS + 1,
        padding_side="right",
        split_special_tokens=True,  # "</s>" in a caption is text
        model_input_names=["input_ids", "attention_mask"],
        **names,
    )


def build_backend(kept: Sequence[int] | None = None, *, lowercase: bool = True) -> tokenizers.Tokenizer:
    """The same as an object of the `tokenizers` library.

    Args:
        kept: as in `build_tokenizer`.
        lowercase: whether texts are lower-cased; answers of audio questions are not.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    kept_pieces = pieces() if kept is None else tuple(pieces()[i] for i in kept)
    vocabulary = {piece: i for i, piece in enumerate(kept_pieces)}
    # a merge into a piece that was cut would name an unknown one, which the library refuses
    rules = [pair for pair in merges() if pair[0] + pair[1] in vocabulary]
    backend = Tokenizer(models.BPE(vocabulary, rules))
    prepend = normalizers.Prepend(" ")
    backend.normalizer = normalizers.Sequence([normalizers.Lowercase(), prepend]) if lowercase else prepend
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", EOS_ID)])
    # "</s>" in a caption is text and no end
    backend.encode_special_tokens = True
    return backend


def encode(texts: Iterable[str], *, lowercase: bool = True, max_tokens: int | None = MAX_TOKENS) -> list[list[int]]:
    """Ids of the full vocabulary.

    Args:
        texts: as they are; put through `clean_caption` first where a data set asks for it.
        lowercase: as in `build_backend`.
        max_tokens: pieces that are kept; None: all.

    Returns:
        A row per text, ended by 2 (</s>), of at most max_tokens + 1 ids.
    """
    return encode_with(_backend(lowercase), texts, max_tokens=max_tokens)


def encode_with(
    backend: tokenizers.Tokenizer, texts: Iterable[str], *, max_tokens: int | None = MAX_TOKENS
) -> list[list[int]]:
    """`encode` with a backend of `build_backend` or a tokenizer's `backend_tokenizer`.

    An empty text is a single space, as published; the backend alone would give only the end token.

    Raises:
        ValueError: on a vocabulary without byte symbols, and for a text that holds half a character.
    """
    space = backend.token_to_id(_SPACE)
    if space is None:
        raise ValueError("expected a vocabulary with a piece for the space, got none; use one of build_tokenizer")
    rows: list[list[int]] = [row.ids[:-1] or [space] for row in backend.encode_batch(list(map(whole_text, texts)))]
    return [[*row[:max_tokens], EOS_ID] for row in rows]


def clean_caption(text: str) -> str:
    """A caption or question as published data loaders normalise it before tokenizing.

    Lower case, no marks in front, tabs and runs of white space as one space, ends stripped.

    Source:
        ONE-PEACE, 5.1 of its released layout.

    Example:
        >>> clean_caption("#A  dog runs. ")
        'a dog runs.'
    """
    text = text.lower().lstrip(",.!?*#:;~").replace("\t", " ")
    return re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")


def cut_words(text: str, max_words: int = 70) -> str:
    """The first `max_words` words: the limit of grounding texts, which have none on tokens.

    text: split at single spaces; max_words: 70 as published.
    """
    words = text.split(" ")
    return " ".join(words[:max_words])


def whole_word_starts(tokenizer: PreTrainedTokenizerBase | None = None) -> torch.Tensor:
    """Which ids begin a word, for `masking.whole_word_mask`.

    Args:
        tokenizer: one of `build_tokenizer`; None is the full vocabulary.

    Returns:
        boolean (vocabulary,). Special tokens and fillers count as words.
    """
    import torch

    in_order = pieces() if tokenizer is None else tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    whole = {*SPECIAL, *_FILLERS}
    return torch.tensor([piece.startswith(_SPACE) or piece in whole for piece in in_order])


def subset(used: Iterable[int]) -> list[int]:
    """Ids to keep so that texts of the used ids tokenize as before and no text is left without ids.

    Adds the special tokens, the 256 byte symbols and the pieces from which used ones are merged.

    Args:
        used: ids of the full vocabulary.

    Returns:
        Ascending ids. Row i of the cut vocabulary (and of a cut embedding table) is row
        `subset(used)[i]` of the full one.
    """
    parts, ids = _parts(), _ids()
    # a piece is reached by merges only: without its parts it would never be made
    open_pieces = [pieces()[i] for i in set(used)]
    kept = {*SPECIAL, *_byte_symbols()}
    while open_pieces:
        piece = open_pieces.pop()
        if piece not in kept:
            kept.add(piece)
            open_pieces.extend(parts.get(piece, ()))
    return sorted(ids[piece] for piece in kept)


@lru_cache(maxsize=1)
def pieces() -> tuple[str, ...]:
    """All 50264 pieces in the order of their ids.

    4 special ones, GPT-2's in the order of the published dictionary (by frequency), 3 fillers.
    """
    # GPT-2 numbers bytes first, then merges in their order: its vocabulary needs no file
    by_gpt2_id = [*_byte_symbols(), *(a + b for a, b in merges()), "<|endoftext|>"]
    # the dictionary as GPT-2 ids: two bytes each, since they are below 65536
    order = np.frombuffer(gzip.decompress(_data("one_peace_order.u16.gz")), dtype="<u2")
    return (*SPECIAL, *(by_gpt2_id[i] for i in order), *_FILLERS)


@lru_cache(maxsize=1)
def merges() -> list[tuple[str, str]]:
    """GPT-2's merges in the order in which they apply, 50,000 pairs of pieces.

    The file's first line is its version and left out.
    """
    lines = gzip.decompress(_data("gpt2_merges.txt.gz")).decode("utf-8").splitlines()[1:]
    return [(a, b) for a, b in (line.split(" ") for line in lines if line)]


@lru_cache(maxsize=2)
def _backend(lowercase: bool) -> tokenizers.Tokenizer:
    """The full vocabulary's backend, built once: its 50,000 merges take a while."""
    return build_backend(lowercase=lowercase)


@lru_cache(maxsize=1)
def _parts() -> dict[str, tuple[str, str]]:
    """Piece -> the two pieces from which it is merged."""
    return {a + b: (a, b) for a, b in merges()}


@lru_cache(maxsize=1)
def _ids() -> dict[str, int]:
    """Piece -> id of the full vocabulary."""
    return {piece: i for i, piece in enumerate(pieces())}


def _byte_symbols() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of their ids."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    return [chr(b) for b in printable] + [chr(0x100 + n) for n in range(256 - len(printable))]


def _data(name: str) -> bytes:
    """Bytes of a file that lies in the package."""
    return files("plait.processing").joinpath("data", name).read_bytes()


def llama_tokenizer(directory: str | Path, *, add_bos: bool = True) -> Any:
    """The Llama tokenizer of a directory with tokenizer.model, padding on the left with unk.

    Text behind special tokens gets its space in front too (the behaviour of transformers 4.31,
    "legacy"), and text that begins with a space gets another one.

    Args:
        directory: with tokenizer.model; nothing in it is executed.
        add_bos: start every piece of text with bos.
    """
    from tokenizers import normalizers, processors
    from transformers import LlamaTokenizer, PreTrainedTokenizerFast

    backend = LlamaTokenizer.from_pretrained(str(directory), trust_remote_code=False).backend_tokenizer
    # Metaspace puts no second space before text that begins with one, SentencePiece does, and the models learned that
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


QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
QWEN_SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|extra_{i}|>" for i in range(205)))


def qwen_tokenizer(directory: str | Path) -> Any:
    """The Qwen tokenizer of a directory with qwen.tiktoken: no bos, `<|endoftext|>` ends and pads.

    directory: where qwen.tiktoken lies; mPLUG-Owl2.1 has it.
    """
    from transformers import PreTrainedTokenizerFast
    from transformers.convert_slow_tokenizer import TikTokenConverter

    backend = TikTokenConverter(
        str(Path(directory) / "qwen.tiktoken"), pattern=QWEN_PATTERN, extra_special_tokens=list(QWEN_SPECIAL)
    ).converted()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=QWEN_SPECIAL[0], pad_token=QWEN_SPECIAL[0], padding_side="left"
    )


def find_tokenizer(directory: Path, *, add_bos: bool = True) -> Any:
    """The tokenizer that lies beside official weights, None where there is none.

    tokenizer.json as it is, tokenizer.model as a Llama's, qwen.tiktoken as a Qwen's.

    Args:
        directory: of the weights; nothing in it is executed.
        add_bos: of a Llama's.
    """
    from transformers import PreTrainedTokenizerFast

    if (directory / "tokenizer.json").exists():
        return PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False)
    if (directory / "tokenizer.model").exists():
        return llama_tokenizer(directory, add_bos=add_bos)
    return qwen_tokenizer(directory) if (directory / "qwen.tiktoken").exists() else None


def tokenizer_to_talk(directory: Path) -> Any:
    """The tokenizer of a language model's directory, padding on the left.

    On the left, since the next token is read at the last position. Its end token pads where
    nothing else does.

    Args:
        directory: of the language model; nothing in it is executed.

    Raises:
        ValueError: where none loads.
    """
    from transformers import AutoTokenizer

    try:
        with no_code_of(directory):
            tokenizer: Any = AutoTokenizer.from_pretrained(directory, trust_remote_code=False)
    except (OSError, ValueError) as error:
        if "auto_map" in str(error):  # one line already, about code that the directory brings
            raise
        reason = str(error).strip().splitlines()[0].partition(":")[0]
        raise ValueError(
            f"expected a tokenizer in {directory}, got none that loads ({reason}); put its tokenizer.json there"
        ) from error
    # attention masks hide padding, so any id will do
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.padding_side = "left"
    return tokenizer
