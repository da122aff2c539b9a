"""The placeholder catalogue, and finding, repairing, replacing and filling placeholders in texts."""

import csv
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.text.placeholders import (
    PlaceholderMode,
    Speaker,
    apply,
    canonical,
    catalogue,
    fill,
    find,
    is_balanced,
    load_catalogue,
    repair,
)

SPEAKERS: tuple[Speaker, ...] = ("customer", "agent")


@cache
def bitext_texts(path: Path) -> list[tuple[Speaker, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return [
            text
            for row in csv.DictReader(file)
            for text in (("customer", row["instruction"]), ("agent", row["response"]))
        ]


def spellings() -> list[str]:
    return [spelling for name, entry in catalogue().items() for spelling in (name, *entry.spellings)]


@st.composite
def balanced_texts(draw: st.DrawFn) -> str:
    """Texts of words, punctuation, line breaks, lone braces and whole placeholders, known and unknown."""
    known = st.sampled_from(spellings()).flatmap(
        lambda s: st.sampled_from([s, s.upper(), s.lower(), s.replace(" ", "_")])
    )
    names = st.one_of(known, st.sampled_from(["Warp Drive", "x/y"]))
    other_texts = [
        *("order number", "with the", "your", "a", "at", "or", "and", "my order is late", "website", "into your"),
        *(".", ",", "?", ":", "'", '"', "(", ")", "#", "$", "**", "1.", "\n", "\n\n", "  ", "{ ", " }", "'s", "é"),
    ]
    pieces = draw(
        st.lists(st.one_of(names.map(lambda name: f"{{{name}}}}}"), st.sampled_from(other_texts)), max_size=12)
    )
    return draw(st.sampled_from(["", " "])).join(pieces)


broken_texts = st.lists(
    st.sampled_from(
        ["{", "}", "{{", "}}", " ", "\n", "Order Number", "Account Type", "switch to", "warp", '"a": 1', "."]
    ),
    max_size=12,
).map("".join)


# The catalogue


def test_every_spelling_resolves_to_its_name() -> None:
    for name, entry in catalogue().items():
        assert {catalogue().name_of(spelling) for spelling in (name, *entry.spellings)} == {name}


@pytest.mark.parametrize(
    "spelling",
    ["order number", "ORDER_NUMBER", "Order-Number", "OrderNumber", "Order Numbers", " Order  Number ", "Order ID"],
)
def test_trivial_variants_are_the_same_name(spelling: str) -> None:
    assert catalogue().name_of(spelling) == "Order Number"


@pytest.mark.parametrize("spelling", ["Order", "Order/Invoice Number", "Number", "", "Order Statu"])
def test_other_names_are_not_guessed(spelling: str) -> None:
    assert catalogue().name_of(spelling) is None


ENTRY = "{phrase: order number, examples: [a]}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("values: {}", "labels"),
        (f"values: {{Order Number: {ENTRY}, order_numbers: {ENTRY}}}\nlabels: {{}}", "'order_numbers'"),
        (f"values: {{Order Number: {ENTRY}, Order Number: {ENTRY}}}\nlabels: {{}}", "appears twice"),
        (f"values: {{Save: {ENTRY}}}\nlabels: {{Save: []}}", "both a value and a label"),
        ("values: {}\nlabels: {Save: [save]}", "'save' of 'Save'"),
        ("values: {}\nlabels: {Save: [Keep, Keep]}", "'Keep' of 'Save'"),
        ("values: {}\nlabels: {Save: [Keep], Store: [Keep]}", "already a spelling of 'Save'"),
        ("values: {Order Number: {phrase: order number, examples: []}}\nlabels: {}", "Order Number.examples"),
        ("values: {Order Number: {phrase: '{{x}}', examples: [a]}}\nlabels: {}", "Order Number.phrase"),
        ("values: {Order Number: {phrase: x, examples: [a], also: y}}\nlabels: {}", "Order Number.also"),
        ("values: {A: {phrase: x, examples: [a], drawn_with: B}}\nlabels: {}", "'A' cannot be drawn with 'B'"),
        ("values: {A: {phrase: x, examples: [a, b], drawn_with: B}}\nlabels: {B: []}", "'A' cannot be drawn with 'B'"),
        ("values: {A: [}", "while parsing"),
    ],
)
def test_a_catalogue_that_contradicts_itself_is_refused(tmp_path: Path, content: str, complaint: str) -> None:
    path = tmp_path / "catalogue.yaml"
    path.write_text(content)
    with pytest.raises(PipelineError) as raised:
        load_catalogue(path)
    assert str(path) in raised.value.what
    assert complaint in raised.value.what


