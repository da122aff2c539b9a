"""The leaderboard: settings, cost and scores of all recipes that were evaluated on the current test rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256, read_json
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.schema import BEHIND_FIRST, METRIC_SUFFIXES, leaderboard_schema
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.evaluate.decision import PRIMARY_METRIC
from cs_pipeline.evaluate.people.intent_labels import intent_labels_hash, read_intent_labels
from cs_pipeline.evaluate.report.tables import trained_part
from cs_pipeline.evaluate.results import EvaluationResults, evaluation_folder, read_evaluation
from cs_pipeline.evaluate.scoring.cost import weights_bytes
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Difference, paired_bootstrap
from cs_pipeline.recipe import read_recipe
from cs_pipeline.text.placeholders import PlaceholderMode

RANKED_BY = PRIMARY_METRIC
"""The metric that orders the recipes: the one that decides promotion. Look-up recipes are scored by it too."""

LEADERBOARD_METRICS = (
    *(RANKED_BY, "right_intent", "placeholder_f1", "fabricates", "chrf", "rougeL"),
    *("bits_per_character", "stop_rate", "safe"),
)
"""The metrics of the leaderboard, by their names in METRICS."""

PICTURED_METRICS = (RANKED_BY, "right_intent", "chrf")
"""The metrics that have a picture beside the table."""

LEADERBOARD_SCHEMA = leaderboard_schema(LEADERBOARD_METRICS)

_MEASURED = (
    *("parameters", "effective_batch", "epochs", "steps", "rows"),
    *("seconds", "tokens_per_second", "peak_memory_gib", "trainable_parameters"),
)
"""Columns that the training writes into the adapter's metrics.json under the same names."""

_MEASURED_OF_LOOKUP = ("rows", "seconds")
"""The same for a look-up: the number of known answers, and the time to choose its threshold. The other columns of
_MEASURED are empty."""


@dataclass(frozen=True)
class Leaderboard:
    """``rows`` has LEADERBOARD_SCHEMA, highest answer quality first within each placeholder mode.

    ``results`` holds the evaluation of each recipe, and ``behind`` its difference in RANKED_BY from the first recipe of its
    placeholder mode. ``not_comparable`` gives the reason for each recipe that cannot be compared, and ``not_evaluated``
    lists the recipes without an evaluation.
    """

    rows: pa.Table
    results: dict[str, EvaluationResults]
    behind: dict[str, Difference]
    not_comparable: dict[str, str]
    not_evaluated: list[str]


def gather_leaderboard(recipes: Sequence[str], lake: DataLake) -> Leaderboard:
    """The leaderboard of ``recipes``, from the last evaluation of each; the caller must hold ``evaluations_lock``.

    Figures are comparable if test rows, intent labels, code and reference texts are the same. Each placeholder mode has its
    own reference texts, so it has its own ranking.
    """
    current = {split: file_sha256(lake.table("prepare", f"{split}_split")) for split in ("train", "test")}
    labels_hash = intent_labels_hash(read_intent_labels(lake))
    rows: list[dict[str, Any]] = []
    compared, behind, not_comparable, not_evaluated = {}, {}, {}, []
    for name in recipes:
        if not evaluation_folder(name, lake).exists():
            not_evaluated.append(name)
            continue
        try:
            results = read_evaluation(name, lake)
            _check_comparable(results, current, labels_hash)
            rows.append(_row(name, results, current, lake))
            compared[name] = results
        except PipelineError as error:
            not_comparable[name] = error.what
    order = list(PlaceholderMode)
    rows.sort(key=lambda row: (order.index(row["placeholders"]), -row[RANKED_BY], row["recipe"]))
    best_of_mode: dict[str, str] = {}
    for row in rows:
        name, best = row["recipe"], best_of_mode.setdefault(row["placeholders"], row["recipe"])
        if name != best:
            behind[name] = difference = _difference(name, best, lake)
            row |= zip(BEHIND_FIRST, (difference.difference, difference.low, difference.high), strict=True)
    table = pa.Table.from_pylist(rows, LEADERBOARD_SCHEMA)
    return Leaderboard(table, compared, behind, not_comparable, not_evaluated)


