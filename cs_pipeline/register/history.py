"""What was decided about the champion: an append-only record, and the alias that follows it."""

import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cs_pipeline.core.lake import DataLake, digest, locked
from cs_pipeline.tracking import CHALLENGER, CHAMPION, MODEL, champion_number, find_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

EntryKind = Literal["decision", "rollback", "moved by hand"]
"""What made an entry: a comparison of figures, ``cs-pipeline rollback``, or somebody who set the alias in MLflow."""

FOLLOWED = "cs.promoted_by"
"""Tag of versions: the entry by which one became champion, set after the alias has moved."""

_UNKNOWN = dict.fromkeys(("recipe", "fingerprint", "evaluation", "differences", "slices", "intents", "thresholds"))


@contextmanager
def deciding(lake: DataLake) -> Iterator[None]:
    """No other process reads the history to add to it meanwhile; the lock of one that is killed is gone with it."""
    with locked(_path(lake)):
        yield


def read_history(lake: DataLake) -> list[dict[str, Any]]:
    """All entries, oldest first. A last line that a crash cut off was never acted on, and does not count."""
    path = _path(lake)
    text = path.read_text() if path.exists() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{"kind": "decision", **json.loads(line)} for line in lines]


def append(
    lake: DataLake,
    kind: EntryKind,
    version: int | None,
    champion_before: int | None,
    *,
    promote: bool,
    reason: str,
    decided_by: str,
    **known: Any,
) -> dict[str, Any]:
    """Adds an entry that is on the disk when this returns, and returns it. To be called while ``deciding``."""
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kind": kind,
        "version": version,
        "champion_before": champion_before,
        "promote": promote,
        "reason": reason,
        "decided_by": decided_by,
        **_UNKNOWN,
        **known,
    }
    with _path(lake).open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":
            whole = _path(lake).read_bytes().rfind(b"\n") + 1
            file.truncate(whole)
        file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return entry


def settle(client: "MlflowClient", lake: DataLake, seen_by: str) -> None:
    """Makes the aliases what the history says; a crash between the two is fixed here. To be called while ``deciding``.

    The alias of a champion that somebody moved by hand in MLflow is taken over into the history.
    """
    history = read_history(lake)
    tags = {int(v.version): v.tags for v in find_versions(client)}
    now = champion_number(client)
    place = max((i for i, entry in enumerate(history) if entry["promote"]), default=None)
    last = {"version": None, "champion_before": None} if place is None else history[place]
    mark = digest(place, last)
    # An alias that followed the last promotion and now lies elsewhere was moved since, be it back to where it came from.
    followed = last["version"] not in tags or tags[last["version"]].get(FOLLOWED) == mark
    if now != last["version"] and (followed or now != last["champion_before"]):
        reason, who = "the alias was moved by hand in MLflow", f"a person; seen by {seen_by}"
        append(lake, "moved by hand", now, last["version"], promote=True, reason=reason, decided_by=who)
        settle(client, lake, seen_by)
        return
    if not followed:
        client.set_registered_model_alias(MODEL, CHAMPION, str(last["version"]))
        client.set_model_version_tag(MODEL, str(last["version"]), FOLLOWED, mark)
    if not history or history[-1]["version"] not in tags:
        return
    newest = history[-1]
    if not newest["promote"]:
        client.set_registered_model_alias(MODEL, CHALLENGER, str(newest["version"]))
    elif str(client.get_registered_model(MODEL).aliases.get(CHALLENGER)) == str(newest["version"]):
        client.delete_registered_model_alias(MODEL, CHALLENGER)


def withdrawn(history: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Versions that a person took the alias from and nobody has given it back to, with the entry that says so."""
    gone: dict[int, dict[str, Any]] = {}
    for entry in history:
        if entry["promote"]:
            gone.pop(entry["version"], None)
        if entry["kind"] != "decision" and entry["champion_before"] is not None:
            gone[entry["champion_before"]] = entry
    return gone


def champion_before(history: list[dict[str, Any]], now: int | None) -> int | None:
    """The latest champion other than ``now`` that was not withdrawn since, or None."""
    champions = (entry["version"] for entry in reversed(history) if entry["promote"])
    return next((number for number in champions if number not in (None, now, *withdrawn(history))), None)


def history_table(lake: DataLake) -> list[dict[str, str]]:
    """A row for each entry, oldest first, as people read them."""
    words = {"decision": "promoted", "rollback": "rolled back to", "moved by hand": "moved by hand to"}
    return [
        {
            "when": entry["time"],
            "what": words[entry["kind"]] if entry["promote"] else "not promoted",
            "version": str(entry["version"] or "none"),
            "recipe": entry["recipe"] or "",
            "champion before": str(entry["champion_before"] or "none"),
            "why": entry["reason"],
            "who": entry["decided_by"],
        }
        for entry in read_history(lake)
    ]


def _path(lake: DataLake) -> Path:
    return lake.path("register", "history.jsonl")
