"""Which rows go into which step, for any number of processes and any micro-batch."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from cs_pipeline.train.trainer.batches import Batches

LENGTHS = np.random.default_rng(0).integers(20, 400, 1_003).tolist()


def epoch(rows: int, micro: int, processes: int, number: int = 0) -> list[list[list[int]]]:
    """The micro-batches of each process in epoch ``number``."""
    found = []
    for rank in range(processes):
        batches = Batches(LENGTHS, rows, micro, 7, rank, processes)
        batches.set_epoch(number)
        found.append(list(batches))
        assert len(found[-1]) == len(batches)
    return found


def steps(rows: int, micro: int, processes: int, number: int = 0) -> list[list[int]]:
    """The rows of each step over all processes, as a Trainer takes them: the last step may have fewer micro-batches."""
    of_each = epoch(rows, micro, processes, number)
    assert len({len(batches) for batches in of_each}) == 1, "a process would wait forever"
    turns = -(-rows // (micro * processes))
    found = []
    for first in range(0, len(of_each[0]), turns):
        together = [row for batches in of_each for batch in batches[first : first + turns] for row in batch]
        found.append(sorted(row for row in together if row < len(LENGTHS)))
    return found


@pytest.mark.parametrize(("micro", "processes"), [(16, 1), (4, 1), (8, 2), (1, 2), (6, 3), (5, 3), (4, 4), (1, 16)])
def test_steps_have_the_same_rows_for_any_number_of_processes(micro: int, processes: int) -> None:
    for number in (0, 3):
        assert steps(16, micro, processes, number) == steps(16, 16, 1, number)


@pytest.mark.parametrize(
    ("rows", "micro", "processes"), [(16, 16, 1), (16, 4, 2), (7, 3, 2), (1, 1, 1), (2_000, 50, 3), (16, 1, 16)]
)
def test_an_epoch_contains_each_row_once(rows: int, micro: int, processes: int) -> None:
    of_each = epoch(rows, micro, processes)
    batches = [batch for own in of_each for batch in own]
    assert all(1 <= len(batch) <= micro for batch in batches)
    seen = Counter(row for batch in batches for row in batch)
    filled = seen.pop(len(LENGTHS), 0)
    assert seen == Counter(range(len(LENGTHS)))
    assert filled == sum(own[-1] == [len(LENGTHS)] for own in of_each), "only the last step lacks rows"
    assert filled == (5 if processes == 16 else 0)


def test_epochs_differ_but_are_reproducible() -> None:
    first, again, second = (epoch(16, 4, 1, number) for number in (0, 0, 1))
    assert first == again
    assert first != second
    assert list(Batches(LENGTHS, 16, 4, 8, 0, 1)) != first[0], "another seed"


def test_rows_of_similar_length_are_together_and_the_longest_come_first() -> None:
    ((*whole, _),) = epoch(16, 8, 1)
    lengths = [[LENGTHS[row] for row in batch] for batch in whole]
    real, padded = sum(map(sum, lengths)), sum(max(batch) * len(batch) for batch in lengths)
    at_random = np.random.default_rng(1).permutation(LENGTHS)[: 8 * len(whole)].reshape(-1, 8)
    assert real / padded > 0.97 > 0.7 > at_random.sum() / (at_random.max(axis=1) * 8).sum()
    assert max(LENGTHS) in lengths[0]
    means = [sum(batch) for batch in lengths[::2]]
    falls = sum(before > after for before, after in pairwise(means)) / (len(means) - 1)
    assert 0.3 < falls < 0.7, "steps of long and of short rows come in random order"
