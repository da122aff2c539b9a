"""The evaluation as one self-contained HTML file, and a summary in Markdown."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.company import load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_file
from cs_pipeline.evaluate.decision import LOOK_UP, PRIMARY_METRIC, best_free_lookup, decide_promotion
from cs_pipeline.evaluate.openings import record_opening
from cs_pipeline.evaluate.people.people import read_opinions
from cs_pipeline.evaluate.people.ratings import votes_on_candidate
from cs_pipeline.evaluate.report import pictures, tables
from cs_pipeline.evaluate.report.plots import loss_picture
from cs_pipeline.evaluate.report.rendering import page_template
from cs_pipeline.evaluate.report.verdict import odd_questions, verdict, weak_slices
from cs_pipeline.evaluate.report.who_answers import (
    CONTENDER_METRICS,
    contender_rows,
    quality_difference,
    recommend,
)
from cs_pipeline.evaluate.results import SYSTEMS, EvaluationResults, evaluation_folder, read_evaluation
from cs_pipeline.evaluate.retrieval_effect import RETRIEVAL_METRICS
from cs_pipeline.recipe import Recipe
from cs_pipeline.train.adapter import current_adapter

EMBEDDED_WARNING = (
    "This is a demo model and not fit for customers: its very small base was trained from scratch in minutes to show that "
    "the pipeline works."
)


@dataclass(frozen=True)
class Report:
    """The path of the HTML file, and the summary in Markdown."""

    path: Path
    markdown: str


def write_report(recipe: Recipe, lake: DataLake) -> Report:
    """Writes ``evaluate/evaluation_report/<recipe>.html`` and ``<recipe>.md`` from the recipe's last evaluation.

    The report says what the figures decide, so its first writing is recorded as an opening (``openings.py``). Equal input
    gives equal bytes. Raises PipelineError when the recipe was not evaluated, or when the evaluated adapter is not the
    current one.
    """
    results, adapter = read_evaluation(recipe.name, lake), current_adapter(recipe.name, lake)
    if results.adapter_fingerprint != adapter.fingerprint:
        raise PipelineError(
            f"The evaluation of '{recipe.name}' is of adapter {results.adapter_fingerprint}, but the recipe's adapter"
            f" is now {adapter.fingerprint}.",
            f"Materialise 'evaluation' for the partition '{recipe.name}' again, then its report.",
        )
    answers, references, slices, probe = (
        pd.read_parquet(evaluation_folder(recipe.name, lake) / f"{name}.parquet")
        for name in ("answers", "references", "slices", "probe")
    )
    systems = {system: words for system, words in SYSTEMS.items() if system in results.scores}
    names, models = list(systems), [system for system in systems if system in results.runs]
    intents = pictures.scores_by_intent(answers)
    price = load_company(lake).price_per_hour
    costs = tables.costs(results, models, price)
    champion_trained = results.methods.get("champion", LOOK_UP) != LOOK_UP
    gain = quality_difference(answers, "champion", best_free_lookup(results)) if champion_trained else None
    votes = votes_on_candidate(results, lake)
    earlier_decisions = record_opening(results, lake)
    decision = decide_promotion(results, earlier_decisions, votes=votes)
    values = {
        "recipe": recipe,
        "results": results,
        "systems": systems,
        "models": models,
        "demo": EMBEDDED_WARNING if has_embedded_base(results) else "",
        "recommended": recommend(results, decision, gain, earlier_decisions, votes),
        "contenders": contender_rows(results, costs, price),
        "contender_metrics": CONTENDER_METRICS,
        "findings": [
            *verdict(results, intents[intents["system"] == "tuned"]),
            weak_slices(results.weak),
            odd_questions(results.robustness["tuned"]),
        ],
        "training": adapter.metrics,
        "loss": "" if adapter.is_lookup else _loss_picture(adapter.metrics),
        "scores": pictures.score_pictures(results, names),
        "differences": pictures.difference_pictures(results, names),
        "intent_heat": pictures.intent_heat_map(intents, names),
        "heat_map_metrics": pictures.HEAT_MAP_METRICS,
        "similarity_systems": pictures.SIMILARITY_SYSTEMS,
        "similarity": pictures.similarity_pictures(answers),
        "slice_heat": pictures.slice_heat_map(slices, names),
        "errors": tables.error_counts(answers, references, names),
        "fabrications": tables.fabrications(answers),
        "rubric": tables.rubric_means(answers, references, names),
        "odd": tables.odd_groups(results, models),
        "forgotten": tables.forgotten_knowledge(probe),
        "costs": costs,
        "baselines": tables.systems_by_quality(results.baselines) if results.baselines else {},
        "baseline_metrics": (PRIMARY_METRIC, *CONTENDER_METRICS),
        "retrieval_metrics": RETRIEVAL_METRICS,
        "misled": tables.misled_groups(results.retrieval.misled) if results.retrieval else [],
        "people": read_opinions(lake),
        "naive": tables.naive_and_honest(results),
        "detectable": tables.metrics_with_detectable_difference(results),
        "best": tables.best_systems(results),
        "training_facts": tables.training_facts(recipe, adapter),
        "versions": tables.versions(recipe, results, adapter),
        "examples": tables.examples(answers),
    }
    html, markdown = (page_template(f"report.{form}.jinja").render(values) for form in ("html", "md"))
    path = lake.path("evaluate", "evaluation_report", f"{recipe.name}.html")
    for file, text in ((path, html), (path.with_suffix(".md"), markdown)):
        with atomic_file(file) as temporary:
            temporary.write_text(text, encoding="utf-8")
    return Report(path, markdown)


def has_embedded_base(results: EvaluationResults) -> bool:
    """Whether the version is not meant for customers, because its base was trained from scratch in minutes."""
    return bool(results.base["source"] == "embedded")


def _loss_picture(metrics: dict[str, Any]) -> str:
    losses = metrics["loss"], metrics["steps"], metrics["validation_loss_before"], metrics["validation_loss_after"]
    return loss_picture(*losses, "Training loss by step, validation loss before and after")
