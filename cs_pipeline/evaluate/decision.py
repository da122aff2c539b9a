"""Whether a candidate may become champion: one pure function of an evaluation's figures.

The report asks it, and so does the promotion, so that both say the same.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cs_pipeline.evaluate.comparison import FEWEST_CLUSTERS, FEWEST_ROWS, judgement
from cs_pipeline.evaluate.scoring.metrics import METRICS

JUDGED_BY = "bits_per_character"
"""The metric a candidate must be better in: the same for every tokenizer, and steadier than any score of one answer."""

NOT_WORSE_IN = ("right_intent", "placeholder_recall", "stop_rate", "safe")
"""Metrics in which it must not be worse.

Each is judged by itself, on all rows and on those of each source. With two sources luck in one of them stops about one in
four of the simulated models that need clearly fewer bits and are equal in all these: the safe side to err on, for another
training comes with the next rows.
"""

MUCH_WORSE = 10.0
"""Points of right answers that an intent may lose against the champion before it stops a promotion. Against the base none
stops it: one that takes every question for the same is perfect in that intent.

The whole interval must lie beyond them, one that holds for all intents at once (Bonferroni): with 27 intents and plain
intervals, luck stops up to one in eight of the candidates that are as good in all of them. The price, for errors that are
independent: of 75 rows a loss of 30 points is seen in half of the cases and one of 40 in nine of ten, of 20 rows one of 50
points in six of ten.
"""

TOLERATED = {"bits_per_character": 0.005, "right_intent": 2.0, "placeholder_recall": 2.0}
"""What a candidate may lose against the champion, in the metric's own unit, before it counts as worse.

The interval knows that other test rows could have been drawn, not that another training on equal rows gives another model:
two of ``embedded`` on Bitext's rows needed 0.490 and 0.492 bits per character, and 52 and 47 % of their answers had the
right intent. Without it a model far better on a company's rows was refused for 0.001 bits on Bitext's. Nothing is
tolerated against the base, nor in stop rate and safety.
"""

THRESHOLDS = {
    "interval": 0.95,
    "better_in": JUDGED_BY,
    "not_worse_in": list(NOT_WORSE_IN),
    "slice_clusters": FEWEST_CLUSTERS,
    "intent_rows": FEWEST_ROWS,
    "intent_points": MUCH_WORSE,
    "tolerated": TOLERATED,
}
"""What the decision went by; every entry of the history keeps it beside the figures."""

_OTHERS = {"base": "its base", "champion": "the champion"}


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes champion, and the sentence that says why."""

    promote: bool
    reason: str


def decide_promotion(facts: Mapping[str, Any], champion_forgotten: bool = False) -> Decision:
    """Better than its base, and than the champion if there is one; worse in nothing that is gated.

    ``facts`` are those of an evaluation: ``differences`` by other system and metric, ``slices``, ``intents``, and the mode
    of ``placeholders`` by system, and what the ``judge`` said, None without one: it can stop a promotion and make none.
    Between two modes nothing is decided: their reference answers are other texts. Better and
    worse mean that the 95 % interval lies on one side of zero. Better it must be on all rows together, each source
    weighing what its rows weigh: with a chance at each source, more candidates that are only lucky would come through.
    Worse than the champion, by more than is tolerated, it may be neither there nor on the rows of any source that has
    enough of them, so that no source pays for another. A model compared with itself, or with one as good, is therefore not
    promoted: it would only change what customers hear, for nothing. Where the champion has seen what is to be forgotten
    (``champion_forgotten``) the change is wanted, and it is enough not to be worse.
    """
    flaw = next(_flaws(facts, champion_forgotten), None)
    if flaw is not None:
        return Decision(False, flaw)
    shown = {other: _shown(differences[JUDGED_BY]) for other, differences in beside(facts["differences"]).items()}
    against = " and ".join(f"{_OTHERS[other]} ({figures})" for other, figures in shown.items())
    if champion_forgotten:
        against = f"{_OTHERS['base']} ({shown['base']}), not more than the champion, which is to be forgotten,"
    return Decision(True, f"it needs fewer bits per character than {against} and is worse in nothing gated")


def _flaws(facts: Mapping[str, Any], champion_forgotten: bool) -> Iterator[str]:
    """What speaks against a candidate, a sentence each."""
    mode = facts["placeholders"]
    if mode.get("champion", mode["tuned"]) != mode["tuned"]:
        yield (
            f"its placeholders are '{mode['tuned']}' and those of the champion '{mode['champion']}', so no figure compares"
            " the two; a person may decide: cs-pipeline rollback --to VERSION"
        )
    for other, differences in beside(facts["differences"]).items():
        name, figures = _OTHERS[other], differences.get(JUDGED_BY)
        if figures is None:
            yield f"{JUDGED_BY} against {name} could not be measured"
        elif judgement(JUDGED_BY, figures) == "worse":
            yield f"it needs more bits per character than {name} ({_shown(figures)})"
        elif judgement(JUDGED_BY, figures) == "unclear" and not (other == "champion" and champion_forgotten):
            yield f"it needs not clearly fewer bits per character than {name} ({_shown(figures)})"
        for metric in _worse(differences, NOT_WORSE_IN, TOLERATED if other == "champion" else {}):
            yield f"its {metric} is worse than that of {name} ({_shown(differences[metric])})"
    judge = facts["judge"]
    if judge and judge["may_gate"] and "champion" in judge["against"]:
        heard = judge["against"]["champion"]
        if heard["high"] is not None and heard["high"] < 0.5:
            yield (
                f"the judge, which agrees with people, prefers the champion's answers: {heard['won']} of the tuned model's"
                f" won and {heard['lost']} lost"
            )
    for source, part in facts["slices"].items():
        differences = part["differences"].get("champion", {})  # too few rows have none
        for metric in _worse(differences, (JUDGED_BY, *NOT_WORSE_IN), TOLERATED):
            worse = f"its {metric} is worse than that of the champion ({_shown(differences[metric])})"
            yield f"on the {source} rows {worse}"
    for intent, part in facts["intents"].items():
        right = part["differences"].get("champion", {}).get("right_intent")
        if right is not None and right["high"] < -MUCH_WORSE:
            yield f"asked about '{intent}', far fewer answers have the right intent than of the champion ({_shown(right)})"


def beside(differences: Mapping[str, Any]) -> dict[str, Any]:
    """Those to the systems that a candidate is held against."""
    return {other: differences[other] for other in _OTHERS if other in differences}


def _worse(differences: Mapping[str, Any], metrics: Iterable[str], tolerated: Mapping[str, float]) -> list[str]:
    """Those of ``metrics`` that are worse by more than is tolerated, the whole interval.

    One without a figure, as placeholders of a recipe that strips them, is not.
    """
    worse = []
    for metric in metrics:
        if figures := differences.get(metric):
            gain = figures["high"] if METRICS[metric].better == "higher" else -figures["low"]
            if gain < -tolerated.get(metric, 0.0):
                worse.append(metric)
    return worse


def _shown(difference: Mapping[str, Any]) -> str:
    return f"{difference['difference']:+.3f}, 95 % interval {difference['low']:+.3f} to {difference['high']:+.3f}"
