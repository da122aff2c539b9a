"""Decides whether a candidate may become champion, in one pure function of an evaluation's results.

The report and the promotion both call it, so they always agree. docs/evaluation.md explains the rule and its figures.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

from cs_pipeline.evaluate.comparison import MIN_CLUSTERS, MIN_INTENT_ROWS
from cs_pipeline.evaluate.results import FREE_SYSTEMS, CompanyResults, EvaluationResults, JudgeTally, PeopleVotes
from cs_pipeline.evaluate.scoring.metrics import METRICS
from cs_pipeline.evaluate.scoring.statistics import POWER, Difference

PRIMARY_METRIC = "quality"
"""The metric in which a candidate must be better, unless people, or a judge that agrees with them, compared the answers."""

MIN_VOTED_QUESTIONS = 30
"""People decide which answers are better once they have a preference, for either side, on this many questions. With
fewer, they would have to prefer the same side on almost all of them to be clear enough."""

MIN_VOTERS, MAX_SHARE_OF_A_VOTER = 2, 0.8
"""At least MIN_VOTERS people must have voted, and nobody may have given more than MAX_SHARE_OF_A_VOTER of the verdicts:
one person's taste is no proof."""

MIN_SHARED_VERDICTS = 10
"""If two people gave verdicts on the same two answers this often or more, these pairs of verdicts must agree at least
as often as two coins would. Otherwise people judge by opposite rules, and their majority depends on who voted more."""

DECISIONS_PER_YEAR = 52
"""How many decisions by figures the same test rows allow in a year: one a week. After that, a person decides."""

FALSE_PROMOTIONS = 0.05
"""The largest chance that any of a year's decisions promotes a candidate that is no better than the champion. Each decision
gets an equal part of it (Bonferroni), so a single one is wrong with a chance of 0.05 / 52."""

MARGIN_RISK = 0.04
"""The chance that a candidate whose true loss is exactly the margin passes. The aim is 5 %, but bootstrap intervals are
slightly too narrow: with 0.05, 6.5 % of 400 simulated candidates with a true loss in placeholder F1 passed."""

MARGINS = {
    "quality": 2.0,
    "right_intent": 2.0,
    "placeholder_f1": 5.0,
    "fabricates": 2.0,
    "chrf": 5.0,
    "stop_rate": 2.0,
    "safe": 0.5,
}
"""The loss that is tolerated in each metric, in points, against the champion and the best free look-up.

They are judgements of what customers would not notice, fixed before models were compared. A candidate must show that it
loses less (non-inferiority). It is not enough that no loss is visible, because few rows hide any loss.
"""

FLOORS = {"stop_rate": 95.0, "safe": 99.0}
"""Scores that an answering system needs, whatever it is compared with, in percent."""

CEILINGS = {"fabricates": 5.0, "error_repeats_itself": 5.0}
"""Rates that it must not exceed, in percent."""

TRAINING_NOISE = 2.2
"""Standard deviation of the answer quality between training runs with different seeds on the same rows, in points.

It is pooled from two pairs of training runs of ``embedded`` on Bitext's rows. One pair had a quality of 50.4 and 50.0
(bench/training_noise.py). The other, of an earlier release, had the right intent in 52 and 47 % of the answers, about
4.4 points of quality. No other base has been measured yet; larger ones probably differ less.
"""

MAX_INTENT_LOSS = 10.0
"""How many percentage points of right answers an intent may lose against the champion. A larger loss stops a promotion.

The whole interval must lie beyond the limit, and the intervals hold jointly for all intents (Bonferroni). With 27 intents
and separate 95 % intervals, up to one in eight candidates that are equally good in every intent would be stopped by chance.
The cost is that some losses are missed. If errors are independent, 75 rows detect a loss of 30 points in half of the cases
and a loss of 40 points in nine of ten; 20 rows detect a loss of 50 points in six of ten.
"""

MAX_COMPANY_LOSS = 10.0
"""The loss of answer quality that is tolerated on the company's own test questions, in points. A fine-tuned candidate must
show that it loses less there, because most test rows are Bitext's. A wrong intent in one answer in ten costs about as
much."""

