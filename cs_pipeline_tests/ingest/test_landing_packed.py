"""Compressed files are kept unpacked, up to the size limit. Of a damaged file, the valid part is kept."""

import random
import zlib

import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.ingest.landing import kept_copy, scan_landing
from cs_pipeline.ingest.ledger import Delivery
from cs_pipeline_tests.support.arrivals import COMPANY, CSV, NOW, moved, packed


def taken(lake: DataLake, name: str, data: bytes, company: Company = COMPANY) -> tuple[Delivery, bytes]:
    """The delivery of a file with this content, and its kept copy."""
    path = moved(lake, name, data)
    [delivery] = scan_landing(lake, company, NOW).taken
    assert (delivery.sha256, delivery.size) == (file_sha256(path), len(data)), "as it landed"
    return delivery, kept_copy(lake, delivery.sha256).read_bytes()


MANY = b"".join(random.Random(1).randbytes(40).hex().encode() + b"\n" for _ in range(20_000))
"""1.6 MB that compress to half."""


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tickets.csv.gz", packed(MANY)),
        ("named wrongly.csv", packed(MANY)),
        ("two parts.csv.gz", packed(MANY[:1_000_000]) + packed(MANY[1_000_000:])),
        ("padded.csv.gz", packed(MANY) + b"\0" * 512),
        ("not packed.csv.gz", MANY),
    ],
)
def test_gzip_is_kept_unpacked(lake: DataLake, name: str, data: bytes) -> None:
    delivery, copy = taken(lake, name, data)
    assert copy == MANY
    assert delivery.damage is None


@pytest.mark.parametrize("data", [b"", packed(b""), b"\x1f", b"a"], ids=["empty", "gzip", "half", "a"])
def test_the_smallest_files_are_deliveries(lake: DataLake, data: bytes) -> None:
    delivery, copy = taken(lake, "small.gz", data)
    assert copy == (b"" if len(data) > 1 else data)
    assert delivery.damage is None


@pytest.mark.parametrize("share", [0.001, 0.3, 0.9, 0.999999])
def test_the_valid_part_of_a_truncated_gzip_is_kept(lake: DataLake, share: float) -> None:
    content = packed(MANY)
    part = content[: int(len(content) * share)]
    delivery, copy = taken(lake, "tickets.csv.gz", part)
    assert copy == zlib.decompressobj(31).decompress(part), "all that can be unpacked"
    assert MANY.startswith(copy)
    assert delivery.damage == f"truncated: its gzip stream does not end; {len(copy):,} bytes could be unpacked"


def test_the_part_before_a_wrong_byte_of_a_gzip_is_kept(lake: DataLake) -> None:
    broken = bytearray(packed(MANY))
    middle = len(broken) // 2
    broken[middle : middle + 2000] = b"\xff" * 2000
    delivery, copy = taken(lake, "tickets.csv.gz", bytes(broken))
    assert len(MANY) // 3 < len(copy) < len(MANY)
    assert copy[: len(MANY) // 3] == MANY[: len(MANY) // 3]
    assert delivery.damage == f"not valid gzip after {len(copy):,} unpacked bytes"


@pytest.mark.parametrize("data", [packed(MANY)[:-8] + b"wrongsum", packed(MANY) + b"more"], ids=["sum", "more"])
def test_a_gzip_with_an_invalid_end_is_damaged(lake: DataLake, data: bytes) -> None:
    delivery, copy = taken(lake, "tickets.csv.gz", data)
    assert copy == MANY
    assert delivery.damage == f"not valid gzip after {len(MANY):,} unpacked bytes"


def test_a_zip_bomb_is_cut_at_the_limit(lake: DataLake) -> None:
    bomb = packed(CSV + bytes(50_000_000))
    delivery, copy = taken(lake, "bomb.csv.gz", bomb, Company(file_bytes=3_000_000))
    assert copy == CSV + bytes(3_000_000 - len(CSV))
    assert delivery.damage == "larger than 3,000,000 bytes when unpacked"


@pytest.mark.parametrize("less", [0, 1])
def test_the_limit_itself_is_allowed(lake: DataLake, less: int) -> None:
    delivery, copy = taken(lake, "a.gz", packed(MANY), Company(file_bytes=len(MANY) - less))
    assert copy == MANY[: len(MANY) - less]
    assert (delivery.damage is None) == (less == 0)
