"""Batches, limits, memory and names, with real models and without HTTP."""

import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.core.manifest import MANIFEST_NAME, write_manifest
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import read_fine_tune_recipe
from cs_pipeline.retrieval.router import OWN_ROUTER, prompt_intents, router_folder
from cs_pipeline.serve.models.generation import Generation
from cs_pipeline.serve.models.jobs import Busy, NotReady, Sampling, TooLong, UnknownModel
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.tracking import get_version, open_store
from cs_pipeline_tests.support.serving import engine_of, running_service, wait_for
from cs_pipeline_tests.support.versions import make_champion

QUESTIONS = ["where is my refund?", "how do I cancel order {{Order Number}}", "I want a new password", "hello"]
DRAWN = Sampling(temperature=1.0, top_p=0.95, seed=7)


def ask(service: ModelService, question: str, model: str = "champion", sampling: Sampling | None = None) -> Generation:
    return service.start(model, question, (), sampling or Sampling())


def expected(lake: Path, number: int, *, base: bool) -> list[str]:
    """The answers that the evaluation gets."""
    folder = get_version(open_store(DataLake(lake)), number).folder
    recipe = read_fine_tune_recipe(folder / "adapter" / "recipe.yaml")
    weights = base_of_version(recipe, folder)
    assert weights is not None
    model = SupportModel(recipe, weights, None if base else folder / "adapter")
    intents = prompt_intents(recipe, folder / "adapter", None)(QUESTIONS)
    return [answer.text for answer in model.answer(QUESTIONS, intents, [()] * len(QUESTIONS))]


def test_versions_and_bases_share_weights_and_answer_as_they_were_evaluated(
    service: ModelService, two_versions: Path
) -> None:
    running = {(name, q): ask(service, q, name) for name in ("1", "2", "1:base") for q in QUESTIONS}
    for name, number, base in (("1", 1, False), ("2", 2, False), ("1:base", 1, True)):
        answers = [running[name, question].text() for question in QUESTIONS]
        assert answers == expected(two_versions, number, base=base)
        assert {running[name, q].served.name for q in QUESTIONS} == {name}
    assert running["1", QUESTIONS[0]].text() != running["2", QUESTIONS[0]].text()
    engine = engine_of(service, "1")
    before = [weights.clone() for weights in engine.model.parameters()]
    for name in ("1", "2", "1:base") * 5:
        assert ask(service, QUESTIONS[0], name).text() == running[name, QUESTIONS[0]].text()
    for was, now in zip(before, engine.model.parameters(), strict=True):
        assert torch.allclose(was, now, rtol=0, atol=1e-6), "merged adapters are unmerged again"
    usage = service.pool.usage()
    assert {"1", "2", "1:base"} <= set(usage)
    assert {entry["bytes"] for entry in usage.values()} == {service.pool.weight_bytes}, "all share one base"


def test_a_version_of_before_keeps_its_classifier_and_is_routed_by_the_lake(own_versions: DataLake) -> None:
    """Such a version has an intent classifier instead of a router."""
    adapter = get_version(open_store(own_versions), 2).folder / "adapter"
    shutil.rmtree(adapter / OWN_ROUTER)
    shutil.copytree(own_versions.path("prepare", "intent_classifier"), adapter / "intent_classifier")
    write_manifest(adapter, {key: value for key, value in read_json(adapter / MANIFEST_NAME).items() if key != "files"})
    with running_service(own_versions) as service:
        given = [ask(service, question, "2") for question in QUESTIONS]
        assert [answer.text() for answer in given] == expected(own_versions.root, 2, base=False)
        assert given[2].intent == "recover_password"
        shutil.rmtree(router_folder(own_versions))
    with running_service(own_versions) as service:
        unrouted = ask(service, QUESTIONS[2], "2")
        assert (unrouted.text(), unrouted.intent, unrouted.confidence) == (given[2].text(), None, None)


def test_names_resolve_to_versions_and_bases(service: ModelService) -> None:
    served = {name: service.served(name).name for name in ("cs-support", "champion", "champion:base", "2", "2:base")}
    assert served == {"cs-support": "1", "champion": "1", "champion:base": "1:base", "2": "2", "2:base": "2:base"}
    for name in (
        "challenger",
        "3",
        "02",
        "-1",
        "../1",
        "/etc/passwd",
        "models:/cs-support/1",
        "1:base:base",
        "",
        "١",
        "1\n",
    ):
        with pytest.raises(UnknownModel) as refused:
            service.served(name)
        assert "champion" in refused.value.fix
    assert [(m.name, m.served.name, m.aliases) for m in service.models()] == [
        ("cs-support", "1", ("champion",)),
        ("cs-support:base", "1:base", ()),
        ("champion", "1", ("champion",)),
        ("champion:base", "1:base", ()),
        ("2", "2", ()),
        ("2:base", "2:base", ()),
        ("1", "1", ("champion",)),
        ("1:base", "1:base", ()),
    ]