COMPANY_SPREAD = 43.0
"""Standard deviation over questions of the difference in answer quality between a fine-tune and a look-up, in points.

Measured with ``embedded`` on 829 of Bitext's test rows (SmolLM2-135M: 28, on 64 rows). It is used to estimate how many
of the company's questions are needed, until enough of them are in the test to measure the spread on them.
"""

TEST_SHARE = 0.05
"""The share of rows that the split puts into the test (``SPLIT_SHARES``)."""

MAX_BITS_LOSS = 0.005
"""How many more bits per character a model may need than a champion of the same base, before that raises an alarm. Two
training runs of ``embedded`` with different seeds needed 0.490 and 0.492."""

THRESHOLDS = {
    "better_in": PRIMARY_METRIC,
    "false_promotions": FALSE_PROMOTIONS,
    "decisions_per_year": DECISIONS_PER_YEAR,
    "margins": MARGINS,
    "margin_risk": MARGIN_RISK,
    "floors": FLOORS,
    "ceilings": CEILINGS,
    "training_noise": TRAINING_NOISE,
    "slice_clusters": MIN_CLUSTERS,
    "intent_rows": MIN_INTENT_ROWS,
    "intent_points": MAX_INTENT_LOSS,
    "company_points": MAX_COMPANY_LOSS,
    "voted_questions": MIN_VOTED_QUESTIONS,
    "voters": MIN_VOTERS,
    "share_of_a_voter": MAX_SHARE_OF_A_VOTER,
    "bits": MAX_BITS_LOSS,
}
"""The rules of the decision. Every entry of the promotion history stores them with the figures."""

LOOK_UP = "look-up"
"""``Recipe.training_method`` of a contender that is not trained."""

_SHARES = {
    "fabricates": "share of answers with made-up facts",
    "stop_rate": "share of answers that stop by themselves",
    "safe": "share of safe answers",
    "error_repeats_itself": "share of answers that repeat themselves",
}

_T = TypeVar("_T")


@dataclass(frozen=True)
class Decision:
    """Whether a candidate becomes champion, and the sentence that gives the reason.

    ``undecided`` means that the test rows cannot decide it, so a person has to.
    """

    promote: bool
    reason: str
    undecided: bool = False


def decide_promotion(
    results: EvaluationResults,
    earlier_decisions: int = 0,
    champion_forgotten: bool = False,
    votes: PeopleVotes | None = None,
) -> Decision:
    """Promotes a candidate that clearly gives better answers than the champion, and shows that it is worse in nothing.

    - **Better**: its answer quality is higher than the champion's, with so much confidence that a year of weekly decisions
      on the same rows promotes an equal model in at most FALSE_PROMOTIONS of the years. Without a champion, the best free
      look-up takes its place. If people have compared the answers often enough (``may_decide``), their ``votes`` count
      instead; else the verdict of a judge that agrees with people, if there is one. If a part of the test rows is sealed,
      the answer quality is that of the sealed rows alone.
    - **Not worse**: against the champion and the best free look-up, every metric of MARGINS shows a loss below its margin.
    - **Not worse for the company's customers**: if the lake has rows of a company, a fine-tune or cascade shows on the
      company's own test questions that it loses less than MAX_COMPANY_LOSS. If there are too few, a person decides.
    - **Good enough**: FLOORS and CEILINGS hold, no source of rows and no intent clearly loses, and a model of the champion's
      base does not need clearly more bits per character.

    "Better" must hold beyond the luck of training (TRAINING_NOISE) as well as that of the test rows: a gain that another
    seed would lose is no reason for different answers. "Not worse" is about this model, whatever its luck. A look-up
    competes with the champion only. A candidate that is as good as the champion is not promoted.

    ``earlier_decisions`` is the number that ``record_opening`` gives. If the champion was trained on rows that are to
    be forgotten (``champion_forgotten``), the candidate need not be better than it. ``votes`` are people's verdicts on the
    candidate and the system that it must be better than, as they are now: they may be newer than the evaluation.
    """
    objections = list(_objections(results, earlier_decisions, champion_forgotten, votes))
    if decisive := [sentence for sentence, undecided in objections if not undecided]:
        return Decision(False, decisive[0])
    if objections:
        return Decision(False, f"a person has to decide: {objections[0][0]}", undecided=True)
    return Decision(True, _praise(results, champion_forgotten, votes))


