"""The desk turns a customer's question into a reply that is fit for customers. The page and both APIs call it.

First the question is cleaned (``screening``). Rules on its wording then decide whether a person takes over (``handover``) or
the desk sends a fixed reply (``scope``). Otherwise a version answers (``models.service``): each sentence is screened, put
into the requested tone, and its placeholders are filled (``composing``). A person also takes over if nothing known is about
the question: the router knows no intent of it, and no known question or passage is near.
"""

import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Literal

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import Context, RetrievedText
from cs_pipeline.recipe import RetrievalSettings
from cs_pipeline.retrieval.lookup import SAME_QUESTION
from cs_pipeline.retrieval.retrieve import in_context
from cs_pipeline.serve.desk.composing import AnswerContext, Composer
from cs_pipeline.serve.desk.filling import canonical_values, fill_placeholders
from cs_pipeline.serve.desk.handover import Handover, HandoverReason, handover_message, handover_reason, summarize
from cs_pipeline.serve.desk.handover_queue import HandoverQueue
from cs_pipeline.serve.desk.recurring import RecurringQuestion, recurring_questions
from cs_pipeline.serve.desk.scope import OutOfScope, is_off_topic, out_of_scope
from cs_pipeline.serve.desk.screening import Screening, is_fit_for_customers, strip_markup, visible_text
from cs_pipeline.serve.desk.tone import Tone, apply_tone, salutation
from cs_pipeline.serve.models.generation import Generation, KnownAnswer
from cs_pipeline.serve.models.jobs import Finish, Sampling, TooLong
from cs_pipeline.serve.models.pool import ServedModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.text.details import needed_details
from cs_pipeline.text.placeholders import PlaceholderMode, Speaker, apply

_HUMAN_AGENT_INTENT = "contact_human_agent"

_MAX_FOLLOW_UP_WORDS = 4
"""After the first turn, a message of at most this many words counts as a reply to the last answer ("yes, the second one").
Such a message does not show its intent, so it is never handed over as unknown."""

MAX_REQUEST_CHARACTERS = 100_000
"""Limit for a question with its context and earlier turns. The rules need about ten seconds for a million characters."""

_LOOK_UP_LIMITS = RetrievalSettings(answers=3, passages=3)
"""How many texts are retrieved when an employee looks something up."""

MIN_SIMILARITY = {"answer": 0.4, "passage": 0.2}
"""The minimum similarity of a retrieved text that is shown as a source. It decides nothing else.

Measured on 2,500 of Bitext's training questions whose clusters were not among the known ones: 99.8 % had a known
question at 0.4 or more by characters, and all by the mixture with a sentence-embedding model. Of 30 off-topic
questions, 9 % had one by characters, and none by the mixture.
"""

NEAR_PASSAGE = 0.3
"""From this similarity on, a passage is evidence that the question can be answered, even if its intent is unknown.

Measured on the 48 passages of ``bench/embedders.yaml``, by characters and by the mixture: of 20 questions in the
articles' words, 90 % and all reach it with the right passage; of 81 questions in other words, none and 46 %. Of 30
off-topic questions, none and 3 % reach it with any passage.
"""

_EVIDENCE = RetrievalSettings(answers=1, passages=1)
_TYPICAL_ANSWERS = 50
"""How many of a subject's answers are read to see which details the subject needs."""

NOT_UNDERSTOOD = "I am not sure that I have understood you. Could you please describe in other words what you need?"

NO_KNOWN_ANSWER = "No known question is similar enough to this one, so a person has to write the answer."
"""Shown to an employee instead of a draft."""

Author = Literal["model", "desk"]


@dataclass(frozen=True)
class DeskRequest:
    """A customer's message, and how to answer it.

    ``model`` is a name from the registry. ``values`` maps placeholder names, in any spelling, to their values for this
    request. ``context`` holds facts about the case that are not in the conversation. If ``private`` is set, the answer
    asks for a personal detail only if the intent needs it.
    """

    text: str
    earlier: Context = ()
    model: str = "champion"
    tone: Tone = Tone.NEUTRAL
    sampling: Sampling = field(default_factory=Sampling)
    values: Mapping[str, str] = field(default_factory=dict)
    private: bool = False
    context: str = ""


@dataclass(frozen=True)
class CitedSource:
    """A retrieved text that is relevant to the question.

    ``kind`` is "answer" for an earlier answer, whose ``title`` is its question, or "passage" for a part of an article, with
    the article's ``title`` and ``address``. Placeholders in ``title`` and ``text`` are filled, or replaced by plain words.
    ``similarity`` is above 0 and at most 1.
    """

    kind: Literal["answer", "passage"]
    title: str
    address: str | None
    text: str
    similarity: float


