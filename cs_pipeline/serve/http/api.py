"""The native routes: questions to the desk, and the state of the server and its models."""

import asyncio
import threading
from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Request
from prometheus_client import generate_latest
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from cs_pipeline.serve.desk.desk import CitedSource, Desk, DeskRequest
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.http.error_handlers import error_docs, error_to_response
from cs_pipeline.serve.http.metrics import Metrics
from cs_pipeline.serve.models.jobs import Finish, Refusal, Sampling
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.text.placeholders import Speaker

MAX_TEXT_CHARACTERS, MAX_TURNS, MAX_VALUES = 8_000, 100, 50

_T = TypeVar("_T")


def _whole_number(value: object) -> object:
    """JSON has one kind of number, so 1.0 counts as an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Tokens = Annotated[int, Field(ge=1, strict=True), BeforeValidator(_whole_number)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True), BeforeValidator(_whole_number)]
Text = Annotated[str, Field(max_length=MAX_TEXT_CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=80)]
Values = Annotated[dict[Name, Annotated[str, Field(max_length=400)]], Field(max_length=MAX_VALUES)]


class EarlierTurn(BaseModel):
    """One earlier message of the conversation."""

    model_config = ConfigDict(extra="forbid")

    speaker: Speaker
    text: Text


class ChatRequest(BaseModel):
    """A customer's message, and how to answer it."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    user_input: Annotated[str, Field(min_length=1, max_length=MAX_TEXT_CHARACTERS)]
    model_name: Name = Field(
        "champion", description="champion, challenger, a version number, or one of these with :base"
    )
    earlier: list[EarlierTurn] = Field([], max_length=MAX_TURNS, description="the conversation so far, oldest first")
    context: Text = Field("", description="facts about the case that are not in the conversation")
    tone: Tone = Tone.NEUTRAL
    temperature: float = Field(0, ge=0, le=2, strict=True, description="0 always picks the most likely token")
    top_p: float = Field(1, ge=0, le=1, strict=True)
    max_tokens: Tokens | None = Field(None, description="capped at the recipe's limit, which is also the default")
    seed: Seed | None = None
    values: Values = Field({}, description="values of placeholders for this request, such as {'Order Number': 'A-1'}")
    private: StrictBool = Field(False, description="ask for personal details only if the answer needs them")


class ChatResponse(BaseModel):
    """The answer. ``model`` is the version that answered, under a name that can be requested again.

    ``intent`` is null if the router is not sure. ``confidence`` (0 to 1) is the probability that the question is about
    any known intent. Both are null if the desk's rules answered before the router was asked, or if there is no router.
    """

    response: str
    model: str
    version: int
    recipe: str
    author: str
    intent: str | None
    confidence: float | None
    handover: str | None
    finish: Finish
    tokens: int
    sources: tuple[CitedSource, ...]


class ModelInfo(BaseModel):
    """A model name that can be requested, and the version behind it now."""

    name: str
    version: int
    base: bool
    recipe: str
    placeholders: str
    embedded: bool
    aliases: list[str]
    loaded: bool


class ModelList(BaseModel):
    """All models. ``champion`` is the version that answers as champion. ``trouble`` says why a newer one does not."""

    champion: int | None
    trouble: str | None
    weights_bytes: int
    models: list[ModelInfo]


async def wait_for_reply(request: Request, reply: Callable[[threading.Event], _T]) -> _T:
    """Runs ``reply`` in a thread and returns its result. The event that it gets is set when the client hangs up."""
    hung_up = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        hung_up.set()

    watch_task = asyncio.create_task(watch())
    try:
        return await run_in_threadpool(reply, hung_up)
    finally:
        watch_task.cancel()


def native_routes(service: ModelService, desk: Desk, metrics: Metrics) -> APIRouter:
    """The router with the native routes."""
    router = APIRouter()

    @router.post("/chat", tags=["chat"], responses=error_docs(400, 404, 422, 429, 500, 503))
    async def chat(body: ChatRequest, request: Request) -> ChatResponse:
        """Answers a customer's question."""
        asked = DeskRequest(
            text=body.user_input,
            earlier=tuple((turn.speaker, turn.text) for turn in body.earlier),
            model=body.model_name,
            tone=body.tone,
            sampling=Sampling(body.temperature, body.top_p, body.max_tokens, body.seed),
            values=body.values,
            private=body.private,
            context=body.context,
        )
        reply = await wait_for_reply(request, lambda hung_up: desk.reply(asked, hung_up))
        return ChatResponse(
            response=reply.text,
            model=reply.served.name,
            version=reply.served.version,
            recipe=reply.served.recipe,
            author=reply.author,
            intent=reply.intent,
            confidence=reply.confidence,
            handover=reply.handover,
            finish=reply.finish,
            tokens=reply.tokens,
            sources=reply.sources,
        )

    @router.get("/models", tags=["models"])
    def models() -> ModelList:
        """Versions, aliases, recipes, and which models are in memory."""
        return ModelList(
            champion=service.registry.champion,
            trouble=service.registry.problem(),
            weights_bytes=service.pool.weight_bytes,
            models=[
                ModelInfo(
                    **{**asdict(model.served), "name": model.name}, aliases=list(model.aliases), loaded=model.loaded
                )
                for model in service.models()
            ],
        )

    @router.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """The process is alive."""
        return {"status": "ok"}

    @router.get("/ready", tags=["server"], responses=error_docs(503))
    def ready() -> Any:
        """The champion is loaded. Otherwise 503 with the reason."""
        try:
            return {"champion": service.served("champion").version}
        except Refusal as error:
            return error_to_response(error)

    @router.get("/metrics", tags=["server"], response_class=Response)
    def prometheus() -> Response:
        """Metrics for Prometheus."""
        return Response(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
