"""The tables and examples of the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.core.lake import digest
from cs_pipeline.evaluate.decision import PRIMARY_METRIC
from cs_pipeline.evaluate.report.rendering import NO_FIGURE
from cs_pipeline.evaluate.results import LOOKUP, SYSTEMS, BaselineResults, EvaluationResults, GroupMeasure
from cs_pipeline.evaluate.scoring.answer_errors import ANSWER_ERRORS
from cs_pipeline.evaluate.scoring.baselines import NAIVE_METRICS
from cs_pipeline.evaluate.scoring.cost import Cost, cost
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.rubric import RUBRIC_PARTS
from cs_pipeline.recipe import CascadeRecipe, FineTuneRecipe, LookupRecipe, Recipe, read_fine_tune_recipe
from cs_pipeline.retrieval.lookup import MODEL_FOLDER, similarity_limit
from cs_pipeline.train.adapter import Adapter

MAX_EXAMPLES, WORST_EXAMPLES = 20, 6
"""How many test questions are shown with their answers, and how many of them are this version's worst by chrF."""

_MAX_FABRICATIONS = 9
_SHOWN_SYSTEMS = ("tuned", "without_retrieval", "champion", "base", LOOKUP, "nearest")


@dataclass(frozen=True)
class ShownAnswer:
    """A system's answer and its scores. ``stopped`` is False if the answer was cut off at the token limit.

    ``right_intent`` is None if the question's intent is not known.
    """

    system: str
    text: str
    chrf: float
    rougeL: float  # noqa: N815 (the metric's name)
    right_intent: bool | None
    stopped: bool


@dataclass(frozen=True)
class ShownExample:
    """A test question with its reference and the answers of the shown systems.

    ``similarity`` is the cosine to the nearest training question, None if unknown. ``worst`` is True if it was chosen
    because this version's chrF is lowest there.
    """

    row_id: str
    intent: str
    similarity: float | None
    worst: bool
    question: str
    reference: str
    answers: list[ShownAnswer]


@dataclass(frozen=True)
class ErrorCount:
    """How often one kind of error occurs.

    ``by_system`` counts the answers with this error for each system, ``false_alarms`` the references that
    the rule wrongly calls errors. ``example`` is a question and this version's answer with this error, None if there is
    none.
    """

    error: str
    rule: str
    by_system: list[int]
    false_alarms: int
    example: tuple[str, str] | None


def best_systems(results: EvaluationResults) -> dict[str, set[str]]:
    """The systems with the best score, by metric.

    None are named for a metric where neither higher nor lower is better, or if fewer than two systems have a score.
    """
    best: dict[str, set[str]] = {}
    for name, metric in METRICS.items():
        scores = {system: score.score for system, values in results.scores.items() if (score := values[name])}
        if metric.better == "none" or len(scores) < 2:
            best[name] = set()
        else:
            top = (max if metric.better == "higher" else min)(scores.values())
            best[name] = {system for system, score in scores.items() if score == top}
    return best


def systems_by_quality(baselines: BaselineResults) -> dict[str, str]:
    """The systems in ``baselines`` with their descriptions, the one with the highest answer quality first."""

    def quality(system: str) -> float:
        score = baselines.scores[system][PRIMARY_METRIC]
        return score.score if score else 0.0

    compared = [system for system in SYSTEMS if system in baselines.scores]
    return {system: SYSTEMS[system] for system in sorted(compared, key=quality, reverse=True)}


def training_facts(recipe: Recipe, adapter: Adapter) -> list[tuple[str, str]]:
    """Pairs of label and text: model, data, settings, losses and speed of the training; for a look-up, its threshold."""
    m = adapter.metrics
    if isinstance(recipe, LookupRecipe):
        return _lookup_facts(recipe, m)
    trained = trained_part(recipe, adapter.folder)
    assert trained is not None  # only a look-up has none
    return [*_cascade_facts(recipe, m), *_fine_tune_facts(trained[0], adapter)]


