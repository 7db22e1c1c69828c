"""Conversations with a model that reads images, videos and text: `Chat` keeps the history and streams the answers.

    question, media -> messages -> chat template of the processor -> model.generate in a thread
        -> ids -> `Pieces` of text that will not change any more -> history

Any family takes part whose processor has a `chat_template` (roles `user`, `assistant` and `system`; contents of type
`image`, `video` and `text`), `processor(text=, images=, videos=)` -> what `model.generate` takes, `decode(ids)`, and,
where an end of an answer is no token of its own, `stop_strings`.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import SimpleQueue
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from plait.types import Several

if TYPE_CHECKING:
    import torch

__all__ = ["Chat"]

Message = dict[str, Any]
UNBOUNDED = 1 << 30
"""Tokens of an answer where the model names no limit of positions."""
HISTORY = "plait.chat/1"
"""What a saved conversation says that it is."""
MAX_HISTORY = 1 << 30
"""Bytes of a saved conversation: some dozens of photographs."""
PARTS = ("text", "image", "video")
"""Of a message's content."""
UNFINISHED = "\ufffd"
"""What the first bytes of a character decode to."""


class Chat:
    """One conversation: keeps what was said and shown, and writes the answers piece by piece.

    Args:
        model: a model directory or hub id, an official checkpoint, or a pair `(model, processor)`.
        device: where the model runs; the first GPU when there is one, else the CPU.
        dtype: for example `"bfloat16"`, or `"int8"` on a CPU; as stored when None, but float32 on a CPU.
        adapter: directory of a LoRA trained on the model, merged into it in memory.
        device_map, attn_implementation: as in `plait.load`.
        system: what the conversation begins with, instead of the template's own words.
        num_frames: images that a video becomes, spread evenly over it; without it as many as the processor
            says, else 8.
        max_new_tokens: most tokens of an answer.
        temperature: 0 always takes the likeliest token; the published demos sample at 0.2 and 0.7.
        top_p: sample among the likeliest tokens that have this probability together; None is 1, all of them.

    Raises:
        ValueError: for a model that does not talk, and numbers out of range.

    Example:
        >>> chat = Chat("owl2-dir")
        >>> chat.ask("What is in this picture?", images=["dog.jpg"])  # 'A dog on a beach.'
        >>> for piece in chat.stream("What colour is it?"):
        ...     print(piece, end="", flush=True)
    """

    def __init__(
        self,
        model: str | Path | tuple[Any, Any],
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        adapter: str | Path | None = None,
        *,
        device_map: str | int | Mapping[str, Any] | None = None,
        attn_implementation: str | None = None,
        system: str | None = None,
        num_frames: int | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float | None = None,
    ) -> None:
        if max_new_tokens < 1 or num_frames == 0 or temperature < 0:
            raise ValueError(
                "expected at least 1 new token and 1 frame and a temperature of 0 or more, got "
                f"{max_new_tokens}, {num_frames} and {temperature}"
            )
        if top_p is not None and (not 0 < top_p <= 1 or not temperature):
            raise ValueError(
                f"expected top_p above 0 and up to 1 beside a temperature above 0, got {top_p} and {temperature}; "
                "without a temperature the likeliest token is taken and top_p does nothing"
            )
        from plait.models import auto

        self.model, self.processor = auto.opened(model, device, dtype, adapter, device_map, attn_implementation)
        if not hasattr(self.model, "generate") or not getattr(self.processor, "chat_template", None):
            raise ValueError(
                f"expected a model that talks, got {type(self.model).__name__}; pass one of another family"
            )
        self.num_frames = num_frames or getattr(self.processor, "num_frames", 8)
        self.max_new_tokens = max_new_tokens
        self.temperature, self.top_p = temperature, top_p
        self._begin: list[Message] = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[Message] = list(self._begin)
        self._is_answering = False

    def another(self) -> Chat:
        """A new conversation with the same model and settings, and a history of its own.

        Returns:
            A `Chat` that shares the weights: a second one costs no memory.
        """
        other = object.__new__(Chat)
        other.__dict__.update(self.__dict__, messages=list(self._begin), _is_answering=False)
        return other

    def save(self, path: str | Path) -> None:
        """Write the conversation as JSON, images and frames inside it as PNG; `restore` reads it.

        Args:
            path: of the file, which is replaced.
        """
        from plait.places import atomic_write

        kept = [{**m, "content": _mapped(m["content"], _written)} for m in self.messages]
        atomic_write(Path(path), json.dumps({"format": HISTORY, "messages": kept}, ensure_ascii=False))

    def restore(self, path: str | Path) -> None:
        """Continue the conversation in a file that `save` wrote, instead of this one.

        Args:
            path: of the file.

        Raises:
            ValueError: for a file that is no conversation, and media in it that are no images.
        """
        from plait.reading import read_json

        found = read_json(Path(path), most=MAX_HISTORY)
        messages = found.get("messages")
        if found.get("format") != HISTORY or not isinstance(messages, list) or not all(map(_is_message, messages)):
            raise ValueError(f"expected a conversation that Chat.save wrote, got {path}; pass another file")
        self.messages = [{**m, "content": _mapped(m["content"], _shown)} for m in messages]

    def clear(self) -> None:
        """Forget everything that was said, but for the system's words."""
        self.messages = list(self._begin)

    def ask(self, question: str, images: Several[Any] = (), videos: Several[Any] = ()) -> str:
        """The whole answer.

        Args:
            question, images, videos: as in `stream`.

        Raises:
            ValueError: as `stream`.
        """
        return "".join(self.stream(question, images, videos))

    def stream(self, question: str, images: Several[Any] = (), videos: Several[Any] = ()) -> Iterator[str]:
        """The answer piece by piece, as it is written.

        An iterator that is closed, or interrupted, stops the answer; what was said until then stays in the
        history.

        Args:
            question: not empty.
            images: paths, bytes, PIL images of any size, arrays or tensors.
            videos: paths, bytes, arrays of frames, or lists of PIL frames. Media stand before the question,
                images first.

        Returns:
            Pieces that, joined, are the answer.

        Raises:
            ValueError: for media that cannot be read, without a question, for a conversation over the context of the
                model, and while another answer of this conversation is being written. All of it before the first
                piece.
        """
        if self._is_answering:
            raise ValueError("expected the last answer to be over, got a question; read it to its end or close it")
        if not question.strip():
            raise ValueError("expected a question, got none")
        for name, given in (("images", images), ("videos", videos)):
            if isinstance(given, str | bytes | Path):  # its letters would be so many paths
                raise ValueError(f"expected a list of {name}, got one {type(given).__name__}; wrap it in a list")
        from plait.media.image import load_image
        from plait.media.values import MEDIA

        pictures = [load_image(image) for image in images]
        # frames in memory stay as many as they are
        count = {"num_frames": self.num_frames}
        clips = [list(v) if isinstance(v, list | tuple) else MEDIA["video"].load(v, 0, **count) for v in videos]
        content: list[Message] = [{"type": "image", "image": picture} for picture in pictures]
        content += [{"type": "video", "video": clip} for clip in clips]
        message = {"role": "user", "content": [*content, {"type": "text", "text": question}]}
        inputs, room = self.read([*self.messages, message])
        # a generator of its own: all of the above is checked when `stream` is called, not when the answer is read
        return self._answer(message, inputs, min(room, self.max_new_tokens))

    def read(self, messages: Sequence[Message]) -> tuple[Mapping[str, Any], int]:
        """What the model reads of a whole conversation, whatever this one's history is.

        Args:
            messages: `{"role", "content"}`, contents a text or parts of type `text`, `image` (PIL under `image`) and
                `video` (a list of PIL frames under `video`).

        Returns:
            The processor's tensors on the model's device, and how many tokens an answer may have.

        Raises:
            ValueError: for a conversation over the context of the model.
        """
        inputs = self._inputs(messages)
        length = inputs["input_ids"].shape[1]
        # a family says `context` where its limit lies in a nested configuration
        config = self.model.config
        context = getattr(config, "context", None) or getattr(config, "max_position_embeddings", None)
        if context is None:
            return inputs, UNBOUNDED
        if length >= context:
            raise ValueError(
                f"expected a conversation of less than {context} positions, got {length}; begin a new one, or show less"
            )
        return inputs, context - length

    def _inputs(self, messages: Sequence[Message]) -> Mapping[str, Any]:
        """What the model reads: the whole conversation as one text, and all that was ever shown in it, in order.

        messages: in the layout of transformers' chat templates. Returns the processor's tensors on the model's
            device.
        """
        contents = [m["content"] if isinstance(m["content"], list) else [] for m in messages]
        # the template needs to know where media stand, not what they are
        described = [
            {**m, "content": [{k: v for k, v in part.items() if k in ("type", "text")} for part in parts]}
            if parts
            else m
            for m, parts in zip(messages, contents, strict=True)
        ]
        from plait.generation.templates import write_chat

        prompt = write_chat(self.processor, described)
        media: dict[str, list[Any]] = {}
        for part in (part for parts in contents for part in parts if part["type"] != "text"):
            media.setdefault(f"{part['type']}s", []).append(part[part["type"]])
        return self.processor(text=[prompt], **media).to(self.model.device)

    def _answer(self, message: Message, inputs: Mapping[str, Any], room: int) -> Iterator[str]:
        """Pieces from the thread that generates; the history grows when they end, or are no longer read."""
        said, failed = "", False
        queue: SimpleQueue[Any] = SimpleQueue()
        stop = Event()
        thread = Thread(target=self._generate, args=(inputs, room, queue, stop), name="plait-chat", daemon=True)
        self._is_answering = True
        thread.start()
        try:
            while (piece := queue.get()) is not None:
                if isinstance(piece, BaseException):
                    failed = True
                    raise piece
                said += piece
                yield piece
        finally:
            # the thread stops at its next token
            stop.set()
            self._is_answering = False
            # a failed answer leaves no half turn behind: the question can be asked again
            if said and not failed:
                self.messages += [message, {"role": "assistant", "content": said}]
            thread.join()  # last: a second interrupt may come while a step ends

    def _generate(self, inputs: Mapping[str, Any], room: int, queue: SimpleQueue[Any], stop: Event) -> None:
        """What the thread does: `generate` with the pieces going into the queue, then None, whatever happened."""
        import torch
        from transformers import StoppingCriteriaList

        def stopped(ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
            return torch.full((len(ids),), stop.is_set(), device=ids.device)

        how: dict[str, Any] = {"do_sample": self.temperature > 0}
        if self.temperature > 0:
            # top_p is always said: a model's own generation_config may hold another
            how |= {"temperature": self.temperature, "top_p": 1.0 if self.top_p is None else self.top_p}
        pieces = Pieces(self.processor.decode, getattr(self.processor, "stop_strings", ()), queue.put, stop)
        criteria: Any = StoppingCriteriaList([stopped])
        try:
            with torch.inference_mode():
                self.model.generate(
                    **inputs, streamer=pieces, stopping_criteria=criteria, max_new_tokens=room, num_beams=1, **how
                )
        except BaseException as error:  # raised again where the answer is read
            queue.put(error)
        finally:
            queue.put(None)


def _is_message(message: Any) -> bool:
    """Whether this has a role, and a text or parts of known types as content."""
    content = message.get("content") if isinstance(message, dict) else None
    parts = content if isinstance(content, list) else []
    is_whole = all(isinstance(part, dict) and part.get("type") in part and part["type"] in PARTS for part in parts)
    return isinstance(content, str | list) and message.get("role") in ("system", "user", "assistant") and is_whole


def _mapped(content: str | list[Message], change: Callable[[Any], Any]) -> str | list[Message]:
    """A message's content, its media changed; words stay."""
    if isinstance(content, str):
        return content
    return [part if part["type"] == "text" else {**part, part["type"]: change(part[part["type"]])} for part in content]


def _written(value: Any) -> Any:
    """A picture, or a list of frames, as data URIs without loss."""
    if isinstance(value, list):
        return [_written(frame) for frame in value]
    file = io.BytesIO()
    value.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _shown(value: Any) -> Any:
    """The picture or frames of `_written`. Raises ValueError for anything else: a file's name is not opened."""
    from plait.media.image import load_image

    if isinstance(value, list):
        return [_shown(frame) for frame in value]
    if not (isinstance(value, str) and value.startswith("data:")):
        raise ValueError(f"expected pictures inside the conversation, got {value!r:.60}; pass a file of Chat.save")
    return load_image(value)


class Pieces:
    """A streamer for transformers' `generate` whose pieces, joined, are exactly the text of the whole answer.

    ids so far -> whole text decoded again -> cut at a stop -> end that may change held back -> new piece

    Args:
        decode: ids -> text without special tokens.
        stops: texts that end an answer and are no part of it.
        put: takes the pieces.
        stop: set when a stop was found.

    Example:
        >>> said = []
        >>> pieces = Pieces(lambda ids: "".join(map(chr, ids)), ["###"], said.append, Event())
        >>> for ids in ([[0]], [72], [105], [35], [35], [35]):
        ...     pieces.put(torch.tensor(ids))
        >>> pieces.end()
        >>> said
        ['H', 'i']
    """

    def __init__(
        self, decode: Callable[[list[int]], str], stops: Sequence[str], put: Callable[[str], Any], stop: Event
    ) -> None:
        self.decode, self.stops, self._put, self.stop = decode, tuple(stops), put, stop
        self.ids: list[int] = []
        self.said = ""
        self._is_prompt = True

    def put(self, value: Any) -> None:
        """Take what `generate` hands over.

        value: the prompt (1, seq), then every new id (1,).
        """
        if self._is_prompt:
            self._is_prompt = False
            return
        # decoded as a whole every time: a tokenizer may write a blank, or join bytes, only with what follows
        self.ids += value.flatten().tolist()
        text, is_over = self._cut(self.decode(self.ids))
        if is_over:
            self.stop.set()
        else:
            text = text[: len(text) - self._held(text)]
        self._say(text)

    def end(self) -> None:
        """The rest: nothing can follow that would change it. Called by `generate` once."""
        self._say(self._cut(self.decode(self.ids))[0])

    def _say(self, text: str) -> None:
        # else the decoder changed its mind about what was said, which nobody can take back
        """Hand over what `text` has on top of what was said."""
        if len(text) > len(self.said) and text.startswith(self.said):
            piece, self.said = text[len(self.said) :], text
            self._put(piece)

    def _cut(self, text: str) -> tuple[str, bool]:
        """The text before the first stop and whether there is one; blanks in front of it go too."""
        places = [place for stop in self.stops if (place := text.find(stop)) >= 0]
        return (text[: min(places)].rstrip(), True) if places else (text, False)

    def _held(self, text: str) -> int:
        """How many characters at the end may still change: half a character, or the beginning of a stop and blanks.

        A stop counts in every length down to one letter, since the rest may come with the next token.
        """
        kept = len(text.rstrip(UNFINISHED))
        for stop in self.stops:
            for size in range(min(len(stop) - 1, kept), 0, -1):
                if text.endswith(stop[:size], 0, kept):
                    return len(text) - len(text[: kept - size].rstrip())
        return len(text) - kept
