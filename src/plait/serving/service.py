"""The models of a server and what stands in front of them: one engine or batcher each, and the vectors that are kept.

Models (chat, embedder, assistant, index) -> Service: vectors | search | answers | talk -> routes in `app`
"""

from __future__ import annotations

import asyncio
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from plait.assistant import Request
from plait.embedder.parts import Part, Ready
from plait.media.image import load_image
from plait.media.video import load_frames
from plait.processing.videos import chooser
from plait.serving import remote
from plait.serving.batching import Batcher, BusyError
from plait.serving.errors import RefusalError
from plait.serving.generation import Engine
from plait.serving.metrics import Metrics
from plait.serving.parts import Medium, check_media
from plait.serving.settings import Settings

if TYPE_CHECKING:
    from plait.assistant import Assistant
    from plait.chat import Chat
    from plait.embedder import Embedder
    from plait.search import Index

T = TypeVar("T")
Queries = Sequence[Sequence[Medium]]
"""The parts of every vector that is asked for."""
LOADERS = 4
"""Threads that decode media and write prompts: more would only make each of them slower."""


@dataclass
class Models:
    """What a server has; at least one of them.

    names: `chat`, `embed`, `assist` -> what clients call the model.
    """

    names: dict[str, str]
    chat: Chat | None = None
    embedder: Embedder | None = None
    index: Index | None = None
    assistant: Assistant | None = None

    @classmethod
    def load(
        cls,
        chat: str | Path | None = None,
        embed: str | Path | None = None,
        index: str | Path | None = None,
        assist: str | Path | None = None,
        **placed: Any,
    ) -> Models:
        """Open what was asked for.

        Args:
            chat, embed, assist: of models, as their classes take them.
            index: directory of one; without `embed` its own model embeds too.
            placed: `device` and `dtype`.

        Raises:
            ValueError: for none at all, and as the classes.
        """
        if not (chat or embed or index or assist):
            raise ValueError("expected a model to serve, got none; pass --chat, --embed, --index or --assist")
        from plait.assistant import Assistant
        from plait.chat import Chat
        from plait.embedder import Embedder
        from plait.search import Index

        given = {"chat": chat, "embed": embed, "assist": assist}
        found = cls({kind: name_of(model) for kind, model in given.items() if model})
        if index is not None:
            Index.open(index)  # before a model is read, which takes minutes
        if embed is not None:
            found.embedder = Embedder(embed, **placed)
        if index is not None:
            # without an embedder of the caller the index opens its own: two copies of one model would not fit
            found.index = Index.open(index, found.embedder)
            found.embedder = found.embedder or found.index.embedder
            found.names.setdefault("embed", name_of(str(found.index.description.get("model") or index)))
        if chat is not None:
            found.chat = Chat(chat, **placed)
        if assist is not None:
            found.assistant = Assistant(assist, **placed)
        if len(set(found.names.values())) < len(found.names):
            # one directory for two purposes: the routes tell them
            found.names = {kind: name if kind == "chat" else f"{name}-{kind}" for kind, name in found.names.items()}
        return found


def name_of(model: str | Path) -> str:
    """What clients call a model: the name of its directory, or its hub id."""
    path = Path(model)
    return path.name if path.exists() else str(model)


@dataclass(frozen=True)
class Ask:
    """One thing for an assistant."""

    task: Any
    request: Request
    candidates: tuple[str, ...] | None
    options: tuple[tuple[str, int], ...]


@dataclass(frozen=True)
class Kept:
    """A vector (dim,) in the place of what it was made of."""

    vector: np.ndarray


class Vectors:
    """The newest vectors of media by part key, at most so many."""

    def __init__(self, size: int, metrics: Metrics) -> None:
        self._size, self._metrics = size, metrics
        self._held: OrderedDict[Any, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: Any) -> np.ndarray | None:
        """The vector (dim,) of a key, which is now the newest."""
        with self._lock:
            self._metrics.cache_queries.inc()
            # counted before it is looked at, or hits over queries could pass 1
            if key not in self._held:
                return None
            self._metrics.cache_hits.inc()
            self._held.move_to_end(key)
            return self._held[key]

    def put(self, key: Any, vector: np.ndarray) -> None:
        """Keep a vector; the oldest one goes."""
        with self._lock:
            self._held[key] = vector
            while len(self._held) > self._size:
                self._held.popitem(last=False)


