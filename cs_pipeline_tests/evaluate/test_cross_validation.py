"""A look-up is judged on all rows of a company, never with an answer of the question's own cluster or conversation.

Every question here has a twin with the same answer, and is unlike all other questions. So a look-up that leaves out the
question's cluster and conversation answers exactly those questions whose twin is of another cluster and conversation.
"""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.evaluate import company
from cs_pipeline.evaluate.company import company_results
from cs_pipeline.evaluate.results import CompanyResults
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.recipe import FineTuneRecipe, LookupRecipe, Recipe
from cs_pipeline.retrieval.index import build_index
from cs_pipeline.retrieval.lookup import write_threshold
from cs_pipeline.retrieval.router import NO_SUBJECT
from cs_pipeline.train.adapter import build_lookup

PAIRS = 12
"""Pairs of twins of each kind: of one cluster, of one conversation, and of neither."""
SPLITS = {"cluster": ("train",), "conversation": ("test", "validation", "train"), "neither": ("train",)}


def add_company_rows(lake: DataLake) -> None:
    """Adds the pairs. Their second rows are training rows; the first ones of ``conversation`` are of all splits in turn."""
    tables = {split: lake.read("prepare", f"{split}_split").to_pylist() for split in ("train", "validation", "test")}
    like: dict[str, Any] = tables["train"][0] | {"source": "company", "predicted_intent": None, "flags": None}
    for kind, splits in SPLITS.items():
        for number in range(PAIRS * len(splits)):
            words = [digest(kind, number, word)[:9] for word in range(6)]
            for twin in (0, 1):
                split = splits[number % len(splits)] if twin == 0 else "train"
                row = like | {
                    "row_id": digest(kind, number, twin)[:16] * 2,
                    "cluster_id": f"{kind} {number} {twin * (kind != 'cluster')}",
                    "conversation_id": f"{kind} {number} {twin * (kind != 'conversation')}",
                    "instruction": f"{' '.join(words)} {twin}",
                    "response": f"The answer is {words[0]} {words[1]}, as it always was.",
                    "intent": NO_SUBJECT if kind == "conversation" else "bikes",
                    "split": split,
                    "nearest_train_similarity": 0.5 if split == "test" else None,
                }
                tables[split].append(row)
    for split, rows in tables.items():
        lake.write("prepare", f"{split}_split", pa.Table.from_pylist(rows, SPLIT_ROW), SPLIT_ROW)
    build_index(lake)


def judged(recipe: Recipe, folder: Path, lake: DataLake) -> CompanyResults | None:
    rows = FrozenTestSet(recipe, lake)
    stats = {"tuned": rows.score(rows.references), "lookup": rows.score([""] * len(rows.references))}
    return company_results(recipe, folder, lake, rows, rows.test, stats)


def test_only_answers_of_other_clusters_and_conversations_are_given(
    prepared_lake: DataLake,
    tiny: FineTuneRecipe,
    tiny_lookup: LookupRecipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    write_threshold(tmp_path, 0.5)
    assert judged(tiny_lookup, tmp_path, prepared_lake) is None
    add_company_rows(prepared_lake)
    found = judged(tiny_lookup, tmp_path, prepared_lake)
    assert found is not None
    assert (found.rows, found.rows_left_out) == (10 * PAIRS, 0)
    assert found.conversations == (2 + 3 + 2) * PAIRS
    assert found.clusters == (1 + 6 + 2) * PAIRS
    assert found.handed_over == 8 * PAIRS, "exactly the pairs of one cluster or of one conversation"
    quality = found.scores["quality"]
    assert quality is not None
    assert quality.score == pytest.approx(100)
    assert set(found.by_intent) == {"bikes", NO_SUBJECT}
    bikes, other = found.by_intent["bikes"], found.by_intent[NO_SUBJECT]
    assert (bikes.rows, bikes.clusters, bikes.handed_over, bikes.scores) == (
        *(4 * PAIRS, 3 * PAIRS, 2 * PAIRS),
        found.scores,
    )
    assert (other.rows, other.handed_over, other.scores) == (6 * PAIRS, 6 * PAIRS, {})
    # Models can be compared on the test rows only.
    assert (found.test_rows, found.test_clusters) == (PAIRS, PAIRS)
    difference = found.differences["lookup"]
    assert difference is not None
    assert (difference.rows, difference.low > 20) == (PAIRS, True)
    # Beside a fine-tune it is the look-up that a version of the same data would be.
    free = LookupRecipe(name="free", description="as a version", method="lookup", placeholders=tiny.placeholders)
    as_version = judged(free, build_lookup(free, prepared_lake).folder, prepared_lake)
    assert judged(tiny, tmp_path / "no look-up", prepared_lake) == as_version
    monkeypatch.setattr(company, "MAX_QUESTIONS", 15)
    sampled = judged(tiny_lookup, tmp_path, prepared_lake)
    assert sampled is not None
    assert (sampled.rows, sampled.rows_left_out, sampled.conversations) == (15, 105, found.conversations)
