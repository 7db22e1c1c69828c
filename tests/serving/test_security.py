"""What strangers send: bombs, endless and slow bodies, other people's addresses, noise. The server answers on."""

from __future__ import annotations

import base64
import io
import json
import logging
import random
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx2 as httpx
import pytest

from plait.serving import Settings, generation, remote
from plait.serving.errors import RefusalError

from .conftest import HTTP, KEY, Running, data_uri, image_part, png, text_part

HEADERS = {"Authorization": f"Bearer {KEY}", "Content-Type": "application/json"}


LINE = f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"


def embed(server: Running, given: Any) -> httpx.Response:
    return HTTP.post(f"{server.base}/v1/embeddings", json={"input": given}, headers=HEADERS, timeout=30)


def bomb(side: int = 30_000) -> bytes:
    """A PNG of side x side pixels that is small: its rows are zeros."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + name + data + zlib.crc32(name + data).to_bytes(4, "big")

    head = side.to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    rows = zlib.compress(bytes((side // 8 + 1) * 1000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def test_a_picture_bomb_is_refused_before_it_is_decoded(server: Running) -> None:
    started = time.monotonic()
    found = embed(server, [[image_part(bomb())]])
    assert found.status_code == 400 and "pixels" in found.json()["error"]["message"]
    assert time.monotonic() - started < 5


def test_the_limit_of_pixels_is_the_servers(start: Any) -> None:
    small = start(max_pixels=100)
    assert embed(small, [[image_part(png(size=24))]]).status_code == 400
    assert embed(small, [[image_part(png(size=9))]]).status_code == 200


def test_a_large_body_is_refused_without_being_read(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as wire:
        head = f"{LINE}Content-Length: {1 << 30}\r\n\r\n"
        wire.sendall(head.encode())
        assert b" 413 " in wire.recv(4096)


def test_a_chunked_body_is_counted(server: Running) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(1024):
            yield bytes(1 << 20)

    try:
        found = HTTP.post(f"{server.base}/v1/embeddings", content=endless(), headers=HEADERS, timeout=30)
        assert found.status_code == 413
    except (httpx.WriteError, httpx.RemoteProtocolError):
        pass  # the server hung up while we were still sending, which is as good
    assert HTTP.get(f"{server.base}/health").status_code == 200


def test_a_slow_body_is_given_up(server: Running) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as wire:
        head = (
            f"POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nContent-Length: 100\r\n\r\n{{"
        )
        wire.sendall(head.encode())
        assert b" 408 " in wire.recv(4096)


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff\xfe", b'{"input": NaN}', b"[" * 100_000,
        b'{"input": ' + b"[" * 50_000,
        b'{"input": ' + b"9" * 10_000 + b"}", b'{"input": "a"} x', b'{"input": "a", "input": 5}', b"\x00" * 100,
        b'{"input": [[{"type": "text", "text": {"a": 1}}]]}', b'{"input": "a", "dimensions": 1e400}',
    ],
)  # fmt: skip
def test_malformed_json_is_a_400(server: Running, content: bytes) -> None:
    for path in ("/v1/embeddings", "/v1/chat/completions", "/v1/rerank", "/v1/search"):
        found = HTTP.post(f"{server.base}{path}", content=content, headers=HEADERS)
        assert found.status_code == 400 and found.json()["error"]["message"], (path, content[:40])


def test_forms_and_other_types_are_a_400(server: Running) -> None:
    generator = random.Random(0)
    for kind in (
        "multipart/form-data; boundary=x",
        "application/x-www-form-urlencoded",
        "text/plain",
        "application/xml",
    ):
        for _ in range(5):
            content = b"--x\r\nContent-Disposition: form-data; name=a\r\n\r\n" + generator.randbytes(200)
            found = HTTP.post(
                f"{server.base}/v1/embeddings", content=content, headers={**HEADERS, "Content-Type": kind}
            )
            assert found.status_code == 400 and "error" in found.json()


def noise(generator: random.Random, depth: int = 0) -> Any:
    """Any JSON, with words of the API among it."""
    words = [
        "type",
        "text",
        "image_url",
        "url",
        "input_audio",
        "data",
        "role",
        "user",
        "content",
        "messages",
        "input",
        "a",
    ]
    kind = generator.randrange(9 if depth < 4 else 6)
    if kind < 3:
        return generator.choice([None, True, -1, 0, 2**70, 1e308, "", "data:image/png;base64,", "data:,", *words])
    if kind == 3:
        return base64.b64encode(generator.randbytes(generator.randrange(40))).decode()[: generator.randrange(50)]
    if kind == 4:
        return "".join(chr(generator.choice([0, 10, 65, 0x202E, 0xD800, 0xFFFF, 0x1F600])) for _ in range(6))
    if kind == 5:
        return data_uri(generator.randbytes(generator.randrange(60)))
    if kind < 7:
        return [noise(generator, depth + 1) for _ in range(generator.randrange(4))]
    return {generator.choice(words): noise(generator, depth + 1) for _ in range(generator.randrange(4))}


def bodies(generator: random.Random) -> tuple[str, Any]:
    """A route and noise in the place of a field, or of the whole body."""
    path, fields = generator.choice(
        [
            ("/v1/embeddings", ["input", "messages", "dimensions", "encoding_format", "model"]),
            ("/v1/chat/completions", ["messages", "max_tokens", "stop", "temperature", "n", "seed", "stream"]),
            ("/v1/rerank", ["query", "documents", "top_n"]),
            ("/v1/search", ["query", "k", "modality"]),
        ]
    )
    if generator.random() < 0.2:
        return path, noise(generator)
    part = {generator.choice(["type", "x"]): generator.choice(["text", "image_url", "video"]), "text": noise(generator)}
    shaped = {"messages": [{"role": "user", "content": [part]}], "input": [[part]], "query": [part], "documents": ["a"]}
    return path, {name: shaped.get(name, 1) if generator.random() < 0.5 else noise(generator) for name in fields}


def fuzz(server: Running, count: int, seed: int = 0) -> None:
    generator = random.Random(seed)
    with httpx.Client(headers=HEADERS, timeout=60) as client:
        for number in range(count):
            path, body = bodies(generator)
            found = client.post(f"{server.base}{path}", content=json.dumps(body))
            assert found.status_code in (200, 400, 404), (number, found.status_code, body)


def test_noise_is_answered_and_never_a_fault(server: Running) -> None:
    fuzz(server, 150)
    assert embed(server, "a dog").status_code == 200


@pytest.mark.slow
def test_twenty_thousand_requests_leave_it_answering(server: Running) -> None:
    fuzz(server, 20_000, seed=1)
    assert embed(server, "a dog").status_code == 200


# ---- remote media


class Host(BaseHTTPRequestHandler):
    """A host of media: paths say what it does."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        self.asked.append(self.path)
        if self.path.startswith("/to/"):
            self.send_response(302)
            self.send_header("Location", self.path.removeprefix("/to/"))
            self.end_headers()
            return
        data = png() if self.path == "/a.png" else bytes(3 << 20)
        self.send_response(200 if self.path != "/none" else 404)
        self.send_header("Content-Length", str(len(data) + (9 if self.path == "/short" else 0)))
        self.end_headers()
        if self.path == "/slow":
            time.sleep(2)
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A host on the loopback that the fetcher takes for a public one at the names that a test gives it."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Host)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    Host.asked = []
    names = {"media.test": ["203.0.113.1"]}
    monkeypatch.setattr(remote, "addresses_of", lambda name, port: names.get(name, [name]))
    monkeypatch.setattr(
        remote, "is_public", lambda address, real=remote.is_public: address == "203.0.113.1" or real(address)
    )
    dial = socket.create_connection

    def redirected(address: Any, timeout: Any = None) -> Any:
        assert address[0] == "203.0.113.1", "dialled what was not checked"
        return dial(("127.0.0.1", server.server_port), timeout)

    monkeypatch.setattr(socket, "create_connection", redirected)
    yield names
    server.shutdown()
    server.server_close()


