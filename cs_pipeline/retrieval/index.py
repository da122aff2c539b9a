"""The retrieval index: known answers and passages of help articles, searched by similarity to a question.

The known answers are from the training split only. On disk, the index is a folder of Parquet files, NumPy arrays and a
manifest with the hash of every file. It contains no pickles.
"""

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, atomic_folder, digest, file_sha256, locked, make_folder, remove_leftovers
from cs_pipeline.core.manifest import read_manifest, write_manifest
from cs_pipeline.core.schema import ANSWER, PASSAGE, check_schema
from cs_pipeline.core.versions import CODE_VERSIONS
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.embedder import Embedder, RememberingEmbedder, unchanged_embedder, vectors_file
from cs_pipeline.retrieval.search import Search, write_codes
from cs_pipeline.retrieval.vectors import CharacterVectors, MixedVectors, SentenceVectors, Vectors

logger = logging.getLogger(__name__)

SCHEMAS = {"answers": ANSWER, "passages": PASSAGE}

SENTENCE_WEIGHTS = {"answers": 0.6, "passages": 0.9}
"""The weight of an embedding model's cosine beside that of character TF-IDF, by table. ``bench/embedders.py`` chose them."""


@dataclass(frozen=True)
class IndexSummary:
    """The index that was built.

    ``answers`` and ``passages`` count its rows; ``vectorised`` counts the texts whose vectors were computed. ``vectorizer``
    is the name of the embedding model that is used together with character TF-IDF, or "characters" if there is none.
    """

    version: str
    answers: int
    passages: int
    vectorised: int
    vectorizer: str


def retrieval_folder(lake: DataLake) -> Path:
    """The folder of the lake's index."""
    return lake.path("prepare", "retrieval_index")


def index_lock(lake: DataLake) -> AbstractContextManager[bool]:
    """The lock on the lake's index. Threads and processes hold it while they build or load the index."""
    return _locked(retrieval_folder(lake))


def index_version(lake: DataLake) -> str:
    """The version of the lake's index. Raises PipelineError if it is missing or damaged."""
    with index_lock(lake):
        return str(_manifest(retrieval_folder(lake))["version"])


def index_embedder(lake: DataLake) -> Embedder | None:
    """The embedding model of the lake's index. None if it has none, or if there is no index.

    Raises PipelineError if the index is damaged or its model is missing.
    """
    with index_lock(lake):
        folder = retrieval_folder(lake)
        return _embedder(_manifest(folder)) if folder.exists() else None


