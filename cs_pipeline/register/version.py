"""A version of the registered model in MLflow: the adapter, its figures and its lineage."""

import importlib.metadata
import json
import logging
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.evaluate.report.leaderboard import LEADERBOARD_METRICS
from cs_pipeline.evaluate.results import EvaluationResults, evaluation_file, read_evaluation
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.register.lineage import LINEAGE_FILE, Check, collect_lineage
from cs_pipeline.retrieval.index import retrieval_folder
from cs_pipeline.retrieval.lookup import similarity_limit
from cs_pipeline.retrieval.router import router_folder
from cs_pipeline.tracking import (
    FINGERPRINT,
    FORGOTTEN,
    MODEL,
    find_versions,
    get_or_create_run,
    get_version,
    open_store,
)
from cs_pipeline.train.adapter import (
    Adapter,
    base_of_adapter,
    current_adapter,
    has_seen_forgotten_rows,
    metrics_spool,
)

_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "safetensors", "scikit-learn", "mlflow")
"""The libraries that a version needs to answer."""
EVALUATED = "cs.evaluation"
"""Tag of a version: the fingerprint of the evaluation whose figures its run shows."""

_PROBED = "cs.probed"
"""Tag of a version: its last answer to a probe, with a hash of the question and the libraries."""


@dataclass(frozen=True)
class Registered:
    """The version of an adapter, and its run. ``reused`` says whether the version existed already."""

    version: int
    run_id: str
    fingerprint: str
    reused: bool


def register(recipe: Recipe, lake: DataLake, dagster_run: str, checks: list[Check], report_file: Path) -> Registered:
    """Registers the recipe's current adapter once, and logs the figures and report of its last evaluation.

    ``checks`` are those of ``dagster_run``. The lineage is stored as JSON with the MLflow run. Raises PipelineError if the
    adapter or its evaluation is missing, or if the store does not answer.
    """
    adapter = current_adapter(recipe.name, lake)
    results = read_evaluation(recipe.name, lake)
    client = open_store(lake)
    run = get_or_create_run(client, lake, adapter.fingerprint, recipe.name)
    known = [v for v in find_versions(client) if v.tags.get(FINGERPRINT) == adapter.fingerprint]
    if known and known[-1].tags.get(EVALUATED) == results.fingerprint:
        return Registered(int(known[-1].version), run, adapter.fingerprint, reused=True)
    metrics_spool(recipe.name, adapter.fingerprint, lake).replay(client, run)
    lineage = collect_lineage(adapter, lake, dagster_run, checks)
    source = lineage["bitext"]
    origin = {"cs.dagster_run": lineage["run"], "cs.source": source["address"], "cs.source_sha256": source["sha256"]}
    client.log_dict(run, lineage, LINEAGE_FILE)
    _log_results(client, run, recipe, adapter, results, origin)
    client.log_artifact(run, str(report_file), "report")
    client.log_artifact(run, str(evaluation_file(recipe.name, lake)), "report")
    if known:
        number = int(known[-1].version)
    else:
        tags = {
            FINGERPRINT: adapter.fingerprint,
            "cs.recipe": recipe.name,
            "cs.git_commit": str(adapter.manifest["git_commit"]),
            "cs.base": adapter.manifest["base"]["name"],
            "cs.company_rows": str(adapter.manifest["company"]["rows"]),
            "cs.files": str(len(adapter.manifest["company"]["files"])),
            **_threshold_tag(adapter),
            **{f"cs.data.{name}": sha for name, sha in adapter.manifest["data"].items()},
            **origin,
        }
        logged = _log_model(run, recipe, lake, adapter)
        if not client.search_registered_models(f"name = '{MODEL}'"):
            client.create_registered_model(MODEL, description="Answers customers' questions. Made by cs_pipeline.")
        number = int(client.create_model_version(MODEL, logged, run, tags=tags, description=recipe.description).version)
    if has_seen_forgotten_rows(adapter, lake):
        # Forgetting marks existing versions only. This one is newer, but its adapter was trained on the forgotten rows.
        client.set_model_version_tag(MODEL, str(number), FORGOTTEN, "true")
    client.set_model_version_tag(MODEL, str(number), EVALUATED, results.fingerprint)
    client.set_terminated(run, "FINISHED")
    return Registered(number, run, adapter.fingerprint, reused=bool(known))


