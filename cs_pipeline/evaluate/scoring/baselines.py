"""Baseline answers that are looked up in the training rows without a model. A useful model beats them."""

from collections.abc import Collection, Sequence

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.scoring.metrics import corpus_scores, row_statistics
from cs_pipeline.llm.prompt import RetrievedText
from cs_pipeline.recipe import LOOKUP_PROMPT
from cs_pipeline.retrieval.index import RetrievalIndex
from cs_pipeline.retrieval.retrieve import retrieve
from cs_pipeline.retrieval.similarity import nearest
from cs_pipeline.text.placeholders import PlaceholderMode


def lookup_answers(
    index: RetrievalIndex,
    mode: PlaceholderMode,
    questions: Sequence[str],
    intents: Sequence[str | None],
    own_rows: Sequence[Collection[str]],
) -> list[str]:
    """For each question the usual known answer to similar questions of its intent; "" if no known question is similar.

    ``own_rows`` are the ids of the rows of its own conversation, whose answers it does not get.
    """
    retrieved = retrieve(index, LOOKUP_PROMPT, mode, questions, intents, own_rows=own_rows)
    return [texts[0].text if texts else "" for texts in retrieved]


def as_sources(answers: Sequence[str]) -> list[list[RetrievedText]]:
    """For each of the copied ``answers``, the known answer that it was copied from."""
    return [[RetrievedText("answer", "", text, "", None, None, 1.0)] for text in answers]


def random_answers(train: pd.DataFrame, questions: Sequence[str], seed: int = 0) -> list[str]:
    """For each question the answer of a random row of ``train``, which has the columns instruction, response, intent."""
    drawn = np.random.default_rng(seed).integers(0, len(train), size=len(questions))
    return train["response"].iloc[drawn].tolist()


def central_answers(
    train: pd.DataFrame, intents: Sequence[str | None], own_rows: Sequence[Collection[str]]
) -> list[str]:
    """For each predicted intent its most central training answer, the one nearest to the intent's mean TF-IDF vector.

    Without a predicted intent it is the most central of all answers. ``own_rows`` are as in ``lookup_answers``; the answer
    is "" if there is no other row.
    """
    ranked = {intent: _by_centrality(train, intent) for intent in set(intents)}
    return [
        next((answer for row, answer in ranked[intent] if row not in own), "")
        for intent, own in zip(intents, own_rows, strict=True)
    ]


def _by_centrality(train: pd.DataFrame, intent: str | None) -> list[tuple[str, str]]:
    """The row ids and answers of ``intent``, or of all rows for None; the most central first."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    rows = train if intent is None else train[train["intent"] == intent]
    vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(rows["response"])
    similarity = vectors @ np.asarray(vectors.mean(axis=0)).ravel()
    order = np.argsort(-similarity, kind="stable")
    return list(zip(rows["row_id"].iloc[order], rows["response"].iloc[order], strict=True))


def nearest_answers(
    train: pd.DataFrame, questions: Sequence[str], own_rows: Sequence[Collection[str]] | None = None
) -> list[str]:
    """For each question the answer of the most similar training question, by character TF-IDF.

    ``own_rows`` are the ids of the training rows of its own conversation, whose answers it does not get.
    """
    rows, _ = nearest(questions, train["instruction"].tolist())
    answers = train["response"].iloc[rows].tolist()
    for number, ids in enumerate(own_rows or []):
        if ids:
            others = train[~train["row_id"].isin(list(ids))]
            answers[number] = nearest_answers(others, [questions[number]])[0]
    return answers


NAIVE_METRICS = ("rouge1", "rouge2", "rougeL", "bleu", "chrf")
"""The metrics that published results on random splits report."""

_HELD_OUT_ROWS = 1000  # with half as many, the scores move by more than a point from seed to seed


def naive_scores(conversations: pd.DataFrame, rows: int = _HELD_OUT_ROWS, seed: int = 0) -> dict[str, float | None]:
    """NAIVE_METRICS of the nearest question's answer on ``rows`` conversations held out at random, stratified by intent.

    Published results use such a random split, with near-duplicates on both sides. Raises PipelineError when there are no
    rows to hold out.
    """
    held_out = stratified_sample(conversations["intent"].tolist(), rows, seed)
    test, train = conversations.iloc[held_out], conversations.drop(index=conversations.index[held_out])
    questions = test["instruction"].tolist()
    stats = row_statistics(questions, nearest_answers(train, questions), test["response"].tolist())
    return corpus_scores(stats, NAIVE_METRICS)


def stratified_sample(labels: Sequence[str], rows: int, seed: int) -> np.ndarray:
    """Indices of about ``rows`` of ``labels``, drawn at random in proportion to each label, at most half of each."""
    share = min(rows / max(len(labels), 1), 0.5)
    rng = np.random.default_rng(seed)
    numbers, names = pd.factorize(np.asarray(labels, dtype=object), sort=True)
    drawn = [np.zeros(0, np.int64)]
    for number in range(len(names)):
        shuffled = rng.permutation(np.flatnonzero(numbers == number))
        drawn.append(shuffled[: round(share * len(shuffled))])
    return np.sort(np.concatenate(drawn))
