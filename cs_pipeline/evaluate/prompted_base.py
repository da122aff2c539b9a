"""Evaluates the untuned base as a practitioner would use it: with prompts that tell it what to do, instead of fine-tuning.

Only an instruct model can be prompted like this, so the base needs a chat template of its own. Its answers take as long as
those of the tuned model, so it answers only a fixed part of the test questions. All systems are then compared on these.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, dropwhile
from pathlib import Path

import numpy as np
import pandas as pd

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.comparison import MIN_CLUSTERS, scores_and_differences
from cs_pipeline.evaluate.results import (
    FEW_SHOT,
    PROMPTED_SYSTEMS,
    ZERO_SHOT,
    ZERO_SHOT_WITH_RETRIEVAL,
    BaselineResults,
)
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, progress_reporter, smallest_ids
from cs_pipeline.llm.model import SupportModel, load_chat_format
from cs_pipeline.llm.prompt import Context, RetrievedText
from cs_pipeline.recipe import LOOKUP_PROMPT, EmbeddedBase, FineTuneRecipe, PromptSettings, Recipe
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.text.placeholders import PlaceholderMode, Speaker

FEW_SHOT_EXAMPLES = 4
"""How many solved examples ``few_shot`` gets, each of a different intent."""

_SYSTEM = "You are a customer support agent. Answer the customer's question."
_PLACEHOLDER_RULE = (
    "Write every value that you do not know as a placeholder in double braces,"
    " for example {{Order Number}} or {{Customer Support Phone Number}}."
)
_RETRIEVAL_RULE = "If a known answer to a similar question stands before the question, use it."
_NO_LIMIT = 2**20  # tokens: only the model's own context limits these prompts, because nothing is trained on them


@dataclass(frozen=True)
class PromptedBase:
    """The results for ``evaluation.json``, the ids of the answered rows, and the row statistics of each prompted system."""

    results: BaselineResults
    row_ids: list[str]
    stats: dict[str, pd.DataFrame]


def evaluate_prompted_base(
    recipe: Recipe,
    base: Path | None,
    test_set: FrozenTestSet,
    stats: Mapping[str, pd.DataFrame],
    index: RetrievalIndex,
    report: Callable[[str], None],
) -> PromptedBase | None:
    """Prompts the untuned ``base`` in each way of PROMPTED_SYSTEMS, and compares all systems on the same questions.

    ``stats`` holds the row statistics of the other systems, ``tuned`` among them, on all rows of ``test_set``. The
    ``baseline_questions`` rows with the smallest ids are asked. The result is None if the recipe trains no model, asks no
    such questions or has the embedded base, if the base has no usable chat template of its own, or if the rows have
    fewer than MIN_CLUSTERS clusters.
    """
    if not isinstance(recipe, FineTuneRecipe) or isinstance(recipe.base, EmbeddedBase) or base is None:
        return None
    if not recipe.evaluation.baseline_questions:
        return None
    mask = smallest_ids(test_set.test["row_id"].tolist(), recipe.evaluation.baseline_questions)
    rows = test_set.part(mask)
    if (why := _why_not(recipe, base, rows)) is not None:
        report(f"untuned baselines: left out, because {why}")
        return None
    examples = solved_examples(rows, recipe.held_out_intents)
    asked = rows.searched, rows.predicted_intents
    retrieved = retrieve(index, LOOKUP_PROMPT, rows.mode, *asked, own_rows=rows.own_rows)
    stats_of_base: dict[str, pd.DataFrame] = {}
    # A base that was evaluated with this very prompt has given these answers already.
    same_as_base = [ZERO_SHOT] if prompt_of(ZERO_SHOT, rows.mode) == recipe.prompt else []
    for system in PROMPTED_SYSTEMS:
        if system not in same_as_base:
            turns = _as_turns(examples) if system == FEW_SHOT else ()
            texts = retrieved if system == ZERO_SHOT_WITH_RETRIEVAL else [()] * len(rows.questions)
            stats_of_base[system] = _answer(system, recipe, base, rows, turns, texts, report)
    everyone = {system: frame[mask].reset_index(drop=True) for system, frame in stats.items()} | stats_of_base
    results = BaselineResults(
        questions=len(rows.test),
        clusters=rows.test["cluster_id"].nunique(),
        **scores_and_differences(rows.test, everyone, np.ones(len(rows.test), bool)),
        examples=examples["row_id"].tolist(),
        same_as_base=same_as_base,
    )
    return PromptedBase(results, rows.test["row_id"].tolist(), stats_of_base)


def prompt_of(system: str, mode: PlaceholderMode) -> PromptSettings:
    """The prompt of one of PROMPTED_SYSTEMS: the base's own chat template and a short system message, without an intent."""
    rules = [_SYSTEM, *([_PLACEHOLDER_RULE] if mode is PlaceholderMode.KEEP else [])]
    rules += [_RETRIEVAL_RULE] if system == ZERO_SHOT_WITH_RETRIEVAL else []
    return PromptSettings(system=" ".join(rules))


