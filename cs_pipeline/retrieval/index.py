"""The retrieval index: what the company has answered and written before, found by its likeness to a question.

It holds the rows of the training side alone, and the passages of the help articles. A folder of Parquet, arrays and a
manifest with the hash of every file; nothing in it is a pickle.
"""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
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
from cs_pipeline.retrieval.embedder import Embedder
from cs_pipeline.retrieval.search import Search, write_codes
from cs_pipeline.retrieval.vectors import CharacterVectors, SentenceVectors, Vectors

CHARACTERS = "characters"
"""The likeness without a model."""

SCHEMAS = {"answers": ANSWER, "passages": PASSAGE}


@dataclass(frozen=True)
class Built:
    """An index that was made: how many rows it has, and how many of their texts had no vectors before."""

    version: str
    answers: int
    passages: int
    vectorised: int
    likeness: str


def retrieval_folder(lake: DataLake) -> Path:
    """Where the lake's index lies."""
    return lake.path("prepare", "retrieval_index")


def index_lock(lake: DataLake) -> AbstractContextManager[bool]:
    """Whoever makes or loads the lake's index meanwhile, here or in another process, waits."""
    return _alone(retrieval_folder(lake))


def index_version(lake: DataLake) -> str:
    """The version of the lake's index. Raises PipelineError when it is not there or not what was made."""
    with index_lock(lake):
        return str(_manifest(retrieval_folder(lake))["version"])


class RetrievalIndex:
    """Known answers and passages. ``version`` is a hash of them and of their likeness: equal content, equal version."""

    def __init__(self, manifest: dict[str, Any], tables: dict[str, pa.Table], rows: dict[str, Search]) -> None:
        self.version = str(manifest["version"])
        self._tables, self._rows = tables, rows
        self._clusters = tables["answers"].column("cluster_id").combine_chunks().dictionary_encode()

    @classmethod
    def load(cls, folder: Path) -> "RetrievalIndex":
        """The index in ``folder``. Raises PipelineError when it is not there or not what was made."""
        with _alone(folder):
            manifest = _manifest(folder)
            vectors = _load_vectors(folder, manifest)
            tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
            return cls(manifest, tables, {name: Search.load(folder, name, vectors[name]) for name in SCHEMAS})

    def answers(
        self, questions: Sequence[str], count: int, without: Sequence[object] | None = None
    ) -> list[list[RetrievedText]]:
        """For each question the ``count`` most similar known questions' answers, best first.

        Of question i nothing of cluster ``without[i]`` is given. Rows that share nothing with a question are not found.
        """
        barred = None if without is None else self._members(without)
        return list(self._found("answers", questions, count, barred))

    def passages(self, questions: Sequence[str], count: int) -> list[list[RetrievedText]]:
        """For each question the ``count`` most similar passages of articles, best first, likewise."""
        return list(self._found("passages", questions, count, None))

    def _found(
        self, name: str, questions: Sequence[str], count: int, barred: Sequence[np.ndarray] | None
    ) -> Iterator[list[RetrievedText]]:
        table = self._tables[name]
        for found in self._rows[name].nearest(questions, count, barred):
            # Not take(), which copies the table's chunks: 28 ms of a million rows.
            rows = [table.slice(place, 1).to_pylist()[0] for place, _ in found]
            yield [
                RetrievedText(
                    "answer", row["row_id"], row["answer"], row["question"], None, None, similarity, row["intent"]
                )
                if name == "answers"
                else RetrievedText(
                    "passage", row["passage_id"], row["text"], row["title"], row["address"], row["version"], similarity
                )
                for row, (_, similarity) in zip(rows, found, strict=True)
            ]

    def _members(self, clusters: Sequence[object]) -> list[np.ndarray]:
        """The places of the rows of each of these clusters."""
        codes = self._clusters.indices.to_numpy()
        code_of = {name: code for code, name in enumerate(self._clusters.dictionary.to_pylist())}
        order = np.argsort(codes, kind="stable")
        starts = np.searchsorted(codes[order], np.arange(len(code_of) + 1))
        at = (code_of.get(str(cluster), -1) for cluster in clusters)
        return [order[starts[code] : starts[code + 1]] if code >= 0 else order[:0] for code in at]


