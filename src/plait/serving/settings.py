"""What the server allows: sizes, times and queues, each with the reason for its number."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from plait.errors import UsageError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Settings:
    """Limits of a server.

    Attributes:
        key: what clients send as `Authorization: Bearer KEY`; None asks for none.
        max_body: bytes of a request; a minute of video in base64 fits.
        max_held: bytes of all requests that are being read or answered.
        max_pixels: of an image or frame, before it is decoded.
        max_seconds: of an audio clip or video, likewise.
        max_media: images, videos and audio of one request.
        max_inputs: vectors, documents or hits of one request.
        max_text: characters of one text; tokenizers cut later, but read all of it first.
        max_tokens: most tokens of an answer, whatever is asked for; default_tokens: where nothing is.
        max_answers: `n` of one request.
        max_rows: answers that are written at a time.
        max_waiting: answers that may wait; beyond it requests get 429.
        max_batch: items of one batch of embeddings.
        max_items: items that may wait for it; beyond it 429.
        max_connections: beyond it 503.
        body_seconds: for a request to arrive; request_seconds: for its answer; drain_seconds: for what runs when
            the server is asked to stop.
        fetch_seconds, max_redirects: of remote media.
        hosts: whose media may be fetched, `example.org` or `*.example.org`; none without.
        cached_vectors: media whose vectors are kept, by content; 4,096 of 1,536 numbers are 25 MB.
    """

    key: str | None = None
    max_body: int = 32 << 20
    max_held: int = 512 << 20
    max_pixels: int = 32_000_000
    max_seconds: float = 120.0
    max_media: int = 64
    max_inputs: int = 256
    max_text: int = 100_000
    max_tokens: int = 4096
    default_tokens: int = 512
    max_answers: int = 8
    max_rows: int = 16
    max_waiting: int = 64
    max_batch: int = 32
    max_items: int = 512
    max_connections: int = 256
    body_seconds: float = 30.0
    request_seconds: float = 300.0
    drain_seconds: float = 30.0
    fetch_seconds: float = 20.0
    max_redirects: int = 3
    hosts: tuple[str, ...] = ()
    cached_vectors: int = 4096

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if isinstance(value, int | float) and (value < 0 or (value == 0 and name not in _MAY_BE_ZERO)):
                raise UsageError(f"expected {name} above 0, got {value}")
        if self.key is not None and len(self.key) < 8:
            raise UsageError("expected a key of at least 8 characters, got a shorter one")

    @property
    def limits(self) -> dict[str, dict[str, Any]]:
        """Keyword arguments of the media loaders by modality."""
        return {
            "image": {"max_pixels": self.max_pixels},
            "video": {"max_pixels": self.max_pixels, "max_seconds": self.max_seconds},
            "audio": {"max_seconds": self.max_seconds},
        }


_MAY_BE_ZERO = {"cached_vectors", "max_redirects", "drain_seconds"}
