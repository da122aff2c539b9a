"""Help articles: listed with an identity that changes with their content, landed by the command, not deliveries."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from cs_pipeline.cli.commands import app
from cs_pipeline.company import Company, company_file
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.knowledge import land_articles, list_articles
from cs_pipeline.ingest.landing import LandingScan, scan_landing

IN_MEMORY = Company(landing="memory://bucket/landing")


@pytest.fixture
def refunds(tmp_path: Path) -> Path:
    file = tmp_path / "refunds.md"
    file.write_text("# Refunds\n\nThey take five days.\n")
    return file


def identities(lake: DataLake, company: Company) -> dict[str, str]:
    return {listed.path: listed.identity for listed in list_articles(lake, company)}


@pytest.mark.parametrize("company", [Company(), IN_MEMORY])
def test_landed_articles_are_listed_and_are_not_deliveries(
    lake: DataLake, memory: MemoryFileSystem, refunds: Path, company: Company
) -> None:
    assert list_articles(lake, company) == []
    assert land_articles([refunds], lake, company) == ["Markdown"]
    [listed] = list_articles(lake, company)
    assert (listed.path, listed.problem, listed.read()) == ("refunds.md", None, refunds.read_bytes())
    assert scan_landing(lake, company, datetime.now(UTC)) == LandingScan([], [], [], [])

    before = identities(lake, company)
    assert identities(lake, company) == before
    refunds.write_text("# Refunds\n\nThey take three days.\n")
    land_articles([refunds], lake, company)
    assert identities(lake, company).keys() == before.keys()
    assert identities(lake, company) != before


def test_remote_folders_are_followed(lake: DataLake, memory: MemoryFileSystem) -> None:
    memory.pipe_file("/bucket/landing/knowledge/a/b/deep.html", b"<p>x</p>")
    memory.pipe_file("/bucket/landing/knowledge/.hidden.md", b"x")
    memory.pipe_file("/bucket/landing/knowledge/table.xlsx", b"x")
    memory.pipe_file("/bucket/landing/tickets.csv", b"question,answer\n")
    found = list_articles(lake, IN_MEMORY)
    assert [listed.path for listed in found] == ["a/b/deep.html", "table.xlsx"]
    assert found[0].read() == b"<p>x</p>"
    assert "is not an article" in str(found[1].problem)
    memory.rm("/bucket/landing/knowledge/a/b/deep.html")
    assert [listed.path for listed in list_articles(lake, IN_MEMORY)] == ["table.xlsx"]


def test_if_one_file_is_not_an_article_none_is_landed(lake: DataLake, refunds: Path, tmp_path: Path) -> None:
    table, empty = tmp_path / "tickets.csv", tmp_path / "empty.md"
    table.write_text("question,answer\n")
    empty.touch()
    for bad, message in (
        (table, "is not an article"),
        (empty, "is empty"),
        (tmp_path / "gone.md", "is missing or not a file"),
    ):
        with pytest.raises(PipelineError, match=message):
            land_articles([refunds, bad], lake, Company())
    assert list_articles(lake, Company()) == []


def test_the_command_lands_articles(lake: DataLake, refunds: Path) -> None:
    lake.root.mkdir()
    folder = lake.root / "elsewhere" / "knowledge"
    folder.mkdir(parents=True)
    company_file(lake).write_text(f"landing: {folder.parent}\n")
    result = CliRunner().invoke(app, ["land", "--knowledge", str(refunds)])
    assert result.exit_code == 0, result.output
    assert "knowledge/refunds.md: Markdown" in result.output
    assert (folder / "refunds.md").read_bytes() == refunds.read_bytes()
