"""The routes, as a FastAPI application: OpenAI's, Cohere's and vLLM's words in front of what Plait's classes do.

create_app(models, settings) -> Door (key, limits, counts) -> route -> Service -> JSON as clients know it
"""

from __future__ import annotations

import asyncio
import base64
import html
import json
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from fastapi import FastAPI
from fastapi import Request as HttpRequest
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

import plait
from plait.modalities import names
from plait.serving import talk
from plait.serving.door import Door
from plait.serving.errors import ClientGoneError, RefusalError, refusal_of
from plait.serving.parts import Medium, queries_of, read_parts
from plait.serving.ready import Readiness
from plait.serving.schema import ChatBody, EmbeddingsBody, RerankBody, SearchBody
from plait.serving.service import Models, Service
from plait.serving.settings import Settings

T = TypeVar("T")
GONE = 499
"""The status of what nobody waits for any more, in logs and counts alone."""
RERANK = ("/v1/rerank", "/rerank", "/v2/rerank")
"""Where clients of vLLM, Jina and Cohere ask."""
STYLE = (
    "body{font:16px/1.5 system-ui;max-width:50rem;margin:2rem auto} pre{overflow:auto;padding:1rem;background:#8881}"
)


def create_app(models: Models, settings: Settings, known_vectors: Path | None = None) -> FastAPI:
    """The application.

    Args:
        models: on their devices.
        settings: limits and key.
        known_vectors: file that `/ready` compares with; None for one in this user's cache.

    Returns:
        An ASGI application; its `state.service` closes what runs when the application ends.

    Example:
        >>> app = create_app(Models.load(embed="nano"), Settings(key="a long secret"))
    """
    service = Service(models, settings)
    readiness = Readiness(service, known_vectors)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None]:
        # before anything is served: the first vectors of a model are slow, and clients would wait for them
        await readiness.start()
        yield
        # what runs is over or out of time by now: the web server waited for it before it ended the application
        await asyncio.to_thread(service.close)

    app = FastAPI(
        title="Plait", version=plait.__version__, lifespan=lifespan, docs_url=None, redoc_url=None,
        description="Embeddings of text, images, videos, sounds and their mixtures; search; conversations.",
    )  # fmt: skip
    app.state.service = service
    _add_errors(app)
    _add_facts(app, service, readiness)
    if models.chat is not None or models.assistant is not None:
        _add_chat(app, service)
    if models.embedder is not None:
        _add_embeddings(app, service)
    if models.index is not None:
        _add_search(app, service)
    paths = {getattr(route, "path", ""): getattr(route, "path", "") for route in app.routes}
    app.add_middleware(
        Door, settings=settings, metrics=service.metrics, paths=paths, is_closing=lambda: service.is_closing
    )
    return app


