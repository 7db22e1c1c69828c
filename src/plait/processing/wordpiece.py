"""Uncased BERT's WordPieces: text -> cleaned words -> pieces -> ids, and the targets that mPLUG-2 learns to write.

Source: BERT (arXiv 1810.04805); cleaning and targets: specification mPLUG-2, sections 7 and 11.
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

from plait.types import whole_text

if TYPE_CHECKING:
    import tokenizers
    from transformers import PreTrainedTokenizerFast

PAD, UNK, CLS, SEP, MASK = "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"
MAX_POSITIONS = 512

_PUNCTUATION = re.compile(r"[,.'!?\"()*#:;~]")


class Target(NamedTuple):
    """What a decoder learns to write: ids with [CLS] and end, and the first positions that belong to the prompt."""

    ids: list[int]
    prompt_length: int = 0


def build_tokenizer(
    vocabulary: Sequence[str] | None = None, max_length: int = MAX_POSITIONS
) -> PreTrainedTokenizerFast:
    """Uncased BERT's tokenizer as transformers knows them.

    It lower-cases, strips accents and frames a text as `[CLS] ... [SEP]`.

    Args:
        vocabulary: pieces in the order of their ids, the five special ones among them; None is
            uncased BERT's.
        max_length: positions of the model.

    Example:
        >>> build_tokenizer().decode(build_tokenizer()("A dog")["input_ids"])
        '[CLS] a dog [SEP]'
    """
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=build_backend(vocabulary),
        model_max_length=max_length,
        padding_side="right",
        split_special_tokens=True,  # "[SEP]" in a caption is text
        model_input_names=["input_ids", "attention_mask"],
        unk_token=UNK,
        sep_token=SEP,
        pad_token=PAD,
        cls_token=CLS,
        mask_token=MASK,
    )


def build_backend(vocabulary: Sequence[str] | None = None) -> tokenizers.Tokenizer:
    """The same as an object of the `tokenizers` library.

    Args:
        vocabulary: as in `build_tokenizer`.

    Raises:
        ValueError: where a special piece is missing.
    """
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    ids = {piece: i for i, piece in enumerate(pieces() if vocabulary is None else vocabulary)}
    missing = [piece for piece in (PAD, UNK, CLS, SEP) if piece not in ids]
    if missing:
        raise ValueError(f"expected a vocabulary with {PAD}, {UNK}, {CLS} and {SEP}, got none of {', '.join(missing)}")
    # a longer word is [UNK] as a whole, as in BERT's tokenizer
    backend = Tokenizer(models.WordPiece(ids, unk_token=UNK, max_input_chars_per_word=100))
    backend.normalizer = normalizers.BertNormalizer(lowercase=True)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.BertProcessing((SEP, ids[SEP]), (CLS, ids[CLS]))
    backend.encode_special_tokens = True
    return backend


@lru_cache(maxsize=1)
def pieces() -> tuple[str, ...]:
    """Uncased BERT's 30522 pieces in the order of their ids.

    Read once from the file beside this module, one a line.
    """
    data = files("plait.processing").joinpath("data", "bert_uncased.txt.gz").read_bytes()
    return tuple(gzip.decompress(data).decode("utf-8").split("\n")[:-1])


def clean_caption(text: str, max_words: int = 30) -> str:
    """A caption as the published loaders normalise it.

    Lower case, no punctuation, hyphens and slashes as spaces, single spaces, `max_words` words.

    Args:
        text: of a caption; `<person>` becomes person.
        max_words: words that are kept.

    Source:
        Specification mPLUG-2, 11 (`pre_caption`).
    """
    text = _plain(text).replace("<person>", "person")
    text = re.sub(r"\s{2,}", " ", text).rstrip("\n").strip(" ")
    return _first_words(text, max_words)


def clean_question(text: str, max_words: int = 30) -> str:
    """A question likewise, but runs of spaces stay and count as words.

    The published loader splits at every single space (`pre_question`, specification mPLUG-2, 11).

    Args:
        text: of a question.
        max_words: words that are kept; 30 in training, 50 in evaluation.
    """
    return _first_words(_plain(text).rstrip(" "), max_words)


def _plain(text: str) -> str:
    """Lower case, punctuation gone, hyphens and slashes as spaces. Raises ValueError for half a character."""
    return _PUNCTUATION.sub("", whole_text(text).lower()).replace("-", " ").replace("/", " ")


def _first_words(text: str, count: int) -> str:
    """The first `count` words of a text, split at single spaces."""
    words = text.split(" ")
    return " ".join(words[:count]) if len(words) > count else text


def content_ids(backend: tokenizers.Tokenizer, text: str) -> list[int]:
    """Ids of a text without [CLS] and [SEP].

    backend: of `build_backend`; text: as it is.
    """
    return backend.encode(text, add_special_tokens=False).ids


def special_id(backend: tokenizers.Tokenizer, piece: str) -> int:
    """Id of a special piece such as [SEP].

    Raises:
        ValueError: where the vocabulary has none.
    """
    found = backend.token_to_id(piece)
    if found is None:
        raise ValueError(f"expected a vocabulary with {piece}, got none; use one of build_tokenizer")
    return found


def framed(backend: tokenizers.Tokenizer, content: Sequence[int], max_length: int | None = None) -> list[int]:
    """`[CLS] content [SEP]`, content cut so that at most `max_length` ids remain.

    Args:
        backend: of `build_backend`.
        content: ids without special ones.
        max_length: ids in all, None: no limit.

    Raises:
        ValueError: where the vocabulary has no [CLS] or [SEP].
    """
    # two places are for [CLS] and [SEP]
    kept = list(content) if max_length is None else list(content)[: max_length - 2]
    return [special_id(backend, CLS), *kept, special_id(backend, SEP)]


def answer_target(backend: tokenizers.Tokenizer, answer: str, *, official: bool = False) -> Target:
    """An answer for the decoder to learn: `[CLS] answer [SEP]`.

    Args:
        backend: of `build_backend`.
        answer: one of a question's answers.
        official: end with [SEP] twice, as the released data do; both are supervised.

    Returns:
        A `Target` without prompt.
    """
    end = [special_id(backend, SEP)] if official else []
    return Target(framed(backend, [*content_ids(backend, answer), *end]))


def caption_target(
    backend: tokenizers.Tokenizer, caption: str, prompt: str = "", *, max_length: int = 20, official: bool = False
) -> Target:
    """A caption for the decoder to learn: `[CLS] prompt caption [SEP]`.

    Args:
        backend: of `build_backend`.
        caption: a cleaned caption.
        prompt: words in front, such as "a video of"; with [CLS] they are not supervised.
        max_length: ids in all, 20 as published.
        official: glue caption to prompt without a space ("a video ofa man"), and end with [SEP]
            twice where it fits.

    Returns:
        A `Target`.

    Source:
        Specification mPLUG-2, 7.2 and 11.
    """
    text = prompt + caption if official else f"{prompt} {caption}".strip()
    end = [special_id(backend, SEP)] if official else []
    ids = framed(backend, [*content_ids(backend, text), *end], max_length)
    return Target(ids, min(len(content_ids(backend, prompt)) + 1, len(ids)) if prompt else 0)
