"""The retrieval index: its content, its search, what it must not return, and its updates when the sources change."""

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import ANSWER, PASSAGE
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval import search
from cs_pipeline.retrieval.index import (
    RetrievalIndex,
    build_index,
    differences,
    forget_rows,
    index_version,
    retrieval_folder,
    write_index,
)
from cs_pipeline.retrieval.search import _best
from cs_pipeline.retrieval.similarity import nearest


def answers(*rows: tuple[str, str, str]) -> pa.Table:
    """A table ANSWER of (cluster, question, answer)."""
    complete = [
        {
            "row_id": f"row{number}",
            "cluster_id": cluster,
            "question": question,
            "answer": answer,
            "intent": "i",
            "source": "bitext",
        }
        for number, (cluster, question, answer) in enumerate(rows)
    ]
    return pa.Table.from_pylist(complete, schema=ANSWER)


def passages(*rows: tuple[str, str]) -> pa.Table:
    """A table PASSAGE of (title, text), each of an article of its own."""
    complete = [
        {
            "passage_id": f"passage{number}",
            "path": f"{title}.md",
            "place": 0,
            "title": title,
            "text": text,
            "address": f"https://help.example.com/{number}",
            "version": "0" * 64,
        }
        for number, (title, text) in enumerate(rows)
    ]
    return pa.Table.from_pylist(complete, schema=PASSAGE)


FEW = answers(
    ("a", "where is my refund", "It is on its way."),
    ("a", "where is my refnd", "It was sent."),
    ("b", "when does my refund come", "In five days."),
    ("c", "cancel my order", "It is cancelled."),
)
HELP = passages(("Refunds", "They take five days."), ("Orders", "Cancel them in your account."))


@pytest.fixture
def few(tmp_path: Path) -> RetrievalIndex:
    write_index(tmp_path / "index", {"answers": FEW, "passages": HELP})
    return RetrievalIndex.load(tmp_path / "index")


@pytest.fixture
def lake(prepared: Path, lake: DataLake) -> DataLake:
    """A lake with an index, whose files a test may change."""
    shutil.copytree(prepared / "prepare", lake.path("prepare"))
    return lake


def index_of(lake: DataLake) -> RetrievalIndex:
    return RetrievalIndex.load(retrieval_folder(lake))


def rows_of(lake: DataLake) -> list[str]:
    ids: list[str] = pq.read_table(retrieval_folder(lake) / "answers.parquet").column("row_id").to_pylist()
    return ids


def test_the_most_similar_texts_come_first_with_all_their_fields(few: RetrievalIndex) -> None:
    [found] = few.answers(["Where is my refund?"], 3)
    assert [one.id for one in found] == ["row0", "row1", "row2"]
    assert found[0] == RetrievedText(
        "answer", "row0", "It is on its way.", "where is my refund", None, None, found[0].similarity, "i", "bitext"
    )
    assert found[0].similarity > found[1].similarity > found[2].similarity > 0
    [[exact]] = few.answers(["where is my refund"], 1)
    assert exact.similarity == pytest.approx(1, abs=1e-6)
    assert exact.similarity <= 1
    [[passage]] = few.passages(["how long do refunds take"], 1)
    address, version = "https://help.example.com/0", "0" * 64
    assert passage == RetrievedText(
        "passage", "passage0", "They take five days.", "Refunds", address, version, passage.similarity
    )


def test_texts_without_common_ngrams_are_not_found(few: RetrievalIndex) -> None:
    assert few.answers(["zzzz qqqq", ""], 3) == [[], []]
    assert few.answers([], 3) == []
    assert len(few.passages(["cancel refunds"], 5)[0]) == 2


def test_rows_of_the_excluded_cluster_are_not_returned(few: RetrievalIndex) -> None:
    questions = ["where is my refund"] * 4
    found = few.answers(questions, 4, excluded_clusters=["a", "b", "unknown", None])
    assert [[one.id for one in row] for row in found] == [
        ["row2", "row3"],
        ["row0", "row1", "row3"],
        ["row0", "row1", "row2", "row3"],
        ["row0", "row1", "row2", "row3"],
    ]


