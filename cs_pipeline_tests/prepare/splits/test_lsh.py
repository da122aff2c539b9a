from random import Random

import numpy as np
import pytest

from cs_pipeline.prepare.splits.lsh import BandIndex
from cs_pipeline_tests.prepare import are_near_duplicates, shingle_set


def questions(seed: int, number: int = 300) -> list[str]:
    """Variants of a few questions in mixed case, including the empty question."""
    random = Random(seed)
    texts = ["", "where is it", "i would like to cancel the order that i made", "a refund of the last invoice please"]
    while len(texts) < number:
        text = random.choice(texts)
        row_number = random.randrange(len(text) + 1)
        text = text[:row_number] + random.choice(["", "x", " y", "Zz"]) + text[row_number + random.choice([0, 0, 1]) :]
        texts.append(random.choice([text, text, text.upper()]))
    return texts


def indexed(texts: list[str]) -> BandIndex:
    index = BandIndex.empty(len(texts))
    for part in np.array_split(np.arange(len(texts)), 2):
        index.add(part, [texts[row_number] for row_number in part])
    return index


def assert_finds_all(index: BandIndex, texts: list[str], rows: np.ndarray, group: np.ndarray) -> None:
    """Each result is a near-duplicate in its group, and there is one wherever comparing all rows finds one."""
    found = index.near_duplicates(rows, group, texts)
    sets = [shingle_set(text) for text in texts]
    for row, places in zip(rows.tolist(), found.tolist(), strict=True):
        for number, row_number in enumerate(places):
            others = [i for i in range(len(texts)) if group[i] == number and are_near_duplicates(sets[row], sets[i])]
            assert row_number in others if others else row_number == -1


@pytest.mark.parametrize("seed", range(3))
def test_a_near_duplicate_is_found_for_every_row_that_has_one(seed: int) -> None:
    texts = questions(seed)
    group = np.random.default_rng(seed).integers(-2, 3, len(texts)).astype(np.int8)
    assert_finds_all(indexed(texts), texts, np.flatnonzero(group == -1), group)


def test_all_rows_of_a_bucket_are_compared() -> None:
    texts = questions(4)
    index = indexed(texts)
    index.keys[:] = 7
    group = np.random.default_rng(4).integers(-2, 3, len(texts)).astype(np.int8)
    assert_finds_all(index, texts, np.flatnonzero(group == -1), group)


def test_rows_added_in_parts_have_the_same_keys_as_rows_added_together() -> None:
    texts = questions(5)
    apart, together = indexed(texts), BandIndex.empty(len(texts))
    together.add(np.arange(len(texts)), texts)
    moved = BandIndex.empty(len(texts))
    moved.assign(np.arange(len(texts))[::-1], together.select(np.arange(len(texts))[::-1]))
    for name, array in together.select(np.arange(len(texts))).items():
        assert array.any(), name
        np.testing.assert_array_equal(getattr(apart, name), array)
        np.testing.assert_array_equal(getattr(moved, name), array)


def test_rows_with_the_same_question_are_found() -> None:
    texts = ["Where is it?", "where is it?", "where is it", "WHERE IS IT?", "another"]
    among = np.array([True, True, True, False, True])
    assert indexed(texts).same_question(np.array([3]), among).tolist() == [0, 1]
    assert indexed(texts).same_question(np.array([3]), np.zeros(5, bool)).tolist() == []


def test_without_rows_to_compare_with_nothing_is_found() -> None:
    texts = ["where is it", "where is it?"]
    no_group = np.full(2, -1, np.int8)
    assert indexed(texts).near_duplicates(np.array([0, 1]), no_group, texts).tolist() == [[-1, -1, -1]] * 2
    assert indexed(texts).near_duplicates(np.zeros(0, np.int64), np.zeros(2, np.int8), texts).shape == (0, 3)
