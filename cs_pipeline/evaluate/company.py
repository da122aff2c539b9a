"""What a company's rows, however few, say about a look-up.

A company with 30 conversations has hardly any test rows. A look-up needs no training, so it can be judged on all rows of the
company: each question is answered without the known answers of its own cluster and conversation, with an intent that was
predicted without its cluster. Three things have seen the question nevertheless: the few numbers of the router's
calibration, the thresholds of router and look-up, and the list of the company's subjects.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from cs_pipeline.core.lake import DataLake
from cs_pipeline.evaluate.comparison import MIN_CLUSTERS
from cs_pipeline.evaluate.decision import PRIMARY_METRIC, of_rivals
from cs_pipeline.evaluate.results import LOOKUP, SYSTEMS, CompanyResults, CrossValidated, Scores
from cs_pipeline.evaluate.scoring.statistics import intervals, paired_bootstrap
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet, read_split, smallest_ids
from cs_pipeline.llm.model import Answer
from cs_pipeline.recipe import LookupRecipe, Recipe
from cs_pipeline.retrieval.lookup import LookupModel, lookup_threshold
from cs_pipeline.retrieval.retrieve import open_index, retrieve

MAX_QUESTIONS = 2000
"""The maximum number of company rows that are asked: those with the smallest ids, which are hashes. They are enough to
know the mean of any score from 0 to 100 to within 2.2 points (95 %)."""


def company_results(
    recipe: Recipe,
    adapter: Path,
    lake: DataLake,
    all_rows: FrozenTestSet,
    test: pd.DataFrame,
    stats: Mapping[str, pd.DataFrame],
) -> CompanyResults | None:
    """The company's part of the results, None without company rows.

    The look-up is this version if it is one; otherwise a look-up version is built from the same data. ``all_rows`` are
    all test rows. ``test`` holds those that the systems of ``stats`` answered; the row statistics are in the same
    order.
    """
    rows = company_rows(all_rows, lake)
    if rows.empty:
        return None
    asked = all_rows.with_rows(rows[smallest_ids(rows["row_id"].tolist(), MAX_QUESTIONS)])
    look_up = LookupModel.load(recipe, adapter) if isinstance(recipe, LookupRecipe) else None
    answers = cross_validated_answers(asked, lake, look_up)
    by_intent = {
        str(intent): _scored(asked, answers, (asked.test["intent"] == intent).to_numpy())
        for intent, clusters in asked.test.groupby("intent")["cluster_id"].nunique().items()
        if clusters >= MIN_CLUSTERS
    }
    of_company = _is_company(test)
    clusters = test["cluster_id"][of_company].tolist()
    differences = {
        system: paired_bootstrap(stats["tuned"][of_company], frame[of_company], clusters, metrics=(PRIMARY_METRIC,))[
            PRIMARY_METRIC
        ]
        for system, frame in of_rivals(stats).items()
        if len(set(clusters)) >= MIN_CLUSTERS
    }
    return CompanyResults(
        **dict(_scored(asked, answers, np.ones(len(answers), bool))),
        conversations=rows["conversation_id"].fillna(rows["row_id"]).nunique(),
        rows_left_out=len(rows) - len(answers),
        by_intent=by_intent,
        test_rows=len(clusters),
        test_clusters=len(set(clusters)),
        differences=differences,
    )


def company_rows(all_rows: FrozenTestSet, lake: DataLake) -> pd.DataFrame:
    """The company's rows of all splits, with the columns of ``read_split``. ``all_rows`` are all test rows of ``lake``."""
    splits = [all_rows.train, read_split(lake, "validation", all_rows.mode), all_rows.test]
    return pd.concat([split[_is_company(split)] for split in splits], ignore_index=True)


def cross_validated_answers(asked: FrozenTestSet, lake: DataLake, look_up: LookupModel | None = None) -> list[Answer]:
    """What a look-up answers to these rows without the known answers of their own clusters and conversations.

    ``look_up`` is a version. If it is None, these are the answers of a look-up version made from the same data.
    """
    free = LookupRecipe(name=LOOKUP, description=SYSTEMS[LOOKUP], method="lookup", placeholders=asked.mode)
    index = open_index(free, lake)
    assert index is not None  # a look-up retrieves
    if look_up is None:
        look_up = LookupModel(free, lookup_threshold(free, index, lake)[0])
    clusters, intents = asked.test["cluster_id"].tolist(), asked.predicted_intents
    retrieved = retrieve(
        index, look_up.recipe.prompt, asked.mode, asked.searched, intents, clusters=clusters, own_rows=asked.own_rows
    )
    return look_up.answer(asked.questions, intents, asked.contexts, retrieved=retrieved)


def _scored(asked: FrozenTestSet, answers: Sequence[Answer], rows: np.ndarray) -> CrossValidated:
    """Counts and scores of those ``answers`` for which ``rows`` [rows] is True."""
    answered = rows & np.array([bool(answer.retrieved) for answer in answers])
    given, part = [answers[i] for i in np.flatnonzero(answered).tolist()], asked.test[answered]
    scores: Scores = {}
    if part["cluster_id"].nunique() >= MIN_CLUSTERS:
        copied = [answer.text for answer in given], [answer.retrieved for answer in given]
        stats = asked.part(answered).score(*copied, stopped=1.0)
        scores = intervals(stats, part["cluster_id"].tolist())
    return CrossValidated(
        rows=int(rows.sum()),
        clusters=asked.test["cluster_id"][rows].nunique(),
        handed_over=int(rows.sum() - answered.sum()),
        from_bitext=sum(answer.retrieved[0].source == "bitext" for answer in given),
        scores=scores,
    )


def _is_company(rows: pd.DataFrame) -> np.ndarray:
    return (rows["source"] == "company").to_numpy(bool)