def build_index(lake: DataLake, embedder: str = "") -> Built:
    """Makes the lake's index of ``train_split`` and ``knowledge_base``; equal ones are not written again.

    ``embedder`` names an embedding model; without one texts are likened by their characters. Raises PipelineError when
    a table or the model is not there.
    """
    with index_lock(lake):
        rows = lake.read("prepare", "train_split", ["row_id", "cluster_id", "instruction", "response", "intent"])
        answers = rows.rename_columns(ANSWER.names).cast(ANSWER).sort_by("row_id")
        passages = lake.read("prepare", "knowledge_base").sort_by([("path", "ascending"), ("place", "ascending")])
        model = Embedder(embedder) if embedder else None
        return write_index(retrieval_folder(lake), {"answers": answers, "passages": passages}, model)


def forget_rows(lake: DataLake, row_ids: Sequence[str]) -> None:
    """Makes the lake's index anew without these rows, or removes it where it is damaged; to be called inside ``alone``."""
    folder = retrieval_folder(lake)
    make_folder(folder.parent)
    remove_leftovers(folder)  # they hold the rows too
    try:
        manifest = _manifest(folder)
    except PipelineError:  # none, or one that nobody can load
        shutil.rmtree(folder, ignore_errors=True)
        return
    tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
    gone = pc.is_in(tables["answers"].column("row_id"), value_set=pa.array(row_ids, pa.string()))
    tables["answers"] = tables["answers"].filter(pc.invert(gone))
    write_index(folder, tables, _embedder(manifest))


def differences(lake: DataLake) -> dict[str, int]:
    """How many rows of the index are not in its sources or the other way round, or of a cluster of another side."""
    folder = retrieval_folder(lake)
    with index_lock(lake):
        answers, passages = (pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS)
    train = lake.read("prepare", "train_split", ["row_id"]).column("row_id")
    known = lake.read("prepare", "knowledge_base", ["passage_id"]).column("passage_id")
    judged = [lake.read("prepare", f"{side}_split", ["row_id", "cluster_id"]) for side in ("validation", "test")]
    return {
        "not_of_training": _lacking(answers.column("row_id"), train),
        "training_rows_missing": _lacking(train, answers.column("row_id")),
        "rows_of_other_sides": sum(_shared(answers.column("row_id"), side.column("row_id")) for side in judged),
        "clusters_of_other_sides": sum(
            _shared(answers.column("cluster_id"), side.column("cluster_id")) for side in judged
        ),
        "passages_of_no_article": _lacking(passages.column("passage_id"), known),
        "passages_missing": _lacking(known, passages.column("passage_id")),
    }


def write_index(folder: Path, tables: dict[str, pa.Table], embedder: Embedder | None = None) -> Built:
    """Writes the index of these ``tables`` (answers: ANSWER, passages: PASSAGE) into ``folder``; inside its lock.

    Texts that the index before holds keep their vectors.
    """
    for name, schema in SCHEMAS.items():
        check_schema(tables[name], schema, f"retrieval_index/{name}")
    likeness = {
        "code": CODE_VERSIONS["retrieval_index"],
        "embedder": embedder.name if embedder else None,
        "model": embedder and embedder.sha256,
    }
    before = _Before.of(folder, likeness)
    if all(before.holds(name, table) for name, table in tables.items()):
        return _built(before.manifest, 0)
    make_folder(folder.parent)
    remove_leftovers(folder)
    vectorised = 0
    with atomic_folder(folder) as temporary:
        content = []
        for name, table in tables.items():
            path = temporary / f"{name}.parquet"
            pq.write_table(table.combine_chunks(), path, compression="zstd", write_page_checksum=True)
            content.append(file_sha256(path))
            vectors, new = before.vectors(name, _texts(name, table), embedder)
            vectorised += new
            for part, array in vectors.arrays.items():
                np.save(temporary / f"{name}.{part}.npy", array, allow_pickle=False)
            write_codes(temporary, name, vectors)
        rows = {name: table.num_rows for name, table in tables.items()}
        facts = {"version": digest(content, likeness), "likeness": likeness, "rows": rows}
        return _built(write_manifest(temporary, facts), vectorised)


