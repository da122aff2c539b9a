"""The three sides of the split as training, selection and judgement read them, and the leakage between two of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.core.lake import DataLake, digest, file_sha256
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.prepare.splits.split import SIDES
from cs_pipeline.retrieval.similarity import naive_split_similarity, nearest
from cs_pipeline.text.classifier import TextClassifier, out_of_fold

MOST_COMPARED = (25_000, 10_000)
"""Training rows of Bitext (which has fewer) and of the company that test questions are compared with."""

VIEW = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("predicted_intent", pa.string()),
        pa.field("predicted_confidence", pa.float32()),
        pa.field("random_split_similarity", pa.float32()),
    ]
)
"""What is found out of a row of Bitext once for all: of a training row the intent that a classifier predicts which has not
seen it, and of a row that a random split would test on the cosine to the nearest other row. Null where it does not apply."""

_BINS = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class Leakage:
    """Cosines of Bitext's test questions to the nearest training question, ours and those of a random split by rows.

    ``compared``: how many training questions ours were compared with.
    """

    ours: np.ndarray
    naive: np.ndarray
    compared: int

    def facts(self) -> dict[str, Any]:
        """Ten bins from 0 to 1 with the share of test questions in each, and the medians."""
        return {
            "bins": [round(float(edge), 1) for edge in _BINS],
            "training_questions_compared": self.compared,
            **{
                name: {
                    "shares": [round(float(s), 4) for s in np.histogram(values, _BINS)[0] / len(values)],
                    "median": round(float(np.median(values)), 4),
                    "rows": len(values),
                }
                for name, values in (("cluster_split", self.ours), ("random_split", self.naive))
            },
        }


def bitext_view(lake: DataLake) -> pa.Table:
    """The table ``bitext_predictions`` with the schema VIEW, made when ``bitext_splits`` is not what it was made of."""
    path = lake.table("prepare", "bitext_splits")
    made_of = {b"made_of": digest(file_sha256(path), CODE_VERSIONS["train_split"]).encode()}
    if lake.table("prepare", "bitext_predictions").exists():
        kept = lake.read("prepare", "bitext_predictions")
        if kept.schema.metadata == made_of:
            return kept
    rows = lake.read("prepare", "bitext_splits", ["row_id", "instruction", "intent", "cluster_id", "split"])
    train = rows.filter(pc.equal(rows.column("split"), "train"))
    questions, intents, clusters = (train.column(name).to_pylist() for name in ("instruction", "intent", "cluster_id"))
    predicted, confidence = out_of_fold(questions, intents, clusters)
    test_share = pc.sum(pc.equal(rows.column("split"), "test")).as_py() / rows.num_rows
    held_out, similarity = naive_split_similarity(rows.column("instruction").to_pylist(), test_share)
    at = np.flatnonzero(pc.equal(rows.column("split"), "train").to_numpy())
    view = pa.table(
        [
            rows.column("row_id"),
            _scattered(at, pa.array(predicted, pa.string()), rows.num_rows),
            _scattered(at, pa.array(confidence, pa.float32()), rows.num_rows),
            _scattered(held_out, pa.array(similarity, pa.float32()), rows.num_rows),
        ],
        schema=VIEW.with_metadata(made_of),
    )
    lake.write("prepare", "bitext_predictions", view, VIEW)
    return view


def take_sides(
    conversations: pa.Table, classifier: TextClassifier, view: pa.Table
) -> tuple[dict[str, pa.Table], Leakage]:
    """The rows of each side with the schema SPLIT_ROW; ``view`` is that of Bitext's rows.

    A row is told the intent that a classifier predicts which has not seen it: ``classifier`` has seen Bitext's training
    rows and no others, so a company row has its prediction already.
    """
    bitext = conversations.filter(pc.equal(conversations.column("source"), "bitext"))
    company = conversations.filter(pc.not_equal(conversations.column("source"), "bitext"))
    parts = {side: [_of_side(rows, side) for rows in (bitext, company)] for side in SIDES}
    drawn = zip(parts["train"], MOST_COMPARED, strict=True)
    compared = [question for rows, most in drawn for question in _drawn(rows, most)]
    tables: dict[str, pa.Table] = {}
    for side, (ours, theirs) in parts.items():
        questions = ours.column("instruction").to_pylist()
        if side == "train":
            at = pc.index_in(ours.column("row_id"), value_set=view.column("row_id"))
            told = [view.column(name).take(at) for name in ("predicted_intent", "predicted_confidence")]
        else:
            intents, confidence = classifier.predict(questions)
            told = [pa.array(intents, pa.string()), pa.array(confidence, pa.float32())]
        rows = ours.num_rows + theirs.num_rows
        similarity = pa.nulls(rows, pa.float32())
        if side == "test":
            similarity = pa.array(nearest([*questions, *theirs.column("instruction").to_pylist()], compared)[1])
        added = [
            _together(told[0], theirs.column("intent")),
            _together(told[1], theirs.column("intent_confidence")),
            similarity,
        ]
        tables[side] = pa.table([*pa.concat_tables([ours, theirs]).columns, *added], schema=SPLIT_ROW)
    of_bitext = tables["test"].column("nearest_train_similarity").slice(0, parts["test"][0].num_rows)
    naive = view.column("random_split_similarity").drop_null()
    return tables, Leakage(of_bitext.to_numpy(), naive.to_numpy(), len(compared))


def _of_side(rows: pa.Table, side: str) -> pa.Table:
    return rows.filter(pc.equal(rows.column("split"), side))


def _drawn(rows: pa.Table, most: int) -> list[str]:
    """The questions of at most ``most`` rows, whose ids are the smallest: hashes, so a draw, and a row stays in it."""
    if rows.num_rows > most:
        rows = rows.select(["row_id", "instruction"])
        rows = rows.take(pc.select_k_unstable(rows, most, [("row_id", "ascending")]))
    questions: list[str] = rows.column("instruction").to_pylist()
    return questions


def _scattered(at: np.ndarray, values: pa.Array, rows: int) -> pa.Array:
    """``values`` at the places ``at`` of ``rows`` places, null elsewhere."""
    order = np.full(rows, -1)
    order[at] = np.arange(len(at))
    return values.take(pa.array(order, mask=order < 0))


def _together(first: pa.Array | pa.ChunkedArray, second: pa.ChunkedArray) -> pa.ChunkedArray:
    chunks = first.chunks if isinstance(first, pa.ChunkedArray) else [first]
    return pa.chunked_array([*chunks, *second.chunks], second.type)
