"""Many clients at once: answers are those of a run by itself, a poisoned request harms no other, memory stays."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx2 as httpx
import numpy as np
import pytest

from .conftest import KEY, SAVED, Running, image_part, png, sound_part, wav

HEADERS = {"Authorization": f"Bearer {KEY}"}
CLIENTS = 64


def requests() -> list[tuple[str, dict[str, Any]]]:
    """Different conversations and embeddings, each of which has one right answer."""
    found: list[tuple[str, dict[str, Any]]] = []
    for n in range(24):
        content: Any = f"question number {n}"
        if n % 3 == 0:
            content = [image_part(png((n * 9, 40, 90))), {"type": "text", "text": content}]
        how = {"temperature": 1.0, "seed": n} if n % 4 == 1 else {}
        body = {"messages": [{"role": "user", "content": content}], "max_tokens": 3 + n % 9, **how}
        found.append(("/v1/chat/completions", body))
        part = [image_part(png((9 * n, 10, 10)))] if n % 2 else [sound_part(wav(300 + 20 * n, 0.2)), *[]]
        found.append(("/v1/embeddings", {"input": [f"a thing {n}", part]}))
    return found


def answer(found: httpx.Response) -> Any:
    body = found.json()
    if "choices" in body:
        return body["choices"][0]["message"]["content"]
    return np.array([row["embedding"] for row in body["data"]], np.float32)


def is_same(got: Any, wanted: Any) -> bool:
    return got == wanted if isinstance(wanted, str) else got.shape == wanted.shape and np.abs(got - wanted).max() < 1e-4


POISON = [
    ("/v1/embeddings", {"input": [[image_part(png()[:40])]]}),
    ("/v1/embeddings", {"input": [[sound_part(b"RIFF" + bytes(90))]]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": [image_part(b"GIF89a" + bytes(30))]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x" * 90_000}], "max_tokens": 2}),
]


def besiege(base: str, seconds: float, clients: int, count: int = 24) -> tuple[Counter[int], list[str]]:
    """Ask from many threads for some seconds: statuses, and what was wrong."""
    asked = requests()[: 2 * count]
    statuses: Counter[int] = Counter()
    wrong: list[str] = []
    lock = threading.Lock()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=clients)
    with httpx.Client(base_url=base, headers=HEADERS, timeout=60, verify=False, limits=limits) as client:
        right = [answer(client.post(path, json=body)) for path, body in asked]
        until = time.monotonic() + seconds

        def one(seed: int) -> None:
            generator = random.Random(seed)
            while time.monotonic() < until:
                is_poison = generator.random() < 0.01
                place = generator.randrange(len(asked))
                path, body = generator.choice(POISON) if is_poison else asked[place]
                found = client.post(path, json=body)
                with lock:
                    statuses[found.status_code] += 1
                    if found.status_code in (429, 503):
                        continue
                    if is_poison and found.status_code != 400:
                        wrong.append(f"poison gave {found.status_code}")
                    elif not is_poison and found.status_code != 200:
                        wrong.append(f"{path} gave {found.status_code}: {found.text[:200]}")
                    elif not is_poison and not is_same(answer(found), right[place]):
                        wrong.append(f"another answer of {path} {place}")

        threads = [threading.Thread(target=one, args=(seed,)) for seed in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return statuses, wrong


def test_a_crowd_gets_the_answers_of_single_runs(server: Running) -> None:
    statuses, wrong = besiege(server.base, seconds=3, clients=24, count=6)
    assert not wrong and set(statuses) <= {200, 400, 429, 503}
    assert statuses[200] >= 24


def resident(base: str) -> float:
    """MB of the server's process now, as it tells itself."""
    text = httpx.get(f"{base}/metrics", headers=HEADERS).text
    return float(re.findall(r"^process_resident_memory_bytes (\S+)", text, re.MULTILINE)[0]) / 1e6


@pytest.fixture
def process() -> Iterator[str]:
    """The address of a server in a process of its own: `plait serve`."""
    begin = "from plait.cli import main; raise SystemExit(main())"
    models = ["--chat", str(SAVED / "mplug_owl2"), "--embed", "nano"]
    command = [sys.executable, "-c", begin, "serve", "--port", "0", *models]
    environment = {**os.environ, "PLAIT_API_KEY": KEY, "OMP_NUM_THREADS": "1"}
    pipes: Any = {"stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment, **pipes) as running:
        assert running.stdout is not None
        line = running.stdout.readline()
        yield re.findall(r"(http://\S+)/v1", line)[0]
        running.terminate()
        assert running.wait(60) == 0


@pytest.mark.slow
def test_two_minutes_of_sixty_four_clients(process: str) -> None:
    besiege(process, seconds=60, clients=CLIENTS)
    before = resident(process)
    statuses, wrong = besiege(process, seconds=60, clients=CLIENTS)
    grown = resident(process) - before
    print(f"{sum(statuses.values())} requests {dict(statuses)}, {grown:.1f} MB more")
    assert not wrong and set(statuses) <= {200, 400, 429, 503}
    assert grown < 5
