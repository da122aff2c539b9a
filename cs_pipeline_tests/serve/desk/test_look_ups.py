"""A look-up behind the service and the desk, without HTTP: limits, cancellation, memory, drafts, and citations."""

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.router import Route
from cs_pipeline.serve.desk.desk import NO_KNOWN_ANSWER, Desk, DeskRequest
from cs_pipeline.serve.desk.handover import HandoverReason
from cs_pipeline.serve.desk.scope import OutOfScope
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.serve.models.generation import KnownAnswer
from cs_pipeline.serve.models.jobs import Busy, NotReady, Sampling
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.tracking import get_version, open_store
from cs_pipeline_tests.conftest import copy_lake, own_world
from cs_pipeline_tests.support.desks import COMPANY, waiting
from cs_pipeline_tests.support.serving import SURE, engine_of, running_service, wait_for
from cs_pipeline_tests.support.versions import known_answer, make_champion

UNKNOWN = "A puppy ate it, refund"
"""A question that the router does not know, and to which no known question is similar enough."""


@pytest.fixture(scope="module")
def lake(lookup_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    return copy_lake(lookup_lake, tmp_path_factory.mktemp("lookup") / "lake")


@pytest.fixture(scope="module")
def ended() -> list[tuple[str, str]]:
    """Version and end of each answer, in order."""
    return []


@pytest.fixture(scope="module")
def service(lake: DataLake, ended: list[tuple[str, str]]) -> Iterator[ModelService]:
    """The models of a lake whose champion is version 2, a look-up; two questions may be inside."""

    def seen(answer: object) -> None:
        ended.append((answer.served.name, answer.ended))  # type: ignore[attr-defined]

    with own_world(lake.root), running_service(lake, queue=2, seen=seen) as service:
        yield service


@pytest.fixture(scope="module")
def desk(service: ModelService, lake: DataLake) -> Iterator[Desk]:
    desk = Desk(service, COMPANY, lake)
    yield desk
    desk.close()


def test_an_answer_is_complete_and_counted_when_it_is_returned(
    service: ModelService, lake: DataLake, ended: list[tuple[str, str]]
) -> None:
    known = known_answer(lake, 2, SURE)
    assert known is not None
    ended.clear()
    answer = service.start("champion", SURE, (), Sampling())
    assert ended == [("2", "stop")]
    assert (answer.text(), list(answer), answer.text_so_far) == (known.text, [known.text], known.text)
    assert (answer.finish, answer.tokens, answer.prompt_tokens, answer.declined) == ("stop", 0, 0, False)
    assert answer.retrieved == (known,)
    assert service.inside == 0
    assert service.pool.usage()["2"] == {"users": 1, "bytes": 0}, "only the registry holds it"
    declined = service.start("2", UNKNOWN, (), Sampling())
    assert (declined.text(), declined.retrieved, declined.declined) == ("", (), True)
    assert ended[1:] == [("2", "declined")]


def test_an_answer_that_nobody_waits_for_is_cancelled(desk: Desk, ended: list[tuple[str, str]]) -> None:
    cancelled = threading.Event()
    cancelled.set()
    ended.clear()
    reply = desk.reply(DeskRequest(SURE), cancelled)
    assert (reply.text, reply.finish) == ("", "cancelled")
    assert ended == [("2", "cancelled")]


def test_a_look_up_takes_its_place_in_the_queue(service: ModelService) -> None:
    assert service.start("1", SURE, (), Sampling()).text()
    go = threading.Event()
    hook = engine_of(service, "1").model.register_forward_pre_hook(lambda *_: go.wait() and None)
    try:
        running = [service.start("1", SURE, (), Sampling()) for _ in range(2)]
        with pytest.raises(Busy):
            service.start("2", SURE, (), Sampling())
    finally:
        go.set()
        hook.remove()
    assert all(answer.text() for answer in running)
    assert service.start("2", SURE, (), Sampling()).text()
    assert service.inside == 0


def test_a_look_up_needs_no_memory_and_is_unloaded_like_a_model(lake: DataLake) -> None:
    with running_service(lake, memory=1) as service:
        assert service.start("champion", SURE, (), Sampling()).text()
        assert service.pool.weight_bytes == 0
        with pytest.raises(NotReady, match="GB are in use"):
            service.start("1", SURE, (), Sampling())
    with running_service(lake) as service:
        assert service.start("1", SURE, (), Sampling()).text()
        wait_for(lambda: not service.pool.usage()["1"]["users"])
        service.pool._unload("1", only_idle=True)
        assert service.pool.usage().keys() == {"2"}
        assert service.pool.weight_bytes == 0
        service.pool._unload("2", only_idle=True)
        assert "2" in service.pool.usage(), "the champion stays"


def test_a_damaged_look_up_does_not_become_champion(lookup_lake: Path, tmp_path: Path) -> None:
    lake = copy_lake(lookup_lake, tmp_path / "lake")
    make_champion(lake, 1)
    threshold = get_version(open_store(lake), 2).folder / "adapter" / "lookup.json"
    threshold.write_text('{"min_similarity": 0.0}')
    with running_service(lake) as service:
        make_champion(lake, 2)
        wait_for(lambda: service.registry.failure)
        assert "lookup.json was changed" in str(service.registry.problem())
        assert service.start("champion", SURE, (), Sampling()).served.name == "1"


def test_rules_on_the_wording_come_first(desk: Desk) -> None:
    assert desk.reply(DeskRequest("Will it rain tomorrow?")).text == OutOfScope.OFF_TOPIC.reply(COMPANY.topics)
    assert desk.reply(DeskRequest("I want a new password, get me a human please")).handover is HandoverReason.ASKED
    reply = desk.reply(DeskRequest(UNKNOWN))
    assert (reply.author, reply.handover, reply.intent) == ("desk", HandoverReason.UNCLEAR, None)


def test_a_draft_is_the_known_answer_or_says_that_there_is_none(desk: Desk, lake: DataLake) -> None:
    before = waiting(lake)
    draft = desk.draft(DeskRequest(SURE, tone=Tone.FRIENDLY))
    assert (draft.author, draft.handover) == ("model", None)
    assert draft.text.startswith("Hi! ")
    assert [source.kind for source in draft.sources] == ["answer"]
    for tone in Tone:
        draft = desk.draft(DeskRequest(UNKNOWN, tone=tone))
        assert (draft.text, draft.author, draft.handover) == (NO_KNOWN_ANSWER, "desk", HandoverReason.UNCLEAR)
        assert draft.sources == ()
    angry = desk.draft(DeskRequest(f"You idiots, this is outrageous! {UNKNOWN}"))
    assert (angry.text, angry.handover) == (NO_KNOWN_ANSWER, HandoverReason.ANGER)
    assert waiting(lake) == before


class Finding(ModelService):
    """A service whose look-up finds one given answer."""

    def __init__(self, service: ModelService, known: RetrievedText) -> None:
        self.served = service.served  # type: ignore[method-assign]
        self.known = known

    def start(self, model: str, question: str, *_: object) -> KnownAnswer:
        route = Route("track_order", "track_order", 0.9, 0.9, 0.5)
        return KnownAnswer(self.served(model), question, route, (self.known,), 0.0, False)

    def close(self) -> None:
        pass


def test_a_copied_answer_is_screened_and_always_cited(desk: Desk, service: ModelService) -> None:
    known = RetrievedText("answer", "r1", "It is on its way.", "where is it?", None, None, 0.39)
    other = copy.copy(desk)
    other._service = Finding(service, known)
    (source,) = other.reply(DeskRequest("where is it?")).sources
    assert (source.text, source.similarity) == ("It is on its way.", 0.39)
    other._service = Finding(service, replace(known, text="It is on its way. You idiot. Bye."))
    reply = other.reply(DeskRequest("where is it?"))
    assert reply.handover is HandoverReason.WITHHELD
    assert reply.text.startswith("It is on its way. ")
    assert "idiot" not in reply.text