def may_decide(votes: PeopleVotes | None) -> tuple[bool, str]:
    """Whether people's ``votes`` decide which answers are better, and the reason as the end of a sentence."""
    if votes is None or not votes.verdicts:
        return False, "nobody has compared them yet"
    if votes.won + votes.lost < MIN_VOTED_QUESTIONS:
        return False, f"they need to prefer one side on {MIN_VOTED_QUESTIONS} questions"
    if votes.raters < MIN_VOTERS:
        return False, f"at least {MIN_VOTERS} people need to vote"
    if votes.busiest > MAX_SHARE_OF_A_VOTER:
        return False, f"one person gave {100 * votes.busiest:.0f} % of the verdicts"
    if votes.shared >= MIN_SHARED_VERDICTS and votes.agreement is not None and votes.agreement < 0.5:
        return (
            False,
            f"on the same answers only {100 * votes.agreement:.0f} % of {votes.shared} pairs of verdicts agree",
        )
    return True, "their votes decide which answers are better"


def clearly_preferred(votes: PeopleVotes) -> bool:
    """Whether people prefer the candidate beyond chance, with the confidence of one of a year's decisions.

    The lower end of Wilson's interval at that level is above one half.
    """
    decided = votes.won + votes.lost
    z = NormalDist().inv_cdf(1 - FALSE_PROMOTIONS / DECISIONS_PER_YEAR)
    return decided > 0 and (votes.won - votes.lost) / math.sqrt(decided) > z


def preference(votes: PeopleVotes) -> str:
    """The votes in the middle of a sentence: on how many questions people prefer which side, and how sure that is."""
    sure = (
        ""
        if votes.share is None or votes.low is None or votes.high is None
        else f" ({100 * votes.share:.0f} %, 95 % interval {100 * votes.low:.0f} to {100 * votes.high:.0f} %)"
    )
    people = "1 person" if votes.raters == 1 else f"{votes.raters} people"
    return (
        f"{people} with {votes.verdicts:,} verdicts prefer its answers on {votes.won} questions and the others on"
        f" {votes.lost}{sure}, with {votes.ties} ties"
    )


def best_free_lookup(results: EvaluationResults) -> str:
    """The look-up with the highest answer quality among FREE_SYSTEMS."""
    scores = {system: results.scores[system][PRIMARY_METRIC] for system in FREE_SYSTEMS if system in results.scores}
    return max(scores, key=lambda system: -math.inf if (score := scores[system]) is None else score.score)


def rivals(results: EvaluationResults) -> dict[str, str]:
    """The systems that the candidate is compared with, each with its name in a sentence."""
    found = {"champion": "the champion"} if "champion" in results.differences else {}
    if results.methods["tuned"] != LOOK_UP:
        found[best_free_lookup(results)] = "the best free look-up"
    return found


def of_rivals(differences: Mapping[str, _T]) -> dict[str, _T]:
    """The entries of ``differences`` that a decision can be based on."""
    return {system: value for system, value in differences.items() if system in ("champion", *FREE_SYSTEMS)}


def lower_bound(difference: Difference, metric: str, risk: float, luck: float = 0.0, margin: float = 0.0) -> float:
    """A lower bound of the candidate's gain in ``metric``, in points; a loss is negative.

    The true gain is smaller with the chance ``risk``. The standard error of the test rows follows from the width of the
    interval; ``luck`` is a standard deviation that is added to it.

    With a ``margin``, the bound shows whether the loss is below it. If a rate truly lost that much, at least that share
    of the rows would differ. The standard error is therefore at least that of a sample in which so many rows differ (as
    in Farrington and Manning 1990), and half a row is subtracted. Otherwise rare events that happen to be missing from
    the sample would look impossible.
    """
    gain = _gain(difference, metric) - (50 / difference.clusters if margin and _is_rate(metric) else 0.0)
    return gain - NormalDist().inv_cdf(1 - risk) * math.hypot(_row_error(difference, metric, margin), luck)


