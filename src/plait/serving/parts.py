"""What requests hold: content parts -> text and bytes of media, which nothing here decodes yet.

    {"type": "image_url", "image_url": {"url": "data:..."}}, {"type": "input_audio", ...}, ... -> Medium
    input of /v1/embeddings -> parts per vector: an element is one vector, a list of parts is one fused vector

A string is never a path: media are data URIs, base64, or addresses of allowed hosts.
"""

from __future__ import annotations

import base64
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from plait.embedder.parts import Part
from plait.modalities import names
from plait.serving.errors import RefusalError
from plait.serving.settings import Settings
from plait.types import MODALITIES

RULE = (
    "each element of input is one vector; an element that is a list of content parts is one fused vector; "
    "messages is exactly one vector"
)
_PARTS: dict[str, tuple[str, str]] = {
    "text": ("text", "text"),
    "input_text": ("text", "text"),
    "image_url": ("image", "image_url"),
    "input_image": ("image", "image_url"),
    "image": ("image", "image"),
    "video_url": ("video", "video_url"),
    "video": ("video", "video"),
    "audio_url": ("audio", "audio_url"),
    "input_audio": ("audio", "input_audio"),
    "audio": ("audio", "audio"),
}
"""type of a part -> its modality, and the key of its content: of OpenAI, then of vLLM and of chat templates. A modality
that a user added has its name as both."""
_BESIDE = {"weight", "uuid", "detail"}
"""What else a part may have; `detail` is a wish that models here do not know, and clients send it by default."""

Fetch = Callable[[str], bytes]


@dataclass(frozen=True)
class Medium:
    """A content part. value: a text, or the bytes of media; weight: of its vector in a fused one."""

    modality: str
    value: str | bytes
    weight: float = 1.0

    @property
    def content(self) -> str:
        """What tells its bytes from others."""
        data = self.value.encode("utf-8", "surrogatepass") if isinstance(self.value, str) else self.value
        return hashlib.sha256(data).hexdigest()

    @property
    def part(self) -> Part:
        """For an `Embedder`."""
        return Part(self.modality, self.value, self.weight)


def read_parts(content: Any, where: str, settings: Settings, fetch: Fetch) -> list[Medium]:
    """The parts of a message, of an element of `input`, or of a document.

    Args:
        content: a text, or a list of parts.
        where: its name in messages.
        settings: what one text may be.
        fetch: address -> bytes, or a refusal.

    Raises:
        RefusalError: 400 for anything else, an empty list, and media that are no data URI, base64 or allowed address.
    """
    if isinstance(content, str):
        return [Medium("text", _text(content, where, settings))]
    if not isinstance(content, list) or not content:
        raise RefusalError(
            400, f"expected {where} as a text or a list of content parts, got {_kind(content)}", param=where
        )
    return [_read_part(part, f"{where}[{place}]", settings, fetch) for place, part in enumerate(content)]


def _read_part(part: Any, where: str, settings: Settings, fetch: Fetch) -> Medium:
    """One content part."""
    kind = part.get("type") if isinstance(part, Mapping) else None
    known = _PARTS.get(kind) if isinstance(kind, str) else None
    if known is None and kind in names() and kind not in MODALITIES:
        known = (str(kind), str(kind))
    if known is None:
        got = f"type {kind!r:.40}" if isinstance(part, Mapping) else _kind(part)
        raise RefusalError(400, f"expected {where} as a part of type {', '.join(_PARTS)}, got {got}", param=where)
    modality, key = known
    if unknown := set(part) - {"type", key} - _BESIDE:
        raise RefusalError(
            400, f"expected type and {key} in {where}, got {sorted(unknown)[0]!r:.40} as well", param=where
        )
    weight = part.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
        raise RefusalError(400, f"expected a finite number as the weight of {where}, got {weight!r:.40}", param=where)
    value = part.get(key)
    if modality == "text":
        return Medium("text", _text(value, where, settings), float(weight))
    if isinstance(value, Mapping):
        value = value.get("data", value.get("url"))
    if not isinstance(value, str) or not value:
        raise RefusalError(
            400, f"expected a data URI, base64 or an address in {where}, got {_kind(value)}", param=where
        )
    return Medium(modality, _bytes(value, where, fetch), float(weight))


