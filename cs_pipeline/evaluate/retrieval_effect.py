"""Measures how retrieved texts change a model's answers.

It compares the answers with and without the texts, on all test rows and by how similar they are to training rows. It also
measures which share of the answers is copied or grounded, and how the model reacts to misleading texts.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from cs_pipeline.evaluate.comparison import MIN_CLUSTERS
from cs_pipeline.evaluate.results import LOOKUP, WITHOUT_RETRIEVAL, RetrievalResults, SimilarityQuarter
from cs_pipeline.evaluate.robustness.misleading import score_misleading_cases
from cs_pipeline.evaluate.robustness.robustness import robustness_by_group
from cs_pipeline.evaluate.scoring.groundedness import groundedness, groundedness_shares
from cs_pipeline.evaluate.scoring.statistics import paired_bootstrap
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, answer_test_set
from cs_pipeline.evaluate.slices import SlicePart, slice_parts
from cs_pipeline.llm.model import Answer, SupportModel
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.retrieval.router import PromptIntents

RETRIEVAL_METRICS = ("rougeL", "bleu", "chrf", "placeholder_f1", "right_intent")
"""The metrics in which a model is compared with itself without retrieved texts, and with looked-up answers."""


@dataclass(frozen=True)
class RetrievalEffect:
    """The raw measurements on the test rows.

    - ``found``, ``left_out``: the number of retrieved texts, and of those that did not fit into a prompt
    - ``without``: row statistics of the same model without the texts; answering and scoring took ``seconds``
    - ``grounding``: by system, the table of ``groundedness`` for the answers with and without the texts. Answers without
      the texts are compared with the same texts, to show how much they have in common anyway.
    - ``misled``: the table of ``score_misleading_cases``
    """

    found: int
    left_out: int
    without: pd.DataFrame
    seconds: float
    grounding: dict[str, pd.DataFrame]
    misled: pd.DataFrame


def measure_retrieval_effect(
    model: SupportModel,
    intents: PromptIntents,
    test_set: FrozenTestSet,
    retrieved: Sequence[Sequence[RetrievedText]],
    answers: Sequence[Answer],
    stats: pd.DataFrame,
    report: Callable[[str], None],
) -> RetrievalEffect:
    """Asks ``model`` the test questions without the ``retrieved`` texts, and some of them with misleading texts.

    ``answers`` and their row statistics ``stats`` are those with the retrieved texts.
    """
    started = time.monotonic()
    no_texts = [()] * len(test_set.questions)
    without, bare_answers, _ = answer_test_set(WITHOUT_RETRIEVAL, model, test_set, no_texts, report)
    seconds = time.monotonic() - started
    report("tuned: misleading retrieved texts")
    found, in_prompts = sum(map(len, retrieved)), [answer.retrieved for answer in answers]
    return RetrievalEffect(
        found=found,
        left_out=found - sum(map(len, in_prompts)),
        without=without,
        seconds=seconds,
        grounding={
            system: groundedness(test_set.questions_with_context, [answer.text for answer in given], in_prompts)
            for system, given in (("tuned", answers), (WITHOUT_RETRIEVAL, bare_answers))
        },
        misled=score_misleading_cases(model, intents, test_set, retrieved, stats),
    )


def retrieval_results(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], effect: RetrievalEffect
) -> RetrievalResults:
    """The figures of ``effect``, and the paired differences in RETRIEVAL_METRICS for each quarter of similarity."""
    clusters = test["cluster_id"].tolist()
    return RetrievalResults(
        found=effect.found,
        left_out=effect.left_out,
        shares={system: groundedness_shares(rows, clusters) for system, rows in effect.grounding.items()},
        quarters=[
            _quarter(test, stats, part)
            for part in slice_parts(test, stats["tuned"]["reference_words"].tolist())
            if part.kind == "similarity"
        ],
        misled=robustness_by_group(effect.misled).to_dict("records"),
    )


def _quarter(test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], part: SlicePart) -> SimilarityQuarter:
    clusters = test["cluster_id"][part.mask].tolist()
    differences = {}
    if len(set(clusters)) >= MIN_CLUSTERS:
        for other in (system for system in (WITHOUT_RETRIEVAL, LOOKUP, "nearest") if system in stats):
            pair = stats["tuned"][part.mask], stats[other][part.mask]
            differences[other] = paired_bootstrap(*pair, clusters, metrics=RETRIEVAL_METRICS)
    return SimilarityQuarter(quarter=part.name, rows=int(part.mask.sum()), differences=differences)