def rows_needed(
    difference: Difference, metric: str, points: float, risk: float, luck: float = 0.0, margin: float = 0.0
) -> int | None:
    """How many test rows would show a true gain of ``points``, or rule out such a loss, with the chance POWER.

    The other arguments are as for ``lower_bound``. None if no number would, because ``luck`` alone is too large.
    """
    error = points / (NormalDist().inv_cdf(1 - risk) + NormalDist().inv_cdf(POWER))
    allowed = error**2 - luck**2
    return None if allowed <= 0 else math.ceil(difference.rows * _row_error(difference, metric, margin) ** 2 / allowed)


def company_conversations_needed(company: CompanyResults, system: str | None = None) -> int:
    """About how many of the company's conversations would rule out a loss of MAX_COMPANY_LOSS against ``system``.

    If both systems are equally good, that many rule it out with the chance POWER. The spread of the differences is
    measured if enough of the company's questions are in the test. Otherwise, and if ``system`` is None, it is
    COMPANY_SPREAD.
    """
    half = NormalDist().inv_cdf(0.975) * COMPANY_SPREAD
    one_row = Difference(0.0, -half, half, share_above_zero=0.5, rows=1, clusters=1)
    difference = company.differences.get(system or "") or one_row
    rows = rows_needed(difference, PRIMARY_METRIC, MAX_COMPANY_LOSS, MARGIN_RISK, margin=MAX_COMPANY_LOSS) or 0
    enough = company.test_clusters >= MIN_CLUSTERS
    share = company.test_rows / company.conversations if enough else TEST_SHARE
    return math.ceil(max(rows, MIN_CLUSTERS) / share)


def _gain(difference: Difference, metric: str) -> float:
    return difference.difference if METRICS[metric].better == "higher" else -difference.difference


def _row_error(difference: Difference, metric: str, margin: float) -> float:
    error = (difference.high - difference.low) / (2 * NormalDist().inv_cdf(0.975))
    if not margin or not _is_rate(metric):
        return error
    share = margin / 100
    return max(error, 100 * math.sqrt(share * (1 - share) / difference.clusters))


def _is_rate(metric: str) -> bool:
    """Whether the metric is the share of rows with some property."""
    return METRICS[metric].columns[1] in ("rows", "labelled") and metric != PRIMARY_METRIC


def _objections(
    results: EvaluationResults, earlier_decisions: int, champion_forgotten: bool, votes: PeopleVotes | None
) -> Iterator[tuple[str, bool]]:
    """The reasons against a candidate: a sentence, and whether all it says is that the test rows cannot decide."""
    modes = results.placeholders
    if modes.get("champion", modes["tuned"]) != modes["tuned"]:
        yield (
            (
                f"its placeholder mode is '{modes['tuned']}' and the champion's is '{modes['champion']}', so their figures"
                " cannot be compared; you can promote it yourself: cs-pipeline rollback --to VERSION"
            ),
            True,
        )
        return
    compared = rivals(results)
    if compared and not (champion_forgotten and "champion" in compared):
        incumbent = next(iter(compared))
        yield from ((sentence, False) for sentence in _not_better(results, incumbent, compared[incumbent], votes))
    yield from ((sentence, False) for sentence in _below_standard(results))
    for system, name in compared.items():
        yield from _may_be_worse(results, system, name)
        yield from _may_be_worse_for_the_company(results, system, name)
    yield from ((sentence, False) for sentence in _alarms(results))
    if results.rows_left_out:
        yield f"its recipe asked only {results.rows:,} test questions and left out {results.rows_left_out:,}", True
    if compared and earlier_decisions >= DECISIONS_PER_YEAR:
        used = (
            f"the test rows were used for {earlier_decisions} decisions"
            if results.sealed is None
            else f"the sealed questions were opened {earlier_decisions} times"
        )
        yield f"{used} within a year; another might be won by luck", True


