"""The lineage of a model version: back to the delivered files, and forward to every decision about it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

import pyarrow.compute as pc

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.register.history import read_history
from cs_pipeline.tracking import MODEL, find_versions, open_store
from cs_pipeline.train.adapter import Adapter, seen_rows

if TYPE_CHECKING:
    from rich.tree import Tree

LINEAGE_FILE = "lineage.json"
"""The artifact of a version's run that holds the lineage as of its registration."""


class Check(TypedDict):
    """An asset check of the run that registered a version.

    ``severity`` is Dagster's, ERROR or WARN: a check that warns stops nothing. Earlier releases did not record it.
    """

    asset: str
    name: str
    passed: bool
    severity: NotRequired[str]


def collect_lineage(adapter: Adapter, lake: DataLake, dagster_run: str, checks: list[Check]) -> dict[str, Any]:
    """The data, base, code and checks behind ``adapter``, as JSON values. ``checks`` are those of ``dagster_run`` so far."""
    seen = seen_rows(adapter.folder)
    per_file = seen.group_by(["source", "source_file_sha256"]).aggregate([("row_id", "count_distinct")]).to_pylist()
    with Ledger(lake) as ledger:
        deliveries = {delivery.sha256: delivery for delivery in ledger.deliveries()}
    files = []
    for entry in sorted(per_file, key=lambda e: (e["source"], e["source_file_sha256"])):
        sha256 = entry["source_file_sha256"]
        delivery = deliveries.get(sha256)
        files.append(
            {
                "source": entry["source"],
                "sha256": sha256,
                "rows": entry["row_id_count_distinct"],
                "name": delivery.name if delivery else None,
                "day": str(delivery.day) if delivery else None,
                "run": delivery.ingested_by if delivery else None,
            }
        )
    return {
        "bitext": read_json(lake.path("ingest", "bitext_conversations.json")),
        "files": files,
        "sides": _rows_per_split(lake),
        "data": adapter.manifest["data"],
        "base": adapter.manifest["base"],
        "git_commit": adapter.manifest["git_commit"],
        "run": dagster_run,
        "checks": checks,
    }


def trace_lineage(number: int, lake: DataLake) -> dict[str, Any]:
    """Version ``number`` with its tags, lineage and every decision about it. Raises PipelineError if it does not exist."""
    client = open_store(lake)
    version = next((v for v in find_versions(client) if int(v.version) == number), None)
    if version is None:
        known = ", ".join(str(v.version) for v in find_versions(client)) or "none"
        raise PipelineError(f"{MODEL} has no version {number}.", f"Choose one of: {known}.")
    lineage = json.loads(Path(client.download_artifacts(version.run_id, LINEAGE_FILE)).read_text())
    with Ledger(lake) as ledger:
        superseded = ledger.superseded()
        expired = {delivery.sha256 for delivery in ledger.deliveries() if delivery.expired_at}
    for file in lineage["files"]:
        file["since"] = [
            change for change, ids in (("superseded", superseded), ("deleted", expired)) if file["sha256"] in ids
        ]
    return {
        "version": number,
        "aliases": list(client.get_model_version(MODEL, str(number)).aliases),  # search results have no aliases
        "recipe": version.tags["cs.recipe"],
        "mlflow_run": version.run_id,
        "tags": dict(sorted(version.tags.items())),
        **lineage,
        "history": [entry for entry in read_history(lake) if entry["version"] == number],
    }


def _rows_per_split(lake: DataLake) -> dict[str, dict[str, int]]:
    """The number of rows of each source in each split."""
    rows = {}
    for split in ("train", "validation", "test"):
        sources = lake.read("prepare", f"{split}_split", ["source"]).column("source")
        rows[split] = {entry["values"]: entry["counts"] for entry in pc.value_counts(sources).to_pylist()}
    return rows


def lineage_tree(lineage: dict[str, Any]) -> "Tree":
    """The result of ``trace_lineage`` for the terminal."""
    from rich.text import Text
    from rich.tree import Tree

    def node(parent: Tree, text: str) -> Tree:
        return parent.add(Text(text))  # file names may contain rich's markup

    aliases = f" ({', '.join(lineage['aliases'])})" if lineage["aliases"] else ""
    root = Tree(Text(f"{MODEL} version {lineage['version']}{aliases}, recipe {lineage['recipe']}"))
    base = lineage["base"]
    base_node = node(root, f"base: {base['name']}, {base['revision'] or base['sha256'][:12]}")
    for key, value in base.get("origin", {}).items():  # a base from a package
        node(base_node, f"{key}: {value}")
    rows = node(root, "rows")
    for split, sources in lineage["sides"].items():
        node(rows, f"{split}: " + ", ".join(f"{count:,} {source}" for source, count in sorted(sources.items())))
    files = node(root, "trained on rows from")
    for file in lineage["files"]:
        name = file["name"] or lineage["bitext"]["address"]
        day = f", delivered {file['day']}, Dagster run {file['run'] or 'unknown'}" if file["day"] else ""
        since = f" [{', '.join(file['since'])} since]" if file["since"] else ""
        node(files, f"{name}, sha256 {file['sha256'][:12]}…: {file['rows']:,} rows{day}{since}")
    checks = lineage["checks"]
    not_passed: dict[str, list[str]] = {"failed": [], "warned": []}
    for check in checks:
        if not check["passed"]:
            result = "warned" if check.get("severity") == "WARN" else "failed"
            not_passed[result].append(f"{check['asset']}.{check['name']}")
    passed = len(checks) - sum(map(len, not_passed.values()))
    named = [f"{result}: {', '.join(names)}" for result, names in not_passed.items() if names]
    node(root, "; ".join([f"checks: {passed} of {len(checks)} passed", *named]))
    node(root, f"Dagster run {lineage['run']}, MLflow run {lineage['mlflow_run']}, git commit {lineage['git_commit']}")
    decisions = node(root, "decisions")
    for entry in lineage["history"]:
        word = "promoted" if entry["promote"] else "not promoted"
        node(decisions, f"{entry['time']} {word} by {entry['decided_by']}: {entry['reason']}")
    return root