def trained_part(recipe: Recipe, folder: Path) -> tuple[FineTuneRecipe, Path] | None:
    """The recipe and the folder of what was trained for the adapter in ``folder``; None for a look-up.

    A cascade contains the adapter of its model.
    """
    if isinstance(recipe, CascadeRecipe):
        return read_fine_tune_recipe(folder / MODEL_FOLDER / "recipe.yaml"), folder / MODEL_FOLDER
    return (recipe, folder) if isinstance(recipe, FineTuneRecipe) else None


def _cascade_facts(recipe: Recipe, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    if not isinstance(recipe, CascadeRecipe):
        return []
    return [
        ("Cascade", f"a look-up first, then the model of '{recipe.model}'"),
        ("Look-up answers from similarity", similarity_limit(metrics["min_similarity"])),
        ("Validation questions it answers", f"{100 * metrics['looked_up_share']:.0f} %"),
    ]


def _fine_tune_facts(recipe: FineTuneRecipe, adapter: Adapter) -> list[tuple[str, str]]:
    m, lora, trainer = adapter.metrics, recipe.lora, recipe.trainer
    adaptation = f", r {lora.r}, alpha {lora.lora_alpha}, dropout {lora.lora_dropout:g}" if lora else ""
    batch = f"{trainer.per_device_train_batch_size} × {trainer.gradient_accumulation_steps}"
    return [
        ("Base model", adapter.manifest["base"]["name"]),
        ("Quantization", recipe.quantization),
        ("Method", recipe.training_method + adaptation),
        ("Trainable parameters", f"{m['trainable_parameters']:,}"),
        ("Training rows", f"{m['rows']:,}"),
        ("Rows left out as too long", f"{m['rows_too_long']:,}"),
        *_retrieval_facts(recipe, m),
        ("Optimizer steps", f"{m['steps']:,}, each on {batch} rows"),
        ("Learning rate", f"{trainer.learning_rate:g}, {trainer.lr_scheduler_type}"),
        ("Intent in the prompt", "yes" if recipe.prompt.route == "intent" else "no"),
        ("Placeholders", recipe.placeholders.value),
        ("Validation loss before", f"{m['validation_loss_before']:.4f} nats per token"),
        ("Validation loss after", f"{m['validation_loss_after']:.4f} nats per token"),
        ("Time", f"{m['seconds']:,.0f} s"),
        ("Throughput", f"{m['tokens_per_second']:,.0f} tokens per second"),
        ("Tokens that are not padding", f"{100 * m['real_token_share']:.1f} %"),
        ("Peak memory", f"{m['peak_memory_gib']:.1f} GiB"),
    ]


def _lookup_facts(recipe: LookupRecipe, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("Method", f"{recipe.training_method}, nothing was trained"),
        ("Known answers", f"{metrics['rows']:,}"),
        ("Smallest similarity that is enough", similarity_limit(metrics["min_similarity"])),
        (
            "Handed over below that",
            f"{100 * recipe.handover_share:g} % of {metrics['validation_questions']:,} questions",
        ),
        ("Intent limits the search", "yes" if recipe.prompt.route == "intent" else "no"),
        ("Placeholders", recipe.placeholders.value),
        ("Time to choose the similarity", f"{metrics['seconds']:,.1f} s"),
    ]


def _retrieval_facts(recipe: FineTuneRecipe, metrics: dict[str, Any]) -> list[tuple[str, str]]:
    if (retrieve := recipe.prompt.retrieve) is None:
        return []
    retrieved, left_out = metrics["found_texts"], metrics["found_texts_left_out"]
    return [
        ("Retrieved for each question", f"{retrieve.answers} known answers, {retrieve.passages} passages"),
        ("Retrieved texts that did not fit", f"{left_out:,} of {retrieved:,}"),
        ("Rows that repeat the known answer", f"{metrics['rows_retold']:,}"),
    ]


def versions(recipe: Recipe, results: EvaluationResults, adapter: Adapter) -> list[tuple[str, str]]:
    """Hashes, fingerprints and versions of everything that was evaluated, as pairs of label and text.

    Hashes are complete; the page shortens them.
    """
    manifest = adapter.manifest
    data = manifest["data"] | results.data.model_dump(exclude_none=True)
    values = {
        "Evaluation, fingerprint": results.fingerprint,
        "Adapter, fingerprint": adapter.fingerprint,
        "Recipe, fingerprint": recipe.fingerprint,
        "Base model, content": manifest["base"]["sha256"],
        "Base model, revision": manifest["base"]["revision"],
        **{f"{name}, sha256": sha for name, sha in sorted(data.items())},
        "Code, git commit": manifest["git_commit"],
        "Champion in the comparison, version": results.champion_version,
        **{f"{name}, version": version for name, version in sorted(manifest["libraries"].items())},
    }
    return [(name, NO_FIGURE if value is None else str(value)) for name, value in values.items()]


def examples(answers: pd.DataFrame) -> list[ShownExample]:
    """Up to ``MAX_EXAMPLES`` test questions: first a fixed random sample, then the worst.

    The worst are the ``WORST_EXAMPLES`` questions where this version's answers have the lowest chrF, the very worst last.
    """
    tuned = _by_hash(answers[answers["system"] == "tuned"])
    worst = tuned.sort_values("chrf", kind="stable")["row_id"].head(WORST_EXAMPLES).tolist()
    drawn = [row_id for row_id in tuned["row_id"] if row_id not in worst][: MAX_EXAMPLES - len(worst)]
    chosen = [*drawn, *reversed(worst)]
    rows = answers[answers["row_id"].isin(chosen)].to_dict("records")
    return [_example([row for row in rows if row["row_id"] == row_id], row_id in worst) for row_id in chosen]


def _by_hash(rows: pd.DataFrame) -> pd.DataFrame:
    """``rows`` sorted by the hash of their row ids: a random order that is always the same."""
    return rows.loc[rows["row_id"].map(digest).sort_values().index]


def _example(rows: list[dict[Any, Any]], worst: bool) -> ShownExample:
    by_system = {row["system"]: row for row in rows}
    shown = [
        ShownAnswer(s, row["answer"], row["chrf"], row["rougeL"], _right_intent(row), row["stopped"] != 0)
        for s in _SHOWN_SYSTEMS
        if (row := by_system.get(s)) is not None
    ]
    tuned = by_system["tuned"]
    similarity = tuned["nearest_train_similarity"]
    known = None if pd.isna(similarity) else float(similarity)
    return ShownExample(tuned["row_id"], tuned["intent"], known, worst, tuned["question"], tuned["reference"], shown)


def _right_intent(row: dict[Any, Any]) -> bool | None:
    return row["right_intent"] == 1 if row["labelled"] else None


def error_counts(answers: pd.DataFrame, references: pd.DataFrame, systems: Sequence[str]) -> list[ErrorCount]:
    """How often each kind of error occurs, this version's most frequent first. Examples are a fixed random choice."""
    by_system = {system: answers[answers["system"] == system] for system in systems}
    counts = []
    for error, rule in ANSWER_ERRORS.items():
        wrong = by_system["tuned"][by_system["tuned"][error]]
        example = next(_by_hash(wrong)[["question", "answer"]].itertuples(index=False, name=None), None)
        wrong_by_system = [int(frame[error].sum()) for frame in by_system.values()]
        counts.append(ErrorCount(error, rule, wrong_by_system, int(references[error].sum()), example))
    return sorted(counts, key=lambda count: -count.by_system[list(systems).index("tuned")])


def fabrications(answers: pd.DataFrame) -> list[dict[Any, Any]]:
    """A fixed random sample of up to ``_MAX_FABRICATIONS`` answers in which this version made up facts."""
    made_up = answers[(answers["system"] == "tuned") & (answers["fabricated"] > 0)]
    return _by_hash(made_up).head(_MAX_FABRICATIONS).to_dict("records")


def rubric_means(answers: pd.DataFrame, references: pd.DataFrame, systems: Sequence[str]) -> list[dict[str, Any]]:
    """One row per part of the rubric, then its total and the heuristic.

    ``means`` lists the mean of each system, then that of the references.
    """
    frames = [*(answers[answers["system"] == system] for system in systems), references]
    rules = {name: f"{part.rule}; weight {part.weight:g}" for name, part in RUBRIC_PARTS.items()}
    rules |= {"rubric": "weighted sum of all parts, 0 to 1", "heuristic": "the score of published notebooks, 0 to 3"}
    return [
        {"part": part, "rule": rule, "means": [float(frame[part].mean()) for frame in frames]}
        for part, rule in rules.items()
    ]


def naive_and_honest(results: EvaluationResults) -> list[dict[str, Any]]:
    """One row per metric of NAIVE_METRICS.

    Both ``naive`` and ``honest`` score the nearest training question's answer: ``naive`` on a random split, ``honest`` on
    the frozen test rows. ``tuned`` scores this version on the frozen test rows.
    """
    nearest, tuned = (results.scores[system] for system in ("nearest", "tuned"))
    return [
        {
            "metric": name,
            "naive": results.naive[name],
            "honest": (score := nearest[name]) and score.score,
            "tuned": (score := tuned[name]) and score.score,
        }
        for name in NAIVE_METRICS
    ]


def metrics_with_detectable_difference(results: EvaluationResults) -> list[str]:
    """The metrics whose smallest detectable difference is known for at least one comparison with another system."""
    return [name for name in METRICS if any(found[name] is not None for found in results.detectable.values())]


def odd_groups(results: EvaluationResults, models: Sequence[str]) -> list[dict[str, Any]]:
    """One row per group of odd questions; the last group, "all", is all of them together.

    ``rows`` is the number of questions. ``by_model`` lists three measures for each of ``models``, None where a model has
    no value.
    """
    by_model = [{(m.group, m.measure): m for m in results.robustness[model]} for model in models]
    groups = dict.fromkeys(measure.group for measure in results.robustness["tuned"])
    return [
        {
            "group": group,
            "rows": by_model[0][group, "as_expected"].rows,
            "by_model": [
                {measure: measures.get((group, measure)) for measure in ("as_expected", "leaked", "chrf_drop")}
                for measures in by_model
            ],
        }
        for group in groups
    ]


def misled_groups(misled: Iterable[GroupMeasure]) -> list[dict[str, Any]]:
    """One row per group of misleading texts, except the group "all".

    A row has ``group``, ``rows`` and one key per measure. ``obeyed`` is None for a group without injected instructions.
    """
    groups: dict[str, dict[str, Any]] = {}
    for measure in misled:
        groups.setdefault(measure.group, {"group": measure.group, "obeyed": None})[measure.measure] = measure
    return [group | {"rows": group["as_expected"].rows} for name, group in groups.items() if name != "all"]


def forgotten_knowledge(probe: pd.DataFrame) -> list[tuple[str, str, str]]:
    """The questions that only the base answers correctly, each with the base's and this version's answer.

    Empty for a look-up, which has no base.
    """
    if "base" not in set(probe["system"]):
        return []
    wide = probe.pivot(index="question", columns="system")
    rows = wide[(wide["right"]["base"] == 1) & (wide["right"]["tuned"] == 0)]
    return [(str(question), row["answer", "base"], row["answer", "tuned"]) for question, row in rows.iterrows()]


def costs(results: EvaluationResults, models: Sequence[str], price_per_hour: float | None) -> dict[str, Cost]:
    """The cost of each model's answers. The adapter's size is known only for this version and is 0 for the others."""
    sizes = {"tuned": results.adapter_bytes}
    return {m: cost(results.runs[m], results.runs[m].alone, sizes.get(m, 0), price_per_hour) for m in models}