def _below_standard(results: EvaluationResults) -> Iterator[str]:
    scores = results.scores["tuned"]
    for limits, word in ((FLOORS, "below"), (CEILINGS, "above")):
        for metric, limit in limits.items():
            score = scores.get(metric)
            if score is not None and (score.score < limit if limits is FLOORS else score.score > limit):
                yield f"its {_name(metric)} is {score.score:.1f} %, {word} the limit of {limit:g} %"


def _not_better(results: EvaluationResults, system: str, name: str, votes: PeopleVotes | None) -> Iterator[str]:
    """Why the candidate does not clearly give better answers than ``system``; nothing if it does."""
    if votes is not None and may_decide(votes)[0]:
        if not clearly_preferred(votes):
            yield f"people do not clearly prefer its answers to those of {name}: {preference(votes)}"
        return
    if (tally := _verdict_of_judge(results, system)) is not None:
        if tally.low is None or tally.low <= 0.5:
            yield (
                f"the judge, which agrees with people, does not clearly prefer its answers to those of {name}: it won"
                f" {tally.won} comparisons and lost {tally.lost}"
            )
        return
    difference = _deciding_difference(results, system)
    if difference is None:
        yield f"its answer quality could not be compared with that of {name}"
        return
    risk, gain = FALSE_PROMOTIONS / DECISIONS_PER_YEAR, difference.difference
    trained = [name for name in ("tuned", system) if results.methods.get(name, LOOK_UP) != LOOK_UP]
    luck = TRAINING_NOISE * math.sqrt(len(trained))
    bound = lower_bound(difference, PRIMARY_METRIC, risk, luck)
    if gain <= 0:
        yield f"its answers are not better than those of {name} (answer quality {_points(difference)}{_where(results)})"
    elif bound <= 0:
        needed = rows_needed(difference, PRIMARY_METRIC, gain, risk, luck)
        kind = "test rows" if results.sealed is None else "sealed questions"
        rows = f"about {needed:,} {kind} would show such a gain" if needed else "another training run may lose it"
        yield (
            f"its answers are not clearly better than those of {name} (answer quality {_points(difference)}"
            f"{_where(results)}; counting the luck of training and a year's decisions, at least {bound:+.1f}; {rows})"
        )


def _verdict_of_judge(results: EvaluationResults, system: str) -> JudgeTally | None:
    """The verdict on the candidate and ``system`` of a judge that agrees with people."""
    judge = results.judge
    return judge.against.get(system) if judge is not None and judge.may_gate else None


def _deciding_difference(results: EvaluationResults, system: str) -> Difference | None:
    """The difference in answer quality that shows whether the candidate is better: of the sealed rows if there are any."""
    if results.sealed is None:
        return results.differences[system].get(PRIMARY_METRIC)
    return results.sealed.differences.get(system)


def _where(results: EvaluationResults) -> str:
    return "" if results.sealed is None else f", on {results.sealed.rows:,} sealed questions"


def _may_be_worse(results: EvaluationResults, system: str, name: str) -> Iterator[tuple[str, bool]]:
    """The metrics in which a loss beyond the margin cannot be ruled out."""
    found = results.differences[system] if results.sealed is None else results.sealed.with_open[system]
    for metric, margin in MARGINS.items():
        difference = found.get(metric)
        # None for example for placeholders if the recipe strips them, or for the stop rate of a free look-up.
        if difference is None or lower_bound(difference, metric, MARGIN_RISK, margin=margin) > -margin:
            continue
        needed = rows_needed(difference, metric, margin, MARGIN_RISK, margin=margin)
        figures = f"({_points(difference)}; {margin:g} points are tolerated)"
        if _gain(difference, metric) <= -margin or not needed:
            yield f"its {_name(metric)} is worse than that of {name} {figures}", False
        else:
            yield (
                f"its {_name(metric)} may be worse than that of {name} {figures}; if both are equal, about {needed:,}"
                f" test rows would show it, and there are {difference.rows:,}",
                needed > difference.rows,
            )


