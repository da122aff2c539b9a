"""Retrieval by character TF-IDF, by a sentence-embedding model and by a mixture of both.

    python -m bench.embedders [FILE] [--known N] [--rounds 3] [--write]

FILE is a CSV in the Bitext schema; without it, rows are generated. The questions of the validation split, as they are and
rewritten by the rules of the robustness tests, are searched among those of the training split, whose clusters are
different. ``--known`` takes a random sample of the latter. No row of the test split is used. The customers' questions in
``embedders.yaml`` are searched in the articles there and in ``examples/knowledge``.

The weight of the embeddings in the mixture is chosen on one half of the questions, split by clusters; all figures are of the
other half. Intervals are 95 % bootstrap intervals over clusters.
"""

import random
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import yaml
from rich.table import Table

from bench.side_by_side import arguments, in_turn, machine, report
from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import ANSWER, PASSAGE
from cs_pipeline.evaluate.robustness.variations import VARIATIONS
from cs_pipeline.evaluate.scoring.metrics import _rouge
from cs_pipeline.evaluate.scoring.statistics import sampled_sums
from cs_pipeline.ingest.bitext import load_bitext
from cs_pipeline.ingest.knowledge import land_articles
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.prepare.splits.split import split
from cs_pipeline.retrieval.embedder import MINILM, Embedder
from cs_pipeline.retrieval.index import RetrievalIndex, write_index
from cs_pipeline.retrieval.passages import read_knowledge
from cs_pipeline.retrieval.retrieve import MAX_CANDIDATES, rank_by_consensus
from cs_pipeline.retrieval.vectors import CharacterVectors
from cs_pipeline.serve.desk.desk import MIN_SIMILARITY
from cs_pipeline.text.clean import clean

WEIGHTS = tuple(step / 10 for step in range(11))
"""The weights of the embeddings that are tried: 0 is character TF-IDF alone, 1 the embedding model alone."""
FEW = 10
"""The number of known questions per intent in a small collection."""
EXAMPLES = Path(__file__).parents[1] / "examples" / "knowledge"

Cosines = tuple[np.ndarray, np.ndarray]
"""Of character TF-IDF and of embeddings, each [questions, known texts]."""


def best_weight(curve: np.ndarray) -> float:
    """The weight of a true mixture with the highest value in ``curve``: [weights]."""
    return WEIGHTS[1 + int(curve[1:-1].argmax())]


def mixed(cosines: Cosines, weight: float) -> np.ndarray:
    """The weighted means of both cosines: [questions, known texts]."""
    return (1 - weight) * cosines[0] + weight * cosines[1]


def character_cosines(known: Sequence[str], asked: Sequence[str]) -> np.ndarray:
    """The cosines of character TF-IDF: [questions, known texts]."""
    vectors = CharacterVectors.of(known)
    return np.stack([vectors.similarities(query) for query in vectors.queries(asked)])


def arms(chosen: float) -> dict[str, int]:
    """The position in WEIGHTS of each arm."""
    return {"characters": 0, "mixture": WEIGHTS.index(chosen), "sentences": len(WEIGHTS) - 1}


def compared(values: np.ndarray, clusters: Iterable[object], chosen: float) -> dict[str, Any]:
    """The mean of each arm in percent, and the differences from characters with their intervals.

    ``values`` are shares or scores from 0 to 1: [weights, questions].
    """
    positions = arms(chosen)
    columns = np.column_stack([values.T, np.ones(values.shape[1])])
    sums = sampled_sums(columns, [str(cluster) for cluster in clusters])
    drawn = 100 * sums[:, :-1] / sums[:, -1:]
    figures: dict[str, Any] = {name: 100 * float(values[at].mean()) for name, at in positions.items()}
    for name, other in (("mixture", "characters"), ("sentences", "characters"), ("mixture", "sentences")):
        ends = np.percentile(drawn[:, positions[name]] - drawn[:, positions[other]], [2.5, 97.5])
        figures[f"{name} - {other}"] = [figures[name] - figures[other], *ends.tolist()]
    return figures