@dataclass(frozen=True)
class Reply:
    """The text for the customer, and how it was produced.

    ``served`` is the requested version. ``author`` is "model" if that version wrote ``text`` or its beginning, and
    "desk" if the desk replied without it (a handover, an off-topic question). ``intent`` and ``confidence`` are as in
    ``Generation``: the intent is None if the router is not sure, and the confidence is the probability that the question
    is about any known intent. Both are None without a router. ``handover`` is the reason why a person takes over, or
    None. ``tokens`` counts the tokens that the model generated. ``sources`` are the relevant texts among those retrieved
    for the model's prompt, or the answer that a look-up copied.
    """

    text: str
    served: ServedModel
    author: Author
    intent: str | None = None
    confidence: float | None = None
    handover: HandoverReason | None = None
    finish: Finish = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    sources: tuple[CitedSource, ...] = ()


class ReplyStream:
    """A reply while it is being generated. Iterate it once for its pieces, then read ``reply``.

    The pieces joined are ``reply.text``; no piece is taken back later. To stop early, close the iterator, or set the
    event that was passed to the desk.
    """

    def __init__(self, served: ServedModel, pieces: Generator[str, None, Reply]) -> None:
        self.served = served
        self._pieces = pieces
        self._reply: Reply | None = None

    def __iter__(self) -> Iterator[str]:
        self._reply = yield from self._pieces

    @property
    def reply(self) -> Reply:
        """The complete reply. Raises RuntimeError before the last piece."""
        if self._reply is None:
            raise RuntimeError("the reply is not complete yet")
        return self._reply

    def complete(self) -> Reply:
        """Waits for the complete reply."""
        for _ in self:
            pass
        return self.reply


@dataclass(frozen=True)
class _Case:
    """A request after cleaning.

    ``details`` are the placeholder values from the customer's messages and the request; ``values`` adds the company's. The
    answer may repeat personal data from ``known_text``, and no other.
    """

    request: DeskRequest
    text: str
    context: str
    earlier: Context
    details: Mapping[str, str]
    values: dict[str, str]
    known_text: str
    served: ServedModel