class Service:
    """What routes ask: media are read in a few threads, models run in one thread each.

    Args:
        models: on their devices.
        settings: limits.
    """

    def __init__(self, models: Models, settings: Settings) -> None:
        self.models, self.settings, self.metrics = models, settings, Metrics()
        self.is_closing = False
        self._loaders = ThreadPoolExecutor(LOADERS, thread_name_prefix="plait-load")
        self._preparing = 0
        self.vectors = Vectors(settings.cached_vectors, self.metrics)
        self.fetch = partial(remote.fetch, settings=settings)
        names = models.names
        self.engine: Engine | None = None
        self.embedding: Batcher | None = None
        self.assisting: Batcher | None = None
        if models.chat is not None:
            self.engine = Engine(
                models.chat.model, models.chat.processor, max_rows=settings.max_rows, max_waiting=settings.max_waiting,
                watch=self.metrics.watch(names["chat"]),
            )  # fmt: skip
        if models.embedder is not None:
            self.embedding = Batcher(
                self._embed, max_batch=settings.max_batch, max_waiting=settings.max_items, name="plait-embed",
                watch=self.metrics.watch(names["embed"]),
            )  # fmt: skip
        if models.assistant is not None:
            self.assisting = Batcher(
                self._assist, max_batch=models.assistant.batch_size, max_waiting=settings.max_waiting,
                name="plait-assist", watch=self.metrics.watch(names["assist"]),
            )  # fmt: skip

    def close(self, seconds: float = 0.0) -> None:
        """Take nothing more; what runs has so many seconds."""
        self.is_closing = True
        for one in (self.engine, self.embedding, self.assisting):
            if one is not None:
                one.close(seconds)
        self._loaders.shutdown(cancel_futures=True)

    async def load(self, work: Callable[[], T]) -> T:
        """Do something that reads media or writes prompts in a loader's thread.

        Raises BusyError where more wait for a loader than could wait for a model.
        """
        # bodies that wait for a loader lie in memory: the queue of the pool itself has no bound
        if self._preparing >= self.settings.max_waiting + self.settings.max_items:
            raise BusyError
        self._preparing += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._loaders, work)
        finally:
            self._preparing -= 1

    async def embed(self, read: Callable[[], Queries], *, anew: bool = False) -> tuple[list[np.ndarray], int]:
        """A unit vector (dim,) per query, and how many pieces of text all of them have; `anew` looks at no kept one.

        read: gives the queries, in a loader's thread.

        Raises ValueError that names the first query without one, BusyError where too many wait.
        """
        assert self.embedding is not None and self.models.embedder is not None
        count_tokens, most = self.models.embedder.count_tokens, self.settings.max_items

        def prepare() -> tuple[list[list[Part]], int]:
            queries = read()
            parts = [one for query in queries for one in query]
            # before anything is decoded, which is what costs
            check_media(parts, self.settings)
            if len(queries) > most:
                raise RefusalError(400, f"expected at most {most} vectors of one request, got {len(queries)}")
            ready = [[self._ready(one, anew) for one in query] for query in queries]
            return ready, count_tokens([str(one.value) for one in parts if one.modality == "text"])

        ready, tokens = await self.load(prepare)
        futures = self.embedding.submit(ready)
        try:
            return list(await asyncio.gather(*map(asyncio.wrap_future, futures))), tokens
        finally:  # cancelled, or one of them failed: what has not begun need not
            _cancel(futures)

    def _ready(self, medium: Medium, anew: bool) -> Part:
        """A part that may wait: decoded and prepared, unless its vector is kept."""
        assert self.models.embedder is not None
        part, content = medium.part, medium.content
        # a text is embedded faster than it is looked up safely, and would keep a person's words in memory
        is_kept = medium.modality != "text" and not anew
        if is_kept and (vector := self.vectors.get((medium.modality, content))) is not None:
            return replace(part, value=Ready(Kept(vector), content))
        return self.models.embedder.ready(part, content, self.settings.limits)

    def _embed(self, queries: Sequence[Sequence[Part]]) -> list[Any]:
        """What the batcher's thread does: kept vectors and new ones, fused per query."""
        assert self.models.embedder is not None
        media = [part for query in queries for part in query if isinstance(part.value, Ready)]
        known = {part.key: part.value.value.vector for part in media if isinstance(part.value.value, Kept)}
        found, vectors = self.models.embedder.embed_queries(queries, known)
        for part in media:
            # parts that failed have none, and are tried again the next time
            if part.key in vectors:
                self.vectors.put((part.modality, part.value.content), vectors[part.key])
        return [ValueError(one) if isinstance(one, str) else one for one in found]

    async def search(self, read: Callable[[], Sequence[Medium]], k: int, modality: str | None) -> list[Any]:
        """The nearest rows of the index; read: gives the parts of the query, in a loader's thread."""
        assert self.models.index is not None
        (vector,), _ = await self.embed(lambda: [read()])
        return await self.load(partial(self.models.index.search, vector, k, modality=modality))

    async def assist(self, make: Callable[[], Ask]) -> tuple[Ask, Any]:
        """What was asked, and what the assistant says; make: makes the request, in a loader's thread."""
        assert self.assisting is not None
        ask = await self.load(make)
        futures = self.assisting.submit([ask])
        try:
            return ask, await asyncio.wrap_future(futures[0])
        finally:
            _cancel(futures)

    def _assist(self, asks: Sequence[Ask]) -> list[Any]:
        """What the batcher's thread does: requests of one task and one way together."""
        assistant = self.models.assistant
        assert assistant is not None
        groups: dict[Any, list[int]] = {}
        for place, ask in enumerate(asks):
            # only what one forward pass can share: options are those of a whole batch
            groups.setdefault((ask.task, ask.candidates, ask.options), []).append(place)
        found: list[Any] = [None] * len(asks)
        for (task, candidates, options), places in groups.items():
            for batch in (places, *([place] for place in places)):
                if not (missing := [place for place in batch if found[place] is None]):
                    continue
                try:
                    requests = [asks[place].request for place in missing]
                    results = list(assistant.stream(task, requests, candidates=candidates, options=dict(options)))
                except Exception as error:
                    # of one of them: then each by itself, so that it alone fails
                    if len(batch) == 1:
                        found[missing[0]] = error
                    continue
                for place, result in zip(missing, results, strict=True):
                    found[place] = result.value if result.error is None else ValueError(result.error)
        return found

    def media_of(self, medium: Medium, num_frames: int, frames: str = "time") -> Any:
        """What a part of a conversation shows: a PIL image, or a list of frames, chosen by a rule."""
        limits = self.settings.limits
        if medium.modality == "image":
            return load_image(medium.value, **limits["image"])
        assert isinstance(medium.value, bytes)
        return load_frames(medium.value, num_frames, choose=chooser(frames, num_frames), **limits["video"])


def _cancel(futures: Sequence[Future[Any]]) -> None:
    for future in futures:
        future.cancel()
