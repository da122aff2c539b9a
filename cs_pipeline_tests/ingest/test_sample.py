import hashlib
import os
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import yaml

from cs_pipeline.ingest import sample
from cs_pipeline.ingest.bitext_file import BITEXT_COLUMNS
from cs_pipeline.ingest.sample import sample_rows

GRAMMAR_TEXT = Path(sample.__file__).with_suffix(".yaml").read_text(encoding="utf-8")
GRAMMAR = yaml.safe_load(GRAMMAR_TEXT)
PLACEHOLDER = re.compile(r"\{\{[^{}]+\}\}")


def one_of(words: list[str]) -> re.Pattern[str]:
    return re.compile(rf"\b({'|'.join(words)})\b", re.IGNORECASE)


MANNERS = GRAMMAR["manners"]
NEGATIONS = [word for word in MANNERS["expanded"] if word.endswith("n't")]
RUDE = one_of(MANNERS["rude"])
EXPANDED = one_of(list(MANNERS["expanded"].values()))
CONTRACTED = one_of(list(MANNERS["expanded"]))
COLLOQUIAL = one_of([*MANNERS["colloquial"].values(), *map(str.strip, MANNERS["colloquial_endings"])])
TRUE_OF: dict[str, Callable[[str], object]] = {
    "B": lambda text: True,
    "C": lambda text: "," in text or " and " in text,
    "E": lambda text: EXPANDED.search(text) and not CONTRACTED.search(text),
    "M": re.compile(r"\w{2,}ing\b").search,
    "N": one_of(["not", "cannot", *NEGATIONS, *(MANNERS["colloquial"][word] for word in NEGATIONS)]).search,
    "P": one_of(["please", "pls", "could", "would"]).search,
    "Q": lambda text: COLLOQUIAL.search(text) and not re.search(r"[A-Z]|[.?]$", PLACEHOLDER.sub("", text)),
    "W": RUDE.search,
}


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return sample_rows()


def of_flag(rows: pd.DataFrame, flag: str) -> pd.DataFrame:
    return rows[rows["flags"].str.contains(flag)]


def words(text: str) -> set[str]:
    return set(re.findall("[a-z]+", text.lower()))


def word_counts(texts: "pd.Series[str]") -> "pd.Series[int]":
    return texts.map(lambda text: len(text.split()))


def sha256(rows: pd.DataFrame) -> str:
    return hashlib.sha256(rows.to_csv(index=False).encode()).hexdigest()


def test_all_columns_are_text_without_missing_values(rows: pd.DataFrame) -> None:
    assert list(rows.columns) == list(BITEXT_COLUMNS)
    assert (rows.dtypes == "str").all()
    assert rows.notna().all(axis=None)
    assert (rows == rows.apply(lambda column: column.str.strip())).all(axis=None)


@pytest.mark.parametrize("count", [1, 100, 3000])
def test_there_are_as_many_rows_as_requested(count: int) -> None:
    assert len(sample_rows(count)) == count


def test_intents_have_equal_shares_and_come_in_order(rows: pd.DataFrame) -> None:
    shares = Counter(rows["intent"])
    assert len(shares) == 27
    assert rows["category"].nunique() == 11
    assert max(shares.values()) - min(shares.values()) <= 1
    assert rows["intent"].is_monotonic_increasing


def test_intents_and_categories_are_those_of_bitext(rows: pd.DataFrame, bitext_csv: Path) -> None:
    real = pd.read_csv(bitext_csv)
    assert list(real.columns) == list(BITEXT_COLUMNS)
    assert set(zip(rows["intent"], rows["category"], strict=True)) == set(
        zip(real["intent"], real["category"], strict=True)
    )


def test_the_same_seed_gives_the_same_rows_in_another_process(rows: pd.DataFrame) -> None:
    code = (
        "import sys; from cs_pipeline.ingest.sample import sample_rows; sample_rows().to_csv(sys.stdout, index=False)"
    )
    other = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, check=True
    )
    assert hashlib.sha256(other.stdout).hexdigest() == sha256(rows)


def test_another_seed_gives_other_rows(rows: pd.DataFrame) -> None:
    assert sha256(sample_rows(seed=1)) != sha256(rows)


def test_flags_are_sorted_letters_of_bitext(rows: pd.DataFrame) -> None:
    assert rows["flags"].str.fullmatch("B?C?E?I?K?L?M?N?P?Q?W?Z?").all()
    assert set("".join(rows["flags"])) == set("BCEIKLMNPQWZ")


@pytest.mark.parametrize("flag", TRUE_OF)
def test_flags_describe_the_text(rows: pd.DataFrame, flag: str) -> None:
    # A typing error may change the very word that a flag refers to.
    texts = of_flag(rows, flag).query("~flags.str.contains('Z')")["instruction"]
    assert len(texts) > 50
    assert [text for text in texts if not TRUE_OF[flag](text)] == []


