"""Which details an answer asks the customer for, and how the request is reduced to those that are needed."""

import pytest

from cs_pipeline.text.details import (
    narrowed,
    needed_details,
    private_details,
    request,
    specific_details,
    worth_asking,
)


@pytest.mark.parametrize(
    ("answer", "asked"),
    [
        ("Please provide your order number or invoice number.", {"Order Number", "Invoice Number"}),
        ("Could you tell me your full name and e-mail address?", {"Client Name", "Customer Email"}),
        ("We need your phone number to go on.", {"Customer Phone Number"}),
        ("Please send me your card number and the security code.", {"Card Number", "Password"}),
        ("To start, I will need a few details: your country; no password.", {"Country"}),
        (
            "I'll need a few details, such as your order number. Please tell me the purchase date.",
            {"Order Number", "Date"},
        ),
        ("Enter your e-mail address on the page.", set()),
        ("You will be asked for your password.", set()),
        ("Please remember not to share your password.", set()),
        ("Please never send us your card number.", set()),
        ("Please tell me more about the password reset.", set()),
        ("Please provide details about order number {{Order Number}}.", set()),
        ("Please tell me what you ordered as number 5 of your order number.", set()),
        ("Please send your feedback to our postal address.", set()),
        ("Please share your concerns and we will address them.", set()),
        ("Please visit the page with your account number.", set()),
    ],
)
def test_details_that_an_answer_asks_for(answer: str, asked: set[str]) -> None:
    assert specific_details(answer) == asked
    assert private_details(answer) >= asked - {"Country", "Date"}


@pytest.mark.parametrize(
    ("sentence", "private"),
    [
        ("Could you please confirm your order number?", {"Order Number"}),
        ("Please share your account details and contact information.", {"Account Details", "Contact Details"}),
        ("Please give me the {{Order Number}}.", {"Order Number"}),
    ],
)
def test_vague_requests_and_requests_to_confirm_count_for_privacy_alone(sentence: str, private: set[str]) -> None:
    assert private_details(sentence) == private
    assert specific_details(sentence.replace("{{Order Number}}", "details")) == set()


def test_impersonal_details_are_not_private() -> None:
    sentence = "Could you please tell me your country, the date of purchase and the payment method?"
    assert private_details(sentence) == set()
    assert specific_details(sentence) == {"Country", "Date", "Payment Method"}


def test_a_request_is_reduced_to_what_is_needed() -> None:
    wide = "Could you please provide your full name, email address and order number? "
    assert narrowed(wide, ["Order Number", "Tracking Number"], ()) == f"{request(['Order Number'])} "
    assert narrowed(wide, ["Order Number"], {"Order Number"}) == ""
    assert narrowed(wide, (), ()) == ""
    assert narrowed("We look into it.", (), ()) == "We look into it."


def test_at_most_two_missing_details_are_worth_asking_for() -> None:
    missing = ["Website URL", "Order Number", "Tracking Number", "Invoice Number"]
    assert worth_asking(missing, None) == ["Order Number", "Tracking Number"]
    assert worth_asking(missing, ["Invoice Number"]) == ["Invoice Number"]
    assert worth_asking(missing, ()) == []


def test_what_a_companys_subject_needs_is_what_its_answers_ask_for() -> None:
    answers = {
        "battery": [
            "Please send me your order number and your password.",
            "Could you tell me your order number and your full name?",
            "Hold the button for ten seconds.",
        ],
        "review": ["Please tell me your order number."],
    }
    assert needed_details("battery", answers.__getitem__) == ("Order Number",), "of three answers two ask for it"
    assert needed_details("get_invoice", answers.__getitem__) == ("Invoice Number",)
    assert needed_details("review", answers.__getitem__) == (), "Bitext's intents have rules"
    assert needed_details("unheard of", lambda _: []) == needed_details(None, answers.__getitem__) == ()
