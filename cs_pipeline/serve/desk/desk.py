"""The desk: the one entry that the page and both APIs call. A customer's question in, an answer fit for customers out.

The way of a question: read (``screening``), to a person by its words (``handover``) or back (``scope``), else to a model
(``answering``), whose sentences are screened, put in a tone and filled one by one (``composing``).
"""

import threading
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import Context
from cs_pipeline.recipe import Retrieve
from cs_pipeline.serve.desk.composing import Composer, Manner
from cs_pipeline.serve.desk.filling import named
from cs_pipeline.serve.desk.handover import Reason, announcement, handover, reason_of
from cs_pipeline.serve.desk.handover_queue import HandoverQueue
from cs_pipeline.serve.desk.scope import CERTAIN, Beyond, beyond, is_elsewhere
from cs_pipeline.serve.desk.screening import Screening, is_fit, visible_text, without_markup
from cs_pipeline.serve.desk.sources import CitedSource, is_near, sources_of
from cs_pipeline.serve.desk.tone import Tone, address, put
from cs_pipeline.serve.models.answering import Answering, Finish, Running, Sampling, Served
from cs_pipeline.serve.models.refusals import TooLong
from cs_pipeline.text.placeholders import PlaceholderMode, Speaker, apply

FOR_A_PERSON = "contact_human_agent"
"""The intent of those who ask for a person."""

FOLLOWS_UP = 4
"""Words up to which a message in a conversation is an answer to what was said ("yes, the second one"): its intent is not
in itself, so that a doubt about it says nothing."""

MOST_CHARACTERS = 100_000
"""Of a question with its context and earlier turns: the rules read a million in about ten seconds, which is too long."""

TO_READ = Retrieve(answers=3, passages=3)
"""How much is looked up for an employee."""

NOT_UNDERSTOOD = "I am not sure that I have understood you. Could you please describe in other words what you need?"


Author = Literal["model", "desk"]


@dataclass(frozen=True)
class Ask:
    """What a customer says, and how it is to be answered.

    ``model`` is a name that the registry knows; ``values`` are values of placeholders by name, in any spelling, for this
    request alone; ``context`` is what is known of the case beside the conversation: the model is told it first. ``private``:
    details of the customer are asked for only where the request cannot be looked after without them.
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
class Reply:
    """What the customer is told, and who said it.

    ``served`` is the version that was asked; ``author`` says whether the words in ``text`` are its own, or the desk answered
    without it (handing over, redirecting). ``intent`` and ``confidence`` (0 to 1) are None where no classifier was asked.
    ``handover`` is the reason why a person takes over, None where none does. ``tokens`` are those the model wrote.
    ``sources`` are there where the words are a model's that was told them.
    """

    text: str
    served: Served
    author: Author
    intent: str | None = None
    confidence: float | None = None
    handover: Reason | None = None
    finish: Finish = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    sources: tuple[CitedSource, ...] = ()


class Speech:
    """An answer while it is being given: iterate it once for its pieces, then read ``reply``.

    The pieces joined are ``reply.text``; none is ever taken back. Who stops iterating closes the iterator, or sets the
    event that the desk was given.
    """

    def __init__(self, served: Served, pieces: Generator[str, None, Reply]) -> None:
        self.served = served
        self._pieces = pieces
        self._reply: Reply | None = None

    def __iter__(self) -> Iterator[str]:
        self._reply = yield from self._pieces

    @property
    def reply(self) -> Reply:
        """The whole answer. Raises RuntimeError before the last piece."""
        if self._reply is None:
            raise RuntimeError("the answer is not complete yet")
        return self._reply


@dataclass(frozen=True)
class _Case:
    """A request that has been read. ``told`` are the details that the customer gave; ``values`` the company's too."""

    ask: Ask
    text: str
    context: str
    earlier: Context
    told: Mapping[str, str]
    values: dict[str, str]
    said: str
    served: Served


