"""The checks of the evaluate stage. Their imports are inside the functions, because Dagster loads this module."""

from dataclasses import asdict

from cs_pipeline.core.checks import CheckOutcome
from cs_pipeline.core.lake import DataLake

_NEEDED_METRICS = ("bits_per_character", "right_intent", "stop_rate", "rougeL", "chrf")


def every_metric_a_number(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """Every metric that promotion reads has a value, for the tuned model and for its base."""
    from cs_pipeline.evaluate.results import read_evaluation

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
    from cs_pipeline.evaluate.results import read_evaluation

    difference = read_evaluation(recipe_name, lake).differences["base"]["bits_per_character"]
    return CheckOutcome(difference is not None and difference.high < 0, asdict(difference) if difference else {})


def judgements_reconcile(lake: DataLake) -> CheckOutcome:
    """Every cleaned judgement is in the table exactly once."""
    from cs_pipeline.feedback import Feedback

    with Feedback(lake) as feedback:
        cleaned = sorted(row["id"] for row in feedback.judgements(raw=False))
    listed = sorted(lake.read("evaluate", "human_ratings", ["id"]).column("id").to_pylist())
    return CheckOutcome(cleaned == listed, {"judgements": len(cleaned), "rows": len(listed)})
