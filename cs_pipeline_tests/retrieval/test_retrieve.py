"""Which known answer is told: the usual one of about equally similar questions."""

from itertools import permutations

from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.retrieve import AS_NEAR, most_usual


def known(text: str, similarity: float = 0.9, intent: str = "get_refund") -> RetrievedText:
    return RetrievedText("answer", text, text, "a question", None, None, similarity, intent)


USUAL = known("You get your money back within five days of the return.")
ALIKE = known("You get your money back within seven days.")
ODD = known("Please ring us on Monday morning and ask for Anna.")


def test_the_answer_that_the_others_are_like_is_first_and_the_odd_one_last() -> None:
    more = known("You get your money back within five days.")
    for order in permutations([USUAL, ALIKE, ODD, more]):
        assert most_usual(order, None, 4)[0] == more
        assert most_usual(order, None, 4)[-1] == ODD
        assert most_usual(order, None, 2) == most_usual(order, None, 4)[:2]


def test_of_one_or_of_two_the_nearest_is_taken() -> None:
    near, far = known("Yes, we do.", 0.9), known("No, we do not.", 0.8)
    assert most_usual([near, far], None, 3) == [near, far]
    assert most_usual([near], None, 3) == [near]
    assert most_usual([], "get_refund", 1) == []


def test_what_is_much_less_similar_has_no_voice() -> None:
    exact = known("Opening hours are nine to five.", 1.0)
    far = [known(f"You get your money back, case {i}.", AS_NEAR - 0.01) for i in range(5)]
    assert most_usual([exact, *far], None, 3) == [exact, *far[:2]], "asked for three, three are given"
    close = [known(one.text, AS_NEAR) for one in far]
    assert most_usual([exact, *close], None, 1)[0] in close


def test_answers_of_the_routed_intent_come_first_where_there_are_any() -> None:
    other = [known(f"Your order is on its way, parcel {i}.", intent="track_order") for i in range(3)]
    assert most_usual([*other, USUAL], "get_refund", 2) == [USUAL, other[0]]
    assert most_usual([*other, USUAL], "complaint", 1)[0] in other
    assert most_usual([*other, USUAL], None, 1)[0] in other


def test_words_count_and_not_their_case_or_an_answer_without_any() -> None:
    loud = known(ALIKE.text.upper())
    assert most_usual([ODD, ALIKE, loud], None, 1)[0] in (ALIKE, loud)
    assert most_usual([known(""), known("")], None, 2) == [known(""), known("")]
