"""Chooses the champion by evaluate/decision.py or a person's rollback, and records the choice before the alias moves."""

from dataclasses import asdict, dataclass
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.decision import THRESHOLDS, Decision, decide_promotion, may_decide, of_rivals
from cs_pipeline.evaluate.openings import record_opening
from cs_pipeline.evaluate.people.ratings import votes_on_candidate
from cs_pipeline.evaluate.results import EvaluationResults, PeopleVotes, evaluation_file, read_evaluation
from cs_pipeline.recipe import recipe_names
from cs_pipeline.register.history import (
    append_entry,
    history_lock,
    previous_champion,
    read_history,
    sync_aliases,
    withdrawn_versions,
)
from cs_pipeline.tracking import FINGERPRINT, FORGOTTEN, MODEL, champion_number, find_versions, open_store


@dataclass(frozen=True)
class Outcome:
    """The champion after all candidates were judged, and the new entries of the history.

    ``waiting`` has a message for each version that could not be judged: the reason, and what to do.
    """

    champion: int | None
    entries: list[dict[str, Any]]
    waiting: tuple[str, ...] = ()


def judge_candidates(lake: DataLake, decided_by: str) -> Outcome:
    """Judges every version whose current evaluation has not been judged yet, oldest first, and moves the alias.

    An evaluation is judged again once people have voted enough to decide, and then each time their votes have doubled:
    every look at growing votes is another chance to win by luck.

    A version that was trained on rows to be forgotten, or that a person withdrew, is refused regardless of its figures. A
    version that was not compared with the current champion, or whose evaluation cannot be read, waits for a new evaluation.
    """
    client = open_store(lake)
    added: list[dict[str, Any]] = []
    with history_lock(lake):
        sync_aliases(client, lake, decided_by)
        versions = {int(v.version): v.tags for v in find_versions(client)}
        candidates, waiting = _candidates(lake, versions, champion_number(client))
        for version, results in candidates:
            champion = champion_number(client)
            history = read_history(lake)
            votes = votes_on_candidate(results, lake, version)
            if version == champion or _is_decided(history, version, results.fingerprint, votes):
                continue
            decision = _refusal(versions[version], withdrawn_versions(history).get(version))
            if decision is None and results.champion_version != champion:
                waiting.append(
                    f"Version {version} was compared with champion {results.champion_version}, but the champion is "
                    f"{champion}. Materialise 'evaluation' and its downstream assets for the partition '{results.recipe}' "
                    "again."
                )
                continue
            if decision is None:
                forgotten = champion is not None and FORGOTTEN in versions[champion]
                decision = decide_promotion(results, record_opening(results, lake), forgotten, votes)
            entry = append_entry(
                lake,
                "decision",
                version,
                champion,
                **asdict(decision),
                decided_by=decided_by,
                recipe=results.recipe,
                fingerprint=results.adapter_fingerprint,
                evaluation=results.fingerprint,
                **_figures(results),
                votes=votes and votes.model_dump(),
                thresholds=THRESHOLDS,
            )
            added.append(entry)
            sync_aliases(client, lake, decided_by)
        return Outcome(champion_number(client), added, tuple(waiting))


def roll_back(lake: DataLake, to: int | None, why: str, by: str) -> dict[str, Any]:
    """Makes version ``to`` champion, by default the previous champion, and returns the entry of the history.

    The version that loses the alias is never promoted by its figures again; only another rollback makes it champion. Raises
    PipelineError if no reason is given, or if ``to`` does not exist, is already champion, or was trained on rows to be
    forgotten.
    """
    if not why.strip():
        raise PipelineError("No reason was given.", 'Give the reason for the history: --why "…"')
    client = open_store(lake)
    with history_lock(lake):
        sync_aliases(client, lake, by)
        versions = {int(v.version): v.tags for v in find_versions(client)}
        champion = champion_number(client)
        number = to if to is not None else previous_champion(read_history(lake), champion)
        others = ", ".join(str(n) for n, tags in versions.items() if n != champion and FORGOTTEN not in tags) or "none"
        choose = f"Choose a version with --to. Possible: {others}."
        if number is None:
            raise PipelineError("There is no previous champion.", choose)
        if number == champion:
            raise PipelineError(f"Version {number} is already champion.", choose)
        if number not in versions:
            raise PipelineError(f"{MODEL} has no version {number}.", choose)
        if FORGOTTEN in versions[number]:
            raise PipelineError(f"Version {number} was trained on rows that are to be forgotten.", choose)
        tags = versions[number]
        model = {"recipe": tags.get("cs.recipe"), "fingerprint": tags.get(FINGERPRINT)}
        entry = append_entry(
            lake, "rollback", number, champion, promote=True, reason=why.strip(), decided_by=by, **model
        )
        sync_aliases(client, lake, by)
    return entry


def _candidates(
    lake: DataLake, versions: dict[int, dict[str, str]], champion: int | None
) -> tuple[list[tuple[int, EvaluationResults]], list[str]]:
    """The versions whose adapter was evaluated, with the results, oldest first. ``versions`` maps each number to its tags.

    Also returns a message for each recipe whose evaluation cannot be read. It names the recipe's newest version; there is no
    message if that version is the ``champion``.
    """
    by_fingerprint = {tags.get(FINGERPRINT): number for number, tags in versions.items()}
    newest = {tags.get("cs.recipe"): number for number, tags in sorted(versions.items())}
    candidates, waiting = [], []
    for name in recipe_names():
        if not evaluation_file(name, lake).exists():
            continue
        try:
            results = read_evaluation(name, lake)
        except PipelineError as error:
            if newest.get(name) not in (None, champion):
                waiting.append(f"Version {newest[name]} cannot be judged: {error.what} {error.fix}")
            continue
        if results.adapter_fingerprint in by_fingerprint:
            candidates.append((by_fingerprint[results.adapter_fingerprint], results))
    return sorted(candidates, key=lambda candidate: candidate[0]), waiting


def _is_decided(history: list[dict[str, Any]], version: int, evaluation: str, votes: PeopleVotes | None) -> bool:
    """Whether the version was judged by this evaluation, and people's votes are no reason to judge it again."""
    entries = [entry for entry in history if (entry["version"], entry["evaluation"]) == (version, evaluation)]
    if not entries or votes is None or not may_decide(votes)[0]:
        return bool(entries)
    counted = [PeopleVotes.model_validate(entry["votes"]) for entry in entries if entry.get("votes")]
    known = max((each.won + each.lost for each in counted if may_decide(each)[0]), default=0)
    return votes.won + votes.lost < 2 * known


def _refusal(tags: dict[str, str], withdrawal: dict[str, Any] | None) -> Decision | None:
    """The decision not to promote a version that is refused regardless of its figures, or None."""
    if FORGOTTEN in tags:
        return Decision(False, "it was trained on rows that are to be forgotten")
    if withdrawal is not None:
        return Decision(False, f"it was withdrawn by {withdrawal['decided_by']}: {withdrawal['reason']}")
    return None


def _figures(results: EvaluationResults) -> dict[str, Any]:
    """The figures that the decision was based on, as JSON values."""
    stored = results.model_dump(mode="json", include={"sealed", "differences", "slices", "intents"})
    for part in (stored, *stored["slices"].values()):
        part["differences"] = of_rivals(part["differences"])
        part.pop("scores", None)
    return stored
