"""Answers that cost nothing: taken from the training rows. A model worth having beats them."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cs_pipeline.prepare.similarity import nearest


def random_answers(train: pd.DataFrame, questions: Sequence[str], seed: int = 0) -> list[str]:
    """For each question the answer of any training row; ``train`` has the columns instruction, response, intent."""
    places = np.random.default_rng(seed).integers(0, len(train), size=len(questions))
    return train["response"].iloc[places].tolist()


def central_answers(train: pd.DataFrame, intents: Sequence[str]) -> list[str]:
    """For each predicted intent its most central training answer: the one nearest to the mean TF-IDF vector of them all."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    central: dict[str, str] = {}
    for intent in sorted(set(intents)):
        answers = train.loc[train["intent"] == intent, "response"].tolist()
        vectors = TfidfVectorizer(sublinear_tf=True).fit_transform(answers)
        likeness = vectors @ np.asarray(vectors.mean(axis=0)).ravel()
        central[intent] = answers[int(likeness.argmax())]
    return [central[intent] for intent in intents]


def nearest_answers(train: pd.DataFrame, questions: Sequence[str]) -> list[str]:
    """For each question the answer of the most similar training question, by character TF-IDF."""
    places, _ = nearest(questions, train["instruction"].tolist())
    return train["response"].iloc[places].tolist()
