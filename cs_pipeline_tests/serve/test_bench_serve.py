"""The serving benchmark, at a size for tests."""

from pathlib import Path

import pytest

from bench import serve
from cs_pipeline.core.lake import DataLake
from cs_pipeline_tests.support.serving import SURE


def test_the_serving_benchmark_runs(two_versions: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lake, asked = DataLake(two_versions), [f"{SURE}, please"[:length] for length in range(20, 28)]
    server = serve.Server(lake)
    try:
        load = serve.batches(server, asked, clients=4, rounds=1)
        assert (load["by_the_model"], load["texts_that_differ"]) == (1, 0)
        assert all(0 < facts["p50"] <= facts["p95"] for facts in load["arms"].values())
        layers = serve.layers(server, asked, lake, rounds=1)
        assert layers["questions"] == len(asked)
        assert layers["http_over_desk"] == layers["milliseconds"]["HTTP"] - layers["milliseconds"]["desk"]
        monkeypatch.setattr(serve, "SAMPLE_EVERY", 4)
        monkeypatch.setattr(serve, "MAX_GROWTH", 1e6)
        memory = serve.memory_growth(server, asked, clients=4, count=12)
        assert len(memory["mebibytes"]) == 4
        result = {"batches": load, "layers": layers, "memory": memory}
        assert serve.table_of(result).row_count == 9
        monkeypatch.setattr(serve, "MAX_GROWTH", -1e6)
        with pytest.raises(AssertionError, match="a thousand requests add"):
            serve.memory_growth(server, asked, clients=4, count=12)
    finally:
        server.close()


def test_a_fine_tune_is_measured_even_if_a_look_up_is_champion(lookup_lake: Path, two_versions: Path) -> None:
    assert serve.measured_version(DataLake(lookup_lake)).version == 1
    assert serve.measured_version(DataLake(two_versions)).version == 1, "the champion, not the newest version"
