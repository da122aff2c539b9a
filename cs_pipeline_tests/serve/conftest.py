"""Fixtures of the serving tests: lakes with two versions, and a server for one of them on a free port."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cs_pipeline.company import company_file
from cs_pipeline.core.lake import DataLake
from cs_pipeline.prepare.router import train_router
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline_tests.conftest import MadeOnce, copy_lake, own_world
from cs_pipeline_tests.support.serving import Serving, running_service, wait_for
from cs_pipeline_tests.support.versions import add_lookup, add_version, make_champion

STRICT = "handover: {false_share: 0.3}\n"
"""Settings of a company whose gate is strict: a router of 700 generated rows knows little about what is unknown."""


@pytest.fixture(scope="session")
def two_versions(made_once: MadeOnce, champion_lake: Path) -> Path:
    """A lake whose champion is version 1; version 2 answers like its base. Read only: tests move aliases in copies."""

    def make(folder: Path) -> None:
        with own_world(folder / "lake"):
            lake = copy_lake(champion_lake, folder / "lake")
            company_file(lake).write_text(STRICT)
            train_router(lake, "")
            add_version(lake, lake.root / "second", 0.0)

    return made_once("two versions", make) / "lake"


@pytest.fixture
def own_versions(two_versions: Path, tmp_path: Path) -> DataLake:
    """A copy of ``two_versions`` that the test may change."""
    return copy_lake(two_versions, tmp_path / "own")


@pytest.fixture(scope="session")
def lookup_lake(made_once: MadeOnce, champion_lake: Path) -> Path:
    """A lake whose champion is version 2, a look-up; version 1 is a fine-tune. Read only: tests change copies."""

    def make(folder: Path) -> None:
        lake = copy_lake(champion_lake, folder / "lake")
        company_file(lake).write_text(f"values: {{Company Name: Brightmart}}\n{STRICT}")
        with own_world(lake.root):
            train_router(lake, "")
            make_champion(lake, add_lookup(lake))

    return made_once("lookup", make) / "lake"


@pytest.fixture(scope="module")
def service(two_versions: Path) -> Iterator[ModelService]:
    """The models of ``two_versions``, with the champion loaded."""
    with own_world(two_versions), running_service(DataLake(two_versions)) as service:
        yield service


@pytest.fixture(scope="module")
def serving(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server on a copy of ``two_versions``, with the champion loaded."""
    lake = copy_lake(two_versions, tmp_path_factory.mktemp("serving") / "lake")
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        yield serving
