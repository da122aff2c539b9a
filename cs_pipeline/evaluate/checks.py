"""The asset checks of the evaluate stage. Dagster imports this module at startup, so heavy imports are in the functions."""

from dataclasses import asdict

from cs_pipeline.core.errors import CheckOutcome
from cs_pipeline.core.lake import DataLake


def every_metric_a_number(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """The metrics that promotion reads have a value for the evaluated version, unless there was nothing to score."""
    from cs_pipeline.evaluate.decision import MARGINS
    from cs_pipeline.evaluate.results import read_evaluation
    from cs_pipeline.evaluate.scoring.metrics import METRICS

    scores = read_evaluation(recipe_name, lake).scores
    missing = [metric for metric in MARGINS if scores["tuned"].get(metric) is None and not METRICS[metric].may_be_empty]
    return CheckOutcome(not missing, {"missing": missing})


def tuned_better_than_base(lake: DataLake, recipe_name: str) -> CheckOutcome:
    """The tuned model needs fewer bits per character than its base: the 95 % interval of the difference is below zero.

    A look-up has no base.
    """
    from cs_pipeline.evaluate.results import read_evaluation

    differences = read_evaluation(recipe_name, lake).differences
    if "base" not in differences:
        return CheckOutcome(True, {"base": "none"})
    difference = differences["base"]["bits_per_character"]
    return CheckOutcome(difference is not None and difference.high < 0, asdict(difference) if difference else {})


def judgements_reconcile(lake: DataLake) -> CheckOutcome:
    """The table ``human_ratings`` contains every cleaned judgement exactly once, and nothing else."""
    from cs_pipeline.feedback import Feedback

    with Feedback(lake) as feedback:
        cleaned = sorted(row["id"] for row in feedback.judgements(raw=False))
    listed = sorted(lake.read("evaluate", "human_ratings", ["id"]).column("id").to_pylist())
    return CheckOutcome(cleaned == listed, {"judgements": len(cleaned), "rows": len(listed)})
