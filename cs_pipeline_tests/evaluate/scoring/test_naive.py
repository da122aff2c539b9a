from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.scoring.baselines import naive_scores, stratified_sample
from cs_pipeline.ingest.sample import sample_rows

PUBLISHED = {"rouge1": 56.7, "rouge2": 28.2, "rougeL": 39.3, "bleu": 28.2, "chrf": 51.3}
"""Of the nearest question's answer on 500 rows of a random stratified split of the shared Bitext rows, as given there."""


def test_intents_are_held_out_in_proportion() -> None:
    labels = ["a"] * 600 + ["b"] * 300 + ["c"] * 99 + ["d"]
    drawn = stratified_sample(labels, 100, seed=0)
    assert Counter(labels[place] for place in drawn) == {"a": 60, "b": 30, "c": 10}
    assert len(set(drawn.tolist())) == len(drawn)
    np.testing.assert_array_equal(drawn, stratified_sample(labels, 100, seed=0))
    assert not np.array_equal(drawn, stratified_sample(labels, 100, seed=1))
    assert len(stratified_sample(labels, 5000, seed=0)) == 500, "half of the rows stay for training"


def test_no_row_is_answered_with_itself() -> None:
    rows = sample_rows(400).drop_duplicates("instruction")
    alone = rows.assign(response=[f"answer{place}" for place in range(len(rows))])
    scores = naive_scores(alone, rows=40)
    assert set(scores) == set(PUBLISHED)
    assert scores["rouge1"] == 0, "each answer is a word of its own, so only its own row has it"
    leaking = pd.concat([alone, alone], ignore_index=True)
    assert naive_scores(leaking, rows=40)["rouge1"] == pytest.approx(100, abs=15), "its double is in the training rows"


def test_nothing_to_hold_out_is_told() -> None:
    with pytest.raises(PipelineError, match="no rows to score"):
        naive_scores(sample_rows(30).head(1))


def test_real_rows_score_as_published(bitext_csv: Path) -> None:
    scores = naive_scores(pd.read_csv(bitext_csv, dtype=str, keep_default_na=False))
    assert scores == pytest.approx(PUBLISHED, abs=1)