class _Before:
    """The index that lay there before, where it is whole and texts are likened alike; else nothing."""

    def __init__(self, manifest: dict[str, Any], tables: dict[str, pa.Table], vectors: dict[str, Vectors]) -> None:
        self.manifest, self._tables, self._vectors = manifest, tables, vectors

    @classmethod
    def of(cls, folder: Path, likeness: dict[str, Any]) -> "_Before":
        try:
            manifest = read_manifest(folder, "retrieval_index")
        except PipelineError:  # none, or one that must not be used
            return cls({}, {}, {})
        if manifest.get("likeness") != likeness:
            return cls({}, {}, {})
        tables = {name: pq.read_table(folder / f"{name}.parquet") for name in SCHEMAS}
        return cls(manifest, tables, _load_vectors(folder, manifest))

    def holds(self, name: str, table: pa.Table) -> bool:
        return name in self._tables and self._tables[name].equals(table)

    def vectors(self, name: str, texts: list[str], embedder: Embedder | None) -> tuple[Vectors, int]:
        """The vectors of ``texts``, and how many of them had to be made."""
        if name not in self._tables:
            return (SentenceVectors.of(texts, embedder) if embedder else CharacterVectors.of(texts)), len(texts)
        known = pa.array(_texts(name, self._tables[name]), pa.string())
        at = pc.index_in(pa.array(texts, pa.string()), value_set=known)
        order = pc.fill_null(at, -1).to_numpy().astype(np.int64)
        new = np.flatnonzero(order < 0)
        order[new] = len(known) + np.arange(len(new))
        return self._vectors[name].joined([texts[place] for place in new], order), len(new)


def _built(manifest: dict[str, Any], vectorised: int) -> Built:
    rows = manifest["rows"]
    likeness = manifest["likeness"]["embedder"] or CHARACTERS
    return Built(manifest["version"], rows["answers"], rows["passages"], vectorised, likeness)


def _texts(name: str, table: pa.Table) -> list[str]:
    """What of each row is compared with a question."""
    if name == "answers":
        questions: list[str] = table.column("question").to_pylist()
        return questions
    columns = (table.column(column).to_pylist() for column in ("title", "text"))
    return [f"{title}\n{text}" for title, text in zip(*columns, strict=True)]


def _manifest(folder: Path) -> dict[str, Any]:
    return read_manifest(folder, "retrieval_index")


def _embedder(manifest: dict[str, Any]) -> Embedder | None:
    likeness = manifest["likeness"]
    if likeness["embedder"] is None:
        return None
    embedder = Embedder(likeness["embedder"])
    if embedder.sha256 != likeness["model"]:
        raise PipelineError(
            f"The embedding model {embedder.name} is not the one that the retrieval index was made with.",
            "Materialise 'retrieval_index' again.",
        )
    return embedder


def _load_vectors(folder: Path, manifest: dict[str, Any]) -> dict[str, Vectors]:
    embedder = _embedder(manifest)
    found: dict[str, Vectors] = {}
    for name in SCHEMAS:
        arrays = {
            path.name.split(".")[1]: np.load(path, mmap_mode="r", allow_pickle=False)
            for path in sorted(folder.glob(f"{name}.*.npy"))
        }
        found[name] = SentenceVectors(arrays, embedder) if embedder else CharacterVectors(arrays)
    return found


def _alone(folder: Path) -> AbstractContextManager[bool]:
    return locked(folder.with_name(".retrieval.lock"))


def _lacking(those: pa.ChunkedArray, of: pa.ChunkedArray) -> int:
    return len(those) - _shared(those, of)


def _shared(those: pa.ChunkedArray, of: pa.ChunkedArray) -> int:
    count: int = pc.sum(pc.is_in(those, value_set=of.combine_chunks())).as_py() or 0
    return count
