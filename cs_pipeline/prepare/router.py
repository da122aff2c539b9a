"""Trains the router on the training rows of ``conversations``, and predicts the intent of every row.

The splits read the predictions; adapters, evaluation, registry and server read the router (``router_folder``).
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from cs_pipeline.company import load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest, file_sha256, read_json, write_json
from cs_pipeline.core.schema import PREDICTION
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.prepare.splits.conversations import used_conversations
from cs_pipeline.retrieval.embedder import RememberingEmbedder, embedder_in_use, vectors_file
from cs_pipeline.retrieval.router import NO_SUBJECT, Route, Router, router_folder

logger = logging.getLogger(__name__)

PREDICTIONS = "predictions"
"""The table of predictions, in prepare: for each row of ``used_conversations`` the label of its route, or null."""

_BINS = 10

MIN_TYPICAL = 0.3
"""A later message of a conversation trains the router if it is at least this similar to its subject. In a
shop's export, first messages had a similarity of 0.75 or more, and "Tuesday would be great, thanks" had 0."""


@dataclass(frozen=True)
class RouterQuality:
    """How good the router is. Shares are from 0 to 1, and None where they cannot be measured.

    ``accuracy`` is the share of the ``validation_rows`` whose most probable label is right, ``calibration_error`` the
    expected calibration error of that label's probability, in ten bins. ``handed_over`` is the share of these rows that
    get no label, ``company_handed_over`` the same share of the ``company_rows`` among them. Of the questions about
    nothing known in the router's trials, ``unknown_handed_over`` is the share that gets no label.
    """

    labels: int
    training_rows: int
    validation_rows: int
    accuracy: float | None
    calibration_error: float | None
    handed_over: float | None
    company_rows: int
    company_handed_over: float | None
    unknown_handed_over: float | None


@dataclass(frozen=True)
class TrainedRouter:
    """The lake's router. ``version`` is a hash of its files and of the predictions. ``reused``: nothing has changed."""

    folder: Path
    version: str
    embedder: str
    quality: RouterQuality
    reused: bool


def train_router(lake: DataLake, embedder_name: str, report: Callable[[str], None] = logger.info) -> TrainedRouter:
    """Trains the router and writes it with the predictions, unless rows, settings and code are the same as before.

    The company's ``handover.false_share`` sets the router's threshold, both for the predictions and for customers'
    questions. ``embedder_name`` is as in ``Embedder``, empty for none. A training row is predicted by a model that was
    not trained on its cluster, a row of another split by the router itself. Later messages of a conversation that say
    little about its subject count as rows without one. ``report`` gets a line before a model is fetched. Raises
    PipelineError if no training row has an intent.
    """
    embedder = RememberingEmbedder(embedder_name, vectors_file(lake), report) if embedder_name else None
    company = load_company(lake)
    share = company.handover.false_share
    rows_sha256 = file_sha256(lake.table("prepare", "conversations"))
    made_of = digest(rows_sha256, embedder and embedder.sha256, share, company.bitext_share, CODE_VERSIONS["router"])
    if (earlier := _earlier(lake, made_of, embedder_name)) is not None:
        return earlier
    columns = ["row_id", "source", "context", "instruction", "response", "intent", "intent_confidence"]
    rows = used_conversations(lake, [*columns, "cluster_id", "split"]).to_pandas()
    rows.loc[_says_little(rows), "intent"] = NO_SUBJECT
    train = rows[rows["split"] == "train"]
    labelled = train[train["intent"] != NO_SUBJECT]
    if labelled.empty:
        raise PipelineError(
            f"{lake.table('prepare', 'conversations')} has no training row with an intent.",
            "Materialise 'bitext_splits' and 'conversations' again.",
        )
    router = Router.fit(*_columns(labelled), embedder, labelled["response"].tolist())
    validation = rows[(rows["split"] == "validation") & rows["intent"].isin(router.labels)]
    router = router.with_handover_share(share).with_validation(*_columns(validation)[:2], share)
    held_out = rows[rows["split"] != "train"]
    routes = dict(zip(train["row_id"], router.out_of_fold(*_columns(train), train["response"].tolist()), strict=True))
    routes |= zip(held_out["row_id"], router.route(held_out["instruction"].tolist()), strict=True)
    folder = router_folder(lake)
    router.save(folder)
    if embedder:
        embedder.save()
    in_order = [routes[row_id] for row_id in rows["row_id"]]
    predictions = [
        rows["row_id"].tolist(),
        [route.label for route in in_order],
        pa.array([route.known for route in in_order], pa.float32()),
    ]
    lake.write("prepare", PREDICTIONS, pa.table(predictions, schema=PREDICTION), PREDICTION)
    quality = _quality(router, len(labelled), validation, [routes[row_id] for row_id in validation["row_id"]])
    version = _version(lake)
    write_json(_facts_file(lake), {"made_of": made_of, "version": version, "quality": asdict(quality)})
    return TrainedRouter(folder, version, embedder_name, quality, reused=False)


