"""A company's own subjects behind the API: Bitext has no such intents, and three rows of them stand beside Bitext's."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cs_pipeline.company import company_file
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import ANSWER
from cs_pipeline.retrieval.index import SCHEMAS, index_lock, retrieval_folder, write_index
from cs_pipeline.retrieval.router import Router, router_folder
from cs_pipeline.serve.desk.handover import HandoverReason
from cs_pipeline_tests.conftest import copy_lake, own_world
from cs_pipeline_tests.support.desks import waiting
from cs_pipeline_tests.support.serving import SURE, Serving, wait_for

OWN = {
    "battery": (
        "Hold the button of the battery for ten seconds, then charge it indoors.",
        [
            "my battery does not charge any more",
            "the battery of my bike will not charge",
            "battery lamp red, no charge",
        ],
    ),
    "saddle": (
        "Grease the seat post and tighten both bolts.",
        ["my saddle creaks when I sit down", "the saddle makes a creaking noise", "what helps if a saddle creaks"],
    ),
}
"""For each subject of a bicycle shop its answer and the questions that it was the answer to."""
UNKNOWN = "Ich hätte da etwas ganz anderes"


@pytest.fixture(scope="module")
def lake(lookup_lake: Path, tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    """A lake whose champion is version 2, a look-up, with the rows of OWN in its index and its router."""
    lake = copy_lake(lookup_lake, tmp_path_factory.mktemp("subjects") / "lake")
    rows = [
        {"row_id": question, "cluster_id": question, "question": question, "answer": answer}
        | {"intent": subject, "source": "company"}
        for subject, (answer, questions) in OWN.items()
        for question in questions
    ]
    folder = retrieval_folder(lake)
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
    tables["answers"] = pa.concat_tables([tables["answers"], pa.Table.from_pylist(rows, schema=ANSWER)])
    with index_lock(lake):
        write_index(folder, tables)
    known = tables["answers"].to_pydict()
    router = Router.fit(known["question"], known["intent"], known["cluster_id"])
    router.with_handover_share(0.3).save(router_folder(lake))
    company_file(lake).write_text("topics: [bicycles, repairs]\n")
    return lake


@pytest.fixture(scope="module")
def serving(lake: DataLake) -> Iterator[Serving]:
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        yield serving


@pytest.mark.parametrize(
    ("question", "subject"),
    [
        ("why does my bike battery not charge?", "battery"),
        ("the battery does not charge", "battery"),
        ("is it normal that the saddle creaks", "saddle"),
    ],
)
def test_a_companys_question_gets_its_own_answer(serving: Serving, question: str, subject: str) -> None:
    answer = serving.chat(question).json()
    assert (answer["author"], answer["intent"], answer["handover"]) == ("model", subject, None)
    assert answer["response"] == answer["sources"][0]["text"] == OWN[subject][0]
    assert answer["confidence"] > 0.3
    written = serving.chat(question, model_name="1").json()
    assert (written["author"], written["handover"]) == ("model", None), "a model that was trained before answers too"


def test_only_a_question_about_nothing_known_is_handed_over(serving: Serving, lake: DataLake) -> None:
    before = waiting(lake)
    for model in ("1", "2"):
        answer = serving.chat(UNKNOWN, model_name=model).json()
        assert (answer["author"], answer["intent"], answer["handover"]) == ("desk", None, HandoverReason.UNCLEAR.value)
        assert answer["confidence"] < 0.5
    new = [waiting(lake)[reference] for reference in waiting(lake).keys() - before.keys()]
    assert [record["intent"] for record in new] == [None, None]
    assert serving.chat(SURE).json()["handover"] is None, "Bitext's intents are still known"


def test_fixed_replies_name_the_companys_topics(serving: Serving) -> None:
    assert "questions about bicycles and repairs." in serving.chat("Will it rain tomorrow?").json()["response"]


def turns(*texts: str) -> list[dict[str, str]]:
    """Earlier turns of customer and agent by turns, the customer first."""
    return [{"speaker": ("customer", "agent")[i % 2], "text": text} for i, text in enumerate(texts)]


FOLLOW_UP = "und was mache ich jetzt damit"


@pytest.mark.parametrize("question", [question for _, questions in OWN.values() for question in questions])
def test_a_follow_up_is_understood_with_the_message_before_it(serving: Serving, question: str) -> None:
    """It is answered as the question that has its context written out would be."""
    assert serving.chat(FOLLOW_UP).json()["intent"] is None, "alone it says nothing"
    written_out = serving.chat(f"{question} {FOLLOW_UP}").json()
    follow_up = serving.chat(FOLLOW_UP, earlier=turns(question, "One moment, please.")).json()
    for name in ("intent", "response", "handover"):
        assert follow_up[name] == written_out[name], name
    assert follow_up["intent"] in OWN


def test_an_answer_that_did_not_help_is_not_given_again(serving: Serving) -> None:
    """Two- and three-turn chats do not go round in circles: a person takes over instead."""
    for answer, questions in OWN.values():
        earlier: tuple[str, ...] = ()
        for question in questions:
            reply = serving.chat(question, earlier=turns(*earlier)).json()
            if not earlier:
                assert reply["response"] == answer
            else:
                assert reply["response"] != answer
                assert reply["handover"] is not None
            earlier = (*earlier, question, reply["response"])
