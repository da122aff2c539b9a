"""Who is champion: one pure function decides, an append-only history says so, and the alias follows the history."""

import json
import os
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from cs_pipeline.errors import PipelineError
from cs_pipeline.evaluate.evaluation import read_evaluation
from cs_pipeline.lake import DataLake, make_folder
from cs_pipeline.recipe import recipe_names
from cs_pipeline.tracking import (
    CHALLENGER,
    CHAMPION,
    FINGERPRINT,
    MODEL,
    champion_number,
    find_versions,
    open_store,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

JUDGED_BY = "bits_per_character"
"""The metric a candidate must be better in: the same for every tokenizer, and steadier than any score of one answer."""

NOT_WORSE_IN = {"right_intent": "higher", "placeholder_recall": "higher", "stop_rate": "higher"}
"""Metrics in which it must not be worse, and which way is better."""

FOLLOWED = "cs.promoted_by"
"""Tag of versions: the evaluation by which one became champion, set after the alias has moved."""


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes champion, and the sentence that says why."""

    promote: bool
    reason: str


@dataclass(frozen=True)
class Outcome:
    """The champion after all candidates were judged, and the entries that this added to the history."""

    champion: int | None
    entries: list[dict[str, Any]]


def decide(to_base: dict[str, Any], to_champion: dict[str, Any] | None) -> Decision:
    """Better than its base, and than the champion if there is one; worse in nothing that is gated.

    Both arguments are differences candidate minus other by metric: ``{"difference", "low", "high"}`` or None where it
    could not be taken. Better and worse mean that the 95 % interval lies on one side of zero. A candidate equal to the
    champion is therefore not promoted: it would only change what customers hear, for nothing.
    """
    for other, differences in (("its base", to_base), ("the champion", to_champion)):
        if differences is None:
            continue
        judged = differences.get(JUDGED_BY)
        if judged is None:
            return Decision(False, f"{JUDGED_BY} against {other} could not be measured")
        if judged["high"] >= 0:
            verb = "more" if judged["low"] > 0 else "not clearly fewer"
            return Decision(False, f"it needs {verb} bits per character than {other} ({_figures(judged)})")
        for metric, better in NOT_WORSE_IN.items():
            gated = differences.get(metric)
            # A metric without a figure on one side, as placeholders in a recipe that strips them, gates nothing.
            if gated and (gated["high"] < 0 if better == "higher" else gated["low"] > 0):
                return Decision(False, f"its {metric} is worse than that of {other} ({_figures(gated)})")
    against = "its base" if to_champion is None else "its base and the champion"
    judged = to_champion[JUDGED_BY] if to_champion is not None else to_base[JUDGED_BY]
    return Decision(
        True, f"it needs fewer bits per character than {against} ({_figures(judged)}) and is worse in nothing gated"
    )


def judge(lake: DataLake, decided_by: str) -> Outcome:
    """Judges every version whose evaluation has not been judged yet, oldest first, and moves the alias.

    Raises PipelineError when a version was evaluated beside another champion than the present one.
    """
    client = open_store(lake)
    settle(client, lake, decided_by)
    history = read_history(lake)
    decided = {(entry["version"], entry["evaluation"]) for entry in history}
    added: list[dict[str, Any]] = []
    for version, facts in _candidates(client, lake):
        now = champion_number(client)
        if version == now or (version, facts["fingerprint"]) in decided:
            continue
        if facts["champion_version"] != now:
            raise PipelineError(
                f"Version {version} was judged beside champion {facts['champion_version']}, but the champion is {now}.",
                f"Materialise 'evaluation' and what follows it for the partition '{facts['recipe']}' again.",
            )
        decision = decide(facts["differences"]["base"], facts["differences"].get("champion"))
        entry = {
            "version": version,
            "recipe": facts["recipe"],
            "fingerprint": facts["adapter_fingerprint"],
            "evaluation": facts["fingerprint"],
            "champion_before": now,
            **asdict(decision),
            "differences": facts["differences"],
            "decided_by": decided_by,
        }
        _append(lake, entry)
        added.append(entry)
        settle(client, lake, decided_by)
    return Outcome(champion_number(client), added)


def settle(client: "MlflowClient", lake: DataLake, decided_by: str) -> None:
    """Makes the aliases what the history says; a crash between the two is mended here.

    The alias of a champion that somebody moved by hand in MLflow is taken over into the history.
    """
    history = read_history(lake)
    tags = {int(v.version): v.tags for v in find_versions(client)}
    promoted = [entry for entry in history if entry["promote"]]
    now = champion_number(client)
    last = promoted[-1] if promoted else {"version": None}
    # An alias that followed the last promotion and now lies elsewhere was moved since, be it back to where it came from.
    followed = last["version"] not in tags or last["evaluation"] in (None, tags[last["version"]].get(FOLLOWED))
    if now != last["version"] and (followed or now != last["champion_before"]):
        _append(lake, _moved_by_hand(now, last["version"], decided_by))
    elif not followed:
        client.set_registered_model_alias(MODEL, CHAMPION, str(last["version"]))
        client.set_model_version_tag(MODEL, str(last["version"]), FOLLOWED, last["evaluation"])
    if not history or history[-1]["version"] not in tags:
        return
    newest = history[-1]
    if not newest["promote"]:
        client.set_registered_model_alias(MODEL, CHALLENGER, str(newest["version"]))
    elif str(client.get_registered_model(MODEL).aliases.get(CHALLENGER)) == str(newest["version"]):
        client.delete_registered_model_alias(MODEL, CHALLENGER)


def read_history(lake: DataLake) -> list[dict[str, Any]]:
    """All decisions, oldest first. A last line that a crash cut off was never acted on, and does not count."""
    path = lake.path("register", "history.jsonl")
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]


def _candidates(client: "MlflowClient", lake: DataLake) -> list[tuple[int, dict[str, Any]]]:
    """Versions with the evaluation of the adapter they hold, oldest first."""
    facts = {}
    for name in recipe_names():
        try:
            evaluation = read_evaluation(name, lake)
        except PipelineError:
            continue  # a recipe that was never evaluated has nothing to judge
        facts[evaluation["adapter_fingerprint"]] = evaluation
    versions = {v.tags.get(FINGERPRINT): int(v.version) for v in find_versions(client)}
    return sorted((versions[fingerprint], facts[fingerprint]) for fingerprint in versions.keys() & facts.keys())


def _append(lake: DataLake, entry: dict[str, Any]) -> None:
    path = lake.path("register", "history.jsonl")
    make_folder(path.parent)
    with path.open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            whole = path.read_bytes().rfind(b"\n") + 1
            file.truncate(whole)
        line = json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **entry}, allow_nan=False)
        file.write(line.encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())


def _moved_by_hand(now: int | None, before: int | None, decided_by: str) -> dict[str, Any]:
    return {
        "version": now,
        "recipe": None,
        "fingerprint": None,
        "evaluation": None,
        "champion_before": before,
        "promote": True,
        "reason": "the alias was moved by hand in MLflow",
        "differences": None,
        "decided_by": f"a person; seen by {decided_by}",
    }


def _figures(difference: dict[str, Any]) -> str:
    return f"{difference['difference']:+.3f}, 95 % interval {difference['low']:+.3f} to {difference['high']:+.3f}"
