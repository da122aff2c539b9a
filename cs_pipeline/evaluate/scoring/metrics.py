"""Scores of answers against their references, computed from statistics of each row.

Every score of a system is a function of sums over its rows. A bootstrap can therefore reweight rows without reading the
texts again, and the scores still equal those of rouge-score and sacreBLEU for the same texts.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from types import SimpleNamespace
from typing import Literal, NamedTuple

import numpy as np
import pandas as pd
from rapidfuzz.distance import LCSseq

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.evaluate.scoring.answer_errors import ANSWER_ERRORS
from cs_pipeline.evaluate.scoring.fidelity import placeholder_names
from cs_pipeline.text.placeholders import catalogue
from cs_pipeline.text.safety import is_safe

CALLER_COLUMNS = (
    *("nll", "answer_tokens", "answer_chars", "right_intent", "stopped"),
    *("needed", "present", "filled", "fabricates", *ANSWER_ERRORS, "rubric", "heuristic", "quality"),
)
"""Columns of row_statistics that the caller fills: figures that the model reports, and results of other modules."""

BLEU_ORDERS = 4
CHRF_ORDERS = 6
CHUNK_ROWS = 64  # small enough for the n-gram tables to stay in the processor's cache


@dataclass(frozen=True)
class Metric:
    """A score of a system, computed from the sums of some columns of row_statistics.

    ``function`` maps sums [..., len(columns)] to scores [...], NaN for 0 / 0. With ``may_be_empty`` NaN is not an error: it
    means that there was nothing to score, for example because no answer has a placeholder.
    """

    name: str
    label: str
    better: Literal["higher", "lower", "none"]
    columns: tuple[str, ...]
    function: Callable[[np.ndarray], np.ndarray]
    may_be_empty: bool = False

    def values(self, stats: pd.DataFrame) -> np.ndarray:
        """The columns that the score is computed from, [rows, len(columns)]."""
        # One by one: pandas takes ten times as long to look up several names at once.
        return np.column_stack([stats[column].to_numpy(float) for column in self.columns])

    def has_inputs(self, stats: pd.DataFrame) -> bool:
        """False when the system does not report an input: its column is NaN in every row.

        Raises PipelineError when there are no rows, or when an input is missing or infinite in some of them.
        """
        if stats.empty:
            raise PipelineError("There are no rows to score.", "Materialise the test split again: it must have rows.")
        values = self.values(stats)
        if np.isnan(values).all(axis=0).any():
            return False
        for column, missing in zip(self.columns, (~np.isfinite(values)).sum(axis=0), strict=True):
            if missing:
                raise PipelineError(
                    f"{self.label} cannot be computed: '{column}' is not a number in {missing} of {len(stats)} rows.",
                    "A system is scored on all test rows or not at all. Look at its log and evaluate it again.",
                )
        return True

    def scores(self, sums: np.ndarray) -> np.ndarray | None:
        """The scores [...] for ``sums`` [..., len(columns)].

        If one of them is not a finite number, returns None with ``may_be_empty``; otherwise raises PipelineError.
        """
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            scores = self.function(sums)
        if np.isfinite(scores).all():
            return scores
        if self.may_be_empty:
            return None
        raise PipelineError(
            f"{self.label} is not a finite number, although none of its inputs is missing.",
            f"Look at its row statistics ({', '.join(self.columns)}): they sum to 0 or are far too large.",
        )


def corpus_scores(stats: pd.DataFrame, metrics: Collection[str] | None = None) -> dict[str, float | None]:
    """The scores of a system over all rows of its row statistics, by metric name; all METRICS if ``metrics`` is None.

    None where the system lacks the inputs (a baseline has no likelihood) or there is nothing to score. Raises
    PipelineError when an input is missing in only some rows, or when a score is not a number.
    """
    scores: dict[str, float | None] = {}
    for name in METRICS if metrics is None else metrics:
        metric = METRICS[name]
        score = metric.scores(metric.values(stats).sum(axis=0)) if metric.has_inputs(stats) else None
        scores[name] = None if score is None else float(score)
    return scores


def row_statistics(questions: Sequence[str], answers: Sequence[str], references: Sequence[str]) -> pd.DataFrame:
    """Statistics of each answer against its reference: one row per answer, in the order given.

    ``rouge1``, ``rouge2``, ``rougeL`` (F1 with Porter stemmer) and ``chrf`` (sacreBLEU's sentence score) are scores from 0
    to 100; the other columns are counts of words, n-grams and placeholders. Placeholders are counted as sets of names:
    repeats count once, and so do spellings that the catalogue maps to the same name. A placeholder is invented if it is not
    in the reference, the question or the catalogue. ``safe`` is 1 if ``is_safe`` is true, else 0.

    ``labelled`` is 1 in every row; the caller sets it to 0 where the right intent is not known. CALLER_COLUMNS are NaN. The
    caller fills those that the system reports, in all rows: ``nll`` (nats) with the ``answer_tokens`` and ``answer_chars``
    that it was summed over, ``right_intent`` and ``stopped`` (0 or 1), and the columns of fidelity, answer_errors, rubric
    and quality.
    """
    placeholders = _placeholder_statistics(questions, answers, references)
    chunks = [slice(start, start + CHUNK_ROWS) for start in range(0, max(len(answers), 1), CHUNK_ROWS)]
    texts = pd.concat([_text_statistics(answers[c], references[c]) for c in chunks], ignore_index=True)
    safe = [int(is_safe(*row)) for row in zip(questions, answers, references, strict=True)]
    stats = pd.concat([texts, placeholders], axis=1).assign(safe=safe, rows=1, labelled=1)
    return stats.assign(**dict.fromkeys(CALLER_COLUMNS, np.nan))


QUALITY_WEIGHTS = {"intent": 0.4, "placeholders": 0.2, "facts": 0.2, "wording": 0.1, "length": 0.1}
"""The weight of each part of the answer quality. The weights sum to 1. They were fixed before any models were compared."""


def answer_quality(stats: pd.DataFrame) -> np.ndarray:
    """How useful each answer is to a customer, from 0 to 1: [rows]. docs/evaluation.md gives the reasons.

    An answer to another intent, or an unsafe one, is worth 0, however well it is written. Any other answer gets the weight
    of the right intent, and more for its facts, placeholders, wording and length. If the right intent of a row is not known,
    the other weights are scaled up to sum to 1.

    ``stats`` has the columns of ``row_statistics`` and the caller's ``right_intent`` and ``fabricates``. The parts are: 1
    for the right intent; the F1 of placeholder names (1 if neither text has any); 1 without a made-up fact; chrF; and the
    length of the shorter text over that of the longer one.
    """
    placeholders = stats["answer_placeholders"] + stats["reference_placeholders"]
    words = stats[["answer_words", "reference_words"]]
    labelled = stats["labelled"] == 1
    parts = {
        "intent": labelled.astype(float),
        "placeholders": (2 * stats["matched_placeholders"] / placeholders).where(placeholders > 0, 1.0),
        "facts": 1 - stats["fabricates"],
        "wording": stats["chrf"] / 100,
        "length": words.min(axis=1) / words.max(axis=1).clip(lower=1),
    }
    weighted = sum(
        (weight * parts[part] for part, weight in QUALITY_WEIGHTS.items()), start=pd.Series(0.0, stats.index)
    )
    quality = weighted / labelled.map({True: 1.0, False: 1 - QUALITY_WEIGHTS["intent"]})
    return (quality * stats["safe"] * stats["right_intent"].where(labelled, 1.0)).to_numpy(float)


class _Counts(NamedTuple):
    """The number of n-grams (n = 1, 2, …) in the answer, in the reference and in both, each [rows, orders]."""

    answer: np.ndarray
    reference: np.ndarray
    match: np.ndarray


def _ngram_counts(answers: list[np.ndarray], references: list[np.ndarray], orders: int) -> _Counts:
    """Counts n-grams of symbols (integers from 0), with repetitions, in all rows at once."""
    rows = len(answers)
    sequences = [*answers, *references]
    lengths = np.array([len(sequence) for sequence in sequences], np.int64)
    symbols = np.concatenate([np.empty(0, np.int64), *sequences])
    text = np.repeat(np.arange(2 * rows), lengths)
    row, is_reference, end = text % rows, text // rows, np.cumsum(lengths)[text]
    start, gram = np.arange(len(symbols)), row
    match = np.zeros((rows, orders), np.int64)
    for n in range(1, orders + 1):
        fits = start + n <= end[start]
        # An n-gram's number combines the number of its first n-1 symbols with its last symbol. The empty n-gram is numbered
        # by its row, so equal numbers mean equal n-grams of the same row.
        start, gram = start[fits], gram[fits] * (symbols.max(initial=0) + 1) + symbols[start[fits] + n - 1]
        gram, distinct = pd.factorize(gram)
        occurrences = np.bincount(gram + len(distinct) * is_reference[start], minlength=2 * len(distinct))
        in_both = np.minimum(occurrences[: len(distinct)], occurrences[len(distinct) :])
        row_of_gram = np.empty(len(distinct), np.int64)
        row_of_gram[gram] = row[start]
        match[:, n - 1] = np.bincount(row_of_gram, weights=in_both, minlength=rows)
    totals = np.maximum(lengths[:, None] - np.arange(orders), 0)
    return _Counts(totals[:rows], totals[rows:], match)


def _word_counts(answers: Sequence[Sequence[str]], references: Sequence[Sequence[str]], orders: int) -> _Counts:
    texts = [*answers, *references]
    number, _ = pd.factorize(np.array([word for words in texts for word in words], dtype=object))
    ends = accumulate(map(len, texts))
    numbers = [number[end - len(words) : end] for words, end in zip(texts, ends, strict=True)]
    return _ngram_counts(numbers[: len(answers)], numbers[len(answers) :], orders)


def _text_statistics(answers: Sequence[str], references: Sequence[str]) -> pd.DataFrame:
    columns = {
        "answer_words": np.array([len(text.split()) for text in answers], np.int64),
        "reference_words": np.array([len(text.split()) for text in references], np.int64),
    }
    return pd.DataFrame(columns | _rouge(answers, references) | _bleu(answers, references) | _chrf(answers, references))


@lru_cache(maxsize=1)
def _stemmer() -> SimpleNamespace:
    """A stemmer for rouge-score's tokenizer, cached because nearly every word repeats."""
    from nltk.stem.porter import PorterStemmer

    return SimpleNamespace(stem=lru_cache(maxsize=100_000)(PorterStemmer().stem))


@lru_cache(maxsize=2**15)
def _rouge_words(text: str) -> tuple[str, ...]:
    """The tokens that rouge-score counts in a text. They are cached, because all systems have the same references."""
    from rouge_score.tokenize import tokenize

    return tuple(tokenize(text, _stemmer()))


def _rouge(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """ROUGE F1 of each row (Lin 2004), as rouge_score.RougeScorer(use_stemmer=True) defines it."""
    answer_words, reference_words = ([_rouge_words(text) for text in texts] for texts in (answers, references))
    counts = _word_counts(answer_words, reference_words, 2)
    pairs = zip(answer_words, reference_words, strict=True)
    longest = np.array([LCSseq.similarity(answer, reference) for answer, reference in pairs], np.int64)
    match = np.column_stack([counts.match, longest])
    # F1 of precision (match / answer) and recall (match / reference); 0 where nothing matches or a text is empty.
    size = (counts.answer + counts.reference)[:, [0, 1, 0]]
    return dict(zip(("rouge1", "rouge2", "rougeL"), (200 * match / np.maximum(size, 1)).T, strict=True))


@lru_cache(maxsize=1)
def _bleu_tokenizer() -> Callable[[str], str]:
    """BLEU's own tokenizer. It caches texts, so the references are tokenized once for all systems."""
    from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

    return Tokenizer13a()  # type: ignore[no-untyped-call]


def _bleu(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """The counts from which sacrebleu.BLEU is computed, for each row, named as the columns of the metric ``bleu``."""
    tokenize = _bleu_tokenizer()
    answer_words, reference_words = ([tokenize(t.rstrip()).split() for t in texts] for texts in (answers, references))
    counts = _word_counts(answer_words, reference_words, BLEU_ORDERS)
    columns = np.column_stack([counts.answer[:, 0], counts.reference[:, 0], counts.match, counts.answer])
    return dict(zip(METRICS["bleu"].columns, columns.T, strict=True))


def _chrf(answers: Sequence[str], references: Sequence[str]) -> dict[str, np.ndarray]:
    """The counts of sacrebleu.CHRF for each row, named as the columns of the metric ``chrf``, and the row's score."""
    # sacreBLEU ignores whitespace. surrogatepass allows texts that contain half a surrogate pair.
    answer_chars, reference_chars = (
        [np.frombuffer("".join(t.split()).encode("utf-32-le", "surrogatepass"), np.uint32) for t in texts]
        for texts in (answers, references)
    )
    counts = _ngram_counts(answer_chars, reference_chars, CHRF_ORDERS)
    counted = np.where(counts.reference > 0, counts.answer, 0)  # sacreBLEU skips orders that the reference lacks
    columns = np.column_stack([counted, counts.reference, counts.match])
    return dict(zip(METRICS["chrf"].columns, columns.T, strict=True)) | {"chrf": _chrf_score(columns)}


def _placeholder_statistics(
    questions: Sequence[str], answers: Sequence[str], references: Sequence[str]
) -> pd.DataFrame:
    rows = []
    for texts in zip(questions, answers, references, strict=True):
        question, answer, reference = map(placeholder_names, texts)
        invented = answer - reference - question - catalogue().keys()
        rows.append((len(answer), len(reference), len(answer & reference), len(invented)))
    kinds = ("answer", "reference", "matched", "invented")
    return pd.DataFrame(rows, columns=[f"{kind}_placeholders" for kind in kinds], dtype="int64")


def _bleu_score(sums: np.ndarray) -> np.ndarray:
    """BLEU (Papineni et al. 2002) with sacreBLEU's defaults: 4-grams, brevity penalty, exponential smoothing."""
    answer, reference, match, total = np.split(sums, [1, 2, 2 + BLEU_ORDERS], axis=-1)
    smoothing = 2.0 ** np.cumsum(match == 0, axis=-1)
    precision = np.where(match > 0, match, 1 / smoothing) / total
    brevity = np.minimum(1 - reference / answer, 0)[..., 0]
    score = 100 * np.exp(brevity + np.log(precision).mean(axis=-1))
    return np.where(match.any(axis=-1) & total.all(axis=-1), score, 0.0)


def _chrf_score(sums: np.ndarray) -> np.ndarray:
    """chrF2 (Popović 2015) with sacreBLEU's defaults: precision and recall averaged over the orders that both sides have."""
    answer, reference, match = np.split(sums, 3, axis=-1)
    both = (answer > 0) & (reference > 0)
    orders = np.maximum(both.sum(axis=-1), 1)
    precision = (both * match / np.maximum(answer, 1)).sum(axis=-1) / orders
    recall = (both * match / np.maximum(reference, 1)).sum(axis=-1) / orders
    return 100 * np.where(recall > 0, 5 * precision * recall / np.where(recall > 0, 4 * precision + recall, 1), 0.0)


def _ratio(sums: np.ndarray) -> np.ndarray:
    return sums[..., 0] / sums[..., 1]


def _percent(sums: np.ndarray) -> np.ndarray:
    return 100 * _ratio(sums)


_FORMULAS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "ratio": _ratio,
    "percent": _percent,
    "bits": lambda sums: _ratio(sums) / np.log(2),
    "perplexity": lambda sums: np.exp(_ratio(sums)),
    "f1": lambda sums: 200 * sums[..., 0] / (sums[..., 1] + sums[..., 2]),
    "bleu": _bleu_score,
    "chrf": _chrf_score,
}


def _read_metrics() -> dict[str, Metric]:
    listed = read_yaml(Path(__file__).with_suffix(".yaml"))
    for error in ANSWER_ERRORS:
        label = f"{error.capitalize().replace('_', ' ')} (%)"
        listed[f"error_{error}"] = {"label": label, "better": "lower", "columns": [error, "rows"], "formula": "percent"}
    return {
        name: Metric(
            name,
            entry["label"],
            entry["better"],
            tuple(entry["columns"]),
            _FORMULAS[entry["formula"]],
            entry.get("may_be_empty", False),
        )
        for name, entry in listed.items()
    }


METRICS = _read_metrics()
"""All metrics by name: those of ``metrics.yaml``, and the rate of each answer error as ``error_<name>``. ROUGE, BLEU and
chrF range from 0 to 100, as rates do."""