# find, canonical, is_balanced


def test_find_returns_the_names_as_written_in_order() -> None:
    assert find("{{order number}} or {{ Warp Drive }},\n{{order number}} {not this} {{nor\nthis}}") == [
        "order number",
        "Warp Drive",
        "order number",
    ]


def test_canonical_respells_known_names_and_returns_unknown_ones() -> None:
    text, unknown = canonical("{{ORDER_NUMBER}}: {{ warp drive }}\n{{ purchase number }}, {{x}}, {{x}}")
    assert text == "{{Order Number}}: {{ warp drive }}\n{{Order Number}}, {{x}}, {{x}}"
    assert unknown == ["warp drive", "x", "x"]


@settings(deadline=None)
@given(balanced_texts())
def test_canonical_is_idempotent(text: str) -> None:
    once, unknown = canonical(text)
    assert canonical(once) == (once, unknown)
    assert len(find(once)) == len(find(text))
    assert all(name in catalogue() or name in unknown for name in find(once))


@pytest.mark.parametrize(
    ("text", "balanced"),
    [
        ("", True),
        ("no braces", True),
        ("{{Order Number}} and {{Anything at all}}", True),
        ("{{Currency Symbol}}{{Refund Amount}}", True),
        ("a smile :-} and a {note}", True),
        ("{Order Number}", False),
        ("{{Order Number}", False),
        ("{{{Order Number}}}", False),
        ("{{ Order Number }}", False),
        ("{{}}", False),
        ("}}", False),
        ("{{Order\nNumber}}", False),
        ("{{Switch to {{Account Type}}}}", False),
    ],
)
def test_balanced_braces(text: str, balanced: bool) -> None:
    assert is_balanced(text) is balanced


# repair


@pytest.mark.parametrize(
    ("broken", "fixed"),
    [
        ("order {Order Number}}.", "order {{Order Number}}."),
        ("order {{Order Number}.", "order {{Order Number}}."),
        ("order {Order Number}.", "order {{Order Number}}."),
        ("order {{ Order Number }}.", "order {{Order Number}}."),
        ("order {{{Order Number}}}.", "order {{Order Number}}."),
        ("order {{{{Order Number}}}}.", "order {{Order Number}}."),
        ("order {{{{Order Number}}.", "order {{Order Number}}."),
        ("order {{order number is late", "order {{order number}} is late"),
        ("{{Order Number\n\nand {{Account Type}}", "{{Order Number}}\n\nand {{Account Type}}"),
        ("{{Account Recovery Page URL now", "{{Account Recovery Page URL}} now"),
        ("'{Warp Drive}}' {{Warp Drive}", "'{{Warp Drive}}' {{Warp Drive}}"),
        ("'{{Switch to {{Account Type}} Account}}'", "'Switch to {{Account Type}} Account'"),
        ("'{{{{ Account Type }} Membership}}'", "'{{Account Type}} Membership'"),
        ("choose '{Free Account}'", "choose '{Free Account}'"),
        ("see {{Warp Drive", None),
        ("see {{Order Statuses", None),
        ("Order Number}} is late", None),
        ("{{ }}", None),
        ("{{Order Number, please}", None),
        ('{"a": {"b": 1}}', None),
        ("{{Order Number}} }}", None),
    ],
)
def test_broken_placeholders_are_repaired(broken: str, fixed: str | None) -> None:
    assert repair(broken) == fixed


@settings(deadline=None)
@given(balanced_texts())
def test_repair_does_not_change_balanced_text(text: str) -> None:
    if is_balanced(text):
        assert repair(text) is not None
        assert repair(text) == text