def _may_be_worse_for_the_company(results: EvaluationResults, system: str, name: str) -> Iterator[tuple[str, bool]]:
    """Whether a loss of MAX_COMPANY_LOSS on the company's own questions cannot be ruled out for a fine-tune or a cascade."""
    company = results.company
    if company is None or results.methods["tuned"] == LOOK_UP:
        return
    asked = (
        f"{company.test_rows:,} of the company's own questions {'is' if company.test_rows == 1 else 'are'} in the test"
    )
    needed = company_conversations_needed(company, system)
    takes = f"it takes about {needed:,} conversations of the company, and there are {company.conversations:,}"
    difference = company.differences.get(system)
    if difference is None:
        yield f"only {asked}, too few to see whether it loses answer quality there against {name}; {takes}", True
    elif lower_bound(difference, PRIMARY_METRIC, MARGIN_RISK, margin=MAX_COMPANY_LOSS) <= -MAX_COMPANY_LOSS:
        figures = f"{_points(difference)}; {MAX_COMPANY_LOSS:g} points are tolerated"
        is_worse = _gain(difference, PRIMARY_METRIC) <= -MAX_COMPANY_LOSS
        too_few = not is_worse and needed > company.conversations
        verb, why = "is" if is_worse else "may be", f"; {asked}, and {takes}" if too_few else ""
        yield (
            f"on the company's own questions its answer quality {verb} worse than that of {name} ({figures}){why}",
            too_few,
        )


def _alarms(results: EvaluationResults) -> Iterator[str]:
    """Clear losses against the champion on a part of the rows, and in the likelihood of the reference answers."""
    bits = results.differences.get("champion", {}).get("bits_per_character")
    if bits is not None and results.champion_base == results.base["sha256"] and bits.low > MAX_BITS_LOSS:
        yield (
            "it needs clearly more bits per character than the champion, which has the same base"
            f" ({bits.difference:+.3f}, 95 % interval {bits.low:+.3f} to {bits.high:+.3f})"
        )
    labels = results.intent_labels
    few_labels = labels is not None and labels.counted < MIN_INTENT_ROWS
    for source, part in results.slices.items():
        differences = part.differences.get("champion", {})  # empty with too few rows
        for metric, margin in MARGINS.items():
            if metric == "right_intent" and source == "company" and few_labels:
                continue
            if (loss := differences.get(metric)) is not None:
                largest_gain = loss.high if METRICS[metric].better == "higher" else -loss.low
                if largest_gain < -margin:
                    yield f"on the {source} rows its {_name(metric)} is worse than the champion's ({_points(loss)})"
    for intent, intent_results in results.intents.items():
        change = intent_results.differences.get("champion", {}).get("right_intent")
        if change is not None and change.high < -MAX_INTENT_LOSS:
            yield f"on '{intent}' its answers have the right intent far less often than the champion's ({_points(change)})"


def _praise(results: EvaluationResults, champion_forgotten: bool, votes: PeopleVotes | None) -> str:
    compared = rivals(results)
    if not compared:
        return "there is no champion yet, and a look-up costs nothing"
    figures = [
        f"{name} (answer quality {_points(difference)})"
        for system, name in compared.items()
        if (difference := results.differences[system].get(PRIMARY_METRIC)) is not None
    ]
    within = f"compared with {' and '.join(figures)}, no metric loses more than its margin"
    if champion_forgotten and "champion" in compared:
        return f"{within}; it need not be better than the champion, which was trained on rows that are to be forgotten"
    if votes is not None and may_decide(votes)[0]:
        name = next(iter(compared.values()))
        return f"people clearly prefer its answers to those of {name}: {preference(votes)}; {within}"
    system, name = next(iter(compared.items()))
    sealed = results.sealed and _deciding_difference(results, system)
    by = (
        f" (answer quality {_points(sealed)}{_where(results)})"
        if sealed and not _verdict_of_judge(results, system)
        else ""
    )
    return f"its answers are clearly better than those of {name}{by}; {within}"


def _name(metric: str) -> str:
    """The metric in the middle of a sentence, in the singular."""
    label = METRICS[metric].label.removesuffix(" (0 to 100)")
    label = label.removesuffix(" (%)")
    return _SHARES.get(metric, label if label[1].isupper() else label[0].lower() + label[1:])


def _points(difference: Difference) -> str:
    return f"{difference.difference:+.1f}, 95 % interval {difference.low:+.1f} to {difference.high:+.1f}"
