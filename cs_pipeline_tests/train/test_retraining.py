"""When a retraining is due, as a table of cases."""

from dataclasses import replace

import pytest

from cs_pipeline.company import RetrainSettings
from cs_pipeline.train.retraining import RetrainingState, decide_retraining

RULE = RetrainSettings(new_rows=200, days=30)
NOTHING_NEW = RetrainingState(champion=3, champion_days=2.0, champion_marked=False, new_rows=0, data="d")


@pytest.mark.parametrize(
    ("change", "due", "reason"),
    [
        ({}, False, "no new usable row since the last training"),
        ({"champion_days": 400.0}, False, "no new usable row"),
        ({"new_rows": 1}, False, "1 new usable row of 200 needed, and champion 3 is 2.0 days old of 30"),
        ({"new_rows": 199}, False, "199 new usable rows of 200 needed"),
        ({"new_rows": 200}, True, "200 new usable rows since the last training; 200 are enough"),
        ({"new_rows": 5_000}, True, "5,000 new usable rows"),
        ({"new_rows": 1, "champion_days": 29.9}, False, "29.9 days old of 30"),
        ({"new_rows": 1, "champion_days": 30.0}, True, "after 30 days one row is enough"),
        ({"champion_marked": True}, True, "champion 3 has seen rows that must be forgotten"),
        ({"champion": None, "new_rows": 5_000}, False, "there is no champion yet"),
    ],
)
def test_the_decision(change: dict[str, object], due: bool, reason: str) -> None:
    found = decide_retraining(replace(NOTHING_NEW, **change), RULE)  # type: ignore[arg-type]
    assert found.due is due
    assert reason in found.reason
