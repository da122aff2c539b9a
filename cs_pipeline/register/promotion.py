"""Who is champion: one pure function decides on figures, or a person does; the history says so first."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cs_pipeline.errors import PipelineError
from cs_pipeline.evaluate.comparison import FEWEST_CLUSTERS, FEWEST_ROWS
from cs_pipeline.evaluate.evaluation import read_evaluation
from cs_pipeline.evaluate.metrics import METRICS
from cs_pipeline.evaluate.verdict import judged
from cs_pipeline.lake import DataLake
from cs_pipeline.recipe import recipe_names
from cs_pipeline.register.history import append, champion_before, deciding, read_history, settle, withdrawn
from cs_pipeline.tracking import FINGERPRINT, FORGOTTEN, MODEL, champion_number, find_versions, open_store

JUDGED_BY = "bits_per_character"
"""The metric a candidate must be better in: the same for every tokenizer, and steadier than any score of one answer."""

NOT_WORSE_IN = ("right_intent", "placeholder_recall", "stop_rate", "safe")
"""Metrics in which it must not be worse.

Each is judged by itself, on all rows and on those of each source. With two sources luck in one of them stops about one in
four of the simulated models that need clearly fewer bits and are equal in all these: the safe side to err on, for another
training comes with the next rows.
"""

MUCH_WORSE = 10.0
"""Points of right answers that an intent may lose before it stops a promotion.

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


@dataclass(frozen=True)
class Outcome:
    """The champion after all candidates were judged, and the entries that this added to the history.

    ``waiting``: for each version that could not be judged, why, and what to do.
    """

    champion: int | None
    entries: list[dict[str, Any]]
    waiting: tuple[str, ...] = ()


