"""Escaping of text that a tokenizer cannot represent: T5's signs, code points, and the way back."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs_pipeline.llm.escaping import Escaping
from cs_pipeline.text.clean import normalize_text
from cs_pipeline_tests.support.tiny import FAMILIES, tiny_tokenizer

LIST = "Of course:\n1. Open '{{Settings}}'.\n2. Choose \"Cancel\".\n\nThat is all!"


@cache
def load(family: str) -> Escaping:
    return Escaping(tiny_tokenizer(family))


def through_tokens(family: str, text: str) -> str:
    tokenizer = tiny_tokenizer(family)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def test_without_escapes_t5_loses_braces_and_line_breaks() -> None:
    assert through_tokens("t5", "{{Order Number}}\nis late") == "<unk>Order Number<unk> is late"


def test_t5_gets_signs_and_code_points() -> None:
    t5 = load("t5")
    assert t5.escape(LIST) == "Of course:| 1. Open '«Settings»'.| 2. Choose \"Cancel\".| | That is all!"
    assert t5.escape("a | b «c» {d}\n  e \N{SLIGHTLY SMILING FACE}") == (
        "a \N{PRIME}7c; b \N{PRIME}ab;c\N{PRIME}bb; \N{PRIME}7b;d\N{PRIME}7d;| \N{PRIME}20;\N{PRIME}20;e \N{PRIME}1f642;"
    )
    assert t5.escape("</s><unk>") == "\N{PRIME}3c;/s>\N{PRIME}3c;unk>", "no text becomes a control token"
    assert t5.escaped_characters(LIST) == []
    assert t5.escaped_characters("{ñ}\nñ") == ["{", "ñ", "}", "ñ"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=30),
        st.text("{}|«»\N{PRIME}\n a1bf;<\\", max_size=20),
    ).map(normalize_text)
)
@example(LIST)
@example("\N{PRIME}7b; is how a brace is escaped")
@example(
    "e\N{COMBINING ACUTE ACCENT} \N{LOWER ONE EIGHTH BLOCK} \N{LATIN SMALL LIGATURE FI} \N{VULGAR FRACTION ONE HALF}\t."
)
def test_escaped_text_survives_the_tokenizer(family: str, text: str) -> None:
    escaping = load(family)
    assert escaping.unescape(through_tokens(family, escaping.escape(text))).strip() == text.strip()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "t5"])
def test_other_tokenizers_need_no_escapes(family: str) -> None:
    for text in (LIST, "5\N{PRIME}, {a} | «b»  </s>\n\n  - c \N{SLIGHTLY SMILING FACE} 中文"):
        assert load(family).escape(text) == text
        assert load(family).unescape(text) == text


def test_an_invalid_escape_is_left_alone() -> None:
    t5 = load("t5")
    for text in ("\N{PRIME}zz;", "\N{PRIME}41", "\N{PRIME};", "\N{PRIME}110000;", "\N{PRIME}d800;"):
        assert t5.unescape(text) == text
    assert t5.unescape("a|b|  «") == "a\nb\n {{"
