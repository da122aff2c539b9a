"""The desk on real models: who answers, what a person is given, what a stream holds back."""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import Context, RetrievedText
from cs_pipeline.serve.desk.desk import NOT_UNDERSTOOD, Ask, Desk
from cs_pipeline.serve.desk.handover import Reason
from cs_pipeline.serve.desk.scope import CERTAIN, Beyond
from cs_pipeline.serve.desk.sources import CitedSource
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.answering import Answering, Finish, Running, Sampling, Served
from cs_pipeline.serve.models.refusals import UnknownModel
from cs_pipeline_tests.support.desks import desk as desk  # the fixtures
from cs_pipeline_tests.support.desks import lake as lake
from cs_pipeline_tests.support.desks import waiting
from cs_pipeline_tests.support.serving import SURE, wait_for

DRAWN = Sampling(temperature=1.0, seed=3, max_tokens=60)


def test_a_question_is_answered_by_the_model(desk: Desk, answering: Answering) -> None:
    reply = desk.reply(Ask(SURE))
    raw = answering.start("champion", SURE, (), Sampling())
    assert reply.author == "model"
    assert (reply.served.name, reply.intent, reply.confidence) == ("1", raw.intent, raw.confidence)
    raw_text = raw.text()
    assert (reply.tokens, reply.finish) == (raw.tokens, raw.finish)
    assert reply.prompt_tokens == raw.prompt_tokens > 0
    assert raw_text
    assert not reply.handover


def test_a_stream_says_what_a_reply_says_in_pieces_that_are_final(desk: Desk) -> None:
    for name in ("1", "2", "1:base"):
        ask = Ask(SURE, model=name, tone=Tone.PROFESSIONAL, sampling=DRAWN)
        speech = desk.stream(ask)
        with pytest.raises(RuntimeError):
            _ = speech.reply
        pieces = list(speech)
        assert "".join(pieces) == speech.reply.text == desk.reply(ask).text
        assert speech.served.name == speech.reply.served.name == name
        assert not any("{{" in piece or "}}" in piece for piece in pieces)
        assert speech.reply.text.startswith("Dear customer,\n\n")


def test_who_stops_listening_stops_the_model(desk: Desk, answering: Answering) -> None:
    cancelled = threading.Event()
    cancelled.set()
    reply = desk.reply(Ask(SURE, sampling=Sampling(max_tokens=2000)), cancelled)
    assert reply.finish == "cancelled"
    speech = desk.stream(Ask(SURE, sampling=Sampling(temperature=5.0, seed=1, max_tokens=2000)))
    iterator = iter(speech)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    wait_for(lambda: answering.inside == 0)


def test_the_model_reads_of_personal_data_what_its_training_rows_have(desk: Desk, answering: Answering) -> None:
    def tokens(question: str, *turns: str) -> int:
        running = answering.start("champion", question, [("customer", turn) for turn in turns], Sampling(max_tokens=1))
        return running.prompt_tokens

    one = Sampling(max_tokens=1)
    question = "I want a new password for order 4412345678 of jane@mail.example"
    masked = "I want a new password for order {{Order Number}} of {{Customer Email}}"
    assert desk.reply(Ask(question, sampling=one)).prompt_tokens == tokens(masked) != tokens(question)
    told_first = desk.reply(Ask(SURE, sampling=one, context="The order is 4412345678.")).prompt_tokens
    assert told_first == tokens(SURE, "The order is {{Order Number}}.") > tokens(SURE)


def test_what_is_known_of_the_customer(desk: Desk, lake: DataLake) -> None:
    """What the request says goes before what the text says, and what is said last before what was said first."""
    earlier: Context = (("customer", "my order is 1112345678"), ("agent", "And your invoice 7771234567?"))
    reply = desk.reply(Ask("my order is 4412345678, get me a human please", earlier, values={"client name": "Jane"}))
    (record,) = (record for name, record in waiting(lake).items() if name in reply.text)
    assert record["values"] == {"Order Number": "4412345678", "Client Name": "Jane"}
    reply = desk.reply(Ask("my order is 4412345678, get me a human please", values={"order id": "A-77"}))
    (record,) = (record for name, record in waiting(lake).items() if name in reply.text)
    assert record["values"] == {"Order Number": "A-77"}


def test_an_unknown_model_is_refused_even_where_no_model_is_needed(desk: Desk) -> None:
    for text in (SURE, "I want to talk to a human", "tell me a joke"):
        with pytest.raises(UnknownModel):
            desk.stream(Ask(text, model="../../etc/passwd"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Can I talk to a real person?", Reason.ASKED),
        ("My lawyer will hear of this.", Reason.MATTER),
        ("I am so furious, this is a disgrace!", Reason.ANGER),
        ("I have told you three times already", Reason.FAILURE),
        ("Ich hätte da etwas ganz anderes", Reason.DOUBT),
    ],
)
def test_a_person_takes_over_with_all_that_was_said(desk: Desk, lake: DataLake, text: str, reason: Reason) -> None:
    before = waiting(lake)
    earlier: Context = (("customer", "where is order 4412345678?"), ("agent", "It is on its way."))
    reply = desk.reply(Ask(text, earlier, context="A customer since 2019."))
    (reference,) = waiting(lake).keys() - before.keys()
    assert reference in reply.text
    assert (reply.author, reply.handover, reply.tokens) == ("desk", reason, 0)
    record = waiting(lake)[reference]
    assert record["reason"] == reason.value
    assert record["conversation"] == [list(turn) for turn in (*earlier, ("customer", text))]
    assert record["values"]["Order Number"] == "4412345678"
    assert record["context"] == "A customer since 2019."
    for part in (reason.value, "where is order 4412345678?", text, "It is on its way."):
        assert part in record["summary"]
    path = lake.path("serve", "handovers", f"{reference}.json")
    assert path.stat().st_mode & 0o777 == 0o600


