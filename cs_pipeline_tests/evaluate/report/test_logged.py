"""A version's logged figures as texts and plots: of a fine-tune, and of a look-up, which has no base and no training."""

import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import BEHIND_FIRST
from cs_pipeline.evaluate.report.leaderboard import LEADERBOARD_METRICS, LEADERBOARD_SCHEMA, PICTURED_METRICS
from cs_pipeline.evaluate.report.logged import leaderboard_rows, logged_loss, logged_pictures, logged_scores
from cs_pipeline.evaluate.scoring.metrics import METRICS

LOOKUP = {
    **{"test.quality": 61.24, "test.quality.low": 59.0, "test.quality.high": 63.0, "test.right_intent": 90.0},
    **{"train.rows": 400.0, "train.seconds": 0.2, "test.nearest.quality": 50.0},
}
TUNED = LOOKUP | {
    **{"test.base.quality": 20.0, "test.base.right_intent": 10.0, "test.bits_per_character": 0.5},
    **{f"test.minus_base.quality.{end}": value for end, value in (("difference", 41.2), ("low", 39), ("high", 43))},
}


def test_a_fine_tune_is_compared_with_its_base() -> None:
    quality, right_intent, bits = logged_scores(TUNED)
    assert (quality.label, quality.score, quality.interval) == (METRICS["quality"].label, "61.2", "59.0 to 63.0")
    assert (quality.base, quality.difference, quality.verdict) == ("20.0", "+41.2", "better")
    assert (right_intent.interval, right_intent.base, right_intent.verdict) == ("", "10.0", "")
    assert (bits.score, bits.base) == ("0.500", "–")
    first, _ = logged_pictures(TUNED)
    assert first.title == METRICS["quality"].label
    assert 'aria-label="Answer quality (0 to 100), tuned and base"' in first.svg
    assert "var(--base)" in first.svg


def test_a_lookup_has_no_base_and_no_loss() -> None:
    quality, right_intent = logged_scores(LOOKUP)
    assert (quality.score, quality.base, quality.difference, quality.verdict) == ("61.2", "–", "", "")
    assert right_intent.label == METRICS["right_intent"].label
    pictures = logged_pictures(LOOKUP)
    assert [picture.title for picture in pictures] == [METRICS[name].label for name in PICTURED_METRICS[:2]]
    assert 'aria-label="Answer quality (0 to 100), tuned"' in pictures[0].svg
    assert "var(--base)" not in pictures[0].svg
    assert logged_loss(LOOKUP, []) == ""


def test_the_leaderboard_as_texts_has_look_ups(lake: DataLake) -> None:
    assert leaderboard_rows(lake) == []
    row = dict.fromkeys(LEADERBOARD_SCHEMA.names) | {
        **{
            "recipe": "lookup",
            "note": "",
            "placeholders": "keep",
            "base": "none",
            "method": "look-up",
            "route": "intent",
        },
        **{"rows": 400, "seconds": 0.2, "adapter_mib": 0.0, "evaluation_seconds": 9.0},
        **{"quality": 61.24, "quality_low": 59.0, "quality_high": 63.0},
    }
    behind = row | {"recipe": "tuned", "quality": 60.0} | dict(zip(BEHIND_FIRST, (-1.24, -2.0, -0.5), strict=True))
    lake.write(
        "evaluate",
        "leaderboard",
        LEADERBOARD_SCHEMA.empty_table().from_pylist([row, behind], LEADERBOARD_SCHEMA),
        LEADERBOARD_SCHEMA,
    )
    first, second = leaderboard_rows(lake)
    assert list(first) == [
        "Recipe",
        "Placeholders",
        *(METRICS[name].label for name in LEADERBOARD_METRICS),
        "Behind the first",
    ]
    assert first[METRICS["quality"].label] == "61.2 (59.0 to 63.0)"
    assert first[METRICS["bits_per_character"].label] == "–"
    assert (first["Behind the first"], second["Behind the first"]) == ("first", "−1.2 (−2.0 to −0.5)")


def test_the_leaderboard_of_another_release_is_refused_with_the_command_that_rebuilds_it(lake: DataLake) -> None:
    older = LEADERBOARD_SCHEMA.remove(LEADERBOARD_SCHEMA.get_field_index("quality"))
    lake.write("evaluate", "leaderboard", older.empty_table(), older)
    with pytest.raises(PipelineError, match="another release: it has no column 'quality'") as error:
        leaderboard_rows(lake)
    assert "dagster asset materialize --select leaderboard" in error.value.fix
