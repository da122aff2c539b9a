"""Who becomes champion: the history and the alias on a real MLflow store."""

from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import read_json, write_json
from cs_pipeline.evaluate.decision import DECISIONS_PER_YEAR, THRESHOLDS, decide_promotion
from cs_pipeline.evaluate.openings import read_openings, record_opening
from cs_pipeline.evaluate.people.ratings import write_human_ratings
from cs_pipeline.evaluate.results import SealedResults, evaluation_file, read_evaluation, write_evaluation
from cs_pipeline.feedback import AskedQuestion, Feedback, GivenAnswer
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.register.history import history_lock, history_table, read_history, sync_aliases
from cs_pipeline.register.promotion import Outcome, roll_back
from cs_pipeline.tracking import FORGOTTEN, MODEL, champion_version
from cs_pipeline_tests.register.conftest import BETTER, SAME, World, compared
from cs_pipeline_tests.support.results import difference, results_of


def test_nothing_to_judge(world: World) -> None:
    assert world.judge() == Outcome(None, [])
    assert world.aliases() == {}
    assert champion_version(world.lake) is None


def test_a_model_better_than_the_free_lookup_becomes_the_first_champion(world: World) -> None:
    world.version("one")
    world.evaluated("one", None, BETTER)
    outcome = world.judge()
    assert outcome.champion == 1
    (entry,) = outcome.entries
    assert [entry] == read_history(world.lake)
    assert entry["kind"] == "decision"
    better = {metric: difference and asdict(difference) for metric, difference in BETTER.items()}
    assert entry["thresholds"] == THRESHOLDS
    assert set(entry["slices"]) == {"bitext", "company"}
    assert entry["slices"]["bitext"] == {"rows": 90, "clusters": 60, "gates": True, "differences": {"lookup": better}}
    assert set(entry["intents"]) == {"get_refund"}
    assert (entry["version"], entry["recipe"], entry["champion_before"], entry["decided_by"]) == (
        1,
        "one",
        None,
        "a test",
    )
    assert entry["differences"] == {"lookup": better}
    assert "the best free look-up (answer quality +30.0" in entry["reason"]
    assert world.aliases() == {"champion": 1}


def test_a_judged_evaluation_is_not_judged_again(champion_two: World) -> None:
    assert champion_two.judge() == Outcome(2, [])
    assert champion_two.judge() == Outcome(2, [])
    assert champion_two.history() == [(1, True), (2, True)]


def test_a_model_no_better_than_its_base_stays_challenger(world: World) -> None:
    world.version("one")
    world.evaluated("one", None, SAME)
    assert world.judge().champion is None
    assert world.aliases() == {"challenger": 1}