def test_what_is_handed_over_is_no_loop(desk: Desk, lake: DataLake) -> None:
    first = desk.reply(Ask("I want to speak to a human"))
    again = desk.reply(Ask("A human!! Now!", (("customer", "I want to speak to a human"), ("agent", first.text))))
    (old,) = (name for name in waiting(lake) if name in first.text)
    assert old in again.text
    assert "already" in again.text
    (record,) = (record for record in waiting(lake).values() if record["follows"] == old)
    assert record["conversation"][-1] == ["customer", "A human!! Now!"]
    answered = desk.reply(Ask(SURE, (("customer", "I want to speak to a human"), ("agent", first.text))))
    assert answered.author == "model", "another question is answered all the same"


def test_a_draft_hands_nothing_over(desk: Desk, lake: DataLake) -> None:
    before = waiting(lake)
    for text, reason in (
        ("You idiots, this is outrageous!", Reason.ANGER),
        ("Tell me a joke", Reason.DOUBT),
        (SURE, None),
    ):
        draft = desk.draft(Ask(text, sampling=DRAWN))
        assert (draft.author, draft.handover) == ("model", reason)
        assert draft.tokens > 0
        assert NOT_UNDERSTOOD not in draft.text
    assert waiting(lake) == before


def test_questions_for_another_desk_are_redirected_in_the_tone(desk: Desk) -> None:
    reply = desk.reply(Ask("Will it rain tomorrow?"))
    assert (reply.text, reply.author, reply.tokens) == (Beyond.ELSEWHERE.value, "desk", 0)
    friendly = desk.reply(Ask("Will it rain tomorrow?", tone=Tone.FRIENDLY)).text
    assert friendly.startswith("Hi! I'm afraid that's outside what I can help with")


class Scripted(Answering):
    """A model that writes what it is told to: what the desk does with it is what is tested."""

    def __init__(self, *said: Any) -> None:
        self.run = ScriptedRunning(*said)

    def served(self, model: str) -> Served:
        return self.run.served

    def start(self, *_: Any) -> Running:
        return self.run

    def close(self) -> None:
        pass


class ScriptedRunning(Running):
    finish: Finish = "stop"
    tokens = 9

    def __init__(
        self,
        served: Served,
        raw: str,
        intent: str,
        confidence: float,
        finish: Finish = "stop",
        found: tuple[RetrievedText, ...] | None = None,
    ) -> None:
        self.found = found
        self.served, self.intent, self.confidence, self.finish = served, intent, confidence, finish
        self.prompt_tokens = 5
        self.cancelled = False
        self._raw = raw

    def __iter__(self) -> Iterator[str]:
        for letter in self._raw:
            assert not self.cancelled
            yield letter

    def text(self) -> str:
        return self._raw

    def cancel(self) -> None:
        self.cancelled = True


@pytest.fixture(scope="module")
def scripted(desk: Desk, answering: Answering) -> Callable[..., Desk]:
    """A desk like ``desk`` with a model that writes the given text."""

    def make(
        raw: str,
        intent: str = "track_order",
        confidence: float = 0.9,
        finish: Finish = "stop",
        found: tuple[RetrievedText, ...] | None = None,
    ) -> Desk:
        other = copy.copy(desk)
        other._answering = Scripted(answering.served("champion"), raw, intent, confidence, finish, found)
        return other

    return make


def test_placeholders_of_an_answer_are_filled(scripted: Callable[..., Desk]) -> None:
    desk = scripted(
        "Hi {{Client First Name}}, order {{Order Number}} is on {{Website URL}}, {{Company Name}}'s site. Bye!"
    )
    text = desk.reply(Ask("where is order 4412345678", values={"client_first_name": "Jo"}, tone=Tone.PROFESSIONAL)).text
    assert text == "Hi Jo, order 4412345678 is on www.brightmart.example, Brightmart's site. Bye."
    asked = desk.reply(Ask("where is my order", private=True)).text
    assert asked.endswith("Bye! Could you please tell me your order number?")


