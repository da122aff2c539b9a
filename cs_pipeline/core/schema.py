"""The Arrow schemas of the lake's tables. Every table is checked against its schema when it is written."""

from collections.abc import Sequence

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
"""A question and its answer. Columns that a later stage fills are null until then.

``subject_id`` and ``conversation_id`` are keyed hashes, so nobody can test guesses against them (company rows:
``Ledger.subject`` and ``Ledger.row``). ``context`` contains the earlier turns as JSON, oldest first:
``[["customer", "…"], ["agent", "…"]]``.
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
"""A raw turn of a company's conversation. It contains personal data; only the stage ingest has such tables.

``source_row`` is the index of the record in its file, from 0; ``byte_offset`` is where it begins (null in Parquet).
``role`` is customer, agent or automatic. ``known`` are the values that the export's own fields give for the people in
the conversation, each with the placeholder that replaces it.
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
"""A record of a delivery that could not be used: its first 500 characters, raw."""

SET_ASIDE = CONVERSATION.append(pa.field("reason", pa.string(), nullable=False))
"""A row that a step left out, and the reason."""

SPLIT_ROW = (
    CONVERSATION.append(pa.field("predicted_intent", pa.string(), nullable=False))
    .append(pa.field("predicted_confidence", pa.float32(), nullable=False))
    .append(pa.field("nearest_train_similarity", pa.float32()))
)
"""A row of one side of the split, with the prediction of an intent classifier that was not trained on it. Validation and
test rows also have the cosine similarity of their question to the nearest training question."""

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
"""A passage of a help article. ``path`` is the file in landing/knowledge/, ``place`` the passage's index in it, from 0.

``address`` is where customers read the article: the URL that the file states, else its path. ``version`` is the sha256 of
the file. ``passage_id`` is a hash of path and text, so it stays the same while the rest of the article changes.
"""

PASSAGE_SET_ASIDE = PASSAGE.append(pa.field("reason", pa.string(), nullable=False))
"""A passage that must not be used in answers, and the reason."""

ANSWER = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("cluster_id", pa.string(), nullable=False),
        pa.field("question", pa.string(), nullable=False),
        pa.field("answer", pa.string(), nullable=False),
        pa.field("intent", pa.string(), nullable=False),
    ]
)
"""A known question from the training side and its answer, as stored in the retrieval index."""

SEEN_ROW = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_file_sha256", pa.string(), nullable=False),
        pa.field("subject_id", pa.string()),
        pa.field("through", pa.string(), nullable=False),
    ]
)
"""A row that an adapter was trained on, without its text. ``through`` is empty for a training row, IN_PROMPT if its answer
was a known answer in another row's prompt, or the fingerprint of the earlier adapter that this one was warm-started from.
"""

IN_PROMPT = "known answer"

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
"""One human judgement, after personal data was replaced in its texts.

``id`` is created by the client, so a retry can be recognised. ``kind`` is rating (one answer, ``score`` 1 to 5), thumb
(one answer, ``score`` 1 for up and 0 for down) or vote (two or more answers; ``winner`` is the letter of the best one in
the order shown, a, b, c …, or tie). Ratings of several answers to one question share its ``question_id``. ``systems`` are
the versions under their names in evaluation and registry, ``answers`` what each one answered, both in the order shown.
``context`` is as in CONVERSATION. ``rater`` is a keyed hash, or the name given at an import; ``source`` is page or import.
``settings`` is JSON with tone, temperature and whatever else shaped the answers.
"""

BITEXT_VIEW = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("predicted_intent", pa.string()),
        pa.field("predicted_confidence", pa.float32()),
        pa.field("random_split_similarity", pa.float32()),
    ]
)
"""What is computed once per Bitext row. For training rows: the intent and confidence of a classifier that was not trained on
them. For rows that a random split would put into test: the cosine to the nearest other row. Null where it does not apply."""