@settings(deadline=None)
@given(broken_texts)
def test_repaired_text_is_balanced_and_loses_only_braces_and_spaces(text: str) -> None:
    fixed = repair(text)
    if fixed is not None:
        assert is_balanced(fixed)
        bare = str.maketrans("", "", "{} ")
        assert fixed.translate(bare) == text.translate(bare)
        assert fixed.count("\n") == text.count("\n")


# The modes


@pytest.mark.parametrize(
    ("text", "stripped"),
    [
        ("order number {{Order Number}}.", "order number."),
        ("cancel order {{Order Number}}", "cancel order"),
        ("do you ship to {{Delivery City}} ?", "do you ship?"),
        ("delete the {{Account Type}} account", "delete the account"),
        ("open a {{Account Type}} account", "open an account"),
        ("your bill with the number #{{Invoice Number}} and", "your bill and"),
        ("a refund of {{Currency Symbol}}{{Refund Amount}}.", "a refund."),
        ("bills from {{Salutation}} {{Client Last Name}}.", "bills."),
        ("the bills on {{Person Name}}'s account", "the bills on account"),
        ("Sign into your {{Online Company Portal Info}} using", "Sign in using"),
        ("go to the '{{Settings}}' or '{{Profile}}' section", "go to the section"),
        ("an option that says '{{Account Change}}'.\n2. Next", "an option.\n2. Next"),
        ('labeled "Upgrade to {{Account Type}}" or', 'labeled "Upgrade" or'),
        ("open {{Support Hours}} at {{Support Phone Number}} or through the chat", "open through the chat"),
        ("4. {{Account Type}}: Choose\n5. Go", "4. Choose\n5. Go"),
        ("**{{Settings}}** {{Warp Drive}}", "{{Warp Drive}}"),
        ("{{Order Number}}", ""),
    ],
)  # fmt: skip
def test_the_mode_strip_removes_placeholders(text: str, stripped: str) -> None:
    assert apply(text, PlaceholderMode.STRIP, "agent", "row") == stripped


@pytest.mark.parametrize(
    ("speaker", "text", "generic"),
    [
        ("customer", "can I give you {{Order Number}}?", "can I give you my order number?"),
        ("agent", "Send us {{Order Number}}.", "Send us your order number."),
        ("agent", "the {{Order Number}} or {{Tracking Number}}", "the order number or your tracking number"),
        ("agent", "your valid {{order_number}}?", "your valid order number?"),
        ("customer", "cancel order {{Order Number}}", "cancel order"),
        ("agent", "with the order number {{Order Number}}.", "with the order number."),
        ("agent", "your bill with the number #{{Invoice Number}}.", "your bill."),
        ("agent", "on our website at {{Website URL}}.", "on our website."),
        ("agent", "chat on our {{Website URL}}.", "chat on our website."),
        ("customer", "who answers at {{Customer Support Phone Number}}", "who answers at your support number"),
        ("agent", "We are available {{Customer Support Hours}}.", "We are available during our support hours."),
        ("agent", "reach us during {{Customer Support Hours}}", "reach us during our support hours"),
        ("agent", "open from {{Customer Support Hours}}", "open during our support hours"),
        ("customer", "use the {{Account Type}} account", "use the desired account"),
        ("agent", "choose '{{Account Type}}'.", "choose 'account type'."),
        ("agent", "within {{Date Range}} business days", "within several business days"),
        ("agent", "in the {{Date Range}},", "in the date range,"),
        ("customer", "a refund of {{Currency Symbol}}{{Refund Amount}}", "a refund of this amount"),
        ("agent", "a refund of ${{Refund Amount}}.", "a refund of this amount."),
        ("agent", "bills from {{Salutation}} {{Client Last Name}}.", "bills from this person."),
        ("agent", "1. {{Delivery City}} is far.\n{{Delivery City}}!", "1. Your city is far.\nYour city!"),
        ("agent", 'the "{{Forgot PIN code}}" option', 'the "Forgot PIN" option'),
        ("agent", "the {{Warp Drive}}", "the {{Warp Drive}}"),
    ],
)  # fmt: skip
def test_the_mode_generic_writes_phrases(speaker: Speaker, text: str, generic: str) -> None:
    assert apply(text, PlaceholderMode.GENERIC, speaker, "row") == generic