def decide(facts: Mapping[str, Any], champion_forgotten: bool = False) -> Decision:
    """Better than its base, and than the champion if there is one; worse in nothing that is gated.

    ``facts`` are those of an evaluation: ``differences`` by other system and metric, ``slices``, ``intents``, and the mode
    of ``placeholders`` by system. Between two modes nothing is decided: their reference answers are other texts. Better and
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
    shown = {other: _shown(differences[JUDGED_BY]) for other, differences in _beside(facts["differences"]).items()}
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
    for other, differences in _beside(facts["differences"]).items():
        name, figures = _OTHERS[other], differences.get(JUDGED_BY)
        if figures is None:
            yield f"{JUDGED_BY} against {name} could not be measured"
        elif judged(JUDGED_BY, figures) == "worse":
            yield f"it needs more bits per character than {name} ({_shown(figures)})"
        elif judged(JUDGED_BY, figures) == "unclear" and not (other == "champion" and champion_forgotten):
            yield f"it needs not clearly fewer bits per character than {name} ({_shown(figures)})"
        for metric in _worse(differences, NOT_WORSE_IN, TOLERATED if other == "champion" else {}):
            yield f"its {metric} is worse than that of {name} ({_shown(differences[metric])})"
    for source, part in facts["slices"].items():
        differences = part["differences"].get("champion", {})  # too few rows have none
        for metric in _worse(differences, (JUDGED_BY, *NOT_WORSE_IN), TOLERATED):
            worse = f"its {metric} is worse than that of the champion ({_shown(differences[metric])})"
            yield f"on the {source} rows {worse}"
    for intent, part in facts["intents"].items():
        for other, differences in _beside(part["differences"]).items():
            right = differences["right_intent"]
            if right is not None and right["high"] < -MUCH_WORSE:
                fewer = f"far fewer answers have the right intent than of {_OTHERS[other]} ({_shown(right)})"
                yield f"asked about '{intent}', {fewer}"


def judge(lake: DataLake, decided_by: str) -> Outcome:
    """Judges every version whose evaluation has not been judged yet, oldest first, and moves the alias.

    A version that has seen what is to be forgotten, or that a person took the alias from, is refused whatever its figures.
    One that was evaluated beside another champion than the present one waits for another evaluation.
    """
    client = open_store(lake)
    added: list[dict[str, Any]] = []
    waiting: list[str] = []
    with deciding(lake):
        settle(client, lake, decided_by)
        versions = {int(v.version): v.tags for v in find_versions(client)}
        for version, facts in _candidates(lake, versions):
            now = champion_number(client)
            history = read_history(lake)
            decided = {(entry["version"], entry["evaluation"]) for entry in history}
            if version == now or (version, facts["fingerprint"]) in decided:
                continue
            decision = _refused(versions[version], withdrawn(history).get(version))
            if "placeholders" not in facts or (decision is None and facts["champion_version"] != now):
                waiting.append(_waits(version, facts, now))
                continue
            if decision is None:
                decision = decide(facts, now is not None and FORGOTTEN in versions[now])
            entry = append(
                lake,
                "decision",
                version,
                now,
                **asdict(decision),
                decided_by=decided_by,
                recipe=facts["recipe"],
                fingerprint=facts["adapter_fingerprint"],
                evaluation=facts["fingerprint"],
                **_numbers(facts),
                thresholds=THRESHOLDS,
            )
            added.append(entry)
            settle(client, lake, decided_by)
        return Outcome(champion_number(client), added, tuple(waiting))


def rollback(lake: DataLake, to: int | None, why: str, by: str) -> dict[str, Any]:
    """Makes version ``to`` champion, else the champion before the present one, and returns the entry that says so.

    The version that loses the alias is not promoted again by its figures; another rollback gives it back. Raises
    PipelineError when there is no such version, it has seen what is to be forgotten, it is champion already, or no reason
    is given.
    """
    if not why.strip():
        raise PipelineError("No reason is given.", 'Say why, for those who read the history: --why "…"')
    client = open_store(lake)
    with deciding(lake):
        settle(client, lake, by)
        versions = {int(v.version): v.tags for v in find_versions(client)}
        now = champion_number(client)
        number = to if to is not None else champion_before(read_history(lake), now)
        others = ", ".join(str(n) for n, tags in versions.items() if n != now and FORGOTTEN not in tags) or "none"
        choose = f"Choose one with --to; versions that may be champion: {others}."
        if number is None:
            raise PipelineError("There is no champion before the present one.", choose)
        if number == now:
            raise PipelineError(f"Version {number} is champion already.", choose)
        if number not in versions:
            raise PipelineError(f"{MODEL} has no version {number}.", choose)
        if FORGOTTEN in versions[number]:
            raise PipelineError(f"Version {number} has seen rows that are to be forgotten.", choose)
        tags = versions[number]
        made = {"recipe": tags.get("cs.recipe"), "fingerprint": tags.get(FINGERPRINT)}
        entry = append(lake, "rollback", number, now, promote=True, reason=why.strip(), decided_by=by, **made)
        settle(client, lake, by)
    return entry


def _candidates(lake: DataLake, versions: Mapping[int, Mapping[str, str]]) -> list[tuple[int, dict[str, Any]]]:
    """Versions, given with their tags, with the evaluation of the adapter they hold, oldest first."""
    facts = {}
    for name in recipe_names():
        try:
            evaluation = read_evaluation(name, lake)
        except PipelineError:
            continue  # a recipe that was never evaluated has nothing to judge
        facts[evaluation["adapter_fingerprint"]] = evaluation
    by_fingerprint = {tags.get(FINGERPRINT, ""): version for version, tags in versions.items()}
    return sorted((by_fingerprint[made], facts[made]) for made in by_fingerprint.keys() & facts.keys())


def _refused(tags: Mapping[str, str], withdrawal: dict[str, Any] | None) -> Decision | None:
    """What no figures can outweigh, or None."""
    if FORGOTTEN in tags:
        return Decision(False, "it has seen rows that are to be forgotten")
    if withdrawal is not None:
        return Decision(False, f"the alias was taken from it by {withdrawal['decided_by']}: {withdrawal['reason']}")
    return None


def _waits(version: int, facts: Mapping[str, Any], now: int | None) -> str:
    what = f"Version {version} was evaluated beside champion {facts['champion_version']}, but the champion is {now}."
    if "placeholders" not in facts:
        what = f"The evaluation of version {version} is of an earlier release and does not say all that decides."
    return f"{what} Materialise 'evaluation' and what follows it for the partition '{facts['recipe']}' again."


def _numbers(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What the decision has read."""
    slices = {s: {**part, "differences": _beside(part["differences"])} for s, part in facts["slices"].items()}
    for part in slices.values():
        del part["scores"]
    return {"differences": _beside(facts["differences"]), "slices": slices, "intents": facts["intents"]}


def _beside(differences: Mapping[str, Any]) -> dict[str, Any]:
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
