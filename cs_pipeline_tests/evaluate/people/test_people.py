import json
import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.schema import RATING
from cs_pipeline.evaluate.people.people import (
    bradley_terry,
    people_votes,
    rater_agreement,
    rating_counts,
    rating_table,
    vote_pairs,
    win_rates,
)
from cs_pipeline.evaluate.scoring.statistics import wilson

AT = datetime(2026, 1, 1, tzinfo=UTC)
COUNT = iter(range(10**6))


def judgement(kind: str, systems: str, question: str = "q", rater: str | None = "anna", **given: Any) -> dict[str, Any]:
    """A judgement on answers of ``systems``, one letter each."""
    number = next(COUNT)
    return {
        "id": f"j{number}",
        "at": AT + timedelta(seconds=number),
        "kind": kind,
        "rater": rater,
        "question_id": question,
        "question": f"What of {question}?",
        "context": None,
        "systems": list(systems),
        "answers": [f"{system} on {question}" for system in systems],
        "score": None,
        "winner": None,
        "source": "page",
        "settings": "{}",
    } | given


def ratings(system: str, scores: list[int], rater: str = "anna") -> list[dict[str, Any]]:
    return [judgement("rating", system, f"q{n}", rater, score=score) for n, score in enumerate(scores)]


def votes(systems: str, winners: str, rater: str = "anna") -> list[dict[str, Any]]:
    """One vote for each letter of ``winners``, each on a question of its own; t is a tie."""
    letters = {"t": "tie"}
    return [judgement("vote", systems, f"q{n}", rater, winner=letters.get(w, w)) for n, w in enumerate(winners)]


def test_the_counts_and_shares_of_each_system() -> None:
    thumbs = [judgement("thumb", "x", f"q{n}", score=score) for n, score in enumerate([1, 1, 0])]
    table = rating_table(
        [*ratings("x", [1, 2, 2, 3, 5, 5, 5, 5, 5, 4]), *ratings("y", [3]), *thumbs, *votes("xy", "a")]
    )
    counts = rating_counts(table).set_index("system")
    assert counts.index.tolist() == ["x", "y"]
    x = counts.loc["x"].to_dict()
    assert [x[f"n{score}"] for score in range(1, 6)] == [1, 2, 1, 1, 5]
    assert (x["ratings"], x["mean"], x["up"], x["down"]) == (10, 3.7, 2, 1)
    assert (x["negative"], x["positive"], x["thumbs_up"]) == pytest.approx((0.3, 0.7, 2 / 3))
    # Wilson's interval for 3 of 10, from published calculators.
    assert (x["negative_low"], x["negative_high"]) == pytest.approx((0.1078, 0.6032), abs=5e-5)
    assert (x["positive_low"], x["positive_high"]) == pytest.approx((1 - 0.6032, 1 - 0.1078), abs=5e-5)
    assert math.isnan(counts["thumbs_up"].to_dict()["y"])
    assert rating_counts(rating_table([])).empty


def test_answers_of_the_desk_itself_do_not_count() -> None:
    model, desk = {"author": "model"}, {"author": "desk"}

    def judged(kind: str, systems: str, by: list[dict[str, str]], **given: Any) -> dict[str, Any]:
        return judgement(kind, systems, f"q{next(COUNT)}", settings=json.dumps(by if len(by) > 1 else by[0]), **given)

    table = rating_table(
        [
            judged("rating", "x", [model], score=5),
            judged("rating", "x", [desk], score=1),
            judged("thumb", "x", [desk], score=0),
            judged("vote", "xy", [model, model], winner="b"),
            judged("vote", "xy", [model, desk], winner="b"),
            judged("vote", "xy", [desk, model], winner="tie"),
            judged("vote", "xyz", [desk, model, model], winner="c"),
            judged("vote", "xyz", [desk, model, model], winner="a"),
            judged("vote", "xyz", [model, desk, model], winner="tie"),
        ]
    )
    (counts,) = rating_counts(table).to_dict("records")
    assert (counts["system"], counts["ratings"], counts["mean"], counts["up"] + counts["down"]) == ("x", 1, 5.0, 0)
    pairs = vote_pairs(table)[["system_a", "system_b", "result"]].to_numpy().tolist()
    assert pairs == [["x", "y", "b"], ["y", "z", "b"], ["x", "z", "tie"]]


def test_wilson_intervals_stay_between_zero_and_one() -> None:
    assert wilson(0, 0) is None
    assert wilson(0, 10) == pytest.approx((0, 0.2775), abs=5e-5)
    assert all((wilson(0, n) or (1,))[0] == 0.0 and (wilson(n, n) or (0, 0))[1] == 1.0 for n in range(1, 300))
    assert wilson(10, 10) == pytest.approx((0.7225, 1), abs=5e-5)
    rng = np.random.default_rng(0)
    drawn = rng.binomial(40, 0.15, 2000)
    held = [low <= 0.15 <= high for low, high in (wilson(int(k), 40) or (1, 0) for k in drawn)]
    assert 0.93 < np.mean(held) < 0.98


