import random
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.evaluate.scoring.metrics import CALLER_COLUMNS, CHUNK_ROWS, METRICS, corpus_scores, row_statistics

TEXT = (
    "refund refunds refunded order orders ordering the your you're we'll please contact contacting support 24/7 "
    "e-mail $1,299.50 3.5 {{Order Number}} {{Refund Amount}} (see below) happily customers' naïve déjà 😀 agents: "
    "1.\n- step --- &amp; OK! <b> It's don't"
)
WORDS = TEXT.split(" ")

AWKWARD = [
    ("", ""),
    ("", "an answer"),
    ("an answer", ""),
    (" \n\t ", "?!"),
    ("?!", "?!"),
    ("word", "word"),
    ("a b c", "a b c"),
    ("yes yes yes yes yes", "yes"),
    ("DON'T PANIC", "don't panic"),
    ("running runs ran", "run runner running"),
    ("é", "e"),
    ("日本語のテキスト", "日本語"),
    ("one two three four", "four three two one"),
]


def score(scores: dict[str, float | None], name: str) -> float:
    value = scores[name]
    assert value is not None
    return value


def random_pairs(rows: int, seed: int) -> tuple[list[str], list[str]]:
    """Answers and references from one small vocabulary; some answers begin like their reference."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(0, 40))) for _ in range(rows)]
    answers = []
    for reference in references:
        start = reference[: rng.randint(0, len(reference))] if rng.random() < 0.5 else ""
        answers.append(start + " ".join(rng.choices(WORDS, k=rng.randint(0, 40))))
    return answers, references


def assert_as_rouge_score(answers: list[str], references: list[str]) -> None:
    stats = row_statistics([""] * len(answers), answers, references)
    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        expected = {kind: 100 * score.fmeasure for kind, score in scorer.score(reference, answer).items()}
        assert stats.loc[i, kinds].to_dict() == pytest.approx(expected, abs=1e-9), (answer, reference)


def assert_as_sacrebleu(answers: list[str], references: list[str]) -> None:
    stats = row_statistics([""] * len(answers), answers, references)
    scores = {
        name: METRICS[name].scores(stats[list(METRICS[name].columns)].sum().to_numpy(float))
        for name in ("bleu", "chrf")
    }
    assert scores["bleu"] == pytest.approx(sacrebleu.corpus_bleu(answers, [references], force=True).score, abs=1e-9)
    assert scores["chrf"] == pytest.approx(sacrebleu.corpus_chrf(answers, [references]).score, abs=1e-9)
    for i, (answer, reference) in enumerate(zip(answers, references, strict=True)):
        assert stats.loc[i, "chrf"] == pytest.approx(sacrebleu.sentence_chrf(answer, [reference]).score, abs=1e-9)


def test_rouge_equals_rouge_score_in_each_row() -> None:
    answers, references = random_pairs(CHUNK_ROWS + 50, seed=1)
    assert_as_rouge_score(answers, references)
    assert_as_rouge_score(*map(list, zip(*AWKWARD, strict=True)))


@pytest.mark.parametrize("rows", [1, 2, 30, CHUNK_ROWS, 2 * CHUNK_ROWS + 1])
def test_bleu_and_chrf_equal_sacrebleu(rows: int) -> None:
    assert_as_sacrebleu(*random_pairs(rows, seed=rows))


@pytest.mark.parametrize("pair", AWKWARD, ids=repr)
def test_bleu_and_chrf_of_awkward_texts_equal_sacrebleu(pair: tuple[str, str]) -> None:
    assert_as_sacrebleu([pair[0]], [pair[1]])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.tuples(st.text(max_size=30), st.text("ab .&-\n", max_size=30)), min_size=1, max_size=5))
def test_scores_of_any_text_equal_the_packages(pairs: list[tuple[str, str]]) -> None:
    answers, references = [a for a, _ in pairs], [r for _, r in pairs]
    for these, those in ((answers, references), (references, answers), (references, references[::-1])):
        assert_as_rouge_score(these, those)
        assert_as_sacrebleu(these, those)


def test_weighted_sums_score_like_repeated_rows() -> None:
    answers, references = random_pairs(40, seed=3)
    stats = row_statistics([""] * 40, answers, references)
    weights = np.random.default_rng(0).multinomial(40, [1 / 40] * 40, size=4)
    for name, expected in (("bleu", sacrebleu.corpus_bleu), ("chrf", sacrebleu.corpus_chrf)):
        scores = METRICS[name].scores(weights @ stats[list(METRICS[name].columns)].to_numpy(float))
        assert scores is not None
        for sample, score in zip(weights, scores, strict=True):
            drawn = np.repeat(np.arange(40), sample)
            assert score == pytest.approx(expected([answers[i] for i in drawn], [[references[i] for i in drawn]]).score)


def test_scores_of_real_answers_equal_the_packages(bitext_csv: Path) -> None:
    responses = pd.read_csv(bitext_csv, usecols=["response"])["response"].sample(120, random_state=0).tolist()
    assert_as_rouge_score(responses[:60], responses[60:])
    assert_as_sacrebleu(responses[:60], responses[60:])


def test_placeholders_are_counted_as_sets_of_names() -> None:
    stats = row_statistics(
        ["Where is {{Zork Code}}?", "Hello", "Hello"],
        [
            "{{Order Number}} and {{order number}}, {{Zork Code}}, {{Blorb Key}}, {{Refund Amount}}",
            "nothing",
            "{{Order Number}}",
        ],
        ["{{Order Number}} {{Invoice Number}}", "{{Order Number}}", "{{Order Number}} {{Blorb Key}}"],
    )
    counts = stats[[f"{kind}_placeholders" for kind in ("answer", "reference", "matched", "invented")]]
    # Invented is the one that is in neither the question, the reference nor the catalogue.
    assert counts.to_numpy().tolist() == [[4, 2, 1, 1], [0, 1, 0, 0], [1, 2, 1, 0]]
    scores = corpus_scores(stats)
    assert scores["placeholder_precision"] == pytest.approx(100 * 2 / 5)
    assert scores["placeholder_recall"] == pytest.approx(100 * 2 / 5)
    assert scores["placeholder_f1"] == pytest.approx(100 * 2 / 5)
    assert scores["placeholder_invented"] == pytest.approx(100 * 1 / 5)


def test_likelihoods_rates_and_lengths_are_scored() -> None:
    stats = row_statistics(["q", "q"], ["one two three", "one"], ["one two", "one two three"]).assign(
        nll=[np.log(2) * 10, np.log(2) * 30],
        answer_tokens=[4, 16],
        answer_chars=[20, 60],
        right_intent=[1, 0],
        stopped=[1, 1],
    )
    scores = corpus_scores(stats)
    assert scores["bits_per_character"] == pytest.approx(0.5)
    assert scores["perplexity"] == pytest.approx(4.0)
    assert scores["right_intent"] == 50.0
    assert scores["stop_rate"] == 100.0
    assert scores["length_ratio"] == pytest.approx(4 / 5)


def test_references_score_best_and_shuffled_references_worst() -> None:
    rng = random.Random(5)
    vocabulary = [
        f"{a}{b}" for a in ("re", "un", "over", "sub", "con") for b in ("fund", "pay", "ship", "track", "bill")
    ]
    references = [
        f"Hello {{{{Person Name}}}}, {' '.join(rng.choices(vocabulary, k=30))} {{{{{name}}}}}."
        for name in ("Order Number", "Invoice Number", "Refund Amount") * 20
    ]
    half = [" ".join([*r.split()[:20], *rng.choices(vocabulary, k=12)]) for r in references]
    shuffled = references[1:] + references[:1]
    questions = [""] * len(references)
    best, middle, worst = (
        corpus_scores(row_statistics(questions, a, references)) for a in (references, half, shuffled)
    )
    for name in ("rouge1", "rouge2", "rougeL", "bleu", "chrf", "placeholder_precision", "placeholder_recall"):
        assert best[name] == pytest.approx(100)
        assert score(worst, name) < score(best, name)
    for name in ("rouge1", "rouge2", "rougeL", "bleu", "chrf"):
        assert score(worst, name) < score(middle, name) < score(best, name)
    assert best["placeholder_invented"] == 0
    assert best["length_ratio"] == 1


def test_unreported_inputs_give_none_not_zero() -> None:
    scores = corpus_scores(row_statistics(["q"], ["an answer"], ["a reference"]))
    missing = {name for name, score in scores.items() if score is None}
    open_ = {name for name, metric in METRICS.items() if set(CALLER_COLUMNS) & set(metric.columns)}
    assert {"bits_per_character", "perplexity", "right_intent", "stop_rate", "fabricates", "error_too_long"} < open_
    about_placeholders = {f"placeholder_{name}" for name in ("precision", "recall", "f1", "invented")}
    assert missing == open_ | about_placeholders


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_input_missing_in_some_rows_raises(broken: float) -> None:
    stats = row_statistics(["q"] * 3, ["a"] * 3, ["a"] * 3).assign(
        nll=[1.0, broken, 1.0], answer_tokens=1, answer_chars=1
    )
    with pytest.raises(PipelineError, match=r"'nll' is not a number in 1 of 3 rows"):
        corpus_scores(stats)


@pytest.mark.parametrize(("nll", "chars"), [(1.0, 0), (1e6, 1)])
def test_a_score_that_is_not_a_number_raises(nll: float, chars: int) -> None:
    stats = row_statistics(["q"], ["a"], ["a"]).assign(nll=nll, answer_tokens=1, answer_chars=chars)
    with pytest.raises(PipelineError, match="is not a finite number"):
        corpus_scores(stats)


def test_no_rows_raise() -> None:
    with pytest.raises(PipelineError, match="no rows"):
        corpus_scores(row_statistics([], [], []))


@pytest.mark.parametrize("short", [0, 1, 2])
def test_lists_of_different_lengths_raise(short: int) -> None:
    texts = [["one", "two"], ["one", "two"], ["one", "two"]]
    texts[short].pop()
    with pytest.raises(ValueError, match=r"zip\(\) argument"):
        row_statistics(*texts)
