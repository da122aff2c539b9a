"""Nearest questions by character TF-IDF, compared with scikit-learn, and on real data."""

import numpy as np
import pytest

from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.splits.split import Split
from cs_pipeline.retrieval.similarity import naive_split_similarity, nearest


@pytest.fixture(scope="module")
def questions() -> list[str]:
    """1,400 distinct questions of the project's own grammar: more than one batch."""
    return list(dict.fromkeys(sample_rows()["instruction"]))[:1_400]


def test_the_nearest_question_is_that_of_a_full_comparison(questions: list[str]) -> None:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.metrics.pairwise import cosine_similarity

    asked, others = questions[:700], questions[700:]
    positions, cosines = nearest(asked, others)
    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True).fit(others)
    truth = cosine_similarity(vectorizer.transform(asked), vectorizer.transform(others))
    assert positions.shape == cosines.shape == (700,)
    np.testing.assert_allclose(cosines, truth.max(axis=1), atol=1e-6)
    np.testing.assert_allclose(truth[np.arange(700), positions], truth.max(axis=1), atol=1e-6)


def test_every_question_is_nearest_to_itself(questions: list[str]) -> None:
    order = np.random.default_rng(0).permutation(len(questions))
    positions, cosines = nearest(questions, [questions[i] for i in order])
    assert order[positions].tolist() == list(range(len(questions)))
    np.testing.assert_allclose(cosines, 1, atol=1e-6)
    assert cosines.max() <= 1


def test_questions_without_common_ngrams_have_similarity_zero() -> None:
    _, cosines = nearest(["zzzzzz", "", "where is my order"], ["where is my order", "cancel it"])
    np.testing.assert_allclose(cosines, [0, 0, 1], atol=1e-6)


def test_no_questions_give_empty_arrays(questions: list[str]) -> None:
    positions, cosines = nearest([], questions)
    assert positions.shape == cosines.shape == (0,)


def test_a_random_split_holds_out_the_given_share(questions: list[str]) -> None:
    held_out, cosines = naive_split_similarity(questions, 0.05)
    assert len(cosines) == len(set(held_out.tolist())) == 70
    np.testing.assert_array_equal(cosines, naive_split_similarity(questions, 0.05)[1])
    assert not np.array_equal(cosines, naive_split_similarity(questions, 0.05, seed=1)[1])
    assert cosines.max() < 1 - 1e-6, "no question is compared with itself"


def test_bitext_is_harder_by_clusters_than_by_rows(split_bitext: Split) -> None:
    frame = split_bitext.rows.select(["instruction", "split"]).to_pandas()
    asked = frame.loc[frame["split"] == "test", "instruction"].tolist()
    _, ours = nearest(asked, frame.loc[frame["split"] == "train", "instruction"].tolist())
    naive = naive_split_similarity(frame["instruction"].tolist(), 0.05)[1]
    assert np.median(ours) < np.median(naive)
    assert (ours > 0.99).mean() < 0.01
    assert (naive > 0.99).mean() > 0.1, "by rows, one test question in six is almost a training question"
