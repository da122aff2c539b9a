"""Whether a new training is due: one pure decision, and what it is decided on."""

import json
import time
from dataclasses import asdict, dataclass

import pyarrow.compute as pc

from cs_pipeline.company import RetrainSettings, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256, make_folder
from cs_pipeline.prepare.splits.conversations import usable_rows
from cs_pipeline.recipe import Recipe
from cs_pipeline.tracking import FORGOTTEN, champion_number, open_store
from cs_pipeline.train.adapter import current_adapter, seen_rows

DAY = 86_400


@dataclass(frozen=True)
class RetrainingState:
    """What the decision looks at. ``data`` stands for the usable rows: equal rows, equal text.

    ``new_rows`` are usable and were not at hand at the last training, be its model champion or not: counted from the
    champion's training alone, a training that did not win would be repeated at each row that lands.
    """

    champion: int | None
    champion_days: float
    champion_marked: bool
    new_rows: int
    data: str


@dataclass(frozen=True)
class RetrainingDecision:
    """Whether to train, and the sentence that says why."""

    due: bool
    reason: str


def decide_retraining(standing: RetrainingState, rule: RetrainSettings) -> RetrainingDecision:
    """Enough new rows, or a single one where the champion is old, or a champion that has seen what is to be forgotten.

    Never on equal data: without a new row only a marked champion makes a training due, and what made it marked has
    changed the data.
    """
    if standing.champion is None:
        return RetrainingDecision(False, "there is no champion yet; run the whole job first: make demo")
    champion = f"champion {standing.champion}"
    if standing.champion_marked:
        return RetrainingDecision(True, f"{champion} has seen rows that are to be forgotten")
    if standing.new_rows == 0:
        return RetrainingDecision(False, "no usable row has landed since the last training")
    rows = f"{standing.new_rows:,} new usable row{'s' if standing.new_rows > 1 else ''}"
    if standing.new_rows >= rule.new_rows:
        return RetrainingDecision(True, f"{rows} since the last training; {rule.new_rows:,} are enough")
    age = f"{champion} is {standing.champion_days:.1f} days old"
    if standing.champion_days >= rule.days:
        return RetrainingDecision(True, f"{rows}, and {age}; from {rule.days} days on one row is enough")
    return RetrainingDecision(False, f"{rows} of {rule.new_rows:,} needed, and {age} of {rule.days}")


def retraining_state(recipe: Recipe, lake: DataLake, now: float) -> RetrainingState:
    """Looks at lake and registry; ``now`` in seconds since 1970."""
    client = open_store(lake)
    number = champion_number(client)
    days, marked = 0.0, False
    if number is not None:
        from cs_pipeline.tracking import MODEL

        version = client.get_model_version(MODEL, str(number))
        days = (now - version.creation_timestamp / 1000) / DAY
        marked = FORGOTTEN in version.tags
    usable = usable_rows(lake)
    new = usable - _at_hand_before(recipe, lake)
    return RetrainingState(number, days, marked, len(new), digest(sorted(usable), number if marked else None))


def check_retraining(
    recipe: Recipe, lake: DataLake, now: float | None = None
) -> tuple[RetrainingState, RetrainingDecision]:
    """The present standing and the decision, which is kept in ``train/retraining.jsonl`` whenever it is another."""
    found = retraining_state(recipe, lake, time.time() if now is None else now)
    due = decide_retraining(found, load_company(lake).retrain)
    _keep(lake, found, due)
    return found, due


def _at_hand_before(recipe: Recipe, lake: DataLake) -> set[str]:
    """Company rows that the last training could have used, whatever became of them."""
    try:
        adapter = current_adapter(recipe.name, lake)
    except PipelineError:  # never trained
        return set()
    if adapter.manifest["data"]["train_split"] != file_sha256(lake.table("prepare", "train_split")):
        return set(seen_rows(adapter.folder).column("row_id").to_pylist())
    at_hand: set[str] = set()
    for name in ("conversations", "conversations_set_aside"):
        table = lake.read("prepare", name, ["row_id", "source"])
        at_hand.update(table.filter(pc.equal(table.column("source"), "company")).column("row_id").to_pylist())
    return at_hand


def _keep(lake: DataLake, found: RetrainingState, due: RetrainingDecision) -> None:
    path = lake.path("train", "retraining.jsonl")
    make_folder(path.parent)
    entry = {**asdict(found), **asdict(due)}
    last = json.loads(path.read_text().splitlines()[-1]) if path.exists() and path.stat().st_size else {}
    if {key: last.get(key) for key in ("data", "due", "champion")} != {
        k: entry[k] for k in ("data", "due", "champion")
    }:
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry})
        with path.open("a") as file:
            file.write(line + "\n")
