"""Base, tuned, champion and the cheap baselines on the same frozen test rows."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cs_pipeline.errors import PipelineError
from cs_pipeline.evaluate.baselines import central_answers, nearest_answers, random_answers
from cs_pipeline.evaluate.comparison import compare
from cs_pipeline.evaluate.metrics import row_statistics
from cs_pipeline.lake import DataLake, atomic_folder, digest, file_sha256, read_json, write_json
from cs_pipeline.model import SupportModel
from cs_pipeline.placeholders import apply
from cs_pipeline.prepare.classifier import TextClassifier
from cs_pipeline.prompt import Context, earlier_turns
from cs_pipeline.recipe import Recipe, read_recipe
from cs_pipeline.tracking import Version
from cs_pipeline.train.adapter import Adapter, base_of, current_adapter
from cs_pipeline.train.base import base_of_version

CODE_VERSION = "2"
"""Raised when this stage gives other figures for the same model and rows."""

SYSTEMS = {
    "tuned": "tuned",
    "base": "its base, asked the same way",
    "champion": "current champion",
    "nearest": "answer of the nearest training question",
    "central": "most central answer of the predicted intent",
    "random": "a random training answer",
}
"""Who is judged, and how the report calls them. ``champion`` is there only when another version holds the alias."""


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluation.json`` holds, and whether equal input had been evaluated before."""

    facts: dict[str, Any]
    reused: bool


def evaluation_folder(recipe_name: str, lake: DataLake) -> Path:
    """Holds ``answers.parquet`` (a row per test row and system) and ``evaluation.json``."""
    return lake.path("evaluate", "evaluation", recipe_name)


def read_evaluation(recipe_name: str, lake: DataLake) -> dict[str, Any]:
    """The facts of the recipe's last evaluation. Raises PipelineError where there is none."""
    path = evaluation_folder(recipe_name, lake) / "evaluation.json"
    if not path.exists():
        raise PipelineError(f"{path} is not there.", f"Materialise 'evaluation' for the partition '{recipe_name}'.")
    facts: dict[str, Any] = read_json(path)
    return facts


def evaluate(recipe: Recipe, lake: DataLake, champion: Version | None, report: Callable[[str], None]) -> Evaluation:
    """Judges the recipe's adapter on every test row, or returns what equal input has given before.

    ``champion`` is judged beside it unless it is that very adapter. Raises PipelineError when the adapter or its base
    is not there or was changed.
    """
    adapter = current_adapter(recipe.name, lake)
    if champion is not None and champion.fingerprint == adapter.fingerprint:
        champion = None
    base = base_of(adapter, recipe, lake)
    data = {name: file_sha256(lake.table("prepare", name)) for name in ("train_split", "test_split")}
    key = digest(adapter.fingerprint, data, champion and champion.fingerprint, recipe.fingerprint, CODE_VERSION)
    folder = evaluation_folder(recipe.name, lake)
    if (folder / "evaluation.json").exists() and read_evaluation(recipe.name, lake)["fingerprint"] == key:
        report(f"Equal input has been evaluated already: {folder}")
        return Evaluation(read_evaluation(recipe.name, lake), reused=True)
    rows = _Rows(recipe, lake)
    stats, seconds = {}, {}
    for system, answer in _systems(recipe, adapter, base, champion, rows, report):
        started = time.monotonic()
        stats[system] = answer()
        seconds[system] = time.monotonic() - started
    test = rows.test
    facts = {
        "fingerprint": key,
        "recipe": recipe.name,
        "adapter_fingerprint": adapter.fingerprint,
        "base": adapter.manifest["base"],
        "champion_version": champion and champion.version,
        "data": data,
        "rows": len(test),
        "clusters": test["cluster_id"].nunique(),
        "answer_classifier_accuracy": rows.classifier_accuracy,
        **compare(test, stats),
        "seconds": seconds,
    }
    about = test[["row_id", "source", "cluster_id", "intent", "category", "flags", "nearest_train_similarity"]]
    long = pd.concat(
        [about.assign(system=s, question=rows.asked, reference=rows.references, **frame) for s, frame in stats.items()]
    )
    with atomic_folder(folder) as temporary:
        pq.write_table(pa.Table.from_pandas(long, preserve_index=False), temporary / "answers.parquet")
        write_json(temporary / "evaluation.json", facts)
    return Evaluation(facts, reused=False)


