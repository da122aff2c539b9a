"""A desk on real models with its own lake, for the tests of its replies and of attacks."""

import json
from collections.abc import Iterator

import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.serve.desk.desk import Desk
from cs_pipeline.serve.models.service import ModelService

COMPANY = Company(values={"Company Name": "Brightmart", "Website URL": "www.brightmart.example"})


@pytest.fixture(scope="module")
def lake(tmp_path_factory: pytest.TempPathFactory) -> DataLake:
    return DataLake(tmp_path_factory.mktemp("desk"))


@pytest.fixture(scope="module")
def desk(service: ModelService, lake: DataLake) -> Iterator[Desk]:
    desk = Desk(service, COMPANY, lake)
    yield desk
    desk.close()


def waiting(lake: DataLake) -> dict[str, dict]:
    return {path.stem: json.loads(path.read_text()) for path in lake.path("serve", "handovers").glob("*.json")}
