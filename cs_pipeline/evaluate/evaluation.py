"""Base, tuned, champion and the cheap baselines on the same frozen test rows."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_folder, digest, file_sha256
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.evaluate.comparison import compare, compare_held_out
from cs_pipeline.evaluate.judge.endpoint import endpoint_from_environment
from cs_pipeline.evaluate.judge.judge import judge_models
from cs_pipeline.evaluate.results import (
    KNOWN_ANSWER,
    WITHOUT_RETRIEVAL,
    DataVersions,
    EvaluationResults,
    TimedRun,
    evaluation_file,
    evaluation_folder,
    evaluations_lock,
    read_evaluation,
    write_evaluation,
)
from cs_pipeline.evaluate.retrieval_effect import RetrievalEffect, measure_retrieval_effect, retrieval_results
from cs_pipeline.evaluate.robustness.robustness import robustness_by_group
from cs_pipeline.evaluate.robustness.trials import Trials, run_trials
from cs_pipeline.evaluate.scoring.answer_errors import ANSWER_ERRORS
from cs_pipeline.evaluate.scoring.baselines import central_answers, naive_scores, nearest_answers, random_answers
from cs_pipeline.evaluate.scoring.cost import weights_bytes
from cs_pipeline.evaluate.scoring.metrics import corpus_scores
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, answer_test_set
from cs_pipeline.evaluate.slices import near_train_rows, slice_scores, weaknesses, write_weak_intents
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.retrieval.index import index_version
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import Adapter, base_of_adapter, current_adapter

REFERENCE_FREE_METRICS = ("fabricates", "rubric", "heuristic", *(f"error_{name}" for name in ANSWER_ERRORS))
"""Metrics that need no reference. Computed on the references themselves, they show how often each rule raises a false
alarm."""


@dataclass(frozen=True)
class Evaluation:
    """The results, and whether they are those of an earlier evaluation with the same input."""

    results: EvaluationResults
    reused: bool


def evaluate(recipe: Recipe, lake: DataLake, champion: Version | None, report: Callable[[str], None]) -> Evaluation:
    """Evaluates the recipe's adapter on every test row, or returns earlier results for the same input.

    ``champion`` is evaluated too, unless it is the same adapter. Raises PipelineError when the adapter or its base is
    missing or was changed, and when a configured judge (``CS_JUDGE_URL``) does not answer.
    """
    adapter = current_adapter(recipe.name, lake)
    if champion is not None and champion.fingerprint == adapter.fingerprint:
        champion = None
    base = base_of_adapter(adapter, recipe, lake)
    data = {name: file_sha256(lake.table("prepare", name)) for name in ("train_split", "test_split")}
    models = _models(recipe, adapter, base, champion)
    if any(model[0].prompt.retrieve is not None for model in models.values()):
        data["retrieval_index"] = index_version(lake)
    endpoint = endpoint_from_environment()
    judge = endpoint and (endpoint.url, endpoint.model)
    key = digest(
        adapter.fingerprint,
        data,
        champion and champion.fingerprint,
        recipe.fingerprint,
        judge,
        CODE_VERSIONS["evaluation"],
    )
    folder = evaluation_folder(recipe.name, lake)
    if (known := _earlier_results(recipe.name, lake, key)) is not None:
        report(f"Equal input was evaluated before: {folder}")
        return Evaluation(known, reused=True)
    if endpoint is not None:  # fail before the work if the judge does not answer
        with endpoint.client() as client:
            endpoint.ask(client, [{"role": "user", "content": "Reply with the word TIE."}])
    rows = FrozenTestSet(recipe, lake)
    stats, seconds, all_trials = {}, {}, {}
    retrieval: RetrievalEffect | None = None
    for system, model in models.items():
        started = time.monotonic()
        stats[system], all_trials[system], effect = _evaluate_model(system, *model, rows, lake, report)
        seconds[system] = time.monotonic() - started
        if effect is not None:
            retrieval = effect
            stats[WITHOUT_RETRIEVAL], seconds[WITHOUT_RETRIEVAL] = effect.without, effect.seconds
    for system, answers in _baselines(rows, retrieval).items():
        started = time.monotonic()
        stats[system] = rows.score(answers())
        seconds[system] = time.monotonic() - started
    test, tuned = rows.test, stats["tuned"]
    near = near_train_rows(rows.questions, rows.train["instruction"].tolist())
    weak = weaknesses(test, tuned, near, rows.train["intent"].tolist())
    references = rows.score_without_references(rows.references).assign(rows=1)
    verdicts, judged_pairs = None, None
    if endpoint is not None:
        by_model = {system: stats[system]["answer"].tolist() for system in models}
        verdicts, judged_pairs = judge_models(endpoint, rows, by_model, lake, report)
    results = EvaluationResults(
        fingerprint=key,
        code_version=CODE_VERSIONS["evaluation"],
        recipe=recipe.name,
        adapter_fingerprint=adapter.fingerprint,
        base=adapter.manifest["base"],
        champion_version=champion and champion.version,
        placeholders={system: model[0].placeholders for system, model in models.items()},
        data=DataVersions(**data),
        rows=len(test),
        clusters=test["cluster_id"].nunique(),
        answer_classifier_accuracy=rows.answer_classifier_accuracy,
        **dict(compare(test, stats)),
        held_out=compare_held_out(test, stats, recipe.held_out_intents),
        references=corpus_scores(references, REFERENCE_FREE_METRICS),
        weak=weak,
        naive=naive_scores(pd.concat([rows.train, test], ignore_index=True)),
        robustness={s: robustness_by_group(trials.robustness).to_dict("records") for s, trials in all_trials.items()},
        retrieval=retrieval and retrieval_results(test, stats, retrieval),
        probe={system: trials.probe["right"].tolist() for system, trials in all_trials.items()},
        runs={s: TimedRun(**asdict(trials.run), alone=trials.latencies) for s, trials in all_trials.items()},
        adapter_bytes=weights_bytes(adapter.folder),
        judge=verdicts,
        seconds=seconds,
    )
    about = test[["row_id", "source", "cluster_id", "intent", "category", "flags", "nearest_train_similarity"]].assign(
        near_train_rows=near, question=rows.questions_with_context, reference=rows.references
    )
    long = pd.concat([about.assign(system=s, **frame) for s, frame in stats.items()])
    categories = dict(zip(rows.train["intent"], rows.train["category"], strict=True))
    with evaluations_lock(lake), atomic_folder(folder) as temporary:
        _write(long, temporary / "answers.parquet")
        _write(about.assign(**references), temporary / "references.parquet")
        for name in ("robustness", "probe"):
            frames = [getattr(trials, name).assign(system=system) for system, trials in all_trials.items()]
            pd.concat(frames).to_parquet(temporary / f"{name}.parquet", index=False)
        if retrieval is not None:
            retrieval.misled.to_parquet(temporary / "misled.parquet", index=False)
            grounded = [frame.assign(row_id=test["row_id"], system=system) for system, frame in retrieval.rows.items()]
            pd.concat(grounded).to_parquet(temporary / "grounding.parquet", index=False)
        if judged_pairs is not None:
            judged_pairs.to_parquet(temporary / "judge.parquet", index=False)
        pq.write_table(slice_scores(test, stats), temporary / "slices.parquet")
        write_weak_intents(temporary / "weak_intents.csv", weak, categories)
        write_evaluation(results, temporary / evaluation_file(recipe.name, lake).name)
    return Evaluation(results, reused=False)


def _earlier_results(recipe_name: str, lake: DataLake, fingerprint: str) -> EvaluationResults | None:
    try:
        results = read_evaluation(recipe_name, lake)
    except PipelineError:
        return None  # there is none, or none that this release can read
    return results if results.fingerprint == fingerprint else None


def _write(rows: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    place = table.schema.get_field_index("fabricated_facts")  # if all are empty, the type is unknown
    facts = table.column(place).cast(pa.list_(pa.string()))
    pq.write_table(table.set_column(place, "fabricated_facts", facts), path)


_Model: TypeAlias = tuple[Recipe, Path, Path | None, Path]
"""Recipe, base, adapter or None, and the folder of the classifier that predicts the intents for its prompts."""


def _models(recipe: Recipe, adapter: Adapter, base: Path, champion: Version | None) -> dict[str, _Model]:
    classifier = adapter.folder / "intent_classifier"
    models: dict[str, _Model] = {
        "tuned": (recipe, base, adapter.folder, classifier),
        "base": (recipe, base, None, classifier),
    }
    if champion is not None:
        folder = champion.folder / "adapter"
        trained_as = read_recipe(folder / "recipe.yaml")
        base = base_of_version(trained_as, champion.folder)
        models["champion"] = (trained_as, base, folder, folder / "intent_classifier")
    return models


def _baselines(rows: FrozenTestSet, retrieval: RetrievalEffect | None) -> dict[str, Callable[[], list[str]]]:
    known = retrieval.known if retrieval else []
    return {
        **({KNOWN_ANSWER: lambda: known} if any(known) else {}),
        "nearest": lambda: nearest_answers(rows.train, rows.questions),
        "central": lambda: central_answers(rows.train, rows.predicted_intents),
        "random": lambda: random_answers(rows.train, rows.questions),
    }


def _evaluate_model(
    system: str,
    recipe: Recipe,
    base: Path,
    adapter: Path | None,
    classifier: Path,
    rows: FrozenTestSet,
    lake: DataLake,
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, Trials, RetrievalEffect | None]:
    """Row statistics and trials, and the effect of retrieval for a tuned model whose recipe retrieves."""
    model, index = SupportModel(recipe, base, adapter), open_index(recipe, lake)
    found = retrieve(index, recipe.prompt, recipe.placeholders, rows.questions, rows.predicted_intents)
    statistics, answers, run = answer_test_set(system, model, rows, found, report)
    report(f"{system}: odd and hostile questions, general knowledge, latency")
    trials = run_trials(model, classifier, index, rows, statistics, run)
    if system != "tuned" or index is None:
        return statistics, trials, None
    return statistics, trials, measure_retrieval_effect(model, classifier, rows, found, answers, statistics, report)
