"""All recipes side by side: what was set, what it cost, how it scored, as far as they were judged on the same rows."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256, read_json
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.evaluate.evaluation import evaluation_folder, read_evaluation
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.statistics import paired_bootstrap
from cs_pipeline.recipe import read_recipe
from cs_pipeline.text.placeholders import PlaceholderMode

RANKED_BY = "bits_per_character"
"""The metric that puts recipes in order: it compares across tokenizers, and its intervals are narrow."""

SHOWN = (RANKED_BY, "right_intent", "rougeL", "chrf", "bleu", "placeholder_recall", "stop_rate", "safe")
"""The metrics of the board, by the names of METRICS."""

FIGURES = ("", "_low", "_high", "_base", "_minus_base", "_minus_base_low", "_minus_base_high")
"""What follows a metric's name in a column: the tuned model's score with its 95 % interval, the base's, the difference."""

BEHIND = ("behind_first", "behind_first_low", "behind_first_high")
"""RANKED_BY minus that of the first of the same placeholder mode on the same rows, with its 95 % interval."""

_ENDS = ("score", "low", "high")
_MEASURED = (
    *("parameters", "effective_batch", "epochs", "steps", "rows"),
    *("seconds", "tokens_per_second", "peak_memory_gib", "trainable_parameters"),
)
"""Columns that the training has written into the adapter's metrics.json under the same names."""

_TEXT, _COUNT, _NUMBER = pa.string(), pa.int64(), pa.float64()
_KNOWN: dict[str, pa.DataType] = {
    "recipe": _TEXT,
    "note": _TEXT,
    "placeholders": _TEXT,
    "base": _TEXT,
    "parameters": _COUNT,
    "method": _TEXT,
    "quantization": _TEXT,
    "learning_rate": _NUMBER,
    "effective_batch": _COUNT,
    "epochs": _NUMBER,
    "steps": _COUNT,
    "rows": _COUNT,
    "max_length": _COUNT,
    "template": _TEXT,
    "route": _TEXT,
    "start": _TEXT,
    "seconds": _NUMBER,
    "tokens_per_second": _NUMBER,
    "peak_memory_gib": _NUMBER,
    "trainable_parameters": _COUNT,
    "adapter_mib": _NUMBER,
    "evaluation_seconds": _NUMBER,
}
SCHEMA = pa.schema(
    [pa.field(name, kind, nullable=False) for name, kind in _KNOWN.items()]
    + [pa.field(name, _COUNT) for name in ("r", "lora_alpha")]  # none where all weights are trained
    + [pa.field(metric + figure, _NUMBER) for metric in SHOWN for figure in FIGURES]
    + [pa.field(name, _NUMBER) for name in BEHIND]
)
"""A recipe that was judged on the present test rows: settings, cost (seconds, GiB, MiB), figures of FIGURES and BEHIND.

Settings are those of the adapter that was judged, whatever its YAML says by now. ``parameters`` counts all weights, the
adapter's included, ``rows`` those trained on; ``note`` says what else to know, or nothing.
"""


@dataclass(frozen=True)
class Leaderboard:
    """Who stands beside whom.

    ``rows`` has SCHEMA, fewest bits per character first within each placeholder mode. ``apart`` says for each recipe that
    was judged otherwise why it compares with none; ``waiting`` are those that were not judged yet.
    """

    rows: pa.Table
    apart: dict[str, str]
    waiting: list[str]


def gather(recipes: Sequence[str], lake: DataLake) -> Leaderboard:
    """The leaderboard of ``recipes`` by their last evaluations, which nobody may be writing meanwhile.

    Figures compare on the same test rows, judged by the same code, with the same reference texts: another placeholder mode
    writes other ones, so it has a ranking of its own.
    """
    now = {side: file_sha256(lake.table("prepare", f"{side}_split")) for side in ("train", "test")}
    rows: list[dict[str, Any]] = []
    apart, waiting = {}, []
    for name in recipes:
        if not evaluation_folder(name, lake).exists():
            waiting.append(name)
            continue
        facts = read_evaluation(name, lake)
        try:
            _check_comparable(facts, now)
            rows.append(_row(name, facts, now, lake))
        except PipelineError as error:
            apart[name] = error.what
    order = list(PlaceholderMode)
    rows.sort(key=lambda row: (order.index(row["placeholders"]), row[RANKED_BY], row["recipe"]))
    first: dict[str, str] = {}
    for row in rows:
        row |= _behind(first.setdefault(row["placeholders"], row["recipe"]), row["recipe"], lake)
    return Leaderboard(pa.Table.from_pylist(rows, SCHEMA), apart, waiting)


