"""The model as MLflow runs it, logged as code: loading a version executes this file and unpickles nothing."""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from cs_pipeline.model import SupportModel
from cs_pipeline.prepare.classifier import TextClassifier
from cs_pipeline.recipe import HubBase, PathBase, read_recipe
from cs_pipeline.train.base import find_hub_or_folder_base
from cs_pipeline.train.manifest import read_manifest


class CsSupport(PythonModel):
    """Questions in, answers out: ``predict(["where is my refund?"])`` gives a list of one answer."""

    def load_context(self, context: PythonModelContext) -> None:
        adapter = Path(context.artifacts["adapter"])
        read_manifest(adapter, "model_version")
        recipe = read_recipe(adapter / "recipe.yaml")
        if isinstance(recipe.base, HubBase | PathBase):
            base = Path(find_hub_or_folder_base(recipe.base).path)
        else:
            base = Path(context.artifacts["base"])
        self._model = SupportModel(recipe, base, adapter)
        routes = recipe.prompt.route == "intent"
        self._classifier = TextClassifier.load(adapter / "intent_classifier") if routes else None

    def predict(self, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:  # type: ignore[override]
        questions = list(model_input)
        intents: list[str | None] = [None] * len(questions)
        if self._classifier is not None:
            intents = list(self._classifier.predict(questions)[0])
        return [answer.text for answer in self._model.answer(questions, intents)]


mlflow.models.set_model(CsSupport())