@pytest.mark.parametrize("raw", ["You idiot.", "Order 1 is fine. <|im_end|> More."])
def test_an_answer_that_nobody_may_read_is_handed_over(scripted: Callable[..., Desk], lake: DataLake, raw: str) -> None:
    ask = Ask("where is it?", tone=Tone.FRIENDLY)
    speech = scripted(raw).stream(ask)
    text = "".join(speech)
    assert (text, speech.reply.handover) == (speech.reply.text, Reason.WITHHELD)
    assert text.startswith("Hi! ")
    assert text.count("Hi!") == 1
    assert "idiot" not in text
    assert "More" not in text
    assert [record["intent"] for name, record in waiting(lake).items() if name in text] == ["track_order"]
    assert (speech.reply.author == "model") == ("Order 1" in text)
    before = waiting(lake)
    draft = scripted(raw).draft(ask)
    assert (draft.handover, waiting(lake)) == (Reason.WITHHELD, before)
    assert "idiot" not in draft.text


def test_a_listener_who_leaves_cancels_the_model(desk: Desk, answering: Answering) -> None:
    other = copy.copy(desk)
    model = Scripted(answering.served("champion"), "One. Two. Three.", "track_order", 0.9)
    other._answering = model
    pieces = iter(other.stream(Ask("where is it?")))
    assert next(pieces) == "One. "
    assert not model.run.cancelled
    pieces.close()  # type: ignore[attr-defined]
    assert model.run.cancelled


def test_an_empty_answer_asks_back(scripted: Callable[..., Desk]) -> None:
    reply = scripted("").reply(Ask("where is it?"))
    assert (reply.text, reply.author) == (NOT_UNDERSTOOD, "desk")
    assert scripted("").draft(Ask("where is it?")).text == ""
    assert scripted("", finish="cancelled").reply(Ask("where is it?")).text == ""


def test_the_classifiers_word_brings_a_person(scripted: Callable[..., Desk]) -> None:
    def reason(intent: str, confidence: float, text: str, earlier: Context = ()) -> Reason | None:
        return scripted("Gladly.", intent, confidence).reply(Ask(text, earlier)).handover

    assert reason("contact_human_agent", CERTAIN, "direct to me an operator") is Reason.ASKED
    assert reason("contact_human_agent", CERTAIN - 0.01, "direct to me an operator") is None
    assert reason("track_order", 0.19, "the blue thing I mean") is Reason.DOUBT
    assert reason("track_order", 0.2, "the blue thing I mean") is None
    talk: Context = (("customer", "where is it"), ("agent", "Which one?"))
    assert reason("track_order", 0.01, "the blue one", talk) is None, "what is short answers what was asked"
    assert reason("track_order", 0.01, "the blue one that I have had", talk) is Reason.DOUBT


def test_an_answer_comes_with_what_it_was_written_from(scripted: Callable[..., Desk]) -> None:
    known = RetrievedText(
        "answer", "r1", "Order {{Order Number}} is on its way.", "where is {{Order Number}}?", None, None, 0.8
    )
    read = RetrievedText("passage", "p1", "Parcels take two days.", "Delivery", "https://shop.example/d", "ab", 0.3)
    far = [replace(known, similarity=0.39), replace(read, similarity=0.19)]
    reply = scripted("It is on its way.", found=(known, read, *far)).reply(Ask(SURE))
    assert reply.sources == (
        CitedSource("answer", "where is my order number?", None, "Order is on its way.", 0.8),
        CitedSource("passage", "Delivery", "https://shop.example/d", "Parcels take two days.", 0.3),
    )
    assert scripted("It is on its way.", found=()).reply(Ask(SURE)).sources == ()


def test_where_nothing_like_it_is_known_more_certainty_is_asked_for(scripted: Callable[..., Desk]) -> None:
    far = RetrievedText("answer", "r1", "It is on its way.", "where is it?", None, None, 0.39)
    for found, reason in (
        (None, None),
        ((), Reason.DOUBT),
        ((far,), Reason.DOUBT),
        ((replace(far, similarity=0.4),), None),
    ):
        reply = scripted("It is on its way.", confidence=0.7, found=found).reply(Ask(SURE))
        assert (reply.handover, bool(reply.sources)) == (reason, bool(found) and reason is None)
    assert scripted("It is on its way.", confidence=0.8, found=()).reply(Ask(SURE)).handover is None


def test_what_is_cut_off_is_said_as_far_as_it_goes(scripted: Callable[..., Desk]) -> None:
    desk = scripted("Your order {{Order Number}} left. It will be with {{Order Nu", finish="length")
    reply = desk.reply(Ask("where is it?"))
    assert (reply.text, reply.finish) == ("Your order left. It will be with ", "length")


def test_a_name_is_echoed_as_a_name_or_not_at_all(scripted: Callable[..., Desk]) -> None:
    for tone in (Tone.FRIENDLY, Tone.PROFESSIONAL):
        for text in ("where is it?", "Will it rain?", "get me a human please"):
            for name in ("<|im_end|>", "you idiot", "<script>alert(1)</script>", "{{Order Number}}"):
                said = (
                    scripted("Gladly.", confidence=0.7).reply(Ask(text, values={"Client Name": name}, tone=tone)).text
                )
                assert not any(mark in said for mark in ("<", "idiot", "{"))


def test_the_lake_is_the_only_place_written_to(lake: DataLake) -> None:
    assert {path.relative_to(lake.root).parts[:2] for path in lake.root.rglob("*") if path.is_file()} == {
        ("serve", "handovers")
    }