def _check_comparable(facts: dict[str, Any], now: dict[str, str]) -> None:
    fix = f"Materialise 'evaluation' for the partition '{facts['recipe']}' again."
    if facts["data"]["test_split"] != now["test"]:
        raise PipelineError(f"judged on {facts['rows']:,} other test rows than the present ones", fix)
    if facts.get("code_version") != CODE_VERSIONS["evaluation"]:
        raise PipelineError("judged by an earlier version of the evaluation", fix)


def _row(name: str, facts: dict[str, Any], now: dict[str, str], lake: DataLake) -> dict[str, Any]:
    folder = lake.path("train", "adapter", name, facts["adapter_fingerprint"])
    manifest, recipe, metrics = (
        read_manifest(folder, "adapter"),
        read_recipe(folder / "recipe.yaml"),
        read_json(folder / "metrics.json"),
    )
    if lacking := [measured for measured in _MEASURED if measured not in metrics]:
        raise PipelineError(
            f"trained by an earlier version of the code, which did not measure {', '.join(lacking)}",
            f"Materialise 'adapter' and what follows it for the partition '{name}' again.",
        )
    notes = []
    if read_json(lake.path("train", "adapter", f"{name}.json"))["fingerprint"] != facts["adapter_fingerprint"]:
        notes.append("its newer adapter is not judged yet")
    if manifest["data"]["train_split"] != now["train"]:
        notes.append("trained on other rows than the present ones")
    known = {
        "recipe": name,
        "note": "; ".join(notes),
        "placeholders": recipe.placeholders.value,
        "base": facts["base"]["name"],
        "method": recipe.method,
        "r": recipe.lora and recipe.lora.r,
        "lora_alpha": recipe.lora and recipe.lora.lora_alpha,
        "quantization": recipe.quantization,
        "learning_rate": recipe.trainer.learning_rate,
        "max_length": recipe.trainer.max_length,
        "template": recipe.prompt.template,
        "route": recipe.prompt.route,
        "start": recipe.start,
        "adapter_mib": sum(path.stat().st_size for path in folder.glob("*.safetensors")) / 2**20,
        "evaluation_seconds": facts["seconds"]["tuned"],
    }
    return known | {name: metrics[name] for name in _MEASURED} | _figures(facts)


def _figures(facts: dict[str, Any]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for metric in SHOWN:
        tuned, base = (facts["scores"][system][metric] or {} for system in ("tuned", "base"))
        minus = facts["differences"]["base"][metric] or {}
        values = (*map(tuned.get, _ENDS), base.get("score"), *map(minus.get, ("difference", "low", "high")))
        found |= dict(zip((metric + figure for figure in FIGURES), values, strict=True))
    return found


def _behind(first: str, name: str, lake: DataLake) -> dict[str, float]:
    """How much ``name`` is behind ``first``, for which there is nothing to say."""
    if name == first:
        return {}
    ahead, behind = (_tuned(recipe, lake) for recipe in (first, name))
    difference = paired_bootstrap(behind, ahead, behind["cluster_id"].tolist(), metrics=(RANKED_BY,))[RANKED_BY]
    assert difference is not None  # both have a score to be ranked by
    return dict(zip(BEHIND, (difference.difference, difference.low, difference.high), strict=True))


def _tuned(recipe: str, lake: DataLake) -> pd.DataFrame:
    columns = ["row_id", "cluster_id", *METRICS[RANKED_BY].columns]
    path = evaluation_folder(recipe, lake) / "answers.parquet"
    return pd.read_parquet(path, columns=columns, filters=[("system", "==", "tuned")])
