"""The frozen test rows in a recipe's placeholder mode, and all that is told of an answer to each of them.

Every system is judged by the same ``Yardstick``: beside its reference (``metrics.py``), by what it makes up
(``fidelity.py``), by rules for errors (``errors.py``) and by how it is put (``rubric.py``).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.scoring.answer_errors import AnswerNorms, answer_errors
from cs_pipeline.evaluate.scoring.fidelity import fidelity
from cs_pipeline.evaluate.scoring.metrics import row_statistics
from cs_pipeline.evaluate.scoring.rubric import rubric
from cs_pipeline.llm.prompt import Context, RetrievedText, earlier_turns
from cs_pipeline.recipe import Recipe
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.text.placeholders import apply


class FrozenTestSet:
    """The test rows, the training rows beside them, and a judge of answers' intents that was trained on these."""

    def __init__(self, recipe: Recipe, lake: DataLake) -> None:
        def read(side: str) -> pd.DataFrame:
            table = lake.read("prepare", f"{side}_split")
            frame = table.to_pandas()
            questions = zip(frame["instruction"], frame["row_id"], strict=True)
            answers = zip(frame["response"], frame["row_id"], strict=True)
            contexts = zip(map(earlier_turns, table.column("context").to_pylist()), frame["row_id"], strict=True)
            return frame.assign(
                instruction=[apply(text, self.mode, "customer", row) for text, row in questions],
                response=[apply(text, self.mode, "agent", row) for text, row in answers],
                with_placeholders=frame["response"],
                context=[[(who, apply(text, self.mode, who, row)) for who, text in turns] for turns, row in contexts],
            )

        self.mode = recipe.placeholders
        self.train, self.test = read("train"), read("test")
        self.questions = self.test["instruction"].tolist()
        self.contexts: list[Context] = self.test["context"].tolist()
        self.questions_with_context = [_asked(*row) for row in zip(self.contexts, self.questions, strict=True)]
        self.references = self.test["response"].tolist()
        self.predicted_intents = self.test["predicted_intent"].tolist()
        answers, intents = self.train["response"].tolist(), self.train["intent"].tolist()
        self._judge = TextClassifier.fit(answers, intents, "words")
        self._norms = AnswerNorms.of(answers, intents)
        self.answer_classifier_accuracy = float(self._right_intents(self.references).mean())

    def score(
        self, answers: list[str], found: Sequence[Sequence[RetrievedText]] | None = None, **given: Any
    ) -> pd.DataFrame:
        """Row statistics of one system's ``answers`` to all test rows, to which it read the texts ``found``, None for none;
        ``given`` is what it alone knows, of CALLER_COLUMNS."""
        frame = row_statistics(self.questions_with_context, answers, self.references)
        stopped = given.get("stopped", np.nan)
        alone = self.score_without_references(answers, stopped, found)
        return frame.assign(row_id=self.test["row_id"].to_numpy(), answer=answers, **given, **alone)

    def score_without_references(
        self, answers: list[str], stopped: Any = np.nan, found: Sequence[Sequence[RetrievedText]] | None = None
    ) -> pd.DataFrame:
        """What is told of ``answers`` without likening their words to the references': those can be looked at too.

        ``stopped`` is 1 or 0 for each answer, or NaN where no model wrote them. ``fabricates`` is 1 where an answer has a
        fabricated fact.
        """
        right = self._right_intents(answers)
        rows, intents = self.test["row_id"].tolist(), self.test["intent"].tolist()
        ended = np.broadcast_to(np.asarray(stopped, float), len(answers))
        read = (
            self.questions_with_context
            if found is None
            else [with_retrieved_texts(*row) for row in zip(self.questions_with_context, found, strict=True)]
        )
        kept = fidelity(read, answers, self.test["with_placeholders"].tolist(), rows, self.mode)
        wrong = answer_errors(
            self._norms, self.questions_with_context, answers, intents, right.tolist(), ended.tolist()
        )
        return pd.concat([kept, wrong, rubric(self.questions_with_context, answers)], axis=1).assign(
            fabricates=(kept["fabricated"] > 0).astype(float), right_intent=right
        )

    def classify_answers(self, answers: list[str]) -> list[str]:
        """Which intent's answers a classifier that was trained on training answers takes ``answers`` for."""
        return list(self._judge.predict(answers)[0])

    def _right_intents(self, answers: list[str]) -> np.ndarray:
        return (np.array(self.classify_answers(answers)) == self.test["intent"].to_numpy()).astype(float)


def with_retrieved_texts(asked: str, found: Sequence[RetrievedText]) -> str:
    """All that stands before an answer: the texts ``found``, then what was ``asked``."""
    return "\n".join([*(one.text for one in found), asked])


def _asked(context: Context, question: str) -> str:
    """The question, after the earlier turns of its conversation where it has some."""
    return "\n".join([*(f"{who.capitalize()}: {text}" for who, text in context), "", question]) if context else question
