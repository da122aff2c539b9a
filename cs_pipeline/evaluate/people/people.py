"""What people say of answers: ratings, thumbs and votes, as tables of the report.

In go judgements with schema.RATING; out come counts and shares per system, win rates of pairs, Bradley-Terry strengths and
the agreement between raters. Of several judgements of one person on the same thing the latest counts. Intervals of shares
are Wilson's and take judgements as independent; those of strengths are of a bootstrap over questions.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.core.schema import RATING, check_schema
from cs_pipeline.evaluate.statistics import krippendorff_alpha, wilson
from cs_pipeline.feedback import TIE, VOTE_LETTERS

NEGATIVE, POSITIVE = (1, 2), (3, 4, 5)
"""Which scores count as negative and as positive."""

PRIOR = 0.5
"""Wins added to each side of each pair that met: a system that never lost has a finite strength, nearer to the others."""


@dataclass(frozen=True)
class RaterAgreement:
    """Krippendorff's alpha, ordinal for ratings and nominal for votes, and on how much it rests.

    ``ratings`` and ``votes`` count the answers, and the pairs of answers, that two people or more have judged.
    """

    ratings_alpha: float | None
    ratings: int
    votes_alpha: float | None
    votes: int
    raters: int


def rating_table(rows: Iterable[Mapping[str, Any]]) -> pa.Table:
    """``rows`` as a table with RATING. Raises PipelineError, naming the judgement, when one contradicts itself."""
    table = pa.Table.from_pylist([dict(row) for row in rows], schema=RATING)
    check_schema(table, RATING, "human_ratings")
    for row in table.to_pylist():
        if (fault := _fault(row)) is not None:
            raise PipelineError(
                f"The judgement '{row['id']}' cannot be used: {fault}.", "Fix or remove it where it comes from."
            )
    return table


def rating_counts(ratings: pa.Table) -> pd.DataFrame:
    """A row a system, by name: ``n1`` … ``n5``, ``ratings``, ``mean``, ``up``, ``down``, and the shares below.

    ``negative`` (1 and 2), ``positive`` (3 to 5) and ``thumbs_up`` are 0 to 1, with ``_low`` and ``_high`` of Wilson's 95 %
    interval; NaN where there is nothing to share.
    """
    rows = []
    latest = _latest(ratings)
    for system, given in sorted(_by_system(latest).items()):
        scores = [row["score"] for row in given if row["kind"] == "rating"]
        thumbs = [row["score"] for row in given if row["kind"] == "thumb"]
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
    """A row for each two answers that a vote compares, with the columns question_id, question, context, rater, system_a,
    system_b, answer_a, answer_b and ``result``: a, b or tie.

    The pair stands in the order of the systems' names, so that it is the same however it was shown. A vote among more than
    two says that the winner beats each other answer, and nothing of those among themselves; a tie is one of all.
    Two answers of one system are no pair.
    """
    columns = ("question_id", "question", "context", "rater")
    rows = []
    for vote in _latest(ratings):
        if vote["kind"] != "vote":
            continue
        best = None if vote["winner"] == TIE else VOTE_LETTERS.index(vote["winner"])
        shown = sorted(range(len(vote["systems"])), key=lambda place: (vote["systems"][place], vote["answers"][place]))
        for number, a in enumerate(shown):
            for b in shown[number + 1 :]:
                if vote["systems"][a] == vote["systems"][b] or (best is not None and best not in (a, b)):
                    continue
                rows.append(
                    {column: vote[column] for column in columns}
                    | {"system_a": vote["systems"][a], "system_b": vote["systems"][b]}
                    | {"answer_a": vote["answers"][a], "answer_b": vote["answers"][b]}
                    | {"result": TIE if best is None else "a" if best == a else "b"}
                )
    names = (*columns, "system_a", "system_b", "answer_a", "answer_b", "result")
    return pd.DataFrame(rows, columns=names)


def win_rates(compared: pd.DataFrame) -> pd.DataFrame:
    """A row for two systems of ``pairs``: system_a, system_b, ``wins``, ``ties``, ``losses`` and ``rate`` of a.

    The rate is 0 to 1 and counts a tie as half a win; ``rate_low`` and ``rate_high`` are Wilson's 95 % interval.
    """
    rows = []
    for (a, b), votes in compared.groupby(["system_a", "system_b"], sort=True)["result"]:
        wins, ties = int((votes == "a").sum()), int((votes == TIE).sum())
        share = _share("rate", wins + ties / 2, len(votes))
        rows.append(
            {"system_a": a, "system_b": b, "wins": wins, "ties": ties, "losses": len(votes) - wins - ties} | share
        )
    return pd.DataFrame(rows)


def bradley_terry(compared: pd.DataFrame, samples: int = 1000, seed: int = 0) -> pd.DataFrame:
    """A row a system, the strongest first within its group: system, ``group``, ``votes``, ``strength``, ``low``, ``high``.

    ``strength`` is the log strength of Bradley and Terry, 0 on average in the group: the difference of two is the log-odds
    that the first is preferred. A tie is half a win for each; PRIOR wins are added. Systems of different groups never met,
    not over others either: between groups nothing can be said. The 95 % interval is of a bootstrap over questions.
    """
    names = sorted({*compared["system_a"], *compared["system_b"]})
    if not names:
        return pd.DataFrame(columns=["system", "group", "votes", "strength", "low", "high"])
    place = {name: number for number, name in enumerate(names)}
    question = pd.factorize(compared["question_id"])[0]
    a, b = compared["system_a"].map(place).to_numpy(int), compared["system_b"].map(place).to_numpy(int)
    won = compared["result"].map({"a": 1.0, TIE: 0.5, "b": 0.0}).to_numpy(float)
    by_question = np.zeros((question.max() + 1, len(names), len(names)))
    np.add.at(by_question, (question, a, b), won)
    np.add.at(by_question, (question, b, a), 1 - won)
    wins = by_question.sum(axis=0)
    met = wins + wins.T
    draws = np.random.default_rng(seed).multinomial(
        len(by_question), np.full(len(by_question), 1 / len(by_question)), samples
    )
    drawn = np.tensordot(draws.astype(float), by_question, axes=1) + PRIOR * (met > 0)
    rows = []
    group_of = connected_groups(met)
    for group in range(group_of.max() + 1):
        members = np.flatnonzero(group_of == group)
        within = np.ix_(members, members)
        strength = log_strengths((wins + PRIOR * (met > 0))[within])
        low, high = np.percentile(log_strengths(drawn[(slice(None), *within)]), [2.5, 97.5], axis=0)
        for number in np.argsort(-strength, kind="stable"):
            name, votes = names[members[number]], int(met[members[number]].sum())
            ends = {"strength": float(strength[number]), "low": float(low[number]), "high": float(high[number])}
            rows.append({"system": name, "group": group, "votes": votes} | ends)
    return pd.DataFrame(rows)


def rater_agreement(ratings: pa.Table) -> RaterAgreement:
    """How far raters agree on the scores of the same answers, and on the better of the same two answers."""
    given = [row for row in _latest(ratings) if row["kind"] == "rating"]
    rated = [digest(row["question_id"], row["systems"], row["answers"]) for row in given]
    compared = vote_pairs(ratings)
    shown = compared[["question_id", "system_a", "system_b", "answer_a", "answer_b"]]
    voted = [digest(*row) for row in shown.itertuples(index=False)]
    return RaterAgreement(
        ratings_alpha=krippendorff_alpha(rated, [row["score"] for row in given], "ordinal"),
        ratings=int((pd.Series(rated, dtype=object).value_counts() > 1).sum()),
        votes_alpha=krippendorff_alpha(voted, compared["result"].tolist(), "nominal"),
        votes=int((pd.Series(voted, dtype=object).value_counts() > 1).sum()),
        raters=len({row["rater"] for row in ratings.to_pylist()}),
    )


def _fault(row: Mapping[str, Any]) -> str | None:
    count, score, winner = len(row["systems"]), row["score"], row["winner"]
    if row["source"] not in ("page", "import"):
        return f"its source is '{row['source']}', not page or import"
    if count != len(row["answers"]) or None in (*row["systems"], *row["answers"]):
        return f"it has {count} systems and {len(row['answers'])} answers"
    if row["kind"] == "vote":
        if not 2 <= count <= len(VOTE_LETTERS) or score is not None:
            return "a vote is on two answers or more, without a score"
        if winner != TIE and (winner is None or len(winner) != 1 or winner not in VOTE_LETTERS[:count]):
            return f"the winner of {count} answers is '{winner}'"
        return None
    least, most = {"rating": (1, 5), "thumb": (0, 1)}.get(row["kind"], (None, None))
    if least is None or most is None:
        return f"its kind is '{row['kind']}', not rating, thumb or vote"
    if count != 1 or winner is not None:
        return f"a {row['kind']} is on one answer, without a winner"
    return None if score is not None and least <= score <= most else f"the score of a {row['kind']} is {score}"


def _latest(ratings: pa.Table) -> list[dict[str, Any]]:
    """Of the judgements of one person on the same thing the latest, in the order of the table."""
    last: dict[str, dict[str, Any]] = {}
    for row in sorted(ratings.to_pylist(), key=lambda row: row["at"]):
        thing = sorted(zip(row["systems"], row["answers"], strict=True))
        last[digest(row["rater"], row["kind"], row["question_id"], thing)] = row
    kept = {row["id"] for row in last.values()}
    return [row for row in ratings.to_pylist() if row["id"] in kept]


def _by_system(rows: Iterable[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        if row["kind"] != "vote":
            found.setdefault(row["systems"][0], []).append(row)
    return found


def _share(name: str, part: float, of: int) -> dict[str, float]:
    low, high = wilson(part, of) or (np.nan, np.nan)
    return {name: part / of if of else np.nan, f"{name}_low": low, f"{name}_high": high}


@dataclass(frozen=True)
class Opinions:
    """Rows of ``rating_counts``, ``win_rates`` and ``strengths`` of evaluate/people/people.py, and how far raters agree.

    ``groups`` are the systems that met one another, the strongest first; ``judgements`` is how many all of it rests on.
    """

    judgements: int
    counts: list[dict[str, Any]]
    wins: list[dict[str, Any]]
    groups: list[list[dict[str, Any]]]
    agreement: RaterAgreement


def read_opinions(lake: DataLake) -> Opinions | None:
    """What people said of all versions; None where nobody has said anything, or ``human_ratings`` was not made yet."""
    if not lake.table("evaluate", "human_ratings").exists():
        return None
    ratings = lake.read("evaluate", "human_ratings")
    if not ratings.num_rows:
        return None
    compared = vote_pairs(ratings)
    groups: dict[int, list[dict[str, Any]]] = {}
    for row in _rows(bradley_terry(compared)):
        groups.setdefault(row["group"], []).append(row)
    return Opinions(
        judgements=ratings.num_rows,
        counts=_rows(rating_counts(ratings)),
        wins=_rows(win_rates(compared)),
        groups=list(groups.values()),
        agreement=rater_agreement(ratings),
    )


def _rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """A row as a dictionary; None where there is no figure."""
    filled = frame.astype(object).where(frame.notna(), None)
    return [{str(name): value for name, value in row.items()} for row in filled.to_dict("records")]


_STEPS, _CLOSE = 20_000, 1e-9


def log_strengths(wins: np.ndarray) -> np.ndarray:
    """Log strengths [..., n] of ``wins`` [..., n, n]: how often the first beat the second, a tie being half a win for each.

    The difference of two is the log-odds that the first wins; all together sum to 0. By minorisation and maximisation
    (Hunter 2004, MM algorithms for generalized Bradley-Terry models). The competitors are one of ``groups``. Raises
    PipelineError where there is no maximum, because one or some never lost to the others, or never won.
    """
    met = wins + np.swapaxes(wins, -1, -2)
    won = wins.sum(axis=-1)
    strengths = np.ones(won.shape)
    for _ in range(_STEPS):
        shares = met / (strengths[..., :, None] + strengths[..., None, :])
        with np.errstate(divide="ignore", invalid="ignore"):
            new = won / shares.sum(axis=-1)
            new /= np.exp(np.log(new).mean(axis=-1, keepdims=True))
        if not (np.isfinite(new).all() and (new > 0).all()):
            break
        if np.abs(np.log(new / strengths)).max(initial=0) < _CLOSE:
            return np.log(new)
        strengths = new
    raise PipelineError(
        "The votes give no strengths: somebody has won or lost all of them.",
        "Collect votes on more pairs; until then look at the win rates.",
    )


def connected_groups(met: np.ndarray) -> np.ndarray:
    """The number of the group, from 0, that each of n competitors belongs to: those who met, over however many others.

    ``met`` [n, n] says how often two met. Strengths of different groups do not compare.
    """
    from scipy.sparse.csgraph import connected_components

    return connected_components(met > 0, directed=False)[1]
