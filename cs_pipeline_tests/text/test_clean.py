"""Normalising raw rows, and which of them are set aside."""

import unicodedata
from collections import Counter

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cs_pipeline.core.schema import CONVERSATION, SET_ASIDE, check_schema
from cs_pipeline.text.clean import Cleaned, clean, normalize_line, normalize_text
from cs_pipeline.text.placeholders import find, is_balanced
from cs_pipeline_tests.prepare import conversations

QUESTION, ANSWER = "where is my order", "It is on its way to you."

pieces = st.sampled_from(
    [
        *("order", "é", "e", "\u0301", "가", "\u1100\u1161", "\u2126", "\U0001f642\u200d\U0001f642", "1.", "-"),
        *(
            " ",
            "  ",
            "\t",
            "\u00a0",
            "\u2003",
            "\n",
            "\n\n\n",
            "\r\n",
            "\r",
            "\x0b",
            "\x0c",
            "\x85",
            "\u2028",
            "\u2029",
        ),
        *("\x00", "\x1f", "\x7f", "\u200b", "\u2060", "\ufeff"),
        *("{", "}", "{{", "}}", "{{Order Number}}", "{{ORDER_NUMBER}}", "{{ Warp  Drive }}", "{{Account Type"),
    ]
)
texts = st.one_of(st.lists(pieces, max_size=12).map("".join), st.text(max_size=12))


def clean_row(instruction: str | None = QUESTION, response: str | None = ANSWER, **fields: str | None) -> Cleaned:
    return clean(conversations([{"instruction": instruction, "response": response, **fields}]))


# Whitespace and Unicode


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("  two  spaces\tand a tab ", "two spaces and a tab"),
        ("no\u00a0break \u2003 spaces", "no break spaces"),
        ("Steps:\n1. open\n2. close", "Steps:\n1. open\n2. close"),
        ("one\n\ntwo\n\n\n\nthree", "one\n\ntwo\n\nthree"),
        ("one  \n  two", "one\n two"),
        ("\n\n first and last \n\n", "first and last"),
        ("Windows\r\nMac\rUnix\nend", "Windows\nMac\nUnix\nend"),
        ("form\x0cfeed\x0btab\x85next\u2028line\u2029end", "form\nfeed\ntab\nnext\nline\nend"),
        ("caf\u0065\u0301", "café"),
        ("e\u200b\u0301", "é"),
        ("zero\u200bwidth\ufeff \u2060joint\x00\x07", "zerowidth joint"),
        ("\U0001f468\u200d\U0001f469", "\U0001f468\u200d\U0001f469"),
        (" \u200b\n\ufeff ", ""),
    ],
)
def test_text_is_normalized(raw: str, expected: str) -> None:
    assert normalize_text(raw) == expected


def test_a_question_is_one_line() -> None:
    assert normalize_line(" where\r\n\r\nis\u2028my \t order\n") == "where is my order"


@settings(deadline=None)
@given(texts)
def test_normalized_text_is_in_normal_form(raw: str) -> None:
    text = normalize_text(raw)
    assert normalize_text(text) == text
    assert unicodedata.is_normalized("NFC", text)
    assert text == text.strip()
    assert "\n\n\n" not in text
    assert not any(unicodedata.category(c) == "Cc" for c in text.replace("\n", ""))
    assert not set(text) & set("\u200b\u2060\ufeff\u2028\u2029\u00a0\t")
    assert all(line == line.rstrip() and "  " not in line for line in text.split("\n"))
    assert normalize_line(raw).split() == text.split()


# What is kept and what is set aside


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"category": ""}, "no category or no intent"),
        ({"category": None}, "no category or no intent"),
        ({"intent": None}, "no category or no intent"),
        ({"intent": " \u200b"}, "no category or no intent"),
        ({"instruction": None}, "empty question"),
        ({"instruction": " \n\ufeff"}, "empty question"),
        ({"instruction": "hi"}, "question shorter than 3 characters"),
        ({"instruction": "h      i" + " " * 99}, None),
        ({"instruction": "x" * 2_001}, "question longer than 2000 characters"),
        ({"instruction": "x" * 2_000}, None),
        ({"response": None}, "empty answer"),
        ({"response": "\t"}, "empty answer"),
        ({"response": "Certainly"}, "answer shorter than 10 characters"),
        ({"response": "Certainly!"}, None),
        ({"response": "y" * 8_001}, "answer longer than 8000 characters"),
        ({"response": "y" * 8_000}, None),
        ({"instruction": "where is {{Order"}, "braces that cannot be repaired"),
        ({"response": "It is with {{Order\nNumber}} now."}, "braces that cannot be repaired"),
        ({"response": "It is with {Order Number}} now."}, None),
    ],
)
def test_rows_that_cannot_be_used_are_set_aside_with_a_reason(
    fields: dict[str, str | None], reason: str | None
) -> None:
    cleaned = clean_row(**fields)
    if reason is None:
        assert (cleaned.rows.num_rows, cleaned.set_aside.num_rows) == (1, 0)
    else:
        assert cleaned.rows.num_rows == 0
        (row,) = cleaned.set_aside.to_pylist()
        assert row["reason"] == reason
        assert {name: row[name] for name in fields} == fields, "rows that are set aside keep their raw text"


