"""`/v1/chat/completions`: messages -> what the model reads -> tickets of the engine -> one JSON object or a stream.

A model of `--assist` answers here too: it looks at one picture or film and says one thing about it, without a history.
"""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from plait.assistant import Request
from plait.serving.errors import RefusalError, refusal_of
from plait.serving.generation import End, Piece, Sampling, Ticket, Token
from plait.serving.parts import Medium, check_media, read_parts
from plait.serving.schema import ChatBody
from plait.serving.service import Ask, Service

if TYPE_CHECKING:
    from plait.types import Modality

_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
Turn = tuple[str, list[Medium]]


def turns_of(messages: Sequence[Mapping[str, Any]], service: Service) -> list[Turn]:
    """Roles and parts of a conversation. Raises RefusalError for other roles, and for calls of tools."""
    turns: list[Turn] = []
    for place, message in enumerate(messages):
        where = f"messages[{place}]"
        role = message.get("role")
        if not isinstance(role, str) or role not in _ROLES or message.get("tool_calls"):
            raise RefusalError(
                400, f"expected a role of {', '.join(_ROLES)} in {where}, got another or a call of a tool; models here "
                "have no tools",
                param=where,
            )  # fmt: skip
        if unknown := set(message) - {"role", "content", "name", "tool_calls", "refusal", "audio", "function_call"}:
            raise RefusalError(
                400, f"expected role and content in {where}, got {sorted(unknown)[0]!r:.40}", param=where
            )
        parts = read_parts(message.get("content"), f"{where}.content", service.settings, service.fetch)
        if role != "user" and any(part.modality != "text" for part in parts):
            raise RefusalError(400, f"expected pictures, films and sounds in messages of the user, got some in {where}")
        turns.append((_ROLES[role], parts))
    check_media([part for _, parts in turns for part in parts], service.settings)
    if turns[-1][0] != "user":
        raise RefusalError(400, "expected the last message to be the user's, got another", param="messages")
    return turns


def read_chat(body: ChatBody, service: Service) -> tuple[Mapping[str, Any], Sampling]:
    """What the model reads, and how its answer is drawn. Runs in a loader's thread.

    Raises RefusalError, and ValueError for media that cannot be read and conversations over the context.
    """
    chat = service.models.chat
    assert chat is not None
    messages = []
    for role, parts in turns_of(body.messages, service):
        content: Any = []
        for part in parts:
            if part.modality not in ("text", "image", "video"):
                got = "a sound" if part.modality == "audio" else part.modality
                raise RefusalError(400, f"expected text, images and videos for this model, got {got}", param="messages")
            if part.modality == "text":
                content.append({"type": "text", "text": part.value})
            else:
                content.append({"type": part.modality, part.modality: service.media_of(part, chat.num_frames)})
        if role != "user":  # templates write such a turn as one text
            content = "\n".join(part["text"] for part in content)
        messages.append({"role": role, "content": content})
    inputs, room = chat.read(messages)
    return inputs, _sampling(body, service, room)


def _sampling(body: ChatBody, service: Service, room: int) -> Sampling:
    """How an answer is drawn, within what the server and the context allow."""
    stop = (body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ())
    if len(stop) > 16 or not all(0 < len(text) <= 200 for text in stop):
        raise RefusalError(400, "expected at most 16 stop texts of 1 to 200 characters, got others", param="stop")
    return Sampling(
        max_new_tokens=min(_length(body, service), room),
        temperature=body.temperature or 0.0,
        top_p=1.0 if body.top_p is None else body.top_p,
        stop=stop,
        seed=body.seed,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
    )


def _length(body: ChatBody, service: Service) -> int:
    """Most tokens of an answer: as asked, else the server's default; both within its limit."""
    asked = body.max_completion_tokens or body.max_tokens
    if asked is not None and asked > service.settings.max_tokens:
        raise RefusalError(
            400, f"expected at most {service.settings.max_tokens} tokens, got {asked}; ask for less", param="max_tokens"
        )
    return asked or service.settings.default_tokens


def read_ask(body: ChatBody, service: Service) -> Ask:
    """What an assistant is asked. Runs in a loader's thread. Raises RefusalError for what it cannot look at."""
    assistant = service.models.assistant
    assert assistant is not None
    turns = turns_of(body.messages, service)
    if len(turns) > 1:
        raise RefusalError(400, f"expected one message for this model, which keeps no history, got {len(turns)}")
    if body.temperature or body.stop or body.logprobs or (body.n or 1) > 1:
        raise RefusalError(400, "expected no sampling, stop, logprobs and n for this model, got some; leave them out")
    parts = turns[0][1]
    media = [part for part in parts if part.modality != "text"]
    text = "\n".join(str(part.value) for part in parts if part.modality == "text")
    if len(media) > 1 or (media and media[0].modality not in ("image", "video")):
        raise RefusalError(400, "expected one picture or film for this model, got something else or several")
    task = body.task or ("answer" if text else "caption")
    if task not in assistant.tasks:
        raise RefusalError(
            400, f"expected a task of {', '.join(assistant.tasks)} for this model, got {task}", param="task"
        )
    if media:
        value = service.media_of(media[0], assistant.skills.num_frames, assistant.frames)
        request = Request("the picture or film", cast("Modality", media[0].modality), value, text)
    else:
        request = Request("the text", "text", text, text if task == "rank" else "")
    if error := assistant.fitting(task, [request])[0].error:
        raise RefusalError(400, error)
    length = _length(body, service) if body.max_tokens or body.max_completion_tokens else None
    options = (("max_length", length),) if length is not None and task in ("caption", "answer") else ()
    return Ask(task, request, None if body.candidates is None else tuple(body.candidates), options)


