"""What the report shows: pictures, tables and examples, made of an evaluation's figures and answers."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.core.lake import digest
from cs_pipeline.evaluate.comparison import judgement
from cs_pipeline.evaluate.report.plots import Line, Mark, interval_picture, lines_picture
from cs_pipeline.evaluate.report.verdict import NONE, figure
from cs_pipeline.evaluate.scoring.answer_errors import ERRORS
from cs_pipeline.evaluate.scoring.baselines import NAIVE_METRICS
from cs_pipeline.evaluate.scoring.cost import Cost, GenerationRun, cost
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.rubric import PARTS
from cs_pipeline.evaluate.statistics import intervals
from cs_pipeline.recipe import Recipe
from cs_pipeline.train.adapter import Adapter

EXAMPLES, WORST = 20, 6
"""Questions shown with their answers, and how many of them are those that the tuned model answers worst by chrF."""

BETTER = {"higher": "↑ higher is better", "lower": "↓ lower is better", "none": "best at 1"}
"""How the report says which way of a metric is the better one."""

_PICTURED = (
    *("bits_per_character", "right_intent", "rougeL", "chrf", "bleu"),
    *("placeholder_precision", "placeholder_recall", "stop_rate"),
)
_SIDE_BY_SIDE = ("tuned", "without_retrieval", "champion", "base", "known_answer", "nearest")
_BY_SIMILARITY, _BINS = ("right_intent", "rougeL", "chrf"), 6


@dataclass(frozen=True)
class Picture:
    """An SVG element with the words above it."""

    title: str
    note: str
    svg: str


@dataclass(frozen=True)
class ShownAnswer:
    """What one system answered, and how it scored."""

    system: str
    text: str
    chrf: float
    rougeL: float  # noqa: N815 (the metric's name)
    right_intent: bool
    stopped: bool


@dataclass(frozen=True)
class ShownExample:
    """A test question with its reference and the answers of the systems worth reading."""

    row_id: str
    intent: str
    similarity: float | None
    worst: bool
    question: str
    reference: str
    answers: list[ShownAnswer]


def score_pictures(facts: dict[str, Any], systems: Sequence[str]) -> list[Picture]:
    """Each pictured metric of each system, with its 95 % interval."""

    def mark(metric: str, system: str) -> Mark:
        score = facts["scores"][system][metric]
        return Mark(
            system, system, score and (score["score"], score["low"], score["high"]), _text(metric, score, "score")
        )

    return _pictures("95 % intervals", lambda metric: [mark(metric, system) for system in systems])


def difference_pictures(facts: dict[str, Any], systems: Sequence[str]) -> list[Picture]:
    """Each pictured metric of the tuned model minus that of each other system, with its 95 % interval."""

    def mark(metric: str, system: str) -> Mark:
        difference = facts["differences"][system][metric]
        text = _text(metric, difference, "difference", signed=True)
        if difference is None:
            return Mark(system, "unclear", None, text)
        ends = (difference["difference"], difference["low"], difference["high"])
        return Mark(system, judgement(metric, difference), ends, text)

    others = [system for system in systems if system != "tuned"]
    return _pictures("tuned minus each other system", lambda metric: [mark(metric, system) for system in others])


def _pictures(what: str, marks: Callable[[str], list[Mark]]) -> list[Picture]:
    return [
        Picture(METRICS[m].label, BETTER[METRICS[m].better], interval_picture(marks(m), f"{METRICS[m].label}: {what}"))
        for m in _PICTURED
    ]


def _text(metric: str, value: dict[str, Any] | None, key: str, signed: bool = False) -> str:
    return figure(metric, value[key] if value else None, signed)


def similarity_pictures(answers: pd.DataFrame) -> list[Picture]:
    """Scores by the likeness of a question to its nearest training question, in bins of about equally many rows.

    Each point is the score on the rows of its bin, with the 95 % interval of the bootstrap over clusters.
    """
    known = answers.dropna(subset="nearest_train_similarity")
    similarity = known["nearest_train_similarity"].to_numpy(float)
    edges = np.quantile(similarity, np.linspace(0, 1, _BINS + 1)[1:-1]) if len(known) else []
    known = known.assign(bin=np.searchsorted(np.unique(edges), similarity, side="right"))
    points: dict[tuple[str, str], list[tuple[float, float, float, float]]] = {}
    for system in ("base", "nearest", "tuned"):
        for _, rows in known[known["system"] == system].groupby("bin"):
            if rows["cluster_id"].nunique() < 2:
                continue  # no interval can be told
            scores = intervals(rows, rows["cluster_id"].tolist())
            at = float(rows["nearest_train_similarity"].mean())
            for metric in _BY_SIMILARITY:
                if (score := scores[metric]) is not None:
                    points.setdefault((metric, system), []).append((at, score.score, score.low, score.high))
    pictures = []
    for metric in _BY_SIMILARITY:
        lines = [Line(system, *map(list, zip(*at, strict=True))) for (m, system), at in points.items() if m == metric]
        about = f"{METRICS[metric].label} by similarity to the nearest training question"
        if lines:
            svg = lines_picture(lines, "cosine to the nearest training question", about)
            pictures.append(Picture(METRICS[metric].label, BETTER[METRICS[metric].better], svg))
    return pictures


def by_intent(answers: pd.DataFrame) -> pd.DataFrame:
    """A row for each intent and system: ``intent``, ``system``, ``rows``, ``right_intent`` (percent) and ``rougeL``."""
    groups = answers.groupby(["intent", "system"], sort=True)
    means = groups[["right_intent", "rougeL"]].mean().assign(rows=groups.size())
    return means.assign(right_intent=100 * means["right_intent"]).reset_index()


def heat_map(intents: pd.DataFrame, systems: Sequence[str]) -> list[dict[str, Any]]:
    """Rows of the heat map, the tuned model's weakest intents first: intent, rows, and ``cells``, lists by metric.

    A cell is its value and how warm it is, 0 to 100 of what the whole map reaches.
    """
    by_cell = {(row["intent"], row["system"]): row for row in intents.to_dict("records")}
    tops = {"right_intent": 100.0, "rougeL": float(intents["rougeL"].max())}

    def cells(metric: str, intent: str) -> list[tuple[float, float]]:
        values = [by_cell[intent, system][metric] for system in systems]
        return [(value, 100 * value / (tops[metric] or 1)) for value in values]

    tuned = intents[intents["system"] == "tuned"].sort_values(["right_intent", "rougeL", "intent"])
    return [
        {"intent": intent, "rows": rows, "cells": {metric: cells(metric, intent) for metric in tops}}
        for intent, rows in zip(tuned["intent"].tolist(), tuned["rows"].tolist(), strict=True)
    ]


def best_systems(facts: dict[str, Any]) -> dict[str, set[str]]:
    """Who has the best score, by metric; nobody where no side is better or only one system has a score."""
    best: dict[str, set[str]] = {}
    for name, metric in METRICS.items():
        scores = {system: values[name]["score"] for system, values in facts["scores"].items() if values[name]}
        if metric.better == "none" or len(scores) < 2:
            best[name] = set()
        else:
            top = (max if metric.better == "higher" else min)(scores.values())
            best[name] = {system for system, score in scores.items() if score == top}
    return best


def training_facts(recipe: Recipe, adapter: Adapter) -> list[tuple[str, str]]:
    """What was trained, on what, how and how fast."""
    m, lora, trainer = adapter.metrics, recipe.lora, recipe.trainer
    return [
        ("Base model", adapter.manifest["base"]["name"]),
        ("Quantisation", recipe.quantization),
        ("Method", recipe.method + (f", r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout:g}" if lora else "")),
        ("Trainable parameters", f"{m['trainable_parameters']:,}"),
        ("Rows trained on", f"{m['rows']:,}"),
        ("Rows left out as too long", f"{m['rows_too_long']:,}"),
        *_found_texts(recipe, m),
        ("Optimizer steps", f"{m['steps']:,} of {trainer.per_device_train_batch_size} × {trainer.gradient_accumulation_steps} rows"),
        ("Learning rate", f"{trainer.learning_rate:g}, {trainer.lr_scheduler_type}"),
        ("Intent in the prompt", "yes" if recipe.prompt.route == "intent" else "no"),
        ("Placeholders", recipe.placeholders.value),
        ("Validation loss before", f"{m['validation_loss_before']:.4f} nats per token"),
        ("Validation loss after", f"{m['validation_loss_after']:.4f} nats per token"),
        ("Time", f"{m['seconds']:,.0f} s"),
        ("Throughput", f"{m['tokens_per_second']:,.0f} tokens per second"),
        ("Tokens that are text, not padding", f"{100 * m['real_token_share']:.1f} %"),
        ("Peak memory", f"{m['peak_memory_gib']:.1f} GiB"),
    ]


def _found_texts(recipe: Recipe, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    if (wanted := recipe.prompt.retrieve) is None:
        return []
    found, left_out = metrics["found_texts"], metrics["found_texts_left_out"]
    return [
        ("Before each question", f"{wanted.answers} known answers, {wanted.passages} passages"),
        ("Found texts that did not fit", f"{left_out:,} of {found:,}"),
        ("Rows that retell the known answer", f"{metrics['rows_retold']:,}"),
    ]


def versions(recipe: Recipe, facts: dict[str, Any], adapter: Adapter) -> list[tuple[str, str]]:
    """Hashes, fingerprints and versions that lead back to what was judged; whole, for the page to shorten."""
    manifest = adapter.manifest
    known = {
        "Evaluation, fingerprint": facts["fingerprint"],
        "Adapter, fingerprint": adapter.fingerprint,
        "Recipe, fingerprint": recipe.fingerprint,
        "Base model, content": manifest["base"]["sha256"],
        "Base model, revision": manifest["base"]["revision"],
        **{f"{name}, sha256": sha for name, sha in sorted((manifest["data"] | facts["data"]).items())},
        "Code, git commit": manifest["git_commit"],
        "Champion judged beside it, version": facts["champion_version"],
        **{f"{name}, version": version for name, version in sorted(manifest["libraries"].items())},
    }
    return [(name, NONE if value is None else str(value)) for name, value in known.items()]


def examples(answers: pd.DataFrame) -> list[ShownExample]:
    """``EXAMPLES`` test questions, all where there are fewer: drawn by the hash of their row, then the worst.

    The worst are the ``WORST`` with the lowest chrF of the tuned model's answer, the lowest of all last.
    """
    tuned = answers[answers["system"] == "tuned"]
    tuned = tuned.assign(draw=[digest(row) for row in tuned["row_id"]]).sort_values("draw")
    worst = tuned.sort_values("chrf", kind="stable")["row_id"].head(WORST).tolist()
    drawn = [row for row in tuned["row_id"] if row not in worst][: EXAMPLES - len(worst)]
    chosen = [*drawn, *reversed(worst)]
    rows = answers[answers["row_id"].isin(chosen)].to_dict("records")
    return [_example([row for row in rows if row["row_id"] == name], name in worst) for name in chosen]


def _example(rows: list[dict[Any, Any]], worst: bool) -> ShownExample:
    by_system = {row["system"]: row for row in rows}
    shown = [
        ShownAnswer(s, row["answer"], row["chrf"], row["rougeL"], row["right_intent"] == 1, row["stopped"] != 0)
        for s in _SIDE_BY_SIDE
        if (row := by_system.get(s)) is not None
    ]
    tuned = by_system["tuned"]
    similarity = tuned["nearest_train_similarity"]
    known = None if pd.isna(similarity) else float(similarity)
    return ShownExample(tuned["row_id"], tuned["intent"], known, worst, tuned["question"], tuned["reference"], shown)


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
        found[model] = cost(GenerationRun(**run), facts["runs"][model]["alone"], weights, price_per_hour)
    return found
