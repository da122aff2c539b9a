"""The tones differ measurably, and change neither facts nor courtesy."""

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bench import tone as bench
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.serve.desk.tone import Tone, apply_tone, salutation
from cs_pipeline.text.facts import facts

FRIENDLY, PROFESSIONAL = Tone.FRIENDLY, Tone.PROFESSIONAL


def assert_apart(tones: dict[str, dict[str, Any]]) -> None:
    neutral, friendly, professional = (tones[tone.value] for tone in Tone)
    assert friendly["contractions"] > neutral["contractions"] + 0.2
    assert friendly["contractions"] > 0.8
    assert neutral["contractions"] > 0.1
    assert professional["contractions"] == professional["exclamation_marks"] == 0
    assert friendly["exclamation_marks"] > neutral["exclamation_marks"] > 0
    assert (friendly["greets"], neutral["addresses"]) == (1, 0)
    assert neutral["greets"] < 0.1
    assert professional["addresses"] > 0.9
    for figures in tones.values():
        assert figures["facts_kept"] > 0.995
        assert figures["courtesy"] > neutral["courtesy"] - 0.01


def test_tones_of_the_sample_answers_differ_measurably() -> None:
    assert_apart(bench.measure(sample_rows(810)["response"].tolist()[::5])["tones"])


def test_tones_of_real_answers_differ_measurably(bitext_csv: Path) -> None:
    rows = pd.read_csv(bitext_csv, usecols=["response"], dtype=str).sample(120, random_state=5)
    assert_apart(bench.measure(rows["response"].tolist())["tones"])


@pytest.mark.parametrize(
    ("tone", "raw", "expected"),
    [
        (FRIENDLY, "I am sure that we will do it.", "I'm sure that we'll do it."),
        (FRIENDLY, "You do not have to; I have received it.", "You don't have to; I've received it."),
        (FRIENDLY, "Yes, I am. So it is.", "Yes, I am. So it is."),
        (FRIENDLY, "We have two shops and you have any choice.", "We have two shops and you have any choice."),
        (FRIENDLY, "It is not only cheap.", "It's not only cheap."),
        (FRIENDLY, "Click 'I am ready' or **Do not send**.", "Click 'I am ready' or **Do not send**."),
        (FRIENDLY, "For assistance regarding {{I am}}.", "For help about {{I am}}."),
        (PROFESSIONAL, "I'm sure we'll do it!!", "I am sure we will do it."),
        (PROFESSIONAL, "Can't you? Won't it? Don't they?", "Can you not? Will it not? Do they not?"),
        (PROFESSIONAL, "It’s been sent, that's all, let’s see.", "It has been sent, that is all, let us see."),
        (PROFESSIONAL, "I'd like it; you'd better go.", "I would like it; you had better go."),
        (PROFESSIONAL, "Oh no! the parcel's late 😀.", "The parcel's late."),
        (PROFESSIONAL, "Absolutely! I'm super thrilled to help.", "Certainly. I am pleased to help."),
        (PROFESSIONAL, 'Press "Let\'s go!" now!', 'Press "Let\'s go!" now.'),
        (Tone.NEUTRAL, "I'm here! I am here!", "I'm here! I am here!"),
    ],
)
def test_a_sentence_in_each_tone(tone: Tone, raw: str, expected: str) -> None:
    assert apply_tone(raw, tone) == expected
    assert apply_tone(expected, tone) == expected


def test_facts_labels_and_line_breaks_stay_the_same() -> None:
    for raw in sample_rows(810, seed=2)["response"][::4]:
        for tone in Tone:
            toned = apply_tone(raw, tone)
            assert [fact.values for fact in facts(toned)] == [fact.values for fact in facts(raw)]
            assert toned.count("\n") == raw.count("\n")
            assert toned.count("{{") == raw.count("{{")


def test_the_salutation_depends_on_tone_and_name() -> None:
    name = {"Client Name": "Jane Doe", "Client First Name": "Jane"}
    assert salutation("We have it.", FRIENDLY, name) == "Hi Jane! "
    assert salutation("We have it.", FRIENDLY, {}) == "Hi! "
    assert salutation("We have it.", PROFESSIONAL, name) == "Dear Jane Doe,\n\n"
    assert salutation("Good day. We have it.", PROFESSIONAL, name) == ""
    assert salutation("We have it.", Tone.NEUTRAL, name) == ""
