"""The Arrow schemas of the lake's tables. Every table is checked against its schema when it is written.

``schema.yaml`` lists the columns of each table and says what they contain.
"""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.yaml_file import read_yaml

_TABLES = read_yaml(Path(__file__).with_suffix(".yaml"))
_TYPES = {
    "UTC time": pa.timestamp("us", tz="UTC"),
    "list of strings": pa.list_(pa.string()),
    # Names, addresses and ids of the people in a conversation, each with the placeholder that replaces it.
    "known values": pa.list_(pa.struct({"placeholder": pa.string(), "value": pa.string()})),
}
"""Types that have no alias in Arrow."""


def _columns(table: str) -> list[pa.Field]:
    """The columns of ``table`` in schema.yaml."""
    fields = []
    for name, text in _TABLES[table].items():
        type_name = text.removesuffix(" or null")
        type = _TYPES.get(type_name) or pa.type_for_alias(type_name)
        fields.append(pa.field(name, type, nullable=text != type_name))
    return fields


_REASON = pa.field("reason", pa.string(), nullable=False)

CONVERSATION = pa.schema(_columns("conversation"))
"""A question and its answer."""

INTERACTION = pa.schema(_columns("interaction"))
"""A raw turn of a company's conversation, with personal data."""

QUARANTINED = pa.schema(_columns("quarantined"))
"""An unusable record of a delivery."""

SET_ASIDE = CONVERSATION.append(_REASON)
"""A row that a step set aside, and the reason."""

SPLIT_ROW = pa.schema([*CONVERSATION, *_columns("split_row")])
"""A row of a split, with the prediction of a router that was not trained on it."""

PASSAGE = pa.schema(_columns("passage"))
"""A passage of a help article."""

PASSAGE_SET_ASIDE = PASSAGE.append(_REASON)
"""A passage that must not be used in answers, and the reason."""

ANSWER = pa.schema(_columns("answer"))
"""A known question from the training split and its answer, as stored in the retrieval index."""

SEEN_ROW = pa.schema(_columns("seen_row"))
"""A row that an adapter was trained on, without its text."""

IN_PROMPT = "known answer"
"""A value of the column ``through``: the adapter saw this row's answer only as a known answer in another row's prompt."""

RATING = pa.schema(_columns("rating"))
"""One human judgement."""

INTENT_LABEL = pa.schema(_columns("intent_label"))
"""The intent that a person chose for a company row."""

SUBJECT = pa.schema(_columns("subject"))
"""A usable company row and its subject."""

PREDICTION = pa.schema(_columns("prediction"))
"""The router's prediction for a row of ``conversations``."""

RANDOM_SPLIT = pa.schema(_columns("random_split"))
"""A test question of a random split of Bitext's rows, and its similarity to the other rows."""

SLICE_SCORE = pa.schema(_columns("slice_score"))
"""A score of a system on a slice of the test rows, with its 95 % interval."""

METRIC_SUFFIXES = ("", "_low", "_high", "_base", "_minus_base", "_minus_base_low", "_minus_base_high")
"""A metric has one column per suffix: the tuned score and its 95 % interval, the base's score, and the difference with its
interval."""

BEHIND_FIRST = ("behind_first", "behind_first_low", "behind_first_high")
"""How far a recipe is behind the best one with the same placeholder mode, in the ranking metric, with the 95 % interval."""


def leaderboard_schema(metrics: Sequence[str]) -> pa.Schema:
    """The leaderboard: a row per recipe that was evaluated on the current test rows.

    Its columns are settings, cost (seconds, GiB, MiB) and ``metrics``.
    """
    scores = [metric + suffix for metric in metrics for suffix in METRIC_SUFFIXES]
    return pa.schema([*_columns("leaderboard"), *(pa.field(name, pa.float64()) for name in (*scores, *BEHIND_FIRST))])


def with_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of ``schema`` in ``table``, in order. A nullable column that the table lacks is all null.

    This makes tables readable that were written before the column existed. A day's tables cannot always be rebuilt, because
    raw deliveries are deleted after some time.
    """
    known = set(table.column_names)
    columns = [
        pa.nulls(table.num_rows, field.type) if field.nullable and field.name not in known else table.column(field.name)
        for field in schema
    ]
    return pa.table(columns, schema=schema)


def check_schema(table: pa.Table, schema: pa.Schema, what: str) -> None:
    """Raises PipelineError unless ``table`` has the columns and types of ``schema``, in order, and only allowed nulls."""
    if table.schema.names != schema.names or table.schema.types != schema.types:
        found, expected = ({f"{field.name} ({field.type})" for field in columns} for columns in (table.schema, schema))
        kinds = (("unexpected", sorted(found - expected)), ("missing", sorted(expected - found)))
        differences = "; ".join(f"{kind}: {', '.join(names)}" for kind, names in kinds if names)
        raise PipelineError(
            f"{what} does not have the columns of its schema. Different: {differences or 'their order'}.",
            "This is a bug in the step that made the table; its columns are in cs_pipeline/core/schema.yaml.",
        )
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise PipelineError(
                f"{what} has {table.column(field.name).null_count} rows without '{field.name}'.",
                "This is a bug in the step that made the table; every row needs a value.",
            )
