"""The choice of the known answer for the prompt: the most typical one among those of about equally similar questions."""

from itertools import permutations

from cs_pipeline.llm.prompt import Context, RetrievedText
from cs_pipeline.retrieval.retrieve import MIN_RELATIVE_SIMILARITY, in_context, rank_by_consensus


def known(text: str, similarity: float = 0.9, intent: str = "get_refund", source: str = "bitext") -> RetrievedText:
    return RetrievedText("answer", text, text, "a question", None, None, similarity, intent, source)


TYPICAL = known("You get your money back within five days of the return.")
SIMILAR = known("You get your money back within seven days.")
ODD = known("Please ring us on Monday morning and ask for Anna.")


def test_the_most_typical_answer_comes_first_and_the_odd_one_last() -> None:
    more = known("You get your money back within five days.")
    for order in permutations([TYPICAL, SIMILAR, ODD, more]):
        assert rank_by_consensus(order, None, 4)[0] == more
        assert rank_by_consensus(order, None, 4)[-1] == ODD
        assert rank_by_consensus(order, None, 2) == rank_by_consensus(order, None, 4)[:2]


def test_of_one_or_two_answers_the_nearest_comes_first() -> None:
    near, far = known("Yes, we do.", 0.9), known("No, we do not.", 0.8)
    assert rank_by_consensus([near, far], None, 3) == [near, far]
    assert rank_by_consensus([near], None, 3) == [near]
    assert rank_by_consensus([], "get_refund", 1) == []


def test_answers_to_much_less_similar_questions_are_not_compared() -> None:
    exact = known("Opening hours are nine to five.", 1.0)
    far = [known(f"You get your money back, case {i}.", MIN_RELATIVE_SIMILARITY - 0.01) for i in range(5)]
    assert rank_by_consensus([exact, *far], None, 3) == [exact, *far[:2]], "three are wanted, so the others fill up"
    close = [known(one.text, MIN_RELATIVE_SIMILARITY) for one in far]
    assert rank_by_consensus([exact, *close], None, 1)[0] in close


def test_answers_of_the_routed_intent_come_first_if_there_are_any() -> None:
    other = [known(f"Your order is on its way, parcel {i}.", intent="track_order") for i in range(3)]
    assert rank_by_consensus([*other, TYPICAL], "get_refund", 2) == [TYPICAL, other[0]]
    far = known(TYPICAL.text, 0.1)
    assert rank_by_consensus([*other, far], "get_refund", 1) == [far], "however similar the others are"
    assert rank_by_consensus([*other, TYPICAL], "complaint", 1)[0] in other
    assert rank_by_consensus([*other, TYPICAL], None, 1)[0] in other


def test_a_companys_answer_comes_before_bitexts_if_it_is_about_as_similar() -> None:
    typical = [known(f"You get your money back within {days} days.", 1.0) for days in ("five", "six", "seven")]
    own, far = (known("Ring the shop.", similarity, source="company") for similarity in (MIN_RELATIVE_SIMILARITY, 0.7))
    assert rank_by_consensus([*typical, own], "get_refund", 2) == [own, typical[0]]
    assert rank_by_consensus([*typical, own], None, 1) == [own]
    assert rank_by_consensus([*typical, far], "get_refund", 1)[0] in typical
    other = known("Ring the shop.", 1.0, "complaint", "company")
    assert rank_by_consensus([other, *typical], "get_refund", 1)[0] in typical, "the routed intent comes first"


def test_case_is_ignored_and_answers_may_be_empty() -> None:
    loud = known(SIMILAR.text.upper())
    assert rank_by_consensus([ODD, SIMILAR, loud], None, 1)[0] in (SIMILAR, loud)
    assert rank_by_consensus([known(""), known("")], None, 2) == [known(""), known("")]


def test_a_question_that_says_little_alone_is_searched_with_the_message_before_it() -> None:
    earlier: Context = [("customer", "hello"), ("customer", "I got size L"), ("agent", "Which one did you order?")]
    assert in_context("M", earlier, None) == "I got size L\nM"
    assert in_context("cancel my order", earlier, "cancel_order") == "cancel my order"
    assert in_context("M", [], None) == "M"
    assert in_context("{{Order Number}} 12345 please!", earlier, "cancel_order").startswith("I got size L\n"), (
        "one word"
    )
    assert in_context("M", [("agent", "Hello, how can I help?")], None) == "M"
