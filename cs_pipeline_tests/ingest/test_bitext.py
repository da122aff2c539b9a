import gzip
import hashlib
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pyarrow as pa
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.core.schema import CONVERSATION, check_schema
from cs_pipeline.ingest import bitext, sources
from cs_pipeline.ingest.bitext import Provenance, load_bitext, row_ids
from cs_pipeline.ingest.bitext_file import BITEXT_COLUMNS, BITEXT_SCHEMA, csv_bytes, read_bitext_file
from cs_pipeline_tests.core.test_download import Server, git_blob
from cs_pipeline_tests.core.test_download import server as server  # the fixture

ROWS = pa.table(
    [
        ["B", "BQ", "B", "B"],
        ["where is it", " where's my\torder ", "where is it", "where is it"],
        ["ORDER"] * 4,
        ["track_order"] * 4,
        ["On its way.", "Here:\n\n1. {{Order Number}}\r\n2. 🙂", "On its way.", "On its way"],
    ],
    schema=BITEXT_SCHEMA,
)


@pytest.fixture
def csv_file(tmp_path: Path) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(csv_bytes(ROWS))
    return path


def test_a_file_becomes_a_table_of_conversations(csv_file: Path, tmp_path: Path) -> None:
    table, provenance = load_bitext(str(csv_file), tmp_path / "cache")
    check_schema(table, CONVERSATION, "bitext")
    assert table.select(BITEXT_COLUMNS).to_pylist() == ROWS.to_pylist()
    assert table.column("source_row").to_pylist() == [0, 1, 2, 3]
    assert set(table.column("source").to_pylist()) == {"bitext"}
    sha256 = hashlib.sha256(csv_file.read_bytes()).hexdigest()
    assert set(table.column("source_file_sha256").to_pylist()) == {sha256}
    for name in ("delivered_on", "subject_id", "intent_confidence", "cluster_id", "split"):
        assert table.column(name).null_count == 4
    assert provenance == Provenance("file", str(csv_file), sha256, 4, "not stated")


