"""The tables ``<split>_split``, which training, evaluation and retrieval read, and the leakage report.

Each split can be built alone. It depends on ``conversations``, the intent classifier and ``bitext_predictions`` only.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.lake import DataLake, digest, file_sha256, write_json
from cs_pipeline.core.schema import BITEXT_PREDICTIONS, SPLIT_ROW
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.prepare.intent_classifier import INTENTS, load_classifier
from cs_pipeline.retrieval.similarity import naive_split_similarity, nearest
from cs_pipeline.text.classifier import TextClassifier, out_of_fold

MAX_TRAINING_QUESTIONS = {"bitext": 25_000, "company": 10_000}
"""The maximum number of training questions of each source that test questions are compared with. Bitext has fewer rows."""

_BINS = np.linspace(0, 1, 11)


def write_split(lake: DataLake, split: str) -> tuple[pa.Table, dict[str, Any] | None]:
    """Writes the table ``<split>_split`` with the schema SPLIT_ROW, Bitext's rows first, and returns it.

    For ``test``, also writes and returns ``leakage.json``; see ``add_similarity``.
    """
    rows, report = lake.read("prepare", "conversations"), None
    if split == "train":
        table = training_split(rows, bitext_predictions(lake))
    else:
        table = held_out_split(rows, split, load_classifier(lake, INTENTS))
    if split == "test":
        table, report = add_similarity(table, rows, bitext_predictions(lake))
        write_json(lake.path("prepare", "leakage.json"), report)
    lake.write("prepare", f"{split}_split", table, SPLIT_ROW)
    return table, report


def training_split(conversations: pa.Table, predictions: pa.Table) -> pa.Table:
    """The training rows. Bitext's rows get their predicted intent from ``predictions``; company rows already have one.

    Each prediction was made by a classifier that was not trained on the row. The classifier of the company rows was trained
    on Bitext's rows only.
    """
    bitext, company = _rows_by_source(conversations, "train")
    rows = predictions.take(pc.index_in(bitext.column("row_id"), value_set=predictions.column("row_id")))
    return _with_predictions(bitext, company, rows.column("predicted_intent"), rows.column("predicted_confidence"))


def held_out_split(conversations: pa.Table, split: str, classifier: TextClassifier) -> pa.Table:
    """The validation or test rows. Bitext's rows get the predictions of ``classifier``."""
    bitext, company = _rows_by_source(conversations, split)
    intents, confidence = classifier.predict(bitext.column("instruction").to_pylist())
    return _with_predictions(bitext, company, pa.array(intents, pa.string()), pa.array(confidence, pa.float32()))


def add_similarity(test: pa.Table, conversations: pa.Table, predictions: pa.Table) -> tuple[pa.Table, dict[str, Any]]:
    """The ``test`` rows with their cosine to the nearest training question, and the leakage report.

    The report compares the cosines of Bitext's test rows in this split, which is by clusters, with those in a random split.
    For each of the two, it has the share of rows in ten bins from 0 to 1, the median, and the number of rows.
    """
    sources = zip(_rows_by_source(conversations, "train"), MAX_TRAINING_QUESTIONS.values(), strict=True)
    compared = [question for rows, limit in sources for question in _sample(rows, limit)]
    cosines = nearest(test.column("instruction").to_pylist(), compared)[1]
    column = "nearest_train_similarity"
    table = test.set_column(SPLIT_ROW.get_field_index(column), SPLIT_ROW.field(column), pa.array(cosines))
    report: dict[str, Any] = {
        "bins": [round(float(edge), 1) for edge in _BINS],
        "training_questions_compared": len(compared),
    }
    of_bitext = cosines[pc.equal(test.column("source"), "bitext").to_numpy()]
    random_split = predictions.column("random_split_similarity").drop_null().to_numpy()
    for name, values in (("cluster_split", of_bitext), ("random_split", random_split)):
        report[name] = {
            "shares": [round(float(share), 4) for share in np.histogram(values, _BINS)[0] / len(values)],
            "median": round(float(np.median(values)), 4),
            "rows": len(values),
        }
    return table, report