class KnownAnswers:
    """The training rows, and how well their answers suit the validation questions."""

    def __init__(self, rows: pd.DataFrame, embedder: Embedder, vectors: np.ndarray) -> None:
        self.train = rows[rows["split"] == "train"].reset_index(drop=True)
        self.asked = rows[rows["split"] == "validation"].reset_index(drop=True)
        self._embedder, self._vectors = embedder, vectors
        rng = np.random.default_rng(0)
        of_intents = self.train.groupby("intent").indices.values()
        self.few = np.sort(np.concatenate([rng.permutation(positions)[:FEW] for positions in of_intents]))

    def cosines(self, questions: Sequence[str], known: np.ndarray) -> Cosines:
        """Of the ``questions`` with the training rows at the positions ``known``."""
        texts = self.train["instruction"].to_numpy()[known].tolist()
        return character_cosines(texts, questions), self._embedder.embed(questions) @ self._vectors[known].T

    def of_nearest(self, cosines: Cosines, known: np.ndarray) -> dict[str, np.ndarray]:
        """Intent (right or not) and ROUGE-L of the nearest training row by each weight: [weights, questions]"""
        return self._of_rows(np.stack([known[mixed(cosines, weight).argmax(axis=1)] for weight in WEIGHTS]))

    def of_typical(self, cosines: Cosines, chosen: float) -> dict[str, np.ndarray]:
        """The same for the most typical of the nearest answers, as in a prompt; valid only for the arms' weights."""
        rows = np.zeros((len(WEIGHTS), len(self.asked)), np.int64)
        for at in arms(chosen).values():
            similarities = mixed(cosines, WEIGHTS[at])
            for number, found in enumerate(np.argsort(-similarities, axis=1)[:, :MAX_CANDIDATES]):
                texts = zip(found, similarities[number, found], strict=True)
                candidates = [
                    RetrievedText("answer", str(row), self.train["response"][row], "", None, None, float(similarity))
                    for row, similarity in texts
                ]
                rows[at, number] = int(rank_by_consensus(candidates, None, 1)[0].id)
        return self._of_rows(rows)

    def _of_rows(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        """``rows`` are positions of training rows: [weights, questions]."""
        questions = np.broadcast_to(np.arange(len(self.asked)), rows.shape)
        pairs, place = np.unique(np.stack([questions.ravel(), rows.ravel()]), axis=1, return_inverse=True)
        own, found = self.asked["response"].to_numpy()[pairs[0]], self.train["response"].to_numpy()[pairs[1]]
        rouge = _rouge(found.tolist(), own.tolist())["rougeL"] / 100
        right = self.train["intent"].to_numpy()[rows] == self.asked["intent"].to_numpy()
        return {"right intent": right.astype(float), "ROUGE-L": rouge[place.ravel()].reshape(rows.shape)}


def measure_answers(known: KnownAnswers) -> dict[str, Any]:
    """The nearest known answer to validation questions: as they are, and rewritten."""
    asked = known.asked
    clusters = asked["cluster_id"].to_numpy()
    first_half = np.isin(clusters, np.random.default_rng(0).permutation(np.unique(clusters))[::2])
    # Capitals change nothing: both kinds of vectors are of lower-case text.
    rules = {name: rule for name, rule in VARIATIONS.items() if name != "capitals"}
    questions = {"as they are": asked["instruction"].tolist()}
    for name, rule in rules.items():
        rng = random.Random(0)
        questions[name] = [rule(question, rng) for question in asked["instruction"]]
    collections = {"all rows": np.arange(len(known.train)), f"{FEW} rows per intent": known.few}
    found: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    plain: Cosines | None = None
    for rewriting, texts in questions.items():
        for collection, rows in collections.items():
            cosines = known.cosines(texts, rows)
            plain = plain or cosines
            found[collection, rewriting] = known.of_nearest(cosines, rows)
    assert plain is not None
    curve = np.mean([values["ROUGE-L"][:, first_half].mean(axis=1) for values in found.values()], axis=0)
    chosen = best_weight(curve)
    found["most typical of all rows", "as they are"] = known.of_typical(plain, chosen)
    figures: dict[str, dict[str, Any]] = {}
    for (collection, rewriting), values in found.items():
        figures.setdefault(collection, {})[rewriting] = {
            metric: compared(of_rows[:, ~first_half], clusters[~first_half], chosen)
            for metric, of_rows in values.items()
        }
    return {
        "known": len(known.train),
        "asked": int((~first_half).sum()),
        "weight": chosen,
        "rouge_l_by_weight": (100 * curve).tolist(),
        "figures": figures,
    }


def read_articles(folder: Path) -> tuple[pa.Table, dict[str, list[Any]]]:
    """The passages of the articles (schema PASSAGE), and the questions by kind."""
    content = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text())
    files = sorted(EXAMPLES.iterdir())
    for name, text in content["articles"].items():
        files.append(folder / name)
        files[-1].write_text(text)
    lake = DataLake(folder / "lake")
    land_articles(files, lake, Company())
    return read_knowledge(lake, Company()).passages, content["questions"]


