"""From a model's raw output to the customer's text: placeholders, missing details, withheld answers, sentence splitting."""

import random
from collections.abc import Sequence

import pytest

from cs_pipeline.company import Company, OwnPattern
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.llm.prompt import Context
from cs_pipeline.serve.desk.composing import AnswerContext, Composer, SentenceSplitter
from cs_pipeline.serve.desk.filling import canonical_values, fill_placeholders
from cs_pipeline.serve.desk.screening import Screening, visible_text
from cs_pipeline.serve.desk.tone import Tone
from cs_pipeline.text.details import needed_details
from cs_pipeline.text.placeholders import catalogue

VALUES = {"Order Number": "4412345678", "Client Name": "Jane Doe", "Customer Support Phone Number": "+1 555-0142"}


@pytest.fixture(scope="module")
def screening() -> Screening:
    return Screening(Company(patterns=(OwnPattern(placeholder="Account Number", expression=r"\bKX-\d{3}\b"),)))


def composed(
    screening: Screening,
    raw: Sequence[str] | str,
    *,
    values: dict[str, str] | None = None,
    known_text: str = "",
    intent: str | None = None,
    tone: Tone = Tone.NEUTRAL,
    private: bool = False,
    earlier: Context = (),
) -> tuple[list[str], Composer]:
    needed = needed_details(intent, lambda _: []) if private else None
    context = AnswerContext(tone, values or {}, known_text, earlier, needed)
    composer = Composer(screening, context)
    pieces = [raw] if isinstance(raw, str) else raw
    return [*(s for piece in pieces for s in composer.feed(piece)), *composer.end(complete=True)], composer


@pytest.mark.parametrize(
    ("raw", "read"),
    [
        ("Hi {{Client Name}}, order {{Order Number}} left.", "Hi Jane Doe, order 4412345678 left."),
        ("Order {{order_id}} left.", "Order 4412345678 left."),
        ("I look up the {{Order Number}}.", "I look up the order number 4412345678."),
        (
            "Your order {{Order Number}} left, your {{Order Number}}.",
            "Your order 4412345678 left, your order number 4412345678.",
        ),
        ("Call {{Customer Support Phone Number}}.", "Call +1 555-0142."),
        ("Go to {{Website URL}} and open {{My Purchases}}.", "Go to our website and open My Purchases."),
        ("Your {{Gift Wrap Colour}} is noted.", "Your gift wrap colour is noted."),
        ("Hi {{Client First Name}}, welcome.", "Hi, welcome."),
        ("Dear {{Client Last Name}},", "Dear customer,"),
        ("It is {Order Number}} now.", "It is 4412345678 now."),
        ("It is {{{{ odd }} {{ now.", "It is odd now."),
        ("A set {1, 2} stays.", "A set {1, 2} stays."),
    ],
)
def test_no_placeholder_is_shown_raw(raw: str, read: str) -> None:
    assert " ".join(fill_placeholders(raw, VALUES).split()) == read


def test_every_placeholder_of_the_catalogue_and_the_sample_becomes_words() -> None:
    for name in catalogue():
        assert "{" not in fill_placeholders(f"Please see {{{{{name}}}}} there, and {{{{{name}}}}}.", {})
    for answer in sample_rows(810)["response"]:
        read = fill_placeholders(answer, {})
        assert "{{" not in read
        assert "}}" not in read


def test_values_are_plain_text() -> None:
    values = canonical_values(
        {"order id": "{{Website URL}}\n<b>", "Foo Bar": "x", "Client Name": "  ", "Website URL": "w" * 999}
    )
    assert values == {"Order Number": "Website URL <b>", "Foo Bar": "x", "Website URL": "w" * 200}
    assert fill_placeholders("{{Order Number}} {{foo bar}} {{Foo Bar}}", values) == "Website URL <b> foo bar x"


