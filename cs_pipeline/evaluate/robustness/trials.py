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
from cs_pipeline.evaluate.robustness.robustness import ROWS, RobustnessCase, cases, dealt, score_cases
from cs_pipeline.evaluate.scoring.cost import Run
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, told
from cs_pipeline.llm.model import Answer, SupportModel, memory_used
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.text.classifier import TextClassifier

ALONE = 20
"""Questions answered one at a time: few, for of a large model each takes seconds. p95 is then the second slowest."""


@dataclass(frozen=True)
class Trials:
    """``robustness`` is the table of ``robustness.judged``; ``probe`` has the columns question, answer and right (0 or 1);
    ``run`` is that over the test rows, and ``alone`` are the seconds of single answers."""

    robustness: pd.DataFrame
    probe: pd.DataFrame
    run: Run
    alone: list[float]


def try_out(
    model: SupportModel,
    classifier: Path,
    index: RetrievalIndex | None,
    rows: FrozenTestSet,
    plain: pd.DataFrame,
    run: Run,
) -> Trials:
    """Puts ``model`` through all of them but the misleading texts.

    ``classifier`` is the folder of the one that routes its questions, ``index`` what it retrieves from, ``plain`` what it
    answered to the test rows (columns row_id and answer) in ``run``.
    """
    odd = cases(rows.test)
    texts = [case.text for case in odd]
    intents = _intents(model, classifier, texts)
    answers = _answers(model, texts, intents, _found(model, index, texts, intents))
    read = [told(text, answer.found) for text, answer in zip(texts, answers, strict=True)]
    said, plain_answers = [answer.text for answer in answers], _by_row(plain)
    system_line = model.recipe.prompt.system
    probe = read_yaml(Path(__file__).with_name("probe.yaml"))
    general, routed = list(probe), _intents(model, classifier, list(probe))
    known = [answer.text for answer in _answers(model, general, routed, _found(model, index, general, routed))]
    right = [float(_holds(*pair)) for pair in zip(known, probe.values(), strict=True)]
    return Trials(
        score_cases(odd, said, plain_answers, rows.intents_of, system_line, rows.mode, read),
        pd.DataFrame({"question": general, "answer": known, "right": right}),
        run,
        [_seconds(model, index, rows, place) for place in range(min(ALONE, len(rows.questions)))],
    )


def mislead(
    model: SupportModel,
    classifier: Path,
    rows: FrozenTestSet,
    found: Sequence[Sequence[RetrievedText]],
    plain: pd.DataFrame,
) -> pd.DataFrame:
    """The table of ``robustness.judged`` of cases in which ``model`` reads other texts than those ``found`` for the test
    rows; ``plain`` is as in ``try_out``."""
    made = misled(rows.test, dict(zip(rows.test["row_id"], found, strict=True)))
    texts = [case.text for case, _ in made]
    answers = _answers(model, texts, _intents(model, classifier, texts), [others for _, others in made])
    read = [told(text, answer.found) for text, answer in zip(texts, answers, strict=True)]
    said = [answer.text for answer in answers]
    system_line = model.recipe.prompt.system
    return score_cases([case for case, _ in made], said, _by_row(plain), rows.intents_of, system_line, rows.mode, read)


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
    question, intent, context = [rows.questions[place]], [rows.intents[place]], [rows.contexts[place]]
    model.answer(question, intent, context, found=_found(model, index, question, intent))
    return time.monotonic() - started


def _holds(answer: str, right: list[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in right)


def ask_test_rows(
    system: str,
    model: SupportModel,
    rows: FrozenTestSet,
    found: Sequence[Sequence[RetrievedText]],
    report: Callable[[str], None],
) -> tuple[pd.DataFrame, list[Answer], Run]:
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

    answers = model.answer(rows.questions, rows.intents, rows.contexts, progress, found)
    run = Run(len(answers), sum(answer.tokens for answer in answers), time.monotonic() - started, memory_used())
    likelihoods = model.likelihoods(rows.questions, rows.intents, rows.contexts, rows.references, found)
    statistics = rows.statistics(
        [answer.text for answer in answers],
        [answer.found for answer in answers],
        nll=[likelihood.nll for likelihood in likelihoods],
        answer_tokens=[likelihood.tokens for likelihood in likelihoods],
        answer_chars=[len(reference) for reference in rows.references],
        stopped=[float(answer.stopped) for answer in answers],
    )
    return statistics, answers, run


Misled = tuple[RobustnessCase, list[RetrievedText]]


def misled(rows: pd.DataFrame, found: Mapping[str, Sequence[RetrievedText]], seed: int = 0) -> list[Misled]:
    """ROWS cases of each group, of these test ``rows`` as in ``robustness.cases``; ``found`` are each row's texts by row_id.

    Rows without any found text are left out. Equal rows and seed give equal cases.
    """
    those = [row for row in dealt(rows, f"{seed} misled") if found[row["row_id"]]][:ROWS]
    rng = random.Random(digest(seed, "misled"))
    denials, orders = cycle(_texts()["denials"]), cycle(_texts()["instructions"])
    cases: list[Misled] = []
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
