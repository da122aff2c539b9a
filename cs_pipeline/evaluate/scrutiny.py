"""What the report shows for a sceptic: errors, made-up facts, how answers are put, slices, and what the figures can bear.

Every number comes from a table of the evaluation: errors, facts and rubric from ``answers.parquet`` and (of the reference
answers, judged as one more system) ``references.parquet``, slices from ``slices.parquet``.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from cs_pipeline.evaluate.cost import Cost, Run, cost
from cs_pipeline.evaluate.errors import ERRORS
from cs_pipeline.evaluate.metrics import METRICS
from cs_pipeline.evaluate.naive import NAIVE_METRICS
from cs_pipeline.evaluate.rubric import PARTS
from cs_pipeline.lake import digest

FACTS_SHOWN = 9
"""Answers with made-up facts that are shown."""

HEATED = ("right_intent", "rougeL")
"""The metrics of the heat maps."""


@dataclass(frozen=True)
class Count:
    """One error: how many answers of each system have it, the references among them, and an answer of the tuned model."""

    error: str
    rule: str
    by_system: list[int]
    false_alarms: int
    example: tuple[str, str] | None


@dataclass(frozen=True)
class MadeUp:
    """A question, the tuned model's answer to it, and the facts in it that nobody gave it."""

    row_id: str
    question: str
    answer: str
    facts: list[str]


def error_counts(answers: pd.DataFrame, references: pd.DataFrame, systems: Sequence[str]) -> list[Count]:
    """The errors, those that the tuned model makes most often first; the example is drawn by the hash of its row."""
    by_system = {system: answers[answers["system"] == system] for system in systems}
    found = []
    for error, rule in ERRORS.items():
        wrong = by_system["tuned"][by_system["tuned"][error]]
        drawn = wrong.loc[wrong["row_id"].map(digest).sort_values().index[:1]]
        example = next(iter(zip(drawn["question"], drawn["answer"], strict=True)), None)
        counts = [int(frame[error].sum()) for frame in by_system.values()]
        found.append(Count(error, rule, counts, int(references[error].sum()), example))
    return sorted(found, key=lambda count: -count.by_system[list(systems).index("tuned")])


def made_up(answers: pd.DataFrame) -> list[MadeUp]:
    """At most FACTS_SHOWN answers of the tuned model with made-up facts, drawn by the hash of their rows."""
    rows = answers[(answers["system"] == "tuned") & (answers["fabricated"] > 0)]
    rows = rows.loc[rows["row_id"].map(digest).sort_values().index[:FACTS_SHOWN]]
    shown = zip(rows["row_id"], rows["question"], rows["answer"], rows["fabricated_facts"], strict=True)
    return [MadeUp(row, question, answer, list(facts)) for row, question, answer, facts in shown]


def rubric_means(answers: pd.DataFrame, references: pd.DataFrame, systems: Sequence[str]) -> list[dict[str, Any]]:
    """The mean of each part of the rubric, of the whole and of the heuristic: by system, and of the references last."""
    frames = [*(answers[answers["system"] == system] for system in systems), references]
    rules = {name: f"{part.rule}; weight {part.weight:g}" for name, part in PARTS.items()}
    rules |= {"rubric": "all parts by their weights, 0 to 1", "heuristic": "the published one, 0 to 3"}
    return [
        {"part": part, "rule": rule, "means": [float(frame[part].mean()) for frame in frames]}
        for part, rule in rules.items()
    ]


def slice_heat(slices: pd.DataFrame, systems: Sequence[str]) -> list[dict[str, Any]]:
    """Rows as of the heat map of intents, for every other slice that has figures: ``intent`` holds its kind and name."""
    known = slices[~slices["kind"].isin(["intent", "all"])].dropna(subset="score")
    cells = {(r["kind"], r["slice"], r["system"], r["metric"]): r for r in known.to_dict("records")}
    tops = {metric: max((r["score"] for k, r in cells.items() if k[3] == metric), default=0) for metric in HEATED}
    tops["right_intent"] = 100.0
    found = []
    for kind, name in dict.fromkeys(zip(known["kind"], known["slice"], strict=True)):
        by_metric = {
            metric: [
                (cells[kind, name, system, metric]["score"], system, metric)
                for system in systems
                if (kind, name, system, metric) in cells
            ]
            for metric in HEATED
        }
        found.append(
            {
                "intent": f"{kind.replace('_', ' ')} {name}",
                "rows": cells[kind, name, "tuned", "right_intent"]["rows"],
                "cells": {m: [(v, 100 * v / (tops[m] or 1)) for v, *_ in values] for m, values in by_metric.items()},
            }
        )
    return found


def naive_beside_honest(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The nearest question's answer on a random split and on the frozen test rows, and the tuned model there."""

    def score(system: str, name: str) -> float | None:
        found = facts["scores"][system][name]
        return found["score"] if found else None

    return [
        {"metric": name, "naive": facts["naive"][name], "honest": score("nearest", name), "tuned": score("tuned", name)}
        for name in NAIVE_METRICS
    ]


def smallest_seen(facts: dict[str, Any]) -> list[str]:
    """The metrics that have a smallest detectable difference from any system."""
    return [name for name in METRICS if any(found[name] is not None for found in facts["detectable"].values())]


def odd_groups(robustness: dict[str, list[dict[str, Any]]], models: Sequence[str]) -> list[dict[str, Any]]:
    """A row a group of odd questions, all together last: its rows, and by model the figures of ``robustness.by_group``."""
    told = {model: {(r["group"], r["measure"]): r for r in robustness[model]} for model in models}
    groups = list(dict.fromkeys(row["group"] for row in robustness["tuned"]))
    return [
        {
            "group": group,
            "rows": told["tuned"][group, "as_expected"]["rows"],
            "by_model": [
                {measure: figures.get((group, measure)) for measure in ("as_expected", "leaked", "chrf_drop")}
                for figures in told.values()
            ],
        }
        for group in groups
    ]


def unlearnt(probe: pd.DataFrame) -> list[tuple[str, str, str]]:
    """Question, the base's answer and the tuned model's, where the base alone is right."""
    wide = probe.pivot(index="question", columns="system")
    rows = wide[(wide["right"]["base"] == 1) & (wide["right"]["tuned"] == 0)]
    return [(str(question), row["answer", "base"], row["answer", "tuned"]) for question, row in rows.iterrows()]


def costs(facts: dict[str, Any], models: Sequence[str], price_per_hour: float | None) -> dict[str, Cost]:
    """By model what its answers cost; the weights are those of this adapter, so the others are without."""
    found = {}
    for model in models:
        run = {name: value for name, value in facts["runs"][model].items() if name != "alone"}
        weights = facts["adapter_bytes"] if model == "tuned" else 0
        found[model] = cost(Run(**run), facts["runs"][model]["alone"], weights, price_per_hour)
    return found