def test_an_index_without_rows_finds_nothing(tmp_path: Path) -> None:
    write_index(tmp_path / "index", {"answers": FEW.slice(0, 0), "passages": HELP.slice(0, 0)})
    empty = RetrievalIndex.load(tmp_path / "index")
    assert (empty.answers(["refund"], 2, excluded_clusters=["a"]), empty.passages(["refund"], 2)) == ([[]], [[]])


def test_similarity_is_that_of_the_leakage_report(lake: DataLake) -> None:
    known = lake.read("prepare", "train_split", ["instruction"]).column("instruction").to_pylist()
    asked = lake.read("prepare", "test_split", ["instruction"]).column("instruction").to_pylist()
    _, cosines = nearest(asked, known)
    found = [row[0].similarity for row in index_of(lake).answers(asked, 1)]
    # N-grams with equal hashes share a column, so the two differ in the last digits.
    assert np.abs(np.array(found) - cosines).max() < 0.02
    assert np.median(np.abs(np.array(found) - cosines)) < 1e-4


def test_a_question_finds_the_same_alone_and_in_a_batch(lake: DataLake) -> None:
    asked = lake.read("prepare", "test_split", ["instruction"]).column("instruction").to_pylist()[:30]
    index = index_of(lake)
    assert [index.answers([question], 3)[0] for question in asked] == index.answers(asked, 3)


def test_it_holds_the_training_split_and_a_training_row_does_not_find_its_own_cluster(lake: DataLake) -> None:
    train = lake.read("prepare", "train_split", ["row_id", "cluster_id", "instruction", "response"]).to_pylist()
    assert sorted(row["row_id"] for row in train) == rows_of(lake)
    assert not any(differences(lake).values())
    clusters = {row["row_id"]: row["cluster_id"] for row in train}
    questions, own = [row["instruction"] for row in train], [row["cluster_id"] for row in train]
    found = index_of(lake).answers(questions, 2, excluded_clusters=own)
    assert all(clusters[one.id] != cluster for row, cluster in zip(found, own, strict=True) for one in row)
    assert sum(map(len, found)) == 2 * len(train)
    # Without exclusion each row finds itself, so the test above cannot pass by chance.
    assert [row[0].similarity > 1 - 1e-6 for row in index_of(lake).answers(questions, 1)] == [True] * len(train)


@pytest.mark.parametrize(
    ("split", "counted"), [("validation", "clusters_of_other_splits"), ("test", "rows_of_other_splits")]
)
def test_the_check_finds_a_row_of_another_split(lake: DataLake, split: str, counted: str) -> None:
    row = lake.read("prepare", f"{split}_split").slice(0, 1)
    train = lake.read("prepare", "train_split")
    lake.write("prepare", "train_split", pa.concat_tables([train, row]), train.schema)
    build_index(lake)
    lake.write("prepare", "train_split", train, train.schema)
    found = differences(lake)
    assert (found[counted], found["not_of_training"]) == (1, 1)
    build_index(lake)
    assert not any(differences(lake).values())


def test_equal_rows_are_not_written_again_and_only_new_ones_are_vectorised(lake: DataLake) -> None:
    train = lake.read("prepare", "train_split")
    first = build_index(lake)
    assert first.vectorised == 0, "the job has built it"
    assert first.version == index_version(lake) == index_of(lake).version
    stamp = retrieval_folder(lake).stat().st_mtime_ns
    assert build_index(lake) == first
    assert retrieval_folder(lake).stat().st_mtime_ns == stamp

    lake.write("prepare", "train_split", train.slice(5), train.schema)
    fewer = build_index(lake)
    assert (fewer.answers, fewer.vectorised) == (train.num_rows - 5, 0)
    assert fewer.version != first.version
    # In another order, and five of them are new.
    lake.write("prepare", "train_split", train.take(np.random.default_rng(0).permutation(len(train))), train.schema)
    again = build_index(lake)
    assert (again.version, again.vectorised) == (first.version, 5)
    asked = train.column("instruction").to_pylist()[:20]
    grown = index_of(lake).answers(asked, 3)
    shutil.rmtree(retrieval_folder(lake))
    rebuilt = build_index(lake)
    assert (rebuilt.version, rebuilt.vectorised) == (first.version, train.num_rows)
    assert index_of(lake).answers(asked, 3) == grown