ALLOWED = Settings(hosts=("media.test", "*.cdn.test"), max_body=1 << 20, fetch_seconds=1.0)


def test_media_of_an_allowed_host_is_fetched(host: Any) -> None:
    assert remote.fetch("http://media.test/a.png", ALLOWED) == png()
    assert remote.fetch("http://media.test/to/http://media.test/a.png", ALLOWED) == png()


@pytest.mark.parametrize(
    "url",
    [
        "http://other.test/a.png", "ftp://media.test/a.png", "http://media.test:8080/a.png", "http://u:p@media.test/a.png",
        "http://media.test.evil.test/a.png", "http://127.0.0.1/a.png", "http://[::1]/a.png", "http://169.254.169.254/",
        "http://media.test/to/http://other.test/a.png", "http://media.test/to/http://127.0.0.1/a.png",
        "http://media.test/to/file:///etc/passwd", "http://media.test/to//media.test/to//media.test/to//media.test/to//x",
        "http://media.test/large", "http://media.test/none", "http://media.test/short", "http://media.test/slow",
        "http://media.test/a\r\nX: y", "http://cdn.test/", "http://xcdn.test/",
    ],
)  # fmt: skip
def test_everything_else_is_refused(host: Any, url: str) -> None:
    with pytest.raises(RefusalError) as caught:
        remote.fetch(url, ALLOWED)
    assert caught.value.status == 400 and "203.0.113.1" not in caught.value.message


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.0.0.7", "192.168.1.1", "169.254.169.254", "::1", "fd00::1", "::ffff:10.0.0.1", "0.0.0.0",
     "64:ff9b::a00:1", "2002:a00:1::", "224.0.0.1", "100.64.0.1", "fe80::1%eth0"],
)  # fmt: skip
def test_a_name_that_resolves_inside_is_not_dialled(host: Any, address: str) -> None:
    host["media.test"] = ["203.0.113.1", address]  # one private address among public ones is enough
    with pytest.raises(RefusalError) as caught:
        remote.fetch("http://media.test/a.png", ALLOWED)
    assert not Host.asked and address not in caught.value.message and "not reached" in caught.value.message


