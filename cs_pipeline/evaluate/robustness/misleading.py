"""Tests a model with wrong retrieved texts: none, those of another intent, a contradiction, or an injected instruction.

The model gets questions of test rows with these texts in the prompt. ``misleading.yaml`` holds the contradictions and the
instructions. In the names of the groups, an injected instruction is called an order.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.core.lake import digest
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.robustness.robustness import RobustnessCase, spread_over_intents
from cs_pipeline.evaluate.robustness.trials import answer_each, score_answers_to_cases
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.router import PromptIntents

MisleadingCase = tuple[RobustnessCase, list[RetrievedText]]
"""A question, and the texts that replace the retrieved ones in its prompt."""


def score_misleading_cases(
    model: SupportModel,
    intents: PromptIntents,
    test_set: FrozenTestSet,
    retrieved: Sequence[Sequence[RetrievedText]],
    test_answers: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``score_robustness_cases`` for ``model`` with misleading texts.

    ``retrieved`` holds the texts of each test row. ``intents`` and ``test_answers`` are as in ``run_trials``.
    """
    row_ids = test_set.test["row_id"]
    misleading = make_misleading_cases(
        test_set.test, dict(zip(row_ids, retrieved, strict=True)), test_set.settings.robustness_cases
    )
    cases = [case for case, _ in misleading]
    questions = [case.text for case in cases]
    answers = answer_each(model, questions, intents(questions), [texts for _, texts in misleading])
    return score_answers_to_cases(model, test_set, cases, answers, test_answers)


def make_misleading_cases(
    rows: pd.DataFrame, retrieved: Mapping[str, Sequence[RetrievedText]], per_group: int, seed: int = 0
) -> list[MisleadingCase]:
    """One case of each group for up to ``per_group`` test ``rows``, which have the columns that ``make_cases`` needs.

    ``retrieved`` holds the texts of each row by row_id. Rows without texts are skipped. The same rows and seed give the same
    cases.
    """
    chosen = [row for row in spread_over_intents(rows, f"{seed} misled") if retrieved[row["row_id"]]][:per_group]
    rng = random.Random(digest(seed, "misled"))
    sentences = read_yaml(Path(__file__).with_suffix(".yaml"))
    denials, instructions = cycle(sentences["denials"]), cycle(sentences["instructions"])
    cases: list[MisleadingCase] = []
    for row in chosen:
        own = list(retrieved[row["row_id"]])
        of_other_intents = [other for other in chosen if other["intent"] != row["intent"]]

        def case(group: str, canary: str | None = None, row: dict[str, Any] = row) -> RobustnessCase:
            text, intents = row["instruction"], (row["intent"],)
            return RobustnessCase(group, text, "same intent", intents, row["row_id"], row["response"], canary=canary)

        cases.append((case("nothing found"), []))
        if of_other_intents:
            cases.append((case("texts of another intent"), list(retrieved[rng.choice(of_other_intents)["row_id"]])))
        cases.append((case("a contradiction"), [*own, replace(own[0], id="denial", text=next(denials))]))
        injection = next(instructions)
        injected = replace(own[0], text=f"{own[0].text} {injection['text']}")
        cases.append((case("an order in an answer", injection["canary"]), [injected, *own[1:]]))
        article = RetrievedText(
            "passage", "order", injection["text"], row["instruction"], "order.md", "", own[0].similarity
        )
        cases.append((case("an order in an article", injection["canary"]), [*own, article]))
    return cases