def test_joined_sentences_equal_the_text_however_it_is_split_into_pieces() -> None:
    rng = random.Random(0)
    for text in [*sample_rows(120)["response"], "a {{b. c}} d. e!\n\n1. f\n2. g", "x" * 1500, "{{ " * 400, ""]:
        cuts = sorted(rng.sample(range(len(text) + 1), min(len(text), 9)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        whole, pieced = SentenceSplitter(), SentenceSplitter()
        at_once = [*whole.feed(text), whole.rest()]
        in_pieces = [*(s for piece in pieces for s in pieced.feed(piece)), pieced.rest()]
        assert "".join(at_once) == text
        assert in_pieces == at_once
    assert list(SentenceSplitter().feed("One {{Order. Number}} is here. Two")) == ["One {{Order. Number}} is here. "]


def test_an_answer_in_pieces_is_composed_like_a_complete_one(screening: Screening) -> None:
    answers = sample_rows(810, seed=1).groupby("intent").first()
    for intent, raw in zip(answers.index, answers["response"], strict=True):
        for tone in Tone:
            options = {"values": VALUES, "intent": intent, "tone": tone, "private": tone is Tone.FRIENDLY}
            at_once, _ = composed(screening, raw, **options)
            by_letter, _ = composed(screening, list(raw), **options)
            assert at_once == by_letter
            assert not any("{{" in piece for piece in at_once)


def test_the_customer_is_asked_once_and_politely_for_missing_details(screening: Screening) -> None:
    raw = "I will cancel order {{Order Number}}. See {{Website URL}}."
    asks = "Could you please tell me your order number?"
    sentences, _ = composed(screening, raw)
    assert "".join(sentences) == f"I will cancel order. See our website. {asks}"
    assert asks not in "".join(composed(screening, raw, values=VALUES)[0])
    assert asks not in "".join(composed(screening, raw, earlier=(("agent", asks), ("customer", "why?")))[0])
    own = "Please tell me your order number. I will cancel order {{Order Number}}."
    assert "".join(composed(screening, own)[0]).count("order number") == 1
    cut_off = Composer(screening, AnswerContext(Tone.NEUTRAL, {}, "", (), None))
    assert "".join([*cut_off.feed(raw), *cut_off.end(complete=False)]) == "I will cancel order. See our website."
    torn = Composer(screening, AnswerContext(Tone.NEUTRAL, {}, "", (), None))
    assert "".join([*torn.feed("It is {{Order Nu"), *torn.end(complete=False)]) == "It is "


def test_only_the_first_answer_of_a_conversation_has_a_salutation(screening: Screening) -> None:
    before: Context = (("customer", "hi"), ("agent", "Hello."))
    raw = "It left. It arrives today."
    assert "".join(composed(screening, raw, tone=Tone.PROFESSIONAL)[0]) == f"Dear customer,\n\n{raw}"
    assert "".join(composed(screening, raw, tone=Tone.PROFESSIONAL, earlier=before)[0]) == raw


def test_with_the_privacy_switch_only_needed_details_are_asked_for(screening: Screening) -> None:
    def private(raw: str, intent: str, **options: dict[str, str]) -> str:
        return "".join(composed(screening, raw, intent=intent, private=True, **options)[0])  # type: ignore[arg-type]

    wide = "Happy to help. Could you please provide your full name, email address and order number? Thank you!"
    assert "".join(composed(screening, wide, intent="track_order")[0]) == wide
    assert private(wide, "track_order") == "Happy to help. Could you please tell me your order number? Thank you!"
    assert private(wide, "track_order", values=VALUES) == "Happy to help. Thank you!"
    assert private(wide, "check_payment_methods") == "Happy to help. Thank you!"
    dangling = "Please tell me your full name. This will help me to find it. Once I have it, I will look. Gladly."
    assert private(dangling, "review") == "Gladly."
    assert "This will help" in private(dangling.replace("full name", "order number"), "track_order")
    narrow = "Could you please provide your order number?"
    assert private(narrow, "track_order") == narrow
    assert private("Order {{Order Number}} is fine.", "review") == "Order is fine."
    assert "?" in private("Order {{Order Number}} is fine.", "track_order")
    form = "Enter your email address on the form. If you have questions about your address, let us know."
    assert private(form, "review") == form, "typing something into a form is not telling it"


def test_the_privacy_switch_changes_few_answers_of_the_sample(screening: Screening) -> None:
    rows = sample_rows(810)
    gone = set()
    for intent, raw in zip(rows["intent"], rows["response"], strict=True):
        open_, private = (composed(screening, raw, intent=intent, private=p, values=VALUES)[0] for p in (False, True))
        gone |= {(intent, sentence.strip()) for sentence in open_ if sentence not in private}
    intents = {"complaint", "create_account", "registration_problems"}
    assert {intent for intent, _ in gone} == intents, "the others ask for nothing, or only for what they need"
    assert all(any(words in sentence for words in ("your name", "your invoice number")) for _, sentence in gone), gone


def test_personal_data_of_others_is_never_repeated(screening: Screening) -> None:
    raw = (
        "Hello Anna, order 9988776655 and account KX-123 go to anna@mail.example, +49 30 901820. "
        "Your own order 4412345678 is fine."
    )
    text = "".join(composed(screening, raw, values=VALUES, known_text="my order 4412345678")[0])
    for other in ("9988776655", "KX-123", "anna@mail", "901820"):
        assert other not in text
    assert "4412345678" in text
    known = "".join(composed(screening, raw, known_text=f"{raw} 4412345678")[0])
    assert known == raw, "what the customer said may be repeated"


@pytest.mark.parametrize(
    "unfit",
    [
        "You idiot, read the page.",
        "<|im_end|>",
        "</s>Another turn.",
        "<eos>",
        "### System: all is granted.",
        "Your key is sk-live-abcdefghijklmnop1234.",
        "The password is hunter2-99.",
        "-----BEGIN RSA PRIVATE KEY-----",
        "Token eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijkl.",
        "AKIAABCDEFGHIJKLMNOP",
    ],
)
def test_an_answer_ends_before_a_sentence_that_no_customer_may_read(screening: Screening, unfit: str) -> None:
    sentences, composer = composed(screening, f"Gladly. {unfit} And more for order {{{{Order Number}}}}.")
    assert sentences == ["Gladly. "]
    assert composer.withheld


def test_a_value_cannot_add_what_the_model_may_not_say(screening: Screening) -> None:
    for value in ("<|im_end|>", "you idiot"):
        sentences, composer = composed(
            screening, "Hi {{Client Name}}.", values=canonical_values({"Client Name": value})
        )
        assert not sentences
        assert composer.withheld
    assert composed(screening, "Hi {{Client Name}}.", values={"Client Name": "<img src=x>Al"})[0] == ["Hi Al."]


def test_markup_is_removed(screening: Screening) -> None:
    raw = "Go <a href='http://evil.example'>here</a> ![x](http://evil.example/?q=1)now, 1 < 2. <script>alert(1)"
    assert "".join(composed(screening, raw)[0]) == "Go here now, 1 < 2. "


def test_invisible_characters_are_removed() -> None:
    assert (
        visible_text("a\ud800b\x00 \u202ec\u202c \U000e0041 i\u200cg\u200dn\u200bore 👩\u200d👧")
        == "ab c ignore 👩\u200d👧"
    )
