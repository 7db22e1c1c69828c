"""Sixteen clients of one server against one client: embeddings in batches, answers written together.

`plait serve` runs in a process of its own, on one thread of torch. One client asks for one thing after the other; then
sixteen ask at once. Compared is the CPU time of the server's process per answer: the cores are the same, and other work
on the machine does not count; wall time is told beside it. Answers have to be equal.

    python benchmarks/serving.py [--seconds S]
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx2 as httpx
import numpy as np
import torch
from measure import write

CLIENTS, KEY = 16, "a key of the benchmark"
HEADERS = {"Authorization": f"Bearer {KEY}"}
BAR = 3.0


def save_talker(place: Path) -> Path:
    """An mPLUG-Owl2 of 47 M random parameters: like the published one, it is bound by reading its weights."""
    from transformers import PreTrainedTokenizerFast

    from plait.models.mplug_owl2 import MPlugOwl2Config, MPlugOwl2ForConditionalGeneration, MPlugOwl2Processor

    fixture = Path(__file__).parents[1] / "tests" / "fixtures" / "saved" / "mplug_owl2"
    tokenizer = PreTrainedTokenizerFast.from_pretrained(fixture)
    torch.manual_seed(0)
    tower = {"dim": 64, "num_heads": 2, "num_layers": 1, "mlp_dim": 64}
    config = MPlugOwl2Config(
        dim=512, num_heads=8, num_kv_heads=8, num_layers=8, mlp_dim=1408, vocab_size=len(tokenizer), eos_token_id=None,
        bos_token_id=tokenizer.bos_token_id, pad_token_id=tokenizer.pad_token_id,
        vision={**tower, "image_size": 16, "patch_size": 4},
        abstractor={"num_queries": 3, "num_heads": 2, "num_layers": 1, "mlp_dim": 64, "grid_size": 4},
    )  # fmt: skip
    MPlugOwl2ForConditionalGeneration(config).save_pretrained(place)
    MPlugOwl2Processor.from_config(config, tokenizer).save_pretrained(place)
    return place


Work = list[tuple[str, dict[str, Any]]]
"""Paths and bodies."""


def works() -> dict[str, Work]:
    """What is asked: different bodies, so that nothing is kept from one to the next."""
    chat = [
        {"messages": [{"role": "user", "content": f"tell me about number {n}"}], "max_tokens": 24} for n in range(64)
    ]
    return {
        "answers of 24 tokens": [("/v1/chat/completions", body) for body in chat],
        "texts": [
            ("/v1/embeddings", {"input": f"a picture of number {n}", "encoding_format": "base64"}) for n in range(512)
        ],
    }


class Asked:
    """Answers to some work by so many clients. per_answer: CPU seconds of the server; rate: answers per second."""

    def __init__(
        self, client: httpx.Client, work: list[tuple[str, dict[str, Any]]], clients: int, seconds: float
    ) -> None:
        self.found: dict[int, Any] = {}
        places, lock, count = iter(range(10**9)), threading.Lock(), 0
        before, started = cpu_seconds(client), time.perf_counter()

        def one() -> None:
            nonlocal count
            while time.perf_counter() - started < seconds:
                with lock:
                    place = next(places) % len(work)
                path, body = work[place]
                answer = client.post(path, json=body)
                answer.raise_for_status()
                with lock:
                    count += 1
                    self.found[place] = told(answer.json())

        threads = [threading.Thread(target=one) for _ in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        self.rate = count / (time.perf_counter() - started)
        self.per_answer = (cpu_seconds(client) - before) / count


def told(body: dict[str, Any]) -> Any:
    if "choices" in body:
        return body["choices"][0]["message"]["content"]
    return np.frombuffer(base64.b64decode(body["data"][0]["embedding"]), "<f4")  # as the official client asks for it


def cpu_seconds(client: httpx.Client) -> float:
    """Of the server's process, as it tells itself."""
    return float(re.findall(r"^process_cpu_seconds_total (\S+)", client.get("/metrics").text, re.MULTILINE)[0])


def is_same(a: Any, b: Any) -> bool:
    return a == b if isinstance(a, str) else bool(np.abs(a - b).max() < 1e-5)


def measure(client: httpx.Client, seconds: float, rounds: int, only: str) -> dict[str, Any]:
    """Ratios of CPU time per answer, one client over sixteen, median of the rounds."""
    found = {}
    for name, work in ((name, work) for name, work in works().items() if only in name):
        Asked(client, work, CLIENTS, 2.0)  # warm
        ratios, rows = [], []
        for _ in range(rounds):
            alone, crowd = Asked(client, work, 1, seconds), Asked(client, work, CLIENTS, seconds)
            both = alone.found.keys() & crowd.found.keys()
            assert both and all(is_same(alone.found[place], crowd.found[place]) for place in both)
            ratios.append(alone.per_answer / crowd.per_answer)
            rows.append((alone.per_answer, crowd.per_answer, crowd.rate / alone.rate))
        middle = rows[sorted(range(rounds), key=ratios.__getitem__)[rounds // 2]]
        found[name] = {
            "ratio": sorted(ratios)[rounds // 2], "ratios": ratios, "cpu_ms_alone": middle[0] * 1e3,
            "cpu_ms_together": middle[1] * 1e3, "wall_ratio": middle[2], "bar": BAR,
        }  # fmt: skip
        print(f"{name}: {json.dumps(found[name])}", flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", default="", help="work whose name has this")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        begin = "from plait.cli import main; raise SystemExit(main())"
        models = ["--chat", str(save_talker(Path(folder) / "talker")), "--embed", "nano"]
        command = [sys.executable, "-c", begin, "serve", "--port", "0", *models]
        environment = {**os.environ, "PLAIT_API_KEY": KEY, "PLAIT_CACHE": folder, "OMP_NUM_THREADS": "1"}
        with subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
        ) as server:
            assert server.stdout is not None
            base = re.findall(r"(http://\S+)/v1", server.stdout.readline())[0]
            with httpx.Client(base_url=base, headers=HEADERS, timeout=120) as client:
                found = measure(client, options.seconds, options.rounds, options.only)
            server.terminate()
    write("serving", found)


if __name__ == "__main__":
    main()