def measure_articles(folder: Path, embedder: Embedder) -> dict[str, Any]:
    """The rank of the right passage for customers' questions, and the similarities of questions without an answer."""
    passages, questions = read_articles(folder)
    rows = passages.select(["title", "text"]).to_pylist()
    texts = [f"{row['title']}\n{row['text']}" for row in rows]
    vectors = embedder.embed(texts)

    def cosines(asked: Sequence[str]) -> Cosines:
        return character_cosines(texts, asked), embedder.embed(asked) @ vectors.T

    ranks: dict[str, np.ndarray] = {}
    similarities: dict[str, np.ndarray] = {}
    for kind in ("own_words", "same_words"):
        right = np.array([_position(texts, phrase) for _, phrase in questions[kind]])
        both = cosines([question for question, _ in questions[kind]])
        by_weight = np.stack([mixed(both, weight) for weight in WEIGHTS])
        of_right = by_weight[:, np.arange(len(right)), right]
        ranks[kind], similarities[kind] = (by_weight > of_right[:, :, None]).sum(axis=2), of_right
    # Both kinds count the same: the first half is every other question of each.
    curve = np.mean([(1 / (1 + of_kind[:, ::2])).mean(axis=1) for of_kind in ranks.values()], axis=0)
    chosen = best_weight(curve)
    similarities["off_topic"] = np.stack([mixed(cosines(questions["off_topic"]), w).max(axis=1) for w in WEIGHTS])
    figures = {}
    for kind, of_kind in ranks.items():
        second = of_kind[:, 1::2]
        figures[kind] = {
            label: compared(values, range(second.shape[1]), chosen)
            for label, values in (
                ("first", (second < 1).astype(float)),
                ("among two", (second < 2).astype(float)),
                ("reciprocal rank", 1 / (1 + second)),
            )
        }
    relevant = {
        kind: {name: float((values[at] >= MIN_SIMILARITY["passage"]).mean()) for name, at in arms(chosen).items()}
        for kind, values in similarities.items()
    }
    return {
        "passages": len(texts),
        "asked": {kind: of_kind[:, 1::2].shape[1] for kind, of_kind in ranks.items()},
        "weight": chosen,
        "reciprocal_rank_by_weight": curve.tolist(),
        "figures": figures,
        "share_relevant": relevant,
    }


def _position(texts: Sequence[str], phrase: str) -> int:
    """The position of the only text with ``phrase``."""
    (position,) = (number for number, text in enumerate(texts) if phrase in text)
    return position


