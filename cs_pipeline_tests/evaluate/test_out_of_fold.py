"""A look-up is calibrated and judged only on answers that are not of the question's own cluster or conversation.

Every validation and test question here has a twin: a training row of the same conversation, in another cluster, with almost
the same words and an answer of its own. A look-up that could find twins would be sure of every question.
"""

from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.results import evaluation_folder
from cs_pipeline.evaluate.robustness.robustness import make_cases
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.recipe import LookupRecipe
from cs_pipeline.retrieval.index import build_index
from cs_pipeline.retrieval.lookup import handover_threshold
from cs_pipeline.retrieval.retrieve import open_index, own_known_rows, retrieve
from cs_pipeline.train.adapter import build_lookup, data_versions

TWIN = "This is the answer of twin"


def add_twins(lake: DataLake) -> None:
    """Gives each held-out row a conversation, of which another row is a training row; rebuilds the index."""
    train = lake.read("prepare", "train_split").to_pylist()
    for split in ("validation", "test"):
        rows = lake.read("prepare", f"{split}_split").to_pylist()
        for number, row in enumerate(rows):
            row |= {"source": "company", "conversation_id": f"{split} {number}"}
            twin: dict[str, Any] = row | {
                "row_id": f"{number:04d}{split:f>28}",
                "cluster_id": f"twin of {row['row_id']}",
                "instruction": f"{row['instruction']} please",
                "response": f"{TWIN} {split} {number}, and of nobody else.",
                "split": "train",
                "nearest_train_similarity": None,
            }
            train.append(twin)
        lake.write("prepare", f"{split}_split", pa.Table.from_pylist(rows, SPLIT_ROW), SPLIT_ROW)
    lake.write("prepare", "train_split", pa.Table.from_pylist(train, SPLIT_ROW), SPLIT_ROW)
    build_index(lake)


@pytest.fixture
def lake(prepared_lake: DataLake) -> DataLake:
    return prepared_lake


def test_the_threshold_is_chosen_without_the_questions_own_conversations(
    lake: DataLake, tiny_lookup: LookupRecipe
) -> None:
    assert "own_conversations" not in data_versions(tiny_lookup, lake)
    add_twins(lake)
    assert "own_conversations" in data_versions(tiny_lookup, lake), "the rule changes this look-up"
    rows = lake.read("prepare", "validation_split").to_pydict()
    asked = tiny_lookup.prompt, tiny_lookup.placeholders, rows["instruction"], rows["predicted_intent"]
    index = open_index(tiny_lookup, lake)
    leaking = retrieve(index, *asked)
    assert sum(TWIN in texts[0].text for texts in leaking) > len(leaking) / 2, "without the rule, twins would be found"
    honest = retrieve(index, *asked, own_rows=own_known_rows(rows["conversation_id"], lake))
    own = [f"{TWIN} validation {number}," for number in range(len(honest))]
    assert not any(text in found.text for text, texts in zip(own, honest, strict=True) for found in texts)
    # Only the questions whose intent the router is not sure of depend on the similarity.
    unrouted = tiny_lookup.model_copy(update={"prompt": tiny_lookup.prompt.model_copy(update={"route": "none"})})
    threshold = build_lookup(unrouted, lake).metrics["min_similarity"]
    expected, leaked = (
        handover_threshold(
            retrieve(index, unrouted.prompt, *asked[1:], own_rows=own), [None] * len(honest), unrouted.handover_share
        )
        for own in (own_known_rows(rows["conversation_id"], lake), None)
    )
    assert threshold == expected
    assert threshold < leaked - 0.05


def test_no_system_gives_an_answer_of_the_questions_own_conversation(lake: DataLake, tiny_lookup: LookupRecipe) -> None:
    add_twins(lake)
    build_lookup(tiny_lookup, lake)
    test_set = FrozenTestSet(tiny_lookup, lake)
    assert [len(rows) for rows in test_set.own_rows] == [1] * len(test_set.questions)
    evaluate(tiny_lookup, lake, None, print)
    answers = pd.read_parquet(evaluation_folder(tiny_lookup.name, lake) / "answers.parquet")
    number = {row: number for number, row in enumerate(test_set.test["row_id"])}
    for system in ("tuned", "lookup", "nearest", "central"):
        rows = answers[answers["system"] == system]
        assert len(rows) == len(number)
        for row, answer in zip(rows["row_id"].tolist(), rows["answer"].tolist(), strict=True):
            assert not answer.startswith(f"{TWIN} test {number[row]},"), system
    # Nor in the trials, whose questions are made from those of the test set.
    trials = pd.read_parquet(evaluation_folder(tiny_lookup.name, lake) / "robustness.parquet").set_index("case_id")
    made = [case for case in make_cases(test_set.test, tiny_lookup.evaluation.robustness_cases) if case.row_id]
    assert len({case.group for case in made if case.second_row_id}) == 1
    for case in made:
        own = {f"{TWIN} test {number[row]}," for row in (case.row_id, case.second_row_id) if row}
        answer = str(trials.loc[case.case_id, "answer"])
        assert not any(text in answer for text in own), case.group
