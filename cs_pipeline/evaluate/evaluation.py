"""Evaluates a version, its base, the champion and free baselines on the same frozen test rows.

In a large test set some of the rows are sealed. Only the systems that a decision can be based on answer them, and only the
differences that ``decision.py`` reads are computed from these answers.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_folder, digest, file_sha256
from cs_pipeline.core.manifest import read_manifest
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.evaluate.company import company_results
from cs_pipeline.evaluate.comparison import compare, compare_held_out
from cs_pipeline.evaluate.decision import MARGINS, PRIMARY_METRIC, of_rivals
from cs_pipeline.evaluate.judge.endpoint import endpoint_from_environment
from cs_pipeline.evaluate.judge.judge import judge_models
from cs_pipeline.evaluate.people.intent_labels import (
    NO_INTENT,
    intent_labels_hash,
    labelled_intents,
    read_intent_labels,
)
from cs_pipeline.evaluate.prompted_base import PromptedBase, evaluate_prompted_base
from cs_pipeline.evaluate.results import (
    FREE_SYSTEMS,
    LOOKUP,
    WITHOUT_RETRIEVAL,
    DataVersions,
    Differences,
    EvaluationResults,
    SealedResults,
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
from cs_pipeline.evaluate.scoring.statistics import paired_bootstrap
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, answer_test_set, sealed_rows, smallest_ids
from cs_pipeline.evaluate.slices import count_near_train_rows, slice_scores, weaknesses, write_weak_intents
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.recipe import FineTuneRecipe, Recipe, read_recipe
from cs_pipeline.retrieval.index import RetrievalIndex, index_version, retrieval_folder
from cs_pipeline.retrieval.lookup import load_contender
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.retrieval.router import NO_SUBJECT, prompt_intents, router_folder
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import Adapter, base_of_adapter, current_adapter

REFERENCE_FREE_METRICS = ("fabricates", "rubric", "heuristic", *(f"error_{name}" for name in ANSWER_ERRORS))
"""Metrics that need no reference. Computed on the references themselves, they show how often each rule raises a false
alarm."""


BASELINES_FILE = "baselines.parquet"
"""Like ``answers.parquet``, for the prompted base (PROMPTED_SYSTEMS), which answers only some of the test rows."""

SEALED_FILE = "sealed.parquet"
"""Like ``answers.parquet``, for the sealed rows. Nothing reads it but forgetting."""


_Stats: TypeAlias = Mapping[str, pd.DataFrame]
"""Row statistics by system."""


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
    labels = read_intent_labels(lake)
    if (labels_hash := intent_labels_hash(labels)) is not None:
        data["intent_labels"] = labels_hash
    endpoint = endpoint_from_environment()
    judge = endpoint and (endpoint.url, endpoint.model)
    key = digest(
        adapter.fingerprint,
        data,
        champion and champion.fingerprint,
        recipe.fingerprint,
        recipe.evaluation.model_dump(),
        judge,
        file_sha256(lake.table("prepare", "validation_split")),  # its company rows are asked too
        CODE_VERSIONS["evaluation"],
    )
    folder = evaluation_folder(recipe.name, lake)
    if (earlier := _earlier_results(recipe.name, lake, key)) is not None:
        report(f"The same input was evaluated before. The results are reused: {folder}")
        return Evaluation(earlier, reused=True)
    if endpoint is not None:  # fail early if the judge does not answer
        with endpoint.client() as client:
            endpoint.ask(client, [{"role": "user", "content": "Reply with the word TIE."}])
    given = {row: NO_SUBJECT if intent == NO_INTENT else intent for row, intent in labels.items()}
    all_rows = FrozenTestSet(recipe, lake, labels=given)
    answers = _answer_all(recipe, base, models, all_rows, lake, report)
    test, train, stats = answers.open.test, answers.open.train, answers.stats
    near = count_near_train_rows(answers.open.questions, train["instruction"].tolist())
    references = answers.open.score_without_references(answers.open.references).assign(rows=1)
    verdicts, judged_pairs = None, None
    if endpoint is not None:
        verdicts, judged_pairs = judge_models(
            endpoint, answers.open, _judged_answers([*models, LOOKUP], answers), lake, report
        )
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
        rows_left_out=answers.left_out,
        clusters=test["cluster_id"].nunique(),
        answer_classifier_accuracy=answers.open.answer_classifier_accuracy,
        intent_labels=labelled_intents(all_rows.test, labels),
        answers_seen=seen_share(answers.open.references, train["response"].tolist()),
        **dict(compare(test, stats)),
        sealed=_compare_sealed(answers),
        company=company_results(recipe, adapter.folder, lake, all_rows, *answers.of_all_rows),
        held_out=compare_held_out(test, stats, recipe.held_out_intents if isinstance(recipe, FineTuneRecipe) else ()),
        references=corpus_scores(references, REFERENCE_FREE_METRICS),
        weak=weaknesses(test, stats["tuned"], near, train["intent"].tolist()),
        naive=naive_scores(pd.concat([train, test], ignore_index=True)),
        robustness={
            s: robustness_by_group(trials.robustness).to_dict("records") for s, trials in answers.trials.items()
        },
        retrieval=answers.retrieval and retrieval_results(test, stats, answers.retrieval),
        baselines=answers.prompted and answers.prompted.results,
        probe={system: trials.probe["right"].tolist() for system, trials in answers.trials.items()},
        runs={s: TimedRun(**asdict(trials.run), alone=trials.latencies) for s, trials in answers.trials.items()},
        adapter_bytes=weights_bytes(adapter.folder),
        judge=verdicts,
        seconds=answers.seconds,
    )
    with evaluations_lock(lake), atomic_folder(folder) as temporary:
        _write_tables(temporary, answers, references, near)
        if judged_pairs is not None:
            judged_pairs.to_parquet(temporary / "judge.parquet", index=False)
        write_weak_intents(
            temporary / "weak_intents.csv", results.weak, dict(zip(train["intent"], train["category"], strict=True))
        )
        write_evaluation(results, temporary / evaluation_file(recipe.name, lake).name)
    return Evaluation(results, reused=False)


@dataclass(frozen=True)
class _AllAnswers:
    """What all systems answered: row statistics by system, on the open and on the sealed rows, and the trials of the models.

    ``sealed`` is None if no row is sealed; ``left_out`` counts the open rows that the recipe does not ask.
    """

    open: FrozenTestSet
    sealed: FrozenTestSet | None
    left_out: int
    stats: dict[str, pd.DataFrame]
    sealed_stats: dict[str, pd.DataFrame]
    seconds: dict[str, float]
    trials: dict[str, Trials]
    retrieval: RetrievalEffect | None
    prompted: PromptedBase | None

    @property
    def of_all_rows(self) -> tuple[pd.DataFrame, _Stats]:
        """The sealed rows and the open ones, and the row statistics of the systems that answered both."""
        if self.sealed is None:
            return self.open.test, self.stats
        test = pd.concat([self.sealed.test, self.open.test], ignore_index=True)
        stats = self.sealed_stats
        return test, {s: pd.concat([frame, self.stats[s]], ignore_index=True) for s, frame in stats.items()}


def _answer_all(
    recipe: Recipe,
    base: Path | None,
    models: Mapping[str, "_Model"],
    all_rows: FrozenTestSet,
    lake: DataLake,
    report: Callable[[str], None],
) -> _AllAnswers:
    """Lets the models, the baselines and the prompted base answer the test rows."""
    opened, sealed, left_out = _parts(all_rows)
    stats, sealed_stats, seconds, trials = {}, {}, {}, {}
    retrieval: RetrievalEffect | None = None
    for system, model in models.items():
        started = time.monotonic()
        stats[system], trials[system], effect, on_sealed = _evaluate_model(system, *model, opened, sealed, lake, report)
        seconds[system] = time.monotonic() - started
        if on_sealed is not None:
            sealed_stats[system] = on_sealed
        if effect is not None:
            retrieval = effect
            stats[WITHOUT_RETRIEVAL], seconds[WITHOUT_RETRIEVAL] = effect.without, effect.seconds
    index = RetrievalIndex.load(retrieval_folder(lake))
    for system, answers in _baselines(opened, index).items():
        started = time.monotonic()
        copied = answers()
        # Like a fact that a model takes from its prompt, one that is copied from a known answer is not made up.
        stats[system] = opened.score(copied, as_sources(copied) if system in FREE_SYSTEMS else None)
        seconds[system] = time.monotonic() - started
    if sealed is not None:
        for system in FREE_SYSTEMS:
            copied = _baselines(sealed, index)[system]()
            sealed_stats[system] = sealed.score(copied, as_sources(copied))
    prompted = evaluate_prompted_base(recipe, base, opened, stats, index, report)
    return _AllAnswers(opened, sealed, left_out, stats, sealed_stats, seconds, trials, retrieval, prompted)


def _parts(all_rows: FrozenTestSet) -> tuple[FrozenTestSet, FrozenTestSet | None, int]:
    """The open rows to ask, the sealed rows (None if there are none), and how many open rows the recipe leaves out."""
    sealed = sealed_rows(all_rows.test["cluster_id"].tolist())
    opened, limit = all_rows.part(~sealed), all_rows.settings.test_rows
    if limit is not None:
        asked = opened.part(smallest_ids(opened.test["row_id"].tolist(), limit))
        return asked, None, len(opened.test) - len(asked.test)
    return opened, all_rows.part(sealed) if sealed.any() else None, 0


def _judged_answers(systems: Iterable[str], answers: _AllAnswers) -> dict[str, dict[str, str]]:
    """By system and row id, the answers that a judge compares: of ``systems``, and of the strongest prompted base."""
    compared = {system: answers.stats[system] for system in systems}
    if answers.prompted is not None:
        strongest = answers.prompted.results.strongest
        compared[strongest] = answers.prompted.stats[strongest]
    return {s: dict(zip(frame["row_id"], frame["answer"], strict=True)) for s, frame in compared.items()}


def _write_tables(folder: Path, answers: _AllAnswers, references: pd.DataFrame, near: np.ndarray) -> None:
    """Writes the tables behind the figures. ``near`` [rows] counts the near training questions of the open rows."""
    test = answers.open.test
    row_columns = _row_columns(answers.open, near)
    _write_answers(_of_all_systems(row_columns, answers.stats), folder / "answers.parquet")
    if answers.sealed is not None:
        near_sealed = count_near_train_rows(answers.sealed.questions, answers.open.train["instruction"].tolist())
        sealed_answers = _of_all_systems(_row_columns(answers.sealed, near_sealed), answers.sealed_stats)
        _write_answers(sealed_answers, folder / SEALED_FILE)
    _write_answers(row_columns.assign(**references), folder / "references.parquet")
    for name in ("robustness", "probe"):
        frames = [getattr(trials, name).assign(system=system) for system, trials in answers.trials.items()]
        pd.concat(frames).to_parquet(folder / f"{name}.parquet", index=False)
    if answers.retrieval is not None:
        answers.retrieval.misled.to_parquet(folder / "misled.parquet", index=False)
        grounded = [rows.assign(row_id=test["row_id"], system=s) for s, rows in answers.retrieval.grounding.items()]
        pd.concat(grounded).to_parquet(folder / "grounding.parquet", index=False)
    if answers.prompted is not None:
        asked = row_columns[row_columns["row_id"].isin(answers.prompted.row_ids)].reset_index(drop=True)
        _write_answers(_of_all_systems(asked, answers.prompted.stats), folder / BASELINES_FILE)
    pq.write_table(slice_scores(test, answers.stats), folder / "slices.parquet")


def _earlier_results(recipe_name: str, lake: DataLake, fingerprint: str) -> EvaluationResults | None:
    try:
        results = read_evaluation(recipe_name, lake)
    except PipelineError:
        return None  # there is none, or none that this release can read
    return results if results.fingerprint == fingerprint else None


def _compare_sealed(answers: _AllAnswers) -> SealedResults | None:
    if answers.sealed is None:
        return None

    def differences(clusters: pd.Series, stats: _Stats, metrics: Iterable[str]) -> dict[str, Differences]:
        return {
            system: paired_bootstrap(stats["tuned"], frame, clusters.tolist(), metrics=tuple(metrics))
            for system, frame in of_rivals(stats).items()
        }

    clusters = answers.sealed.test["cluster_id"]
    of_quality = differences(clusters, answers.sealed_stats, [PRIMARY_METRIC])
    test, both = answers.of_all_rows
    return SealedResults(
        rows=len(clusters),
        clusters=clusters.nunique(),
        differences={system: by_metric[PRIMARY_METRIC] for system, by_metric in of_quality.items()},
        with_open=differences(test["cluster_id"], both, MARGINS),
    )


def _row_columns(test_set: FrozenTestSet, near: np.ndarray) -> pd.DataFrame:
    """What the tables of answers say about each question; ``near`` [rows] counts its near training questions."""
    columns = ["row_id", "source", "cluster_id", "intent", "category", "flags", "nearest_train_similarity"]
    return test_set.test[columns].assign(
        near_train_rows=near, question=test_set.questions_with_context, reference=test_set.references
    )


def _of_all_systems(row_columns: pd.DataFrame, stats: Mapping[str, pd.DataFrame]) -> pd.DataFrame:
    return pd.concat([row_columns.assign(system=system, **frame) for system, frame in stats.items()])


def _write_answers(rows: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    column = table.schema.get_field_index("fabricated_facts")  # if all lists are empty, their type cannot be inferred
    facts = table.column(column).cast(pa.list_(pa.string()))
    pq.write_table(table.set_column(column, "fabricated_facts", facts), path)


_Model: TypeAlias = tuple[Recipe, Path | None, Path | None, Path]
"""Recipe, base (None for a look-up), adapter (None for the base alone), and the adapter folder whose router it uses."""


def _models(recipe: Recipe, adapter: Adapter, base: Path | None, champion: Version | None) -> dict[str, _Model]:
    models: dict[str, _Model] = {"tuned": (recipe, base, adapter.folder, adapter.folder)}
    if isinstance(recipe, FineTuneRecipe):
        models["base"] = (recipe, base, None, adapter.folder)
    if champion is not None:
        folder = champion.folder / "adapter"
        champion_recipe = read_recipe(folder / "recipe.yaml")
        base = base_of_version(champion_recipe, champion.folder)
        models["champion"] = (champion_recipe, base, folder, folder)
    return models


def _baselines(test_set: FrozenTestSet, index: RetrievalIndex) -> dict[str, Callable[[], list[str]]]:
    """By baseline, a function that returns its answers to the test rows."""
    asked = test_set.searched, test_set.predicted_intents
    return {
        LOOKUP: lambda: lookup_answers(index, test_set.mode, *asked, test_set.own_rows),
        "nearest": lambda: nearest_answers(test_set.train, test_set.questions, test_set.own_rows),
        "central": lambda: central_answers(test_set.train, test_set.predicted_intents, test_set.own_rows),
        "random": lambda: random_answers(test_set.train, test_set.questions),
    }


def _evaluate_model(
    system: str,
    recipe: Recipe,
    base: Path | None,
    adapter: Path | None,
    routing: Path,
    test_set: FrozenTestSet,
    sealed_set: FrozenTestSet | None,
    lake: DataLake,
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, Trials, RetrievalEffect | None, pd.DataFrame | None]:
    """Row statistics, trials and, for the evaluated version if its model retrieves, the effect of retrieval.

    The last item holds the row statistics of the sealed rows. It is None if there are none, and for the base, because
    no decision depends on it.
    """
    model, index = load_contender(recipe, base, adapter), open_index(recipe, lake)
    intents = prompt_intents(recipe, routing, router_folder(lake))

    def texts(rows: FrozenTestSet) -> list[list[RetrievedText]]:
        asked = rows.searched, rows.predicted_intents
        return retrieve(index, recipe.prompt, recipe.placeholders, *asked, own_rows=rows.own_rows)

    test_set = test_set.routed_by(intents)
    retrieved, sealed_stats = texts(test_set), None
    stats, answers, run = answer_test_set(system, model, test_set, retrieved, report)
    if sealed_set is not None and system != "base":
        label, sealed_set = f"{system}, sealed questions", sealed_set.routed_by(intents)
        sealed_stats, _, _ = answer_test_set(label, model, sealed_set, texts(sealed_set), report)
    report(f"{system}: odd and hostile questions, general knowledge, latency")
    trials = run_trials(model, intents, index, test_set, stats, run)
    if system != "tuned" or index is None or not isinstance(model, SupportModel):
        return stats, trials, None, sealed_stats
    effect = measure_retrieval_effect(model, intents, test_set, retrieved, answers, stats, report)
    return stats, trials, effect, sealed_stats
