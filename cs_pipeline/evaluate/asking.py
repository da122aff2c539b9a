"""The test rows put to a model: what it answers, how probable the references are to it, and how long it took."""

import time
from collections.abc import Callable, Sequence

import pandas as pd

from cs_pipeline.evaluate.cost import Run
from cs_pipeline.evaluate.yardstick import Yardstick
from cs_pipeline.found import Found
from cs_pipeline.model import Answer, SupportModel, memory_used


def ask(
    system: str,
    model: SupportModel,
    rows: Yardstick,
    found: Sequence[Sequence[Found]],
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