class _Rows:
    """The test rows in the recipe's placeholder mode, the training rows beside them, and a judge of answers' intents."""

    def __init__(self, recipe: Recipe, lake: DataLake) -> None:
        def read(side: str) -> pd.DataFrame:
            table = lake.read("prepare", f"{side}_split")
            frame, mode = table.to_pandas(), recipe.placeholders
            questions = zip(frame["instruction"], frame["row_id"], strict=True)
            answers = zip(frame["response"], frame["row_id"], strict=True)
            contexts = zip(map(earlier_turns, table.column("context").to_pylist()), frame["row_id"], strict=True)
            return frame.assign(
                instruction=[apply(text, mode, "customer", row) for text, row in questions],
                response=[apply(text, mode, "agent", row) for text, row in answers],
                context=[[(who, apply(text, mode, who, row)) for who, text in turns] for turns, row in contexts],
            )

        self.train, self.test = read("train"), read("test")
        self.questions = self.test["instruction"].tolist()
        self.contexts: list[Context] = self.test["context"].tolist()
        self.asked = [_asked(*row) for row in zip(self.contexts, self.questions, strict=True)]
        self.references = self.test["response"].tolist()
        self.intents = self.test["predicted_intent"].tolist()
        self._judge = TextClassifier.fit(self.train["response"].tolist(), self.train["intent"].tolist(), "words")
        self.classifier_accuracy = float(self.right_intents(self.references).mean())

    def right_intents(self, answers: list[str]) -> np.ndarray:
        """1 where a classifier trained on training answers takes the answer for one of the question's true intent."""
        predicted, _ = self._judge.predict(answers)
        return (np.array(predicted) == self.test["intent"].to_numpy()).astype(float)

    def statistics(self, answers: list[str], **given: Any) -> pd.DataFrame:
        frame = row_statistics(self.asked, answers, self.references)
        return frame.assign(
            row_id=self.test["row_id"].to_numpy(), answer=answers, right_intent=self.right_intents(answers), **given
        )


def _systems(
    recipe: Recipe,
    adapter: Adapter,
    base: Path,
    champion: Version | None,
    rows: _Rows,
    report: Callable[[str], None],
) -> list[tuple[str, Callable[[], pd.DataFrame]]]:
    def model(system: str, recipe: Recipe, base: Path, adapter: Path | None) -> tuple[str, Callable[[], pd.DataFrame]]:
        return system, lambda: _judged(system, SupportModel(recipe, base, adapter), rows, report)

    systems = [model("tuned", recipe, base, adapter.folder), model("base", recipe, base, None)]
    if champion is not None:
        its_recipe = read_recipe(champion.folder / "adapter" / "recipe.yaml")
        its_base = base_of_version(its_recipe, champion.folder)
        systems.append(model("champion", its_recipe, its_base, champion.folder / "adapter"))
    return [
        *systems,
        ("nearest", lambda: rows.statistics(nearest_answers(rows.train, rows.questions))),
        ("central", lambda: rows.statistics(central_answers(rows.train, rows.intents))),
        ("random", lambda: rows.statistics(random_answers(rows.train, rows.questions))),
    ]


def _judged(system: str, model: SupportModel, rows: _Rows, report: Callable[[str], None]) -> pd.DataFrame:
    started = said = time.monotonic()

    def progress(done: int) -> None:
        nonlocal said
        if time.monotonic() - said > 5 or done == len(rows.questions):
            said = time.monotonic()
            rate = done / (said - started)
            left = (len(rows.questions) - done) / rate
            report(f"{system}: {done}/{len(rows.questions)} answers, {rate:.1f} a second, {left:.0f} s left")

    likelihoods = model.likelihoods(rows.questions, rows.intents, rows.contexts, rows.references)
    answers = model.answer(rows.questions, rows.intents, rows.contexts, progress)
    return rows.statistics(
        [answer.text for answer in answers],
        nll=[likelihood.nll for likelihood in likelihoods],
        answer_tokens=[likelihood.tokens for likelihood in likelihoods],
        answer_chars=[len(reference) for reference in rows.references],
        stopped=[float(answer.stopped) for answer in answers],
    )


def _asked(context: Context, question: str) -> str:
    """The question, after the earlier turns of its conversation where it has some."""
    return "\n".join([*(f"{who.capitalize()}: {text}" for who, text in context), "", question]) if context else question
