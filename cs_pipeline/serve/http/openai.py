"""OpenAI-compatible routes, so that its clients work unchanged: /v1/models and /v1/chat/completions."""

import json
import threading
import time
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.desk.desk import Desk, DeskRequest, Reply, ReplyStream
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.http.api import MAX_TURNS, Name, Seed, Text, Tokens, Values, wait_for_reply
from cs_pipeline.serve.http.error_handlers import error_docs, error_to_response
from cs_pipeline.serve.models.jobs import Finish, Sampling, UnknownModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.text.placeholders import Speaker

_SPEAKERS: dict[str, Speaker] = {"user": "customer", "assistant": "agent"}
_FINISH_REASONS: dict[Finish, Literal["stop", "length"]] = {
    "stop": "stop",
    "cancelled": "stop",
    "length": "length",
    "time": "length",
}
_IGNORED_VALUES: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "stop": ([],),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "logprobs": (False,),
    "logit_bias": ({},),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "modalities": (["text"],),
    "audio": (),
}
"""Unsupported fields, with the values that are accepted because they have no effect. Null is accepted too."""


class ContentPart(BaseModel):
    """A part of a message. Only text is supported."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """One message. The text of ``system`` and ``developer`` messages becomes the context of the case."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(min_length=1, max_length=MAX_TURNS)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """The optional parts of a stream."""

    include_usage: StrictBool = False


class ChatCompletionRequest(BaseModel):
    """A conversation to continue. ``tone``, ``values`` and ``private`` work as in POST /chat.

    OpenAI's other fields are accepted with values that change nothing; other values are refused.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Name
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_TURNS)
    temperature: float | None = Field(None, ge=0, le=2, strict=True, description="null means 0")
    top_p: float | None = Field(None, ge=0, le=1, strict=True)
    max_tokens: Tokens | None = None
    max_completion_tokens: Tokens | None = None
    seed: Seed | None = None
    stream: StrictBool | None = False
    stream_options: StreamOptions | None = None
    tone: Tone = Tone.NEUTRAL
    values: Values = {}
    private: StrictBool = False

    @model_validator(mode="after")
    def _check_supported(self) -> "ChatCompletionRequest":
        for name, value in (self.model_extra or {}).items():
            if value is not None and name in _IGNORED_VALUES and value not in _IGNORED_VALUES[name]:
                raise ValueError(f"{name} is not supported by these models")
        if self.messages[-1].role != "user":
            raise ValueError("the last message must have the role 'user'")
        return self

    def to_desk_request(self) -> DeskRequest:
        """This request in the desk's format."""
        *earlier, last = self.messages
        context = "\n".join(message.text for message in earlier if message.role not in _SPEAKERS)
        sampling = Sampling(
            temperature=self.temperature or 0.0,
            top_p=1.0 if self.top_p is None else self.top_p,
            max_tokens=self.max_completion_tokens or self.max_tokens,
            seed=self.seed,
        )
        turns = tuple((_SPEAKERS[m.role], m.text) for m in earlier if m.role in _SPEAKERS)
        return DeskRequest(
            last.text, turns, self.model, self.tone, sampling, self.values, private=self.private, context=context
        )


class EventStream(StreamingResponse):
    """Server-sent events (HTML standard, section 9.2), one per string. ``hung_up`` is set when the client hangs up."""

    media_type = "text/event-stream"

    def __init__(self, events: Iterator[str], hung_up: threading.Event) -> None:
        super().__init__((f"data: {event}\n\n" for event in events), headers={"Cache-Control": "no-store"})
        self._hung_up = hung_up

    async def listen_for_disconnect(self, receive: Receive) -> None:
        await super().listen_for_disconnect(receive)
        self._hung_up.set()


def openai_routes(service: ModelService, desk: Desk) -> APIRouter:
    """The router with the routes under ``/v1``."""
    router = APIRouter(prefix="/v1", tags=["OpenAI-compatible"])

    @router.get("/models")
    def models() -> dict[str, Any]:
        """All model names that can be requested."""
        return {"object": "list", "data": [_model(name) for name in service.registry.names()]}

    @router.get("/models/{model}", responses=error_docs(404))
    def model(model: str) -> dict[str, Any]:
        """One model."""
        names = service.registry.names()
        if model not in names:
            raise UnknownModel(names)
        return _model(model)

    @router.post(
        "/chat/completions",
        response_model=None,
        responses={
            200: {"content": {"application/json": {}, "text/event-stream": {}}, "description": "The answer."},
            **error_docs(400, 404, 429, 500, 503),
        },
    )
    async def completions(body: ChatCompletionRequest, request: Request) -> dict[str, Any] | Response:
        """Answers the last message. With ``stream``, sends the answer in pieces as server-sent events.

        Without ``stream``, the response also lists the ``sources`` of the answer.
        """
        asked = body.to_desk_request()
        envelope = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        if not body.stream:
            reply = await wait_for_reply(request, lambda hung_up: desk.reply(asked, hung_up))
            message = {"role": "assistant", "content": reply.text, "refusal": None}
            finish_reason = _FINISH_REASONS[reply.finish]
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
            answer = {"object": "chat.completion", "model": reply.served.name, "choices": [choice]}
            sources = [asdict(source) for source in reply.sources]
            return {**envelope, **answer, "usage": _usage(reply), "sources": sources}
        hung_up = threading.Event()
        stream = await run_in_threadpool(desk.stream, asked, hung_up)
        with_usage = body.stream_options is not None and body.stream_options.include_usage
        return EventStream(_events(stream, envelope, with_usage=with_usage), hung_up)

    return router


def _events(stream: ReplyStream, envelope: dict[str, Any], *, with_usage: bool) -> Iterator[str]:
    def chunk(**fields: Any) -> str:
        return json.dumps({**envelope, "object": "chat.completion.chunk", "model": stream.served.name, **fields})

    def choices(delta: dict[str, Any], reason: str | None = None) -> list[dict[str, Any]]:
        return [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}]

    yield chunk(choices=choices({"role": "assistant", "content": ""}))
    try:
        for piece in stream:
            yield chunk(choices=choices({"content": piece}))
    except PipelineError as error:
        # Too late for an error status: it was sent before the first piece.
        yield bytes(error_to_response(error).body).decode()
        return
    yield chunk(choices=choices({}, _FINISH_REASONS[stream.reply.finish]))
    if with_usage:
        yield chunk(choices=[], usage=_usage(stream.reply))
    yield "[DONE]"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": "cs_pipeline"}


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.prompt_tokens + reply.tokens,
    }
