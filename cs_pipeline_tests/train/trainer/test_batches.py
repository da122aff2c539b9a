"""Which rows go into which step, for any number of processes and any size of micro-batches."""

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest

from cs_pipeline.llm.prompt import Example
from cs_pipeline.train.trainer.batches import Batches, data_loader

LENGTHS = np.random.default_rng(0).integers(20, 400, 1_003).tolist()

Step = list[list[int]]
"""The micro-batches of a step in one process."""


def epoch(rows: int, tokens: int, processes: int, number: int = 0) -> list[list[Step]]:
    """The steps of each process in epoch ``number``."""
    found = []
    for rank in range(processes):
        batches = Batches(LENGTHS, rows, tokens, 7, rank, processes)
        batches.set_epoch(number)
        found.append(list(batches))
        assert len(found[-1]) == len(batches) == -(-len(LENGTHS) // rows)
    return found


def step_rows(rows: int, tokens: int, processes: int, number: int = 0) -> list[list[int]]:
    """The rows of each step over all processes."""
    return [
        sorted(row for step in steps for batch in step for row in batch if row < len(LENGTHS))
        for steps in zip(*epoch(rows, tokens, processes, number), strict=True)
    ]


@pytest.mark.parametrize(("tokens", "processes"), [(9_000, 1), (500, 1), (3_000, 2), (10, 2), (1_000, 3), (400, 16)])
def test_steps_have_the_same_rows_for_any_number_of_processes(tokens: int, processes: int) -> None:
    for number in (0, 3):
        assert step_rows(16, tokens, processes, number) == step_rows(16, 9_000, 1, number)


@pytest.mark.parametrize(
    ("rows", "tokens", "processes"),
    [(16, 9_000, 1), (16, 900, 2), (7, 500, 2), (1, 10, 1), (2_000, 5_000, 3), (16, 400, 16)],
)
def test_an_epoch_contains_each_row_once(rows: int, tokens: int, processes: int) -> None:
    of_each = epoch(rows, tokens, processes)
    batches = [batch for steps in of_each for step in steps for batch in step]
    seen = Counter(row for batch in batches for row in batch)
    filled = seen.pop(len(LENGTHS), 0)
    assert seen == Counter(range(len(LENGTHS)))
    assert filled == sum(steps[-1] == [[len(LENGTHS)]] for steps in of_each), "only the last step lacks rows"
    assert filled == (5 if processes == 16 else 0)
    for batch in batches:
        if len(batch) > 1:
            assert len(batch) * max(LENGTHS[row] for row in batch) <= tokens


def test_micro_batches_are_as_few_as_the_tokens_allow() -> None:
    ((*full, _),) = epoch(16, 3_000, 1)
    for step in full:
        lengths = [LENGTHS[row] for batch in step for row in batch]
        assert len(step) <= 1 + 16 * max(lengths) // 3_000, "short rows share a micro-batch"
    assert min(map(len, full)) == 1
    assert max(map(len, full)) == 3


def test_processes_get_rows_of_similar_length() -> None:
    totals = [
        [sum(LENGTHS[row] for batch in steps[0] for row in batch) for steps in epoch(16, 9_000, 4, number)]
        for number in range(3)
    ]
    assert all(max(tokens) < 1.1 * min(tokens) for tokens in totals)


def test_epochs_differ_but_are_reproducible() -> None:
    first, again, second = (epoch(16, 900, 1, number) for number in (0, 0, 1))
    assert first == again
    assert first != second
    assert list(Batches(LENGTHS, 16, 900, 8, 0, 1)) != first[0], "another seed"


def test_rows_of_similar_length_are_together_and_the_longest_come_first() -> None:
    ((*full, _),) = epoch(16, 9_000, 1)
    lengths = [[LENGTHS[row] for row in batch] for step in full for batch in step]
    real, padded = sum(map(sum, lengths)), sum(max(batch) * len(batch) for batch in lengths)
    at_random = np.random.default_rng(1).permutation(LENGTHS)[: 16 * len(full)].reshape(-1, 16)
    assert real / padded > 0.9 > 0.7 > at_random.sum() / (at_random.max(axis=1) * 16).sum()
    assert max(LENGTHS) in lengths[0]
    means = [sum(batch) for batch in lengths]
    falls = sum(before > after for before, after in pairwise(means)) / (len(means) - 1)
    assert 0.3 < falls < 0.7, "steps of long and of short rows come in random order"


def test_the_loader_collates_each_micro_batch_and_fills_a_step_without_rows() -> None:
    examples = [Example([1], [2] * (length - 1), "causal") for length in (3, 5, 4)]
    batches = [Batches([3, 5, 4], 3, 8, 0, rank, 4) for rank in range(4)]
    alone = Batches([3, 5, 4], 3, 8, 0, 0, 1)

    def lengths(batches: Batches) -> list[list[list[int]]]:
        loader = data_loader(examples, batches, lambda rows: [len(row["input_ids"]) for row in rows])
        return [step["micro_batches"] for step in loader]

    assert lengths(alone) == [[[5], [3, 4]]]
    assert [lengths(part) for part in batches] == [[[[5]]], [[[4]]], [[[3]]], [[[1]]]]
