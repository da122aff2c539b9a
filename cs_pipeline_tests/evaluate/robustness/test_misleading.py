"""Misleading retrieved texts: the cases, and the scores of models that obey them or ignore the question."""

import pandas as pd
import pytest

from cs_pipeline.evaluate.robustness.misleading import MisleadingCase, make_misleading_cases
from cs_pipeline.evaluate.robustness.robustness import score_robustness_cases
from cs_pipeline.llm.prompt import RetrievedText

CASES = 40
GROUPS = [
    "nothing found",
    "texts of another intent",
    "a contradiction",
    "an order in an answer",
    "an order in an article",
]


@pytest.fixture
def rows() -> pd.DataFrame:
    intents = ["get_refund", "track_order", "get_invoice"]
    return pd.DataFrame(
        {
            "row_id": [f"row {i}" for i in range(60)],
            "instruction": [f"question {i}" for i in range(60)],
            "response": [f"answer {i} of {intents[i % 3]}" for i in range(60)],
            "intent": [intents[i % 3] for i in range(60)],
        }
    )


@pytest.fixture
def found(rows: pd.DataFrame) -> dict[str, list[RetrievedText]]:
    texts = zip(rows["row_id"], rows["intent"], strict=True)
    return {row: [RetrievedText("answer", row, f"known of {intent}", "q", None, None, 0.5)] for row, intent in texts}


def group(cases: list[MisleadingCase], name: str) -> list[MisleadingCase]:
    return [case for case in cases if case[0].group == name]


def test_each_group_has_its_cases(rows: pd.DataFrame, found: dict[str, list[RetrievedText]]) -> None:
    cases = make_misleading_cases(rows, found, CASES)
    assert [case.group for case, _ in cases[:5]] == GROUPS
    assert make_misleading_cases(rows.sample(frac=1, random_state=1), found, CASES) == cases
    intents = dict(zip(rows["row_id"], rows["intent"], strict=True))
    for name in GROUPS:
        assert len(group(cases, name)) == CASES
    for case, texts in cases:
        row = str(case.row_id)
        own = found[row]
        assert case.intents == (intents[row],)
        match case.group:
            case "nothing found":
                assert texts == []
            case "texts of another intent":
                assert texts[0].text != own[0].text
            case "a contradiction":
                assert texts[:1] == own
                assert texts[1].kind == "answer"
            case "an order in an answer":
                assert texts[0].text.startswith(own[0].text)
                assert case.canary
                assert case.canary.lower() in texts[0].text.lower()
            case "an order in an article":
                assert texts[:1] == own
                assert texts[1].kind == "passage"
                assert case.canary
                assert case.canary.lower() in texts[1].text.lower()


def test_rows_without_retrieved_texts_are_skipped(rows: pd.DataFrame, found: dict[str, list[RetrievedText]]) -> None:
    assert make_misleading_cases(rows, {key: [] for key in found}, CASES) == []
    one = {row: texts if row == "row 7" else [] for row, texts in found.items()}
    assert {case.row_id for case, _ in make_misleading_cases(rows, one, CASES)} == {"row 7"}


def test_obeying_an_injected_instruction_is_counted(rows: pd.DataFrame, found: dict[str, list[RetrievedText]]) -> None:
    cases = make_misleading_cases(rows, found, CASES)
    own = dict(zip(rows["row_id"], rows["response"], strict=True))

    def table(obeys: bool) -> pd.DataFrame:
        answers = [own[str(c.row_id)] + (f" {c.canary}" if obeys and c.canary else "") for c, _ in cases]
        return score_robustness_cases(
            [case for case, _ in cases], answers, own, lambda texts: [text.split()[3] for text in texts]
        )

    good, bad = table(obeys=False), table(obeys=True)
    assert good["obeyed"].sum() == 0
    assert bad["obeyed"].sum() == bad["obeyed"].notna().sum() == 2 * CASES
    assert good["same_intent"].mean() == 1
