"""What the tests of serving share: a lake with two versions, and a server on a free port of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.models.answering import Answering
from cs_pipeline_tests.conftest import MadeOnce, copy_lake, own_world
from cs_pipeline_tests.support.serving import Serving, answering_on, wait_for
from cs_pipeline_tests.support.versions import add_version


@pytest.fixture(scope="session")
def two_versions(made_once: MadeOnce, champion_lake: Path) -> Path:
    """A lake whose champion is version 1; version 2 is its base's twin. Tests read it, and move aliases in copies."""

    def make(folder: Path) -> None:
        with own_world(folder / "lake"):
            add_version(copy_lake(champion_lake, folder / "lake"), folder / "lake" / "second", 0.0)

    return made_once("two versions", make) / "lake"


@pytest.fixture
def own_versions(two_versions: Path, tmp_path: Path) -> DataLake:
    """A copy of ``two_versions`` that a test may change."""
    return copy_lake(two_versions, tmp_path / "own")


@pytest.fixture(scope="module")
def answering(two_versions: Path) -> Iterator[Answering]:
    """The models of ``two_versions``, the champion loaded."""
    with own_world(two_versions), answering_on(DataLake(two_versions)) as answering:
        yield answering


@pytest.fixture(scope="module")
def serving(two_versions: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Serving]:
    """A server on a lake of its own with those two versions, its champion loaded."""
    lake = copy_lake(two_versions, tmp_path_factory.mktemp("serving") / "lake")
    with own_world(lake.root), Serving(lake) as serving:
        wait_for(serving.ready)
        yield serving
