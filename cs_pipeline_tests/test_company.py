"""A company's file is landed while webserver and daemon run.

Without further action the champion, a look-up, gives the company's own answers, and a new version of the model is trained.
"""

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cs_pipeline.company import company_file, load_company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.landing import land_files
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.register.lineage import trace_lineage
from cs_pipeline.register.version import ask_version
from cs_pipeline.tracking import champion_number, find_versions, open_store
from cs_pipeline_tests.conftest import copy_lake, own_world
from cs_pipeline_tests.support.exports import export
from cs_pipeline_tests.support.service import TIMEOUT, Service
from cs_pipeline_tests.support.versions import add_lookup, make_champion

SETTINGS = """\
columns: {question: question, answer: answer, customer_email: email}
retrain: {new_rows: 40}
"""


@pytest.fixture
def own_lake(champion_lake: Path, tmp_path: Path) -> DataLake:
    """A lake with a model as version 1 and a look-up as champion 2. 40 new rows make retraining due."""
    lake = copy_lake(champion_lake, tmp_path / "lake")
    company_file(lake).write_text(SETTINGS)
    with own_world(lake.root):
        make_champion(lake, add_lookup(lake))
    return lake


@pytest.fixture
def service(own_lake: DataLake, small_csv: Path, tmp_path: Path) -> Iterator[Service]:
    running = Service(tmp_path, own_lake, small_csv)
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


def wait_for(condition: Callable[[], Any], service: Service) -> Any:
    end = time.monotonic() + TIMEOUT
    while time.monotonic() < end:
        found = condition()
        if found:
            return found
        assert not service.failures(), service.failures()
        time.sleep(1)
    raise AssertionError(service.log_tail())


def test_a_landed_file_is_answered_from_and_leads_to_a_version_with_the_file_in_its_lineage(
    service: Service, own_lake: DataLake, tmp_path: Path
) -> None:
    file = export(tmp_path / "tickets.csv", 120, seed=1)
    (landed,) = land_files([file], own_lake, load_company(own_lake))
    client = open_store(own_lake)
    wait_for(lambda: len(find_versions(client)) == 3, service)
    wait_for(lambda: service.idle(), service)

    with Ledger(own_lake) as ledger:
        (delivery,) = ledger.deliveries()
    assert delivery.name == landed.name
    assert delivery.ingested_at is not None
    made = trace_lineage(3, own_lake)
    (company,) = [entry for entry in made["files"] if entry["source"] == "company"]
    assert company["name"] == landed.name
    assert company["sha256"] == delivery.sha256
    assert company["rows"] > 10  # of those that the recipe samples
    assert company["run"] in service.runs("ingest_company")
    assert made["run"] in service.runs("support_model")
    (decision,) = made["history"]
    assert (decision["kind"], decision["champion_before"], decision["recipe"]) == ("decision", 2, "tiny")
    assert "champion" in decision["differences"]
    assert not decision["promote"], "a model of thirty steps does not beat the free look-up"
    assert decision["reason"]
    assert champion_number(client) == 2
    assert made["aliases"] == ["challenger"]
    rows = own_lake.read("prepare", "train_split", ["source", "instruction", "response"]).to_pylist()
    own = [row for row in rows if row["source"] == "company"]
    with own_world(own_lake.root):
        answers = ask_version(2, [row["instruction"] for row in own], own_lake)
    assert len(own) > 40
    assert sum(answer in {row["response"] for row in own} for answer in answers) > 0.9 * len(own)
    assert b"@example.net" not in b"".join(
        path.read_bytes()
        for path in own_lake.root.rglob("*")
        if path.is_file() and "ingest" not in path.parts and "landing" not in path.parts
    )

    # The same content again, under the same and under another name, has no effect.
    again = own_lake.root / "landing" / "again.csv"
    shutil.copy(file, again)
    os.utime(again, (time.time() - 3600,) * 2)  # complete at first sight, like a file that was moved there
    land_files([file], own_lake, load_company(own_lake))
    before, looks = service.runs(), service.ticks("landed_files")
    wait_for(lambda: service.ticks("landed_files") >= looks + 2, service)
    assert service.runs() == before
    assert len(find_versions(client)) == 3
