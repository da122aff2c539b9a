"""The native routes: asking the desk, and what stands behind it."""

from dataclasses import asdict
from typing import Annotated, Any

from fastapi import APIRouter, Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StrictBool
from starlette.responses import Response

from cs_pipeline.serve.desk.desk import Ask, Desk
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.http.error_handlers import as_problem, documented
from cs_pipeline.serve.http.metrics import Metrics
from cs_pipeline.serve.http.streaming import wait_for_answer
from cs_pipeline.serve.models.answering import Answering, Finish, Sampling
from cs_pipeline.serve.models.refusals import Refusal
from cs_pipeline.text.placeholders import Speaker

CHARACTERS, TURNS, VALUES = 8_000, 100, 50
"""Most of a text, of the earlier turns of a conversation, and of the values of a request."""


def _whole(value: object) -> object:
    """JSON knows one kind of number: 1.0 is a whole one there."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


Tokens = Annotated[int, Field(ge=1, strict=True), BeforeValidator(_whole)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63, strict=True), BeforeValidator(_whole)]
Text = Annotated[str, Field(max_length=CHARACTERS)]
Name = Annotated[str, Field(min_length=1, max_length=80)]
Values = Annotated[dict[Name, Annotated[str, Field(max_length=400)]], Field(max_length=VALUES)]


class EarlierTurn(BaseModel):
    """What was said before."""

    model_config = ConfigDict(extra="forbid")

    speaker: Speaker
    text: Text


class Question(BaseModel):
    """What a customer says, and how it is to be answered."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    user_input: Annotated[str, Field(min_length=1, max_length=CHARACTERS)]
    model_name: Name = Field(
        "champion", description="champion, challenger, a version's number, or one of these with :base"
    )
    earlier: list[EarlierTurn] = Field([], max_length=TURNS, description="the conversation up to now, oldest first")
    context: Text = Field("", description="what is known of the case beside the conversation")
    tone: Tone = Tone.NEUTRAL
    temperature: float = Field(
        0, ge=0, le=2, strict=True, description="0: always the likeliest token, so that answers repeat"
    )
    top_p: float = Field(1, ge=0, le=1, strict=True)
    max_tokens: Tokens | None = Field(None, description="none, or more than the recipe's number: that number")
    seed: Seed | None = None
    values: Values = Field(
        {}, description="values of placeholders, such as {'Order Number': 'A-1'}, for this request alone"
    )
    private: StrictBool = Field(False, description="details are asked for only where the answer cannot do without them")


class SourceFacts(BaseModel):
    """A text that the answer was written from: one given before ("answer"), or of an article ("passage")."""

    kind: str
    title: str
    address: str | None
    text: str
    similarity: float


class Answered(BaseModel):
    """What the customer is told. ``model`` is the version that really answered, as a name that may be asked for again."""

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
    sources: list[SourceFacts]


class ModelFacts(BaseModel):
    """A name that may be asked for, and what it stands for now."""

    name: str
    version: int
    base: bool
    recipe: str
    placeholders: str
    embedded: bool
    aliases: list[str]
    loaded: bool


class Models(BaseModel):
    """All models. ``champion`` is the version that answers as such; ``trouble`` says what hinders a newer one."""

    champion: int | None
    trouble: str | None
    weights_bytes: int
    models: list[ModelFacts]


def native_routes(answering: Answering, desk: Desk, metrics: Metrics) -> APIRouter:
    """The routes over these parts."""
    router = APIRouter()

    @router.post("/chat", tags=["chat"], responses=documented(400, 404, 422, 429, 500, 503))
    async def chat(question: Question, request: Request) -> Answered:
        """Answers a customer's question."""
        ask = Ask(
            question.user_input,
            tuple((turn.speaker, turn.text) for turn in question.earlier),
            question.model_name,
            question.tone,
            Sampling(question.temperature, question.top_p, question.max_tokens, question.seed),
            question.values,
            question.private,
            question.context,
        )
        reply = await wait_for_answer(request, lambda gone: desk.reply(ask, gone))
        return Answered(
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
            sources=[SourceFacts(**asdict(source)) for source in reply.sources],
        )

    @router.get("/models", tags=["models"])
    def models() -> Models:
        """Versions, aliases, recipes, and what is in memory."""
        return Models(
            champion=answering.registry.champion,
            trouble=answering.registry.trouble(),
            weights_bytes=answering.bytes,
            models=[
                ModelFacts(
                    name=model.name,
                    version=model.served.version,
                    base=model.served.base,
                    recipe=model.served.recipe,
                    placeholders=model.served.placeholders,
                    embedded=model.served.embedded,
                    aliases=list(model.aliases),
                    loaded=model.loaded,
                )
                for model in answering.models()
            ],
        )

    @router.get("/health", tags=["server"])
    def health() -> dict[str, str]:
        """The process answers."""
        return {"status": "ok"}

    @router.get("/ready", tags=["server"], responses=documented(503))
    def ready() -> Any:
        """A champion is in memory; 503 says what hinders it."""
        try:
            return {"champion": answering.served("champion").version}
        except Refusal as error:
            return as_problem(error)

    @router.get("/metrics", tags=["server"], response_class=Response)
    def prometheus() -> Response:
        """For Prometheus."""
        return Response(metrics.page(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return router