def test_joined_pieces_equal_the_answer_and_arrive_while_it_is_generated(
    service: ModelService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cs_pipeline.serve.models.generation.STREAM_INTERVAL", 0.001
    )  # otherwise so small a model writes 24 tokens in one piece
    running = ask(service, QUESTIONS[0], sampling=DRAWN)
    pieces = list(running)
    assert "".join(pieces) == ask(service, QUESTIONS[0], sampling=DRAWN).text()
    assert running.finish in ("stop", "length")
    assert len(pieces) > 1


def test_a_seed_repeats_an_answer_whatever_else_is_in_its_batch(service: ModelService) -> None:
    alone = ask(service, QUESTIONS[0], sampling=DRAWN).text()
    together = [
        ask(service, question, sampling=Sampling(temperature=1.5, seed=i)) for i, question in enumerate(QUESTIONS)
    ]
    again = ask(service, QUESTIONS[0], sampling=DRAWN)
    greedy = ask(service, QUESTIONS[0])
    assert again.text() == alone
    assert ask(service, QUESTIONS[0], sampling=Sampling(temperature=1.0, top_p=0.95, seed=8)).text() != alone
    assert len({running.text() for running in together}) == len(together)
    assert greedy.text() == ask(service, QUESTIONS[0], sampling=Sampling(temperature=1.9, top_p=0.0)).text()
    assert greedy.text() == ask(service, QUESTIONS[0], sampling=Sampling(temperature=5e-324)).text()


def test_each_row_stops_at_its_own_token_limit(service: ModelService) -> None:
    running = [ask(service, QUESTIONS[0], sampling=Sampling(max_tokens=most)) for most in (3, 9, 10_000)]
    assert [(r.finish, r.tokens) for r in running] == [("length", 3), ("length", 9), ("length", 24)]
    assert running[2].text().startswith(running[1].text())


@contextmanager
def busy_engine(service: ModelService, model: str = "champion") -> Iterator[None]:
    """The engine of ``model`` is busy inside the block, as while it loads an adapter."""
    loaded = service.pool.hold(service.served(model))
    go = threading.Event()
    busy = threading.Thread(target=lambda: engine_of(service, loaded.served.name)._call(go.wait))
    busy.start()
    try:
        yield
    finally:
        go.set()
        busy.join()
        service.pool.release(loaded)


def test_waiting_questions_are_answered_in_one_batch_without_the_cancelled_ones(service: ModelService) -> None:
    engine = engine_of(service, "1")
    with busy_engine(service):
        before = engine.batches
        running = [ask(service, question) for question in QUESTIONS * 3]
        running[1].cancel()
        assert service.inside == len(running)
    assert [r.finish for r in running] == ["length", "cancelled", *["length"] * 10]
    assert engine.batches == before + 1
    assert running[1].tokens == 0
    assert service.inside == 0


def test_a_cancelled_row_leaves_its_batch_and_the_others_stay(service: ModelService) -> None:
    """Each token takes 20 ms, so that the cancellation comes during the answers."""
    engine = engine_of(service, "1")
    hook = engine.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    try:
        with busy_engine(service):
            leaves, stays = ask(service, QUESTIONS[0]), ask(service, QUESTIONS[0])
        wait_for(lambda: leaves.tokens >= 2)
        leaves.cancel()
        assert (leaves.finish, stays.finish) == ("cancelled", "length")
        assert 2 <= leaves.tokens < stays.tokens == 24
        assert stays.text().startswith(leaves.text())
    finally:
        hook.remove()


def test_the_deadline_ends_a_running_answer_and_a_waiting_one(two_versions: Path) -> None:
    with running_service(DataLake(two_versions), seconds=0.25) as service:
        engine = engine_of(service, "1")
        hook = engine.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        running = ask(service, QUESTIONS[0])
        assert running.finish == "time"
        assert 1 <= running.tokens < 24
        hook.remove()
        with busy_engine(service):
            waiting = ask(service, QUESTIONS[0])
            time.sleep(0.3)
        with pytest.raises(Busy):
            waiting.text()
        assert service.inside == 0


