"""Statistics of people's ratings, thumbs and votes on the answers, for the report.

They are computed from judgements (schema RATING): counts and shares per system, win rates of pairs, Bradley-Terry strengths
and the agreement between raters. If a person judged the same answers several times, the last judgement counts. Intervals of
shares are Wilson's and treat judgements as independent; those of strengths come from a bootstrap over questions.
"""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.core.schema import RATING, check_schema
from cs_pipeline.evaluate.results import PeopleVotes
from cs_pipeline.evaluate.scoring.statistics import krippendorff_alpha, wilson
from cs_pipeline.feedback import TIE, VOTE_LETTERS

NEGATIVE, POSITIVE = (1, 2), (3, 4, 5)
"""The scores that count as negative and as positive."""

PRIOR = 0.5
"""Wins added to both sides of each pair that was compared. They shrink the strengths, and keep a strength finite if
the system never lost."""

_ASKED_COLUMNS = ("question_id", "question", "context", "rater")
_PAIR_COLUMNS = (*_ASKED_COLUMNS, "system_a", "system_b", "answer_a", "answer_b", "result")

_MAX_STEPS, _TOLERANCE = 20_000, 1e-9


@dataclass(frozen=True)
class RaterAgreement:
    """Krippendorff's alpha, ordinal for ratings and nominal for votes.

    ``ratings`` counts the answers, and ``votes`` the pairs of answers, that at least two people judged.
    """

    ratings_alpha: float | None
    ratings: int
    votes_alpha: float | None
    votes: int
    raters: int


@dataclass(frozen=True)
class Opinions:
    """Rows of ``rating_counts``, ``win_rates`` and ``bradley_terry``, and the agreement between raters.

    ``judgements`` counts all judgements. Each of ``groups`` holds systems that were compared, the strongest first.
    """

    judgements: int
    counts: list[dict[str, Any]]
    wins: list[dict[str, Any]]
    groups: list[list[dict[str, Any]]]
    agreement: RaterAgreement


def read_opinions(lake: DataLake) -> Opinions | None:
    """The statistics of all judgements of all versions; None while ``human_ratings`` is missing or empty."""
    if not lake.table("evaluate", "human_ratings").exists():
        return None
    ratings = lake.read("evaluate", "human_ratings")
    if not ratings.num_rows:
        return None
    votes = vote_pairs(ratings)
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(bradley_terry(votes)):
        groups.setdefault(row["group"], []).append(row)
    return Opinions(
        judgements=ratings.num_rows,
        counts=_rows(rating_counts(ratings)),
        wins=_rows(win_rates(votes)),
        groups=list(groups.values()),
        agreement=rater_agreement(ratings),
    )