SLICE_SCORE = pa.schema(
    [
        pa.field("kind", pa.string(), nullable=False),
        pa.field("slice", pa.string(), nullable=False),
        pa.field("rows", pa.int64(), nullable=False),
        pa.field("clusters", pa.int64(), nullable=False),
        pa.field("system", pa.string(), nullable=False),
        pa.field("metric", pa.string(), nullable=False),
        pa.field("score", pa.float64()),
        pa.field("low", pa.float64()),
        pa.field("high", pa.float64()),
    ]
)
"""A score of a system on a slice of the test rows, with its 95 % interval; null with too few clusters, without an input, and
where there is nothing to judge."""

METRIC_SUFFIXES = ("", "_low", "_high", "_base", "_minus_base", "_minus_base_low", "_minus_base_high")
"""A metric's columns are its name and these: the tuned score with its 95 % interval, the base's, and the difference."""

BEHIND_FIRST = ("behind_first", "behind_first_low", "behind_first_high")
"""The difference in the ranking metric from the first recipe of the same placeholder mode, with its 95 % interval."""

_LEADERBOARD_SETTINGS = [
    pa.field("recipe", pa.string(), nullable=False),
    pa.field("note", pa.string(), nullable=False),
    pa.field("placeholders", pa.string(), nullable=False),
    pa.field("base", pa.string(), nullable=False),
    pa.field("parameters", pa.int64(), nullable=False),
    pa.field("method", pa.string(), nullable=False),
    pa.field("quantization", pa.string(), nullable=False),
    pa.field("learning_rate", pa.float64(), nullable=False),
    pa.field("effective_batch", pa.int64(), nullable=False),
    pa.field("epochs", pa.float64(), nullable=False),
    pa.field("steps", pa.int64(), nullable=False),
    pa.field("rows", pa.int64(), nullable=False),
    pa.field("max_length", pa.int64(), nullable=False),
    pa.field("template", pa.string(), nullable=False),
    pa.field("route", pa.string(), nullable=False),
    pa.field("start", pa.string(), nullable=False),
    pa.field("seconds", pa.float64(), nullable=False),
    pa.field("tokens_per_second", pa.float64(), nullable=False),
    pa.field("peak_memory_gib", pa.float64(), nullable=False),
    pa.field("trainable_parameters", pa.int64(), nullable=False),
    pa.field("adapter_mib", pa.float64(), nullable=False),
    pa.field("evaluation_seconds", pa.float64(), nullable=False),
]


def leaderboard_schema(metrics: Sequence[str]) -> pa.Schema:
    """A recipe that was evaluated on the current test rows: settings, cost (seconds, GiB, MiB) and ``metrics``.

    Settings are those of the evaluated adapter, even if the recipe's YAML has changed since. ``parameters`` counts all
    weights including the adapter's, ``rows`` the training rows; ``note`` is empty or warns of something.
    """
    return pa.schema(
        [
            *_LEADERBOARD_SETTINGS,
            *(pa.field(name, pa.int64()) for name in ("r", "lora_alpha")),  # null if all weights are trained
            *(pa.field(metric + suffix, pa.float64()) for metric in metrics for suffix in METRIC_SUFFIXES),
            *(pa.field(name, pa.float64()) for name in BEHIND_FIRST),
        ]
    )


def check_schema(table: pa.Table, schema: pa.Schema, what: str) -> None:
    """Raises PipelineError unless ``table`` has the columns and types of ``schema``, in order, and no forbidden nulls."""
    if table.schema.names != schema.names or table.schema.types != schema.types:
        differs = sorted(set(map(str, table.schema)) ^ set(map(str, schema)))
        raise PipelineError(
            f"{what} does not have the columns of its schema; these differ: {', '.join(differs) or 'their order'}.",
            "This is a bug in the step that made the table; its schema is in cs_pipeline/core/schema.py.",
        )
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise PipelineError(
                f"{what} has {table.column(field.name).null_count} rows without '{field.name}'.",
                "This is a bug in the step that made the table; every row needs a value.",
            )
