"""The three sides of the split as training, selection and judgement read them, and the leakage between two of them."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cs_pipeline.prepare.classifier import TextClassifier, out_of_fold
from cs_pipeline.prepare.similarity import naive_split_similarity, nearest
from cs_pipeline.schema import SPLIT_ROW

SIDES = ("train", "validation", "test")
_BINS = np.linspace(0, 1, 11)


@dataclass(frozen=True)
class Leakage:
    """Cosines of each test question to its nearest training question, ours and those of a random split by rows."""

    ours: np.ndarray
    naive: np.ndarray

    def facts(self) -> dict[str, Any]:
        """Ten bins from 0 to 1 with the share of test questions in each, and the medians."""
        return {
            "bins": [round(float(edge), 1) for edge in _BINS],
            **{
                name: {
                    "shares": [round(float(s), 4) for s in np.histogram(values, _BINS)[0] / len(values)],
                    "median": round(float(np.median(values)), 4),
                    "rows": len(values),
                }
                for name, values in (("cluster_split", self.ours), ("random_split", self.naive))
            },
        }


def take_sides(splits: pa.Table, classifier: TextClassifier) -> tuple[dict[str, pa.Table], Leakage]:
    """The rows of each side with the schema SPLIT_ROW.

    Training rows get the intent that a classifier predicts which has not seen them, the others what ``classifier`` says.
    """
    sides = {side: splits.filter(pc.equal(splits.column("split"), side)) for side in SIDES}
    train_questions = sides["train"].column("instruction").to_pylist()
    tables: dict[str, pa.Table] = {}
    for side, table in sides.items():
        questions = table.column("instruction").to_pylist()
        similarity: np.ndarray | None = None
        if side == "train":
            intents, confidence = out_of_fold(questions, table.column("intent").to_pylist())
        else:
            intents, confidence = classifier.predict(questions)
            similarity = nearest(questions, train_questions)[1]
        columns = [pa.array(intents), pa.array(confidence, pa.float32())]
        columns.append(
            pa.nulls(len(questions), pa.float32()) if similarity is None else pa.array(similarity, pa.float32())
        )
        tables[side] = pa.table([*table.columns, *columns], schema=SPLIT_ROW)
    share = tables["test"].num_rows / splits.num_rows
    naive = naive_split_similarity(splits.column("instruction").to_pylist(), share)
    ours = tables["test"].column("nearest_train_similarity").to_numpy()
    return tables, Leakage(ours, naive)


def leaks(splits: pa.Table) -> list[tuple[str, str]]:
    """Pairs (row_id of a judging row, row_id of a training row) of one intent that are near-duplicates after all.

    Found without the clusters: every test and validation question against every training question of its intent.
    """
    from sklearn.feature_extraction.text import CountVectorizer

    from cs_pipeline.prepare.clusters import JACCARD, SHINGLE

    found: list[tuple[str, str]] = []
    frame = splits.select(["row_id", "instruction", "intent", "split"]).to_pandas()
    for _, rows in frame.groupby("intent", sort=True):
        padded = rows["instruction"].str.lower().str.ljust(SHINGLE)
        # CountVectorizer would collapse spaces; the shingles are of the text as it is.
        windows = CountVectorizer(analyzer=_windows, binary=True, dtype=np.int32).fit_transform(padded)
        train = (rows["split"] == "train").to_numpy()
        shared = (windows[~train] @ windows[train].T).toarray()
        sizes = np.asarray(windows.sum(axis=1)).ravel()
        union = sizes[~train][:, None] + sizes[train][None, :] - shared
        ids = rows["row_id"].to_numpy()
        found += [(ids[~train][i], ids[train][j]) for i, j in np.argwhere(shared >= JACCARD * union)]
    return found


def _windows(text: str) -> list[str]:
    from cs_pipeline.prepare.clusters import SHINGLE

    return [text[i : i + SHINGLE] for i in range(len(text) - SHINGLE + 1)]
