"""What a loaded model is put through beside the test rows: customers who write otherwise, general questions, the clock.

The suite of ``robustness.py`` shows what it does with odd and hostile questions. The probe (``probe.yaml``, 24 things that
everybody knows) is asked of the base and of the tuned model in the same way: what the base knew and the tuned model does
not, the training has made it forget, or answer as a support desk does. One answer at a time tells the seconds that a lone
customer waits.

A recipe that retrieves is asked all of this with what the index gives, as a customer would; besides, with texts that
mislead it (``misleading.py``).
"""

import random
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import cycle
from pathlib import Path
from typing import Any

import pandas as pd

from cs_pipeline.core.lake import digest
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.robustness.robustness import CASES_PER_GROUP, RobustnessCase, make_cases, spread_over_intents, score_robustness_cases
from cs_pipeline.evaluate.scoring.cost import GenerationRun
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, with_retrieved_texts
from cs_pipeline.llm.model import Answer, SupportModel, peak_memory_gib
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.text.classifier import TextClassifier

TIMED_QUESTIONS = 20
"""Questions answered one at a time: few, for of a large model each takes seconds. p95 is then the second slowest."""


@dataclass(frozen=True)
class Trials:
    """``robustness`` is the table of ``robustness.judged``; ``probe`` has the columns question, answer and right (0 or 1);
    ``run`` is that over the test rows, and ``latencies`` are the seconds of single answers."""

    robustness: pd.DataFrame
    probe: pd.DataFrame
    run: GenerationRun
    latencies: list[float]


def run_trials(
    model: SupportModel,
    classifier: Path,
    index: RetrievalIndex | None,
    rows: FrozenTestSet,
    plain: pd.DataFrame,
    run: GenerationRun,
) -> Trials:
    """Puts ``model`` through all of them but the misleading texts.

    ``classifier`` is the folder of the one that routes its questions, ``index`` what it retrieves from, ``plain`` what it
    answered to the test rows (columns row_id and answer) in ``run``.
    """
    odd = make_cases(rows.test)
    texts = [case.text for case in odd]
    intents = _intents(model, classifier, texts)
    answers = _answers(model, texts, intents, _found(model, index, texts, intents))
    read = [with_retrieved_texts(text, answer.found) for text, answer in zip(texts, answers, strict=True)]
    said, plain_answers = [answer.text for answer in answers], _by_row(plain)
    system_line = model.recipe.prompt.system
    probe = read_yaml(Path(__file__).with_name("probe.yaml"))
    general, routed = list(probe), _intents(model, classifier, list(probe))
    known = [answer.text for answer in _answers(model, general, routed, _found(model, index, general, routed))]
    right = [float(_holds(*pair)) for pair in zip(known, probe.values(), strict=True)]
    return Trials(
        score_robustness_cases(odd, said, plain_answers, rows.classify_answers, system_line, rows.mode, read),
        pd.DataFrame({"question": general, "answer": known, "right": right}),
        run,
        [_seconds(model, index, rows, place) for place in range(min(TIMED_QUESTIONS, len(rows.questions)))],
    )


