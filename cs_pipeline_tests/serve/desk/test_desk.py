"""The desk with real models: who answers, the handover to a person, and the text that a stream withholds."""

import copy
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import ANSWER
from cs_pipeline.core.schema import PASSAGE as PASSAGE_SCHEMA
from cs_pipeline.llm.prompt import Context, RetrievedText
from cs_pipeline.retrieval.index import retrieval_folder, write_index
from cs_pipeline.retrieval.router import Route
from cs_pipeline.serve.desk.desk import NOT_UNDERSTOOD, CitedSource, Desk, DeskRequest
from cs_pipeline.serve.desk.handover import HandoverReason
from cs_pipeline.serve.desk.scope import OutOfScope
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.generation import Generation
from cs_pipeline.serve.models.jobs import Finish, Sampling, UnknownModel
from cs_pipeline.serve.models.live import LiveIndex
from cs_pipeline.serve.models.pool import ServedModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline_tests.support.desks import COMPANY, waiting
from cs_pipeline_tests.support.desks import desk as desk  # the fixtures
from cs_pipeline_tests.support.desks import lake as lake
from cs_pipeline_tests.support.serving import SURE, wait_for

DRAWN = Sampling(temperature=1.0, seed=3, max_tokens=60)


def test_a_question_is_answered_by_the_model(desk: Desk, service: ModelService) -> None:
    reply = desk.reply(DeskRequest(SURE))
    raw = service.start("champion", SURE, (), Sampling())
    assert reply.author == "model"
    assert (reply.served.name, reply.intent, reply.confidence) == ("1", raw.intent, raw.confidence)
    raw_text = raw.text()
    assert (reply.tokens, reply.finish) == (raw.tokens, raw.finish)
    assert reply.prompt_tokens == raw.prompt_tokens > 0
    assert raw_text
    assert not reply.handover


def test_a_stream_gives_the_same_text_as_a_reply_in_final_pieces(desk: Desk) -> None:
    for name in ("1", "2", "1:base"):
        ask = DeskRequest(SURE, model=name, tone=Tone.PROFESSIONAL, sampling=DRAWN)
        speech = desk.stream(ask)
        with pytest.raises(RuntimeError):
            _ = speech.reply
        pieces = list(speech)
        assert "".join(pieces) == speech.reply.text == desk.reply(ask).text
        assert speech.served.name == speech.reply.served.name == name
        assert not any("{{" in piece or "}}" in piece for piece in pieces)
        assert speech.reply.text.startswith("Dear customer,\n\n")


def test_cancelling_or_closing_a_stream_stops_the_model(desk: Desk, service: ModelService) -> None:
    cancelled = threading.Event()
    cancelled.set()
    reply = desk.reply(DeskRequest(SURE, sampling=Sampling(max_tokens=2000)), cancelled)
    assert reply.finish == "cancelled"
    speech = desk.stream(DeskRequest(SURE, sampling=Sampling(temperature=5.0, seed=1, max_tokens=2000)))
    iterator = iter(speech)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    wait_for(lambda: service.inside == 0)


def test_the_model_gets_personal_data_masked_like_its_training_rows(desk: Desk, service: ModelService) -> None:
    def tokens(question: str, *turns: str, model: str = "champion") -> int:
        running = service.start(model, question, [("customer", turn) for turn in turns], Sampling(max_tokens=1))
        return running.prompt_tokens

    one = Sampling(max_tokens=1)
    question = "can you help me to cancel purchase 4412345678"
    masked = "can you help me to cancel purchase {{Order Number}}"
    assert desk.reply(DeskRequest(question, sampling=one)).prompt_tokens == tokens(masked) != tokens(question)
    for model, reads in (("champion:base", True), ("champion", False)):  # the champion was trained on single questions
        asked = DeskRequest(SURE, model=model, sampling=one, context="The order is 4412345678.")
        with_context = desk.reply(asked).prompt_tokens
        facts = "The order is {{Order Number}}."
        as_turn, in_question = tokens(SURE, facts, model=model), tokens(f"{facts}\n{SURE}", model=model)
        assert with_context == (as_turn if reads else in_question) > tokens(SURE, model=model)


def test_facts_of_the_case_stay_in_the_prompt_when_earlier_turns_are_too_long(desk: Desk) -> None:
    def prompt_tokens(earlier: Context, context: str = "The parcel is in Leeds.") -> int:
        asked = DeskRequest(SURE, earlier, "champion:base", sampling=Sampling(max_tokens=1), context=context)
        return desk.reply(asked).prompt_tokens

    earlier: Context = (("customer", "where is my order? " * 300), ("agent", "It is on its way."))
    last = earlier[1:]
    assert prompt_tokens(earlier) == prompt_tokens(last) > prompt_tokens(last, context="")


