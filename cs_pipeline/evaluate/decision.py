"""Decides whether a candidate may become champion, in one pure function of an evaluation's results.

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
"""The metric in which a candidate must be better: comparable across tokenizers, and less noisy than scores of answers."""

GUARDED_METRICS = ("right_intent", "placeholder_recall", "stop_rate", "safe")
"""Metrics in which a candidate must not be worse.

Each is tested on its own, on all rows and on the rows of each source. In a simulation with two sources, about
one in four models were stopped by chance, although they clearly needed fewer bits and were truly as good as the champion in
all of these metrics. This errs on the safe side: the next new rows start another training run.
"""

MAX_INTENT_LOSS = 10.0
"""How many percentage points of right answers an intent may lose against the champion. A larger loss stops a promotion.
A loss against the base does not: a base that answers every question with the same intent is always right in that intent.

The whole interval must lie beyond the limit, and the intervals hold jointly for all intents (Bonferroni). With 27 intents
and separate 95 % intervals, up to one in eight candidates that are equally good in every intent would be stopped by chance.
The cost is that some losses are missed. If errors are independent, 75 rows detect a loss of 30 points in half of the cases
and a loss of 40 points in nine of ten; 20 rows detect a loss of 50 points in six of ten.
"""

TOLERATED_LOSS = {"bits_per_character": 0.005, "right_intent": 2.0, "placeholder_recall": 2.0}
"""The largest loss against the champion that does not count as worse, in the metric's own unit.

The interval reflects the choice of test rows, not the randomness of training: two training runs of ``embedded`` on Bitext's
rows needed 0.490 and 0.492 bits per character, and 52 and 47 % of their answers had the right intent. Without this
tolerance, a model that was far better on a company's rows was rejected for a loss of 0.001 bits on Bitext's rows. No loss is
tolerated against the base, or in stop rate and safety.
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
"""The rules of the decision. Every entry of the promotion history stores them with the figures."""

_RIVALS = {"base": "its base", "champion": "the champion"}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes champion, and the sentence that gives the reason."""

    promote: bool
    reason: str


def decide_promotion(results: EvaluationResults, champion_forgotten: bool = False) -> Decision:
    """Promotes a candidate that is better than its base and the champion, if there is one, and worse in no guarded metric.

    Better and worse mean that the 95 % interval lies on one side of zero. The candidate must be better on all rows together,
    where each source is weighted by its number of rows. If a gain on any one source were enough, more candidates would pass
    by luck. The candidate must not be worse than the champion by more than is tolerated, on all rows or on the rows of any
    source that has enough of them: a gain on one source does not make up for a loss on another. A model that is only as good
    as the champion, or the champion itself, is not promoted: customers would get different answers for no benefit.

    A judge that agrees with people can stop a promotion, never cause one. If the champion has another placeholder mode, the
    candidate is not promoted: the modes have different reference texts, so their figures cannot be compared.

    If the champion was trained on rows that are to be forgotten (``champion_forgotten``), it should be replaced. It is then
    enough that the candidate is not worse than the champion; it must still be better than its base.
    """
    objection = next(_objections(results, champion_forgotten), None)
    if objection is not None:
        return Decision(False, objection)
    rivals = against_rivals(results.differences)
    if champion_forgotten:
        rivals.pop("champion", None)
    beaten = [f"{_RIVALS[rival]} ({_figures(by_metric[DECISIVE_METRIC])})" for rival, by_metric in rivals.items()]
    reason = f"it needs fewer bits per character than {' and '.join(beaten)} and is not worse in any guarded metric"
    if champion_forgotten:
        reason += "; it need not be better than the champion, which was trained on rows that are to be forgotten"
    return Decision(True, reason)


def _objections(results: EvaluationResults, champion_forgotten: bool) -> Iterator[str]:
    """The reasons against a candidate, one sentence each."""
    modes = results.placeholders
    if modes.get("champion", modes["tuned"]) != modes["tuned"]:
        yield (
            f"its placeholder mode is '{modes['tuned']}' and the champion's is '{modes['champion']}', so their figures"
            " cannot be compared; you can promote it yourself: cs-pipeline rollback --to VERSION"
        )
    for rival, differences in against_rivals(results.differences).items():
        name, difference = _RIVALS[rival], differences.get(DECISIVE_METRIC)
        verdict = difference and judgement(DECISIVE_METRIC, difference.low, difference.high)
        if difference is None:
            yield f"{DECISIVE_METRIC} could not be measured against {name}"
        elif verdict == "worse":
            yield f"it needs more bits per character than {name} ({_figures(difference)})"
        elif verdict == "unclear" and not (rival == "champion" and champion_forgotten):
            yield f"it does not clearly need fewer bits per character than {name} ({_figures(difference)})"
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
    for intent, intent_results in results.intents.items():
        change = intent_results.differences.get("champion", {}).get("right_intent")
        if change is not None and change.high < -MAX_INTENT_LOSS:
            yield f"on '{intent}' its answers have the right intent far less often than the champion's ({_figures(change)})"


def against_rivals(differences: Mapping[str, _T]) -> dict[str, _T]:
    """The entries of the systems that a candidate must beat: its base and the champion."""
    return {rival: differences[rival] for rival in _RIVALS if rival in differences}


def _losses(
    differences: Differences, metrics: Iterable[str], tolerated: Mapping[str, float]
) -> Iterator[tuple[str, Difference]]:
    """Yields the ``metrics`` whose whole interval is worse than tolerated, each with its difference.

    A metric without a figure is left out, for example placeholder recall if the recipe strips placeholders.
    """
    for metric in metrics:
        if (difference := differences.get(metric)) is not None:
            largest_gain = difference.high if METRICS[metric].better == "higher" else -difference.low
            if largest_gain < -tolerated.get(metric, 0.0):
                yield metric, difference


def _figures(difference: Difference | None) -> str:
    assert difference is not None  # _objections stops a candidate without this difference
    return f"{difference.difference:+.3f}, 95 % interval {difference.low:+.3f} to {difference.high:+.3f}"
