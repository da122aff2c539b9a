"""Agreement on published worked examples, and against scikit-learn's kappa."""

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score

from cs_pipeline.evaluate.statistics import cohen_kappa, krippendorff_alpha

PUBLISHED = [
    "1 2 3 3 2 1 4 1 2 . . .",
    "1 2 3 3 2 2 4 1 2 5 . 3",
    ". 3 3 3 2 3 4 2 2 5 1 .",
    "1 2 3 3 2 4 4 1 2 5 1 .",
]
"""Krippendorff (2011), section D: four observers, twelve units; alpha is 0.743 nominal and 0.815 ordinal."""


def judgements(observers: list[str]) -> tuple[list[int], list[int]]:
    given = [(unit, value) for row in observers for unit, value in enumerate(row.split()) if value != "."]
    return [unit for unit, _ in given], [int(value) for _, value in given]


def test_alpha_of_the_published_example() -> None:
    units, values = judgements(PUBLISHED)
    assert krippendorff_alpha(units, values, "nominal") == pytest.approx(0.743, abs=0.0005)
    assert krippendorff_alpha(units, values, "ordinal") == pytest.approx(0.815, abs=0.0005)


def test_alpha_does_not_hang_on_order_or_names() -> None:
    units, values = judgements(PUBLISHED)
    shuffled = np.random.default_rng(0).permutation(len(units))
    names = [f"unit {units[place]}" for place in shuffled]
    stretched = [10 * values[place] ** 2 for place in shuffled]  # the ranks stay
    expected = krippendorff_alpha(units, values, "ordinal")
    assert krippendorff_alpha(names, stretched, "ordinal") == pytest.approx(expected)


def test_alpha_of_agreement_chance_and_nothing() -> None:
    assert krippendorff_alpha(["x", "x", "y", "y"], [1, 1, 5, 5], "ordinal") == 1
    assert krippendorff_alpha(["x", "x", "y", "y"], ["a", "b", "a", "b"], "nominal") == pytest.approx(-0.5)
    rng = np.random.default_rng(0)
    chance = krippendorff_alpha([i // 3 for i in range(3000)], rng.integers(1, 6, 3000).tolist(), "ordinal")
    assert chance == pytest.approx(0, abs=0.05)
    assert krippendorff_alpha([], [], "ordinal") is None
    assert krippendorff_alpha(["x", "y"], [1, 2], "ordinal") is None, "nobody judged the same"
    assert krippendorff_alpha(["x", "x"], [3, 3], "ordinal") is None, "one value tells nothing"


def test_kappa_by_hand_and_as_in_scikit_learn() -> None:
    # 20 yes-yes, 5 yes-no, 10 no-yes, 15 no-no: 0.7 observed, 0.5 by chance.
    one, other = ["yes"] * 25 + ["no"] * 25, ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(one, other) == pytest.approx(0.4)
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = rng.choice(["a", "b", "tie"], 30).tolist(), rng.choice(["a", "tie"], 30).tolist()
        assert cohen_kappa(a, b) == pytest.approx(cohen_kappa_score(a, b))


def test_kappa_of_agreement_and_nothing() -> None:
    assert cohen_kappa(["a", "b", "tie"], ["a", "b", "tie"]) == 1
    assert cohen_kappa([], []) is None
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert cohen_kappa(["a", "a"], ["b", "b"]) == 0
