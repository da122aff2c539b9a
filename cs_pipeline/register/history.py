"""The append-only history of decisions about the champion, and the MLflow aliases that follow it."""

import json
import os
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from cs_pipeline.core.lake import DataLake, digest, locked
from cs_pipeline.tracking import CHALLENGER, CHAMPION, MODEL, champion_number, find_versions

if TYPE_CHECKING:
    from mlflow import MlflowClient

EntryKind = Literal["decision", "rollback", "moved by hand"]
"""The origin of an entry: the promotion rule, ``cs-pipeline rollback``, or an alias set by hand in MLflow."""

_PROMOTED_BY = "cs.promoted_by"
"""Tag of a version: the entry that made it champion, set after the alias has moved."""

_NO_FIGURES = dict.fromkeys(
    ("recipe", "fingerprint", "evaluation", "sealed", "differences", "slices", "intents", "thresholds")
)


def history_lock(lake: DataLake) -> AbstractContextManager[bool]:
    """The lock to hold from reading the history until appending to it. It is released if its process is killed."""
    return locked(_path(lake))


def read_history(lake: DataLake) -> list[dict[str, Any]]:
    """All entries, oldest first. A last line cut off by a crash is left out: the alias was not moved because of it."""
    path = _path(lake)
    text = path.read_text() if path.exists() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{"kind": "decision", **json.loads(line)} for line in lines]


def append_entry(
    lake: DataLake,
    kind: EntryKind,
    version: int | None,
    champion_before: int | None,
    *,
    promote: bool,
    reason: str,
    decided_by: str,
    **figures: Any,
) -> dict[str, Any]:
    """Appends an entry, syncs it to the disk, and returns it. The caller holds ``history_lock``."""
    entry = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "kind": kind,
        "version": version,
        "champion_before": champion_before,
        "promote": promote,
        "reason": reason,
        "decided_by": decided_by,
        **_NO_FIGURES,
        **figures,
    }
    with _path(lake).open("ab+") as file:
        end = file.seek(0, os.SEEK_END)
        file.seek(max(0, end - 1))
        if end and file.read(1) != b"\n":  # a crash cut off the last line
            file.truncate(_path(lake).read_bytes().rfind(b"\n") + 1)
        file.write(json.dumps(entry, allow_nan=False).encode() + b"\n")
        file.flush()
        os.fsync(file.fileno())
    return entry


def sync_aliases(client: "MlflowClient", lake: DataLake, seen_by: str) -> None:
    """Makes the aliases match the history, which also repairs them after a crash between the two writes.

    A champion alias that was moved by hand in MLflow is recorded in the history instead. The caller holds ``history_lock``.
    """
    history = read_history(lake)
    tags = {int(v.version): v.tags for v in find_versions(client)}
    champion = champion_number(client)
    index = max((i for i, entry in enumerate(history) if entry["promote"]), default=None)
    promotion = {"version": None, "champion_before": None} if index is None else history[index]
    promoted, promotion_id = promotion["version"], digest(index, promotion)
    # The tag is set after the alias has moved. If the tag is set and the champion is another version, a person moved
    # the alias, even if it is back at the previous champion.
    alias_moved = promoted not in tags or tags[promoted].get(_PROMOTED_BY) == promotion_id
    if champion != promoted and (alias_moved or champion != promotion["champion_before"]):
        reason, who = "the alias was moved by hand in MLflow", f"a person; seen by {seen_by}"
        append_entry(lake, "moved by hand", champion, promoted, promote=True, reason=reason, decided_by=who)
        sync_aliases(client, lake, seen_by)
        return
    if not alias_moved:
        client.set_registered_model_alias(MODEL, CHAMPION, str(promoted))
        client.set_model_version_tag(MODEL, str(promoted), _PROMOTED_BY, promotion_id)
    if not history or history[-1]["version"] not in tags:
        return
    newest = history[-1]
    if not newest["promote"]:
        client.set_registered_model_alias(MODEL, CHALLENGER, str(newest["version"]))
    elif str(client.get_registered_model(MODEL).aliases.get(CHALLENGER)) == str(newest["version"]):
        client.delete_registered_model_alias(MODEL, CHALLENGER)


def withdrawn_versions(history: list[dict[str, Any]]) -> dict[int, dict[str, Any]]:
    """Versions that lost the alias by a person's decision and did not get it back, each with the entry of that decision."""
    withdrawn: dict[int, dict[str, Any]] = {}
    for entry in history:
        if entry["promote"]:
            withdrawn.pop(entry["version"], None)
        if entry["kind"] != "decision" and entry["champion_before"] is not None:
            withdrawn[entry["champion_before"]] = entry
    return withdrawn


def previous_champion(history: list[dict[str, Any]], current: int | None) -> int | None:
    """The latest champion other than ``current`` that has not been withdrawn since, or None."""
    champions = (entry["version"] for entry in reversed(history) if entry["promote"])
    return next((number for number in champions if number not in (None, current, *withdrawn_versions(history))), None)


def history_table(lake: DataLake) -> list[dict[str, str]]:
    """One row per entry, oldest first, as text for people."""
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