def forget_in_router(lake: DataLake) -> None:
    """Trains the lake's router again without rows that are gone from ``conversations``; deletes it if that is impossible."""
    if not router_folder(lake).exists():
        return
    try:
        train_router(lake, embedder_in_use(lake))
    except PipelineError:
        shutil.rmtree(router_folder(lake))
        for path in (vectors_file(lake), lake.table("prepare", PREDICTIONS), _facts_file(lake)):
            path.unlink(missing_ok=True)


def load_lake_router(lake: DataLake) -> Router:
    """The lake's router. Raises PipelineError if it has not been trained yet."""
    folder = router_folder(lake)
    if not folder.exists():
        raise PipelineError(f"{folder} does not exist.", "Materialise 'router' first, or run make demo.")
    return Router.load(folder)


def router_quality(lake: DataLake) -> RouterQuality:
    """The quality of the lake's router, as the last ``train_router`` measured it."""
    return RouterQuality(**read_json(_facts_file(lake))["quality"])


def _says_little(rows: Any) -> Any:
    """Whether each row is a later message of a company's conversation and not typical of its subject, such as "ok thanks".

    Such a message has its conversation's subject, but other customers do not ask about the subject in these words.
    """
    return (rows["source"] != "bitext") & rows["context"].notna() & (rows["intent_confidence"] < MIN_TYPICAL)


def _columns(rows: Any) -> tuple[list[str], list[str], list[str]]:
    """Questions, intents and clusters of a data frame."""
    return rows["instruction"].tolist(), rows["intent"].tolist(), rows["cluster_id"].tolist()


def _quality(router: Router, training_rows: int, validation: Any, routes: list[Route]) -> RouterQuality:
    right = np.array([route.best for route in routes], dtype=object) == validation["intent"].to_numpy()
    handed_over = np.array([route.label is None for route in routes], dtype=bool)
    company = (validation["source"] != "bitext").to_numpy()
    return RouterQuality(
        labels=len(router.labels),
        training_rows=training_rows,
        validation_rows=len(routes),
        accuracy=_mean(right),
        calibration_error=calibration_error(np.array([route.probability for route in routes]), right),
        handed_over=_mean(handed_over),
        company_rows=int(company.sum()),
        company_handed_over=_mean(handed_over[company]),
        unknown_handed_over=router.unknown_handed_over,
    )


def calibration_error(probabilities: np.ndarray, right: np.ndarray) -> float | None:
    """The expected calibration error: the mean gap between predicted probability and share of right labels.

    The gap is measured in ten bins, which are weighted by their rows.
    """
    bins = np.minimum((probabilities * _BINS).astype(int), _BINS - 1)
    gaps = [abs(probabilities[bins == one].sum() - right[bins == one].sum()) for one in range(_BINS)]
    return float(sum(gaps) / len(right)) if len(right) else None


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def _earlier(lake: DataLake, made_of: str, embedder_name: str) -> TrainedRouter | None:
    """The lake's router if its inputs (``made_of``), its files and the predictions are still the same."""
    if not _facts_file(lake).exists():
        return None
    facts = read_json(_facts_file(lake))
    if facts["made_of"] != made_of or facts["version"] != _version(lake):
        return None
    folder, quality = router_folder(lake), RouterQuality(**facts["quality"])
    return TrainedRouter(folder, facts["version"], embedder_name, quality, reused=True)


def _version(lake: DataLake) -> str:
    """A hash of the router's files and the predictions; a missing file counts as empty."""
    files = [*sorted(router_folder(lake).glob("*")), lake.table("prepare", PREDICTIONS)]
    return digest({path.name: file_sha256(path) if path.exists() else "" for path in files})


def _facts_file(lake: DataLake) -> Path:
    return lake.path("prepare", "router.json")