class Answering:
    """The answers to one request: tickets in the engine, events in a queue of the event loop.

    Args:
        service: with an engine.
        inputs: of one prompt.
        sampling: of each answer; a seed counts up.
        count: how many answers.
    """

    def __init__(self, service: Service, inputs: Mapping[str, Any], sampling: Sampling, count: int) -> None:
        self.service, self.count = service, count
        self.prompt_tokens = int(inputs["input_ids"].shape[1])
        loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[tuple[int, Piece | End]] = asyncio.Queue()
        self._first: tuple[int, Piece | End] | None = None

        def put(place: int, event: Piece | End) -> None:
            with suppress(RuntimeError):  # the loop is gone: nobody reads any more
                loop.call_soon_threadsafe(self._events.put_nowait, (place, event))

        self._tickets = [
            Ticket(
                inputs,
                replace(sampling, seed=None if sampling.seed is None else sampling.seed + place),
                lambda event, place=place: put(place, event),
            )
            for place in range(count)
        ]
        assert service.engine is not None
        service.engine.submit(self._tickets)

    def cancel(self) -> None:
        """Nobody reads it any more."""
        for ticket in self._tickets:
            ticket.cancel()

    async def begun(self) -> None:
        """Wait until something is said, so that a prompt that fails is an error and not a stream that breaks off."""
        self._first = await self._next()

    async def _next(self) -> tuple[int, Piece | End]:
        if (held := self._first) is not None:
            self._first = None
            return held
        place, event = await self._events.get()
        if isinstance(event, End) and event.error is not None:
            raise event.error
        return place, event

    async def events(self) -> AsyncIterator[tuple[int, Piece | End]]:
        """(number of the answer, what happened) until all are over. Raises what the engine ran into."""
        left = self.count
        while left:
            place, event = await self._next()
            if isinstance(event, End):
                left -= 1
                if event.reason == "abort":
                    raise RefusalError(503, "the answer was given up", "server_error", "aborted")
            yield place, event


def shown(tokens: Sequence[Token], service: Service) -> list[dict[str, Any]]:
    """Tokens with log probabilities in OpenAI's shape."""
    assert service.models.chat is not None
    tokenizer = service.models.chat.processor.tokenizer

    def one(token: int, logprob: float) -> dict[str, Any]:
        text = tokenizer.decode([token])
        return {"token": text, "logprob": max(logprob, -9999.0), "bytes": list(text.encode("utf-8", "replace"))}

    return [
        {**one(token.id, token.logprob), "top_logprobs": [one(*likely) for likely in token.top]} for token in tokens
    ]


def heading(model: str, is_stream: bool) -> dict[str, Any]:
    """What every object of one answer has."""
    kind = "chat.completion.chunk" if is_stream else "chat.completion"
    return {"id": f"chatcmpl-{uuid.uuid4().hex}", "object": kind, "created": int(time.time()), "model": model}


def usage(prompt: int, completion: int) -> dict[str, int]:
    """Tokens in OpenAI's shape."""
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


async def complete(answering: Answering, service: Service, model: str, *, has_logprobs: bool) -> dict[str, Any]:
    """All answers as one object."""
    texts, reasons = [""] * answering.count, [""] * answering.count
    tokens: list[list[Token]] = [[] for _ in texts]
    drawn = 0
    async for place, event in answering.events():
        if isinstance(event, End):
            reasons[place] = event.reason
            drawn += event.tokens
        else:
            texts[place] += event.text
            tokens[place] += event.tokens
    choices = [
        {
            "index": place,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": {"content": shown(tokens[place], service), "refusal": None} if has_logprobs else None,
            "finish_reason": reasons[place],
        }
        for place, text in enumerate(texts)
    ]
    return {**heading(model, False), "choices": choices, "usage": usage(answering.prompt_tokens, drawn)}


async def stream(
    answering: Answering, service: Service, model: str, *, has_logprobs: bool, has_usage: bool
) -> AsyncIterator[bytes]:
    """Server-sent events: a role per answer, pieces, a reason per answer, perhaps the usage, and [DONE]."""
    head, drawn = heading(model, True), 0

    def chunk(place: int, delta: dict[str, Any], reason: str | None = None, tokens: Sequence[Token] = ()) -> bytes:
        told = {"content": shown(tokens, service), "refusal": None} if has_logprobs and tokens else None
        choice = {"index": place, "delta": delta, "logprobs": told, "finish_reason": reason}
        return event_of({**head, "choices": [choice], **({"usage": None} if has_usage else {})})

    try:
        async with asyncio.timeout(service.settings.request_seconds):
            for place in range(answering.count):
                yield chunk(place, {"role": "assistant", "content": ""})
            async for place, event in answering.events():
                if isinstance(event, End):
                    drawn += event.tokens
                    yield chunk(place, {}, event.reason)
                else:
                    yield chunk(place, {"content": event.text}, None, event.tokens)
        if has_usage:
            yield event_of({**head, "choices": [], "usage": usage(answering.prompt_tokens, drawn)})
        yield b"data: [DONE]\n\n"
    except Exception as error:
        # the status is sent already: clients of OpenAI raise for an error among the events
        yield event_of(refusal_of(error).body)
    finally:  # also where the client is gone
        answering.cancel()


def event_of(value: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(value, ensure_ascii=False).encode("utf-8", "replace") + b"\n\n"


def said(value: Any, task: str) -> str:
    """What an assistant found, as the text of an answer: words, or JSON for choices and boxes."""
    if isinstance(value, str):
        return value
    if task == "ground":
        return json.dumps({"box": [round(x, 2) for x in value]})
    return json.dumps({"answers": [{"text": one.text, "probability": round(one.probability, 6)} for one in value]})