def rating_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """``rows`` as a RATING table. Raises PipelineError, naming the judgement, when one is inconsistent."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=RATING)
    check_schema(table, RATING, "human_ratings")
    for row in table.to_pylist():
        if (fault := _fault(row)) is not None:
            raise PipelineError(
                f"The judgement '{row['id']}' cannot be used: {fault}.", "Correct or remove it in its source."
            )
    return table


def rating_counts(ratings: pa.Table) -> pd.DataFrame:
    """One row per system, sorted by name: ``n1`` … ``n5``, ``ratings``, ``mean``, ``up``, ``down``, and the shares below.

    ``negative`` (1 and 2), ``positive`` (3 to 5) and ``thumbs_up`` are shares from 0 to 1. Columns with ``_low`` and
    ``_high`` added hold their 95 % intervals (Wilson). A share is NaN if there are no ratings or no thumbs.
    """
    rows = []
    latest = _latest(ratings)
    for system, judgements in sorted(_by_system(latest).items()):
        scores = [row["score"] for row in judgements if row["kind"] == "rating"]
        thumbs = [row["score"] for row in judgements if row["kind"] == "thumb"]
        if scores or thumbs:
            rows.append(
                {"system": system}
                | {f"n{score}": scores.count(score) for score in (*NEGATIVE, *POSITIVE)}
                | {"ratings": len(scores), "mean": float(np.mean(scores)) if scores else np.nan}
                | _share("negative", sum(score in NEGATIVE for score in scores), len(scores))
                | _share("positive", sum(score in POSITIVE for score in scores), len(scores))
                | {"up": sum(thumbs), "down": len(thumbs) - sum(thumbs)}
                | _share("thumbs_up", sum(thumbs), len(thumbs))
            )
    return pd.DataFrame(rows)


def vote_pairs(ratings: pa.Table) -> pd.DataFrame:
    """One row for each pair of answers that a vote compares: question_id, question, context, rater, system_a, system_b,
    answer_a, answer_b and ``result`` (a, b or tie).

    Systems are in alphabetical order, however they were shown. In a vote among more than two answers the winner beats each
    of the others, and the others are not compared with one another. A tie is a tie in every pair. Two answers of the same
    system are not a pair.
    """
    rows = []
    for vote in _latest(ratings):
        if vote["kind"] != "vote":
            continue
        winner = None if vote["winner"] == TIE else VOTE_LETTERS.index(vote["winner"])
        shown = sorted(range(len(vote["systems"])), key=lambda i: (vote["systems"][i], vote["answers"][i]))
        for number, a in enumerate(shown):
            for b in shown[number + 1 :]:
                if vote["systems"][a] == vote["systems"][b] or (winner is not None and winner not in (a, b)):
                    continue
                rows.append(
                    {column: vote[column] for column in _ASKED_COLUMNS}
                    | {"system_a": vote["systems"][a], "system_b": vote["systems"][b]}
                    | {"answer_a": vote["answers"][a], "answer_b": vote["answers"][b]}
                    | {"result": TIE if winner is None else "a" if winner == a else "b"}
                )
    return pd.DataFrame(rows, columns=_PAIR_COLUMNS)


def people_votes(ratings: pa.Table, candidate: str, incumbent: str) -> PeopleVotes:
    """How often people preferred the answers of ``candidate`` to those of ``incumbent``, without knowing the systems.

    Both are names in the column ``systems``. The votes on the page and the scores on imported sheets are blind. If a
    person scored the answers of both systems to a question on sheets, the higher score is a verdict, equal scores a
    tie. Verdicts on other systems do not count. The verdicts on a question count together, because they depend on each
    other.
    """
    first = min(candidate, incumbent)
    pairs = pd.concat([vote_pairs(ratings), _sheet_pairs(ratings)])
    pairs = pairs[(pairs["system_a"] == first) & (pairs["system_b"] == max(candidate, incumbent))]
    pairs = pairs.drop_duplicates(["rater", "question_id", "answer_a", "answer_b"])
    for_candidate = pairs["result"].map({"a": 1, "b": -1, TIE: 0}).astype(int) * (1 if candidate == first else -1)
    questions = for_candidate.groupby(pairs["question_id"].to_numpy()).sum()
    won, lost = int((questions > 0).sum()), int((questions < 0).sum())
    low, high = wilson(won, won + lost) or (None, None)
    shared, agreeing = _shared_verdicts(pairs)
    return PeopleVotes(
        candidate=candidate,
        incumbent=incumbent,
        won=won,
        lost=lost,
        ties=len(questions) - won - lost,
        share=won / (won + lost) if won + lost else None,
        low=low,
        high=high,
        verdicts=len(pairs),
        raters=pairs["rater"].nunique(),
        busiest=float(pairs["rater"].value_counts(normalize=True).max()) if len(pairs) else 0.0,
        shared=shared,
        agreement=agreeing / shared if shared else None,
    )


def _sheet_pairs(ratings: pa.Table) -> pd.DataFrame:
    """The pairs of answers to one question that a person scored on sheets, with the columns of ``vote_pairs``."""
    scored: dict[tuple[str, str], dict[str, dict[str, Any]]] = defaultdict(dict)
    for row in _latest(ratings):
        if row["kind"] == "rating" and row["source"] == "import":
            scored[row["rater"], row["question_id"]][row["systems"][0]] = row
    rows = []
    for by_system in scored.values():
        for a, b in combinations(sorted(by_system), 2):
            one, other = by_system[a], by_system[b]
            result = TIE if one["score"] == other["score"] else "a" if one["score"] > other["score"] else "b"
            rows.append(
                {column: one[column] for column in _ASKED_COLUMNS}
                | {"system_a": a, "system_b": b, "answer_a": one["answers"][0], "answer_b": other["answers"][0]}
                | {"result": result}
            )
    return pd.DataFrame(rows, columns=_PAIR_COLUMNS)


def _shared_verdicts(pairs: pd.DataFrame) -> tuple[int, int]:
    """How many pairs of verdicts (without ties) two people gave on the same two answers, and how many of them agree."""
    shared = agreeing = 0
    decided = pairs[pairs["result"] != TIE]
    for _, results in decided.groupby(["question_id", "answer_a", "answer_b"])["result"]:
        counts = Counter(results)
        shared += math.comb(len(results), 2)
        agreeing += sum(math.comb(count, 2) for count in counts.values())
    return shared, agreeing


def win_rates(votes: pd.DataFrame) -> pd.DataFrame:
    """One row per pair of systems in ``vote_pairs``: system_a, system_b, and the ``wins``, ``ties``, ``losses`` and ``rate``
    of system_a.

    The rate ranges from 0 to 1 and counts a tie as half a win; ``rate_low`` and ``rate_high`` are Wilson's 95 % interval.
    """
    rows = []
    for (a, b), results in votes.groupby(["system_a", "system_b"], sort=True)["result"]:
        wins, ties = int((results == "a").sum()), int((results == TIE).sum())
        share = _share("rate", wins + ties / 2, len(results))
        rows.append(
            {"system_a": a, "system_b": b, "wins": wins, "ties": ties, "losses": len(results) - wins - ties} | share
        )
    return pd.DataFrame(rows)


def bradley_terry(votes: pd.DataFrame, samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """One row per system, the strongest first within its group: system, ``group``, ``votes``, ``strength``, ``low``,
    ``high``.

    ``strength`` is the log strength of Bradley and Terry, 0 on average in the group: the difference of two is the log-odds
    that the first is preferred. A tie counts as half a win for each; PRIOR wins are added. Systems of different groups were
    never compared, not even through others, so their strengths are not comparable. The 95 % interval comes from a bootstrap
    over questions.
    """
    names = sorted({*votes["system_a"], *votes["system_b"]})
    if not names:
        return pd.DataFrame(columns=["system", "group", "votes", "strength", "low", "high"])
    index = {name: number for number, name in enumerate(names)}
    question = pd.factorize(votes["question_id"])[0]
    a, b = votes["system_a"].map(index).to_numpy(int), votes["system_b"].map(index).to_numpy(int)
    won = votes["result"].map({"a": 1.0, TIE: 0.5, "b": 0.0}).to_numpy(float)
    by_question = np.zeros((question.max() + 1, len(names), len(names)))
    np.add.at(by_question, (question, a, b), won)
    np.add.at(by_question, (question, b, a), 1 - won)
    wins = by_question.sum(axis=0)
    compared = wins + wins.T
    draws = np.random.default_rng(seed).multinomial(
        len(by_question), np.full(len(by_question), 1 / len(by_question)), samples
    )
    drawn = np.tensordot(draws.astype(float), by_question, axes=1) + PRIOR * (compared > 0)
    rows = []
    group_of = connected_groups(compared)
    for group in range(group_of.max() + 1):
        members = np.flatnonzero(group_of == group)
        within = np.ix_(members, members)
        strength = log_strengths((wins + PRIOR * (compared > 0))[within])
        low, high = np.percentile(log_strengths(drawn[(slice(None), *within)]), [2.5, 97.5], axis=0)
        for number in np.argsort(-strength, kind="stable"):
            name, count = names[members[number]], int(compared[members[number]].sum())
            interval = {"strength": float(strength[number]), "low": float(low[number]), "high": float(high[number])}
            rows.append({"system": name, "group": group, "votes": count} | interval)
    return pd.DataFrame(rows)


def rater_agreement(ratings: pa.Table) -> RaterAgreement:
    """How well raters agree on the scores of the same answers, and on which of the same two answers is better."""
    scored = [row for row in _latest(ratings) if row["kind"] == "rating"]
    answers = [digest(row["question_id"], row["systems"], row["answers"]) for row in scored]
    votes = vote_pairs(ratings)
    columns = votes[["question_id", "system_a", "system_b", "answer_a", "answer_b"]]
    voted = [digest(*row) for row in columns.itertuples(index=False)]
    return RaterAgreement(
        ratings_alpha=krippendorff_alpha(answers, [row["score"] for row in scored], "ordinal"),
        ratings=int((pd.Series(answers, dtype=object).value_counts() > 1).sum()),
        votes_alpha=krippendorff_alpha(voted, votes["result"].tolist(), "nominal"),
        votes=int((pd.Series(voted, dtype=object).value_counts() > 1).sum()),
        raters=len({row["rater"] for row in ratings.to_pylist()}),
    )


def _fault(row: Mapping[str, Any]) -> str | None:
    count, score, winner = len(row["systems"]), row["score"], row["winner"]
    if row["source"] not in ("page", "import"):
        return f"its source is '{row['source']}', not page or import"
    if count != len(row["answers"]) or None in (*row["systems"], *row["answers"]):
        return f"its {count} systems and {len(row['answers'])} answers do not match, or one of them is missing"
    if row["kind"] == "vote":
        if not 2 <= count <= len(VOTE_LETTERS) or score is not None:
            return f"a vote compares 2 to {len(VOTE_LETTERS)} answers and has no score"
        if winner != TIE and (winner is None or len(winner) != 1 or winner not in VOTE_LETTERS[:count]):
            return f"its winner is '{winner}', which is neither one of its {count} answers nor '{TIE}'"
        return None
    scores = {"rating": range(1, 6), "thumb": range(2)}.get(row["kind"])
    if scores is None:
        return f"its kind is '{row['kind']}', not rating, thumb or vote"
    if count != 1 or winner is not None:
        return f"a {row['kind']} is about one answer and has no winner"
    return None if score in scores else f"the score of a {row['kind']} is {score}, not {scores[0]} to {scores[-1]}"


def _latest(ratings: pa.Table) -> list[dict[str, Any]]:
    """The last judgement of each person on the same answers, in the order of the table, about answers of versions only."""
    latest: dict[str, dict[str, Any]] = {}
    for row in sorted(ratings.to_pylist(), key=lambda row: row["at"]):
        answers = sorted(zip(row["systems"], row["answers"], strict=True))
        latest[digest(row["rater"], row["kind"], row["question_id"], answers)] = row
    ids = {row["id"] for row in latest.values()}
    last = (row for row in ratings.to_pylist() if row["id"] in ids)
    return [left for row in last if (left := _without_desk(row)) is not None]


def _without_desk(row: dict[str, Any]) -> dict[str, Any] | None:
    """The judgement without the desk's own answers, such as handovers and thanks, because no version wrote them.

    None if nothing is left to judge: a vote needs two answers, and one that the desk won does not compare the others.
    """
    settings = json.loads(row["settings"])
    by_answer = settings if isinstance(settings, list) else [settings]
    desk = {i for i, each in enumerate(by_answer) if each.get("author") == "desk"}
    if not desk:
        return row
    kept = [i for i in range(len(row["systems"])) if i not in desk]
    winner = None if row["winner"] in (None, TIE) else VOTE_LETTERS.index(row["winner"])
    if len(kept) < 2 or winner in desk:
        return None
    left = {name: [row[name][i] for i in kept] for name in ("systems", "answers")}
    return row | left | {"winner": TIE if winner is None else VOTE_LETTERS[kept.index(winner)]}


def _by_system(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    by_system: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] != "vote":
            by_system.setdefault(row["systems"][0], []).append(row)
    return by_system


def _share(name: str, count: float, total: int) -> dict[str, float]:
    low, high = wilson(count, total) or (np.nan, np.nan)
    return {name: count / total if total else np.nan, f"{name}_low": low, f"{name}_high": high}


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as dictionaries, None for NaN."""
    filled = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in filled.to_dict("records")]