def measure(rows: pd.DataFrame, embedder: Embedder, rounds: int, folder: Path) -> dict[str, Any]:
    """All figures. ``rows`` have their splits; those of the test split are not used."""
    train = rows[rows["split"] == "train"]
    columns = ["row_id", "cluster_id", "instruction", "response", "intent", "source"]
    answers = pa.Table.from_pandas(train[columns], preserve_index=False).rename_columns(ANSWER.names).cast(ANSWER)
    tables = {"answers": answers, "passages": PASSAGE.empty_table()}
    embedder.embed(["the first use loads the model"])
    seconds, indexes = {}, {}
    for name, model in (("characters", None), ("mixture", embedder)):
        started, cpu_started = time.perf_counter(), time.process_time()
        write_index(folder / name, tables, model)
        seconds[name] = {"clock": time.perf_counter() - started, "processor": time.process_time() - cpu_started}
        indexes[name] = RetrievalIndex.load(folder / name)
    vectors = np.load(folder / "mixture" / "answers.vectors.npy")
    known = KnownAnswers(rows, embedder, vectors)
    asked = known.asked["instruction"].tolist()[:100]

    def search(index: RetrievalIndex) -> None:
        for question in asked:
            index.answers([question], MAX_CANDIDATES)

    searches: Mapping[str, Callable[[], None]] = {name: partial(search, index) for name, index in indexes.items()}
    searching = in_turn(dict(searches), rounds)
    return {
        "build_seconds": seconds,
        "search_milliseconds": {
            name: {
                "clock": 1000 * arm.median / len(asked),
                "processor": 1000 * float(np.median(arm.processor)) / len(asked),
            }
            for name, arm in searching.items()
        },
        "answers": measure_answers(known),
        "articles": measure_articles(folder, embedder),
    }


def read_split_rows(file: Path | None, cache: Path, known: int | None = None) -> pd.DataFrame:
    """The rows of ``file``, cleaned and split as the pipeline does it; generated ones if it is None.

    Only ``known`` of the training rows are kept, all if it is None.
    """
    raw, _ = load_bitext(str(file) if file else "sample", cache)
    rows: pd.DataFrame = split(clean(raw).rows, None).rows.to_pandas()
    train = rows[rows["split"] == "train"]
    return rows if known is None else rows.drop(train.sample(len(train) - known, random_state=0).index)


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--known", type=int, help="the number of known answers; all by default")
    parser.add_argument("--embedder", default=MINILM, help="as in CS_EMBEDDER")
    given = parser.parse_args()
    conditions = machine("torch", "transformers", "tokenizers", "scikit-learn", "numpy")
    conditions |= {"file": given.file and given.file.name, "embedder": given.embedder}
    with tempfile.TemporaryDirectory(prefix="bench-embedders-") as folder:
        rows = read_split_rows(given.file, Path(folder), given.known)
        result = conditions | measure(rows, Embedder(given.embedder, print), given.rounds, Path(folder))
    report("embedders", result, table_of(result), given.write)


def table_of(result: Mapping[str, Any]) -> Table:
    """The figures of a result."""
    answers, articles = result["answers"], result["articles"]
    title = f"weight {answers['weight']} for answers, {articles['weight']} for passages"
    table = Table("", "characters", "sentences", "mixture", "mixture - characters", title=title)

    def add(label: str, figures: Mapping[str, Any]) -> None:
        difference, low, high = figures["mixture - characters"]
        values = (f"{figures[name]:.1f}" for name in ("characters", "sentences", "mixture"))
        table.add_row(label, *values, f"{difference:+.1f} ({low:+.1f} to {high:+.1f})")

    for collection, by_rewriting in answers["figures"].items():
        for rewriting, by_metric in by_rewriting.items():
            for metric, figures in by_metric.items():
                add(f"{collection}, {rewriting}: {metric}", figures)
    for kind, by_metric in articles["figures"].items():
        for metric, figures in by_metric.items():
            add(f"passages, {kind}: {metric}", figures)
    for label, times, unit in (("build", "build_seconds", "s"), ("search", "search_milliseconds", "ms")):
        values = [f"{result[times][name]['processor']:.1f} {unit}" for name in ("characters", "mixture")]
        table.add_row(f"{label}, CPU time", values[0], "", values[1], "")
    return table


if __name__ == "__main__":
    main()
