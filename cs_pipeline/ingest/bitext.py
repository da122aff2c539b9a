"""Loads the Bitext conversations from the configured source."""

import hashlib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import pyarrow as pa

from cs_pipeline.core.download import RemoteFile, download
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import file_sha256
from cs_pipeline.core.schema import CONVERSATION
from cs_pipeline.ingest.bitext_file import BITEXT_COLUMNS, BITEXT_SCHEMA, csv_bytes, read_bitext_file
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.ingest.sources import BITEXT, LICENCE, SOURCES, hub_file


@dataclass(frozen=True)
class Provenance:
    """The source of the rows: ``address`` is a URL, a path or the generator's module; ``sha256`` is the file's hash."""

    kind: Literal["sample", "download", "hub", "file"]
    address: str
    sha256: str
    rows: int
    licence: str


def load_bitext(source: str, cache: Path) -> tuple[pa.Table, Provenance]:
    """The raw rows of ``source`` (see ``SOURCES``) with the schema ``CONVERSATION``, and their provenance.

    Downloads are cached in ``cache`` and verified each time. Columns that later stages fill are null. Equal rows have
    equal ``row_id`` in all sources. Raises PipelineError if the source is unknown or unavailable.
    """
    if source == "sample":
        return _load_sample()
    if source == "download":
        return _load_remote(BITEXT, "download", cache)
    if source.startswith("hub@"):
        return _load_remote(hub_file(source.removeprefix("hub@")), "hub", cache)
    path = Path(source).expanduser().absolute()
    if not source.strip() or not path.exists():
        raise PipelineError(
            f"The source of the Bitext rows is '{source}', which is neither a known source nor an existing file ({path}).",
            f"Set it to {SOURCES}.",
        )
    return _load_file(path, "file", str(path))


def row_ids(rows: pa.Table) -> list[str]:
    """The ids of ``rows`` (schema ``BITEXT_SCHEMA``), 16 hex digits each, unique in the table and the same for all sources.

    An id is a hash of the row's five fields and of the number of equal rows before it.
    """
    seen: Counter[str] = Counter()
    ids = []
    for fields in zip(*(rows.column(name).to_pylist() for name in BITEXT_COLUMNS), strict=True):
        # Files with NUL characters are refused, so different rows never have the same key.
        key = "\0".join(("bitext", *fields))
        ids.append(hashlib.sha256(f"{key}\0{seen[key]}".encode()).hexdigest()[:16])
        seen[key] += 1
    return ids


def _load_sample() -> tuple[pa.Table, Provenance]:
    rows = pa.Table.from_pandas(sample_rows(), BITEXT_SCHEMA, preserve_index=False).replace_schema_metadata()
    sha256 = hashlib.sha256(csv_bytes(rows)).hexdigest()
    provenance = Provenance("sample", "cs_pipeline.ingest.sample", sha256, rows.num_rows, "MIT")
    return _conversation_table(rows, sha256), provenance


def _load_remote(remote: RemoteFile, kind: Literal["download", "hub"], cache: Path) -> tuple[pa.Table, Provenance]:
    name = Path(remote.url).name
    path = download(remote, cache / remote.origin / quote(remote.revision, safe="") / name)
    return _load_file(path, kind, remote.url)


def _load_file(path: Path, kind: Literal["download", "hub", "file"], address: str) -> tuple[pa.Table, Provenance]:
    rows = read_bitext_file(path)
    sha256 = file_sha256(path)
    licence = LICENCE if sha256 == BITEXT.sha256 else "not stated"
    return _conversation_table(rows, sha256), Provenance(kind, address, sha256, rows.num_rows, licence)


def _conversation_table(rows: pa.Table, sha256: str) -> pa.Table:
    count = rows.num_rows
    values = {name: rows.column(name).combine_chunks() for name in BITEXT_COLUMNS} | {
        "row_id": pa.array(row_ids(rows), pa.string()),
        "source": pa.repeat("bitext", count),
        "source_file_sha256": pa.repeat(sha256, count),
        "source_row": pa.array(range(count), pa.int64()),
    }
    columns = [values.get(field.name, pa.nulls(count, field.type)) for field in CONVERSATION]
    return pa.table(columns, schema=CONVERSATION)