def test_the_last_judgement_of_a_person_counts() -> None:
    first = judgement("rating", "x", score=1)
    changed = judgement("rating", "x", score=5)
    other = judgement("rating", "x", rater="ben", score=2)
    counts = rating_counts(rating_table([changed, first, other])).iloc[0]
    assert (counts["ratings"], counts["n1"], counts["n2"], counts["n5"]) == (2, 0, 1, 1)
    vote, flipped = judgement("vote", "xy", winner="a"), judgement("vote", "yx", winner="a")
    assert vote_pairs(rating_table([flipped, vote]))["result"].tolist() == ["b"]


def test_a_vote_becomes_pairs_in_alphabetical_order() -> None:
    three = judgement("vote", "zxy", "q1", winner="c")  # y is the best
    tie = judgement("vote", "zxy", "q2", winner="tie")
    itself = judgement("vote", "xx", "q3", winner="a", answers=["one", "two"])
    found = vote_pairs(rating_table([three, tie, itself]))
    rows = found[["question_id", "system_a", "system_b", "answer_a", "answer_b", "result"]].to_numpy().tolist()
    assert rows == [
        ["q1", "x", "y", "x on q1", "y on q1", "b"],
        ["q1", "y", "z", "y on q1", "z on q1", "a"],
        ["q2", "x", "y", "x on q2", "y on q2", "tie"],
        ["q2", "x", "z", "x on q2", "z on q2", "tie"],
        ["q2", "y", "z", "y on q2", "z on q2", "tie"],
    ]


def test_win_rates_count_a_tie_as_half() -> None:
    rates = win_rates(vote_pairs(rating_table(votes("yx", "aaabbt"))))
    (row,) = rates.to_dict("records")
    assert (row["system_a"], row["system_b"], row["wins"], row["ties"], row["losses"]) == ("x", "y", 2, 1, 3)
    assert row["rate"] == pytest.approx(2.5 / 6)
    assert row["rate_low"] < row["rate"] < row["rate_high"]


def test_strengths_order_the_systems() -> None:
    table = rating_table([*votes("xy", "a" * 30 + "b" * 10), *votes("yz", "b" * 10 + "a" * 30, "ben")])
    found = bradley_terry(vote_pairs(table), samples=300).set_index("system")
    assert found.index.tolist() == ["x", "y", "z"]
    assert set(found["group"]) == {0}
    assert found["votes"].to_dict() == {"x": 40, "y": 80, "z": 40}
    assert found["strength"].sum() == pytest.approx(0, abs=1e-8)
    by_name = found["strength"].to_dict()
    assert by_name["x"] - by_name["y"] == pytest.approx(np.log(30.5 / 10.5))
    low, strength, high = found[["low", "strength", "high"]].to_numpy(float).T
    assert (low < strength).all()
    assert (strength < high).all()
    assert low[0] > high[2]


def test_a_system_that_never_lost_has_a_finite_strength_and_uncompared_systems_form_groups() -> None:
    table = rating_table([*votes("xy", "aaaa"), *votes("uv", "ab")])
    found = bradley_terry(vote_pairs(table), samples=100)
    assert found["group"].tolist() == [0, 0, 1, 1]
    by_name = found.set_index("system")
    assert by_name.loc["x", "strength"] == pytest.approx(np.log(4.5 / 0.5) / 2)
    assert by_name.loc[["u", "v"], "strength"].tolist() == pytest.approx([0, 0], abs=1e-8)
    assert np.isfinite(found[["low", "high"]].to_numpy()).all()
    assert bradley_terry(vote_pairs(rating_table([]))).empty


def test_the_interval_of_a_strength_covers_the_true_value() -> None:
    """About 95 % of 60 simulated polls have intervals that cover the true difference; the test asks for more than 85 %."""
    truth, held = 0.8, 0
    rng = np.random.default_rng(0)
    for seed in range(60):
        won = rng.random(120) < 1 / (1 + np.exp(-truth))
        table = rating_table(votes("xy", "".join("ab"[not win] for win in won)))
        (x,) = (
            r for r in bradley_terry(vote_pairs(table), samples=100, seed=seed).to_dict("records") if r["system"] == "x"
        )
        held += int(x["low"] <= truth / 2 <= x["high"])
    assert held > 51


