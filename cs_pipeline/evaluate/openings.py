"""Counts how often the test rows have decided who becomes champion.

Whoever looks for a gain on the same rows again and again will find one by luck in the end. Every evaluation whose
figures a decision was based on therefore counts, whether its version was promoted, refused or only reported on.
``decision.py`` allows for DECISIONS_PER_YEAR of them.
"""

from datetime import UTC, datetime, timedelta
from pathlib import Path

from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, write_json
from cs_pipeline.core.yaml_file import key_errors
from cs_pipeline.evaluate.results import EvaluationResults, evaluations_lock

_YEAR = timedelta(days=365)


class Opening(BaseModel):
    """An evaluation whose figures a decision was based on: its fingerprint and recipe, and the time of the decision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    time: AwareDatetime
    recipe: str
    evaluation: str


_OPENINGS = TypeAdapter(list[Opening])


def record_opening(results: EvaluationResults, lake: DataLake) -> int:
    """Records a decision by the figures of ``results``. Returns how many other openings there were in the year before.

    The first call for an evaluation adds it, and later calls return the same number. A report and a promotion of the
    same evaluation are therefore one opening, and both get the same number. Raises PipelineError when the record is
    damaged.
    """
    with evaluations_lock(lake):
        openings = read_openings(lake)
        found = [each.evaluation for each in openings]
        if results.fingerprint not in found:
            now = datetime.now(UTC).replace(microsecond=0)
            openings.append(Opening(time=now, recipe=results.recipe, evaluation=results.fingerprint))
            write_json(_path(lake), _OPENINGS.dump_python(openings, mode="json"))
            found.append(results.fingerprint)
    place = found.index(results.fingerprint)
    return sum(earlier.time >= openings[place].time - _YEAR for earlier in openings[:place])


def read_openings(lake: DataLake) -> list[Opening]:
    """All openings, oldest first; none if nothing was decided yet. Raises PipelineError when the record is damaged."""
    path = _path(lake)
    try:
        return _OPENINGS.validate_json(path.read_bytes()) if path.exists() else []
    except ValidationError as error:
        raise PipelineError(
            f"{path} is damaged: {key_errors(error, 'an opening')}.",
            "Restore it from a backup. Deleting it makes the count of decisions start again at zero.",
        ) from error


def _path(lake: DataLake) -> Path:
    return lake.path("evaluate", "openings.json")
