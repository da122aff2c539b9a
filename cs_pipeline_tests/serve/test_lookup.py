"""A look-up as champion, over HTTP: known answers word for word, handovers, hot swaps, and rows that are forgotten."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import openai
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.retrieval.index import forget_rows, index_lock, retrieval_folder
from cs_pipeline.serve.desk.filling import canonical_values, fill_placeholders
from cs_pipeline.serve.desk.handover import HandoverReason
from cs_pipeline_tests.conftest import copy_lake, own_world
from cs_pipeline_tests.support.desks import waiting
from cs_pipeline_tests.support.serving import SURE, Serving, wait_for
from cs_pipeline_tests.support.versions import known_answer, make_champion

CANCEL = "can you help me to cancel purchase 4412345678"
MASKED = "can you help me to cancel purchase {{Order Number}}"
FAR = "The newsletter has wrong fonts"
"""A question of whose intent the router is sure, and to which no known question is similar."""
UNKNOWN = "A puppy ate it, refund"
"""A question that the router does not know, and to which no known question is similar enough."""


@pytest.fixture(scope="module")
def lake(lookup_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    return copy_lake(lookup_lake, tmp_path_factory.mktemp("lookup") / "lake")


@pytest.fixture(scope="module")
def serving(lake: DataLake) -> Iterator[Serving]:
    """A server whose champion is version 2, the look-up."""
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        yield serving


@pytest.fixture
def client(serving: Serving) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{serving.url}/v1", api_key="none is needed here", max_retries=0) as client:
        yield client


def filled(text: str, **values: str) -> str:
    """``text`` as the desk fills it for a customer who gives ``values``."""
    return fill_placeholders(text, canonical_values({"Company Name": "Brightmart", **values}))


def is_champion(serving: Serving, version: int) -> bool:
    return bool(serving.get("/ready").json().get("champion") == version)


def test_the_known_answer_is_given_word_for_word_with_its_source(serving: Serving, lake: DataLake) -> None:
    known = known_answer(lake, 2, MASKED)
    assert known is not None
    assert "{{Order Number}}" in known.text
    answer = serving.chat(CANCEL).json()
    assert answer["response"].startswith(filled(known.text, order_number="4412345678"))
    assert "4412345678" in answer["response"]
    (source,) = answer["sources"]
    assert (source["kind"], source["text"], source["similarity"]) == ("answer", filled(known.text), known.similarity)
    assert {key: answer[key] for key in ("model", "version", "recipe", "author", "intent", "handover", "finish")} == {
        "model": "2",
        "version": 2,
        "recipe": "lookup",
        "author": "model",
        "intent": "cancel_order",
        "handover": None,
        "finish": "stop",
    }
    assert answer["tokens"] == 0
    for fields in ({"temperature": 1.5, "seed": 1}, {"max_tokens": 1}, {"model_name": "2"}):
        assert serving.chat(CANCEL, **fields).json()["response"] == answer["response"]


def test_the_answer_has_the_requested_tone_and_asks_for_what_it_lacks(serving: Serving) -> None:
    answer = serving.chat(CANCEL, tone="strictly professional", values={"Client Name": "Jo Doe"}).json()["response"]
    assert answer.startswith("Dear Jo Doe,\n\n")
    assert "!" not in answer
    assert serving.chat("can you help me to cancel my purchase").json()["response"].endswith("order number?")


def test_a_question_that_nothing_known_is_similar_to_is_handed_over(serving: Serving, lake: DataLake) -> None:
    assert known_answer(lake, 2, UNKNOWN) is None
    before = waiting(lake)
    answer = serving.chat(UNKNOWN).json()
    assert answer["intent"] is None
    assert 0 < answer["confidence"] < 0.5
    assert (answer["author"], answer["handover"]) == ("desk", HandoverReason.UNCLEAR.value)
    assert answer["sources"] == []
    (reference,) = waiting(lake).keys() - before.keys()
    assert reference in answer["response"]
    record = waiting(lake)[reference]
    assert (record["model"], record["reason"]) == ("2", HandoverReason.UNCLEAR.value)
    assert (record["intent"], record["confidence"]) == (None, answer["confidence"])
    assert serving.chat(UNKNOWN, model_name="1").json()["handover"] == HandoverReason.UNCLEAR.value, "for every version"


def test_a_question_of_a_known_intent_is_answered_however_it_is_worded(serving: Serving, lake: DataLake) -> None:
    known = known_answer(lake, 2, FAR)
    assert known is not None
    assert known.similarity < 0.6
    answer = serving.chat(FAR).json()
    assert (answer["author"], answer["intent"], answer["handover"]) == ("model", "newsletter_subscription", None)
    assert answer["sources"][0]["text"] == filled(known.text)


def test_models_and_health_are_as_for_every_version(serving: Serving, client: openai.OpenAI) -> None:
    facts = serving.get("/models").json()
    assert (facts["champion"], facts["trouble"]) == (2, None)
    listed = {model["name"]: model for model in facts["models"]}
    assert list(listed) == ["cs-support", "champion", "2", "1", "1:base"], "a look-up has no base"
    assert listed["2"] == {
        "name": "2",
        "version": 2,
        "base": False,
        "recipe": "lookup",
        "placeholders": "keep",
        "embedded": False,
        "aliases": ["champion"],
        "loaded": True,
    }
    assert [model.id for model in client.models.list()] == list(listed)
    assert serving.get("/health").json() == {"status": "ok"}
    for name in ("2:base", "champion:base"):
        refused = serving.chat(SURE, model_name=name)
        assert (refused.status_code, refused.json()["error"]["code"]) == (404, "model_not_found")
        assert serving.get(f"/v1/models/{name}").status_code == 404


def test_metrics_count_answers_and_declined_questions(serving: Serving) -> None:
    def answers(finish: str) -> float:
        return serving.metric(f'cs_answers_total{{finish="{finish}",model="2"}}')

    before = answers("stop"), answers("declined")
    assert serving.chat(CANCEL).ok
    assert serving.chat(UNKNOWN).ok
    assert (answers("stop"), answers("declined")) == (before[0] + 1, before[1] + 1)
    assert serving.metric('cs_tokens_total{kind="written",model="2"}') == 0
    assert serving.metric('cs_answer_seconds_count{model="2"}') >= 2
    assert serving.metric("cs_questions_inside") == 0
    assert serving.metric('cs_model_loaded{model="2"}') == 1
    assert serving.metric("cs_champion_version") == 2


def test_openai_clients_get_the_same_answer_whole_and_streamed(serving: Serving, client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"model": "champion", "messages": [{"role": "user", "content": CANCEL}]}
    whole = client.chat.completions.create(**options, max_tokens=1)
    assert whole.choices[0].message.content == serving.chat(CANCEL).json()["response"]
    assert (whole.model, whole.choices[0].finish_reason) == ("2", "stop")
    assert whole.usage is not None
    assert whole.usage.total_tokens == 0
    chunks = list(client.chat.completions.create(**options, stream=True, stream_options={"include_usage": True}))
    pieces = [c.choices[0].delta.content for c in chunks if c.choices and c.choices[0].delta.content]
    assert "".join(pieces) == whole.choices[0].message.content
    assert len(pieces) > 1, "a sentence at a time"
    assert chunks[-1].usage == whole.usage
    options["messages"] = [{"role": "user", "content": UNKNOWN}]
    chunks = list(client.chat.completions.create(**options, stream=True))
    assert "colleague" in "".join(c.choices[0].delta.content or "" for c in chunks)


def test_the_champion_changes_between_a_look_up_and_a_fine_tune_under_requests(
    lookup_lake: Path, tmp_path: Path
) -> None:
    lake = copy_lake(lookup_lake, tmp_path / "lake")
    with own_world(lake.root), Serving(lake) as serving, ThreadPoolExecutor(8) as clients:
        wait_for(serving.ready)
        written = {name: serving.chat(SURE, model_name=name).json()["response"] for name in ("1", "2")}
        assert written["1"] != written["2"]
        asked = []
        for version in (1, 2, 1, 2):
            make_champion(lake, version)
            while not is_champion(serving, version):
                asked.append(clients.submit(serving.chat, SURE))
                asked[-8:][0].result()  # keeps up to eight questions inside
            asked += [clients.submit(serving.chat, SURE) for _ in range(4)]
        answers = [answer.result() for answer in asked]
        assert {answer.status_code for answer in answers} == {200}
        bodies = [answer.json() for answer in answers]
        assert all(body["response"] == written[body["model"]] for body in bodies)
        assert {body["model"] for body in bodies} == {"1", "2"}
        wait_for(partial(is_champion, serving, 2))
        assert serving.chat(SURE).json()["model"] == "2"


def test_a_forgotten_answer_is_not_given_any_more(lookup_lake: Path, tmp_path: Path) -> None:
    lake = copy_lake(lookup_lake, tmp_path / "lake")
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        first = known_answer(lake, 2, MASKED)
        assert first is not None
        assert serving.chat(CANCEL).json()["sources"][0]["text"] == filled(first.text)
        with index_lock(lake):
            forget_rows(lake, [first.id])
        second = known_answer(lake, 2, MASKED)
        assert second is not None
        assert second.id != first.id
        answer = serving.chat(CANCEL).json()
        assert answer["response"].startswith(filled(second.text, order_number="4412345678"))
        assert answer["sources"][0]["text"] == filled(second.text)
        retrieval_folder(lake).rename(lake.path("elsewhere"))
        refused = serving.chat(CANCEL)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "not_ready")
        assert "retrieval index" in refused.json()["error"]["message"]
        assert serving.metric("cs_questions_inside") == 0