def test_raters_agree_on_scores_and_votes() -> None:
    alike = [*ratings("x", [1, 3, 5]), *ratings("x", [1, 3, 5], "ben"), *votes("xy", "ab"), *votes("yx", "ba", "ben")]
    agreement = rater_agreement(rating_table(alike))
    assert (agreement.ratings_alpha, agreement.votes_alpha) == (1, 1)
    assert (agreement.ratings, agreement.votes, agreement.raters) == (3, 2, 2)
    apart = rater_agreement(rating_table([*ratings("x", [1, 3, 5]), *ratings("x", [5, 3, 1], "ben")]))
    assert apart.ratings_alpha is not None
    assert apart.ratings_alpha < 0
    assert (apart.votes_alpha, apart.votes) == (None, 0)
    alone = rater_agreement(rating_table(ratings("x", [1, 3, 5])))
    assert (alone.ratings_alpha, alone.ratings, alone.raters) == (None, 0, 1)


@pytest.mark.parametrize(
    ("row", "what"),
    [
        (judgement("rating", "x", score=6), "the score of a rating is 6, not 1 to 5"),
        (judgement("rating", "x", score=0), "the score of a rating is 0"),
        (judgement("rating", "x"), "the score of a rating is None"),
        (judgement("rating", "xy", score=3), "a rating is about one answer"),
        (judgement("thumb", "x", score=2), "the score of a thumb is 2"),
        (judgement("thumb", "x", score=1, winner="a"), "a thumb is about one answer and has no winner"),
        (judgement("vote", "x", winner="a"), "a vote compares 2 to "),
        (judgement("vote", "xy", winner="c"), "its winner is 'c', which is neither one of its 2 answers nor 'tie'"),
        (judgement("vote", "xy", winner="ab"), "its winner is 'ab'"),
        (judgement("vote", "xy"), "its winner is 'None'"),
        (judgement("vote", "xy", winner="a", score=3), "has no score"),
        (judgement("vote", "xy", winner="a", answers=["one"]), "its 2 systems and 1 answers do not match"),
        (judgement("star", "x", score=1), "its kind is 'star'"),
        (judgement("rating", "x", score=1, source="guess"), "its source is 'guess'"),
        (judgement("rating", "x", score=1, rater=None), "1 rows without 'rater'"),
    ],
)
def test_an_inconsistent_judgement_is_refused(row: dict[str, Any], what: str) -> None:
    with pytest.raises(PipelineError, match=what):
        rating_table([row])


def test_an_empty_table_has_the_schema() -> None:
    assert rating_table([]).equals(pa.Table.from_pylist([], schema=RATING))


def sheet(scores: dict[str, int], question: str, rater: str) -> list[dict[str, Any]]:
    """The scores that a person gave to the answers of several systems on an imported sheet."""
    return [
        judgement("rating", system, question, rater, score=score, source="import") for system, score in scores.items()
    ]


def test_votes_and_sheets_count_once_by_question() -> None:
    table = rating_table(
        [
            *votes("xy", "aabt"),  # q0 and q1 for x, q2 for y, q3 a tie
            *votes("yx", "bt", rater="ben"),  # q0 for x too, q1 a tie
            *votes("xz", "bbb", rater="cleo"),  # another system
            *sheet({"x": 5, "y": 3, "z": 5}, "q2", "ben"),  # against anna: a tie of the question
            *sheet({"x": 4, "y": 4}, "q4", "dora"),
            *sheet({"y": 1, "x": 2}, "q5", "dora"),
            judgement("rating", "x", "q6", "dora", score=5),  # scores of the page come with a vote
            judgement("rating", "y", "q6", "dora", score=1),
            judgement("thumb", "x", "q7", score=1),
        ]
    )
    found = people_votes(table, "x", "y")
    assert (found.won, found.lost, found.ties) == (3, 0, 3)
    assert (found.verdicts, found.raters) == (9, 3)
    assert found.busiest == pytest.approx(4 / 9)
    assert (found.shared, found.agreement) == (2, 0.5)  # q0 agreed, q2 did not
    assert (found.share, found.low, found.high) == (1.0, *(wilson(3, 3) or ()))
    mirrored = people_votes(table, "y", "x")
    assert (mirrored.won, mirrored.lost, mirrored.ties, mirrored.agreement) == (0, 3, 3, 0.5)


def test_votes_on_other_versions_are_not_mixed_in() -> None:
    named = {"x": "version 1", "y": "version 10", "z": "version 1:base"}
    rows = [row | {"systems": [named[name] for name in row["systems"]]} for row in votes("xyz", "abc")]
    table = rating_table(rows)
    found = people_votes(table, "version 10", "version 1")
    assert (found.won, found.lost, found.ties) == (1, 1, 0)  # the third vote is for the base
    none = people_votes(table, "version 10", "version 2")
    assert (none.won, none.verdicts, none.share, none.agreement) == (0, 0, None, None)
    assert none.busiest == 0
    assert people_votes(rating_table([]), "version 10", "version 1").verdicts == 0


def test_a_person_who_changes_a_vote_counts_once() -> None:
    table = rating_table([*votes("xy", "a"), *votes("yx", "a")])  # the same answers, for y in the end
    found = people_votes(table, "x", "y")
    assert (found.won, found.lost, found.verdicts) == (0, 1, 1)