def test_a_changed_passage_changes_the_version(tmp_path: Path) -> None:
    first = write_index(tmp_path / "index", {"answers": FEW, "passages": HELP})
    other = write_index(tmp_path / "index", {"answers": FEW, "passages": HELP.slice(0, 1)})
    assert (other.vectorised, other.passages) == (0, 1)
    assert other.version != first.version
    texts = RetrievalIndex.load(tmp_path / "index").passages(["cancel them in your account"], 2)
    assert [one.id for row in texts for one in row] == ["passage0"]


@pytest.mark.parametrize("name", ["answers.parquet", "answers.windows.npy", "passages.counts.npy", "manifest.json"])
def test_a_tampered_index_is_refused_and_rebuilt(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "index"
    summary = write_index(folder, {"answers": FEW, "passages": HELP})
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)
    with pytest.raises(PipelineError, match="index") as raised:
        RetrievalIndex.load(folder)
    assert "materialise 'retrieval_index' again" in raised.value.fix
    assert "refund" not in str(raised.value)
    again = write_index(folder, {"answers": FEW, "passages": HELP})
    assert (again.version, again.vectorised) == (summary.version, 6), "nothing of the tampered index is reused"
    RetrievalIndex.load(folder)


def test_a_missing_index_is_reported(lake: DataLake) -> None:
    shutil.rmtree(retrieval_folder(lake))
    with pytest.raises(PipelineError, match="was not finished") as raised:
        index_of(lake)
    assert "retrieval_index" in raised.value.fix


def test_forgotten_rows_are_removed_at_once(lake: DataLake) -> None:
    ids = rows_of(lake)
    gone = pc.is_in(lake.read("prepare", "train_split").column("row_id"), value_set=pa.array(ids[:3]))
    texts = lake.read("prepare", "train_split").filter(gone).column("response").to_pylist()
    forget_rows(lake, ids[:3])
    assert rows_of(lake) == ids[3:]
    assert differences(lake)["training_rows_missing"] == 3
    index_of(lake)
    left = set(lake.read("prepare", "train_split").filter(pc.invert(gone)).column("response").to_pylist())
    kept = (retrieval_folder(lake) / "answers.parquet").read_bytes()
    assert not any(text.encode() in kept for text in texts if text not in left)
    # A damaged index is deleted.
    (retrieval_folder(lake) / "answers.parquet").write_bytes(b"")
    forget_rows(lake, ids[3:4])
    assert not retrieval_folder(lake).exists()
    forget_rows(lake, ids[3:4])


