"""All recipes side by side, as far as they were judged on the same rows."""

from collections.abc import Sequence

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.evaluate.evaluation import evaluation_folder, read_evaluation
from cs_pipeline.lake import DataLake, atomic_file, file_sha256

COLUMNS = ("bits_per_character", "right_intent", "rougeL", "bleu", "chrf", "placeholder_recall", "stop_rate")


def write_leaderboard(recipes: Sequence[str], lake: DataLake) -> pd.DataFrame:
    """A row for each of ``recipes`` evaluated on the present test split, fewest bits per character first.

    Columns: recipe, base, the scores of the tuned model (see cs_pipeline/evaluate/metrics.py), the base's bits per
    character. Writes ``evaluate/leaderboard.parquet``.
    """
    test = file_sha256(lake.table("prepare", "test_split"))
    rows = []
    for recipe in recipes:
        if not (evaluation_folder(recipe, lake) / "evaluation.json").exists():
            continue
        facts = read_evaluation(recipe, lake)
        if facts["data"]["test_split"] != test:
            continue  # judged on other questions: not comparable
        scores = {name: (facts["scores"]["tuned"][name] or {}).get("score") for name in COLUMNS}
        base = facts["scores"]["base"]["bits_per_character"]["score"]
        rows.append({"recipe": recipe, "base": facts["base"]["name"], **scores, "base_bits_per_character": base})
    names = ["recipe", "base", *COLUMNS, "base_bits_per_character"]
    board = pd.DataFrame(rows, columns=names).sort_values("bits_per_character", ignore_index=True)
    with atomic_file(lake.table("evaluate", "leaderboard")) as temporary:
        pq.write_table(pa.Table.from_pandas(board, preserve_index=False), temporary)
    return board