class RetrievalIndex:
    """Known answers and passages. ``version`` is a hash of them and of the method that compares them."""

    def __init__(self, manifest: dict[str, Any], tables: dict[str, pa.Table], searches: dict[str, Search]) -> None:
        self.version = str(manifest["version"])
        self._tables, self._searches = tables, searches
        self._clusters = tables["answers"].column("cluster_id").combine_chunks().dictionary_encode()

    @classmethod
    def load(cls, folder: Path) -> "RetrievalIndex":
        """Loads the index in ``folder``. Raises PipelineError if it is missing or damaged."""
        with _locked(folder):
            manifest = _manifest(folder)
            vectors = _load_vectors(folder, manifest)
            tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
            return cls(manifest, tables, {name: Search.load(folder, name, vectors[name]) for name in SCHEMAS})

    @property
    def answer_count(self) -> int:
        """The number of known answers."""
        return int(self._tables["answers"].num_rows)

    def answers(
        self,
        questions: Sequence[str],
        count: int,
        excluded_clusters: Sequence[object] | None = None,
        excluded_rows: Sequence[Collection[str]] | None = None,
        intents: Sequence[str | None] | None = None,
    ) -> list[list[RetrievedText]]:
        """For each question, the answers to the ``count`` most similar known questions, most similar first.

        Question i does not find rows of the cluster ``excluded_clusters[i]`` or rows with the ids ``excluded_rows[i]``.
        Rows with similarity 0 are not returned. If ``intents[i]`` is given, the ``count`` most similar questions of
        this intent are found as well, so there may be twice as many answers. Without that, the
        three rows of a small subject might be crowded out by thousands of others.
        """
        excluded = None if excluded_clusters is None else self._rows_of_clusters(excluded_clusters)
        if excluded_rows is not None and any(excluded_rows):
            own = self._rows_of_ids(excluded_rows)
            excluded = own if excluded is None else [np.union1d(*pair) for pair in zip(excluded, own, strict=True)]
        groups = None if intents is None else [self._rows_of_intents.get(intent or "") for intent in intents]
        return list(self._search("answers", questions, count, excluded, groups))

    def answers_of(self, intent: str, count: int) -> list[str]:
        """Up to ``count`` known answers of ``intent``, in the order of their row ids."""
        rows = self._rows_of_intents.get(intent, np.zeros(0, np.int64))[:count]
        answers: list[str] = self._tables["answers"].column("answer").take(pa.array(rows)).to_pylist()
        return answers

    def passages(self, questions: Sequence[str], count: int) -> list[list[RetrievedText]]:
        """For each question, the ``count`` most similar passages with a similarity above 0, most similar first."""
        return list(self._search("passages", questions, count))

    def _search(
        self,
        name: str,
        questions: Sequence[str],
        count: int,
        excluded: Sequence[np.ndarray] | None = None,
        groups: Sequence[np.ndarray | None] | None = None,
    ) -> Iterator[list[RetrievedText]]:
        table = self._tables[name]
        for found in self._searches[name].nearest(questions, count, excluded, groups):
            # Not take(), which copies the table's chunks and takes 28 ms for a million rows.
            rows = [table.slice(number, 1).to_pylist()[0] for number, _ in found]
            yield [
                RetrievedText(
                    "answer",
                    row["row_id"],
                    row["answer"],
                    row["question"],
                    None,
                    None,
                    similarity,
                    row["intent"],
                    row["source"],
                )
                if name == "answers"
                else RetrievedText(
                    "passage", row["passage_id"], row["text"], row["title"], row["address"], row["version"], similarity
                )
                for row, (_, similarity) in zip(rows, found, strict=True)
            ]

    @cached_property
    def _rows_of_intents(self) -> dict[str, np.ndarray]:
        """The row numbers of each intent in the table of answers, ascending."""
        intents = self._tables["answers"].column("intent").combine_chunks().dictionary_encode()
        codes = intents.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        names = intents.dictionary.to_pylist()
        return dict(zip(names, np.split(order, np.searchsorted(codes[order], np.arange(1, len(names)))), strict=True))

    def _rows_of_clusters(self, clusters: Sequence[object]) -> list[np.ndarray]:
        """For each of these clusters, its row numbers in the table of answers."""
        codes = self._clusters.indices.to_numpy()
        code_of = {name: code for code, name in enumerate(self._clusters.dictionary.to_pylist())}
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(code_of) + 1))
        wanted = (code_of.get(str(cluster), -1) for cluster in clusters)
        return [order[starts[code] : starts[code + 1]] if code >= 0 else order[:0] for code in wanted]

    def _rows_of_ids(self, ids: Sequence[Collection[str]]) -> list[np.ndarray]:
        """For each of these sets of ids, the row numbers in the table of answers; ids that it lacks are ignored."""
        known = self._tables["answers"].column("row_id").combine_chunks()
        wanted = pa.array([row for row_ids in ids for row in sorted(row_ids)], pa.string())
        numbers = pc.fill_null(pc.index_in(wanted, value_set=known), -1).to_numpy().astype(np.int64)
        parts = np.split(numbers, np.cumsum([len(row_ids) for row_ids in ids])[:-1])
        return [part[part >= 0] for part in parts]