def test_many_rows_are_searched_with_a_shortlist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The approximate search that a million rows get, on 2,400, against the exact search."""
    questions = list(dict.fromkeys(sample_rows()["instruction"]))[:2_500]
    # For one of three questions a cluster larger than the shortlist is excluded.
    rows = [
        (f"cluster{max(0, number - 1_200)}", question, f"answer {number}")
        for number, question in enumerate(questions[100:])
    ]
    tables = {"answers": answers(*rows), "passages": HELP}
    asked = questions[:100]
    without = [f"cluster{number % 3}" for number in range(100)]
    found = {}
    for name, limit in (("all", 50_000), ("shortlist", 1_000)):
        monkeypatch.setattr(search, "MAX_EXACT_ROWS", limit)
        monkeypatch.setattr(search, "_TRAINING_ROWS", 1_000)
        write_index(tmp_path / name, tables)
        assert (tmp_path / name / "answers.faiss").exists() == (name == "shortlist")
        index = RetrievalIndex.load(tmp_path / name)
        found[name] = index.answers(asked, 1, without)
        assert not any(one.id in {f"row{at}" for at in range(1_201)} for row in found[name][::3] for one in row)
        assert [
            index.answers([question], 1, [own])[0] for question, own in zip(asked[:5], without, strict=False)
        ] == found[name][:5]
    pairs = list(zip(found["all"], found["shortlist"], strict=True))
    assert sum(a == b for a, b in pairs) >= 97
    for a, b in pairs:
        assert b[0].similarity <= a[0].similarity + 1e-6


def test_an_excluded_cluster_larger_than_the_shortlist_hides_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", 500)
    monkeypatch.setattr(search, "_TRAINING_ROWS", 500)
    excluded = [("big", f"where is my refund {number}", "soon") for number in range(search.SHORTLIST + 50)]
    others = [(f"c{number}", question, "later") for number, question in enumerate(sample_rows()["instruction"][:400])]
    write_index(tmp_path / "index", {"answers": answers(*excluded, *others), "passages": HELP})
    [found] = RetrievalIndex.load(tmp_path / "index").answers(["where is my refund"], 2, ["big"])
    assert [one.text for one in found] == ["later", "later"]


@pytest.mark.parametrize("limit", [50_000, 500])
def test_an_intent_of_few_rows_is_found_among_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int) -> None:
    """With all rows compared, and with the shortlist. Of the larger intent, the nearest rows are found as before."""
    monkeypatch.setattr(search, "MAX_EXACT_ROWS", limit)
    monkeypatch.setattr(search, "_TRAINING_ROWS", 500)
    many = [(f"c{at}", f"where is my refund {at}", f"soon {at}") for at in range(10 * search.SHORTLIST + 100)]
    few = [("own", "the refund lamp of my battery is red", "Hold it."), ("own 2", "my battery is empty", "Charge it.")]
    table = answers(*many, *few)
    intents = pa.array(["get_refund"] * len(many) + ["battery"] * len(few)).dictionary_encode()
    place = table.schema.get_field_index("intent")
    table = table.set_column(place, table.schema.field("intent"), intents.cast(table.schema.field("intent").type))
    write_index(tmp_path / "index", {"answers": table, "passages": HELP})
    index = RetrievalIndex.load(tmp_path / "index")
    asked = ["where is my refund"] * 4
    plain, own, large, unknown = index.answers(asked, 3, intents=[None, "battery", "get_refund", "no intent"])
    assert plain == large == unknown == index.answers(asked[:1], 3)[0]
    assert len(plain) == 3
    assert {one.intent for one in plain} == {"get_refund"}
    assert {one.text for one in own if one.intent == "battery"} == {"Hold it.", "Charge it."}
    assert [one for one in own if one.intent != "battery"] == plain
    assert [one.similarity for one in own] == sorted((one.similarity for one in own), reverse=True)
    [left] = index.answers(asked[:1], 3, ["own"], [{"row0"}], ["battery"])
    assert [one.text for one in left if one.intent == "battery"] == ["Charge it."]
    assert index.answers_of("battery", 9) == ["Hold it.", "Charge it."]
    assert index.answers_of("battery", 1) == ["Hold it."]
    assert index.answers_of("no intent", 9) == []


def test_of_equal_similarities_the_first_row_is_taken() -> None:
    values = np.array([0.5, 0.9, 0.5, 0.0, 0.9, 0.5])
    rows = np.arange(6)
    assert _best(rows, values, 3) == [(1, 0.9), (4, 0.9), (0, 0.5)]
    assert _best(rows[::-1], values[::-1], 3) == [(1, 0.9), (4, 0.9), (0, 0.5)]
    assert len(_best(rows, values, 9)) == 5