def test_the_provenance_has_the_absolute_path(csv_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_bitext("rows.csv", tmp_path / "cache")[1].address == str(csv_file)


def test_row_ids_hash_the_fields_and_the_repetition() -> None:
    ids = row_ids(ROWS)
    key = "bitext\0B\0where is it\0ORDER\0track_order\0On its way."
    assert ids[0] == hashlib.sha256(f"{key}\0{0}".encode()).hexdigest()[:16]
    assert ids[2] == hashlib.sha256(f"{key}\0{1}".encode()).hexdigest()[:16]
    assert len(set(ids)) == 4


def test_row_ids_distinguish_the_fields() -> None:
    one = pa.table([["a"], ["b c"], ["d"], ["e"], ["f"]], schema=BITEXT_SCHEMA)
    other = pa.table([["a b"], ["c"], ["d"], ["e"], ["f"]], schema=BITEXT_SCHEMA)
    assert row_ids(one) != row_ids(other)


def test_row_ids_stay_when_rows_are_added_or_moved() -> None:
    moved = pa.concat_tables([ROWS.slice(2), ROWS.slice(0, 2)])
    assert set(row_ids(moved)) == set(row_ids(ROWS))
    assert row_ids(ROWS.slice(0, 2)) == row_ids(ROWS)[:2]


def test_equal_input_gives_equal_files(csv_file: Path, tmp_path: Path) -> None:
    lake = DataLake(tmp_path / "lake")
    hashes = {
        lake.write("ingest", name, load_bitext(str(csv_file), tmp_path / "cache")[0], CONVERSATION) for name in "ab"
    }
    assert len(hashes) == 1


def test_real_rows_have_the_same_ids_in_every_file_type(bitext_csv: Path, tmp_path: Path) -> None:
    table, provenance = load_bitext(str(bitext_csv), tmp_path)
    ids = table.column("row_id").to_pylist()
    assert table.num_rows == provenance.rows == 24_094
    assert len(set(ids)) == 24_094
    assert provenance.sha256 == "fe560d233b8d858640653cfbbf652b456cba3f2084306883408de2a3bb2bee1d"
    assert set(table.column("source_file_sha256").to_pylist()) == {provenance.sha256}

    (tmp_path / "rows.csv.gz").write_bytes(gzip.compress(bitext_csv.read_bytes(), 1))
    pd.read_csv(bitext_csv, dtype=str, keep_default_na=False).to_parquet(tmp_path / "rows.parquet")
    for other in ("rows.csv.gz", "rows.parquet"):
        again, _ = load_bitext(str(tmp_path / other), tmp_path)
        assert again.column("row_id").to_pylist() == ids
        assert again.select(BITEXT_COLUMNS).equals(table.select(BITEXT_COLUMNS))


def test_the_sample_is_deterministic(tmp_path: Path) -> None:
    table, provenance = load_bitext("sample", tmp_path / "cache")
    again, same = load_bitext("sample", tmp_path / "cache")
    assert table.equals(again)
    assert provenance == same
    assert provenance.kind == "sample"
    assert provenance.rows == table.num_rows > 1000
    check_schema(table, CONVERSATION, "sample")
    assert len(set(table.column("row_id").to_pylist())) == table.num_rows
    assert not (tmp_path / "cache").exists()


def test_sample_as_a_file_has_the_same_rows(tmp_path: Path) -> None:
    table, provenance = load_bitext("sample", tmp_path)
    rows = pa.table([table.column(name) for name in BITEXT_COLUMNS], schema=BITEXT_SCHEMA)
    path = tmp_path / "sample.csv"
    path.write_bytes(csv_bytes(rows))
    assert read_bitext_file(path).equals(rows)
    from_file, provenance_of_file = load_bitext(str(path), tmp_path)
    assert from_file.equals(table)
    assert provenance_of_file.sha256 == provenance.sha256


def serve_rows(server: Server, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Serves ``ROWS`` as the Bitext file, as Bitext's repository and as the hub."""
    data = csv_bytes(ROWS)
    known = replace(
        sources.BITEXT,
        url=f"{server.base}/data/{Path(sources.BITEXT.url).name}",
        size=len(data),
        git_blob=git_blob(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    monkeypatch.setattr(bitext, "BITEXT", known)
    monkeypatch.setattr(sources, "BITEXT", known)
    monkeypatch.setenv("HF_ENDPOINT", server.base)
    server.content = data
    return data


def test_download_and_hub_give_the_same_rows(
    server: Server, csv_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = serve_rows(server, monkeypatch)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    cache = tmp_path / "cache"
    fetched, provenance = load_bitext("download", cache)
    from_hub, hub_provenance = load_bitext("hub@main", cache)
    from_file, _ = load_bitext(str(csv_file), cache)
    assert fetched.equals(from_hub)
    assert fetched.equals(from_file)
    sha256 = hashlib.sha256(data).hexdigest()
    assert provenance == Provenance("download", sources.BITEXT.url, sha256, 4, "CDLA-Sharing-1.0")
    assert hub_provenance.kind == "hub"
    assert hub_provenance.address == server.base + server.paths[1]
    assert hub_provenance.address.startswith(f"{server.base}/datasets/{sources.HUB_REPO}/resolve/main/")
    assert len(server.paths) == 2  # a download from one is never used for the other

    load_bitext("download", cache)
    load_bitext("hub@main", cache)
    assert len(server.paths) == 2
    load_bitext("hub@refs/pr/1", cache)
    assert len(server.paths) == 3
    assert {file_sha256(path) for path in cache.rglob("*.csv")} == {sha256}


def test_offline_the_hub_is_an_error_without_fallback(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve_rows(server, monkeypatch)
    load_bitext("download", tmp_path)
    with pytest.raises(PipelineError, match="HF_HUB_OFFLINE"):
        load_bitext("hub@main", tmp_path)
    assert len(server.paths) == 1


@pytest.mark.parametrize("source", ["", " ", "Sample", "downlaod", "hub", "no/such/file.csv"])
def test_an_unknown_source_is_refused_with_the_choices(source: str, tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="neither a known source nor an existing file") as caught:
        load_bitext(source, tmp_path)
    for choice in ("'sample'", "'download'", "'hub@REVISION'", "csv.gz"):
        assert choice in caught.value.fix


def test_the_hub_needs_a_revision(tmp_path: Path) -> None:
    with pytest.raises(PipelineError, match="hub@<commit>"):
        load_bitext("hub@", tmp_path)


def test_a_bad_file_is_reported_by_its_reader(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_bytes(b"flags,instruction\n")
    with pytest.raises(PipelineError, match="lacks the columns category, intent, response"):
        load_bitext(str(tmp_path / "rows.csv"), tmp_path)
