"""Batches, limits, memory and names, on real models without HTTP."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import read_recipe
from cs_pipeline.serve.models.answering import Answering, Running, Sampling
from cs_pipeline.serve.models.refusals import Busy, NotReady, TooLong, UnknownModel
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.tracking import get_version, open_store
from cs_pipeline_tests.support.serving import answering_on, wait_for
from cs_pipeline_tests.support.versions import make_champion

QUESTIONS = ["where is my refund?", "how do I cancel order {{Order Number}}", "I want a new password", "hello"]
DRAWN = Sampling(temperature=1.0, top_p=0.95, seed=7)


def ask(answering: Answering, question: str, model: str = "champion", sampling: Sampling | None = None) -> Running:
    return answering.start(model, question, (), sampling or Sampling())


def expected(lake: Path, number: int, *, base: bool) -> list[str]:
    """What evaluation's way of asking gives."""
    folder = get_version(open_store(DataLake(lake)), number).folder
    recipe = read_recipe(folder / "adapter" / "recipe.yaml")
    model = SupportModel(recipe, base_of_version(recipe, folder), None if base else folder / "adapter")
    intents = TextClassifier.load(folder / "adapter" / "intent_classifier").predict(QUESTIONS)[0]
    return [answer.text for answer in model.answer(QUESTIONS, intents, [()] * len(QUESTIONS))]


def test_versions_and_bases_share_weights_and_answer_as_they_were_evaluated(
    answering: Answering, two_versions: Path
) -> None:
    running = {(name, q): ask(answering, q, name) for name in ("1", "2", "1:base") for q in QUESTIONS}
    for name, number, base in (("1", 1, False), ("2", 2, False), ("1:base", 1, True)):
        answers = [running[name, question].text() for question in QUESTIONS]
        assert answers == expected(two_versions, number, base=base)
        assert {running[name, q].served.name for q in QUESTIONS} == {name}
    assert running["1", QUESTIONS[0]].text() != running["2", QUESTIONS[0]].text()
    engine = answering._pool._loaded["1"].engine
    before = [weights.clone() for weights in engine.model.parameters()]
    for name in ("1", "2", "1:base") * 5:
        assert ask(answering, QUESTIONS[0], name).text() == running[name, QUESTIONS[0]].text()
    for was, now in zip(before, engine.model.parameters(), strict=True):
        assert torch.allclose(was, now, rtol=0, atol=1e-6), "what is added to the weights is taken off again"
    figures = answering.figures()
    assert {"1", "2", "1:base"} <= set(figures)
    assert {figure["bytes"] for figure in figures.values()} == {answering.bytes}, "all on one base"


def test_names(answering: Answering) -> None:
    served = {name: answering.served(name).name for name in ("cs-support", "champion", "champion:base", "2", "2:base")}
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
            answering.served(name)
        assert "champion" in refused.value.names
    assert [(m.name, m.served.name, m.aliases) for m in answering.models()] == [
        ("cs-support", "1", ("champion",)),
        ("cs-support:base", "1:base", ()),
        ("champion", "1", ("champion",)),
        ("champion:base", "1:base", ()),
        ("2", "2", ()),
        ("2:base", "2:base", ()),
        ("1", "1", ("champion",)),
        ("1:base", "1:base", ()),
    ]


def test_pieces_joined_are_the_answer_and_come_while_it_is_written(
    answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "cs_pipeline.serve.models.answering.PIECE", 0.001
    )  # so small a model writes 24 tokens in one piece else
    running = ask(answering, QUESTIONS[0], sampling=DRAWN)
    pieces = list(running)
    assert "".join(pieces) == ask(answering, QUESTIONS[0], sampling=DRAWN).text()
    assert running.finish in ("stop", "length")
    assert len(pieces) > 1


