"""The trials besides the test rows, read from the evaluation of the session's tiny champion."""

from pathlib import Path

import pandas as pd
import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.results import evaluation_folder, read_evaluation
from cs_pipeline.evaluate.robustness.robustness import ROBUSTNESS_COLUMNS, make_cases, robustness_by_group
from cs_pipeline.evaluate.robustness.trials import _contains
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.recipe import FineTuneRecipe

EVALUATE = Path(__file__).parents[3] / "cs_pipeline" / "evaluate" / "robustness"


@pytest.fixture(scope="module")
def evaluated(champion_lake: Path) -> DataLake:
    return DataLake(champion_lake)


def test_every_model_was_asked_every_robustness_case(evaluated: DataLake, tiny: FineTuneRecipe) -> None:
    table = pd.read_parquet(evaluation_folder("tiny", evaluated) / "robustness.parquet")
    cases = make_cases(FrozenTestSet(tiny, evaluated).test, tiny.evaluation.robustness_cases)
    assert list(table) == [*ROBUSTNESS_COLUMNS, "system"]
    measures = read_evaluation("tiny", evaluated).robustness
    assert set(measures) == {"tuned", "base"}
    for system, frame in table.groupby("system"):
        assert frame["case_id"].tolist() == [case.case_id for case in cases]
        assert frame["answer"].str.len().gt(0).mean() > 0.5
        known = robustness_by_group(frame.drop(columns="system")).to_dict("records")
        assert [measure.count for measure in measures[str(system)]] == [row["count"] for row in known]
        assert frame["plain_same_intent"].notna().sum() > 20, (
            "variations are compared with the answer to the unchanged question"
        )


def test_base_and_tuned_model_were_asked_the_same_probe(evaluated: DataLake) -> None:
    table = pd.read_parquet(evaluation_folder("tiny", evaluated) / "probe.parquet")
    probe = read_yaml(EVALUATE / "probe.yaml")
    assert len(probe) == 24
    for system, frame in table.groupby("system"):
        assert frame["question"].tolist() == list(probe)
        right = [float(_contains(*pair)) for pair in zip(frame["answer"], probe.values(), strict=True)]
        assert frame["right"].tolist() == right == read_evaluation("tiny", evaluated).probe[str(system)]


@pytest.mark.parametrize(
    ("answer", "right", "holds"),
    [
        ("It is Paris.", ["Paris"], True),
        ("PARIS", ["Paris"], True),
        ("In Parisian cafes", ["Paris"], False),
        ("112", ["12"], False),
        ("That makes 12, of course", ["12", "twelve"], True),
        ("", ["12"], False),
    ],
)
def test_a_right_answer_contains_a_whole_word(answer: str, right: list[str], holds: bool) -> None:
    assert _contains(answer, right) is holds


def test_every_model_was_measured(evaluated: DataLake) -> None:
    results = read_evaluation("tiny", evaluated)
    assert results.adapter_bytes > 1000
    for run in results.runs.values():
        assert run.answers == results.rows
        assert 0 < run.tokens <= 24 * run.answers
        assert len(run.alone) == 3
        assert 0 < min(run.alone) <= sum(run.alone) < 60
        assert 0.05 < run.peak_memory < 64
