"""The retrieval index and scikit-learn's sparse product: building, adding rows, and searching for a question.

    python -m bench.retrieval [FILE] [--rows 24000] [--asked 300] [--rounds 3] [--write]

FILE is a CSV in the Bitext schema; without it, questions are generated from the project's grammar and made-up words, so
that no two are similar. ``--asked`` of them are held out and searched for one by one, as in serving. The true nearest row
is the one that the sparse product finds, or any row with the same cosine.
"""

import random
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
from rich.table import Table

from bench.side_by_side import arguments, in_turn, machine, ratio, report
from cs_pipeline.core.schema import ANSWER, PASSAGE
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.retrieval.index import RetrievalIndex, write_index
from cs_pipeline.retrieval.similarity import CHARACTER_NGRAMS

MIN_RECALL = 0.99
"""Minimum share of questions whose true nearest row is found."""


def generated_questions(count: int, seed: int = 0) -> list[str]:
    """Sample questions with one to three of 50,000 made-up words, some of them far more frequent than others."""
    rng = random.Random(seed)
    sample = list(dict.fromkeys(sample_rows(min(60_000, max(3_000, count)), seed=1)["instruction"]))
    syllables = [
        onset + vowel + coda for onset in ("", *"bdfghjklmnprstvz") for vowel in "aeiou" for coda in ("", *"lmnrst")
    ]
    words = ["".join(rng.choices(syllables, k=rng.choice((2, 3)))) for _ in range(50_000)]
    weights = np.cumsum(1 / np.arange(10, 10 + len(words))).tolist()

    def one() -> str:
        question = rng.choice(sample).split()
        for word in rng.choices(words, cum_weights=weights, k=rng.choice((1, 2, 2, 3))):
            question.insert(rng.randrange(len(question) + 1), word)
        return " ".join(question)

    return [one() for _ in range(count)]


def read_questions(file: Path | None, count: int) -> list[str]:
    """Up to ``count`` questions of ``file`` in random order, or ``count`` generated ones."""
    if file is None:
        return generated_questions(count)
    questions = pd.read_csv(file, usecols=["instruction"], dtype=str, keep_default_na=False)["instruction"]
    return questions.sample(min(count, len(questions)), random_state=0).tolist()


