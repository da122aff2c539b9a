"""Who is champion: figures decide (evaluate/decision.py), or a person does; the history says so first."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.decision import THRESHOLDS, Decision, beside, decide_promotion
from cs_pipeline.evaluate.evaluation import read_evaluation
from cs_pipeline.recipe import recipe_names
from cs_pipeline.register.history import append, champion_before, deciding, read_history, settle, withdrawn
from cs_pipeline.tracking import FINGERPRINT, FORGOTTEN, MODEL, champion_number, find_versions, open_store


@dataclass(frozen=True)
class Outcome:
    """The champion after all candidates were judged, and the entries that this added to the history.

    ``waiting``: for each version that could not be judged, why, and what to do.
    """

    champion: int | None
    entries: list[dict[str, Any]]
    waiting: tuple[str, ...] = ()


def judge_candidates(lake: DataLake, decided_by: str) -> Outcome:
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
                decision = decide_promotion(facts, now is not None and FORGOTTEN in versions[now])
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


def roll_back(lake: DataLake, to: int | None, why: str, by: str) -> dict[str, Any]:
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
    slices = {s: {**part, "differences": beside(part["differences"])} for s, part in facts["slices"].items()}
    for part in slices.values():
        del part["scores"]
    return {"differences": beside(facts["differences"]), "slices": slices, "intents": facts["intents"]}
