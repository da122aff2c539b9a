"""Evaluates the base, the tuned model, the champion and free baselines on the same frozen test rows."""

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
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.evaluate.comparison import compare, compare_held_out
from cs_pipeline.evaluate.judge.endpoint import endpoint_from_environment
from cs_pipeline.evaluate.judge.judge import judge_models
from cs_pipeline.evaluate.results import (
    FREE_SYSTEMS,
    LOOKUP,
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
from cs_pipeline.evaluate.scoring.baselines import (
    as_sources,
    central_answers,
    lookup_answers,
    naive_scores,
    nearest_answers,
    random_answers,
)
from cs_pipeline.evaluate.scoring.cost import weights_bytes
from cs_pipeline.evaluate.scoring.groundedness import seen_share
from cs_pipeline.evaluate.scoring.metrics import corpus_scores
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, answer_test_set
from cs_pipeline.evaluate.slices import count_near_train_rows, slice_scores, weaknesses, write_weak_intents
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import FineTuneRecipe, Recipe, read_recipe
from cs_pipeline.retrieval.index import RetrievalIndex, index_version, retrieval_folder
from cs_pipeline.retrieval.lookup import load_contender
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import Adapter, base_of_adapter, current_adapter

REFERENCE_FREE_METRICS = ("fabricates", "rubric", "heuristic", *(f"error_{name}" for name in ANSWER_ERRORS))
"""Metrics that need no reference. Computed on the references themselves, they show how often each rule raises a false
alarm."""


@dataclass(frozen=True)
class Evaluation:
    """The results. ``reused`` means that they come from an earlier evaluation of the same input."""

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
    data["retrieval_index"] = index_version(lake)
    endpoint = endpoint_from_environment()
    judge = endpoint and (endpoint.url, endpoint.model)
    key = digest(
        adapter.fingerprint,
        data,
        champion and champion.fingerprint,
        recipe.fingerprint,
        recipe.evaluation.model_dump(),
        judge,
        CODE_VERSIONS["evaluation"],
    )
    folder = evaluation_folder(recipe.name, lake)
    if (earlier := _earlier_results(recipe.name, lake, key)) is not None:
        report(f"The same input was evaluated before. The results are reused: {folder}")
        return Evaluation(earlier, reused=True)
    if endpoint is not None:  # fail early if the judge does not answer
        with endpoint.client() as client:
            endpoint.ask(client, [{"role": "user", "content": "Reply with the word TIE."}])
    test_set = FrozenTestSet(recipe, lake)
    stats, seconds, all_trials = {}, {}, {}
    retrieval: RetrievalEffect | None = None
    for system, model in models.items():
        started = time.monotonic()
        stats[system], all_trials[system], effect = _evaluate_model(system, *model, test_set, lake, report)
        seconds[system] = time.monotonic() - started
        if effect is not None:
            retrieval = effect
            stats[WITHOUT_RETRIEVAL], seconds[WITHOUT_RETRIEVAL] = effect.without, effect.seconds
    for system, answers in _baselines(test_set, RetrievalIndex.load(retrieval_folder(lake))).items():
        started = time.monotonic()
        copied = answers()
        # What is copied from a known answer is as little made up as what a model takes from its prompt.
        stats[system] = test_set.score(copied, as_sources(copied) if system in FREE_SYSTEMS else None)
        seconds[system] = time.monotonic() - started
    test, train = test_set.test, test_set.train
    near = count_near_train_rows(test_set.questions, train["instruction"].tolist())
    weak = weaknesses(test, stats["tuned"], near, train["intent"].tolist())
    references = test_set.score_without_references(test_set.references).assign(rows=1)
    verdicts, judged_pairs = None, None
    if endpoint is not None:
        by_model = {system: stats[system]["answer"].tolist() for system in (*models, LOOKUP)}
        verdicts, judged_pairs = judge_models(endpoint, test_set, by_model, lake, report)
    results = EvaluationResults(
        fingerprint=key,
        code_version=CODE_VERSIONS["evaluation"],
        recipe=recipe.name,
        adapter_fingerprint=adapter.fingerprint,
        base=adapter.manifest["base"],
        champion_version=champion and champion.version,
        champion_base=champion and read_manifest(champion.folder / "adapter", "model_version")["base"]["sha256"],
        methods={system: model[0].training_method for system, model in models.items()},
        placeholders={system: model[0].placeholders for system, model in models.items()},
        data=DataVersions(**data),
        rows=len(test),
        clusters=test["cluster_id"].nunique(),
        answer_classifier_accuracy=test_set.answer_classifier_accuracy,
        answers_seen=seen_share(test_set.references, train["response"].tolist()),
        **dict(compare(test, stats)),
        held_out=compare_held_out(test, stats, recipe.held_out_intents if isinstance(recipe, FineTuneRecipe) else ()),
        references=corpus_scores(references, REFERENCE_FREE_METRICS),
        weak=weak,
        naive=naive_scores(pd.concat([train, test], ignore_index=True)),
        robustness={s: robustness_by_group(trials.robustness).to_dict("records") for s, trials in all_trials.items()},
        retrieval=retrieval and retrieval_results(test, stats, retrieval),
        probe={system: trials.probe["right"].tolist() for system, trials in all_trials.items()},
        runs={s: TimedRun(**asdict(trials.run), alone=trials.latencies) for s, trials in all_trials.items()},
        adapter_bytes=weights_bytes(adapter.folder),
        judge=verdicts,
        seconds=seconds,
    )
    row_columns = test[
        ["row_id", "source", "cluster_id", "intent", "category", "flags", "nearest_train_similarity"]
    ].assign(near_train_rows=near, question=test_set.questions_with_context, reference=test_set.references)
    all_answers = pd.concat([row_columns.assign(system=s, **frame) for s, frame in stats.items()])
    categories = dict(zip(train["intent"], train["category"], strict=True))
    with evaluations_lock(lake), atomic_folder(folder) as temporary:
        _write_answers(all_answers, temporary / "answers.parquet")
        _write_answers(row_columns.assign(**references), temporary / "references.parquet")
        for name in ("robustness", "probe"):
            frames = [getattr(trials, name).assign(system=system) for system, trials in all_trials.items()]
            pd.concat(frames).to_parquet(temporary / f"{name}.parquet", index=False)
        if retrieval is not None:
            retrieval.misled.to_parquet(temporary / "misled.parquet", index=False)
            grounded = [rows.assign(row_id=test["row_id"], system=s) for s, rows in retrieval.grounding.items()]
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


def _write_answers(rows: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    column = table.schema.get_field_index("fabricated_facts")  # if all lists are empty, their type cannot be inferred
    facts = table.column(column).cast(pa.list_(pa.string()))
    pq.write_table(table.set_column(column, "fabricated_facts", facts), path)


_Model: TypeAlias = tuple[Recipe, Path | None, Path | None, Path]
"""Recipe, base (None for a look-up), adapter or None, and the folder of the classifier that predicts intents for it."""


def _models(recipe: Recipe, adapter: Adapter, base: Path | None, champion: Version | None) -> dict[str, _Model]:
    classifier = adapter.folder / "intent_classifier"
    models: dict[str, _Model] = {"tuned": (recipe, base, adapter.folder, classifier)}
    if isinstance(recipe, FineTuneRecipe):
        models["base"] = (recipe, base, None, classifier)
    if champion is not None:
        folder = champion.folder / "adapter"
        champion_recipe = read_recipe(folder / "recipe.yaml")
        base = base_of_version(champion_recipe, champion.folder)
        models["champion"] = (champion_recipe, base, folder, folder / "intent_classifier")
    return models


def _baselines(test_set: FrozenTestSet, index: RetrievalIndex) -> dict[str, Callable[[], list[str]]]:
    """By baseline, a function that returns its answers to the test rows."""
    return {
        LOOKUP: lambda: lookup_answers(index, test_set.mode, test_set.questions, test_set.predicted_intents),
        "nearest": lambda: nearest_answers(test_set.train, test_set.questions),
        "central": lambda: central_answers(test_set.train, test_set.predicted_intents),
        "random": lambda: random_answers(test_set.train, test_set.questions),
    }


def _evaluate_model(
    system: str,
    recipe: Recipe,
    base: Path | None,
    adapter: Path | None,
    classifier: Path,
    test_set: FrozenTestSet,
    lake: DataLake,
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, Trials, RetrievalEffect | None]:
    """Row statistics, trials and, for a tuned model whose recipe retrieves, the effect of retrieval."""
    model, index = load_contender(recipe, base, adapter), open_index(recipe, lake)
    retrieved = retrieve(index, recipe.prompt, recipe.placeholders, test_set.questions, test_set.predicted_intents)
    stats, answers, run = answer_test_set(system, model, test_set, retrieved, report)
    report(f"{system}: odd and hostile questions, general knowledge, latency")
    trials = run_trials(model, classifier, index, test_set, stats, run)
    if system != "tuned" or index is None or not isinstance(model, SupportModel):
        return stats, trials, None
    return stats, trials, measure_retrieval_effect(model, classifier, test_set, retrieved, answers, stats, report)