def solved_examples(rows: FrozenTestSet, held_out: Sequence[str]) -> pd.DataFrame:
    """The training rows that ``few_shot`` shows before every question: up to FEW_SHOT_EXAMPLES, of different intents.

    They are Bitext's rows without earlier turns, whose intents people labelled; without such rows, the company's. Those
    with the smallest row ids, which are hashes, are chosen. None is in a cluster or conversation of a test question or
    has an intent in ``held_out``.
    """
    train = rows.train
    usable = train[
        ~train["cluster_id"].isin(rows.test["cluster_id"])
        & ~train["row_id"].isin(list(chain.from_iterable(rows.own_rows)))
        & ~train["intent"].isin(held_out)
        & (train["context"].map(len) == 0)
    ]
    labelled = usable[usable["source"] == "bitext"]
    candidates = labelled if len(labelled) else usable
    return candidates.sort_values("row_id").drop_duplicates("intent").head(FEW_SHOT_EXAMPLES)


def _why_not(recipe: FineTuneRecipe, base: Path, rows: FrozenTestSet) -> str | None:
    """Why ``base`` cannot be prompted with the questions of ``rows``, as the end of a sentence; None if it can."""
    if (clusters := rows.test["cluster_id"].nunique()) < MIN_CLUSTERS:
        return f"{len(rows.test)} questions in {clusters} clusters are too few"
    try:
        load_chat_format(_with_prompt(recipe, PromptSettings()), base, None)
    except PipelineError as error:  # the recipe's own prompt can still have a template of this project
        return f"the base has no chat template of its own to prompt it with ({error.what})"
    return None


def _with_prompt(recipe: FineTuneRecipe, prompt: PromptSettings) -> FineTuneRecipe:
    trainer = recipe.trainer.model_copy(update={"max_length": _NO_LIMIT})
    return recipe.model_copy(update={"prompt": prompt, "trainer": trainer})


def _as_turns(examples: pd.DataFrame) -> list[tuple[Speaker, str]]:
    turns: list[tuple[Speaker, str]] = []
    for question, answer in zip(examples["instruction"].tolist(), examples["response"].tolist(), strict=True):
        turns += [("customer", question), ("agent", answer)]
    return turns


def _answer(
    system: str,
    recipe: FineTuneRecipe,
    base: Path,
    rows: FrozenTestSet,
    examples: Context,
    retrieved: Sequence[Sequence[RetrievedText]],
    report: Callable[[str], None],
) -> pd.DataFrame:
    """Row statistics of the answers of ``base`` to ``rows``, with the ``examples`` as turns before each conversation."""
    # The examples end with an agent's turn, to which a leading turn of the agent would be joined.
    own = [list(dropwhile(lambda turn: turn[0] == "agent", context)) for context in rows.contexts]
    contexts: list[Context] = [[*examples, *turns] for turns in own] if examples else rows.contexts
    model = SupportModel(_with_prompt(recipe, prompt_of(system, rows.mode)), base, None)
    progress = progress_reporter(report, system, "answers", len(rows.questions))
    answers = model.answer(rows.questions, [None] * len(rows.questions), contexts, progress, retrieved)
    # Facts of the examples belong to other customers: what is copied from them counts as made up.
    return rows.score(
        [answer.text for answer in answers],
        [answer.retrieved for answer in answers],
        stopped=[float(answer.stopped) for answer in answers],
    )