class Desk:
    """Answers customers with the models of ``answering`` by the rules of ``company``. Thread-safe."""

    def __init__(self, answering: Answering, company: Company, lake: DataLake) -> None:
        """Takes a second or two: the recognisers of personal data are loaded."""
        self._answering = answering
        self._company = company
        self._screening = Screening(company)
        self._queue = HandoverQueue(lake, company)

    def reply(self, ask: Ask, cancelled: threading.Event | None = None) -> Reply:
        """The whole answer. Raises what ``stream`` raises."""
        return _whole(self._speech(ask, cancelled, whole=True))

    def stream(self, ask: Ask, cancelled: threading.Event | None = None) -> Speech:
        """The answer piece by piece. Raises the refusals of ``refusals.py`` at once, before any piece.

        ``cancelled`` may be set when nobody waits any more: what was said until then is the answer.
        """
        return self._speech(ask, cancelled, whole=False)

    def draft(self, ask: Ask, cancelled: threading.Event | None = None) -> Reply:
        """The model's own answer for an employee to look at: screened, put and filled, but nothing is handed over or
        redirected; ``handover`` says why it would be. Raises what ``stream`` raises.
        """
        case = self._case(ask)
        running = self._start(case, cancelled)
        reason = reason_of(case.text, case.earlier) or self._doubt(case, running)
        return _whole(Speech(case.served, self._answer(case, running, whole=True, reason=reason, draft=True)))

    def look_up(self, text: str) -> tuple[CitedSource, ...]:
        """Past answers and passages of articles about ``text``, for an employee to read, whichever model is asked."""
        question = apply(self._screening.masked(visible_text(text), "customer"), PlaceholderMode.KEEP, "customer", "")
        return sources_of(self._answering.knowledge.look_up(question, TO_READ), self._company.values)

    def close(self) -> None:
        """Stops what runs in the background; handovers that are not delivered yet stay in the queue."""
        self._queue.close()

    def _speech(self, ask: Ask, cancelled: threading.Event | None, *, whole: bool) -> Speech:
        case = self._case(ask)
        if reason := reason_of(case.text, case.earlier):
            return self._own(case, self._hand_over(case, reason), reason)
        if why := beyond(case.text, ask.text, opening=not case.earlier):
            return self._own(case, why.value)
        running = self._start(case, cancelled)
        if is_elsewhere(case.text, running.confidence):
            running.cancel()
            return self._own(case, Beyond.ELSEWHERE.value, running=running)
        if reason := self._doubt(case, running):
            running.cancel()
            return self._own(case, self._hand_over(case, reason, running), reason, running)
        return Speech(case.served, self._answer(case, running, whole=whole))

    def _case(self, ask: Ask) -> _Case:
        served = self._answering.served(ask.model)
        length = len(ask.text) + len(ask.context) + sum(len(said) for _, said in ask.earlier)
        if length > MOST_CHARACTERS:
            raise TooLong(length, MOST_CHARACTERS, "characters")
        text, context = visible_text(ask.text), visible_text(ask.context)
        earlier = [(who, visible_text(said)) for who, said in ask.earlier]
        by_customer = [said for who, said in earlier if who == "customer"]
        given = {**self._screening.details([context, *by_customer, text]), **named(ask.values)}
        told = {name: without_markup(value) for name, value in given.items() if is_fit(value, value)}
        values = {**self._company.values, **told}
        said = "\n".join([*values.values(), context, *(said for _, said in earlier), text])
        return _Case(ask, text, context, earlier, told, values, said, served)

    def _start(self, case: _Case, cancelled: threading.Event | None) -> Running:
        """Asks the model, in its placeholder mode, of which ``case.served`` is the very version."""
        earlier: list[tuple[Speaker, str]] = [("customer", case.context)] if case.context else []
        earlier += case.earlier
        turns = [(who, self._as_trained(said, who, case.served)) for who, said in earlier]
        question = self._as_trained(case.text, "customer", case.served)
        return self._answering.start(case.served.name, question, turns, case.ask.sampling, cancelled)

    def _as_trained(self, text: str, speaker: Speaker, served: Served) -> str:
        """``text`` as the model's training rows have it; one trained on realistic values reads what is written."""
        if served.placeholders is PlaceholderMode.REALISTIC:
            return text
        return apply(self._screening.masked(text, speaker), served.placeholders, speaker, "")

    def _doubt(self, case: _Case, running: Running) -> Reason | None:
        """Why the classifier's word hands over to a person, None where it does not."""
        if running.confidence is None:
            return None
        if running.intent == FOR_A_PERSON and running.confidence >= CERTAIN:
            return Reason.ASKED
        # Where nothing that was said before is about the question either, more certainty of the intent is asked for.
        unheard = running.found is not None and not is_near(running.found)
        least = CERTAIN if unheard else self._company.handover.confidence
        follows_up = bool(case.earlier) and len(case.text.split()) <= FOLLOWS_UP
        return Reason.DOUBT if running.confidence < least and not follows_up else None

    def _answer(
        self, case: _Case, running: Running, *, whole: bool, reason: Reason | None = None, draft: bool = False
    ) -> Generator[str, None, Reply]:
        ask = case.ask
        manner = Manner(ask.tone, case.values, case.said, case.earlier, running.intent, private=ask.private)
        composer = Composer(self._screening, manner)
        said: list[str] = []
        try:
            for piece in [running.text()] if whole else running:
                for sentence in composer.feed(piece):
                    said.append(sentence)
                    yield sentence
                if composer.withheld:
                    break
            else:
                for sentence in composer.end(whole=running.finish == "stop"):
                    said.append(sentence)
                    yield sentence
        finally:
            running.cancel()
        author: Author = "model" if said or draft else "desk"
        if composer.withheld:
            reason = Reason.WITHHELD
            if not draft:
                # In the middle of an answer, which has addressed the customer.
                text = self._hand_over(case, reason, running)
                said.append(f" {put(text, ask.tone)}" if said else self._as_asked(case, text))
                yield said[-1]
        elif not said and running.finish == "stop" and not draft:
            said.append(self._as_asked(case, NOT_UNDERSTOOD))
            yield said[-1]
        return Reply(
            "".join(said),
            case.served,
            author,
            running.intent,
            running.confidence,
            reason,
            "stop" if composer.withheld else running.finish,
            running.tokens,
            running.prompt_tokens,
            sources_of(running.found or (), self._company.values) if author == "model" else (),
        )

    def _own(self, case: _Case, text: str, reason: Reason | None = None, running: Running | None = None) -> Speech:
        """An answer of the desk's own, which needs no model; ``running`` is one that was asked for the intent alone."""
        intent, confidence = (running.intent, running.confidence) if running else (None, None)
        said = self._as_asked(case, text)

        def pieces() -> Generator[str, None, Reply]:
            yield said
            return Reply(said, case.served, "desk", intent, confidence, reason)

        return Speech(case.served, pieces())

    def _hand_over(self, case: _Case, reason: Reason, running: Running | None = None) -> str:
        """Puts the conversation in the queue, and returns what the customer is to be told."""
        text, reference, follows = announcement(reason, case.earlier, case.values)
        self._queue.put(
            handover(
                case.text,
                case.earlier,
                reason,
                reference=reference,
                follows=follows,
                model=case.served.name,
                intent=running.intent if running else None,
                confidence=running.confidence if running else None,
                context=case.context,
                values=case.told,
            )
        )
        return text

    def _as_asked(self, case: _Case, text: str) -> str:
        """The desk's own ``text`` in the tone that was asked for."""
        put_so = put(text, case.ask.tone)
        opening = not any(who == "agent" for who, _ in case.earlier)
        return f"{address(put_so, case.ask.tone, case.values) if opening else ''}{put_so}"


def _whole(speech: Speech) -> Reply:
    for _ in speech:
        pass
    return speech.reply
