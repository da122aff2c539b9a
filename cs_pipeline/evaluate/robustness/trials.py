"""Tests of a loaded model beyond the test rows: unusual questions, general knowledge, and the latency of single answers.

The robustness suite (``robustness.py``) shows how it handles unusual and hostile questions. The base and the tuned model are
both asked the probe (``probe.yaml``, 24 questions of common knowledge). If only the base answers a question correctly, the
tuned model forgot the answer in training or now answers like a support desk. Single answers are timed to measure the latency
when only one customer is asking.

If the recipe uses retrieval, the prompts contain the texts that the index returns, as they would for a customer.
``misleading.py`` tries other texts.
"""

import re
import time
from collections.abc import Sequence
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
from cs_pipeline.text.classifier import TextClassifier


@dataclass(frozen=True)
class Trials:
    """``robustness`` has ROBUSTNESS_COLUMNS. ``probe`` has the columns question, answer and right (0 or 1). ``run`` is the
    answering of the test rows. ``latencies`` are the seconds of single answers."""

    robustness: pd.DataFrame
    probe: pd.DataFrame
    run: GenerationRun
    latencies: list[float]


def run_trials(
    model: Contender,
    classifier: Path,
    index: RetrievalIndex | None,
    test_set: FrozenTestSet,
    test_answers: pd.DataFrame,
    run: GenerationRun,
) -> Trials:
    """Runs all trials of ``model`` except those with misleading texts.

    ``classifier`` is the folder of the classifier that predicts the intents for the prompts, and ``index`` provides the
    retrieved texts. ``test_answers`` are the model's answers to the test rows (columns row_id and answer), from ``run``.
    """
    cases = make_cases(test_set.test, test_set.settings.robustness_cases)
    timed = min(test_set.settings.timed_answers, len(test_set.questions))
    probe = read_yaml(Path(__file__).with_name("probe.yaml"))
    probe_answers = [answer.text for answer in _ask(model, classifier, index, list(probe))]
    right = [float(_contains(*pair)) for pair in zip(probe_answers, probe.values(), strict=True)]
    answers = _ask(model, classifier, index, [case.text for case in cases])
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


def predict_intents(model: Contender, classifier: Path, texts: list[str]) -> list[str | None]:
    """The intent that the prompt for each text names; all None if the recipe of ``model`` does not route by intent."""
    if model.recipe.prompt.route != "intent":
        return [None] * len(texts)
    return list(TextClassifier.load(classifier).predict(texts)[0])


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


def _ask(model: Contender, classifier: Path, index: RetrievalIndex | None, texts: list[str]) -> list[Answer]:
    intents = predict_intents(model, classifier, texts)
    return answer_each(model, texts, intents, _retrieve(model, index, texts, intents))


def _retrieve(
    model: Contender, index: RetrievalIndex | None, texts: Sequence[str], intents: Sequence[str | None]
) -> list[list[RetrievedText]]:
    return retrieve(index, model.recipe.prompt, model.recipe.placeholders, texts, intents)


def _time_answer(model: Contender, index: RetrievalIndex | None, test_set: FrozenTestSet, i: int) -> float:
    started = time.monotonic()
    question, intent = [test_set.questions[i]], [test_set.predicted_intents[i]]
    model.answer(question, intent, [test_set.contexts[i]], retrieved=_retrieve(model, index, question, intent))
    return time.monotonic() - started


def _contains(answer: str, words: list[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in words)
