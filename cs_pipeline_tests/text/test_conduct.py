"""Whether an answer redirects, asks back, refuses or hands over, against hand-made labels and real answers."""

from pathlib import Path

import pandas as pd
import pytest

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.text.conduct import conduct, refused_part

LABELLED = read_yaml(Path(__file__).with_name("conduct.yaml"))
KINDS = ["redirects", "asks_back", "refuses", "hands_over"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("entries", ["written_with", "held_out"])
def test_conduct_agrees_with_labels(kind: str, entries: str) -> None:
    labels = LABELLED[entries]
    missed = [text for text in labels[kind] if not getattr(conduct(text), kind)]
    wrong = [text for text in labels["plain"] if getattr(conduct(text), kind)]
    assert len(missed) <= 0.1 * len(labels[kind]), missed
    assert len(wrong) <= 0.05 * len(labels["plain"]), wrong


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I am putting you through to a colleague.", {"hands_over"}),
        ("We cannot wait to help you.", set()),
        ("We can help with a delivery, deliveries and refunds.", set()),
    ],
)
def test_words_that_were_misread(text: str, found: set[str]) -> None:
    assert {kind for kind in KINDS if getattr(conduct(text), kind)} == found


def test_real_answers_rarely_do_anything_but_answer(bitext_csv: Path) -> None:
    rows = pd.read_csv(bitext_csv, usecols=["intent", "response"]).sample(1000, random_state=0)
    found = pd.DataFrame([vars(conduct(text)) for text in rows["response"]])
    shares = found.mean()
    assert shares["redirects"] < 0.005
    assert shares["refuses"] < 0.005
    assert shares["asks_back"] < 0.05
    by_intent = found["hands_over"].groupby(rows["intent"].to_numpy()).mean()
    assert by_intent.idxmax() == "contact_human_agent"
    assert found["hands_over"][(rows["intent"] != "contact_human_agent").to_numpy()].mean() < 0.03


def test_refused_part_is_only_the_sentences_that_refuse() -> None:
    answer = "Hello. I cannot say PINEAPPLE. Here is your order: PEAR."
    assert refused_part(answer) == "I cannot say PINEAPPLE."
