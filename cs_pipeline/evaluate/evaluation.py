"""Base, tuned, champion and the cheap baselines on the same frozen test rows."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import (
    DataLake,
    atomic_folder,
    digest,
    file_sha256,
    locked,
    make_folder,
    read_json,
    write_json,
)
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.evaluate.comparison import compare, on_intents
from cs_pipeline.evaluate.judge.endpoint import endpoint_from_environment
from cs_pipeline.evaluate.judge.judge import hear
from cs_pipeline.evaluate.retrieval_effect import (
    KNOWN,
    WITHOUT,
    RetrievalEffect,
    measure_retrieval_effect,
    retrieval_facts,
)
from cs_pipeline.evaluate.robustness.robustness import by_group
from cs_pipeline.evaluate.robustness.trials import Trials, ask_test_rows, try_out
from cs_pipeline.evaluate.scoring.answer_errors import ERRORS
from cs_pipeline.evaluate.scoring.baselines import central_answers, naive_scores, nearest_answers, random_answers
from cs_pipeline.evaluate.scoring.cost import weights_size
from cs_pipeline.evaluate.scoring.metrics import corpus_scores
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.evaluate.slices import near_train_rows, slices, weaknesses, write_weak_intents
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.retrieval.index import index_version
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import Adapter, base_of, current_adapter

WITHOUT_REFERENCE = ("fabricates", "rubric", "heuristic", *(f"error_{name}" for name in ERRORS))
"""Metrics that need no reference, so that the references themselves can be judged: how often each rule is wrong there."""

SYSTEMS = {
    "tuned": "tuned",
    "base": "its base, asked the same way",
    "champion": "current champion",
    "without_retrieval": "the tuned model without found texts",
    "known_answer": "the known answer that the tuned model was told, as it stands",
    "nearest": "answer of the nearest training question",
    "central": "most central answer of the predicted intent",
    "random": "a random training answer",
}
"""Who is judged, and how the report calls them. ``champion`` is there only when another version holds the alias."""


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluation.json`` holds, and whether equal input had been evaluated before."""

    facts: dict[str, Any]
    reused: bool


def evaluation_folder(recipe_name: str, lake: DataLake) -> Path:
    """Holds ``answers.parquet`` (a row per test row and system), ``references.parquet`` (the references looked at alike),
    ``slices.parquet`` (every score on parts of the rows), ``robustness.parquet`` and ``probe.parquet`` (other questions, a
    row a system and question), ``misled.parquet`` (misleading texts) and ``grounding.parquet`` (how much comes from the
    found texts) where the recipe retrieves, ``judge.parquet`` where one was asked, ``weak_intents.csv`` and
    ``evaluation.json``."""
    return lake.path("evaluate", "evaluation", recipe_name)


def read_evaluation(recipe_name: str, lake: DataLake) -> dict[str, Any]:
    """The facts of the recipe's last evaluation. Raises PipelineError where there is none."""
    path = evaluation_folder(recipe_name, lake) / "evaluation.json"
    if not path.exists():
        raise PipelineError(f"{path} is not there.", f"Materialise 'evaluation' for the partition '{recipe_name}'.")
    facts: dict[str, Any] = read_json(path)
    return facts


def settled(lake: DataLake) -> AbstractContextManager[None]:
    """No run replaces an evaluation meanwhile, and none writes what is made of all of them."""
    make_folder(lake.path("evaluate"))
    return locked(lake.path("evaluate", ".evaluations.lock"))