def log_strengths(wins: np.ndarray) -> np.ndarray:
    """Log strengths [..., n] from ``wins`` [..., n, n]: how often the first beat the second, counting a tie as half a win.

    The difference of two strengths is the log-odds that the first wins. The strengths sum to 0. They are computed by
    minorisation-maximisation (Hunter 2004, MM algorithms for generalized Bradley-Terry models) for competitors of one
    connected group. Raises PipelineError when there is no maximum because some never lost to the others, or never won.
    """
    compared = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strengths = np.ones(won.shape)
    for _ in range(_MAX_STEPS):
        shares = compared / (strengths[..., :, None] + strengths[..., None, :])
        with np.errstate(divide="ignore", invalid="ignore"):
            new = won / shares.sum(axis=-1)
            new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        if not (np.isfinite(new).all() and (new > 0).all()):
            break
        if np.abs(np.log(new / strengths)).max(initial=0) < _TOLERANCE:
            return np.log(new)
        strengths = new
    raise PipelineError(
        "Strengths cannot be estimated: one side won every vote.",
        "Collect votes on more pairs; until then look at the win rates.",
    )


def connected_groups(compared: np.ndarray) -> np.ndarray:
    """The group [n] of each competitor, numbered from 0. Members of a group were compared, directly or through others.

    ``compared`` [n, n] is how often two were compared. Strengths of different groups are not comparable.
    """
    from scipy.sparse.csgraph import connected_components

    return connected_components(compared > 0, directed=False)[1]
