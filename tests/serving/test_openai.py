"""The official client, unmodified: conversations, streams, embeddings of every mixture, errors that it understands."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import openai
import pytest

from plait.chat import Chat
from plait.serving import Models

from .conftest import HTTP, KEY, Running, image_part, png, sound_part, text_part, wav

HEADERS = {"Authorization": f"Bearer {KEY}"}


def asked(text: str, *parts: dict[str, Any]) -> list[Any]:
    return [{"role": "user", "content": [*parts, text_part(text)] if parts else text}]


def test_an_answer_is_that_of_generate(client: openai.OpenAI, models: Models) -> None:
    found = client.chat.completions.create(model="owl2", messages=asked("what is it?", image_part()), max_tokens=9)
    chat = models.chat
    assert isinstance(chat, Chat)
    inputs, _ = chat.read(
        [{"role": "user", "content": [{"type": "image", "image": picture()}, text_part("what is it?")]}]
    )
    length = inputs["input_ids"].shape[1]
    new = chat.model.generate(**inputs, max_new_tokens=9, do_sample=False)[0, length:]
    assert found.choices[0].message.content == chat.processor.decode(new) != ""
    assert found.usage is not None and found.usage.prompt_tokens == length
    assert found.usage.completion_tokens == len(new) and found.choices[0].finish_reason in ("length", "stop")


def picture() -> Any:
    import io

    from PIL import Image

    return Image.open(io.BytesIO(png()))


def test_a_stream_is_the_answer_in_pieces(client: openai.OpenAI) -> None:
    messages = asked("say something", image_part())
    whole = client.chat.completions.create(model="owl2", messages=messages, max_tokens=12)
    chunks = list(
        client.chat.completions.create(
            model="owl2", messages=messages, max_tokens=12, stream=True, stream_options={"include_usage": True}
        )
    )
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content and sum(map(bool, pieces)) > 1
    assert chunks[-1].usage == whole.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason


def test_sampling_follows_its_seed_and_n_gives_as_many(client: openai.OpenAI) -> None:
    how: Any = {"model": "owl2", "messages": asked("a story"), "max_tokens": 10, "temperature": 1.5, "seed": 3, "n": 3}
    first, second = (client.chat.completions.create(**how) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices] and len(set(texts)) == 3
    alone = client.chat.completions.create(**{**how, "n": 1, "seed": 4})
    assert alone.choices[0].message.content == texts[1]
    assert first.usage is not None and first.usage.completion_tokens > 10


def test_stop_ends_an_answer_and_is_no_part_of_it(client: openai.OpenAI) -> None:
    whole = (
        client.chat.completions.create(model="owl2", messages=asked("go on"), max_tokens=20).choices[0].message.content
    )
    assert whole
    stop = whole[4:6]
    cut = client.chat.completions.create(model="owl2", messages=asked("go on"), max_tokens=20, stop=[stop])
    assert cut.choices[0].message.content == whole[: whole.index(stop)].rstrip()
    assert cut.choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_the_tokens(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(
        model="owl2", messages=asked("go on"), max_tokens=6, logprobs=True, top_logprobs=3
    )
    assert found.choices[0].logprobs is not None and found.usage is not None
    tokens = found.choices[0].logprobs.content or []
    assert len(tokens) == found.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3 and token.logprob == pytest.approx(token.top_logprobs[0].logprob)
    streamed = client.chat.completions.create(
        model="owl2", messages=asked("go on"), max_tokens=6, logprobs=True, stream=True
    )
    counted = [len(c.choices[0].logprobs.content or []) for c in streamed if c.choices and c.choices[0].logprobs]
    assert sum(counted) == len(tokens)


def test_placeholders_in_words_stay_words(client: openai.OpenAI) -> None:
    found = client.chat.completions.create(model="owl2", messages=asked("<|image|> what? <image>"), max_tokens=3)
    assert found.usage is not None and found.usage.completion_tokens == 3


def test_history_and_system_are_read(client: openai.OpenAI) -> None:
    messages: list[Any] = [
        {"role": "system", "content": "be brief"},
        *asked("what?", image_part()),
        {"role": "assistant", "content": "a square"},
        *asked("which colour?"),
    ]
    found = client.chat.completions.create(model="owl2", messages=messages, max_tokens=4)
    short = client.chat.completions.create(model="owl2", messages=asked("which colour?"), max_tokens=4)
    assert found.usage and short.usage and found.usage.prompt_tokens > short.usage.prompt_tokens + 10


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "without tools"),
        ({"response_format": {"type": "json_object"}}, "response_format text"),
        ({"logit_bias": {"5": 1}}, "without logit_bias"),
        ({"max_tokens": 10**6}, "at most"),
        ({"temperature": -1}, "temperature"),
        ({"n": 99}, "n of at most"),
        ({"stop": [""]}, "stop texts"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, "have no tools"),
        ({"messages": asked("what?", sound_part())}, "got a sound"),
        ({"messages": asked("what?", image_part(b"no picture at all"))}, "image file"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "last message"),
        ({"extra_body": {"flavour": 3}}, "flavour"),
    ],
)
def test_what_cannot_be_done_is_refused_in_words(client: openai.OpenAI, change: dict[str, Any], words: str) -> None:
    given: Any = {"model": "owl2", "messages": asked("what?"), "max_tokens": 3, **change}
    with pytest.raises(openai.BadRequestError, match=words):
        client.chat.completions.create(**given)


def test_models_are_told_and_others_are_not_found(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["owl2", "nano", "captions"]
    assert client.models.retrieve("nano").model_dump()["modalities"] == ["text", "image", "video", "audio"]
    for call in (
        lambda: client.chat.completions.create(model="gpt-9", messages=asked("x")),
        lambda: client.embeddings.create(model="owl2", input="x"),
        lambda: client.models.retrieve("gpt-9"),
    ):
        with pytest.raises(openai.NotFoundError, match="expected one of the models"):
            call()


def test_an_assistant_answers_as_a_chat(client: openai.OpenAI, models: Models) -> None:
    assert models.assistant is not None
    messages: list[Any] = [{"role": "user", "content": [image_part()]}]
    found = client.chat.completions.create(model="captions", messages=messages)
    assert found.choices[0].message.content == models.assistant.caption(picture())
    streamed = client.chat.completions.create(model="captions", messages=messages, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == found.choices[0].message.content
    with pytest.raises(openai.BadRequestError, match="expected a task of"):
        client.chat.completions.create(model="captions", messages=messages, extra_body={"task": "ground"})


def test_embeddings_are_those_of_the_embedder(client: openai.OpenAI, models: Models) -> None:
    assert models.embedder is not None
    texts = ["a dog", "a red square", "snow on a roof"]
    found = client.embeddings.create(model="nano", input=texts)
    vectors = np.array([row.embedding for row in found.data], np.float32)
    assert np.abs(vectors - models.embedder.embed(texts)).max() < 1e-5
    assert found.usage.prompt_tokens > 3
    plain = client.embeddings.create(model="nano", input="a dog", encoding_format="float")
    assert np.abs(np.array(plain.data[0].embedding) - vectors[0]).max() < 1e-5


def test_each_element_is_one_vector_and_a_list_of_parts_is_one_fused_vector(
    client: openai.OpenAI, models: Models
) -> None:
    assert models.embedder is not None
    red, tone = png(), wav()
    parts = [image_part(red), sound_part(tone), {**text_part("snow"), "weight": -0.5}]
    given: Any = [[image_part(red)], "snow", parts, [sound_part(tone)]]
    found = client.embeddings.create(model="nano", input=given)
    items = [
        {"image": red}, "snow", {"image": red, "audio": tone, "text": "snow", "weights": {"text": -0.5}},
        {"audio": tone},
    ]  # fmt: skip
    vectors = np.array([row.embedding for row in found.data], np.float32)
    assert np.abs(vectors - models.embedder.embed(items)).max() < 1e-5
    again = client.embeddings.create(model="nano", input=given)  # now out of the cache of media
    assert np.abs(np.array([row.embedding for row in again.data]) - vectors).max() < 1e-6
    chat = client.post(
        "/embeddings", cast_to=dict, body={"model": "nano", "messages": [{"role": "user", "content": parts}]}
    )
    assert len(chat["data"]) == 1 and np.abs(np.array(chat["data"][0]["embedding"]) - vectors[2]).max() < 1e-6


def test_fewer_dimensions_are_the_first_ones_at_unit_length(client: openai.OpenAI) -> None:
    whole = np.array(client.embeddings.create(model="nano", input="a dog").data[0].embedding)
    short = np.array(client.embeddings.create(model="nano", input="a dog", dimensions=7).data[0].embedding)
    assert short.shape == (7,) and np.allclose(short, whole[:7] / np.linalg.norm(whole[:7]), atol=1e-6)
    with pytest.raises(openai.BadRequestError, match="at most"):
        client.embeddings.create(model="nano", input="a dog", dimensions=10**5)


@pytest.mark.parametrize(
    "given",
    [
        [], "", [""], ["a", 5], [5, 6], [[5, 6]], [{"type": "text", "text": "a"}], [[]], [["a"]], None, 3, [None],
        [[{"type": "text", "text": "a", "image_url": "b"}]], [[{"type": "shape", "shape": 1}]],
        [[{"type": "image_url", "image_url": {"url": "/etc/passwd"}}]],
        [[{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]],
        [[{"type": "image_url", "image_url": {"url": "http://127.0.0.1/a.png"}}]],
        [[{"type": "text", "text": "a", "weight": float("inf")}]], ["half \ud800 a pair"],
    ],
)  # fmt: skip
def test_anything_else_is_a_400(server: Running, given: Any) -> None:
    body = json.dumps({"model": "nano", "input": given})
    found = HTTP.post(
        f"{server.base}/v1/embeddings", content=body, headers={**HEADERS, "Content-Type": "application/json"}
    )
    error = found.json()["error"]
    assert found.status_code == 400 and error["type"] == "invalid_request_error" and error["message"]


def test_rerank_takes_the_shapes_of_cohere_and_of_parts(server: Running) -> None:
    documents: list[Any] = [
        "a dog",
        {"text": "a red square"},
        {"content": [image_part()]},
        [image_part(png((0, 0, 250)))],
    ]
    body = {"model": "nano", "query": "a red square", "documents": documents, "top_n": 3, "return_documents": True}
    for path in ("/v1/rerank", "/rerank", "/v2/rerank"):
        found = HTTP.post(f"{server.base}{path}", json=body, headers=HEADERS).json()
        scores = [row["relevance_score"] for row in found["results"]]
        assert found["results"][0]["index"] == 1 and scores[0] == pytest.approx(1, abs=1e-5)
        assert len(scores) == 3 and scores == sorted(scores, reverse=True)
        assert found["results"][0]["document"] == {"text": "a red square"}


def test_search_finds_what_lies_in_the_index(server: Running) -> None:
    body = {"query": [image_part(png((220, 20, 20)))], "k": 1}
    found = HTTP.post(f"{server.base}/v1/search", json=body, headers=HEADERS).json()
    assert found["data"][0]["path"].endswith("red.png") and found["data"][0]["score"] == pytest.approx(1, abs=1e-4)
    wrong = HTTP.post(f"{server.base}/v1/search", json={"query": "x", "k": 0}, headers=HEADERS)
    assert wrong.status_code == 400


def test_health_ready_metrics_and_the_page(server: Running, client: openai.OpenAI) -> None:
    client.chat.completions.create(model="owl2", messages=asked("what?"), max_tokens=3)
    assert HTTP.get(f"{server.base}/health").json() == {"status": "ok"}
    ready = HTTP.get(f"{server.base}/ready", headers=HEADERS)
    assert ready.status_code == 200 and set(ready.json()["vectors"]) == {"text", "image", "audio"}
    text = HTTP.get(f"{server.base}/metrics", headers=HEADERS).text
    for name in (
        'vllm:num_requests_running{model_name="owl2"} 0.0', 'vllm:num_requests_waiting{model_name="owl2"} 0.0',
        "vllm:time_to_first_token_seconds_bucket", "vllm:e2e_request_latency_seconds_count",
        "vllm:inter_token_latency_seconds_sum", "vllm:request_queue_time_seconds_sum", "vllm:prompt_tokens_total",
        "vllm:generation_tokens_total", 'vllm:request_success_total{finished_reason="', "http_requests_total{handler=",
        "http_request_duration_seconds_bucket",
    ):  # fmt: skip
        assert name in text, name
    assert "/v1/embeddings" in HTTP.get(f"{server.base}/docs", auth=("any", KEY)).text
    assert "/v1/rerank" in HTTP.get(f"{server.base}/openapi.json", headers=HEADERS).json()["paths"]


def test_every_route_but_health_stands_behind_the_key(server: Running) -> None:
    paths = HTTP.get(f"{server.base}/openapi.json", headers=HEADERS).json()["paths"]
    for path in [*paths, "/docs", "/openapi.json", "/nowhere", "/rerank", "/v2/rerank"]:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": f"Basic {KEY}"}):
            for method in ("GET", "POST"):
                found = HTTP.request(method, f"{server.base}{path}", headers=headers)
                if path != "/health":
                    assert found.status_code == 401 and found.json()["error"]["code"] == "invalid_api_key", path
    wrong = openai.OpenAI(api_key="wrong", base_url=f"{server.base}/v1", max_retries=0)
    with wrong, pytest.raises(openai.AuthenticationError):
        wrong.models.list()
