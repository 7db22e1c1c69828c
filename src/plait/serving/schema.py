"""The bodies of requests, as the OpenAPI page shows them; fields that nothing here can do are refused, not ignored."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from plait.serving.errors import RefusalError

PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAgAAAAICAIAAABLbSncAAAAEUlEQVR42mP8z4AdMDEMKQkAzUEBD7t4NqoAAAAA"
    "SUVORK5CYII="
)
"""Eight by eight red pixels, for examples."""


class Body(BaseModel):
    """Of any request: unknown fields are errors, so that no wish is passed over in silence."""

    model_config = ConfigDict(extra="forbid", strict=True)
    model: str | None = Field(None, description="One of /v1/models; by default the one that this server has for it.")
    user: str | None = Field(None, description="Taken and not used.")


Positive = Annotated[int, Field(ge=1)]


class ChatBody(Body):
    """Of `/v1/chat/completions`."""

    messages: list[dict[str, Any]] = Field(
        description="Roles system, user and assistant; contents a text, or parts: text, image_url, video_url, "
        "input_audio. What the model does not take is an error.",
        min_length=1,
    )
    stream: bool | None = False
    stream_options: dict[str, Any] | None = None
    max_tokens: Positive | None = None
    max_completion_tokens: Positive | None = None
    temperature: Annotated[float, Field(ge=0, le=5)] | None = Field(None, description="0, the default: the likeliest.")
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Positive | None = 1
    stop: str | list[str] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    logprobs: bool | None = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    task: Literal["caption", "answer", "rank", "classify", "ground"] | None = Field(
        None, description="For models of --assist: what is asked; caption without a text, else answer."
    )
    candidates: list[str] | None = Field(None, description="For rank and classify: what to choose from.")
    tools: list[Any] | None = None
    tool_choice: Any = None
    functions: list[Any] | None = None
    function_call: Any = None
    response_format: dict[str, Any] | None = None
    logit_bias: dict[str, Any] | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    parallel_tool_calls: bool | None = Field(None, description="Taken and not used.")
    store: bool | None = Field(None, description="Nothing is stored.")
    metadata: dict[str, Any] | None = Field(None, description="Taken and not used.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "messages": [
                        {
                            "role": "user",
                            "content": [
                                {"type": "image_url", "image_url": {"url": PICTURE}},
                                {"type": "text", "text": "What colour is it?"},
                            ],
                        }
                    ],
                    "max_tokens": 20,
                }
            ]
        }
    )

    def check(self) -> None:
        """Raise RefusalError for what models here cannot do."""
        for name in ("tools", "functions", "logit_bias", "presence_penalty", "frequency_penalty"):
            if getattr(self, name):
                raise RefusalError(
                    400, f"expected a request without {name}, got some: models here write text and nothing else; "
                    "leave it out",
                    code="unsupported", param=name,
                )  # fmt: skip
        if self.tool_choice not in (None, "none", "auto") or self.function_call not in (None, "none", "auto"):
            raise RefusalError(
                400, "expected no tool_choice, got one: there are no tools here; leave it out", param="tools"
            )
        if self.response_format not in (None, {"type": "text"}):
            raise RefusalError(
                400, "expected response_format text, got another: answers are free text", param="response_format"
            )
        if self.top_logprobs is not None and not self.logprobs:
            raise RefusalError(400, "expected logprobs true beside top_logprobs, got false", param="top_logprobs")
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            raise RefusalError(
                400, "expected one of max_tokens and max_completion_tokens, got both", param="max_tokens"
            )


class EmbeddingsBody(Body):
    """Of `/v1/embeddings`. Each element of `input` is one vector; an element that is a list of parts is one fused
    vector; `messages` is exactly one; anything else is a 400."""

    input: str | list[Any] | None = None
    messages: list[dict[str, Any]] | None = None
    encoding_format: Literal["float", "base64"] | None = "float"
    dimensions: Positive | None = Field(None, description="Only the first so many numbers, brought to unit length.")

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"input": ["a dog", "a cat"]},
                {
                    "input": [
                        [
                            {"type": "image_url", "image_url": {"url": PICTURE}},
                            {"type": "text", "text": "at night", "weight": 0.5},
                        ]
                    ]
                },
            ]
        }
    )


class RerankBody(Body):
    """Of `/v1/rerank`: Cohere's shape, and content parts for query and documents."""

    query: str | list[Any] | dict[str, Any]
    documents: list[Any] = Field(min_length=1)
    top_n: Positive | None = None
    return_documents: bool | None = None

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"query": "a red square", "documents": ["a dog", "a red box"], "top_n": 1}]}
    )


class SearchBody(Body):
    """Of `/v1/search`: what lies in the index nearest to a text or to content parts."""

    query: str | list[Any]
    k: Positive | None = 10
    modality: str | None = None

    model_config = ConfigDict(json_schema_extra={"examples": [{"query": "a red square", "k": 3}]})
