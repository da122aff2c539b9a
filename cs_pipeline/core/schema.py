"""The Arrow schemas of the lake's tables, in one place; every table is checked against its own."""

import pyarrow as pa

from cs_pipeline.core.errors import PipelineError

CONVERSATION = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_file_sha256", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("delivered_on", pa.date32()),
        pa.field("subject_id", pa.string()),
        pa.field("conversation_id", pa.string()),
        pa.field("context", pa.string()),
        pa.field("instruction", pa.string()),
        pa.field("response", pa.string()),
        pa.field("category", pa.string()),
        pa.field("intent", pa.string()),
        pa.field("intent_confidence", pa.float32()),
        pa.field("flags", pa.string()),
        pa.field("cluster_id", pa.string()),
        pa.field("split", pa.string()),
    ]
)
"""One question and its answer. What a stage does not know yet is null.

``subject_id`` and ``conversation_id`` are keyed hashes, so that nobody can try guesses (company rows: ``Ledger.subject``
and ``Ledger.row``). ``context`` holds the earlier turns as JSON, oldest first: ``[["customer", "…"], ["agent", "…"]]``.
"""

INTERACTION = pa.schema(
    [
        pa.field("source_file_sha256", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64()),
        pa.field("delivered_on", pa.date32(), nullable=False),
        pa.field("conversation_id", pa.string(), nullable=False),
        pa.field("turn", pa.int32(), nullable=False),
        pa.field("role", pa.string(), nullable=False),
        pa.field("subject_id", pa.string()),
        pa.field("text", pa.string(), nullable=False),
        pa.field(
            "known",
            pa.list_(pa.struct([pa.field("placeholder", pa.string()), pa.field("value", pa.string())])),
            nullable=False,
        ),
    ]
)
"""One turn of a company's conversation, raw. Holds personal data; only the stage ingest has such tables.

``source_row`` is the place of the record in its file, from 0; ``byte_offset`` where it begins (null in Parquet).
``role`` is customer, agent or automatic. ``known`` is what the export's own fields say of the people in the
conversation: a value, and the placeholder that is to take its place.
"""

QUARANTINED = pa.schema(
    [
        pa.field("source_file_sha256", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("byte_offset", pa.int64()),
        pa.field("delivered_on", pa.date32(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("record", pa.string(), nullable=False),
    ]
)
"""A record of a delivery that could not be used, raw, its first 500 characters."""

SET_ASIDE = CONVERSATION.append(pa.field("reason", pa.string(), nullable=False))
"""A row that a step left out, with the reason."""

SPLIT_ROW = (
    CONVERSATION.append(pa.field("predicted_intent", pa.string(), nullable=False))
    .append(pa.field("predicted_confidence", pa.float32(), nullable=False))
    .append(pa.field("nearest_train_similarity", pa.float32()))
)
"""A row of a side of the split: what the intent classifier says of its question without having trained on it, and
(validation and test) the cosine of its question to the nearest training question."""


PASSAGE = pa.schema(
    [
        pa.field("passage_id", pa.string(), nullable=False),
        pa.field("path", pa.string(), nullable=False),
        pa.field("place", pa.int32(), nullable=False),
        pa.field("title", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("address", pa.string(), nullable=False),
        pa.field("version", pa.string(), nullable=False),
    ]
)
"""A piece of a help article, the ``place``-th of its file from 0. ``path`` is that file below landing/knowledge/.

``address`` is where people read the article: the URL that the file states, else its path. ``version`` is the sha256 of the
file; ``passage_id`` a hash of path and text, so it stays while the rest of the article changes.
"""

PASSAGE_SET_ASIDE = PASSAGE.append(pa.field("reason", pa.string(), nullable=False))
"""A piece of an article that no answer may be made of, with the reason."""

ANSWER = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("intent", pa.string(), nullable=False),
    ]
)
"""A known question of the training side and its answer, as the retrieval index holds them."""

SEEN = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_file_sha256", pa.string(), nullable=False),
        pa.field("subject_id", pa.string()),
        pa.field("through", pa.string(), nullable=False),
    ]
)
"""A row that an adapter was trained on, without its text. ``through`` is empty, or TOLD where its answer stood before
another row's question, or the fingerprint of the adapter trained on it from which this one's training went on."""

TOLD = "known answer"

RATING = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("at", pa.timestamp("us", tz="UTC"), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("rater", pa.string(), nullable=False),
        pa.field("question_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("context", pa.string()),
        pa.field("systems", pa.list_(pa.string()), nullable=False),
        pa.field("answers", pa.list_(pa.string()), nullable=False),
        pa.field("score", pa.int8()),
        pa.field("winner", pa.string()),
        pa.field("source", pa.string(), nullable=False),
        pa.field("settings", pa.string(), nullable=False),
    ]
)
"""One judgement of a person. Its texts have been through the cleaning of personal data before they come here.

``id`` is made where the judgement is given, so that a delivery tried again is known as such. ``kind`` is rating (one
answer, ``score`` 1 to 5), thumb (one answer, ``score`` 1 for up and 0 for down) or vote (two answers or more, ``winner``
is the letter of the best in the order shown, a, b, c …, or tie). The ratings of several answers to one question share its
``question_id``. ``systems`` are the versions as evaluation and registry call them, ``answers`` what each said, both in the
order shown. ``context`` holds the earlier turns as in CONVERSATION. ``rater`` is a keyed hash, or the name that was given
at an import; ``source`` is page or import. ``settings`` is JSON: tone, temperature, whatever else shaped the answers.
"""


def check_schema(table: pa.Table, schema: pa.Schema, what: str) -> None:
    """Raises PipelineError unless ``table`` has exactly the columns and types of ``schema`` and no forbidden null."""
    if table.schema.names != schema.names or table.schema.types != schema.types:
        differs = sorted(set(map(str, table.schema)) ^ set(map(str, schema)))
        raise PipelineError(
            f"{what} does not have the agreed columns; these differ: {', '.join(differs) or 'their order'}.",
            "This is a fault of the step that made the table; its schema stands in cs_pipeline/core/schema.py.",
        )
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise PipelineError(
                f"{what} has {table.column(field.name).null_count} rows without '{field.name}'.",
                "This is a fault of the step that made the table; every row needs one.",
            )
