"""The model that MLflow runs. It is logged as code: loading a version executes this file and unpickles nothing."""

from pathlib import Path
from typing import Any

import mlflow
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.recipe import read_recipe
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.lookup import load_contender
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.retrieval.router import prompt_intents


class CsSupport(PythonModel):
    """Questions in, answers out: ``predict(["where is my refund?"])`` gives a list of one answer.

    A version that retrieves loads the current index, and a look-up the current router, from the paths in its
    ``model_config``. To use other paths: ``load_model(…, model_config={"retrieval_index": …, "router": …})``.
    """

    def load_context(self, context: PythonModelContext) -> None:
        adapter = Path(context.artifacts["adapter"])
        recipe = read_recipe(adapter / "recipe.yaml")
        self._model = load_contender(recipe, base_of_version(recipe, adapter.parent), adapter)
        self._recipe = recipe
        self._index = None
        if recipe.prompt.retrieve is not None:
            folder = Path(context.model_config["retrieval_index"])
            if not folder.exists():
                raise PipelineError(
                    f"This version retrieves known answers and articles, but their index {folder} is missing.",
                    "Materialise 'retrieval_index', or give its path: load_model(…, model_config={'retrieval_index': …}).",
                )
            self._index = RetrievalIndex.load(folder)
        router = None if self._index is None else Path(context.model_config["router"])
        self._intents = prompt_intents(recipe, adapter, router)

    def predict(self, model_input: list[str], params: dict[str, Any] | None = None) -> list[str]:  # type: ignore[override]
        questions = list(model_input)
        intents = self._intents(questions)
        texts = retrieve(self._index, self._recipe.prompt, self._recipe.placeholders, questions, intents)
        return [a.text for a in self._model.answer(questions, intents, [()] * len(questions), retrieved=texts)]


mlflow.models.set_model(CsSupport())
