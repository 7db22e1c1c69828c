"""What every request passes before a route sees it: drain, key, size and time of its body; what is counted and logged.

    scope -> stopping? 503 -> key? 401 -> Content-Length? 413 -> the whole body, within bytes and seconds -> route
          -> status and seconds into metrics and one line of log, which names no text

An ASGI middleware of its own, since those of frameworks hand bodies on before they count them.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any

from plait.serving.errors import LOG, RefusalError, busy, closing, refusal_of
from plait.serving.metrics import Metrics
from plait.serving.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Receive, Send], Awaitable[None]]

OPEN = ("/health",)
"""Paths that need no key: a balancer asks them."""


class Door:
    """The middleware.

    Args:
        app: behind it.
        settings: key, bytes, seconds.
        metrics: of the server.
        paths: that are counted by name; all others together, so that a scan makes no thousand counters.
        is_closing: whether the server is being stopped.
    """

    def __init__(
        self, app: App, settings: Settings, metrics: Metrics, paths: Mapping[str, str], is_closing: Callable[[], bool]
    ) -> None:
        self.app, self.settings, self.metrics, self.paths, self.is_closing = app, settings, metrics, paths, is_closing
        self._held = 0  # bytes of all bodies that are being read or answered

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        # websockets are nobody's here, and no route would take them
        started, status, held = time.monotonic(), 499, 0  # 499: nobody heard an answer

        async def counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            body = await self._body(scope, receive)
            held = len(body)
            # until the answer is out: its media are decoded from this very body
            self._held += held
            await self.app(scope, _replayed(body, receive), counted)
        except Exception as error:
            refusal = refusal_of(error)
            if status != 499:  # the answer has begun: all that is left is to break it off
                LOG.error("broke off an answer")
                raise
            await _answer(refusal, counted)
        finally:
            self._held -= held
            # names from the table alone: a path that a stranger made up would be text of a request in the log
            seconds, handler = time.monotonic() - started, self.paths.get(scope["path"], "other")
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            self.metrics.http.labels(handler, method, str(status)).inc()
            self.metrics.http_seconds.labels(handler, method).observe(seconds)
            LOG.info("%s %s %s %.3f s", method, handler, status, seconds)

    def _check(self, scope: Any) -> None:
        """Raise RefusalError for a request without the key, and while the server is being stopped."""
        if scope["path"] in OPEN:
            return
        headers = dict(scope["headers"])
        if self.settings.key is not None:
            given = _key_of(headers.get(b"authorization", b""))
            # takes as long for a first wrong letter as for a last one
            if not hmac.compare_digest(given, self.settings.key.encode()):
                raise RefusalError(
                    401, "expected the key of this server as Authorization: Bearer KEY, got none or another",
                    "authentication_error", "invalid_api_key", headers={"WWW-Authenticate": 'Basic realm="plait"'},
                )  # fmt: skip
        if self.is_closing():
            raise closing()
        length = headers.get(b"content-length", b"0")
        # int() takes signs, underscores and digits of other scripts, and is slow for long ones
        if not length.isdigit() or len(length) > 18:
            raise RefusalError(400, "expected a Content-Length that is a number, got another")
        if int(length) > self.settings.max_body:
            raise self._too_large()

    def _too_large(self) -> RefusalError:
        megabytes = self.settings.max_body / (1 << 20)
        # the rest is not read: the connection has to go
        return RefusalError(
            413, f"expected a body of at most {megabytes:g} MiB, got more; send smaller media",
            code="body_too_large", headers={"Connection": "close"},
        )  # fmt: skip

    async def _body(self, scope: Any, receive: Receive) -> bytes:
        """The whole body. Raises RefusalError for one that is too large or too slow."""
        blocks, size = [], 0
        try:
            async with asyncio.timeout(self.settings.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise RefusalError(400, "the request was broken off")
                    block = message.get("body", b"")
                    # counted as they come: a chunked body has no Content-Length to believe
                    size += len(block)
                    if size > self.settings.max_body:
                        raise self._too_large()
                    # many bodies that are each small enough fill the memory as well
                    if self._held + size > self.settings.max_held:
                        raise busy()
                    blocks.append(block)
                    if not message.get("more_body", False):
                        return b"".join(blocks)
        except TimeoutError:
            raise RefusalError(
                408, f"expected the whole body within {self.settings.body_seconds:g} s, got a part of it",
                code="body_too_slow", headers={"Connection": "close"},
            ) from None  # fmt: skip


def _key_of(header: bytes) -> bytes:
    """The key of `Bearer KEY`, or the password of `Basic`, which browsers ask for to show the page of the API."""
    scheme, _, value = header.partition(b" ")
    if scheme.lower() == b"basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except ValueError:
            return b""
    return value.strip() if scheme.lower() == b"bearer" else b""


def _replayed(body: bytes, receive: Receive) -> Receive:
    """What a route receives: the body in one piece, then whatever comes, which is only ever the end."""
    is_given = False

    async def replay() -> Message:
        nonlocal is_given
        if is_given:
            return await receive()
        is_given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _answer(refusal: RefusalError, send: Send) -> None:
    """Send an error."""
    body = json.dumps(refusal.body).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    await send(
        {
            "type": "http.response.start",
            "status": refusal.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
