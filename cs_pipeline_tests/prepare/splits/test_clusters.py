from collections.abc import Sequence
from itertools import combinations
from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.prepare.splits.clusters import Shingles, components, connecting_pairs, near_duplicates
from cs_pipeline.text.clean import Cleaned
from cs_pipeline_tests.prepare import are_near_duplicates, shingle_set

WORDS = [
    "where",
    "order",
    "parcel",
    "invoice",
    "refund",
    "account",
    "cancel",
    "delivery",
    "address",
    "change",
    "please",
]


def partition(questions: Sequence[str], intents: Sequence[str]) -> set[frozenset[int]]:
    """The rows of each cluster."""
    numbers = components(near_duplicates(questions, intents), len(questions))
    return {frozenset(np.flatnonzero(numbers == number).tolist()) for number in set(numbers.tolist())}


def all_near_duplicates(questions: Sequence[str], intents: Sequence[str]) -> set[tuple[int, int]]:
    """All near-duplicates, every row compared with every other."""
    sets = [shingle_set(question) for question in questions]
    return {
        (i, j)
        for i, j in combinations(range(len(sets)), 2)
        if intents[i] == intents[j] and are_near_duplicates(sets[i], sets[j])
    }


def joined(pairs: set[tuple[int, int]], rows: int) -> set[frozenset[int]]:
    """The groups that ``pairs`` connect, by merging sets."""
    groups = [{row} for row in range(rows)]
    for i, j in pairs:
        if groups[i] is not groups[j]:
            groups[i] |= groups[j]
            for row in groups[j]:
                groups[row] = groups[i]
    return {frozenset(group) for group in groups}


def variants(number: int, seed: int) -> tuple[list[str], list[str]]:
    """Questions of two intents, many of them copies with another letter, word or case."""
    random = Random(seed)
    questions = [" ".join(random.sample(WORDS, 6)) for _ in range(number // 4)]
    while len(questions) < number:
        text = random.choice(questions)
        index = random.randrange(len(text))
        match random.randrange(5):
            case 0:
                text = text[:index] + random.choice("abcxyz ?") + text[index + 1 :]
            case 1:
                text = text[:index] + text[index + 1 :]
            case 2:
                text = f"{text} {random.choice(WORDS)}"
            case 3:
                text = text.upper()
            case 4:
                pass
        questions.append(text)
    random.shuffle(questions)
    return questions, [random.choice(["a", "b"]) for _ in questions]


@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_the_same_as_from_comparing_all_pairs(seed: int) -> None:
    questions, intents = variants(400, seed)
    truth = all_near_duplicates(questions, intents)
    sets = [shingle_set(question) for question in questions]
    near = [len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for i, j in combinations(range(400), 2)]
    assert sum(0.75 <= s < 0.8 for s in near) > 30, "the test needs pairs just below the limit"
    assert sum(0.8 <= s < 0.85 for s in near) > 30, "and just above it"
    assert partition(questions, intents) == joined(truth, 400)
    assert {(min(p), max(p)) for p in near_duplicates(questions, intents).tolist()} <= truth


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.text("abcAé \U0001f642", max_size=9), st.sampled_from("xy")), max_size=25))
def test_clusters_of_arbitrary_texts(rows: list[tuple[str, str]]) -> None:
    questions, intents = [text for text, _ in rows], [intent for _, intent in rows]
    assert partition(questions, intents) == joined(all_near_duplicates(questions, intents), len(rows))


def test_all_rows_of_a_bucket_are_compared_with_each_other() -> None:
    questions = list(dict.fromkeys(question.lower() for question in variants(400, 11)[0]))
    rows = len(questions)
    numbers = components(connecting_pairs(Shingles.of(questions), [np.zeros(rows, dtype=np.uint64)]), rows)
    ours = {frozenset(np.flatnonzero(numbers == number).tolist()) for number in set(numbers.tolist())}
    assert ours == joined(all_near_duplicates(questions, ["a"] * rows), rows)


def test_the_order_of_rows_does_not_matter() -> None:
    questions, intents = variants(400, 7)
    before = {frozenset(questions[row] for row in rows) for rows in partition(questions, intents)}
    for seed in range(3):
        order = Random(seed).sample(range(400), 400)
        moved, their = [questions[i] for i in order], [intents[i] for i in order]
        assert {frozenset(order[row] for row in rows) for rows in partition(moved, their)} == partition(
            questions, intents
        )
        assert {frozenset(moved[row] for row in rows) for rows in partition(moved, their)} == before


def test_equal_questions_of_two_intents_are_not_in_one_cluster() -> None:
    assert partition(["where is it"] * 4, ["a", "b", "a", "b"]) == {frozenset({0, 2}), frozenset({1, 3})}


@pytest.mark.parametrize(
    ("questions", "clusters"),
    [
        ([], 0),
        (["a single one"], 1),
        (["", " ", "a", "A", "b", "abc", "abcd"], 5),  # padded with spaces, "" is " "
        (["abcde", "abcdef"], 2),  # 2 of 3 shingles
        (["abcdefgh", "abcdefghi"], 1),  # 5 of 6
        (["abcdefg", "abcdefgh"], 1),  # 4 of 5: exactly at the limit
        (["ÉTÉ À PARIS", "été à paris"], 1),
    ],
)
def test_small_sets_of_questions(questions: list[str], clusters: int) -> None:
    pairs = near_duplicates(questions, ["a"] * len(questions))
    assert pairs.shape[1] == 2
    assert len(set(components(pairs, len(questions)).tolist())) == clusters


def test_thousands_of_questions_that_differ_in_a_number_are_one_cluster() -> None:
    numbers = Random(0).sample(range(10**6, 10**7), 4_000)
    questions = [
        f"i have been waiting since yesterday, where is my order {number} and when will it come" for number in numbers
    ]
    pairs = near_duplicates(questions, ["track_order"] * len(questions))
    assert len(set(components(pairs, len(questions)).tolist())) == 1
    assert len(pairs) < 5 * len(questions), "far fewer than the millions of all pairs"


def test_bitext_clusters_of_two_intents_are_the_same_as_from_comparing_all_pairs(cleaned_bitext: Cleaned) -> None:
    frame = cleaned_bitext.rows.select(["instruction", "intent"]).to_pandas()
    numbers = components(near_duplicates(frame["instruction"].tolist(), frame["intent"].tolist()), len(frame))
    assert len(set(numbers.tolist())) == 17_971
    assert (frame.assign(number=numbers).groupby("number")["intent"].nunique() == 1).all()
    for intent in ("cancel_order", "track_refund"):
        rows = np.flatnonzero(frame["intent"] == intent)
        assert len(rows) > 800
        questions = [frame["instruction"][row] for row in rows]
        ours = {frozenset(np.flatnonzero(numbers[rows] == n).tolist()) for n in set(numbers[rows].tolist())}
        assert ours == joined(all_near_duplicates(questions, [intent] * len(rows)), len(rows))
