"""Text that a tokenizer cannot write as it is: T5's signs, what is spelt, and that everything is read back."""

from functools import cache

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cs_pipeline.llm.written import Written
from cs_pipeline.text.clean import regular_text
from cs_pipeline_tests.support.tiny import FAMILIES, tiny_tokenizer

LIST = "Of course:\n1. Open '{{Settings}}'.\n2. Choose \"Cancel\".\n\nThat is all!"


@cache
def load(family: str) -> Written:
    return Written(tiny_tokenizer(family))


def through_tokens(family: str, written: str) -> str:
    tokenizer = tiny_tokenizer(family)
    ids = tokenizer(written, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))


def test_t5_loses_braces_and_lines_without_it() -> None:
    assert through_tokens("t5", "{{Order Number}}\nis late") == "<unk>Order Number<unk> is late"


def test_t5_gets_signs_and_spellings() -> None:
    t5 = load("t5")
    assert t5.write(LIST) == "Of course:| 1. Open '«Settings»'.| 2. Choose \"Cancel\".| | That is all!"
    assert t5.write("a | b «c» {d}\n  e \N{SLIGHTLY SMILING FACE}") == (
        "a \N{PRIME}7c; b \N{PRIME}ab;c\N{PRIME}bb; \N{PRIME}7b;d\N{PRIME}7d;| \N{PRIME}20;\N{PRIME}20;e \N{PRIME}1f642;"
    )
    assert t5.write("</s><unk>") == "\N{PRIME}3c;/s>\N{PRIME}3c;unk>", "no text spells a control token"
    assert t5.spelt(LIST) == []
    assert t5.spelt("{ñ}\nñ") == ["{", "ñ", "}", "ñ"]


@pytest.mark.parametrize("family", FAMILIES)
@settings(deadline=None, max_examples=40)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs", "Cn", "Co"]), max_size=30),
        st.text("{}|«»\N{PRIME}\n a1bf;<\\", max_size=20),
    ).map(regular_text)
)
@example(LIST)
@example("\N{PRIME}7b; is how a brace is spelt")
@example(
    "e\N{COMBINING ACUTE ACCENT} \N{LOWER ONE EIGHTH BLOCK} \N{LATIN SMALL LIGATURE FI} \N{VULGAR FRACTION ONE HALF}\t."
)
def test_what_is_written_is_read_back(family: str, text: str) -> None:
    written = load(family)
    assert written.read(through_tokens(family, written.write(text))).strip() == text.strip()


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "t5"])
def test_other_tokenizers_write_everything_as_it_is(family: str) -> None:
    for text in (LIST, "5\N{PRIME}, {a} | «b»  </s>\n\n  - c \N{SLIGHTLY SMILING FACE} 中文"):
        assert load(family).write(text) == text
        assert load(family).read(text) == text


def test_a_wrong_spelling_stays_as_it_is() -> None:
    t5 = load("t5")
    for text in ("\N{PRIME}zz;", "\N{PRIME}41", "\N{PRIME};", "\N{PRIME}110000;", "\N{PRIME}d800;"):
        assert t5.read(text) == text
    assert t5.read("a|b|  «") == "a\nb\n {{"