def test_a_name_is_resolved_once_and_that_address_is_dialled(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["203.0.113.1"], ["127.0.0.1"]]  # another one a moment later
    monkeypatch.setattr(remote, "addresses_of", lambda *_: answers.pop(0))
    assert remote.fetch("http://media.test/a.png", ALLOWED) == png()
    assert len(answers) == 1


def test_nothing_is_fetched_without_a_list(server: Running) -> None:
    part = {"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}
    found = embed(server, [[part]])
    assert found.status_code == 400 and found.json()["error"]["code"] == "media_not_fetched"


# ---- going away, going down, saying nothing


@contextmanager
def said(logger: str = "plait.serve") -> Iterator[list[str]]:
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger(logger)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    try:
        yield lines
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def test_no_text_of_a_request_is_logged(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start()
    secret = "the secret of the prompt"

    def fails(*_: Any) -> Any:
        raise RuntimeError(f"could not do {secret}")

    with said() as lines:
        embed(running, secret)
        embed(running, [[text_part(secret), image_part(b"x")]])
        monkeypatch.setattr(running.service.models.embedder, "embed_queries", fails)
        found = embed(running, secret)
        HTTP.get(f"{running.base}/v1/models/{secret}?q={secret}", headers=HEADERS)
        until = time.monotonic() + 10  # a line is written behind the answer that it tells of
        while len(lines) < 5 and time.monotonic() < until:
            time.sleep(0.01)
    assert found.status_code == 500 and secret not in found.text
    assert len(lines) >= 5 and not any(secret in line or "secret" in line for line in lines)
    assert any("RuntimeError" in line for line in lines)


def without_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers are as long as they may be."""
    monkeypatch.setattr(generation, "rules_of", lambda *given, real=generation.rules_of: (real(*given)[0], set()))


def test_a_client_that_leaves_stops_its_answer(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ends(monkeypatch)
    running = start(max_tokens=100_000)
    engine = running.service.engine
    body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 3000}
    for is_stream in (True, False):
        data = json.dumps({**body, "stream": is_stream}).encode()
        with socket.create_connection(("127.0.0.1", running.port), timeout=20) as wire:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
            wire.sendall(f"{head}Content-Type: application/json\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            if is_stream:
                assert b"200 OK" in wire.recv(4096)
            until = time.monotonic() + 10
            while not engine._rows and time.monotonic() < until:
                time.sleep(0.005)
            assert engine._rows
        until = time.monotonic() + 10
        while engine._rows and time.monotonic() < until:
            time.sleep(0.01)
        assert not engine._rows


def test_an_answer_that_takes_too_long_is_given_up(start: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    without_ends(monkeypatch)
    running = start(request_seconds=0.2, max_tokens=100_000)
    body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 3000}
    found = HTTP.post(f"{running.base}/v1/chat/completions", json=body, headers=HEADERS, timeout=30)
    assert found.status_code == 504 and found.json()["error"]["code"] == "timeout"


def test_what_runs_is_finished_when_the_server_stops(start: Any) -> None:
    running = start()
    found: list[Any] = []

    def ask() -> None:
        body = {"messages": [{"role": "user", "content": "go on"}], "max_tokens": 60}
        found.append(HTTP.post(f"{running.base}/v1/chat/completions", json=body, headers=HEADERS, timeout=30))

    thread = threading.Thread(target=ask)
    thread.start()
    until = time.monotonic() + 10
    while not running.service.engine._rows and time.monotonic() < until:
        time.sleep(0.002)
    running.stop()
    thread.join(30)
    assert found and found[0].status_code == 200 and found[0].json()["usage"]["completion_tokens"] > 0
    with pytest.raises(httpx.ConnectError):
        HTTP.get(f"{running.base}/health")


def test_a_full_queue_is_429_with_the_time_to_come_again(start: Any) -> None:
    running = start(max_items=3)
    found = embed(running, ["a", "b", "c", "d"])
    assert found.status_code == 400  # more than could ever wait
    gate = threading.Event()
    work = running.service.models.embedder.embed_queries
    running.service.embedding._work = lambda jobs: (gate.wait(20), running.service._embed(jobs))[1]
    threads = [threading.Thread(target=embed, args=(running, [word])) for word in "abcd"]
    threads[0].start()
    time.sleep(0.3)  # the first is being worked on, the others wait
    for thread in threads[1:]:
        thread.start()
    until = time.monotonic() + 10
    while len(running.service.embedding._waiting) < 3 and time.monotonic() < until:
        time.sleep(0.01)
    refused = embed(running, "e")
    gate.set()
    for thread in threads:
        thread.join()
    assert refused.status_code == 429 and refused.headers["Retry-After"] == "1"
    assert refused.json()["error"]["code"] == "queue_full" and work is not None
    assert embed(running, "e").status_code == 200


def test_wrong_vectors_show_in_ready(start: Any, models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    running = start()
    assert HTTP.get(f"{running.base}/ready", headers=HEADERS).status_code == 200
    import numpy as np

    right = models.embedder.embed_queries
    monkeypatch.setattr(
        models.embedder, "embed_queries", lambda *given: ([np.roll(v, 1) for v in right(*given)[0]], {})
    )
    found = HTTP.get(f"{running.base}/ready", headers=HEADERS)
    assert found.status_code == 503 and found.json()["vectors"]["image"]["status"] == "differs"


def test_png_of_the_bomb_is_one() -> None:
    from PIL import Image

    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(bomb()))