def test_an_equal_model_is_never_promoted(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    outcome = champion_two.judge()
    assert outcome.champion == 2
    assert outcome.entries[0]["promote"] is False
    assert champion_two.aliases() == {"champion": 2, "challenger": 3}


def test_a_challenger_that_becomes_champion_loses_the_challenger_alias(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    champion_two.judge()
    champion_two.evaluated("three", 2, BETTER, BETTER, at=" on new rows")
    assert champion_two.judge().champion == 3
    assert champion_two.aliases() == {"champion": 3}
    assert champion_two.history() == [(1, True), (2, True), (3, False), (3, True)]


def test_evaluating_the_champion_again_adds_no_entry(champion_two: World) -> None:
    champion_two.evaluated("two", None, SAME)  # other test rows, and no other champion to be beside
    assert champion_two.judge() == Outcome(2, [])


def test_votes_that_arrive_after_the_evaluation_decide(champion_two: World) -> None:
    """A refused version is judged again once enough people have voted, and then only when the votes have doubled."""

    def voted(count: int, winner: int, start: int = 0, systems: tuple[str, str] = ("version 2", "version 3")) -> None:
        with Feedback(champion_two.lake) as feedback:
            for number in range(start, start + count):
                given = [GivenAnswer(system, f"{system} says {number}") for system in systems]
                asked = AskedQuestion(f"question {number}")
                feedback.vote(f"{systems}{number}", f"rater {number % 3}", asked, given, winner)
        write_human_ratings(champion_two.lake, Company())

    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    assert champion_two.judge().champion == 2
    voted(20, winner=1)
    voted(60, winner=1, systems=("version 1", "version 3"))  # not the champion
    assert champion_two.judge() == Outcome(2, [])
    voted(12, winner=0, start=20)
    (entry,) = champion_two.judge().entries
    assert "3 people with 32 verdicts prefer its answers on 20 questions and the others on 12" in entry["reason"]
    assert (entry["votes"]["won"], entry["votes"]["lost"], entry["promote"]) == (20, 12, False)
    voted(28, winner=1, start=32)
    assert champion_two.judge() == Outcome(2, [])  # 60 are not twice 32
    voted(10, winner=1, start=60)
    with Ledger(champion_two.lake) as ledger:
        ledger.add_tombstone("row", "('version 2', 'version 3')0", "asked for")
    write_human_ratings(champion_two.lake, Company())
    outcome = champion_two.judge()
    assert outcome.champion == 3
    assert outcome.entries[0]["votes"]["won"] == 57  # without the forgotten one
    assert "people clearly prefer its answers to those of the champion" in outcome.entries[0]["reason"]


def test_an_evaluation_beside_another_champion_waits(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 1, BETTER, BETTER)
    outcome = champion_two.judge()
    assert outcome == Outcome(2, [], outcome.waiting)
    (why,) = outcome.waiting
    assert "Version 3 was compared with champion 1, but the champion is 2. Materialise 'evaluation'" in why
    assert "'three'" in why
    assert champion_two.aliases() == {"champion": 2}
    assert champion_two.history() == [(1, True), (2, True)]


def test_a_stale_evaluation_does_not_hold_up_the_others(champion_two: World) -> None:
    champion_two.evaluated("one", 7, BETTER, BETTER)
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    (why,) = champion_two.judge().waiting
    assert "Version 1 was compared with champion 7, but the champion is 2" in why
    assert champion_two.history() == [(1, True), (2, True), (3, True)]
    assert champion_two.aliases() == {"champion": 3}


def test_an_unreadable_evaluation_waits_and_does_not_hold_up_the_others(champion_two: World) -> None:
    champion_two.evaluated("one", 2, BETTER, BETTER)
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    for recipe in ("one", "two"):
        path = evaluation_file(recipe, champion_two.lake)
        write_json(path, {name: value for name, value in read_json(path).items() if name != "format_version"})
    (why,) = champion_two.judge().waiting  # version 2 is champion: nothing waits for its evaluation
    assert "Version 1 cannot be judged" in why
    assert str(evaluation_file("one", champion_two.lake)) in why
    assert "cs-pipeline demo --recipe one" in why
    assert champion_two.history() == [(1, True), (2, True), (3, True)]
    assert champion_two.aliases() == {"champion": 3}


def test_a_version_trained_on_rows_to_be_forgotten_is_refused(champion_two: World) -> None:
    number = champion_two.version("three")
    champion_two.client.set_model_version_tag(MODEL, str(number), FORGOTTEN, "true")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    (entry,) = champion_two.judge().entries
    assert (entry["promote"], entry["reason"]) == (False, "it was trained on rows that are to be forgotten")
    assert champion_two.aliases() == {"champion": 2, "challenger": 3}
    assert champion_two.judge() == Outcome(2, [])


@pytest.mark.parametrize("marked", [True, False])
def test_a_champion_trained_on_rows_to_be_forgotten_is_replaced_by_an_equal_one(
    champion_two: World, marked: bool
) -> None:
    if marked:
        champion_two.client.set_model_version_tag(MODEL, "2", FORGOTTEN, "true")
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    assert champion_two.judge().champion == (3 if marked else 2)


def test_two_candidates_at_once_are_judged_oldest_first(world: World) -> None:
    world.version("two")
    world.version("one")
    for recipe in ("one", "two"):
        world.evaluated(recipe, None, SAME)
    outcome = world.judge()
    assert [(entry["version"], entry["recipe"]) for entry in outcome.entries] == [(1, "two"), (2, "one")]
    assert world.aliases() == {"challenger": 2}


def test_a_crash_between_history_and_alias_is_repaired(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.append(
        version=3, promote=True, champion_before=2, evaluation="three beside 2", reason="", differences={}
    )
    champion_two.evaluated("three", 2, BETTER, BETTER)
    assert champion_two.judge() == Outcome(3, [])
    assert champion_two.aliases() == {"champion": 3}
    assert champion_two.history() == [(1, True), (2, True), (3, True)]


def test_a_crash_at_the_first_promotion_is_repaired(world: World) -> None:
    world.version("one")
    world.append(version=1, promote=True, champion_before=None, evaluation="one beside None", reason="", differences={})
    world.evaluated("one", None, BETTER)
    assert world.judge() == Outcome(1, [])
    assert world.history() == [(1, True)]


def test_a_line_cut_off_by_a_crash_is_left_out(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    path = champion_two.lake.path("register", "history.jsonl")
    with path.open("a") as file:
        file.write('{"time": "2026-01-01T00:00:00Z", "version": 3, "pro')
    assert champion_two.history() == [(1, True), (2, True)]
    assert champion_two.judge().champion == 3
    assert champion_two.history() == [(1, True), (2, True), (3, True)]
    assert path.read_text().count("\n") == 3


@pytest.mark.parametrize(
    ("by_hand", "alias"),
    [
        (lambda client: client.set_registered_model_alias(MODEL, "champion", "1"), 1),  # back to where it came from
        (lambda client: client.set_registered_model_alias(MODEL, "champion", "3"), 3),
        (lambda client: client.delete_registered_model_alias(MODEL, "champion"), None),
        (lambda client: client.delete_model_version(MODEL, "2"), None),
    ],
    ids=["rolled back", "to one never judged", "alias deleted", "version deleted"],
)
def test_an_alias_moved_by_hand_is_recorded(
    champion_two: World, by_hand: Callable[[Any], None], alias: int | None
) -> None:
    champion_two.version("three")
    by_hand(champion_two.client)
    assert champion_two.judge().champion == alias
    assert champion_two.history() == [(1, True), (2, True), (alias, True)]
    entry = read_history(champion_two.lake)[-1]
    assert entry["reason"] == "the alias was moved by hand in MLflow"
    assert entry["champion_before"] == 2
    assert entry["decided_by"] == "a person; seen by a test"
    assert champion_two.judge() == Outcome(alias, [])
    assert champion_two.history() == [(1, True), (2, True), (alias, True)]


def test_after_a_move_by_hand_candidates_are_still_judged(champion_two: World) -> None:
    champion_two.client.set_registered_model_alias(MODEL, "champion", "1")
    champion_two.judge()
    champion_two.version("three")
    champion_two.evaluated("three", 1, BETTER, BETTER)
    assert champion_two.judge().champion == 3
    assert champion_two.history() == [(1, True), (2, True), (1, True), (3, True)]


def test_the_first_champion_may_be_set_by_hand(world: World) -> None:
    world.version("one")
    world.client.set_registered_model_alias(MODEL, "champion", "1")
    assert world.judge().champion == 1
    assert world.history() == [(1, True)]
    with history_lock(world.lake):
        sync_aliases(world.client, world.lake, "a test")
    assert world.history() == [(1, True)]


def test_a_rollback_gives_the_alias_to_the_previous_champion(champion_two: World) -> None:
    before = champion_two.path.read_bytes()
    entry = roll_back(champion_two.lake, None, "  customers complain ", "a person")
    assert champion_two.aliases() == {"champion": 1}
    assert champion_two.path.read_bytes().startswith(before)
    assert read_history(champion_two.lake)[-1] == entry
    shown = {k: entry[k] for k in ("kind", "version", "champion_before", "promote", "reason", "decided_by", "recipe")}
    assert shown == {
        "kind": "rollback",
        "version": 1,
        "champion_before": 2,
        "promote": True,
        "reason": "customers complain",
        "decided_by": "a person",
        "recipe": "one",
    }
    assert champion_two.judge() == Outcome(1, [])
    assert champion_two.history() == [(1, True), (2, True), (1, True)]


def test_a_version_that_was_rolled_back_is_not_promoted_by_its_figures_again(champion_two: World) -> None:
    roll_back(champion_two.lake, None, "it is rude", "a person")
    champion_two.evaluated("two", 1, BETTER, BETTER, at=" again")
    (entry,) = champion_two.judge().entries
    assert (entry["version"], entry["promote"]) == (2, False)
    assert entry["reason"] == "it was withdrawn by a person: it is rude"
    assert champion_two.aliases() == {"champion": 1, "challenger": 2}
    roll_back(champion_two.lake, 2, "it was not", "a person")  # a person may give it back
    assert champion_two.aliases() == {"champion": 2}
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    assert champion_two.judge().champion == 3


def test_after_a_rollback_a_better_one_is_promoted(champion_two: World) -> None:
    roll_back(champion_two.lake, 1, "why not", "a person")
    champion_two.version("three")
    champion_two.evaluated("three", 1, BETTER, BETTER)
    assert champion_two.judge().champion == 3
    roll_back(champion_two.lake, None, "no", "a person")
    assert champion_two.aliases() == {"champion": 1}  # not 2, which a person had taken away


def test_rollbacks_in_a_row_go_further_back(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, BETTER)
    champion_two.judge()
    assert [roll_back(champion_two.lake, None, "no", "a person")["version"] for _ in range(2)] == [2, 1]
    with pytest.raises(PipelineError, match="no previous champion") as error:
        roll_back(champion_two.lake, None, "no", "a person")
    assert error.value.fix == "Choose a version with --to. Possible: 2, 3."
    assert champion_two.aliases() == {"champion": 1}


def test_refused_rollbacks_change_nothing(champion_two: World) -> None:
    champion_two.client.set_model_version_tag(MODEL, "1", FORGOTTEN, "true")
    before = champion_two.path.read_bytes()
    for to, why, message in (
        (7, "no", "cs-support has no version 7"),
        (2, "no", "Version 2 is already champion"),
        (1, "no", "Version 1 was trained on rows that are to be forgotten"),
        (None, "no", "Version 1 was trained on rows that are to be forgotten"),
        (1, " ", "No reason was given"),
    ):
        with pytest.raises(PipelineError, match=message):
            roll_back(champion_two.lake, to, why, "a person")
    assert champion_two.path.read_bytes() == before
    assert champion_two.aliases() == {"champion": 2}


def test_a_rollback_sees_a_move_by_hand_first(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.client.set_registered_model_alias(MODEL, "champion", "3")
    entry = roll_back(champion_two.lake, None, "no", "a person")
    assert (entry["version"], entry["champion_before"]) == (1, 3)  # 2 had been taken away by hand
    assert champion_two.history() == [(1, True), (2, True), (3, True), (1, True)]


def test_a_crash_between_a_rollback_and_its_alias_is_repaired(champion_two: World) -> None:
    champion_two.append(kind="rollback", version=1, promote=True, champion_before=2, evaluation=None, reason="no")
    assert champion_two.judge() == Outcome(1, [])
    assert champion_two.aliases() == {"champion": 1}


def test_the_history_as_a_table(champion_two: World) -> None:
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    champion_two.judge()
    roll_back(champion_two.lake, None, "no", "a person")
    champion_two.client.delete_registered_model_alias(MODEL, "champion")
    champion_two.judge()
    rows = history_table(champion_two.lake)
    assert [(row["what"], row["version"], row["champion before"], row["recipe"]) for row in rows] == [
        ("promoted", "1", "none", "one"),
        ("promoted", "2", "1", "two"),
        ("not promoted", "3", "2", "three"),
        ("rolled back to", "1", "2", "one"),
        ("moved by hand to", "none", "1", ""),
    ]
    assert [row["who"] for row in rows[2:4]] == ["a test", "a person"]
    assert rows[3]["why"] == "no"


def test_a_decision_by_figures_opens_its_evaluation_once(champion_two: World) -> None:
    def opened() -> list[str]:
        return [each.evaluation for each in read_openings(champion_two.lake)]

    assert opened() == ["one beside None", "two beside 1"]
    champion_two.version("three")
    champion_two.evaluated("three", 2, BETTER, SAME)
    reported = record_opening(read_evaluation("three", champion_two.lake), champion_two.lake)  # as its report does
    before = opened()
    champion_two.judge()
    assert (reported, opened()) == (2, before)
    # Neither a refusal, whatever the figures, nor a person's decision opens anything.
    roll_back(champion_two.lake, 1, "a test", "a test")
    champion_two.evaluated("two", 1, BETTER, BETTER, at=" again")
    assert "it was withdrawn by a test" in champion_two.judge().entries[0]["reason"]
    assert opened() == before


def test_the_history_holds_the_sealed_figures(champion_two: World) -> None:
    quality = difference(4.0, 6.0, rows=402, clusters=395)
    champion_two.version("three")
    about: dict[str, Any] = {
        "recipe": "three",
        "fingerprint": "sealed",
        "adapter_fingerprint": "made by three",
        "champion_version": 2,
    }
    gains, all_gains = {"champion": quality, "lookup": quality}, {"champion": BETTER, "lookup": SAME}
    sealed = SealedResults(rows=402, clusters=395, differences=gains, with_open=all_gains)
    results = compared(SAME, BETTER, sealed=sealed, **about)
    write_evaluation(results, evaluation_file("three", champion_two.lake))
    (entry,) = champion_two.judge().entries
    assert entry["sealed"] == sealed.model_dump(mode="json")
    assert entry["reason"] == decide_promotion(results, 2).reason


def test_after_a_year_of_decisions_the_figures_decide_no_more(champion_two: World) -> None:
    for number in range(DECISIONS_PER_YEAR):
        record_opening(results_of(fingerprint=f"evaluation {number}"), champion_two.lake)
    champion_two.version("three")
    champion_two.evaluated("three", 2, SAME, BETTER)
    outcome = champion_two.judge()
    assert outcome.champion == 2
    assert "a person has to decide: the test rows were used for 54 decisions" in outcome.entries[-1]["reason"]