def test_a_seed_repeats_an_answer_whoever_shares_its_batch(answering: Answering) -> None:
    alone = ask(answering, QUESTIONS[0], sampling=DRAWN).text()
    together = [
        ask(answering, question, sampling=Sampling(temperature=1.5, seed=i)) for i, question in enumerate(QUESTIONS)
    ]
    again = ask(answering, QUESTIONS[0], sampling=DRAWN)
    greedy = ask(answering, QUESTIONS[0])
    assert again.text() == alone
    assert ask(answering, QUESTIONS[0], sampling=Sampling(temperature=1.0, top_p=0.95, seed=8)).text() != alone
    assert len({running.text() for running in together}) == len(together)
    assert greedy.text() == ask(answering, QUESTIONS[0], sampling=Sampling(temperature=1.9, top_p=0.0)).text()
    assert greedy.text() == ask(answering, QUESTIONS[0], sampling=Sampling(temperature=5e-324)).text()


def test_a_row_ends_at_its_own_number_of_tokens(answering: Answering) -> None:
    running = [ask(answering, QUESTIONS[0], sampling=Sampling(max_tokens=most)) for most in (3, 9, 10_000)]
    assert [(r.finish, r.tokens) for r in running] == [("length", 3), ("length", 9), ("length", 24)]
    assert running[2].text().startswith(running[1].text())


@contextmanager
def held_up(answering: Answering, model: str = "champion") -> Iterator[None]:
    """The engine of ``model`` does something else meanwhile, as while it loads an adapter."""
    loaded = answering._pool.hold(answering.served(model))
    go = threading.Event()
    busy = threading.Thread(target=lambda: loaded.engine._call(go.wait))
    busy.start()
    try:
        yield
    finally:
        go.set()
        busy.join()
        answering._pool.release(loaded)


def test_what_waits_is_answered_in_one_batch_and_who_has_gone_is_left_out(answering: Answering) -> None:
    engine = answering._pool._loaded["1"].engine
    with held_up(answering):
        before = engine.batches
        running = [ask(answering, question) for question in QUESTIONS * 3]
        running[1].cancel()
        assert answering.inside == len(running)
    assert [r.finish for r in running] == ["length", "cancelled", *["length"] * 10]
    assert engine.batches == before + 1
    assert running[1].tokens == 0
    assert answering.inside == 0


def test_a_row_whose_client_goes_leaves_and_the_others_stay(answering: Answering) -> None:
    """Slowed down to a token in 20 ms, so that there is a middle."""
    engine = answering._pool._loaded["1"].engine
    hook = engine.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
    try:
        with held_up(answering):
            leaves, stays = ask(answering, QUESTIONS[0]), ask(answering, QUESTIONS[0])
        wait_for(lambda: leaves.tokens >= 2)
        leaves.cancel()
        assert (leaves.finish, stays.finish) == ("cancelled", "length")
        assert 2 <= leaves.tokens < stays.tokens == 24
        assert stays.text().startswith(leaves.text())
    finally:
        hook.remove()


def test_time_is_up_while_an_answer_is_written_and_while_one_waits(two_versions: Path) -> None:
    with answering_on(DataLake(two_versions), seconds=0.25) as answering:
        engine = answering._pool._loaded["1"].engine
        hook = engine.model.register_forward_pre_hook(lambda *_: time.sleep(0.02))
        running = ask(answering, QUESTIONS[0])
        assert running.finish == "time"
        assert 1 <= running.tokens < 24
        hook.remove()
        with held_up(answering):
            waiting = ask(answering, QUESTIONS[0])
            time.sleep(0.3)
        with pytest.raises(Busy):
            waiting.text()
        assert answering.inside == 0


def test_a_full_queue_says_when_to_come_again_and_has_room_again(two_versions: Path) -> None:
    ended: list[str] = []
    with answering_on(DataLake(two_versions), queue=3, seen=lambda running: ended.append(running.ended)) as answering:
        with held_up(answering):
            running = [ask(answering, QUESTIONS[0]) for _ in range(3)]
            with pytest.raises(Busy) as refused:
                ask(answering, QUESTIONS[0])
            assert 1 <= refused.value.retry_after <= 60
        assert all(r.text() for r in running)
        assert ask(answering, QUESTIONS[0]).text()
        for wrong, kind in (("x", UnknownModel), ("champion", TooLong)):
            for _ in range(5):  # whoever is refused takes no place
                with pytest.raises(kind):
                    ask(answering, "word " * 9000, wrong)
        assert ask(answering, QUESTIONS[0]).text()
        assert answering.inside == 0
    assert ended == ["length"] * 5


