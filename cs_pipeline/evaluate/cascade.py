"""Builds a cascade: chooses, on validation questions, the least similarity at which its look-up answers."""

import shutil
from collections.abc import Callable

import numpy as np

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.scoring.baselines import as_sources
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, progress_reporter
from cs_pipeline.llm.model import SupportModel
from cs_pipeline.recipe import CascadeRecipe, FineTuneRecipe, read_fine_tune_recipe
from cs_pipeline.retrieval.lookup import MODEL_FOLDER, NEVER, LookupModel, similarity_limit, write_threshold
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.train.adapter import (
    Adapter,
    base_of_adapter,
    cascade_fingerprint,
    current_adapter,
    model_adapter,
    new_adapter,
    seen_rows,
)


def build_cascade(recipe: CascadeRecipe, lake: DataLake, report: Callable[[str], None]) -> Adapter:
    """Builds the cascade from its model's current adapter, and makes it the current adapter of ``recipe``.

    The look-up and the model answer ``validation_rows`` questions of the validation split. The threshold with the highest
    answer quality is kept. Raises PipelineError if the model's adapter or base is missing or changed, if that adapter was
    trained on rows that must be forgotten, or if the cascade and its model retrieve differently.
    """
    fingerprint, trained = cascade_fingerprint(recipe, lake), model_adapter(recipe, lake)
    model_recipe = read_fine_tune_recipe(trained.folder / "recipe.yaml")
    check_prompts(recipe, model_recipe)
    base = base_of_adapter(trained, model_recipe, lake)
    assert base is not None  # a fine-tune has one
    questions = FrozenTestSet(recipe, lake, "validation", recipe.validation_rows)
    asked = questions.searched, questions.predicted_intents
    index = open_index(recipe, lake)
    retrieved = retrieve(index, recipe.prompt, recipe.placeholders, *asked, own_rows=questions.own_rows)
    always = LookupModel(recipe, 0.0)
    found_for = zip(retrieved, questions.predicted_intents, questions.contexts, strict=True)
    known = [always.find(*row) for row in found_for]
    copied = ["" if answer is None else answer.text for answer in known]
    progress = progress_reporter(report, "the cascade's model", "validation answers", len(copied))
    texts = retrieved if model_recipe.prompt.retrieve is not None else None
    model = SupportModel(model_recipe, base, trained.folder)
    prompted = questions.questions if model.reads_earlier_turns else questions.searched
    written = model.answer(prompted, questions.predicted_intents, questions.contexts, progress, texts)
    looked_up = questions.score(copied, as_sources(copied))["quality"].to_numpy()
    by_model = questions.score([answer.text for answer in written], [answer.retrieved for answer in written])
    similarities = np.array([0.0 if answer is None else answer.similarity for answer in known])
    threshold = choose_threshold(similarities, looked_up, by_model["quality"].to_numpy())
    share = float((similarities >= threshold).mean())
    limit = similarity_limit(threshold)
    report(f"the look-up answers {share:.0%} of {len(copied):,} validation questions; smallest similarity: {limit}")
    metrics = trained.metrics | {"min_similarity": threshold, "looked_up_share": share}
    facts = {key: trained.manifest[key] for key in ("base", "start", "seed")}
    facts |= {"model": trained.fingerprint, "min_similarity": threshold}
    with new_adapter(recipe, lake, fingerprint, facts, metrics, seen_rows(trained.folder)) as folder:
        shutil.copytree(trained.folder, folder / MODEL_FOLDER)
        write_threshold(folder, threshold)
    return current_adapter(recipe.name, lake)


def choose_threshold(similarities: np.ndarray, looked_up: np.ndarray, written: np.ndarray) -> float:
    """The threshold with the highest total quality; the lowest of equally good ones. Answers at or above it are copied.

    All arrays are [questions]: the similarity of the known answer's question (0 without one), and the quality of the copied
    and of the model's answer. The result is one of ``similarities``, or NEVER.
    """
    thresholds = [*np.unique(similarities[similarities > 0]), NEVER]
    totals = [np.where(similarities >= threshold, looked_up, written).sum() for threshold in thresholds]
    return float(thresholds[int(np.argmax(np.round(totals, 9)))])  # argmax returns the first of equal totals


def check_prompts(recipe: CascadeRecipe, model: FineTuneRecipe) -> None:
    """Raises PipelineError if the cascade ``recipe`` and its ``model`` do not get the same questions and retrieved texts."""
    problems = []
    if recipe.placeholders is not model.placeholders:
        problems.append(f"placeholders: {model.placeholders.value}")
    needs_route = model.prompt.route == "intent" or model.prompt.retrieve is not None
    if needs_route and model.prompt.route != recipe.prompt.route:
        problems.append(f"prompt.route: {model.prompt.route}")
    if model.prompt.retrieve not in (None, recipe.prompt.retrieve):
        problems.append(f"prompt.retrieve: {model.prompt.retrieve.model_dump()}")
    if problems:
        raise PipelineError(
            f"The cascade '{recipe.name}' and its model '{recipe.model}' do not get the same texts.",
            f"In the cascade's recipe, set {', '.join(problems)}.",
        )
