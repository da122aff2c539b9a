"""The judge of ``judge.py`` in an evaluation, where the user has named an endpoint: an opinion, and never the first.

It compares the tuned model's answers with its base's and the champion's, and the pairs that people voted on, by which it is
known how far to believe it.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

import pandas as pd

from cs_pipeline.evaluate.endpoint import Endpoint
from cs_pipeline.evaluate.judge import Pair, agreement_with_people, judge, may_gate, position_bias, voted_pairs
from cs_pipeline.evaluate.people import pairs
from cs_pipeline.evaluate.statistics import wilson
from cs_pipeline.evaluate.yardstick import Yardstick
from cs_pipeline.lake import DataLake, digest

QUESTIONS = 100
"""Test questions whose answers are compared, drawn by the hash of their rows: each costs two calls for every other model."""


def hear(
    endpoint: Endpoint, rows: Yardstick, answers: Mapping[str, list[str]], lake: DataLake, report: Callable[[str], None]
) -> tuple[dict[str, Any], pd.DataFrame]:
    """What ``evaluation.json`` says of the judge, and the table of ``judge.judge`` for the test rows.

    ``answers`` are those of the models to all test rows, ``tuned`` among them. For each other model there is how many of the
    tuned model's answers ``won`` and ``lost``, the ``ties``, and the ``share`` of those decided that it won, with Wilson's
    95 % interval, which takes questions as independent. ``may_gate`` says whether people agree with the judge enough.
    Raises PipelineError as judge does.
    """
    drawn = sorted(range(len(rows.questions)), key=lambda place: digest(rows.test["row_id"].iloc[place]))[:QUESTIONS]
    others = sorted(set(answers) - {"tuned"})
    compared = [
        Pair(
            question_id=rows.test["row_id"].iloc[place],
            question=rows.questions[place],
            context=json.dumps(rows.contexts[place]) if rows.contexts[place] else None,
            system_a=other,
            system_b="tuned",
            answer_a=answers[other][place],
            answer_b=answers["tuned"][place],
        )
        for other in others
        for place in drawn
    ]
    table = lake.table("evaluate", "human_ratings")
    voted = voted_pairs(pairs(lake.read("evaluate", "human_ratings"))) if table.exists() else {}
    cache = lake.path("evaluate", "judge.jsonl")
    said = judge([*compared, *voted], endpoint, cache, report)
    own = said[said["pair_id"].isin([pair.id for pair in compared])]
    agreement = agreement_with_people(said, voted)
    gates, why = may_gate(agreement)
    facts = {
        "model": endpoint.model,
        "against": {other: _counts(own[own["system_a"] == other]["result"]) for other in others},
        "position": asdict(position_bias(own)),
        "people": asdict(agreement),
        "may_gate": gates,
        "why": why,
    }
    return facts, own


def _counts(results: pd.Series) -> dict[str, Any]:
    won, lost = int((results == "b").sum()), int((results == "a").sum())
    low, high = wilson(won, won + lost) or (None, None)
    share = won / (won + lost) if won + lost else None
    return {"won": won, "lost": lost, "ties": len(results) - won - lost, "share": share, "low": low, "high": high}