def _text(value: Any, where: str, settings: Settings) -> str:
    """A text that is none of surrogates alone, not empty and not endless."""
    if not isinstance(value, str) or not value.strip():
        raise RefusalError(400, f"expected a text that is not empty in {where}, got {_kind(value)}", param=where)
    if len(value) > settings.max_text:
        raise RefusalError(
            400, f"expected {where} of at most {settings.max_text} characters, got {len(value)}", param=where
        )
    if any("\ud800" <= char <= "\udfff" for char in value):
        # JSON can spell halves of characters; tokenizers cannot
        raise RefusalError(400, f"expected {where} in whole characters, got half a surrogate pair", param=where)
    return value


def _bytes(value: str, where: str, fetch: Fetch) -> bytes:
    """The bytes of a data URI, of plain base64, or behind an address."""
    head, comma, content = value.partition(",")
    if value.startswith("data:"):
        if not comma or not head.endswith(";base64"):
            raise RefusalError(400, f"expected a data URI in base64 in {where}, got one without ;base64,", param=where)
    elif "://" in value[:20]:
        return fetch(value)
    else:
        content = value
    try:
        found = base64.b64decode(content, validate=True)
    except ValueError as error:
        raise RefusalError(
            400, f"expected a data URI, base64 or an address in {where}, got none of them; files are sent, not named",
            param=where,
        ) from error  # fmt: skip
    if not found:
        raise RefusalError(400, f"expected media in {where}, got no bytes", param=where)
    return found


def queries_of(body: Mapping[str, Any], settings: Settings, fetch: Fetch) -> list[list[Medium]]:
    """The parts of every vector that a request of embeddings asks for, by `RULE`.

    Args:
        body: with `input` or `messages`.
        settings, fetch: as in `read_parts`.

    Raises:
        RefusalError: 400 for anything that the rule does not name.
    """
    given, messages = body.get("input"), body.get("messages")
    if (given is None) == (messages is None):
        raise RefusalError(400, f"expected input or messages, got {'none' if given is None else 'both'}; {RULE}")
    if messages is not None:
        return [_of_messages(messages, settings, fetch)]
    if isinstance(given, str):
        return [read_parts(given, "input", settings, fetch)]
    if not isinstance(given, list) or not given:
        raise RefusalError(400, f"expected input as a text or a list, got {_kind(given)}; {RULE}", param="input")
    if len(given) > settings.max_inputs:
        raise RefusalError(
            400, f"expected at most {settings.max_inputs} elements of input, got {len(given)}", param="input"
        )
    queries = []
    for place, element in enumerate(given):
        if not isinstance(element, str | list):
            what = "token ids, which belong to one tokenizer" if isinstance(element, int) else _kind(element)
            raise RefusalError(400, f"expected input[{place}] as a text or a list of parts, got {what}; {RULE}")
        if isinstance(element, list) and all(isinstance(one, int) for one in element):
            raise RefusalError(400, f"expected input[{place}] as a text or a list of parts, got token ids; {RULE}")
        queries.append(read_parts(element, f"input[{place}]", settings, fetch))
    return queries


def _of_messages(messages: Any, settings: Settings, fetch: Fetch) -> list[Medium]:
    """The parts of all messages, which are one vector; models here have no template for embeddings."""
    if not isinstance(messages, list) or not messages:
        raise RefusalError(400, f"expected messages as a list, got {_kind(messages)}; {RULE}", param="messages")
    found: list[Medium] = []
    for place, message in enumerate(messages):
        if not isinstance(message, Mapping) or message.get("role") != "user":
            raise RefusalError(
                400, f"expected messages[{place}] of the role user, got another; {RULE}", param="messages"
            )
        found += read_parts(message.get("content"), f"messages[{place}].content", settings, fetch)
    return found


def check_media(parts: Sequence[Medium], settings: Settings) -> None:
    """Raise RefusalError where a request holds more media than are allowed."""
    count = sum(part.modality != "text" for part in parts)
    if count > settings.max_media:
        raise RefusalError(400, f"expected at most {settings.max_media} pictures, films and sounds, got {count}")


def _kind(value: Any) -> str:
    """What a message calls a value of JSON, without quoting it."""
    if value is None:
        return "nothing"
    names = {
        str: "a text",
        list: "a list",
        dict: "an object",
        bool: "true or false",
        int: "a number",
        float: "a number",
    }
    return ("an empty " + names[type(value)][2:]) if value in ("", [], {}) else names.get(type(value), "something else")