def test_questions_and_keywords_look_like_it(rows: pd.DataFrame) -> None:
    written = rows[~rows["flags"].str.contains("Q")]
    assert of_flag(written, "I")["instruction"].str.endswith("?").all()
    assert not of_flag(rows, "K")["instruction"].str.contains(r"[.?]$").any()
    assert word_counts(of_flag(rows, "K")["instruction"]).median() < word_counts(rows["instruction"]).median()


def test_rude_words_and_typing_errors_are_always_flagged(rows: pd.DataFrame) -> None:
    known = words(GRAMMAR_TEXT)
    for flags, text in zip(rows["flags"], rows["instruction"], strict=True):
        assert ("Z" in flags) == bool(words(text) - known), text
        assert "W" in flags or not RUDE.search(text), text


@pytest.mark.parametrize("column", ["instruction", "response"])
def test_placeholders_are_complete_and_all_slots_are_filled(rows: pd.DataFrame, column: str) -> None:
    assert not rows[column].str.replace(PLACEHOLDER, "", regex=True).str.contains(r"[{}<>]").any()


def test_answers_repeat_what_the_question_names(rows: pd.DataFrame) -> None:
    named = rows[rows["instruction"].str.contains("{{", regex=False)]
    assert len(named) > 0.3 * len(rows)
    repeated = [
        set(PLACEHOLDER.findall(question)) <= set(PLACEHOLDER.findall(answer))
        for question, answer in zip(named["instruction"], named["response"], strict=True)
    ]
    # Not all of them: some answers spell a placeholder differently.
    assert 0.97 < sum(repeated) / len(repeated) < 1


def test_a_few_answers_spell_a_placeholder_in_another_way(rows: pd.DataFrame) -> None:
    others = [re.escape(spelling) for spellings in GRAMMAR["spellings"].values() for spelling in spellings]
    assert 0.002 < rows["response"].str.contains("|".join(others)).mean() < 0.03


def test_the_agent_uses_the_second_person(rows: pd.DataFrame) -> None:
    asked = rows[(rows["intent"] == "cancel_order") & rows["instruction"].str.contains("my last order", regex=False)]
    assert len(asked) > 3
    assert asked["response"].str.contains("your last order", regex=False).all()
    assert not asked["response"].str.contains("my last order", regex=False).any()


def test_no_pair_repeats_but_some_questions_do(rows: pd.DataFrame) -> None:
    assert not rows.duplicated(["instruction", "response"]).any()
    assert 0.05 < rows["instruction"].duplicated().mean() < 0.12
    assert rows.groupby("instruction")["intent"].nunique().max() == 1


def test_near_duplicates_make_small_clusters(rows: pd.DataFrame) -> None:
    clustered = total = 0
    for _, texts in rows.groupby("intent")["instruction"]:
        sizes = cluster_sizes([*dict.fromkeys(texts)])
        assert max(sizes) <= 0.15 * sum(sizes)
        clustered += sum(size for size in sizes if size > 1)
        total += sum(sizes)
    assert 0.1 < clustered / total < 0.3


def cluster_sizes(texts: list[str]) -> list[int]:
    """Sizes of the connected components of ``texts`` at Jaccard 0.8 on 4-character shingles."""
    shingles = [{text[i : i + 4] for i in range(len(text) - 3)} for text in (text.lower() for text in texts)]
    cluster = list(range(len(texts)))
    for i, a in enumerate(shingles):
        for j, b in enumerate(shingles[:i]):
            if len(a & b) >= 0.8 * len(a | b):
                cluster = [cluster[j] if name == cluster[i] else name for name in cluster]
    return list(Counter(cluster).values())


def test_every_intent_has_several_answers_of_good_length(rows: pd.DataFrame) -> None:
    assert word_counts(rows["response"]).between(30, 110).all()
    for intent, texts in rows.groupby("intent")["response"]:
        bodies = {body for case in GRAMMAR["intents"][intent]["cases"] for body in case["answers"]}
        assert len(bodies) >= 6, intent
        # The first words, up to a slot, identify the body of an answer.
        starts = [re.split(r"[<\n]", body)[0] for body in sorted(bodies)]
        assert all(texts.str.contains(start, regex=False).any() for start in starts), intent
    assert rows["response"].str.contains("\n1. ", regex=False).mean() > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_no_text_is_a_row_of_bitext(bitext_csv: Path, seed: int) -> None:
    def normalised(texts: "pd.Series[str]") -> set[str]:
        return set(texts.str.casefold().str.replace(r"[^a-z0-9{}]+", " ", regex=True).str.strip())

    real, own = pd.read_csv(bitext_csv), sample_rows(seed=seed)
    for column in ("instruction", "response"):
        assert not normalised(own[column]) & normalised(real[column])
