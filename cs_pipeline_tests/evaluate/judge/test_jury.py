"""A judge in an evaluation: a local HTTP server that prefers longer answers judges the session's tiny champion."""

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import RATING, SPLIT_ROW
from cs_pipeline.evaluate.decision import decide_promotion
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.judge.judge import JUDGED_QUESTIONS, judge_models
from cs_pipeline.evaluate.people.people import rating_table
from cs_pipeline.evaluate.results import JudgeResults, JudgeTally, PeopleAgreement, PositionBias, evaluation_folder
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline_tests.evaluate.judge.test_judge import Reply, completion, server
from cs_pipeline_tests.register.conftest import BETTER, compared


def longer(body: dict[str, Any]) -> Reply:
    """Prefers the longer answer in either position."""
    if len(body["messages"]) == 1:
        return completion("TIE")
    asked = json.loads(body["messages"][1]["content"])
    a, b = len(asked["answer_a"]), len(asked["answer_b"])
    return completion("TIE" if a == b else "A" if a > b else "B")


@pytest.fixture
def evaluated(champion_lake: Path, lake: DataLake) -> DataLake:
    for stage in ("prepare", "train"):
        shutil.copytree(champion_lake / stage, lake.root / stage)
    return lake


def test_wins_are_counted_and_compared_with_people(evaluated: DataLake, tiny: FineTuneRecipe) -> None:
    rows = FrozenTestSet(tiny, evaluated)
    short, long = ["short"] * len(rows.questions), ["a good deal longer"] * len(rows.questions)
    asked = min(JUDGED_QUESTIONS, len(rows.questions))
    votes = [
        {
            **{"id": str(n), "at": pd.Timestamp("2026-01-01", tz="UTC"), "kind": "vote", "rater": "r", "context": None},
            **{"question_id": str(n), "question": f"q{n}", "systems": ["version 1", "version 2"]},
            **{"answers": ["long " * 9, "no"] if n % 2 else ["no", "long " * 9], "score": None},
            **{"winner": "a" if n % 2 else "b", "source": "page", "settings": "{}"},
        }
        for n in range(40)
    ]
    evaluated.write("evaluate", "human_ratings", rating_table(votes), RATING)
    ids = rows.test["row_id"].tolist()
    with server(longer) as (endpoint, requests):
        answers = {"tuned": long, "base": short, "champion": [text.upper() for text in long]}
        answers["lookup"] = ["the longest of all the answers", *[""] * (len(long) - 1)]  # not always a known answer
        by_row = {system: dict(zip(ids, texts, strict=True)) for system, texts in answers.items()}
        by_row["few_shot"] = dict.fromkeys(sorted(ids)[:10], "the longest of all the answers")
        found, table = judge_models(endpoint, rows, by_row, evaluated, print)
        calls = len(requests)
        assert 300 < calls <= 2 * (3 * asked + 10 + 40), "two per pair, fewer for test rows with the same question"
        again, _ = judge_models(endpoint, rows, by_row, evaluated, print)
        assert len(requests) == calls, "cached verdicts are not asked again"
    assert again == found
    assert len(table) == 3 * asked + 10
    assert list(found.against) == ["base", "champion", "few_shot", "lookup"]
    base, champion, few_shot, lookup = found.against.values()
    assert (few_shot.won, few_shot.lost, few_shot.ties) == (0, 10, 0)
    assert set(table["question_id"]) == set(sorted(ids)[:asked])
    assert (base.won, base.lost, base.ties, base.share) == (asked, 0, 0, 1.0)
    assert (champion.won, champion.ties, champion.share) == (0, asked, None)
    first_is_asked = rows.test["row_id"].iloc[0] in set(table["question_id"])
    assert (lookup.won, lookup.lost) == (asked - first_is_asked, first_is_asked)
    assert found.position.consistent == 1
    assert found.people.kappa == 1
    assert found.may_gate


@pytest.mark.parametrize(
    ("may_gate", "low", "promote"),
    [(True, 0.1, False), (True, 0.5, False), (True, None, False), (True, 0.6, True), (False, 0.1, True)],
)
def test_a_judge_that_agrees_with_people_must_prefer_the_answers(
    may_gate: bool, low: float | None, promote: bool
) -> None:
    judge = JudgeResults(
        model="a judge",
        against={"champion": JudgeTally(won=10, lost=40, ties=0, share=0.2, low=low, high=0.9)},
        position=PositionBias(pairs=50, consistent=1.0, first=None, low=None, high=None),
        people=PeopleAgreement(kappa=None, low=None, high=None, pairs=0),
        may_gate=may_gate,
        why="",
    )
    decision = decide_promotion(compared(BETTER, BETTER, judge=judge))
    assert decision.promote is promote
    refusal = "does not clearly prefer its answers to those of the champion: it won 10 comparisons and lost 40"
    assert promote or refusal in decision.reason


def test_a_judge_changes_the_evaluation_key_and_its_verdicts_are_kept(
    evaluated: DataLake, tiny: FineTuneRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = evaluated.read("prepare", "test_split").slice(0, 12)
    evaluated.write("prepare", "test_split", few, SPLIT_ROW)
    with server(longer) as (endpoint, _):
        monkeypatch.setenv("CS_JUDGE_URL", endpoint.url)
        monkeypatch.setenv("CS_JUDGE_MODEL", endpoint.model)
        found = evaluate(tiny, evaluated, None, print)
        assert evaluate(tiny, evaluated, None, print).reused
    judge = found.results.judge
    assert judge is not None
    assert judge.model == endpoint.model
    assert judge.why.startswith("people voted on 0 of the judged pairs")
    kept = pd.read_parquet(evaluation_folder("tiny", evaluated) / "judge.parquet")
    assert list(judge.against) == ["base", "lookup"]
    for other, tally in judge.against.items():
        assert (kept["system_a"] == other).sum() == tally.won + tally.lost + tally.ties == 12
    with server(lambda body: (401, {}, b"")) as (endpoint, _):
        monkeypatch.setenv("CS_JUDGE_URL", endpoint.url)
        with pytest.raises(PipelineError, match="401"):  # at once, before any answer is generated
            evaluate(tiny, evaluated, None, lambda line: pytest.fail(line))
