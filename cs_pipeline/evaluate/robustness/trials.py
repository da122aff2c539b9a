"""Tests of a loaded model beyond the test rows: unusual questions, general knowledge, and the latency of single answers.

The robustness suite (``robustness.py``) shows how the model handles unusual and hostile questions. Every model is also
asked the probe (``probe.yaml``, 24 questions of common knowledge). If the base answers one of them correctly and the
tuned model does not, the tuned model forgot the answer in training or now answers like a support desk. Single answers
are timed to measure the latency when only one customer is asking.

If the recipe uses retrieval, the prompts contain the texts that the index returns, as they would for a customer, except
answers from the conversation of the test row that a question was made from. ``misleading.py`` tries other texts.
"""

import re
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.robustness.robustness import RobustnessCase, make_cases, score_robustness_cases
from cs_pipeline.evaluate.scoring.cost import GenerationRun
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, with_retrieved_texts
from cs_pipeline.llm.model import Answer, Contender
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.retrieval.router import PromptIntents


@dataclass(frozen=True)
class Trials:
    """``robustness`` has ROBUSTNESS_COLUMNS. ``probe`` has the columns question, answer and right (0 or 1). ``run``
    measures the answering of the test rows. ``latencies`` are the seconds of single answers."""

    robustness: pd.DataFrame
    probe: pd.DataFrame
    run: GenerationRun
    latencies: list[float]


def run_trials(
    model: Contender,
    intents: PromptIntents,
    index: RetrievalIndex | None,
    test_set: FrozenTestSet,
    test_answers: pd.DataFrame,
    run: GenerationRun,
) -> Trials:
    """Runs all trials of ``model`` except those with misleading texts.

    ``intents`` predicts the intents that the prompts name, and ``index`` provides the retrieved texts. ``test_answers``
    are the model's answers to the test rows (columns row_id and answer), from ``run``.
    """
    cases = make_cases(test_set.test, test_set.settings.robustness_cases)
    timed = min(test_set.settings.timed_answers, len(test_set.questions))
    probe = read_yaml(Path(__file__).with_name("probe.yaml"))
    probe_answers = [answer.text for answer in _ask(model, intents, index, list(probe))]
    right = [float(_contains(*pair)) for pair in zip(probe_answers, probe.values(), strict=True)]
    own = dict(zip(test_set.test["row_id"], test_set.own_rows, strict=True))
    own_rows = [[*own.get(case.row_id, []), *own.get(case.second_row_id, [])] for case in cases]
    answers = _ask(model, intents, index, [case.text for case in cases], own_rows)
    return Trials(
        score_answers_to_cases(model, test_set, cases, answers, test_answers),
        pd.DataFrame({"question": list(probe), "answer": probe_answers, "right": right}),
        run,
        [_time_answer(model, index, test_set, i) for i in range(timed)],
    )


def score_answers_to_cases(
    model: Contender,
    test_set: FrozenTestSet,
    cases: Sequence[RobustnessCase],
    answers: Sequence[Answer],
    test_answers: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``score_robustness_cases`` for the ``answers`` of ``model``; ``test_answers`` as in ``run_trials``."""
    given = [with_retrieved_texts(case.text, answer.retrieved) for case, answer in zip(cases, answers, strict=True)]
    return score_robustness_cases(
        cases,
        [answer.text for answer in answers],
        dict(zip(test_answers["row_id"], test_answers["answer"], strict=True)),
        test_set.classify_answers,
        model.recipe.prompt.system,
        test_set.mode,
        given,
    )


def answer_each(
    model: Contender, texts: list[str], intents: list[str | None], retrieved: Sequence[Sequence[RetrievedText]]
) -> list[Answer]:
    """One answer per text. It is empty if the text is too long for the model: a customer would get no answer either."""
    fitting = [i for i, pair in enumerate(zip(texts, intents, strict=True)) if model.has_room(*pair)]
    answers = model.answer(
        [texts[i] for i in fitting],
        [intents[i] for i in fitting],
        [()] * len(fitting),
        retrieved=[retrieved[i] for i in fitting],
    )
    by_index = dict(zip(fitting, answers, strict=True))
    return [by_index.get(i, Answer("", False, 0)) for i in range(len(texts))]


def _ask(
    model: Contender,
    intents: PromptIntents,
    index: RetrievalIndex | None,
    texts: list[str],
    own_rows: Sequence[Collection[str]] | None = None,
) -> list[Answer]:
    routed = intents(texts)
    return answer_each(model, texts, routed, _retrieve(model, index, texts, routed, own_rows))


def _retrieve(
    model: Contender,
    index: RetrievalIndex | None,
    texts: Sequence[str],
    intents: Sequence[str | None],
    own_rows: Sequence[Collection[str]] | None,
) -> list[list[RetrievedText]]:
    return retrieve(index, model.recipe.prompt, model.recipe.placeholders, texts, intents, own_rows=own_rows)


def _time_answer(model: Contender, index: RetrievalIndex | None, test_set: FrozenTestSet, i: int) -> float:
    started = time.monotonic()
    question, intent = [test_set.searched[i]], [test_set.predicted_intents[i]]
    retrieved = _retrieve(model, index, question, intent, [test_set.own_rows[i]])
    model.answer(question, intent, [test_set.contexts[i]], retrieved=retrieved)
    return time.monotonic() - started


def _contains(answer: str, words: list[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words)