def test_a_failing_model_ends_its_batch_alone_and_says_nothing_of_the_question(answering: Answering) -> None:
    engine = answering._pool._loaded["1"].engine

    def fail(*_: object) -> None:
        raise RuntimeError("quotes the question")

    hook = engine.model.register_forward_pre_hook(fail)
    running = ask(answering, QUESTIONS[0])
    with pytest.raises(Exception, match="The model failed") as failed:
        running.text()
    assert "quotes" not in str(failed.value)
    assert running.ended == "error"
    hook.remove()
    assert ask(answering, QUESTIONS[0]).text()


def test_memory_is_kept_by_unloading_what_is_unused_for_longest(two_versions: Path) -> None:
    with answering_on(DataLake(two_versions)) as answering:
        alone = answering.bytes
        assert ask(answering, QUESTIONS[0], "2").text()
        both = answering.bytes
    assert 0 < both - alone < alone
    with answering_on(DataLake(two_versions), memory=alone + 1) as answering:
        with pytest.raises(NotReady, match="are in use"):
            ask(answering, QUESTIONS[0], "2")
        assert ask(answering, QUESTIONS[0], "1:base").text(), "which takes no more than what is there"
    with answering_on(DataLake(two_versions), memory=both + 1) as answering:
        assert ask(answering, QUESTIONS[0], "2:base").text()
        assert ask(answering, QUESTIONS[0], "2").text()
        wait_for(lambda: not answering.figures()["2"]["users"])
        answering._pool._make_room((both - alone) // 2)
        assert set(answering.figures()) == {"1"}, (
            "the champion is held; the base unused for longest went, then version 2"
        )
        assert answering.bytes == alone
        assert ask(answering, QUESTIONS[0], "2").text()
        with held_up(answering, "2"), pytest.raises(NotReady, match="are in use"):
            answering._pool._make_room(1000)
        assert {"1", "2"} <= set(answering.figures())
    with answering_on_nothing(DataLake(two_versions), memory=1000) as answering:
        wait_for(lambda: answering.registry.failure)
        with pytest.raises(NotReady, match=r"takes 0\.00 GB"):
            ask(answering, QUESTIONS[0])


@contextmanager
def answering_on_nothing(lake: DataLake, memory: int) -> Iterator[Answering]:
    answering = Answering(lake, memory, 10, 10, 0.1, id)
    try:
        yield answering
    finally:
        answering.close()


def test_a_new_champion_is_taken_and_one_that_does_not_load_leaves_the_old(own_versions: DataLake) -> None:
    with answering_on(own_versions) as answering:
        old = ask(answering, QUESTIONS[0])
        make_champion(own_versions, 2)
        wait_for(lambda: answering.registry.champion == 2)
        assert (old.served.name, ask(answering, QUESTIONS[0]).served.name) == ("1", "2")
        weights = next((own_versions.root / "register").rglob("adapter_model.safetensors"))
        wait_for(lambda: not answering.figures()["1"]["users"])
        answering._pool._unload("1", only_idle=True)
        weights.write_bytes(weights.read_bytes()[:-1])
        make_champion(own_versions, 1)
        wait_for(lambda: answering.registry.failure)
        assert "adapter_model.safetensors was changed" in str(answering.registry.trouble())
        assert answering.registry.champion == 2
        assert ask(answering, QUESTIONS[0]).served.name == "2"
        make_champion(own_versions, 2)
        wait_for(lambda: answering.registry.failure is None)


def test_a_store_that_goes_away_is_said_and_answers_go_on(
    two_versions: Path, answering: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    wait_for(answering.registry.trouble)
    assert "does not answer" in str(answering.registry.trouble())
    assert ask(answering, QUESTIONS[0]).text()
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    wait_for(lambda: answering.registry.trouble() is None)


def test_without_a_champion(lake: DataLake) -> None:
    with answering_on_nothing(lake, 10**9) as answering:
        wait_for(lambda: answering.registry.trouble() is None)
        with pytest.raises(NotReady, match="There is no champion yet"):
            ask(answering, QUESTIONS[0])
        with pytest.raises(UnknownModel, match="none is registered yet"):
            ask(answering, QUESTIONS[0], "1")
        assert answering.models() == []