def _check_comparable(results: EvaluationResults, current: dict[str, str], labels_hash: str | None) -> None:
    fix = f"Materialise 'evaluation' for the partition '{results.recipe}' again."
    if results.data.test_split != current["test"]:
        raise PipelineError(f"evaluated on {results.rows:,} test rows that differ from the current ones", fix)
    if results.data.intent_labels != labels_hash:
        raise PipelineError("evaluated with other intent labels than the current ones", fix)
    if results.code_version != CODE_VERSIONS["evaluation"]:
        raise PipelineError("evaluated by an earlier version of the code", fix)


def _row(name: str, results: EvaluationResults, current: dict[str, str], lake: DataLake) -> dict[str, Any]:
    folder = lake.path("train", "adapter", name, results.adapter_fingerprint)
    manifest, recipe = read_manifest(folder, "adapter"), read_recipe(folder / "recipe.yaml")
    metrics = read_json(folder / "metrics.json")
    trained = trained_part(recipe, folder)
    columns = _MEASURED if trained else _MEASURED_OF_LOOKUP
    if missing := [column for column in columns if column not in metrics]:
        raise PipelineError(
            f"trained by an earlier version of the code, which did not measure {', '.join(missing)}",
            f"Materialise 'adapter' and its downstream assets for the partition '{name}' again.",
        )
    notes = []
    if results.rows_left_out:
        notes.append(f"asked only {results.rows:,} test questions")
    if read_json(lake.path("train", "adapter", f"{name}.json"))["fingerprint"] != results.adapter_fingerprint:
        notes.append("its newer adapter is not evaluated yet")
    if manifest["data"]["train_split"] != current["train"]:
        notes.append("trained on rows that differ from the current ones")
    settings = {
        "recipe": name,
        "note": "; ".join(notes),
        "placeholders": recipe.placeholders.value,
        "base": results.base["name"],
        "method": recipe.training_method,
        "route": recipe.prompt.route,
        "adapter_mib": weights_bytes(trained[1]) / 2**20 if trained else 0.0,
        "evaluation_seconds": results.seconds["tuned"],
    }
    if trained:
        model = trained[0]
        settings |= {
            "r": model.lora and model.lora.r,
            "lora_alpha": model.lora and model.lora.lora_alpha,
            "quantization": model.quantization,
            "learning_rate": model.trainer.learning_rate,
            "max_length": model.trainer.max_length,
            "template": model.prompt.template,
            "start": model.start,
        }
    return settings | {column: metrics[column] for column in columns} | _figures(results)


def _figures(results: EvaluationResults) -> dict[str, float | None]:
    figures: dict[str, float | None] = {}
    for metric in LEADERBOARD_METRICS:
        tuned, base = (results.scores.get(system, {}).get(metric) for system in ("tuned", "base"))
        difference = results.differences.get("base", {}).get(metric)
        values = (
            *((tuned.score, tuned.low, tuned.high) if tuned else (None,) * 3),
            base and base.score,
            *((difference.difference, difference.low, difference.high) if difference else (None,) * 3),
        )
        figures |= dict(zip((metric + suffix for suffix in METRIC_SUFFIXES), values, strict=True))
    return figures


def _difference(name: str, best: str, lake: DataLake) -> Difference:
    ours, theirs = (_tuned_rows(recipe, lake).set_index("row_id") for recipe in (name, best))
    both = ours.index.intersection(theirs.index)  # a recipe may ask only some of the test rows
    ours, theirs = ours.loc[both].reset_index(), theirs.loc[both].reset_index()
    difference = paired_bootstrap(ours, theirs, ours["cluster_id"].tolist(), metrics=(RANKED_BY,))[RANKED_BY]
    assert difference is not None  # both recipes were ranked by this metric
    return difference


def _tuned_rows(recipe: str, lake: DataLake) -> pd.DataFrame:
    columns = ["row_id", "cluster_id", *METRICS[RANKED_BY].columns]
    path = evaluation_folder(recipe, lake) / "answers.parquet"
    return pd.read_parquet(path, columns=columns, filters=[("system", "==", "tuned")])
