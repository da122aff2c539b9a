"""The Arrow schemas of the lake's tables, in one place; every table is checked against its own."""

import pyarrow as pa

from cs_pipeline.errors import PipelineError

CONVERSATION = pa.schema(
    [
        pa.field("row_id", pa.string(), nullable=False),
        pa.field("source", pa.string(), nullable=False),
        pa.field("source_file_sha256", pa.string(), nullable=False),
        pa.field("source_row", pa.int64(), nullable=False),
        pa.field("delivered_on", pa.date32()),
        pa.field("subject_id", pa.string()),
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
"""One question and its answer. What a stage does not know yet is null."""

SET_ASIDE = CONVERSATION.append(pa.field("reason", pa.string(), nullable=False))
"""A row that a step left out, with the reason."""

SPLIT_ROW = (
    CONVERSATION.append(pa.field("predicted_intent", pa.string(), nullable=False))
    .append(pa.field("predicted_confidence", pa.float32(), nullable=False))
    .append(pa.field("nearest_train_similarity", pa.float32()))
)
"""A row of a side of the split: what the intent classifier says of its question without having trained on it, and
(validation and test) the cosine of its question to the nearest training question."""


def check_schema(table: pa.Table, schema: pa.Schema, what: str) -> None:
    """Raises PipelineError unless ``table`` has exactly the columns and types of ``schema`` and no forbidden null."""
    if table.schema.names != schema.names or table.schema.types != schema.types:
        differs = sorted(set(map(str, table.schema)) ^ set(map(str, schema)))
        raise PipelineError(
            f"{what} does not have the agreed columns; these differ: {', '.join(differs) or 'their order'}.",
            "This is a fault of the step that made the table; its schema stands in cs_pipeline/schema.py.",
        )
    for field in schema:
        if not field.nullable and table.column(field.name).null_count:
            raise PipelineError(
                f"{what} has {table.column(field.name).null_count} rows without '{field.name}'.",
                "This is a fault of the step that made the table; every row needs one.",
            )
