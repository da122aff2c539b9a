"""The model as MLflow runs it, logged as code: loading a version executes this file and unpickles nothing."""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from cs_pipeline.model import SupportModel
from cs_pipeline.prepare.classifier import TextClassifier
from cs_pipeline.recipe import read_recipe
from cs_pipeline.train.base import base_of_version


class CsSupport(PythonModel):
    """Questions in, answers out: ``predict(["where is my refund?"])`` gives a list of one answer."""

    def load_context(self, context: PythonModelContext) -> None:
        adapter = Path(context.artifacts["adapter"])
        recipe = read_recipe(adapter / "recipe.yaml")
        self._model = SupportModel(recipe, base_of_version(recipe, adapter.parent), adapter)
        routes = recipe.prompt.route == "intent"
        self._classifier = TextClassifier.load(adapter / "intent_classifier") if routes else None

    def predict(self, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:  # type: ignore[override]
        questions = list(model_input)
        intents: list[str | None] = [None] * len(questions)
        if self._classifier is not None:
            intents = list(self._classifier.predict(questions)[0])
        return [answer.text for answer in self._model.answer(questions, intents, [()] * len(questions))]


mlflow.models.set_model(CsSupport())