def evaluate(recipe: Recipe, lake: DataLake, champion: Version | None, report: Callable[[str], None]) -> Evaluation:
    """Judges the recipe's adapter on every test row, or returns what equal input has given before.

    ``champion`` is judged beside it unless it is that very adapter. Raises PipelineError when the adapter or its base
    is not there or was changed, and when a judge is configured (``CS_JUDGE_URL``) that does not answer.
    """
    adapter = current_adapter(recipe.name, lake)
    if champion is not None and champion.fingerprint == adapter.fingerprint:
        champion = None
    base = base_of(adapter, recipe, lake)
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
    if (folder / "evaluation.json").exists() and read_evaluation(recipe.name, lake)["fingerprint"] == key:
        report(f"Equal input has been evaluated already: {folder}")
        return Evaluation(read_evaluation(recipe.name, lake), reused=True)
    if endpoint is not None:
        endpoint.ask(
            [{"role": "user", "content": "Reply with the word TIE."}]
        )  # one that is away is known before the work
    rows = FrozenTestSet(recipe, lake)
    stats, seconds, tried = {}, {}, {}
    retrieval: RetrievalEffect | None = None
    for system, model in models.items():
        started = time.monotonic()
        stats[system], tried[system], found = _judged(system, *model, rows, lake, report)
        seconds[system] = time.monotonic() - started
        if found is not None:
            retrieval = found
            stats[WITHOUT], seconds[WITHOUT] = found.without, found.seconds
    for system, answers in _lookups(rows, retrieval).items():
        started = time.monotonic()
        stats[system] = rows.statistics(answers())
        seconds[system] = time.monotonic() - started
    test, tuned = rows.test, stats["tuned"]
    near = near_train_rows(rows.questions, rows.train["instruction"].tolist())
    weak = weaknesses(test, tuned, near, rows.train["intent"].tolist())
    references = rows.alone(rows.references).assign(rows=1)
    verdicts, judged_pairs = None, None
    if endpoint is not None:
        said = {system: stats[system]["answer"].tolist() for system in models}
        verdicts, judged_pairs = hear(endpoint, rows, said, lake, report)
    facts = {
        "fingerprint": key,
        "code_version": CODE_VERSIONS["evaluation"],
        "recipe": recipe.name,
        "adapter_fingerprint": adapter.fingerprint,
        "base": adapter.manifest["base"],
        "champion_version": champion and champion.version,
        "placeholders": {system: model[0].placeholders for system, model in models.items()},
        "data": data,
        "rows": len(test),
        "clusters": test["cluster_id"].nunique(),
        "answer_classifier_accuracy": rows.classifier_accuracy,
        **compare(test, stats),
        "held_out": on_intents(test, stats, recipe.held_out_intents),
        "references": corpus_scores(references, WITHOUT_REFERENCE),
        "weak": [asdict(weakness) | {"advice": weakness.advice} for weakness in weak],
        "naive": naive_scores(pd.concat([rows.train, test], ignore_index=True)),
        "robustness": {system: by_group(trials.robustness).to_dict("records") for system, trials in tried.items()},
        "retrieval": retrieval and retrieval_facts(test, stats, retrieval),
        "probe": {system: trials.probe["right"].tolist() for system, trials in tried.items()},
        "runs": {system: asdict(trials.run) | {"alone": trials.alone} for system, trials in tried.items()},
        "adapter_bytes": weights_size(adapter.folder),
        "judge": verdicts,
        "seconds": seconds,
    }
    about = test[["row_id", "source", "cluster_id", "intent", "category", "flags", "nearest_train_similarity"]].assign(
        near_train_rows=near, question=rows.asked, reference=rows.references
    )
    long = pd.concat([about.assign(system=s, **frame) for s, frame in stats.items()])
    categories = dict(zip(rows.train["intent"], rows.train["category"], strict=True))
    with settled(lake), atomic_folder(folder) as temporary:
        _write(long, temporary / "answers.parquet")
        _write(about.assign(**references), temporary / "references.parquet")
        for name in ("robustness", "probe"):
            told = [getattr(trials, name).assign(system=system) for system, trials in tried.items()]
            pd.concat(told).to_parquet(temporary / f"{name}.parquet", index=False)
        if retrieval is not None:
            retrieval.misled.to_parquet(temporary / "misled.parquet", index=False)
            grounded = [frame.assign(row_id=test["row_id"], system=system) for system, frame in retrieval.rows.items()]
            pd.concat(grounded).to_parquet(temporary / "grounding.parquet", index=False)
        if judged_pairs is not None:
            judged_pairs.to_parquet(temporary / "judge.parquet", index=False)
        pq.write_table(slices(test, stats), temporary / "slices.parquet")
        write_weak_intents(temporary / "weak_intents.csv", weak, categories)
        write_json(temporary / "evaluation.json", facts)
    return Evaluation(facts, reused=False)


def _write(rows: pd.DataFrame, path: Path) -> None:
    table = pa.Table.from_pandas(rows, preserve_index=False)
    place = table.schema.get_field_index("fabricated_facts")  # without any its type would be unknown
    facts = table.column(place).cast(pa.list_(pa.string()))
    pq.write_table(table.set_column(place, "fabricated_facts", facts), path)


_Model: TypeAlias = tuple[Recipe, Path, Path | None, Path]
"""Recipe, base, adapter or None, and the folder of the classifier that routes its questions."""


def _models(recipe: Recipe, adapter: Adapter, base: Path, champion: Version | None) -> dict[str, _Model]:
    classifier = adapter.folder / "intent_classifier"
    models: dict[str, _Model] = {
        "tuned": (recipe, base, adapter.folder, classifier),
        "base": (recipe, base, None, classifier),
    }
    if champion is not None:
        its = champion.folder / "adapter"
        its_recipe = read_recipe(its / "recipe.yaml")
        models["champion"] = (its_recipe, base_of_version(its_recipe, champion.folder), its, its / "intent_classifier")
    return models


def _lookups(rows: FrozenTestSet, retrieval: RetrievalEffect | None) -> dict[str, Callable[[], list[str]]]:
    told = retrieval.known if retrieval else []
    return {
        **({KNOWN: lambda: told} if any(told) else {}),
        "nearest": lambda: nearest_answers(rows.train, rows.questions),
        "central": lambda: central_answers(rows.train, rows.intents),
        "random": lambda: random_answers(rows.train, rows.questions),
    }


def _judged(
    system: str,
    recipe: Recipe,
    base: Path,
    adapter: Path | None,
    classifier: Path,
    rows: FrozenTestSet,
    lake: DataLake,
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, Trials, RetrievalEffect | None]:
    """The last is there for the tuned model alone, where its recipe retrieves."""
    model, index = SupportModel(recipe, base, adapter), open_index(recipe, lake)
    found = retrieve(index, recipe.prompt, recipe.placeholders, rows.questions, rows.intents)
    statistics, answers, run = ask_test_rows(system, model, rows, found, report)
    report(f"{system}: odd questions, general ones, and some one at a time")
    trials = try_out(model, classifier, index, rows, statistics, run)
    if system != "tuned" or index is None:
        return statistics, trials, None
    return statistics, trials, measure_retrieval_effect(model, classifier, rows, found, answers, statistics, report)
