"""The verb `plait serve`: models behind OpenAI's routes, until it is interrupted or asked to stop."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import sys
from typing import Annotated, Any

import typer

from plait.cli.options import DeviceOption, DtypeOption, LimitOption, raise_limits
from plait.errors import UsageError, import_extra

KEY = "PLAIT_API_KEY"
"""The variable that holds the key: a command line is read by everybody on a machine."""


def serve(
    *,
    chat: Annotated[str | None, typer.Option(help="model that talks: /v1/chat/completions; none without it")] = None,
    embed: Annotated[
        str | None, typer.Option(help="model that embeds: /v1/embeddings, /v1/rerank; none without it")
    ] = None,
    index: Annotated[str | None, typer.Option(help="index to search: /v1/search; none without it")] = None,
    assist: Annotated[
        str | None, typer.Option(help="model that captions, answers, grounds or classifies; none without it")
    ] = None,
    host: Annotated[str, typer.Option(help="address to listen at; 0.0.0.0 for all")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="0 takes a free one", min=0, max=65535)] = 8000,
    no_key: Annotated[bool, typer.Option("--no-key", help="ask for no key; on this machine alone")] = False,
    allow_host: Annotated[list[str] | None, typer.Option(help="host whose media may be fetched; repeatable")] = None,
    max_body: Annotated[int, typer.Option(help="MiB of a request", min=1)] = 32,
    max_rows: Annotated[int, typer.Option(help="answers that are written at a time", min=1)] = 16,
    max_waiting: Annotated[int, typer.Option(help="answers that may wait before clients get 429", min=1)] = 64,
    timeout: Annotated[float, typer.Option(help="seconds for an answer", min=1)] = 300.0,
    drain: Annotated[float, typer.Option(help="seconds for what runs when the server is stopped", min=0)] = 30.0,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    limits: LimitOption = None,
) -> None:
    """Serve models to clients of OpenAI's API.

    The key of clients is read from PLAIT_API_KEY; without it a new one is made and printed.
    """
    raise_limits(limits)
    from plait.serving.settings import LOOPBACK, Settings

    if no_key and host not in LOOPBACK:
        raise UsageError(f"expected a key where others reach the server, got --no-key at {host}; set {KEY}")
    if not (chat or embed or index or assist):
        raise UsageError("expected a model to serve, got none; pass --chat, --embed, --index or --assist")
    key = None if no_key else os.environ.get(KEY) or secrets.token_urlsafe(24)
    settings = Settings(
        key=key, max_body=max_body << 20, max_rows=max_rows, max_waiting=max_waiting, request_seconds=timeout,
        drain_seconds=drain, hosts=tuple(allow_host or ()),
    )  # fmt: skip
    uvicorn: Any = import_extra("uvicorn")
    for module in ("fastapi", "prometheus_client"):
        import_extra(module)
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(0)
    )  # being stopped is no failure, before the web server runs or after
    with listening(host, port) as place:  # before models are loaded, which may take minutes
        from plait.serving import Models, create_app

        models = Models.load(chat, embed, index, assist, device=device, dtype=dtype)
        server = uvicorn.Server(config_of(create_app(models, settings), settings))
        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
        where, shown = place.getsockname()[:2], f"[{host}]" if ":" in host else host
        # flushed: whoever starts it from a program reads the address here
        print(f"serving {', '.join(models.names.values())} at http://{shown}:{where[1]}/v1", flush=True)
        if key is not None:
            print(f"key: {'as in ' + KEY if os.environ.get(KEY) else key}", flush=True)
        server.run(sockets=[place])


def config_of(app: Any, settings: Any) -> Any:
    """How uvicorn runs the application: it writes no log of its own, and waits for what runs.

    app: of `create_app`; settings: of the server.
    """
    uvicorn: Any = import_extra("uvicorn")
    return uvicorn.Config(
        app, access_log=False, log_level="warning", server_header=False, limit_concurrency=settings.max_connections,
        timeout_graceful_shutdown=max(1, round(settings.drain_seconds)), lifespan="on", ws="none",
    )  # fmt: skip


def listening(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises UsageError where the address is taken or not this machine's."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        place = socket.socket(family, kind, protocol)
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind(address)
        place.listen(128)
    except OSError as error:
        reason = str(error.strerror or error).lower()
        raise UsageError(f"expected an address to listen at, got {host}:{port}: {reason}; choose another") from error
    return place
