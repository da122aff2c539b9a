"""The checks of the evaluate stage, as plain functions of the lake."""

from dataclasses import asdict

from cs_pipeline.core.checks import CheckOutcome
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.results import read_evaluation
from cs_pipeline.feedback import Feedback

_NEEDED_METRICS = ("bits_per_character", "right_intent", "stop_rate", "rougeL", "chrf")


def promotion_metrics_present(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """The evaluation has a score for every metric that promotion reads, for the tuned model and for its base."""
    scores = read_evaluation(recipe_name, lake).scores
    missing = [
        f"{system}.{metric}"
        for system in ("tuned", "base")
        for metric in _NEEDED_METRICS
        if not scores[system].get(metric)
    ]
    return CheckOutcome(not missing, {"missing": missing})


def tuned_better_than_base(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """The tuned model needs fewer bits per character than its base, with the whole interval below zero."""
    difference = read_evaluation(recipe_name, lake).differences["base"]["bits_per_character"]
    return CheckOutcome(difference is not None and difference.high < 0, asdict(difference) if difference else {})


def judgements_reconcile(lake: DataLake) -> CheckOutcome:
    """Every cleaned judgement is in ``human_ratings`` exactly once."""
    with Feedback(lake) as feedback:
        cleaned = sorted(row["id"] for row in feedback.judgements(raw=False))
    listed = sorted(lake.read("evaluate", "human_ratings", ["id"]).column("id").to_pylist())
    return CheckOutcome(cleaned == listed, {"judgements": len(cleaned), "rows": len(listed)})