def bitext_predictions(lake: DataLake) -> pa.Table:
    """The table ``bitext_predictions`` with the schema BITEXT_PREDICTIONS, rebuilt when ``bitext_splits`` has changed."""
    path = lake.table("prepare", "bitext_splits")
    made_of = {b"made_of": digest(file_sha256(path), CODE_VERSIONS["train_split"]).encode()}
    if lake.table("prepare", "bitext_predictions").exists():
        stored = lake.read("prepare", "bitext_predictions")
        if stored.schema.metadata == made_of:
            return stored
    rows = lake.read("prepare", "bitext_splits", ["row_id", "instruction", "intent", "cluster_id", "split"])
    train = rows.filter(pc.equal(rows.column("split"), "train"))
    questions, intents, clusters = (train.column(name).to_pylist() for name in ("instruction", "intent", "cluster_id"))
    predicted, confidence = out_of_fold(questions, intents, clusters)
    test_share = pc.sum(pc.equal(rows.column("split"), "test")).as_py() / rows.num_rows
    held_out, similarity = naive_split_similarity(rows.column("instruction").to_pylist(), test_share)
    positions = np.flatnonzero(pc.equal(rows.column("split"), "train").to_numpy())
    predictions = pa.table(
        [
            rows.column("row_id"),
            _scatter(positions, pa.array(predicted, pa.string()), rows.num_rows),
            _scatter(positions, pa.array(confidence, pa.float32()), rows.num_rows),
            _scatter(held_out, pa.array(similarity, pa.float32()), rows.num_rows),
        ],
        schema=BITEXT_PREDICTIONS.with_metadata(made_of),
    )
    lake.write("prepare", "bitext_predictions", predictions, BITEXT_PREDICTIONS)
    return predictions


def _rows_by_source(conversations: pa.Table, split: str) -> tuple[pa.Table, pa.Table]:
    """Bitext's rows of ``split``, and the company's."""
    rows = conversations.filter(pc.equal(conversations.column("split"), split))
    bitext = pc.equal(rows.column("source"), "bitext")
    return rows.filter(bitext), rows.filter(pc.invert(bitext))


def _with_predictions(
    bitext: pa.Table, company: pa.Table, intents: pa.Array | pa.ChunkedArray, confidence: pa.Array | pa.ChunkedArray
) -> pa.Table:
    """Both sources as SPLIT_ROW without similarities; ``intents`` and ``confidence`` are predictions for Bitext's rows."""
    rows = pa.concat_tables([bitext, company])
    predictions = [
        _concatenate(intents, company.column("intent")),
        _concatenate(confidence, company.column("intent_confidence")),
    ]
    return pa.table([*rows.columns, *predictions, pa.nulls(rows.num_rows, pa.float32())], schema=SPLIT_ROW)


def _sample(rows: pa.Table, limit: int) -> list[str]:
    """The questions of the at most ``limit`` rows with the smallest ids. Ids are hashes, so this is a stable sample."""
    if rows.num_rows > limit:
        rows = rows.select(["row_id", "instruction"])
        rows = rows.take(pc.select_k_unstable(rows, limit, [("row_id", "ascending")]))
    questions: list[str] = rows.column("instruction").to_pylist()
    return questions


def _scatter(positions: np.ndarray, values: pa.Array, rows: int) -> pa.Array:
    """An array of length ``rows`` with ``values`` at ``positions`` and nulls elsewhere."""
    order = np.full(rows, -1)
    order[positions] = np.arange(len(positions))
    return values.take(pa.array(order, mask=order < 0))


def _concatenate(first: pa.Array | pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = first.chunks if isinstance(first, pa.ChunkedArray) else [first]
    return pa.chunked_array([*chunks, *second.chunks], second.type)
