"""evaluation.json is read back as it was written. A file that cannot be understood is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.evaluate.checks import every_metric_a_number
from cs_pipeline.evaluate.decision import MARGINS
from cs_pipeline.evaluate.results import (
    FORMAT_VERSION,
    EvaluationResults,
    RetrievalResults,
    SimilarityQuarter,
    TimedRun,
    Weakness,
    evaluation_file,
    read_evaluation,
    write_evaluation,
)
from cs_pipeline.evaluate.scoring.statistics import Interval
from cs_pipeline_tests.support.results import difference, results_of


def full_results(**known: Any) -> EvaluationResults:
    quarter = SimilarityQuarter(quarter="1: 0.1 to 0.4", rows=9, differences={"nearest": {"chrf": difference(-1, 1)}})
    return results_of(
        scores={"tuned": {"chrf": Interval(40.0, 38.0, 42.0), "perplexity": None}},
        differences={"base": {"chrf": difference(1, 3), "perplexity": None}},
        weak=[Weakness("intent", "get_refund", 40, 20, "chrf", 20.0, 41.0, 0.001, 12, 1.0, 8.0)],
        retrieval=RetrievalResults(
            found=90, left_out=1, shares={"tuned": {"copied": None}}, quarters=[quarter], misled=[]
        ),
        runs={"tuned": TimedRun(answers=90, tokens=900, seconds=9.0, peak_memory=1.5, alone=[0.5, 0.25])},
        **known,
    )


def test_what_is_written_is_read_back(lake: DataLake) -> None:
    results = full_results()
    write_evaluation(results, evaluation_file("one", lake))
    assert read_evaluation("one", lake) == results
    assert read_json(evaluation_file("one", lake))["format_version"] == FORMAT_VERSION


def test_a_missing_evaluation_names_the_file_and_the_command(lake: DataLake) -> None:
    with pytest.raises(PipelineError) as error:
        read_evaluation("tiny", lake)
    assert str(evaluation_file("tiny", lake)) in error.value.what
    assert error.value.fix == "Run the full pipeline for this recipe: cs-pipeline demo --recipe tiny"


def as_json(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        stored = read_json(path)
        change(stored)
        write_json(path, stored)

    return damage


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (as_json(lambda stored: stored.pop("format_version")), "another release"),
        (as_json(lambda stored: stored.update(format_version=FORMAT_VERSION + 1)), "another release"),
        (lambda path: path.write_text("[]"), "another release"),
        (as_json(lambda stored: stored.pop("placeholders")), "'placeholders' is missing"),
        (as_json(lambda stored: stored.update(surplus=1)), "'surplus'"),
        (as_json(lambda stored: stored["scores"]["tuned"]["chrf"].pop("low")), "scores.tuned.chrf"),
        (lambda path: path.write_text(path.read_text()[:100]), "damaged"),
    ],
    ids=["no version", "a later version", "no keys", "a key missing", "a key too many", "half a score", "cut off"],
)
def test_a_file_that_cannot_be_understood_is_refused_with_what_to_do(
    lake: DataLake, damage: Callable[[Path], Any], reason: str
) -> None:
    path = evaluation_file("one", lake)
    write_evaluation(full_results(), path)
    damage(path)
    with pytest.raises(PipelineError) as error:
        read_evaluation("one", lake)
    assert str(path) in error.value.what
    assert reason in error.value.what
    assert error.value.fix == "Run the full pipeline for this recipe: cs-pipeline demo --recipe one"


def test_a_figure_that_is_not_a_number_is_not_written(lake: DataLake) -> None:
    results = full_results(naive={"chrf": float("nan")})
    with pytest.raises(ValueError, match="JSON"):
        write_evaluation(results, evaluation_file("one", lake))
    assert not evaluation_file("one", lake).exists()


def test_the_check_names_each_metric_that_promotion_reads_and_that_has_no_value(lake: DataLake) -> None:
    known = dict.fromkeys(MARGINS, Interval(1.0, 0.5, 1.5)) | {"placeholder_f1": None}  # no text has a placeholder
    write_evaluation(results_of(scores={"tuned": known}), evaluation_file("one", lake))
    assert every_metric_a_number(lake, "one").passed
    tuned = known | {"stop_rate": None, "safe": None}
    write_evaluation(results_of(scores={"tuned": tuned}), evaluation_file("one", lake))
    outcome = every_metric_a_number(lake, "one")
    assert not outcome.passed
    assert outcome.facts["missing"] == ["stop_rate", "safe"]


def test_results_cannot_be_changed_or_hold_unknown_parts() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        full_results().rows = 1  # type: ignore[misc]
    with pytest.raises(ValidationError, match="surplus"):
        full_results(surplus=1)
    assert json.loads(full_results().model_dump_json())["champion_version"] is None
