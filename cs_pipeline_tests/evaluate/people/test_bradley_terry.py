import numpy as np
import pytest

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.people.people import connected_groups, log_strengths

BASEBALL = np.array(
    [
        [0, 7, 9, 7, 7, 9, 11],
        [6, 0, 7, 5, 11, 9, 9],
        [4, 6, 0, 7, 7, 8, 12],
        [6, 8, 6, 0, 6, 7, 10],
        [6, 2, 6, 7, 0, 7, 12],
        [4, 4, 5, 6, 6, 0, 6],
        [2, 4, 1, 3, 1, 7, 0],
    ],
    dtype=float,
)
PUBLISHED = [1.581, 1.436, 1.294, 1.248, 1.108, 0.684, 0.0]
"""Agresti (2002), Categorical Data Analysis, 10.6: wins of seven baseball teams in 1987, and the published fit."""


def test_the_published_fit() -> None:
    fitted = log_strengths(BASEBALL)
    assert fitted.sum() == pytest.approx(0, abs=1e-9)
    assert fitted - fitted[-1] == pytest.approx(PUBLISHED, abs=0.0006)


def test_the_expected_wins_are_those_observed() -> None:
    rng = np.random.default_rng(0)
    many = rng.integers(1, 9, (50, 5, 5)) * (1 - np.eye(5))
    fitted = log_strengths(many)
    chance = 1 / (1 + np.exp(fitted[:, None, :] - fitted[:, :, None]))
    expected = ((many + many.swapaxes(1, 2)) * chance).sum(axis=2)
    np.testing.assert_allclose(expected, many.sum(axis=2), rtol=1e-6)
    np.testing.assert_allclose(log_strengths(many[7]), fitted[7], atol=1e-7)


def test_two_competitors_have_the_odds_of_their_wins() -> None:
    fitted = log_strengths(np.array([[0, 3], [1, 0]], float))
    assert fitted[0] - fitted[1] == pytest.approx(np.log(3))


@pytest.mark.parametrize(
    "wins",
    [[[0, 3], [0, 0]], [[0, 0], [0, 0]], [[0, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 1], [0, 0, 1, 0]]],
    ids=["never lost", "never compared", "two that never lost to the others"],
)
def test_wins_without_a_maximum_are_refused(wins: list[list[float]]) -> None:
    with pytest.raises(PipelineError, match="Strengths cannot be estimated"):
        log_strengths(np.array(wins, float))


def test_competitors_compared_through_another_form_one_group() -> None:
    compared = np.array([[0, 0, 1, 0], [0, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]])
    assert connected_groups(compared).tolist() == [0, 0, 0, 1]
    assert connected_groups(np.array([[0, 2, 0, 0], [2, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]])).tolist() == [0, 0, 1, 1]
