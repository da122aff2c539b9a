"""Measures how retrieved texts change the answers of a model.

It compares the answers with and without the texts, on all rows and by similarity, and measures how much of them is copied
or grounded, and how misleading texts change them.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.comparison import MIN_CLUSTERS
from cs_pipeline.evaluate.results import KNOWN_ANSWER, WITHOUT_RETRIEVAL, RetrievalResults, SimilarityQuarter
from cs_pipeline.evaluate.robustness.misleading import score_misleading_cases
from cs_pipeline.evaluate.robustness.robustness import robustness_by_group
from cs_pipeline.evaluate.scoring.groundedness import groundedness, groundedness_shares
from cs_pipeline.evaluate.scoring.statistics import paired_bootstrap
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, answer_test_set
from cs_pipeline.evaluate.slices import slice_parts
from cs_pipeline.llm.model import Answer, SupportModel
from cs_pipeline.llm.prompt import RetrievedText

RETRIEVAL_METRICS = ("rougeL", "bleu", "chrf", "placeholder_f1", "right_intent")
"""The metrics that compare the tuned model with itself without retrieved texts, and with answers that are only looked up."""


@dataclass(frozen=True)
class RetrievalEffect:
    """The raw measurements on the test rows.

    ``found`` is the number of retrieved texts, ``left_out`` how many of them did not fit into a prompt. ``without`` holds
    the row statistics of the same model without the texts, which took ``seconds``. ``known`` holds the answers of the system
    ``known_answer``, empty where none was found. ``rows`` are the rows of ``groundedness`` by system: both are compared with
    the texts that the tuned model read, so the other system's share shows how much any answer has in common with these
    texts. ``misled`` is the table of ``score_misleading_cases``.
    """

    found: int
    left_out: int
    without: pd.DataFrame
    seconds: float
    known: list[str]
    rows: dict[str, pd.DataFrame]
    misled: pd.DataFrame


def measure_retrieval_effect(
    model: SupportModel,
    classifier: Path,
    rows: FrozenTestSet,
    found: Sequence[Sequence[RetrievedText]],
    answers: Sequence[Answer],
    statistics: pd.DataFrame,
    report: Callable[[str], None],
) -> RetrievalEffect:
    """Asks ``model`` the test questions without the texts ``found`` for them, and some with misleading texts.

    ``answers`` and their row ``statistics`` are those with the texts.
    """
    started = time.monotonic()
    without, others, _ = answer_test_set(WITHOUT_RETRIEVAL, model, rows, [()] * len(rows.questions), report)
    seconds = time.monotonic() - started
    report("tuned: misleading retrieved texts")
    read = [answer.retrieved for answer in answers]
    return RetrievalEffect(
        sum(map(len, found)),
        sum(map(len, found)) - sum(map(len, read)),
        without,
        seconds,
        [next((one.text for one in texts if one.kind == "answer"), "") for texts in found],
        {
            system: groundedness(rows.questions_with_context, [answer.text for answer in given], read)
            for system, given in (("tuned", answers), (WITHOUT_RETRIEVAL, others))
        },
        score_misleading_cases(model, classifier, rows, found, statistics),
    )


def retrieval_results(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], effect: RetrievalEffect, samples: int = 1000
) -> RetrievalResults:
    """The figures of ``effect``, and the paired differences in RETRIEVAL_METRICS by quarter of similarity."""
    clusters = test["cluster_id"].tolist()
    return RetrievalResults(
        found=effect.found,
        left_out=effect.left_out,
        shares={system: groundedness_shares(rows, clusters, samples) for system, rows in effect.rows.items()},
        quarters=[
            _quarter(test, stats, part.name, part.member, samples)
            for part in slice_parts(test, stats["tuned"]["reference_words"].tolist())
            if part.kind == "similarity"
        ],
        misled=robustness_by_group(effect.misled).to_dict("records"),
    )


def _quarter(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], name: str, member: np.ndarray, samples: int
) -> SimilarityQuarter:
    clusters = test["cluster_id"][member].tolist()
    differences = {}
    if len(set(clusters)) >= MIN_CLUSTERS:
        for other in (name for name in (WITHOUT_RETRIEVAL, KNOWN_ANSWER, "nearest") if name in stats):
            pair = stats["tuned"][member], stats[other][member]
            differences[other] = paired_bootstrap(*pair, clusters, samples, metrics=RETRIEVAL_METRICS)
    return SimilarityQuarter(quarter=name, rows=int(member.sum()), differences=differences)
