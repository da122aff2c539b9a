"""What a recipe sees of the frozen split: which rows it trains on, on which its loss is taken, and our own beside them.

The test split is never read here. No row that is trained on shares a cluster with one on which the loss is taken.
"""

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from cs_pipeline.lake import DataLake, file_sha256
from cs_pipeline.recipe import Recipe

VALIDATION_ROWS = 256
"""Rows of the validation split on which the loss is taken before and after: the first by id, so as good as random."""

OUT_OF_SCOPE = "out_of_scope"
"""The ``source`` of the rows in OUT_OF_SCOPE_FILE."""
OUT_OF_SCOPE_FILE = Path(__file__).parent / "out_of_scope.yaml"


def rows_seen(recipe: Recipe, lake: DataLake, side: str, columns: list[str]) -> pa.Table:
    """The rows of ``side`` for ``recipe``, with ``columns``: those of ``validation`` are the ones the loss is taken on."""
    if side == "validation":
        return _for_loss(lake.read("prepare", "validation_split", columns))
    tables = [lake.read("prepare", "train_split", columns)]
    if recipe.mixture.validation:
        validation = lake.read("prepare", "validation_split", list({*columns, "cluster_id"}))
        kept_apart = _for_loss(validation).column("cluster_id").combine_chunks()
        others = pc.invert(pc.is_in(validation.column("cluster_id"), kept_apart))
        tables.append(validation.filter(others).select(columns))
    if recipe.mixture.out_of_scope:
        tables.append(_out_of_scope(tables[0].schema))
    return pa.concat_tables(tables)


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
