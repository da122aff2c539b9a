"""Whether a candidate may become champion: one pure function of an evaluation's results.

The report and the promotion both call it, so they always agree.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from cs_pipeline.evaluate.comparison import MIN_CLUSTERS, MIN_INTENT_ROWS, judgement
from cs_pipeline.evaluate.results import Differences, EvaluationResults
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import Difference

DECISIVE_METRIC = "bits_per_character"
"""The metric in which a candidate must be better: comparable across tokenizers, and steadier than scores of answers."""

GUARDED_METRICS = ("right_intent", "placeholder_recall", "stop_rate", "safe")
"""Metrics in which it must not be worse.

Each is tested on its own, on all rows and on those of each source. With two sources bad luck in one of them stops about one
in four of the simulated models that clearly need fewer bits and are equal in all of these. That errs on the safe side: the
next rows bring another training.
"""

MAX_INTENT_LOSS = 10.0
"""Percentage points of right answers that an intent may lose against the champion before it stops a promotion. A loss
against the base never does: a base that takes every question for the same intent is perfect in that one.

The whole interval must lie beyond the limit, and the intervals hold for all intents at once (Bonferroni): with 27 intents
and plain intervals, bad luck stops up to one in eight of the candidates that are as good in all of them. The price, for
independent errors: with 75 rows a loss of 30 points is detected in half of the cases and one of 40 in nine of ten, with 20
rows a loss of 50 points in six of ten.
"""

TOLERATED_LOSS = {"bits_per_character": 0.005, "right_intent": 2.0, "placeholder_recall": 2.0}
"""What a candidate may lose against the champion before it counts as worse, in the metric's own unit.

The interval covers the choice of test rows, not the randomness of training: two trainings of ``embedded`` on Bitext's rows
needed 0.490 and 0.492 bits per character, and 52 and 47 % of their answers had the right intent. Without it a model that was
far better on a company's rows was refused for 0.001 bits on Bitext's. Nothing is tolerated against the base, nor in stop
rate and safety.
"""

THRESHOLDS = {
    "interval": 0.95,
    "better_in": DECISIVE_METRIC,
    "not_worse_in": list(GUARDED_METRICS),
    "slice_clusters": MIN_CLUSTERS,
    "intent_rows": MIN_INTENT_ROWS,
    "intent_points": MAX_INTENT_LOSS,
    "tolerated": TOLERATED_LOSS,
}
"""The rules of the decision; every entry of the history keeps them beside the figures."""

_RIVALS = {"base": "its base", "champion": "the champion"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes champion, and the sentence that gives the reason."""

    promote: bool
    reason: str


def decide_promotion(results: EvaluationResults, champion_forgotten: bool = False) -> Decision:
    """Promotes a candidate that is better than its base and the champion, if there is one, and worse in nothing guarded.

    Better and worse mean that the 95 % interval lies on one side of zero. The candidate must be better on all rows together,
    where each source weighs as much as it has rows: a chance at each source would let more lucky candidates through. It must
    not be worse than the champion, by more than is tolerated, on all rows or on those of any source that has enough of them:
    no source pays for another. So a model compared with itself, or with an equally good one, is not promoted: it would
    change what customers read for nothing. A judge that agrees with people can stop a promotion, never cause one. Two
    placeholder modes have different reference texts, so between them nothing is decided.

    If the champion was trained on rows that are to be forgotten (``champion_forgotten``), the change is wanted, and it is
    enough not to be worse.
    """
    objection = next(_objections(results, champion_forgotten), None)
    if objection is not None:
        return Decision(False, objection)
    figures = {rival: _figures(found[DECISIVE_METRIC]) for rival, found in against_rivals(results.differences).items()}
    if champion_forgotten:
        better_than = f"its base ({figures['base']}), no more than the champion, which is to be forgotten,"
    else:
        better_than = " and ".join(f"{_RIVALS[rival]} ({text})" for rival, text in figures.items())
    return Decision(
        True, f"it needs fewer bits per character than {better_than} and is not worse in any guarded metric"
    )


def _objections(results: EvaluationResults, champion_forgotten: bool) -> Iterator[str]:
    """The reasons against a candidate, one sentence each."""
    modes = results.placeholders
    if modes.get("champion", modes["tuned"]) != modes["tuned"]:
        yield (
            f"its placeholder mode is '{modes['tuned']}' and the champion's is '{modes['champion']}', so their figures do"
            " not compare; you can promote it yourself: cs-pipeline rollback --to VERSION"
        )
    for rival, differences in against_rivals(results.differences).items():
        name, found = _RIVALS[rival], differences.get(DECISIVE_METRIC)
        verdict = found and judgement(DECISIVE_METRIC, found.low, found.high)
        if found is None:
            yield f"{DECISIVE_METRIC} could not be measured against {name}"
        elif verdict == "worse":
            yield f"it needs more bits per character than {name} ({_figures(found)})"
        elif verdict == "unclear" and not (rival == "champion" and champion_forgotten):
            yield f"it does not clearly need fewer bits per character than {name} ({_figures(found)})"
        for metric, loss in _losses(differences, GUARDED_METRICS, TOLERATED_LOSS if rival == "champion" else {}):
            yield f"its {metric} is worse than that of {name} ({_figures(loss)})"
    judge = results.judge
    if judge and judge.may_gate and "champion" in judge.against:
        tally = judge.against["champion"]
        if tally.high is not None and tally.high < 0.5:
            yield (
                f"the judge, which agrees with people, prefers the champion's answers: the tuned model won {tally.won}"
                f" comparisons and lost {tally.lost}"
            )
    for source, part in results.slices.items():
        differences = part.differences.get("champion", {})  # empty with too few rows
        for metric, loss in _losses(differences, (DECISIVE_METRIC, *GUARDED_METRICS), TOLERATED_LOSS):
            yield f"on the {source} rows its {metric} is worse than that of the champion ({_figures(loss)})"
    for intent, of_intent in results.intents.items():
        right = of_intent.differences.get("champion", {}).get("right_intent")
        if right is not None and right.high < -MAX_INTENT_LOSS:
            yield f"on '{intent}' far fewer of its answers have the right intent than of the champion's ({_figures(right)})"


def against_rivals(differences: Mapping[str, _T]) -> dict[str, _T]:
    """The entries of the systems that a candidate must beat: its base and the champion."""
    return {rival: differences[rival] for rival in _RIVALS if rival in differences}


def _losses(
    differences: Differences, metrics: Iterable[str], tolerated: Mapping[str, float]
) -> Iterator[tuple[str, Difference]]:
    """Those of ``metrics`` that are worse than tolerated, by their whole interval.

    A metric without a figure is left out, such as those of placeholders if the recipe strips them.
    """
    for metric in metrics:
        if (found := differences.get(metric)) is not None:
            gain = found.high if METRICS[metric].better == "higher" else -found.low
            if gain < -tolerated.get(metric, 0.0):
                yield metric, found


def _figures(difference: Difference | None) -> str:
    assert difference is not None  # an objection was raised otherwise
    return f"{difference.difference:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