class SparseProduct:
    """scikit-learn alone: the TF-IDF matrix of all questions, multiplied by the vector of each query."""

    def __init__(self, questions: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import TfidfVectorizer

        self._vectorizer = TfidfVectorizer(**CHARACTER_NGRAMS, sublinear_tf=True, dtype=np.float32)
        self._columns = self._vectorizer.fit_transform(questions).T.tocsr()

    def cosines(self, question: str) -> np.ndarray:
        return (self._vectorizer.transform([question]) @ self._columns).toarray()[0]

    def lookups(self, asked: Sequence[str]) -> list[int]:
        """The position of the nearest row to each question."""
        return [int(self.cosines(question).argmax()) for question in asked]


def table_of(questions: Sequence[str]) -> dict[str, pa.Table]:
    """The tables of an index of ``questions``; a row's id is its position."""
    ids = pa.array([f"{number:07}" for number in range(len(questions))], pa.string())
    texts = pa.array(questions, pa.string())
    return {
        "answers": pa.table(
            [ids, ids, texts, texts, *([value] * len(texts) for value in ("i", "bitext"))], schema=ANSWER
        ),
        "passages": PASSAGE.empty_table(),
    }


def build(folder: Path, tables: dict[str, pa.Table]) -> RetrievalIndex:
    """Builds the index from scratch and loads it."""
    shutil.rmtree(folder, ignore_errors=True)
    write_index(folder, tables)
    return RetrievalIndex.load(folder)


def lookups(index: RetrievalIndex, asked: Sequence[str]) -> list[int]:
    """The position of the nearest row to each question, -1 if nothing is found."""
    found = (index.answers([question], 1)[0] for question in asked)
    return [int(row[0].id) if row else -1 for row in found]


def measure(questions: list[str], asked_count: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Runs both arms. Raises AssertionError if the index finds less than MIN_RECALL of the true nearest rows."""
    asked, known = questions[:asked_count], questions[asked_count:]
    builders: dict[str, Callable[[], SparseProduct | RetrievalIndex]] = {
        "plain": partial(SparseProduct, known),
        "index": partial(build, folder, table_of(known)),
    }
    # Building a large index is measured once, because it takes minutes.
    repeat = len(known) < 100_000
    building = in_turn(builders, rounds if repeat else 1, warmup_rounds=int(repeat))
    plain, index = building["plain"].computed[-1], building["index"].computed[-1]
    assert isinstance(plain, SparseProduct)
    assert isinstance(index, RetrievalIndex)
    arms = in_turn({"plain": partial(plain.lookups, asked), "index": partial(lookups, index, asked)}, rounds)
    found = arms["index"].computed[-1]
    pairs = [(cosines.max(), cosines[row]) for cosines, row in zip(map(plain.cosines, asked), found, strict=True)]
    nearest = [best for best, _ in pairs]
    hits = [row >= 0 and cosine >= best - 1e-6 for row, (best, cosine) in zip(found, pairs, strict=True)]
    recall = float(np.mean(hits))
    assert recall >= MIN_RECALL, f"the index finds the true nearest row of only {recall:.1%} of the questions"
    # One percent of the rows are new: existing rows must not be vectorised again.
    few = max(1, len(known) // 100)
    started, cpu_started = time.perf_counter(), time.process_time()
    added = write_index(folder, table_of([*known[few:], *(f"{question} again" for question in known[:few])]))
    adding = {"clock": time.perf_counter() - started, "processor": time.process_time() - cpu_started}
    assert added.vectorised <= few, f"{added.vectorised} rows were vectorised, but only {few} are new"
    return {
        "rows": len(known),
        "asked": len(asked),
        "making": {name: arm.facts() for name, arm in building.items()},
        "making_index_as_long": ratio(building["index"], building["plain"]),
        "adding_a_hundredth": adding,
        "looking_up": {
            name: arm.facts()
            | {
                "milliseconds_each": 1000 * arm.median / len(asked),
                "processor_milliseconds_each": 1000 * float(np.median(arm.processor)) / len(asked),
            }
            for name, arm in arms.items()
        },
        "looking_up_times_as_fast": ratio(arms["plain"], arms["index"]),
        "recall_at_1": recall,
        "median_cosine_of_the_nearest": float(np.median(nearest)),
        "index_bytes": sum(path.stat().st_size for path in folder.iterdir()),
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=24_000)
    parser.add_argument("--asked", type=int, default=300)
    given = parser.parse_args()
    conditions = machine("scikit-learn", "scipy", "faiss-cpu", "numpy") | {"file": given.file and given.file.name}
    questions = read_questions(given.file, given.rows + given.asked)
    with tempfile.TemporaryDirectory(prefix="bench-retrieval-") as folder:
        result = conditions | measure(questions, given.asked, given.rounds, Path(folder) / "index")
    table = Table("", "scikit-learn", "index", "ratio", title=f"{result['rows']:,} questions")
    building, searching = result["making"], result["looking_up"]
    table.add_row(
        "build, CPU s",
        *(f"{np.median(building[name]['processor_seconds']):.1f}" for name in ("plain", "index")),
        f"{result['making_index_as_long']['processor']:.2f}",
    )
    table.add_row("add 1 %, CPU s", "", f"{result['adding_a_hundredth']['processor']:.1f}")
    for label, prefix, clock in (("search, ms", "", "clock"), ("search, CPU ms", "processor_", "processor")):
        times = (f"{searching[name][f'{prefix}milliseconds_each']:.2f}" for name in ("plain", "index"))
        table.add_row(label, *times, f"{result['looking_up_times_as_fast'][clock]:.1f}")
    table.add_row("true nearest found", "", f"{result['recall_at_1']:.1%}")
    report(f"retrieval_{given.rows}", result, table, given.write)


if __name__ == "__main__":
    main()
