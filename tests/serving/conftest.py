"""A running server with tiny models, and the official client of OpenAI in front of it."""

from __future__ import annotations

import base64
import io
import threading
import time
import wave
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import openai
import pytest
import uvicorn
from PIL import Image

from plait.assistant import Assistant
from plait.chat import Chat
from plait.cli.serve import config_of, listening
from plait.embedder import Embedder
from plait.search import Index
from plait.serving import Models, Settings, create_app

SAVED = Path(__file__).parents[1] / "fixtures" / "saved"
KEY = "a long secret of tests"
HTTP = httpx.Client(timeout=30, verify=False)  # one for all: each would read the certificates of the machine again
SETTINGS = Settings(key=KEY, max_body=4 << 20, body_seconds=2.0, request_seconds=60.0, drain_seconds=5.0)


class Running:
    """A server in a thread. base: its address."""

    def __init__(self, app: Any, settings: Settings) -> None:
        self.service = app.state.service
        self.place = listening("127.0.0.1", 0)
        self.port = self.place.getsockname()[1]
        self.base = f"http://127.0.0.1:{self.port}"
        self.server = uvicorn.Server(config_of(app, settings))
        self.thread = threading.Thread(target=self.server.run, kwargs={"sockets": [self.place]}, daemon=True)
        self.thread.start()
        until = time.monotonic() + 60
        while not self.server.started and time.monotonic() < until:
            time.sleep(0.01)
        assert self.server.started

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(api_key=KEY, base_url=f"{self.base}/v1", max_retries=0)

    def stop(self) -> None:
        self.server.should_exit = True
        self.thread.join(30)
        assert not self.thread.is_alive()
        self.place.close()


def png(colour: Any = (200, 30, 30), size: int = 24) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (size, size), colour).save(file, "PNG")
    return file.getvalue()


def wav(hertz: float = 440.0, seconds: float = 0.4, rate: int = 16000) -> bytes:
    samples = (np.sin(2 * np.pi * hertz * np.arange(int(seconds * rate)) / rate) * 9000).astype("<i2")
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setparams((1, 2, rate, len(samples), "NONE", ""))
        out.writeframes(samples.tobytes())
    return file.getvalue()


def data_uri(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def image_part(data: bytes | None = None) -> dict[str, Any]:
    return {"type": "image_url", "image_url": {"url": data_uri(data or png())}}


def sound_part(data: bytes | None = None) -> dict[str, Any]:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(data or wav()).decode(), "format": "wav"}}


def text_part(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    place = tmp_path_factory.mktemp("served")
    embedder = Embedder("nano")
    index = Index.create(place / "index", embedder)
    for name, colour in (("red", (220, 20, 20)), ("blue", (20, 20, 220))):
        (place / f"{name}.png").write_bytes(png(colour))
    index.add([place / "red.png", place / "blue.png"], show_progress=False)
    return Models(
        {"chat": "owl2", "embed": "nano", "assist": "captions"},
        Chat(SAVED / "mplug_owl2"), embedder, index, Assistant(SAVED / "mplug2_captions"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def start(models: Models, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """Start another server over the same models, with other settings."""
    running: list[Running] = []
    known = tmp_path_factory.mktemp("known") / "vectors.json"

    def begin(**changes: Any) -> Running:
        settings = replace(SETTINGS, **changes)
        running.append(Running(create_app(models, settings, known), settings))
        return running[-1]

    yield begin
    HTTP.close()
    for one in running:
        one.stop()


@pytest.fixture(scope="session")
def server(start: Any) -> Running:
    return start()


@pytest.fixture(scope="session")
def client(server: Running) -> Iterator[openai.OpenAI]:
    with server.client() as found:
        yield found
