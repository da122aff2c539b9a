"""How far raters agree beyond chance: Krippendorff's alpha for any number of people, Cohen's kappa for two judges."""

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
import pandas as pd


def krippendorff_alpha(
    units: Sequence[Hashable], values: Sequence[float | str], level: Literal["nominal", "ordinal"]
) -> float | None:
    """Alpha of judgements: ``values[i]`` was given to ``units[i]`` by somebody; 1 is agreement, 0 what chance would give.

    Units with one value tell nothing and are left out; who gave a value does not matter. With ``ordinal`` two values differ
    by the number of judgements that lie between them. None where no unit has two values, or all values are equal. Source:
    Krippendorff (2011), Computing Krippendorff's Alpha-Reliability.
    """
    counts = _table(units, values)
    sizes = counts.sum(axis=1, keepdims=True)
    counts, sizes = counts[sizes[:, 0] > 1], sizes[sizes[:, 0] > 1]
    if not len(counts):
        return None
    together = counts.T @ (counts / (sizes - 1)) - np.diag((counts / (sizes - 1)).sum(axis=0))
    totals = together.sum(axis=1)
    if level == "nominal":
        apart = 1.0 - np.eye(len(totals))
    else:
        middle = np.cumsum(totals) - totals / 2  # ranks: between two categories lie half of each and all in between
        apart = (middle[:, None] - middle[None, :]) ** 2
    by_chance = (np.outer(totals, totals) - np.diag(totals)) / (totals.sum() - 1)
    expected = float((by_chance * apart).sum())
    return 1 - float((together * apart).sum()) / expected if expected else None


def _table(units: Sequence[Hashable], values: Sequence[float | str]) -> np.ndarray:
    """How often each unit was given each value: [units, values], the values in their order."""
    unit, names = pd.factorize(np.asarray(units, dtype=object))
    value, kinds = pd.factorize(np.asarray(values), sort=True)
    counts = np.zeros((len(names), len(kinds)))
    np.add.at(counts, (unit, value), 1)
    return counts


def cohen_kappa(one: Sequence[Hashable], other: Sequence[Hashable]) -> float | None:
    """Kappa of two judges' categories for the same cases (Cohen 1960), unweighted.

    None where there are no cases, or where both give everything the same one category, so that chance explains all.
    """
    if not one:
        return None
    categories = {category: place for place, category in enumerate(dict.fromkeys([*one, *other]))}
    table = np.zeros((len(categories), len(categories)), np.int64)
    np.add.at(table, ([categories[value] for value in one], [categories[value] for value in other]), 1)
    cases, agreed = len(one), int(np.trace(table))
    by_chance = int(table.sum(axis=1) @ table.sum(axis=0))  # times cases²
    return (cases * agreed - by_chance) / (cases**2 - by_chance) if len(categories) > 1 else None
