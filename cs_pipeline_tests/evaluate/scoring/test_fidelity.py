"""Needed placeholders and made-up facts are counted in each placeholder mode."""

from pathlib import Path

import pandas as pd
import pytest

from cs_pipeline.evaluate.scoring.fidelity import FIDELITY_COLUMNS, fabricated_facts, fidelity
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.text.placeholders import PlaceholderMode, apply, canonical, is_balanced

KEEP, GENERIC, STRIP, REALISTIC = PlaceholderMode
REFERENCE = (
    "Order {{Order Number}} costs {{Currency Symbol}}{{Refund Amount}}, says {{Person Name}}."
    " Call {{Customer Support Phone Number}}."
)


def counts(
    answer: str, mode: PlaceholderMode, given: str = "where is my order?", reference: str = REFERENCE
) -> dict[str, object]:
    row = fidelity([given], [answer], [reference], ["row"], mode).iloc[0].to_dict()
    return {str(name): value for name, value in row.items() if name != "fabricated_facts"}


def expected(needed: int, present: int, invented: int = 0, filled: int = 0, fabricated: int = 0) -> dict[str, int]:
    return dict(zip(FIDELITY_COLUMNS, (needed, present, invented, filled, fabricated), strict=False))


def test_in_the_mode_keep_placeholders_are_needed() -> None:
    assert counts(REFERENCE, KEEP) == expected(5, 5)
    assert counts(REFERENCE.replace("Order Number", "order_number"), KEEP) == expected(5, 5)
    assert counts("All is well.", KEEP) == expected(5, 0)
    assert counts("{{Order Number}} {{Website URL}} {{Zork}}", KEEP) == expected(5, 1, invented=1)
    assert counts("{{Zork}}", KEEP, given="what is {{Zork}}?") == expected(5, 0)
    # A made-up name looks like any other word; a made-up number or price is recognised.
    made_up = "Order ORD-12345 costs $20, says Jane. Call +1 555-0177."
    assert counts(made_up, KEEP) == expected(5, 0, filled=3, fabricated=3)
    assert counts(made_up, KEEP, given="ORD-12345 for 20 dollars, from 1 555 0177") == expected(5, 0)


def test_in_the_mode_generic_phrases_are_needed() -> None:
    reference = apply(REFERENCE, GENERIC, "agent", "row")
    assert "{{" not in reference
    assert counts(reference, GENERIC) == expected(4, 4), "the currency leaves no word"
    assert counts("All is well.", GENERIC) == expected(4, 0)
    assert counts("Your order is here. {{Order Number}}", GENERIC)["invented"] == 1
    assert counts("The price of 20 euros", GENERIC)["fabricated"] == 1


def test_in_the_mode_strip_nothing_is_needed() -> None:
    assert counts("All is well.", STRIP) == expected(0, 0)
    assert counts("{{Order Number}} {{Zork}}", STRIP, reference="{{Zork}}") == expected(0, 0, invented=1)


def test_in_the_mode_realistic_catalogue_values_are_needed() -> None:
    reference = apply(REFERENCE, REALISTIC, "agent", "row")
    assert counts(reference, REALISTIC) == expected(5, 5)
    assert counts(apply(REFERENCE, REALISTIC, "agent", "another row"), REALISTIC) == expected(5, 5)
    number = apply("{{Order Number}}", REALISTIC, "agent", "row")
    given = f"where is order {number}?"
    assert counts(reference, REALISTIC, given) == expected(5, 5)
    other = reference.replace(number, "ORD-00000")
    assert counts(other, REALISTIC, given) == expected(5, 4, filled=1, fabricated=1), "given one number, writes another"
    assert counts(reference + " It takes 9 years.", REALISTIC) == expected(5, 5, fabricated=1)
    assert counts(reference + " {{Order Number}}", REALISTIC) == expected(5, 5, invented=1)


def test_a_short_catalogue_value_explains_a_duration_but_not_a_price() -> None:
    kinds = [fact.kind for fact in fabricated_facts("", "It takes 3 days and costs 3 dollars.", REALISTIC)]
    assert kinds == ["amount"]
    assert [fact.kind for fact in fabricated_facts("", "It takes 3 days and costs 3 dollars.")] == [
        "duration",
        "amount",
    ]


@pytest.mark.parametrize(
    "fact",
    [
        "4,321 pieces",
        "€ 12.90",
        "www.my-shop.com",
        "jo@my-shop.com",
        "+44 20 7946 0018",
        "3 June",
        "8 am to 5 pm",
        "9 working days",
        "REF-77441",
        "12%",
    ],
)
def test_every_planted_fact_is_found_and_named(fact: str) -> None:
    rows = sample_rows(27)
    questions, references = rows["instruction"].tolist(), rows["response"].tolist()
    answers, ids = [f"{answer} It is {fact}, by the way." for answer in references], [str(i) for i in range(27)]
    found = fidelity(questions, answers, references, ids, KEEP)
    plain = fidelity(questions, references, references, ids, KEEP)
    assert (found["fabricated"] == plain["fabricated"] + 1).all()
    assert all(fact.removesuffix(" pieces") in facts[-1] for facts in found["fabricated_facts"])
    assert (found["present"] == found["needed"]).all()


@pytest.mark.parametrize("mode", PlaceholderMode)
def test_real_answers_are_complete_and_make_up_little(mode: PlaceholderMode, bitext_csv: Path) -> None:
    rows = pd.read_csv(bitext_csv, usecols=["instruction", "response"]).sample(700, random_state=0)
    rows = rows[rows["response"].map(is_balanced)]
    ids = [str(i) for i in range(len(rows))]
    references = [canonical(text)[0] for text in rows["response"]]
    given = [apply(text, mode, "customer", row) for text, row in zip(rows["instruction"], ids, strict=True)]
    answers = [apply(text, mode, "agent", row) for text, row in zip(references, ids, strict=True)]
    found = fidelity(given, answers, references, ids, mode)
    assert list(found) == list(FIDELITY_COLUMNS)
    assert (found["present"] == found["needed"]).all()
    assert found[["invented", "filled"]].to_numpy().sum() == 0
    assert (found["fabricated"] > 0).mean() < 0.01
    assert (found["needed"].sum() == 0) == (mode is STRIP)


def test_lists_of_different_lengths_raise() -> None:
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        fidelity(["q"], ["a", "b"], ["r"], ["row"], KEEP)