def _log_results(
    client: Any, run: str, recipe: Recipe, adapter: Adapter, results: EvaluationResults, tags: dict[str, str]
) -> None:
    import time

    from mlflow.entities import Dataset, DatasetInput, InputTag, Metric, Param, RunTag

    settings = _flat(recipe.model_dump(mode="json", exclude={"description"}))
    base = {"base.name": results.base["name"], "base.source": results.base["source"]}
    settings |= base | {"method": recipe.training_method}
    params = [Param(k, str(v)) for k, v in settings.items()]
    now = int(time.time() * 1000)
    numbers = {f"train.{k}": v for k, v in adapter.metrics.items() if isinstance(v, int | float)}
    for system, scores in results.scores.items():
        prefix = "test" if system == "tuned" else f"test.{system}"
        numbers |= {f"{prefix}.{name}": value.score for name, value in scores.items() if value}
        numbers[f"{prefix}.seconds"] = results.seconds[system]
    for name in LEADERBOARD_METRICS:
        if score := results.scores["tuned"][name]:
            numbers |= {f"test.{name}.low": score.low, f"test.{name}.high": score.high}
        if change := results.differences.get("base", {}).get(name):
            numbers |= {f"test.minus_base.{name}.{key}": getattr(change, key) for key in ("difference", "low", "high")}
    metrics = [Metric(name, float(value), now, 0) for name, value in numbers.items()]
    client.log_batch(run, metrics=metrics, params=params, tags=[RunTag(key, value) for key, value in tags.items()])
    data = adapter.manifest["data"] | {"test_split": results.data.test_split}
    client.log_inputs(
        run,
        [
            DatasetInput(
                Dataset(name=name, digest=sha[:16], source_type="lake", source=f"prepare/{name}.parquet"),
                [InputTag("mlflow.data.context", name.removesuffix("_split"))],
            )
            for name, sha in data.items()
            if name.endswith("_split")
        ],
    )


def _log_model(run: str, recipe: Recipe, lake: DataLake, adapter: Adapter) -> str:
    """Logs the adapter, and its base if that is embedded, as a pyfunc model of ``run``. Returns its URI in MLflow."""
    import mlflow

    # MLflow warns that it cannot record pip's version: environments made by uv have no pip.
    logging.getLogger("mlflow.utils.environment").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as temporary:
        # MLflow names its copies after the folders that it is given, so these must have plain names.
        artifacts = {"adapter": str(shutil.copytree(adapter.folder, Path(temporary, "adapter")))}
        base = base_of_adapter(adapter, recipe, lake)
        if base is not None and adapter.manifest["base"]["source"] == "embedded":
            artifacts["base"] = str(shutil.copytree(base, Path(temporary, "base")))
        with mlflow.start_run(run_id=run):
            logged = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(Path(__file__).parent / "pyfunc_model.py"),
                artifacts=artifacts,
                model_config=_paths(recipe, lake),
                pip_requirements=_pinned_libraries(),
            )
    return str(logged.model_uri)


def _paths(recipe: Recipe, lake: DataLake) -> dict[str, str] | None:
    """The paths of the lake's index and router if the recipe retrieves. They are not copied, so answers use current rows."""
    if recipe.prompt.retrieve is None:
        return None
    return {"retrieval_index": str(retrieval_folder(lake)), "router": str(router_folder(lake))}


