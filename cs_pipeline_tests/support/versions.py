"""More versions of the registered model, made in seconds: copies of the champion with scaled weights, and look-ups."""

import shutil
from pathlib import Path

import yaml
from mlflow.entities import Param
from safetensors.numpy import load_file, save_file

from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.core.manifest import MANIFEST_NAME, write_manifest
from cs_pipeline.evaluate.evaluation import evaluate
from cs_pipeline.evaluate.report.report import write_report
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.recipe import EvaluationSettings, LookupRecipe, read_recipe
from cs_pipeline.register.version import register
from cs_pipeline.retrieval.lookup import LookupModel
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.serve.models.live import LiveRouter
from cs_pipeline.tracking import CHAMPION, FINGERPRINT, MODEL, get_version, open_store
from cs_pipeline.train.adapter import build_lookup


def add_version(
    lake: DataLake, folder: Path, scale: float, max_new_tokens: int | None = None, passages: int | None = None
) -> int:
    """Registers the champion's adapter with its weights times ``scale``, and returns the version number.

    ``max_new_tokens`` limits its answers; None keeps the champion's limit. ``passages`` is the number of passages in its
    prompt; None makes a version without retrieval.
    """
    client = open_store(lake)
    first = client.get_model_version(MODEL, "1")
    source = get_version(client, 1).folder
    model = shutil.copytree(source.parent, folder)
    adapter = model / "artifacts" / "adapter"
    weights = adapter / "adapter_model.safetensors"
    save_file({name: array * scale for name, array in load_file(weights).items()}, weights, {"format": "pt"})
    recipe = yaml.safe_load((adapter / "recipe.yaml").read_text())
    if passages is not None:
        recipe["prompt"]["retrieve"] = {"answers": 0, "passages": passages}
    if max_new_tokens is not None:
        recipe["generation"]["max_new_tokens"] = max_new_tokens
        recipe["trainer"]["max_length"] = 2 * max_new_tokens  # no answer may be longer than a row
    (adapter / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    facts = {key: value for key, value in read_json(adapter / MANIFEST_NAME).items() if key != "files"}
    fingerprint = f"scaled by {scale}, {max_new_tokens}, {passages}"
    write_manifest(adapter, {**facts, "fingerprint": fingerprint})
    experiment = client.get_experiment_by_name(MODEL)
    assert experiment is not None
    run = client.create_run(experiment.experiment_id, tags={FINGERPRINT: fingerprint}).info.run_id
    settings = client.get_run(str(first.run_id)).data.params
    client.log_batch(run, params=[Param(key, value) for key, value in settings.items()])
    tags = {**first.tags, FINGERPRINT: fingerprint}
    return int(client.create_model_version(MODEL, model.as_uri(), run, tags=tags).version)


def add_lookup(lake: DataLake) -> int:
    """Evaluates and registers a look-up in the known answers of ``lake``, and returns the version number.

    It hands over what is less similar than 70 % of the validation questions.
    """
    recipe = LookupRecipe(
        name="lookup",
        description="For tests.",
        method="lookup",
        handover_share=0.3,
        evaluation=EvaluationSettings(robustness_cases=10, timed_answers=3),
    )
    build_lookup(recipe, lake)
    evaluate(recipe, lake, None, print)
    return register(recipe, lake, "a run", [], write_report(recipe, lake).path).version


def make_champion(lake: DataLake, version: int) -> None:
    open_store(lake).set_registered_model_alias(MODEL, CHAMPION, str(version))


def known_answer(lake: DataLake, version: int, question: str) -> RetrievedText | None:
    """What the look-up, or that of a cascade, finds for ``question``, without the server."""
    adapter = get_version(open_store(lake), version).folder / "adapter"
    recipe = read_recipe(adapter / "recipe.yaml")
    route = LiveRouter(lake).route(question)
    assert route is not None
    intents = [route.label]
    index = open_index(recipe, lake)
    texts = retrieve(index, recipe.prompt, recipe.placeholders, [question], intents)[0]
    return LookupModel.load(recipe, adapter).find(texts, intents[0])