def test_realistic_values_agree_in_question_and_answer_and_differ_between_rows() -> None:
    def realistic(text: str, row: int, speaker: Speaker = "agent") -> str:
        return apply(text, PlaceholderMode.REALISTIC, speaker, str(row))

    rows = range(300)
    assert all(realistic("{{Order Number}}", row) == realistic("{{ORDER_ID}}", row, "customer") for row in rows), (
        "two spellings of one placeholder"
    )
    assert len({realistic("{{Order Number}}", row) for row in rows}) > 290
    assert {realistic("{{Website URL}}", row) for row in rows} == {"www.example.com"}
    for row in rows:
        person = realistic("{{Person Name}}", row, "customer")
        assert person == realistic("{{Client First Name}} {{Client Last Name}}", row)
        assert "#" not in realistic("{{Order Number}}", row)
    assert realistic("{{Order Number}}", 7) == "A-1195-04", "values must not change between releases"


@settings(deadline=None)
@given(balanced_texts(), st.sampled_from(PlaceholderMode), st.sampled_from(SPEAKERS))
def test_only_keep_leaves_known_placeholders_and_all_modes_leave_unknown_ones(
    text: str, mode: PlaceholderMode, speaker: Speaker
) -> None:
    if not is_balanced(text):
        return
    before, unknown = canonical(text)
    after = apply(text, mode, speaker, "row")
    if mode is PlaceholderMode.KEEP:
        assert after == before
        assert apply(before, mode, speaker, "row") == before
    else:
        assert find(after) == unknown
    assert after.count("\n") == text.count("\n")
    assert apply(text, mode, speaker, "row") == after


# fill


def test_fill_accepts_every_spelling_and_leaves_placeholders_without_a_value() -> None:
    text = "{{Order Number}} {{order_number}}\n{{Tracking Number}} {{Warp Drive}}"
    assert fill(text, {"Order ID": "17", "Warp Drive": "on"}) == "17 17\n{{Tracking Number}} on"


def test_fill_does_not_interpret_values() -> None:
    values = {"Order Number": r"{{Tracking Number}} \1 \g<0>", "Tracking Number": "never"}
    assert fill("{{Order Number}}", values) == r"{{Tracking Number}} \1 \g<0>"


@settings(deadline=None)
@given(balanced_texts())
def test_fill_without_values_changes_nothing(text: str) -> None:
    assert fill(text, {}) == text


# The real data


def test_the_catalogue_covers_the_placeholders_of_bitext(bitext_csv: Path) -> None:
    met: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for _, text in bitext_texts(bitext_csv):
        fixed = repair(text)
        assert fixed is not None, text
        met.update(find(fixed))
        unknown.update(canonical(fixed)[1])
    assert met.total() == 38_258
    assert len(met) == 362
    assert unknown.total() / met.total() < 0.01
    assert max(unknown.values()) < 10, "a common placeholder is missing"


def test_repair_changes_ten_texts_of_bitext(bitext_csv: Path) -> None:
    changed = [(text, repair(text)) for _, text in bitext_texts(bitext_csv) if repair(text) != text]
    unclosed = [(text, fixed) for text, fixed in changed if "{Cancel Order}}" in text]
    assert len(changed) == 10
    assert len(unclosed) == 1
    assert unclosed[0][1] == unclosed[0][0].replace("'{Cancel Order}}'", "'{{Cancel Order}}'")
    for text, fixed in changed:
        assert fixed is not None
        assert text.translate(str.maketrans("", "", "{}")) == fixed.translate(str.maketrans("", "", "{}"))


@pytest.mark.parametrize("mode", [PlaceholderMode.GENERIC, PlaceholderMode.STRIP, PlaceholderMode.REALISTIC])
def test_all_modes_work_on_bitext(bitext_csv: Path, mode: PlaceholderMode) -> None:
    for row, (speaker, text) in enumerate(bitext_texts(bitext_csv)):
        fixed = repair(text) or ""
        shown = apply(fixed, mode, speaker, str(row))
        assert find(shown) == canonical(fixed)[1]
        assert shown.count("\n") == text.count("\n")
        assert is_balanced(shown)
        assert ('""' in shown or "''" in shown) <= ('""' in text or "''" in text), "quotes around nothing"