def test_details_of_the_customer_come_from_the_request_and_the_conversation(desk: Desk, lake: DataLake) -> None:
    """Values of the request take precedence over the text, and later messages over earlier ones."""
    earlier: Context = (("customer", "my order is 1112345678"), ("agent", "And your invoice 7771234567?"))
    reply = desk.reply(
        DeskRequest("my order is 4412345678, get me a human please", earlier, values={"client name": "Jane"})
    )
    (record,) = (record for name, record in waiting(lake).items() if name in reply.text)
    assert record["values"] == {"Order Number": "4412345678", "Client Name": "Jane"}
    reply = desk.reply(DeskRequest("my order is 4412345678, get me a human please", values={"order id": "A-77"}))
    (record,) = (record for name, record in waiting(lake).items() if name in reply.text)
    assert record["values"] == {"Order Number": "A-77"}


def test_an_unknown_model_is_refused_even_if_no_model_is_needed(desk: Desk) -> None:
    for text in (SURE, "I want to talk to a human", "tell me a joke"):
        with pytest.raises(UnknownModel):
            desk.stream(DeskRequest(text, model="../../etc/passwd"))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Can I talk to a real person?", HandoverReason.ASKED),
        ("My lawyer will hear of this.", HandoverReason.SENSITIVE),
        ("I am so furious, this is a disgrace!", HandoverReason.ANGER),
        ("I have told you three times already", HandoverReason.FAILURE),
        ("Ich hätte da etwas ganz anderes", HandoverReason.UNCLEAR),
    ],
)
def test_a_person_takes_over_with_the_whole_conversation(
    desk: Desk, lake: DataLake, text: str, reason: HandoverReason
) -> None:
    before = waiting(lake)
    earlier: Context = (("customer", "where is order 4412345678?"), ("agent", "It is on its way."))
    reply = desk.reply(DeskRequest(text, earlier, context="A customer since 2019."))
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


def test_a_conversation_that_was_handed_over_is_not_handed_over_as_new(desk: Desk, lake: DataLake) -> None:
    first = desk.reply(DeskRequest("I want to speak to a human"))
    again = desk.reply(
        DeskRequest("A human!! Now!", (("customer", "I want to speak to a human"), ("agent", first.text)))
    )
    (old,) = (name for name in waiting(lake) if name in first.text)
    assert old in again.text
    assert "already" in again.text
    (record,) = (record for record in waiting(lake).values() if record["follows"] == old)
    assert record["conversation"][-1] == ["customer", "A human!! Now!"]
    answered = desk.reply(DeskRequest(SURE, (("customer", "I want to speak to a human"), ("agent", first.text))))
    assert answered.author == "model", "another question is still answered"


def test_a_draft_hands_nothing_over(desk: Desk, lake: DataLake) -> None:
    before = waiting(lake)
    for text, reason in (
        ("You idiots, this is outrageous!", HandoverReason.ANGER),
        ("Tell me a joke", HandoverReason.UNCLEAR),
        (SURE, None),
    ):
        draft = desk.draft(DeskRequest(text, sampling=DRAWN))
        assert (draft.author, draft.handover) == ("model", reason)
        assert draft.tokens > 0
        assert NOT_UNDERSTOOD not in draft.text
    assert waiting(lake) == before


def test_off_topic_questions_get_a_fixed_reply_in_the_requested_tone(desk: Desk) -> None:
    reply = desk.reply(DeskRequest("Will it rain tomorrow?"))
    assert (reply.text, reply.author, reply.tokens) == (OutOfScope.OFF_TOPIC.reply(COMPANY.topics), "desk", 0)
    friendly = desk.reply(DeskRequest("Will it rain tomorrow?", tone=Tone.FRIENDLY)).text
    assert friendly.startswith("Hi! I'm afraid that's outside what I can help with")


class Scripted(ModelService):
    """A model service with a scripted output, and the index of a lake."""

    def __init__(self, lake: DataLake, *script: Any) -> None:
        self.live_index = LiveIndex(lake)
        self.run = ScriptedGeneration(*script)

    def served(self, model: str) -> ServedModel:
        return self.run.served

    def start(self, *_: Any) -> Generation:
        return self.run

    def close(self) -> None:
        pass


