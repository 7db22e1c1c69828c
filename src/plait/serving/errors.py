"""Errors in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}` and the status that clients know.

what a handler raises -> refusal_of -> RefusalError -> JSON

Messages say what was wrong with the request. What went wrong inside is told to the log, by its kind and place alone:
messages of exceptions may quote a prompt.
"""

from __future__ import annotations

import logging
import traceback
from typing import Any

from plait.serving.batching import BusyError, ClosedError
from plait.terminal import printable

LOG = logging.getLogger("plait.serve")
MAX_MESSAGE = 600
"""Characters: messages may quote what a client sent."""


class RefusalError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one line for whoever sent the request.
        kind, code: what OpenAI calls `type` and `code`; clients choose their exception by the status.
        param: the field that is wrong.
        headers: of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.message = printable(message)[:MAX_MESSAGE]
        self.headers = headers or {}

    @property
    def body(self) -> dict[str, Any]:
        """What is sent."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


def busy() -> RefusalError:
    """429: the queue is full; clients of OpenAI wait and come again by themselves."""
    return RefusalError(
        429, "too many requests are waiting; come again in a second", "rate_limit_error", "queue_full",
        headers={"Retry-After": "1"},
    )  # fmt: skip


def closing() -> RefusalError:
    """503: the server is being stopped."""
    return RefusalError(
        503, "the server is being stopped; send this to another", "server_error", "stopping",
        headers={"Retry-After": "5"},
    )  # fmt: skip


def refusal_of(error: BaseException) -> RefusalError:
    """What a client is told of an exception; one that no request can explain is logged and told as 500."""
    if isinstance(error, RefusalError):
        return error
    if isinstance(error, BusyError):
        return busy()
    if isinstance(error, ClosedError):
        return closing()
    if isinstance(error, TimeoutError):
        return RefusalError(504, "the answer took longer than this server allows", "server_error", "timeout")
    if isinstance(error, ImportError):
        # a decoder that is not installed: the message holds the install line
        return RefusalError(501, f"the server cannot read this kind of media: {error}", code="unsupported_media")
    if isinstance(error, ValueError):
        return RefusalError(400, str(error) or "the request cannot be answered")
    log_fault(error)
    return RefusalError(500, "the server failed; its log says where", "server_error", "internal")


def log_fault(error: BaseException) -> None:
    """Kind and places of an unexpected exception, without its message."""
    frames = traceback.extract_tb(error.__traceback__)
    places = " < ".join(f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in reversed(frames[-8:]))
    LOG.error("fault %s at %s", type(error).__name__, places)