def _threshold_tag(adapter: Adapter) -> dict[str, str]:
    """The tag with the least similarity at which a look-up, alone or in a cascade, answers. It is chosen once."""
    chosen = adapter.metrics.get("min_similarity")
    return {} if chosen is None else {"cs.min_similarity": similarity_limit(chosen)}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def version_of(recipe_name: str, lake: DataLake) -> int:
    """The number of the version with the recipe's current adapter. Raises PipelineError when there is none."""
    fingerprint = current_adapter(recipe_name, lake).fingerprint
    known = [v for v in find_versions(open_store(lake)) if v.tags.get(FINGERPRINT) == fingerprint]
    if not known:
        raise PipelineError(
            f"The adapter {fingerprint} of '{recipe_name}' is not registered.",
            f"Materialise 'model_version' for the partition '{recipe_name}'.",
        )
    return int(known[-1].version)


def ask_version(number: int, questions: list[str], lake: DataLake) -> list[str]:
    """The answers of a registered version, loaded from MLflow as any client would load it.

    The version retrieves from the index of ``lake``, even if the lake was moved after the version was registered. If the
    logged code is of an earlier release and imports a module that has moved since, the current code is used.
    """
    import mlflow
    from mlflow.exceptions import MlflowException

    client = open_store(lake)
    config = _paths(_recipe_of(client, number), lake)
    model: Any
    try:
        # Not a models:/ URI: MLflow would look it up in the store that this process opened last.
        model = mlflow.pyfunc.load_model(str(get_version(client, number).folder.parent), model_config=config)
    except MlflowException as error:
        if not isinstance(error.__cause__, ImportError):
            raise
        model = _load_with_current_code(client, number, lake)
    answers: list[str] = model.predict(questions)
    return answers


def _recipe_of(client: Any, number: int) -> Recipe:
    return read_recipe(get_version(client, number).folder / "adapter" / "recipe.yaml")


def _load_with_current_code(client: Any, number: int, lake: DataLake) -> Any:
    from mlflow.pyfunc.model import PythonModelContext

    from cs_pipeline.register.pyfunc_model import CsSupport

    adapter = get_version(client, number).folder / "adapter"
    model = CsSupport()
    paths = _paths(_recipe_of(client, number), lake) or {}
    model.load_context(PythonModelContext({"adapter": str(adapter)}, paths))
    return model


def probe_version(number: int, question: str, lake: DataLake) -> str:
    """The answer to ``question`` of a registered version, loaded from MLflow.

    The answer is stored in a tag and returned from there as long as the question and the libraries stay the same. A version
    that retrieves is asked every time: its answer depends on the index, and a tag would keep the text of a known answer
    even after it was forgotten. Raises PipelineError if one of the version's files was changed.
    """
    client = open_store(lake)
    if _recipe_of(client, number).prompt.retrieve is not None:
        return ask_version(number, [question], lake)[0]
    asked = digest(question, _pinned_libraries())
    known = json.loads(client.get_model_version(MODEL, str(number)).tags.get(_PROBED, "{}"))
    if known.get("asked") == asked:
        folder = get_version(client, number).folder
        base_of_version(read_recipe(folder / "adapter" / "recipe.yaml"), folder)  # verifies both manifests
        return str(known["answer"])
    answer = ask_version(number, [question], lake)[0]
    client.set_model_version_tag(MODEL, str(number), _PROBED, json.dumps({"asked": asked, "answer": answer}))
    return answer


def delete_reports(lake: DataLake) -> None:
    """Deletes the reports that were logged with the versions, because they quote questions and answers. The figures stay."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    client = open_store(lake)
    for run_id in (version.run_id for version in find_versions(client) if version.run_id):
        for file in client.list_artifacts(run_id, "report"):
            if file.path.endswith(".html"):
                address = client.get_run(run_id).info.artifact_uri
                get_artifact_repository(address, tracking_uri=client.tracking_uri).delete_artifacts(file.path)


def _pinned_libraries() -> list[str]:
    return [f"{name}=={importlib.metadata.version(name).split('+')[0]}" for name in _LIBRARIES]