class Desk:
    """Answers customers with the models of ``service`` by the rules of ``company``. Thread-safe."""

    def __init__(self, service: ModelService, company: Company, lake: DataLake) -> None:
        """Takes a second or two to load the recognisers of personal data."""
        self._service = service
        self._company = company
        self._screening = Screening(company)
        self._lake = lake
        self._queue = HandoverQueue(lake, company)

    def reply(self, request: DeskRequest, cancelled: threading.Event | None = None) -> Reply:
        """The complete reply. Raises the same errors as ``stream``."""
        return self._reply_stream(request, cancelled, streaming=False).complete()

    def stream(self, request: DeskRequest, cancelled: threading.Event | None = None) -> ReplyStream:
        """The reply in pieces. A ``Refusal`` (see ``models.jobs``) is raised here, before the first piece.

        Set ``cancelled`` when nobody is waiting any more; the reply then ends with the text generated so far.
        """
        return self._reply_stream(request, cancelled, streaming=True)

    def draft(self, request: DeskRequest, cancelled: threading.Event | None = None) -> Reply:
        """The version's own answer, for an employee: screened, in the requested tone, and with filled placeholders.

        No handover or fixed reply replaces it. Its ``handover`` says why a person would take over. If a look-up finds no
        answer, the text is NO_KNOWN_ANSWER. Raises the same errors as ``stream``.
        """
        case = self._case(request)
        generation = self._start(case, cancelled)
        reason = handover_reason(case.text, case.earlier) or self._reason_from_answer(case, generation)
        if generation.declined:
            return Reply(NO_KNOWN_ANSWER, case.served, "desk", generation.intent, generation.confidence, reason)
        pieces = self._answer(case, generation, streaming=False, reason=reason, draft=True)
        return ReplyStream(case.served, pieces).complete()

    def look_up(self, text: str) -> tuple[CitedSource, ...]:
        """Earlier answers and passages of articles that are relevant to ``text``, for an employee to read."""
        return _cite(_relevant(self._retrieved(visible_text(text), _LOOK_UP_LIMITS)), self._company.values)

    def _retrieved(self, text: str, wanted: RetrievalSettings) -> list[RetrievedText]:
        """Known answers and passages for ``text``, which may contain personal data; empty without an index."""
        question = apply(self._screening.mask(text, "customer"), PlaceholderMode.KEEP, "customer", "")
        return self._service.live_index.look_up(question, wanted)

    def recurring_questions(self) -> list[RecurringQuestion]:
        """Questions about nothing known that customers ask again and again. Raises PipelineError if the index is damaged."""
        today = datetime.now(UTC).date()
        return recurring_questions(self._lake, lambda text: self._screening.mask(text, "customer"), today)

    def close(self) -> None:
        """Stops the delivery of handovers. Those not delivered yet stay in the queue."""
        self._queue.close()

    def _reply_stream(self, request: DeskRequest, cancelled: threading.Event | None, *, streaming: bool) -> ReplyStream:
        case = self._case(request)
        if reason := handover_reason(case.text, case.earlier):
            return self._fixed_reply(case, self._hand_over(case, reason), reason)
        if why := out_of_scope(case.text, request.text, opening=not case.earlier):
            return self._fixed_reply(case, why.reply(self._company.topics))
        generation = self._start(case, cancelled)
        if is_off_topic(case.text, generation.intent):
            generation.cancel()
            text = OutOfScope.OFF_TOPIC.reply(self._company.topics)
            return self._fixed_reply(case, text, generation=generation)
        if reason := self._reason_from_answer(case, generation):
            generation.cancel()
            return self._fixed_reply(case, self._hand_over(case, reason, generation), reason, generation)
        return ReplyStream(case.served, self._answer(case, generation, streaming=streaming))

    def _case(self, request: DeskRequest) -> _Case:
        served = self._service.served(request.model)
        length = len(request.text) + len(request.context) + sum(len(message) for _, message in request.earlier)
        if length > MAX_REQUEST_CHARACTERS:
            raise TooLong(length, MAX_REQUEST_CHARACTERS, "characters")
        text, context = visible_text(request.text), visible_text(request.context)
        earlier = [(speaker, visible_text(message)) for speaker, message in request.earlier]
        by_customer = [message for speaker, message in earlier if speaker == "customer"]
        in_text = self._screening.customer_details([context, *by_customer, text])
        unchecked = {**in_text, **canonical_values(request.values)}
        details = {name: strip_markup(v) for name, v in unchecked.items() if is_fit_for_customers(v, v)}
        values = {**self._company.values, **details}
        known_text = "\n".join([*values.values(), context, *(message for _, message in earlier), text])
        return _Case(request, text, context, earlier, details, values, known_text, served)

    def _start(self, case: _Case, cancelled: threading.Event | None) -> Generation:
        """Queues the question for exactly the version ``case.served``, in that version's placeholder mode."""
        turns = [(speaker, self._as_trained(message, speaker, case.served)) for speaker, message in case.earlier]
        question, facts = (self._as_trained(text, "customer", case.served) for text in (case.text, case.context))
        return self._service.start(case.served.name, question, turns, case.request.sampling, cancelled, facts)

    def _as_trained(self, text: str, speaker: Speaker, served: ServedModel) -> str:
        """``text`` with placeholders as in the model's training rows; unchanged for a model trained on realistic values."""
        if served.placeholders is PlaceholderMode.REALISTIC:
            return text
        return apply(self._screening.mask(text, speaker), served.placeholders, speaker, "")

    def _reason_from_answer(self, case: _Case, generation: Generation) -> HandoverReason | None:
        """The reason to hand over because the customer wants a person or nothing known is about the question; else None.

        A short reply to the last answer is never handed over as unknown. If a look-up finds nothing for it, the desk
        asks the customer to rephrase it.
        """
        route = generation.route
        if route is not None and route.label == _HUMAN_AGENT_INTENT and route.probability > 0.5:
            return HandoverReason.ASKED
        if _is_follow_up(case):
            return None
        return HandoverReason.UNCLEAR if generation.declined or self._is_unknown(case, generation) else None

    def _is_unknown(self, case: _Case, generation: Generation) -> bool:
        """Whether nothing known is about the question. Always False without a router.

        A known question that counts as the same question, or a near passage, is evidence even if the version does not
        retrieve.
        """
        if generation.route is None or generation.intent is not None:
            return False
        limits = {"answer": SAME_QUESTION, "passage": NEAR_PASSAGE}
        searched = in_context(case.text, case.earlier, None)
        return not any(text.similarity >= limits[text.kind] for text in self._retrieved(searched, _EVIDENCE))

    def _needed_details(self, request: DeskRequest, intent: str | None) -> tuple[str, ...] | None:
        """The private details that the answer may ask for; None: any."""
        if not request.private:
            return None
        return needed_details(intent, lambda subject: self._service.live_index.answers_of(subject, _TYPICAL_ANSWERS))

    def _answer(
        self,
        case: _Case,
        generation: Generation,
        *,
        streaming: bool,
        reason: HandoverReason | None = None,
        draft: bool = False,
    ) -> Generator[str, None, Reply]:
        request = case.request
        needed = self._needed_details(request, generation.intent)
        context = AnswerContext(request.tone, case.values, case.known_text, case.earlier, needed)
        composer = Composer(self._screening, context)
        sent: list[str] = []
        try:
            for piece in generation if streaming else [generation.text()]:
                for sentence in composer.feed(piece):
                    sent.append(sentence)
                    yield sentence
                if composer.withheld:
                    break
            else:
                for sentence in composer.end(complete=generation.finish == "stop"):
                    sent.append(sentence)
                    yield sentence
        finally:
            generation.cancel()
        author: Author = "model" if sent or draft else "desk"
        if composer.withheld:
            reason = HandoverReason.WITHHELD
            if not draft:
                text = self._hand_over(case, reason, generation)
                # After the first sentence of an answer, a salutation would be out of place.
                sent.append(f" {apply_tone(text, request.tone)}" if sent else self._in_tone(case, text))
                yield sent[-1]
        elif not sent and generation.finish == "stop" and not draft:
            sent.append(self._in_tone(case, NOT_UNDERSTOOD))
            yield sent[-1]
        return Reply(
            text="".join(sent),
            served=case.served,
            author=author,
            intent=generation.intent,
            confidence=generation.confidence,
            handover=reason,
            finish="stop" if composer.withheld else generation.finish,
            tokens=generation.tokens,
            prompt_tokens=generation.prompt_tokens,
            sources=_cite(_sources(generation), self._company.values) if author == "model" else (),
        )

    def _fixed_reply(
        self,
        case: _Case,
        text: str,
        reason: HandoverReason | None = None,
        generation: Generation | None = None,
    ) -> ReplyStream:
        """A reply with the desk's own ``text``. Only the intent and the confidence of ``generation`` are used."""
        intent, confidence = (generation.intent, generation.confidence) if generation else (None, None)
        reply_text = self._in_tone(case, text)

        def pieces() -> Generator[str, None, Reply]:
            yield reply_text
            return Reply(reply_text, case.served, "desk", intent, confidence, reason)

        return ReplyStream(case.served, pieces())

    def _hand_over(self, case: _Case, reason: HandoverReason, generation: Generation | None = None) -> str:
        """Queues the conversation for a person, and returns the message to the customer."""
        text, reference, follows = handover_message(reason, case.earlier, case.values)
        intent, confidence = (generation.intent, generation.confidence) if generation else (None, None)
        self._queue.put(
            Handover(
                reference=reference,
                at=datetime.now(UTC).isoformat(timespec="seconds"),
                reason=reason.value,
                follows=follows,
                summary=summarize(case.text, case.earlier, reason, intent, case.details),
                model=case.served.name,
                intent=intent,
                confidence=confidence,
                context=case.context,
                values=case.details,
                conversation=(*case.earlier, ("customer", case.text)),
            )
        )
        return text

    def _in_tone(self, case: _Case, text: str) -> str:
        """The desk's own ``text`` in the requested tone."""
        toned = apply_tone(text, case.request.tone)
        opening = not any(speaker == "agent" for speaker, _ in case.earlier)
        return f"{salutation(toned, case.request.tone, case.values) if opening else ''}{toned}"


def _is_follow_up(case: _Case) -> bool:
    return bool(case.earlier) and len(case.text.split()) <= _MAX_FOLLOW_UP_WORDS


def _relevant(retrieved: Sequence[RetrievedText]) -> list[RetrievedText]:
    return [text for text in retrieved if text.similarity >= MIN_SIMILARITY[text.kind]]


def _sources(generation: Generation) -> Sequence[RetrievedText]:
    """The texts to cite. A copied answer is always cited, because the look-up has its own minimum similarity."""
    retrieved = generation.retrieved or ()
    return retrieved if isinstance(generation, KnownAnswer) else _relevant(retrieved)


def _cite(retrieved: Sequence[RetrievedText], values: Mapping[str, str]) -> tuple[CitedSource, ...]:
    """``retrieved`` as people see it. ``values`` are the company's placeholder values, by canonical name."""

    def title(text: RetrievedText) -> str:
        # The title of an answer is a customer's question, so the company's values do not belong in it.
        if text.kind == "answer":
            return apply(text.title, PlaceholderMode.GENERIC, "customer", "")
        return fill_placeholders(text.title, values)

    return tuple(
        CitedSource(text.kind, title(text), text.address, fill_placeholders(text.text, values), text.similarity)
        for text in retrieved
    )
