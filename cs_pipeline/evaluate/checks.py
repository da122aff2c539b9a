"""The asset checks of the evaluate stage. Dagster imports this module at startup, so heavy imports are in the functions."""

from dataclasses import asdict

from cs_pipeline.core.checks import CheckOutcome
from cs_pipeline.core.lake import DataLake

_MAIN_METRICS = ("bits_per_character", "right_intent", "stop_rate", "rougeL", "chrf")


def every_metric_a_number(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """The main metrics have a value for the tuned model and for its base."""
    from cs_pipeline.evaluate.results import read_evaluation

    scores = read_evaluation(recipe_name, lake).scores
    missing = [
        f"{system}.{metric}"
        for system in ("tuned", "base")
        for metric in _MAIN_METRICS
        if not scores[system].get(metric)
    ]
    return CheckOutcome(not missing, {"missing": missing})


def tuned_better_than_base(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """The tuned model needs fewer bits per character than its base: the 95 % interval of the difference is below zero."""
    from cs_pipeline.evaluate.results import read_evaluation

    difference = read_evaluation(recipe_name, lake).differences["base"]["bits_per_character"]
    return CheckOutcome(difference is not None and difference.high < 0, asdict(difference) if difference else {})


def judgements_reconcile(lake: DataLake) -> CheckOutcome:
    """The table ``human_ratings`` has every cleaned judgement exactly once, and nothing else."""
    from cs_pipeline.feedback import Feedback

    with Feedback(lake) as feedback:
        cleaned = sorted(row["id"] for row in feedback.judgements(raw=False))
    listed = sorted(lake.read("evaluate", "human_ratings", ["id"]).column("id").to_pylist())
    return CheckOutcome(cleaned == listed, {"judgements": len(cleaned), "rows": len(listed)})