def build_index(lake: DataLake, embedder: str = "", report: Callable[[str], None] = logger.info) -> IndexSummary:
    """Builds the lake's index from ``train_split`` and ``knowledge_base``, unless the existing index is up to date.

    ``embedder`` is the name of an embedding model. If it is empty, texts are compared by character TF-IDF alone. ``report``
    gets progress lines. Raises PipelineError if a table or the model is missing.
    """
    with index_lock(lake):
        rows = lake.read(
            "prepare", "train_split", ["row_id", "cluster_id", "instruction", "response", "intent", "source"]
        )
        answers = rows.rename_columns(ANSWER.names).cast(ANSWER).sort_by("row_id")
        passages = lake.read("prepare", "knowledge_base").sort_by([("path", "ascending"), ("place", "ascending")])
        # The router has embedded the same questions before.
        model = RememberingEmbedder(embedder, vectors_file(lake), report) if embedder else None
        return write_index(retrieval_folder(lake), {"answers": answers, "passages": passages}, model)


def forget_rows(lake: DataLake, row_ids: Sequence[str]) -> None:
    """Rebuilds the lake's index without these rows, or deletes it if it is damaged or its embedding model is missing.

    The caller must hold ``index_lock``.
    """
    folder = retrieval_folder(lake)
    make_folder(folder.parent)
    remove_leftovers(folder)  # these contain the rows too
    try:
        embedder = _embedder(_manifest(folder))
    except PipelineError:
        shutil.rmtree(folder, ignore_errors=True)
        return
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
    is_forgotten = pc.is_in(tables["answers"].column("row_id"), value_set=pa.array(row_ids, pa.string()))
    tables["answers"] = tables["answers"].filter(pc.invert(is_forgotten))
    write_index(folder, tables, embedder)


def differences(lake: DataLake) -> dict[str, int]:
    """Counts rows that are only in the index or only in its sources, and rows that leak from a held-out split.

    A row of the index leaks if a held-out split contains it or another row of its cluster.
    """
    folder = retrieval_folder(lake)
    with index_lock(lake):
        answers, passages = (pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS)
    train = lake.read("prepare", "train_split", ["row_id"]).column("row_id")
    known = lake.read("prepare", "knowledge_base", ["passage_id"]).column("passage_id")
    held_out = [lake.read("prepare", f"{split}_split", ["row_id", "cluster_id"]) for split in ("validation", "test")]
    return {
        "not_of_training": _count_missing(answers.column("row_id"), train),
        "training_rows_missing": _count_missing(train, answers.column("row_id")),
        "rows_of_other_splits": sum(
            _count_shared(answers.column("row_id"), split.column("row_id")) for split in held_out
        ),
        "clusters_of_other_splits": sum(
            _count_shared(answers.column("cluster_id"), split.column("cluster_id")) for split in held_out
        ),
        "passages_of_no_article": _count_missing(passages.column("passage_id"), known),
        "passages_missing": _count_missing(known, passages.column("passage_id")),
    }


def write_index(folder: Path, tables: dict[str, pa.Table], embedder: Embedder | None = None) -> IndexSummary:
    """Writes the index of these ``tables`` (answers: ANSWER, passages: PASSAGE) into ``folder``.

    Texts that the previous index contains keep their vectors. The caller must hold the folder's lock.
    """
    for name, schema in SCHEMAS.items():
        check_schema(tables[name], schema, f"retrieval_index/{name}")
    method: dict[str, Any] = {
        "code": CODE_VERSIONS["retrieval_index"],
        "embedder": embedder.name if embedder else None,
        "model": embedder and embedder.sha256,
    }
    if embedder:
        method["sentence_weights"] = SENTENCE_WEIGHTS
    previous = _PreviousIndex.of(folder, method)
    if all(previous.holds(name, table) for name, table in tables.items()):
        return _summary(previous.manifest, 0)
    make_folder(folder.parent)
    remove_leftovers(folder)
    vectorised = 0
    with atomic_folder(folder) as temporary:
        content = []
        for name, table in tables.items():
            path = temporary / f"{name}.parquet"
            pq.write_table(table.combine_chunks(), path, compression="zstd", write_page_checksum=True)
            content.append(file_sha256(path))
            vectors, new = previous.vectors(name, _texts(name, table), embedder)
            vectorised += new
            for part, array in vectors.arrays.items():
                np.save(temporary / f"{name}.{part}.npy", array, allow_pickle=False)
            write_codes(temporary, name, vectors)
        rows = {name: table.num_rows for name, table in tables.items()}
        description = {"version": digest(content, method), "likeness": method, "rows": rows}
        return _summary(write_manifest(temporary, description), vectorised)