def score_misleading_cases(
    model: SupportModel,
    classifier: Path,
    rows: FrozenTestSet,
    found: Sequence[Sequence[RetrievedText]],
    plain: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``robustness.judged`` of cases in which ``model`` reads other texts than those ``found`` for the test
    rows; ``plain`` is as in ``run_trials``."""
    made = make_misleading_cases(rows.test, dict(zip(rows.test["row_id"], found, strict=True)))
    texts = [case.text for case, _ in made]
    answers = _answers(model, texts, _intents(model, classifier, texts), [others for _, others in made])
    read = [with_retrieved_texts(text, answer.found) for text, answer in zip(texts, answers, strict=True)]
    said = [answer.text for answer in answers]
    system_line = model.recipe.prompt.system
    return score_robustness_cases([case for case, _ in made], said, _by_row(plain), rows.classify_answers, system_line, rows.mode, read)


def _by_row(plain: pd.DataFrame) -> dict[str, str]:
    return dict(zip(plain["row_id"], plain["answer"], strict=True))


def _intents(model: SupportModel, classifier: Path, texts: list[str]) -> list[str | None]:
    """What ``model`` is told that each of ``texts`` is about: None where it has no route."""
    routes = model.recipe.prompt.route == "intent"
    return list(TextClassifier.load(classifier).predict(texts)[0]) if routes else [None] * len(texts)


def _found(
    model: SupportModel, index: RetrievalIndex | None, texts: Sequence[str], intents: Sequence[str | None]
) -> list[list[RetrievedText]]:
    return retrieve(index, model.recipe.prompt, model.recipe.placeholders, texts, intents)


def _answers(
    model: SupportModel, texts: list[str], intents: list[str | None], found: Sequence[Sequence[RetrievedText]]
) -> list[Answer]:
    """One for each of ``texts``; nothing where a text is too long for the model, for that is what a customer gets of it."""
    readable = [place for place, pair in enumerate(zip(texts, intents, strict=True)) if model.has_room(*pair)]
    asked = [(texts[i], intents[i], (), found[i]) for i in readable]
    questions, routed, contexts, read = map(list, zip(*asked, strict=True)) if asked else ([], [], [], [])
    answers = model.answer(questions, routed, contexts, found=read)
    by_place = dict(zip(readable, answers, strict=True))
    return [by_place.get(place, Answer("", False, 0)) for place in range(len(texts))]


def _seconds(model: SupportModel, index: RetrievalIndex | None, rows: FrozenTestSet, place: int) -> float:
    started = time.monotonic()
    question, intent, context = [rows.questions[place]], [rows.predicted_intents[place]], [rows.contexts[place]]
    model.answer(question, intent, context, found=_found(model, index, question, intent))
    return time.monotonic() - started


def _holds(answer: str, right: list[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in right)


def answer_test_set(
    system: str,
    model: SupportModel,
    rows: FrozenTestSet,
    found: Sequence[Sequence[RetrievedText]],
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, list[Answer], GenerationRun]:
    """The row statistics of the answers of ``model`` to all test rows with these ``found`` texts, the answers, and the run.

    ``report`` gets lines of the progress, in which it is called ``system``.
    """
    started = said = time.monotonic()

    def progress(done: int) -> None:
        nonlocal said
        if time.monotonic() - said > 5 or done == len(rows.questions):
            said = time.monotonic()
            rate = done / (said - started)
            left = (len(rows.questions) - done) / rate
            report(f"{system}: {done}/{len(rows.questions)} answers, {rate:.1f} a second, {left:.0f} s left")

    answers = model.answer(rows.questions, rows.predicted_intents, rows.contexts, progress, found)
    run = GenerationRun(len(answers), sum(answer.tokens for answer in answers), time.monotonic() - started, peak_memory_gib())
    likelihoods = model.likelihoods(rows.questions, rows.predicted_intents, rows.contexts, rows.references, found)
    statistics = rows.score(
        [answer.text for answer in answers],
        [answer.found for answer in answers],
        nll=[likelihood.nll for likelihood in likelihoods],
        answer_tokens=[likelihood.tokens for likelihood in likelihoods],
        answer_chars=[len(reference) for reference in rows.references],
        stopped=[float(answer.stopped) for answer in answers],
    )
    return statistics, answers, run


MisleadingCase = tuple[RobustnessCase, list[RetrievedText]]


def make_misleading_cases(rows: pd.DataFrame, found: Mapping[str, Sequence[RetrievedText]], seed: int = 0) -> list[MisleadingCase]:
    """CASES_PER_GROUP cases of each group, of these test ``rows`` as in ``robustness.cases``; ``found`` are each row's texts by row_id.

    Rows without any found text are left out. Equal rows and seed give equal cases.
    """
    those = [row for row in spread_over_intents(rows, f"{seed} misled") if found[row["row_id"]]][:CASES_PER_GROUP]
    rng = random.Random(digest(seed, "misled"))
    denials, orders = cycle(_texts()["denials"]), cycle(_texts()["instructions"])
    cases: list[MisleadingCase] = []
    for row in those:
        own = list(found[row["row_id"]])
        strangers = [other for other in those if other["intent"] != row["intent"]]

        def case(group: str, canary: str | None = None, row: dict[str, Any] = row) -> RobustnessCase:
            text, intents = row["instruction"], (row["intent"],)
            return RobustnessCase(group, text, "same intent", intents, row["row_id"], row["response"], canary)

        cases.append((case("nothing found"), []))
        if strangers:
            cases.append((case("texts of another intent"), list(found[rng.choice(strangers)["row_id"]])))
        cases.append((case("a contradiction"), [*own, replace(own[0], id="denial", text=next(denials))]))
        order = next(orders)
        bent = replace(own[0], text=f"{own[0].text} {order['text']}")
        cases.append((case("an order in an answer", order["canary"]), [bent, *own[1:]]))
        article = RetrievedText(
            "passage", "order", order["text"], row["instruction"], "order.md", "", own[0].similarity
        )
        cases.append((case("an order in an article", order["canary"]), [*own, article]))
    return cases


@lru_cache(maxsize=1)
def _texts() -> dict[str, Any]:
    return read_yaml(Path(__file__).with_name("misleading.yaml"))
