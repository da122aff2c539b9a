"""The routes as OpenAI has them, so that its clients work unchanged: /v1/models and /v1/chat/completions."""

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
from starlette.responses import Response

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.desk.desk import Ask, Desk, Reply, Speech
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.http.api import TURNS, Name, Seed, Text, Tokens, Values
from cs_pipeline.serve.http.error_handlers import as_problem, documented
from cs_pipeline.serve.http.streaming import EventStream, wait_for_answer
from cs_pipeline.serve.models.answering import Answering, Finish, Sampling
from cs_pipeline.serve.models.refusals import UnknownModel
from cs_pipeline.text.placeholders import Speaker

_OWNER = "cs_pipeline"
_SPEAKERS: dict[str, Speaker] = {"user": "customer", "assistant": "agent"}
_REASONS: dict[Finish, Literal["stop", "length"]] = {
    "stop": "stop",
    "cancelled": "stop",
    "length": "length",
    "time": "length",
}
_WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
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
"""Fields that these models cannot follow, and the values beside null that change nothing; another value is refused."""


class ContentPart(BaseModel):
    """A part of a message; there are none but text."""

    type: Literal["text"]
    text: Text


class ChatMessage(BaseModel):
    """What was said. What ``system`` and ``developer`` say is taken as what is known of the case."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[ContentPart], Field(min_length=1, max_length=TURNS)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "\n".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    """What a stream brings beside the text."""

    include_usage: StrictBool = False


class Completion(BaseModel):
    """A conversation to go on with. ``tone``, ``values`` and ``private`` are as in POST /chat.

    Further fields of OpenAI's are taken where they ask for nothing; one that these models cannot follow is refused.
    """

    model_config = ConfigDict(extra="allow", allow_inf_nan=False)

    model: Name
    messages: list[ChatMessage] = Field(min_length=1, max_length=TURNS)
    temperature: float | None = Field(None, ge=0, le=2, strict=True, description="null: 0, for answers that repeat")
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
    def _what_can_be_followed(self) -> "Completion":
        for name, value in (self.model_extra or {}).items():
            if value is not None and name in _WITHOUT_EFFECT and value not in _WITHOUT_EFFECT[name]:
                raise ValueError(f"{name} is nothing that these models can follow")
        if self.messages[-1].role != "user":
            raise ValueError("the last of messages must be the user's")
        return self

    def ask(self) -> Ask:
        """The same as the desk takes it."""
        *earlier, last = self.messages
        known = [message.text for message in earlier if message.role not in _SPEAKERS]
        sampling = Sampling(
            self.temperature or 0.0,
            1.0 if self.top_p is None else self.top_p,
            self.max_completion_tokens or self.max_tokens,
            self.seed,
        )
        turns = tuple((_SPEAKERS[m.role], m.text) for m in earlier if m.role in _SPEAKERS)
        return Ask(last.text, turns, self.model, self.tone, sampling, self.values, self.private, "\n".join(known))


def openai_routes(answering: Answering, desk: Desk) -> APIRouter:
    """The routes over these parts."""
    router = APIRouter(prefix="/v1", tags=["as OpenAI"])

    @router.get("/models")
    def models() -> dict[str, Any]:
        """Every name that may be asked for."""
        return {"object": "list", "data": [_model(name) for name in answering.registry.names()]}

    @router.get("/models/{model}", responses=documented(404))
    def model(model: str) -> dict[str, Any]:
        """One of them."""
        names = answering.registry.names()
        if model not in names:
            raise UnknownModel(names)
        return _model(model)

    @router.post(
        "/chat/completions",
        response_model=None,
        responses={
            200: {"content": {"application/json": {}, "text/event-stream": {}}, "description": "The answer."},
            **documented(400, 404, 429, 500, 503),
        },
    )
    async def completions(completion: Completion, request: Request) -> dict[str, Any] | Response:
        """Answers the last message; with ``stream`` piece by piece, as server-sent events.

        A whole answer has the texts that it was written from beside OpenAI's fields, as ``sources``.
        """
        ask, about = completion.ask(), {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time())}
        if not completion.stream:
            reply = await wait_for_answer(request, lambda gone: desk.reply(ask, gone))
            message = {"role": "assistant", "content": reply.text, "refusal": None}
            choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _REASONS[reply.finish]}
            whole = {"object": "chat.completion", "model": reply.served.name, "choices": [choice]}
            return {**about, **whole, "usage": _usage(reply), "sources": [asdict(source) for source in reply.sources]}
        gone = threading.Event()
        speech = await run_in_threadpool(desk.stream, ask, gone)
        with_usage = completion.stream_options is not None and completion.stream_options.include_usage
        return EventStream(_events(speech, about, with_usage=with_usage), gone)

    return router


def _events(speech: Speech, about: dict[str, Any], *, with_usage: bool) -> Iterator[str]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return json.dumps(
            {**about, "object": "chat.completion.chunk", "model": speech.served.name, "choices": [choice]}
        )

    yield chunk({"role": "assistant", "content": ""})
    try:
        for piece in speech:
            yield chunk({"content": piece})
    except PipelineError as error:
        # The status is sent already.
        yield bytes(as_problem(error).body).decode()
        return
    reply = speech.reply
    yield chunk({}, _REASONS[reply.finish])
    if with_usage:
        last = {"object": "chat.completion.chunk", "model": reply.served.name, "choices": [], "usage": _usage(reply)}
        yield json.dumps({**about, **last})
    yield "[DONE]"


def _model(name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": 0, "owned_by": _OWNER}


def _usage(reply: Reply) -> dict[str, int]:
    return {
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.tokens,
        "total_tokens": reply.prompt_tokens + reply.tokens,
    }
