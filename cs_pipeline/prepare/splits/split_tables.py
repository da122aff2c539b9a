"""The tables ``<split>_split``, which training, evaluation and retrieval read, and the leakage report.

Each split can be built alone. It depends on ``conversations``, ``predictions`` and ``random_split`` only.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.lake import DataLake, digest, file_sha256, write_json
from cs_pipeline.core.schema import CONVERSATION, RANDOM_SPLIT, SPLIT_ROW
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.prepare.splits.conversations import used_conversations
from cs_pipeline.retrieval.similarity import naive_split_similarity, nearest

MAX_TRAINING_QUESTIONS = {"bitext": 25_000, "company": 10_000}
"""The maximum number of training questions of each source that test questions are compared with. Bitext has fewer rows."""

_BINS = np.linspace(0, 1, 11)


def write_split(lake: DataLake, split: str) -> tuple[pa.Table, dict[str, Any] | None]:
    """Writes the table ``<split>_split`` with the schema SPLIT_ROW, Bitext's rows first, and returns it.

    It has the rows of ``used_conversations``. The predicted intents are those of the table ``predictions``. For ``test``,
    also writes and returns ``leakage.json``, unless no row of Bitext is used; see ``add_similarity``.
    """
    rows, report = used_conversations(lake, CONVERSATION.names), None
    table = split_rows(rows, split, lake.read("prepare", "predictions"))
    if split == "test":
        table, report = add_similarity(table, rows, random_split(lake))
        file = lake.path("prepare", "leakage.json")
        write_json(file, report) if report else file.unlink(missing_ok=True)
    lake.write("prepare", f"{split}_split", table, SPLIT_ROW)
    return table, report


def split_rows(conversations: pa.Table, split: str, predictions: pa.Table) -> pa.Table:
    """The rows of ``split`` as SPLIT_ROW with their ``predictions``, without similarities."""
    rows = pa.concat_tables(_rows_by_source(conversations, split))
    of_rows = predictions.take(pc.index_in(rows.column("row_id"), value_set=predictions.column("row_id")))
    predicted = [of_rows.column(name) for name in ("predicted_intent", "predicted_confidence")]
    return pa.table([*rows.columns, *predicted, pa.nulls(rows.num_rows, pa.float32())], schema=SPLIT_ROW)


def add_similarity(test: pa.Table, conversations: pa.Table, random: pa.Table) -> tuple[pa.Table, dict[str, Any] | None]:
    """The ``test`` rows with their cosine to the nearest training question, and the leakage report.

    The report compares the cosines of Bitext's test rows in this split, which is by clusters, with those in a ``random``
    split. For each of the two, it has the share of rows in ten bins from 0 to 1, the median, and the number of rows. It is
    None if ``test`` has no row of Bitext.
    """
    sources = zip(_rows_by_source(conversations, "train"), MAX_TRAINING_QUESTIONS.values(), strict=True)
    compared = [question for rows, limit in sources for question in _sample(rows, limit)]
    cosines = nearest(test.column("instruction").to_pylist(), compared)[1]
    column = "nearest_train_similarity"
    table = test.set_column(SPLIT_ROW.get_field_index(column), SPLIT_ROW.field(column), pa.array(cosines))
    is_bitext = pc.equal(test.column("source"), "bitext").to_numpy()
    if not is_bitext.any():
        return table, None
    report: dict[str, Any] = {
        "bins": [round(float(edge), 1) for edge in _BINS],
        "training_questions_compared": len(compared),
    }
    for name, values in (
        ("cluster_split", cosines[is_bitext]),
        ("random_split", random.column("similarity").to_numpy()),
    ):
        report[name] = {
            "shares": [round(float(share), 4) for share in np.histogram(values, _BINS)[0] / len(values)],
            "median": round(float(np.median(values)), 4),
            "rows": len(values),
        }
    return table, report


def random_split(lake: DataLake) -> pa.Table:
    """The table ``random_split`` with the schema RANDOM_SPLIT, rebuilt when ``bitext_splits`` has changed."""
    path = lake.table("prepare", "bitext_splits")
    made_of = {b"made_of": digest(file_sha256(path), CODE_VERSIONS["test_split"]).encode()}
    if lake.table("prepare", "random_split").exists():
        stored = lake.read("prepare", "random_split")
        if stored.schema.metadata == made_of:
            return stored
    rows = lake.read("prepare", "bitext_splits", ["row_id", "instruction", "split"])
    test_share = pc.sum(pc.equal(rows.column("split"), "test")).as_py() / rows.num_rows
    held_out, similarity = naive_split_similarity(rows.column("instruction").to_pylist(), test_share)
    columns = [rows.column("row_id").take(pa.array(held_out)), pa.array(similarity, pa.float32())]
    table = pa.table(columns, schema=RANDOM_SPLIT.with_metadata(made_of))
    lake.write("prepare", "random_split", table, RANDOM_SPLIT)
    return table


def _rows_by_source(conversations: pa.Table, split: str) -> tuple[pa.Table, pa.Table]:
    """Bitext's rows of ``split``, and the company's."""
    rows = conversations.filter(pc.equal(conversations.column("split"), split))
    bitext = pc.equal(rows.column("source"), "bitext")
    return rows.filter(bitext), rows.filter(pc.invert(bitext))


def _sample(rows: pa.Table, limit: int) -> list[str]:
    """The questions of the at most ``limit`` rows with the smallest ids. Ids are hashes, so this is a stable sample."""
    if rows.num_rows > limit:
        rows = rows.select(["row_id", "instruction"])
        rows = rows.take(pc.select_k_unstable(rows, limit, [("row_id", "ascending")]))
    questions: list[str] = rows.column("instruction").to_pylist()
    return questions