def _add_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    async def told(_: HttpRequest, error: Exception) -> Response:
        if isinstance(error, ClientGoneError):
            return Response(status_code=GONE)
        refusal = refusal_of(error)
        return JSONResponse(refusal.body, refusal.status, headers=refusal.headers)

    async def misfit(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        # the first alone, and never its input: error texts hold nothing of a request
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"][1:])) or "the body"
        words = "fields of this route alone" if first["type"] == "extra_forbidden" else first["msg"]
        refusal = RefusalError(400, f"expected {words}, got another value at {where}", param=where)
        return JSONResponse(refusal.body, 400)

    async def unknown(_: HttpRequest, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        words = {404: "expected a route of this server, got another; GET /openapi.json lists them"}
        refusal = RefusalError(error.status_code, words.get(error.status_code, str(error.detail)), code="http")
        return JSONResponse(refusal.body, error.status_code)

    for kind in (RefusalError, ClientGoneError, ValueError, TimeoutError, ImportError):
        app.add_exception_handler(kind, told)
    app.add_exception_handler(RequestValidationError, misfit)
    app.add_exception_handler(HTTPException, unknown)


async def while_connected(request: HttpRequest, work: Awaitable[T], seconds: float) -> T:
    """The result of some work, given up when the client leaves or the time is over.

    Raises ClientGoneError, TimeoutError and what the work raises.
    """

    async def left() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    # two tasks, since nothing else tells that a client left while the work goes on in a thread
    task, gone = asyncio.ensure_future(work), asyncio.ensure_future(left())
    try:
        done, _ = await asyncio.wait({task, gone}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        # first: where both are done, the answer exists and costs nothing more to send
        if task in done:
            return task.result()
        raise ClientGoneError if gone in done else TimeoutError
    finally:
        # awaited after cancelling, or their errors would be logged as never retrieved
        for one in (task, gone):
            one.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


def _add_facts(app: FastAPI, service: Service, readiness: Readiness) -> None:
    """Health, readiness, metrics, models and the page of the API."""
    models = service.models

    @app.get("/health", summary="Whether the process answers; needs no key")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/ready", summary="Whether vectors are right: one known item per modality against stored ones")
    async def ready() -> Response:
        is_well, seen = await readiness.check()
        return JSONResponse(dict(seen), 200 if is_well else 503)

    @app.get("/metrics", summary="For Prometheus, under the names of vLLM")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    def described() -> list[dict[str, Any]]:
        rows = []
        for kind, name in models.names.items():
            row: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "plait", "purpose": kind}
            if kind == "embed" and models.embedder is not None:
                row |= {
                    "modalities": models.embedder.accepts,
                    "dims": models.embedder.dim,
                    "fingerprint": models.embedder.fingerprint,
                }
            if kind == "assist" and models.assistant is not None:
                row |= {"tasks": models.assistant.tasks}
            rows.append(row)
        return rows

    @app.get("/v1/models", summary="The models of this server")
    async def listed() -> dict[str, Any]:
        return {"object": "list", "data": described()}

    @app.get("/v1/models/{model:path}", summary="One model of this server")
    async def one(model: str) -> dict[str, Any]:
        found = next((row for row in described() if row["id"] == model), None)
        if found is None:
            raise _no_model(model, models.names)
        return found

    @app.get("/docs", include_in_schema=False)
    # a page of our own: the usual ones load scripts from elsewhere
    async def page() -> HTMLResponse:
        return HTMLResponse(_page(app.openapi()))


def _no_model(model: str, names: dict[str, str]) -> RefusalError:
    known = ", ".join(names.values())
    return RefusalError(
        404, f"expected one of the models {known}, got {model!r:.100}", code="model_not_found", param="model"
    )


def _chosen(model: str | None, service: Service, kinds: Sequence[str]) -> str:
    """Which of some kinds of model a request means. Raises RefusalError for a model that is none of them."""
    names = service.models.names
    fitting = [kind for kind in kinds if kind in names]
    if model is None:
        return fitting[0]
    found = next((kind for kind in fitting if names[kind] == model), None)
    if found is None:
        raise _no_model(model, {kind: names[kind] for kind in fitting})
    return found


def _add_chat(app: FastAPI, service: Service) -> None:
    """`/v1/chat/completions`."""
    names, seconds = service.models.names, service.settings.request_seconds

    @app.post("/v1/chat/completions", summary="An answer to a conversation with images and videos; may stream")
    async def chat(body: ChatBody, request: HttpRequest) -> Response:
        kind = _chosen(body.model, service, ("chat", "assist"))
        body.check()
        if kind == "assist":
            return await assist(body, request)
        count = body.n or 1
        if count > service.settings.max_answers:
            raise RefusalError(400, f"expected n of at most {service.settings.max_answers}, got {count}", param="n")
        if body.task or body.candidates:
            raise RefusalError(
                400, "expected no task and candidates for this model, got some; ask in words", param="task"
            )
        inputs, sampling = await while_connected(request, service.load(lambda: talk.read_chat(body, service)), seconds)
        answering = talk.Answering(service, inputs, sampling, count)
        told = bool(body.logprobs)
        try:
            if not body.stream:
                work = talk.complete(answering, service, names["chat"], has_logprobs=told)
                return JSONResponse(await while_connected(request, work, seconds))
            # the first piece is awaited before the head is sent: after it, an error has no status code any more
            await while_connected(request, answering.begun(), seconds)
        # cancellation too: rows of an answer that nobody reads leave the batch
        except BaseException:
            answering.cancel()
            raise
        has_usage = bool((body.stream_options or {}).get("include_usage"))
        events = talk.stream(answering, service, names["chat"], has_logprobs=told, has_usage=has_usage)
        return StreamingResponse(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})

    async def assist(body: ChatBody, request: HttpRequest) -> Response:
        ask, value = await while_connected(request, service.assist(lambda: talk.read_ask(body, service)), seconds)
        text = talk.said(value, ask.task)
        head = talk.heading(names["assist"], bool(body.stream))
        choice: dict[str, Any] = {"index": 0, "logprobs": None, "finish_reason": "stop"}
        message = {"role": "assistant", "content": text}
        if body.stream:
            chunk = talk.event_of({**head, "choices": [{**choice, "delta": message}]})
            return Response(chunk + b"data: [DONE]\n\n", media_type="text/event-stream")
        # the tokens of these models are not counted: 0 is what a client that sums them can live with
        return JSONResponse({**head, "choices": [{**choice, "message": message}], "usage": talk.usage(0, 0)})


def _add_embeddings(app: FastAPI, service: Service) -> None:
    """`/v1/embeddings` and rerank."""
    embedder, settings = service.models.embedder, service.settings
    assert embedder is not None

    @app.post("/v1/embeddings", summary="Vectors of texts, images, videos, sounds and mixtures")
    async def embeddings(body: EmbeddingsBody, request: HttpRequest) -> Response:
        kind = _chosen(body.model, service, ("embed",))
        dims = body.dimensions or embedder.dim
        if dims > embedder.dim:
            raise RefusalError(400, f"expected at most {embedder.dim} dimensions, got {dims}", param="dimensions")

        given = body.model_dump(include={"input", "messages"})
        work = service.embed(lambda: queries_of(given, settings, service.fetch))
        vectors, tokens = await while_connected(request, work, settings.request_seconds)
        # only where asked: a shortened vector is scaled to length 1 again, which changes its last bits
        if body.dimensions:
            vectors = [_shortened(vector, dims) for vector in vectors]
        encode = _base64 if body.encoding_format == "base64" else np.ndarray.tolist
        data = [
            {"object": "embedding", "index": place, "embedding": encode(vector)} for place, vector in enumerate(vectors)
        ]
        return JSONResponse(
            {
                "object": "list",
                "data": data,
                "model": service.models.names[kind],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
                "dims": dims,
                "fingerprint": embedder.fingerprint,
            }
        )

    async def rerank(body: RerankBody, request: HttpRequest) -> Response:
        kind = _chosen(body.model, service, ("embed",))
        if len(body.documents) > settings.max_inputs:
            raise RefusalError(400, f"expected at most {settings.max_inputs} documents, got {len(body.documents)}")

        work = service.embed(lambda: _ranked_parts(body, service))
        (query, *documents), tokens = await while_connected(request, work, settings.request_seconds)
        scores = np.stack(documents) @ query
        # stable: equal documents keep the order of the request
        order = np.argsort(-scores, kind="stable")[: body.top_n].tolist()
        results = [{"index": place, "relevance_score": float(scores[place])} for place in order]
        if body.return_documents:
            results = [{**one, "document": _shown(body.documents[int(one["index"])])} for one in results]
        head = {"id": f"rerank-{talk.uuid.uuid4().hex}", "model": service.models.names[kind]}
        return JSONResponse({**head, "results": results, "usage": {"total_tokens": tokens}, "meta": {}})

    for path in RERANK:
        app.post(path, summary="Documents by their cosine to a query", include_in_schema=path == RERANK[0])(rerank)


def _ranked_parts(body: RerankBody, service: Service) -> list[list[Medium]]:
    """The parts of the query, then those of every document: a text, `{"text"}`, `{"content": parts}` or parts."""

    def parts(value: Any, where: str) -> list[Medium]:
        if isinstance(value, dict):
            if len(value) != 1 or next(iter(value)) not in ("text", "content"):
                raise RefusalError(400, f"expected text or content in {where}, got other fields", param=where)
            value = next(iter(value.values()))
        return read_parts(value, where, service.settings, service.fetch)

    documents = [parts(one, f"documents[{place}]") for place, one in enumerate(body.documents)]
    return [parts(body.query, "query"), *documents]


def _shown(document: Any) -> dict[str, Any]:
    """A document in an answer, as Cohere has it."""
    return document if isinstance(document, dict) else {"text" if isinstance(document, str) else "content": document}


def _add_search(app: FastAPI, service: Service) -> None:
    """`/v1/search`."""
    settings = service.settings

    @app.post("/v1/search", summary="What lies in the index nearest to a query of any mixture")
    async def search(body: SearchBody, request: HttpRequest) -> Response:
        _chosen(body.model, service, ("embed",))
        k = body.k or 10
        if k > settings.max_inputs:
            raise RefusalError(400, f"expected k of at most {settings.max_inputs}, got {k}", param="k")

        if body.modality is not None and body.modality not in names():
            got = f"{', '.join(names())} as the modality, got {body.modality!r:.40}"
            raise RefusalError(400, f"expected one of {got}", param="modality")
        work = service.search(lambda: read_parts(body.query, "query", settings, service.fetch), k, body.modality)
        hits = await while_connected(request, work, settings.request_seconds)
        data = [
            {"index": place, "object": "search.hit"}
            | {name: getattr(hit, name) for name in ("id", "path", "score", "modality", "caption", "label")}
            for place, hit in enumerate(hits)
        ]
        return JSONResponse({"object": "list", "data": data, "model": service.models.names["embed"]})


def _shortened(vector: np.ndarray, dims: int) -> np.ndarray:
    """The first numbers of a vector, brought to unit length. Raises RefusalError where they are all zero."""
    length = float(np.linalg.norm(vector[:dims]))
    if length < 1e-6:
        raise RefusalError(
            400, f"expected dimensions that leave a direction, got {dims}; take more", param="dimensions"
        )
    return vector[:dims] / length


def _base64(vector: np.ndarray) -> str:
    """Float32, little endian, as OpenAI has it."""
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _page(api: dict[str, Any]) -> str:
    """Routes with examples of their bodies, without a script: nothing is loaded from elsewhere."""
    schemas = api.get("components", {}).get("schemas", {})
    title, rows = f"<h1>Plait {plait.__version__}</h1>", []
    for path, methods in api["paths"].items():
        for method, route in methods.items():
            rows.append(f"<h2>{method.upper()} {html.escape(path)}</h2><p>{html.escape(route.get('summary', ''))}</p>")
            content = route.get("requestBody", {}).get("content", {}).get("application/json", {})
            schema = schemas.get(content.get("schema", {}).get("$ref", "").rpartition("/")[2], {})
            if schema.get("description"):
                rows.append(f"<p>{html.escape(schema['description'])}</p>")
            for example in schema.get("examples", ()):
                rows.append(f"<pre>{html.escape(json.dumps(example, indent=2))}</pre>")
    return f"<!doctype html><meta charset=utf-8><title>Plait</title><style>{STYLE}</style>{title}{''.join(rows)}"