def test_a_full_queue_says_when_to_retry_and_recovers(two_versions: Path) -> None:
    ended: list[str] = []
    with running_service(DataLake(two_versions), queue=3, seen=lambda running: ended.append(running.ended)) as service:
        with busy_engine(service):
            running = [ask(service, QUESTIONS[0]) for _ in range(3)]
            with pytest.raises(Busy) as refused:
                ask(service, QUESTIONS[0])
            assert 1 <= refused.value.retry_after <= 60
        assert all(r.text() for r in running)
        assert ask(service, QUESTIONS[0]).text()
        for wrong, kind in (("x", UnknownModel), ("champion", TooLong)):
            for _ in range(5):  # a refused question takes no place in the queue
                with pytest.raises(kind):
                    ask(service, "word " * 9000, wrong)
        assert ask(service, QUESTIONS[0]).text()
        assert service.inside == 0
    assert ended == ["length"] * 5


def test_a_model_failure_ends_only_its_batch_and_does_not_quote_the_question(service: ModelService) -> None:
    engine = engine_of(service, "1")

    def fail(*_: object) -> None:
        raise RuntimeError("quotes the question")

    hook = engine.model.register_forward_pre_hook(fail)
    running = ask(service, QUESTIONS[0])
    with pytest.raises(Exception, match="The model failed") as failed:
        running.text()
    assert "quotes" not in str(failed.value)
    assert running.ended == "error"
    hook.remove()
    assert ask(service, QUESTIONS[0]).text()


def test_the_least_recently_used_model_is_evicted_when_memory_is_short(two_versions: Path) -> None:
    with running_service(DataLake(two_versions)) as service:
        alone = service.pool.weight_bytes
        assert ask(service, QUESTIONS[0], "2").text()
        both = service.pool.weight_bytes
    assert 0 < both - alone < alone
    with running_service(DataLake(two_versions), memory=alone + 1) as service:
        with pytest.raises(NotReady, match="are in use"):
            ask(service, QUESTIONS[0], "2")
        assert ask(service, QUESTIONS[0], "1:base").text(), "the base needs no additional memory"
    with running_service(DataLake(two_versions), memory=both + 1) as service:
        assert ask(service, QUESTIONS[0], "2:base").text()
        assert ask(service, QUESTIONS[0], "2").text()
        wait_for(lambda: not service.pool.usage()["2"]["users"])
        service.pool._make_room((both - alone) // 2)
        assert set(service.pool.usage()) == {"1"}, (
            "the champion is in use; the base was least recently used, then version 2"
        )
        assert service.pool.weight_bytes == alone
        assert ask(service, QUESTIONS[0], "2").text()
        with busy_engine(service, "2"), pytest.raises(NotReady, match="are in use"):
            service.pool._make_room(1000)
        assert {"1", "2"} <= set(service.pool.usage())
    with service_without_champion(DataLake(two_versions), memory=1000) as service:
        wait_for(lambda: service.registry.failure)
        with pytest.raises(NotReady, match=r"takes 0\.00 GB"):
            ask(service, QUESTIONS[0])


@contextmanager
def service_without_champion(lake: DataLake, memory: int) -> Iterator[ModelService]:
    service = ModelService(lake, memory, 10, 10, 0.1, id)
    try:
        yield service
    finally:
        service.close()


def test_a_new_champion_takes_over_and_one_that_does_not_load_leaves_the_old_one(own_versions: DataLake) -> None:
    with running_service(own_versions) as service:
        old = ask(service, QUESTIONS[0])
        make_champion(own_versions, 2)
        wait_for(lambda: service.registry.champion == 2)
        assert (old.served.name, ask(service, QUESTIONS[0]).served.name) == ("1", "2")
        weights = get_version(open_store(own_versions), 1).folder / "adapter" / "adapter_model.safetensors"
        wait_for(lambda: not service.pool.usage()["1"]["users"])
        service.pool._unload("1", only_idle=True)
        weights.write_bytes(weights.read_bytes()[:-1])
        make_champion(own_versions, 1)
        wait_for(lambda: service.registry.failure)
        assert "adapter_model.safetensors was changed" in str(service.registry.problem())
        assert service.registry.champion == 2
        assert ask(service, QUESTIONS[0]).served.name == "2"
        make_champion(own_versions, 2)
        wait_for(lambda: service.registry.failure is None)


def test_answers_continue_while_the_store_does_not_answer(
    two_versions: Path, service: ModelService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wait_for(service.registry.problem)
    assert "does not answer" in str(service.registry.problem())
    assert ask(service, QUESTIONS[0]).text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    wait_for(lambda: service.registry.problem() is None)


def test_without_a_champion_questions_are_refused(lake: DataLake) -> None:
    with service_without_champion(lake, 10**9) as service:
        wait_for(lambda: service.registry.problem() is None)
        with pytest.raises(NotReady, match="There is no champion yet"):
            ask(service, QUESTIONS[0])
        with pytest.raises(UnknownModel, match="none is registered yet"):
            ask(service, QUESTIONS[0], "1")
        assert service.models() == []