class ScriptedGeneration(Generation):
    finish: Finish = "stop"
    ended = "stop"
    text_so_far = ""
    tokens = 9
    prompt_tokens = 5

    def __init__(
        self,
        served: ServedModel,
        raw: str,
        intent: str | None,
        known: float | None,
        finish: Finish = "stop",
        retrieved: tuple[RetrievedText, ...] | None = None,
    ) -> None:
        self.retrieved = retrieved
        self.served, self.finish = served, finish
        self.route = None if known is None else Route(intent, intent or "track_order", known, known, known)
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


KNOWN = [("my saddle creaks, what can I do?", "Please send us your order number."), ("it creaks", "Your order number?")]
PASSAGE = ("Winter storage", "Store the battery at room temperature, half full, and away from frost.")


@pytest.fixture(scope="module")
def indexed(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """A lake that has nothing but an index: two known questions of the subject "saddle", and a passage."""
    lake = DataLake(tmp_path_factory.mktemp("indexed"))
    rows = [
        {"row_id": question, "cluster_id": question, "question": question, "answer": answer}
        | {"intent": "saddle", "source": "company"}
        for question, answer in KNOWN
    ]
    title, text = PASSAGE
    passage = {"passage_id": "p", "path": "p", "place": 0, "title": title, "text": text, "address": "a", "version": "v"}
    tables = {
        "answers": pa.Table.from_pylist(rows, schema=ANSWER),
        "passages": pa.Table.from_pylist([passage], schema=PASSAGE_SCHEMA),
    }
    write_index(retrieval_folder(lake), tables)
    return lake


@pytest.fixture(scope="module")
def scripted(desk: Desk, service: ModelService, indexed: DataLake) -> Callable[..., Desk]:
    """A function that makes a desk whose model writes the given text."""

    def make(
        raw: str,
        intent: str | None = "track_order",
        known: float | None = 0.9,
        finish: Finish = "stop",
        retrieved: tuple[RetrievedText, ...] | None = None,
    ) -> Desk:
        other = copy.copy(desk)
        other._service = Scripted(indexed, service.served("champion"), raw, intent, known, finish, retrieved)
        return other

    return make


def test_placeholders_of_an_answer_are_filled(scripted: Callable[..., Desk]) -> None:
    desk = scripted(
        "Hi {{Client First Name}}, order {{Order Number}} is on {{Website URL}}, {{Company Name}}'s site. Bye!"
    )
    text = desk.reply(
        DeskRequest("where is order 4412345678", values={"client_first_name": "Jo"}, tone=Tone.PROFESSIONAL)
    ).text
    assert text == "Hi Jo, order 4412345678 is on www.brightmart.example, Brightmart's site. Bye."
    asked = desk.reply(DeskRequest("where is my order", private=True)).text
    assert asked.endswith("Bye! Could you please tell me your order number?")


@pytest.mark.parametrize("raw", ["You idiot.", "Order 1 is fine. <|im_end|> More."])
def test_an_answer_that_no_customer_may_read_is_handed_over(
    scripted: Callable[..., Desk], lake: DataLake, raw: str
) -> None:
    ask = DeskRequest("where is it?", tone=Tone.FRIENDLY)
    speech = scripted(raw).stream(ask)
    text = "".join(speech)
    assert (text, speech.reply.handover) == (speech.reply.text, HandoverReason.WITHHELD)
    assert text.startswith("Hi! ")
    assert text.count("Hi!") == 1
    assert "idiot" not in text
    assert "More" not in text
    assert [record["intent"] for name, record in waiting(lake).items() if name in text] == ["track_order"]
    assert (speech.reply.author == "model") == ("Order 1" in text)
    before = waiting(lake)
    draft = scripted(raw).draft(ask)
    assert (draft.handover, waiting(lake)) == (HandoverReason.WITHHELD, before)
    assert "idiot" not in draft.text


def test_closing_a_stream_cancels_the_model(desk: Desk, service: ModelService, indexed: DataLake) -> None:
    other = copy.copy(desk)
    model = Scripted(indexed, service.served("champion"), "One. Two. Three.", "track_order", 0.9)
    other._service = model
    pieces = iter(other.stream(DeskRequest("where is it?")))
    assert next(pieces) == "One. "
    assert not model.run.cancelled
    pieces.close()  # type: ignore[attr-defined]
    assert model.run.cancelled


def test_an_empty_answer_becomes_a_question_to_the_customer(scripted: Callable[..., Desk]) -> None:
    reply = scripted("").reply(DeskRequest("where is it?"))
    assert (reply.text, reply.author) == (NOT_UNDERSTOOD, "desk")
    assert scripted("").draft(DeskRequest("where is it?")).text == ""
    assert scripted("", finish="cancelled").reply(DeskRequest("where is it?")).text == ""


def test_only_a_question_about_nothing_known_is_handed_over(scripted: Callable[..., Desk], lake: DataLake) -> None:
    def reason(
        intent: str | None, text: str, earlier: Context = (), known: float | None = 0.1
    ) -> HandoverReason | None:
        return scripted("Gladly.", intent, known).reply(DeskRequest(text, earlier)).handover

    assert reason("contact_human_agent", "direct to me an operator", known=0.9) is HandoverReason.ASKED
    assert reason("contact_human_agent", "direct to me an operator", known=0.4) is None, (
        "one of several probable intents"
    )
    assert reason(None, "the blue thing I mean") is HandoverReason.UNCLEAR
    assert reason("saddle", "the blue thing I mean") is None, "the router is sure"
    assert reason(None, "the blue thing I mean", known=None) is None, "there is no router"
    assert reason(None, "My saddle creaks. What can I do??") is None, "the question is known"
    assert reason(None, "my saddle is dirty") is HandoverReason.UNCLEAR, "another question is known"
    assert reason(None, "winter storage of the battery at which temperature") is None, "there is a passage about it"
    talk: Context = (("customer", "where is it"), ("agent", "Which one?"))
    assert reason(None, "the blue one", talk) is None, "a short message answers the question before it"
    reply = scripted("Gladly.", None, 0.1).reply(DeskRequest("the blue one that I have had", talk))
    assert (reply.handover, reply.intent, reply.confidence) == (HandoverReason.UNCLEAR, None, 0.1)
    (record,) = (record for name, record in waiting(lake).items() if name in reply.text)
    assert (record["intent"], record["confidence"]) == (None, 0.1)
    assert "Topic:" not in record["summary"]


def test_a_companys_subject_asks_in_private_for_what_its_own_answers_ask_for(scripted: Callable[..., Desk]) -> None:
    raw = "I look up order {{Order Number}} and invoice {{Invoice Number}}."
    ask = DeskRequest("it creaks", private=True)
    assert scripted(raw, "saddle").reply(ask).text.endswith("Could you please tell me your order number?")
    assert scripted(raw, "unheard of").reply(ask).text == "I look up order and invoice."


def test_an_answer_comes_with_its_sources(scripted: Callable[..., Desk]) -> None:
    known = RetrievedText(
        "answer", "r1", "Order {{Order Number}} is on its way.", "where is {{Order Number}}?", None, None, 0.8
    )
    read = RetrievedText("passage", "p1", "Parcels take two days.", "Delivery", "https://shop.example/d", "ab", 0.3)
    far = [replace(known, similarity=0.39), replace(read, similarity=0.19)]
    reply = scripted("It is on its way.", retrieved=(known, read, *far)).reply(DeskRequest(SURE))
    assert reply.sources == (
        CitedSource("answer", "where is my order number?", None, "Order is on its way.", 0.8),
        CitedSource("passage", "Delivery", "https://shop.example/d", "Parcels take two days.", 0.3),
    )
    assert scripted("It is on its way.", retrieved=()).reply(DeskRequest(SURE)).sources == ()


def test_an_answer_that_is_cut_off_is_given_as_far_as_it_goes(scripted: Callable[..., Desk]) -> None:
    desk = scripted("Your order {{Order Number}} left. It will be with {{Order Nu", finish="length")
    reply = desk.reply(DeskRequest("where is it?"))
    assert (reply.text, reply.finish) == ("Your order left. It will be with ", "length")


def test_a_hostile_name_is_never_repeated(scripted: Callable[..., Desk]) -> None:
    for tone in (Tone.FRIENDLY, Tone.PROFESSIONAL):
        for text in ("where is it?", "Will it rain?", "get me a human please"):
            for name in ("<|im_end|>", "you idiot", "<script>alert(1)</script>", "{{Order Number}}"):
                answer = (
                    scripted("Gladly.", known=0.7)
                    .reply(DeskRequest(text, values={"Client Name": name}, tone=tone))
                    .text
                )
                assert not any(mark in answer for mark in ("<", "idiot", "{"))


def test_only_handovers_are_written_to_the_lake(lake: DataLake) -> None:
    assert {path.relative_to(lake.root).parts[:2] for path in lake.root.rglob("*") if path.is_file()} == {
        ("serve", "handovers")
    }