def test_all_fields_except_the_texts_are_unchanged() -> None:
    table = conversations(
        [
            {
                "instruction": " Where  is it",
                "response": "Here:\r\n1. {{ORDER_NUMBER}}",
                "flags": " B",
                "source_row": 7,
            },
            {"instruction": "?", "response": ANSWER, "flags": "BQ", "subject_id": "s", "intent_confidence": 0.5},
            {"instruction": QUESTION, "response": ANSWER, "intent": " get_refund ", "category": "RE\u200bFUND"},
        ]
    )
    cleaned = clean(table)
    first, third = cleaned.rows.to_pylist()
    raw = table.to_pylist()
    assert first == raw[0] | {"instruction": "Where is it", "response": "Here:\n1. {{Order Number}}"}
    assert third == raw[2] | {"intent": "get_refund", "category": "REFUND"}
    assert cleaned.set_aside.to_pylist() == [raw[1] | {"reason": "question shorter than 3 characters"}]


def test_unknown_placeholders_are_counted_in_rows_that_are_kept() -> None:
    cleaned = clean(
        conversations(
            [
                {"instruction": "the {{Warp Drive}} broke", "response": "The {{warp drive}} and the {{Warp Drive}}."},
                {"instruction": "my {{Order Number}} {{ Flux }}", "response": ANSWER},
                {"instruction": "?", "response": "About {{Warp Drive}} we know nothing."},
            ]
        )
    )
    assert cleaned.unknown_placeholders == Counter({"Warp Drive": 2, "warp drive": 1, "Flux": 1})
    assert cleaned.rows.column("instruction").to_pylist() == [
        "the {{Warp Drive}} broke",
        "my {{Order Number}} {{Flux}}",
    ]


def test_an_empty_table_gives_empty_tables() -> None:
    cleaned = clean(CONVERSATION.empty_table())
    check_schema(cleaned.rows, CONVERSATION, "rows")
    check_schema(cleaned.set_aside, SET_ASIDE, "set aside")
    assert cleaned.rows.num_rows == cleaned.set_aside.num_rows == 0


def test_a_table_may_have_several_chunks() -> None:
    table = conversations([{"instruction": f"{QUESTION} {i}", "response": ANSWER if i % 2 else ""} for i in range(6)])
    chunked = pa.concat_tables([table.slice(4), table.slice(0, 4)])
    cleaned = clean(chunked)
    assert cleaned.rows.column("instruction").to_pylist() == [f"{QUESTION} {i}" for i in (5, 1, 3)]
    assert cleaned.set_aside.column("instruction").to_pylist() == [f"{QUESTION} {i}" for i in (4, 0, 2)]


maybe = st.one_of(st.none(), texts, *[texts.map(lambda text: f"{ANSWER}{text} or so")] * 4)


@settings(deadline=None, max_examples=80)
@given(st.lists(st.fixed_dictionaries({"instruction": maybe, "response": maybe}), max_size=6))
def test_every_row_is_kept_or_set_aside_and_clean_rows_do_not_change(rows: list[dict[str, str | None]]) -> None:
    table = conversations([row | {"row_id": str(index)} for index, row in enumerate(rows)])
    cleaned = clean(table)
    kept, aside = cleaned.rows.column("row_id").to_pylist(), cleaned.set_aside.column("row_id").to_pylist()
    assert sorted([*kept, *aside], key=int) == [str(index) for index in range(len(rows))]
    assert kept == sorted(kept, key=int)
    assert cleaned.set_aside.drop_columns("reason") == table.take(pa.array(map(int, aside), pa.int64()))
    for text in cleaned.rows.column("response").to_pylist():
        assert is_balanced(text)
    again = clean(cleaned.rows)
    assert again.rows == cleaned.rows
    assert again.set_aside.num_rows == 0
    assert again.unknown_placeholders == cleaned.unknown_placeholders


# The real data


def test_no_bitext_row_is_set_aside_or_loses_a_line(raw_bitext: pa.Table, cleaned_bitext: Cleaned) -> None:
    rows = cleaned_bitext.rows
    assert raw_bitext.num_rows == rows.num_rows == 24_094
    assert cleaned_bitext.set_aside.num_rows == 0
    assert rows.column("row_id") == raw_bitext.column("row_id")
    answers, raw_answers = rows.column("response").to_pylist(), raw_bitext.column("response").to_pylist()
    for answer, raw in zip(answers, raw_answers, strict=True):
        assert len(answer.split("\n")) == len(raw.strip().split("\n")), "a list keeps its lines"
    names = Counter(
        name for column in ("instruction", "response") for t in rows.column(column).to_pylist() for name in find(t)
    )
    assert sum(names.values()) == 38_258
    assert cleaned_bitext.unknown_placeholders.total() < 0.01 * 38_258
    assert cleaned_bitext.unknown_placeholders <= names
    assert pc.all(pc.equal(rows.column("intent"), raw_bitext.column("intent"))).as_py()
    again = clean(rows)
    assert again.rows == rows
    assert again.unknown_placeholders == cleaned_bitext.unknown_placeholders
