"""Compares shares of Bitext (``bitext_share`` in company.yaml) by the answers to the company's own questions.

Each share is tried on a copy of the lake's prepared tables: router, splits and index are made again, and a look-up
answers the company's questions as in ``evaluate/company.py``. A look-up needs no training, so this takes minutes. A
fine-tune is judged by its own evaluation.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pandas as pd
import yaml

from cs_pipeline.company import Company, company_file, load_company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.company import MAX_QUESTIONS, company_rows, cross_validated_answers
from cs_pipeline.evaluate.comparison import MIN_CLUSTERS
from cs_pipeline.evaluate.decision import PRIMARY_METRIC
from cs_pipeline.evaluate.results import LOOKUP, SYSTEMS
from cs_pipeline.evaluate.scoring.statistics import Difference, paired_bootstrap
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, smallest_ids
from cs_pipeline.llm.model import Answer
from cs_pipeline.prepare.router import train_router
from cs_pipeline.prepare.splits.conversations import trial_folder
from cs_pipeline.prepare.splits.split_tables import write_split
from cs_pipeline.recipe import LookupRecipe
from cs_pipeline.retrieval.embedder import embedder_in_use
from cs_pipeline.retrieval.index import build_index, index_lock

SHARES = (1.0, 0.3, 0.1, 0.0)
"""The shares that are tried. The first one is what the others are compared with."""


@dataclass(frozen=True)
class ShareResult:
    """How a look-up answers the company's ``questions`` with this ``share`` of Bitext's training rows.

    ``handed_over`` counts those it hands over, ``from_bitext`` those it answers with one of Bitext's. ``quality`` (0 to
    100) is the mean answer quality of all questions, including those handed over. ``difference`` is this quality minus
    the one with all of Bitext; it is None for all of Bitext itself.
    """

    share: float
    questions: int
    handed_over: int
    from_bitext: int
    quality: float
    difference: Difference | None


def compare_bitext_shares(lake: DataLake, report: Callable[[str], None]) -> list[ShareResult]:
    """The results of SHARES, all of Bitext first. The lake is not changed. ``report`` gets progress lines.

    The share 0 is left out if some split would then have no row. Raises PipelineError if the company's questions are in
    fewer than MIN_CLUSTERS clusters, or if an asset that is needed has not been materialised.
    """
    recipe = LookupRecipe(name=LOOKUP, description=SYSTEMS[LOOKUP], method="lookup")
    results: list[ShareResult] = []
    answered: dict[float, list[Answer]] = {}
    judge: FrozenTestSet | None = None
    with _copy_of(lake) as copy:
        for share in SHARES:
            report(f"bitext_share {share:g}: building router, splits and index")
            try:
                _prepare(copy, load_company(lake).model_copy(update={"bitext_share": share}), embedder_in_use(lake))
            except PipelineError as error:
                if share > 0:
                    raise
                report(f"bitext_share 0 is left out. {error.what}")
                continue
            asked = _company_questions(recipe, copy)
            judge = judge or asked
            answered[share] = cross_validated_answers(asked, copy)
    assert judge is not None  # the first share is answered, or an error is raised
    stats = {share: _score(judge, answers) for share, answers in answered.items()}
    clusters = judge.test["cluster_id"].tolist()
    for share, answers in answered.items():
        differences = paired_bootstrap(stats[share], stats[SHARES[0]], clusters, metrics=(PRIMARY_METRIC,))
        given = [answer.retrieved[0] for answer in answers if answer.retrieved]
        results.append(
            ShareResult(
                share,
                questions=len(answers),
                handed_over=len(answers) - len(given),
                from_bitext=sum(known.source == "bitext" for known in given),
                quality=100 * float(np.mean(stats[share][PRIMARY_METRIC])),
                difference=None if share == SHARES[0] else differences[PRIMARY_METRIC],
            )
        )
    return results


def best_share(results: list[ShareResult]) -> ShareResult:
    """The result with the highest answer quality among those that are clearly better than all of Bitext, else the first."""
    better = [result for result in results if result.difference is not None and result.difference.low > 0]
    return max(better, key=lambda result: result.quality, default=results[0])


@contextmanager
def _copy_of(lake: DataLake) -> Iterator[DataLake]:
    """A temporary lake with the prepared tables of ``lake``. Its tables may be replaced without effect on ``lake``."""
    folder = trial_folder(lake)
    shutil.rmtree(folder, ignore_errors=True)  # left by a run that was killed
    copy = DataLake(folder)
    try:
        with index_lock(lake):
            # Tables are replaced and never changed in place, so links are safe. Locks are hidden files and not linked.
            hidden = shutil.ignore_patterns(".*")
            shutil.copytree(lake.path("prepare"), copy.path("prepare"), copy_function=os.link, ignore=hidden)
        yield copy
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _prepare(copy: DataLake, company: Company, embedder: str) -> None:
    """Makes router, splits and index of ``copy`` again with these settings."""
    settings = company.model_dump(mode="json", exclude_unset=True) | {"bitext_share": company.bitext_share}
    company_file(copy).write_text(yaml.safe_dump(settings))
    train_router(copy, embedder)
    for split in ("train", "validation", "test"):
        write_split(copy, split)
    build_index(copy, embedder)


def _company_questions(recipe: LookupRecipe, lake: DataLake) -> FrozenTestSet:
    test_set = FrozenTestSet(recipe, lake)
    rows = company_rows(test_set, lake)
    if (clusters := rows["cluster_id"].nunique()) < MIN_CLUSTERS:
        raise PipelineError(
            f"The company's questions are in {clusters} clusters, and at least {MIN_CLUSTERS} are needed to compare shares.",
            "Land more conversations (cs-pipeline land FILE) and run the pipeline.",
        )
    return test_set.with_rows(rows[smallest_ids(rows["row_id"].tolist(), MAX_QUESTIONS)])


def _score(judge: FrozenTestSet, answers: list[Answer]) -> pd.DataFrame:
    """Row statistics by the ``AnswerNorms`` of all of Bitext's rows, so that the shares are judged alike."""
    return judge.score([answer.text for answer in answers], [answer.retrieved for answer in answers], stopped=1.0)
