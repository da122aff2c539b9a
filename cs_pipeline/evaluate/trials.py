"""What a loaded model is put through beside the test rows: customers who write otherwise, general questions, the clock.

The suite of ``robustness.py`` shows what it does with odd and hostile questions. The probe (``probe.yaml``, 24 things that
everybody knows) is asked of the base and of the tuned model in the same way: what the base knew and the tuned model does
not, the training has made it forget, or answer as a support desk does. One answer at a time tells the seconds that a lone
customer waits.
"""

import re
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from cs_pipeline.evaluate.cost import Run
from cs_pipeline.evaluate.robustness import cases, judged
from cs_pipeline.evaluate.yardstick import Yardstick
from cs_pipeline.model import SupportModel
from cs_pipeline.prepare.classifier import TextClassifier
from cs_pipeline.yaml_file import read_yaml

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


def try_out(model: SupportModel, classifier: Path, rows: Yardstick, plain: pd.DataFrame, run: Run) -> Trials:
    """Puts ``model`` through all of them.

    ``classifier`` is the folder of the one that routes its questions, ``plain`` what it answered to the test rows (columns
    row_id and answer) in ``run``.
    """
    odd = cases(rows.test)
    texts = [case.text for case in odd]
    answers = _answers(model, classifier, texts)
    plain_answers = dict(zip(plain["row_id"], plain["answer"], strict=True))
    probe = read_yaml(Path(__file__).with_name("probe.yaml"))
    said = _answers(model, classifier, list(probe))
    right = [float(_holds(*pair)) for pair in zip(said, probe.values(), strict=True)]
    return Trials(
        judged(odd, answers, plain_answers, rows.intents_of, model.recipe.prompt.system, rows.mode),
        pd.DataFrame({"question": list(probe), "answer": said, "right": right}),
        run,
        [_seconds(model, rows, place) for place in range(min(ALONE, len(rows.questions)))],
    )


def _answers(model: SupportModel, classifier: Path, texts: list[str]) -> list[str]:
    """One for each of ``texts``; nothing where a text is too long for the model, for that is what a customer gets of it."""
    routes = model.recipe.prompt.route == "intent"
    intents = list(TextClassifier.load(classifier).predict(texts)[0]) if routes else [None] * len(texts)
    readable = [place for place, pair in enumerate(zip(texts, intents, strict=True)) if model.has_room(*pair)]
    found = model.answer([texts[i] for i in readable], [intents[i] for i in readable], [()] * len(readable))
    by_place = {place: answer.text for place, answer in zip(readable, found, strict=True)}
    return [by_place.get(place, "") for place in range(len(texts))]


def _seconds(model: SupportModel, rows: Yardstick, place: int) -> float:
    started = time.monotonic()
    model.answer([rows.questions[place]], [rows.intents[place]], [rows.contexts[place]])
    return time.monotonic() - started


def _holds(answer: str, right: list[str]) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", answer, re.IGNORECASE) for word in right)
