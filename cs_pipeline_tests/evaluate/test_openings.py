"""Every evaluation that its figures decided counts once, whoever decided, in the year before the next one."""

import threading
from datetime import UTC, datetime, timedelta

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, read_json, write_json
from cs_pipeline.evaluate.openings import read_openings, record_opening
from cs_pipeline_tests.support.results import results_of


def open_one(lake: DataLake, fingerprint: str) -> int:
    return record_opening(results_of(fingerprint=fingerprint), lake)


def test_an_evaluation_counts_once_and_keeps_its_number(lake: DataLake) -> None:
    assert read_openings(lake) == []
    assert [open_one(lake, name) for name in ("a", "a", "b", "c", "b", "a", "c")] == [0, 0, 1, 2, 1, 0, 2]
    assert [(each.evaluation, each.recipe) for each in read_openings(lake)] == [
        ("a", "one"),
        ("b", "one"),
        ("c", "one"),
    ]


def test_openings_of_more_than_a_year_before_do_not_count(lake: DataLake) -> None:
    path = lake.path("evaluate", "openings.json")
    now = datetime.now(UTC)
    ages = {"old": timedelta(days=400), "recent": timedelta(days=300), "new": timedelta(days=1)}
    write_json(
        path,
        [
            {
                "time": (now - age).isoformat(timespec="seconds").replace("+00:00", "Z"),
                "recipe": "one",
                "evaluation": name,
            }
            for name, age in ages.items()
        ],
    )
    before = read_json(path)
    assert open_one(lake, "now") == 2
    assert read_json(path)[:3] == before
    assert open_one(lake, "recent") == 1, "at its own time, the first one was recent"


def test_concurrent_openings_are_all_recorded(lake: DataLake) -> None:
    counts: list[int] = []
    threads = [threading.Thread(target=lambda i=i: counts.append(open_one(lake, f"evaluation {i}"))) for i in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == list(range(20))


@pytest.mark.parametrize("damage", ["", "{}", '[{"time": "yesterday", "recipe": "one", "evaluation": "a"}]'])
def test_a_damaged_record_is_refused_and_kept(lake: DataLake, damage: str) -> None:
    open_one(lake, "a")
    path = lake.path("evaluate", "openings.json")
    path.write_text(damage)
    with pytest.raises(PipelineError, match=r"openings\.json is damaged"):
        open_one(lake, "b")
    assert path.read_text() == damage
