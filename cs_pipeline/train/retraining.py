"""Decides whether a retraining is due."""

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import pyarrow.compute as pc

from cs_pipeline.company import RetrainSettings, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256, make_folder
from cs_pipeline.llm.base import NO_BASE
from cs_pipeline.prepare.company.rows import usable_rows
from cs_pipeline.recipe import CascadeRecipe, load_recipe
from cs_pipeline.tracking import FORGOTTEN, MODEL, champion_number, find_versions, open_store
from cs_pipeline.train.adapter import Adapter, current_adapter, model_adapter, seen_rows

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class RetrainingState:
    """The inputs of the decision, and the ``recipe`` to run if it is due. ``data`` is a hash of the usable rows.

    ``new_rows`` counts the usable rows that were not available to the last training run, whether or not its model
    became champion. If rows were counted from the champion's training run, those of a rejected model would count as new
    again, and every further row would start another run.
    """

    recipe: str | None
    champion: int | None
    champion_days: float
    champion_marked: bool
    new_rows: int
    data: str


@dataclass(frozen=True)
class RetrainingDecision:
    """Whether to train, and why."""

    due: bool
    reason: str


def decide_retraining(state: RetrainingState, rule: RetrainSettings) -> RetrainingDecision:
    """Decides whether a retraining is due.

    It is due if there are enough new rows, if there is at least one and the champion is old, or if the champion has seen
    rows that must be forgotten. It stays due on the same data while a champion is marked; the sensor therefore requests
    only one run for the same ``data``.
    """
    if state.champion is None:
        return RetrainingDecision(False, "there is no champion yet; run the full pipeline first: make demo")
    champion = f"champion {state.champion}"
    if state.champion_marked:
        return RetrainingDecision(True, f"{champion} has seen rows that must be forgotten")
    if state.new_rows == 0:
        return RetrainingDecision(False, "no new usable row since the last training")
    rows = f"{state.new_rows:,} new usable row{'s' if state.new_rows > 1 else ''}"
    if state.new_rows >= rule.new_rows:
        return RetrainingDecision(True, f"{rows} since the last training; {rule.new_rows:,} are enough")
    age = f"{champion} is {state.champion_days:.1f} days old"
    if state.champion_days >= rule.days:
        return RetrainingDecision(True, f"{rows}, and {age}; after {rule.days} days one row is enough")
    return RetrainingDecision(False, f"{rows} of {rule.new_rows:,} needed, and {age} of {rule.days}")


def check_retraining(lake: DataLake, now: float | None = None) -> tuple[RetrainingState, RetrainingDecision]:
    """The state of lake and registry, and the decision. If it changed, it is appended to ``train/retraining.jsonl``.

    ``now`` is in seconds since 1970; None: the current time. Raises PipelineError if the recipe to retrain is missing or
    invalid.
    """
    client = open_store(lake)
    number = champion_number(client)
    days, marked = 0.0, False
    if number is not None:
        version = client.get_model_version(MODEL, str(number))
        days = ((time.time() if now is None else now) - version.creation_timestamp / 1000) / _DAY_SECONDS
        marked = FORGOTTEN in version.tags
    usable = usable_rows(lake)
    name = recipe_to_retrain(client, number)
    new = usable if name is None else usable - _available_before(name, lake)
    recipe = None if name is None else _model_first(name, usable, lake)
    state = RetrainingState(recipe, number, days, marked, len(new), digest(sorted(usable), number if marked else None))
    decision = decide_retraining(state, load_company(lake).retrain)
    path = lake.path("train", "retraining.jsonl")
    make_folder(path.parent)
    entry = {**asdict(state), **asdict(decision)}
    last = json.loads(path.read_text().splitlines()[-1]) if path.exists() and path.stat().st_size else {}
    if any(last.get(key) != entry[key] for key in ("data", "due", "champion", "recipe")):
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry})
        with path.open("a") as file:
            file.write(line + "\n")
    return state, decision


def recipe_to_retrain(client: "MlflowClient", champion: int | None) -> str | None:
    """The recipe that ``CS_RECIPE`` names, else that of version ``champion``. None if no version is registered.

    A look-up needs no training: every run joins the new rows and rebuilds the index that it reads. If a look-up is
    champion, or nothing is, the result is the recipe of the newest version with a model, or of the newest version if
    none has one.
    """
    if name := os.environ.get("CS_RECIPE"):
        return name
    versions = find_versions(client)
    models = [version for version in versions if version.tags.get("cs.base") != NO_BASE.name]
    chosen = [version for version in models if int(version.version) == champion] or models or versions
    return str(chosen[-1].tags["cs.recipe"]) if chosen else None


def _model_first(name: str, usable: set[str], lake: DataLake) -> str:
    """The recipe ``name``; for a cascade whose model was not trained on the current rows, the recipe of that model."""
    recipe = load_recipe(name)
    if not isinstance(recipe, CascadeRecipe):
        return name
    try:
        model = model_adapter(recipe, lake)
    except PipelineError:  # not trained, or on rows that must be forgotten
        return recipe.model
    is_current = not _is_changed(model, lake) and usable <= _available_before(recipe.model, lake)
    return name if is_current else recipe.model


def _is_changed(adapter: Adapter, lake: DataLake) -> bool:
    """Whether the training rows are no longer those of ``adapter``."""
    return bool(adapter.manifest["data"]["train_split"] != file_sha256(lake.table("prepare", "train_split")))


def _available_before(recipe_name: str, lake: DataLake) -> set[str]:
    """Company rows that the last training could have used, whether or not it did."""
    try:
        adapter = current_adapter(recipe_name, lake)
    except PipelineError:  # never trained
        return set()
    if _is_changed(adapter, lake) and not adapter.is_lookup:  # a look-up uses every row as soon as it is joined
        return set(seen_rows(adapter.folder).column("row_id").to_pylist())
    available: set[str] = set()
    for name in ("conversations", "conversations_set_aside"):
        table = lake.read("prepare", name, ["row_id", "source"])
        available.update(table.filter(pc.equal(table.column("source"), "company")).column("row_id").to_pylist())
    return available
