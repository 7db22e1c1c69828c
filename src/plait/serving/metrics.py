"""What `/metrics` tells Prometheus, under the names that dashboards made for vLLM ask for."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from plait.serving.batching import Watch

_LONG = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)
_SHORT = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10)
"""Seconds; a factor of about three tells one kind of trouble from another."""


class Metrics:
    """Counters of one server; several in one process do not meet."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)  # resident memory, file descriptors, CPU
        model, how = ["model_name"], self.registry
        self.running = Gauge("vllm:num_requests_running", "Requests being worked on.", model, registry=how)
        self.waiting = Gauge("vllm:num_requests_waiting", "Requests waiting.", model, registry=how)
        self.prompt_tokens = Counter("vllm:prompt_tokens", "Tokens of prompts read.", model, registry=how)
        self.generation_tokens = Counter("vllm:generation_tokens", "Tokens written.", model, registry=how)
        self.success = Counter("vllm:request_success", "Requests answered.", [*model, "finished_reason"], registry=how)

        def seconds(name: str, words: str, buckets: tuple[float, ...]) -> Histogram:
            return Histogram(f"vllm:{name}_seconds", words, model, buckets=buckets, registry=how)

        self.latency = seconds("e2e_request_latency", "From arrival to the end.", _LONG)
        self.first_token = seconds("time_to_first_token", "From arrival to the first token.", _LONG)
        self.queued = seconds("request_queue_time", "From arrival to the prompt being read.", _LONG)
        self.between = seconds("inter_token_latency", "Between two tokens of an answer.", _SHORT)
        http = ["handler", "method"]
        self.http = Counter("http_requests", "Requests by answer.", [*http, "status"], registry=how)
        self.http_seconds = Histogram(
            "http_request_duration_seconds", "Of a request.", http, buckets=_LONG, registry=how
        )
        self.cache_hits = Counter("plait:media_cache_hits", "Media whose vectors were kept.", registry=how)
        self.cache_queries = Counter("plait:media_cache_queries", "Media that were looked up.", registry=how)

    def text(self) -> bytes:
        """In Prometheus' text format."""
        return generate_latest(self.registry)

    def watch(self, model: str) -> Watch:
        """What counts for one model."""
        return _Counted(self, model)


class _Counted(Watch):
    def __init__(self, metrics: Metrics, model: str) -> None:
        self._of, self._model = metrics, model

    def load(self, running: int, waiting: int) -> None:
        self._of.running.labels(self._model).set(running)
        self._of.waiting.labels(self._model).set(waiting)

    def prefilled(self, tokens: int, queued: float) -> None:
        self._of.prompt_tokens.labels(self._model).inc(tokens)
        self._of.queued.labels(self._model).observe(queued)

    def first_token(self, seconds: float) -> None:
        self._of.first_token.labels(self._model).observe(seconds)

    def step(self, rows: int, seconds: float) -> None:
        for _ in range(rows):  # each of them waited for it
            self._of.between.labels(self._model).observe(seconds)

    def finished(self, reason: str, tokens: int, seconds: float) -> None:
        self._of.success.labels(self._model, reason).inc()
        self._of.generation_tokens.labels(self._model).inc(tokens)
        self._of.latency.labels(self._model).observe(seconds)
