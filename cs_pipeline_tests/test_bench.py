from pathlib import Path

import pytest

from bench import prepare


def test_the_bench_of_prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "DAYS", 4)
    result = prepare.measure(400, tmp_path)
    assert result["rows"] == 400
    assert result["conversations"] > 3_000 + 200, "the sample rows and most of the company's"
    assert set(result["sides"]) == {"train", "validation", "test"}
    for kind, ratio in (("seconds", "ratio"), ("processor_seconds", "processor_ratio")):
        seconds = result[kind]
        assert list(seconds)[-1] == "together"
        assert seconds["clean_bitext"]["landing"] == 0, "Bitext is not prepared again"
        for arm, total in seconds.pop("together").items():
            assert total == pytest.approx(sum(step[arm] for step in seconds.values()))
        assert 0 < result[ratio] < 1
