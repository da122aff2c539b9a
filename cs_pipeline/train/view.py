"""What a recipe sees of the frozen split: which rows it trains on, on which its loss is taken, and our own beside them.

The test split is never read here. No row that is trained on shares a cluster with one on which the loss is taken.
"""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake, file_sha256
from cs_pipeline.recipe import Recipe

VALIDATION_ROWS = 256
"""Rows of the validation split on which the loss is taken before and after: the first by id, so as good as random."""

OUT_OF_SCOPE = "out_of_scope"
"""The ``source`` of the rows in OUT_OF_SCOPE_FILE."""
OUT_OF_SCOPE_FILE = Path(__file__).parent / "out_of_scope.yaml"


def rows_seen(recipe: Recipe, lake: DataLake, side: str, columns: list[str]) -> pa.Table:
    """The rows of ``side`` for ``recipe``, with ``columns``: those of ``validation`` are the ones the loss is taken on.

    Raises PipelineError when an intent that the recipe holds out has no row to train on.
    """
    if side == "validation":
        return _for_loss(_taught(recipe, lake, "validation", columns)).select(columns)
    tables = [_taught(recipe, lake, "train", columns).select(columns)]
    if recipe.mixture.validation:
        validation = _taught(recipe, lake, "validation", [*columns, "cluster_id"])
        kept_apart = _for_loss(validation).column("cluster_id").combine_chunks()
        others = pc.invert(pc.is_in(validation.column("cluster_id"), kept_apart))
        tables.append(validation.filter(others).select(columns))
    if recipe.mixture.out_of_scope:
        tables.append(_out_of_scope(tables[0].schema))
    return pa.concat_tables(tables)


def _taught(recipe: Recipe, lake: DataLake, side: str, columns: list[str]) -> pa.Table:
    """The rows of ``side`` but those of the intents that are held out."""
    table = lake.read("prepare", f"{side}_split", list(dict.fromkeys([*columns, "intent", "row_id"])))
    if not recipe.held_out_intents:
        return table
    if unknown := sorted(set(recipe.held_out_intents) - set(table.column("intent").unique().to_pylist())):
        raise PipelineError(
            f"The recipe '{recipe.name}' holds out intents that no {side} row has: {', '.join(unknown)}.",
            "Name intents of the data in held_out_intents; the asset 'intent_classifier' lists them.",
        )
    return table.filter(pc.invert(pc.is_in(table.column("intent"), pa.array(recipe.held_out_intents))))


def _for_loss(validation: pa.Table) -> pa.Table:
    return validation.take(pc.sort_indices(validation, [("row_id", "ascending")])[:VALIDATION_ROWS])


def _out_of_scope(schema: pa.Schema) -> pa.Table:
    sha256 = file_sha256(OUT_OF_SCOPE_FILE)
    rows: list[dict[str, Any]] = []
    for pair in yaml.safe_load(OUT_OF_SCOPE_FILE.read_text()):
        question, answer = pair["question"], pair["answer"]
        known = {
            "row_id": hashlib.sha256(f"{OUT_OF_SCOPE}\0{question}".encode()).hexdigest()[:16],
            "source": OUT_OF_SCOPE,
            "source_file_sha256": sha256,
            "instruction": question,
            "response": answer,
        }
        rows.append({name: known.get(name) for name in schema.names})
    return pa.Table.from_pylist(rows, schema)