class _PreviousIndex:
    """The index to replace. Empty if it is missing or damaged, or if it compares texts by another ``method``."""

    def __init__(self, manifest: dict[str, Any], tables: dict[str, pa.Table], vectors: dict[str, Vectors]) -> None:
        self.manifest, self._tables, self._vectors = manifest, tables, vectors

    @classmethod
    def of(cls, folder: Path, method: dict[str, Any]) -> "_PreviousIndex":
        try:
            manifest = read_manifest(folder, "retrieval_index")
        except PipelineError:  # missing or damaged
            return cls({}, {}, {})
        if manifest.get("likeness") != method:
            return cls({}, {}, {})
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
        return cls(manifest, tables, _load_vectors(folder, manifest))

    def holds(self, name: str, table: pa.Table) -> bool:
        return name in self._tables and self._tables[name].equals(table)

    def vectors(self, name: str, texts: list[str], embedder: Embedder | None) -> tuple[Vectors, int]:
        """The vectors of ``texts``, and how many of them were computed."""
        if name not in self._tables:
            made = MixedVectors.of(texts, embedder, SENTENCE_WEIGHTS[name]) if embedder else CharacterVectors.of(texts)
            return made, len(texts)
        known = pa.array(_texts(name, self._tables[name]), pa.string())
        positions = pc.index_in(pa.array(texts, pa.string()), value_set=known)
        order = pc.fill_null(positions, -1).to_numpy().astype(np.int64)
        new = np.flatnonzero(order < 0)
        order[new] = len(known) + np.arange(len(new))
        return self._vectors[name].extended([texts[row] for row in new], order), len(new)


def _summary(manifest: dict[str, Any], vectorised: int) -> IndexSummary:
    rows = manifest["rows"]
    vectorizer = manifest["likeness"]["embedder"] or "characters"
    return IndexSummary(manifest["version"], rows["answers"], rows["passages"], vectorised, vectorizer)


def _texts(name: str, table: pa.Table) -> list[str]:
    """For each row, the text that is compared with a question."""
    if name == "answers":
        questions: list[str] = table.column("question").to_pylist()
        return questions
    columns = (table.column(column).to_pylist() for column in ("title", "text"))
    return [f"{title}\n{text}" for title, text in zip(*columns, strict=True)]


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder, "retrieval_index")


def _embedder(manifest: dict[str, Any]) -> Embedder | None:
    method = manifest["likeness"]
    if method["embedder"] is None:
        return None
    fix = "Materialise 'retrieval_index' again."
    embedder = Embedder(method["embedder"])
    return unchanged_embedder(embedder, method["model"], "the retrieval index was built with", fix)


def _load_vectors(folder: Path, manifest: dict[str, Any]) -> dict[str, Vectors]:
    embedder = _embedder(manifest)
    weights = manifest["likeness"].get("sentence_weights")
    if embedder and not weights:
        raise PipelineError(
            f"The retrieval index in {folder} has no weights for its embedding model: an earlier release built it.",
            "Materialise 'retrieval_index' again.",
        )
    found: dict[str, Vectors] = {}
    for name in SCHEMAS:
        arrays = {
            path.name.split(".")[1]: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in sorted(folder.glob(f"{name}.*.npy"))
        }
        characters = CharacterVectors(arrays)
        found[name] = (
            MixedVectors(characters, SentenceVectors(arrays, embedder), weights[name]) if embedder else characters
        )
    return found


def _locked(folder: Path) -> AbstractContextManager[bool]:
    return locked(folder.with_name(".retrieval.lock"))


def _count_missing(values: pa.ChunkedArray, among: pa.ChunkedArray) -> int:
    return len(values) - _count_shared(values, among)


def _count_shared(values: pa.ChunkedArray, among: pa.ChunkedArray) -> int:
    count: int = pc.sum(pc.is_in(values, value_set=among.combine_chunks())).as_py() or 0
    return count
