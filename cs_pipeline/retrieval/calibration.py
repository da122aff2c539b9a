"""Turns evidence into two probabilities: that a label is right, and that a question is about any known label.

The weights are learnt from trials. A trial leaves out some labels and treats their questions as unknown, so questions
about foreign subjects need not be collected. Other labels are cut down to a few questions, so that the weights also fit
a company's subjects: these may have three questions, while Bitext's intents have hundreds. But Bitext's questions are
worded alike. So in more trials, the subjects of a small example company are added, and the questions are those of its
customers: some about these subjects in other words, some about other things.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cs_pipeline.retrieval.evidence import (
    EvidenceModel,
    LabelledQuestions,
    QuestionEvidence,
    first_of_labels,
    is_small,
)

TRIALS = 5
"""Each trial leaves out a fifth of the clusters and of the labels."""

SMALL_SIZES = (2, 3, 5, 10)
"""Numbers of questions to which labels are cut down in the trials."""

SMALL_SHARE = 0.25
"""The share of the labels of a trial that are cut down."""

REWORDED_SHARE = 0.7
"""Of the questions about labels that were cut down, only this share counts: those least similar to the training
questions. Bitext's questions are more alike in wording than a company's. If all of them counted, wording would get too
much weight and meaning too little."""

ROWS_BESIDE_EXAMPLES = 100
"""The maximum number of questions of each other label in a trial with an example company. A label with so many is
large."""

MAX_QUESTIONS = 1_000
"""The maximum number of known questions in a trial; at most as many unknown questions are added."""

WHOLE, CUT, EXAMPLE = 0, 1, 2
"""The groups of the trials' questions."""

MIN_LABELS, MIN_QUESTIONS = 5, 30
"""Nothing is learnt from fewer labels, or from fewer known or unknown questions in all trials together."""

_RIDGE = 1e-3
_UNTRIED_MARGIN = 3.5  # the weight that trials on Bitext's rows give to the margin


@dataclass(frozen=True)
class Calibration:
    """Weights learnt from trials. They are the same for all labels.

    ``chooser`` weighs the evidence of ``QuestionEvidence.by_size``; the sum is a label's logit. ``known`` weighs the
    evidence of ``QuestionEvidence.of_labels`` and ends with an intercept; the sum is the logit of the probability that
    the question is about a known label. If nothing could be learnt, ``known`` is empty and every question counts as known.
    """

    chooser: np.ndarray
    known: np.ndarray

    @classmethod
    def untried(cls, inputs: int) -> "Calibration":
        """For too few labels or questions: the margin alone chooses the label, and every question counts as known."""
        return cls(np.array([_UNTRIED_MARGIN, *[0.0] * (inputs - 1)]), np.zeros(0))

    def probabilities(self, evidence: QuestionEvidence) -> np.ndarray:
        """The probability of each label if the question is about one of them: [questions, labels]."""
        return softmax(np.asarray(evidence.by_size() @ self.chooser))

    def knowns(self, evidence: QuestionEvidence, chosen: np.ndarray) -> np.ndarray:
        """The probability that each question is about a known label: [questions].

        ``chosen`` has the index of each question's most probable label.
        """
        if not len(self.known):
            return np.ones(len(chosen))
        logits = evidence.of_labels(chosen) @ self.known[:-1] + self.known[-1]
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of ``logits``: [rows, labels]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class ExampleCompany:
    """A small company: the training questions of its subjects, and what its customers ask next.

    The labels of ``asked`` are those of ``known``, or empty for questions about nothing known. Of ``asked``, only texts,
    labels and vectors are used.
    """

    known: LabelledQuestions
    asked: LabelledQuestions


@dataclass(frozen=True)
class RouterTrial:
    """The evidence for questions that a trial's model was not trained on.

    ``truth`` has the index of each question's label, or -1 if the model does not know the label. ``group`` says what
    kind of question each is: WHOLE, CUT (its label was cut down) or EXAMPLE (an example company's customer asks it).
    """

    evidence: QuestionEvidence
    truth: np.ndarray
    group: np.ndarray


@dataclass(frozen=True)
class TrialScores:
    """What the calibration says about the questions of the trials: arrays of shape [questions].

    ``known`` is the probability that the question is about a known label, and ``is_known`` is the truth. ``group`` is as in
    ``RouterTrial``. ``small`` says whether the chosen label is small, and ``right`` whether it is the question's label.
    """

    known: np.ndarray
    is_known: np.ndarray
    group: np.ndarray
    small: np.ndarray
    right: np.ndarray


def calibrate(rows: LabelledQuestions, companies: Sequence[ExampleCompany]) -> tuple[Calibration, TrialScores | None]:
    """The calibration for models trained on ``rows``, and the trials' scores, or None if ``rows`` are too few for trials.

    If there are enough large labels, the small ones of ``rows`` take no part. A company's subject may be the same as an
    intent of Bitext, and if a trial left out that intent, its questions would wrongly count as unknown. The example
    ``companies`` take the place of these small labels.
    """
    inputs = 2 * 5 + 1 if rows.vectors is None else 2 * 6 + 2 + 1
    _, codes, sizes = np.unique(rows.labels.astype(str), return_inverse=True, return_counts=True)
    if len(sizes) < MIN_LABELS:
        return Calibration.untried(inputs), None
    if (~is_small(sizes)).sum() >= MIN_LABELS:
        rows = rows.take(np.flatnonzero(~is_small(sizes)[codes]))
    trials = [trial for number in range(TRIALS) if (trial := _trial(rows, number)) is not None]
    if not trials:
        return Calibration.untried(inputs), None
    truth = np.concatenate([trial.truth for trial in trials])
    if min((truth >= 0).sum(), (truth < 0).sum()) < MIN_QUESTIONS:
        return Calibration.untried(inputs), None
    trials += [_example_trial(rows, company) for company in companies]
    truth = np.concatenate([trial.truth for trial in trials])
    group = np.concatenate([trial.group for trial in trials])
    chooser = Calibration(_fit_chooser(trials), np.zeros(0))
    chosen = [chooser.probabilities(trial.evidence).argmax(axis=1) for trial in trials]
    pairs = list(zip(trials, chosen, strict=True))
    small = np.concatenate([is_small(trial.evidence.sizes)[one] for trial, one in pairs])
    right = truth == np.concatenate(chosen)
    # An example company's question counts only if the chosen label is small, and only if that label is right or the
    # question is about nothing known.
    counted = np.flatnonzero((group != EXAMPLE) | (small & (right | (truth < 0))))
    evidence = np.concatenate([trial.evidence.of_labels(one) for trial, one in pairs])[counted]
    calibration = Calibration(
        chooser.chooser, _fit_known(evidence, truth[counted] >= 0, _weights(group[counted] == EXAMPLE))
    )
    known = np.concatenate([calibration.knowns(trial.evidence, one) for trial, one in pairs])
    return calibration, TrialScores(known, truth >= 0, group, small, right)


def _trial(rows: LabelledQuestions, number: int) -> RouterTrial | None:
    """Trains a model without a fifth of the clusters and a fifth of the labels. Some other labels are cut down.

    Returns the model's evidence for a selection of the questions that were left out; None if there is nothing to train
    on or to ask.
    """
    random = np.random.default_rng([0, number])
    held_out, left_out = _in_part(rows.clusters, number), _in_part(rows.labels, number)
    train, cut = ~held_out & ~left_out, np.zeros(len(held_out), dtype=bool)
    for label in np.unique(rows.labels[train].astype(str)):
        of_label = np.flatnonzero(train & (rows.labels == label))
        if len(of_label) > max(SMALL_SIZES) and random.random() < SMALL_SHARE:
            in_order = random.permutation(of_label)
            in_order = in_order[np.argsort(~rows.answered[in_order], kind="stable")]  # a small label keeps its answers
            train[in_order[random.choice(SMALL_SIZES) :]] = False
            cut |= rows.labels == label
    if not train.any():
        return None
    model = EvidenceModel.fit(rows.take(np.flatnonzero(train)))
    truth = _numbers(rows.labels, model)
    asked = random.permutation(np.flatnonzero(held_out & (truth >= 0)))[:MAX_QUESTIONS]
    foreign = random.permutation(np.flatnonzero(truth < 0))[: len(asked)]
    picked = np.concatenate([asked, foreign])
    if not len(picked):
        return None
    questions = rows.take(picked)
    evidence = model.look_at(questions.texts.tolist(), questions.vectors)
    kept = np.flatnonzero(_reworded(evidence, truth[picked], cut[picked]))
    return RouterTrial(evidence.take(kept), truth[picked][kept], np.where(cut[picked][kept], CUT, WHOLE))


def _reworded(evidence: QuestionEvidence, truth: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """False for questions about cut labels that are worded too much like the label's training questions: [questions]."""
    rows = np.flatnonzero(cut & (truth >= 0))
    kept = np.ones(len(truth), dtype=bool)
    if len(rows):
        similarity = evidence.kinds[rows, truth[rows], 1]
        kept[rows] = similarity <= np.quantile(similarity, REWORDED_SHARE)
    return kept


def _example_trial(rows: LabelledQuestions, company: ExampleCompany) -> RouterTrial:
    """Trains a model on ``rows`` and the subjects of ``company``, and asks it what the company's customers ask."""
    beside = rows.take(np.array(first_of_labels(rows.labels, ROWS_BESIDE_EXAMPLES)))
    model = EvidenceModel.fit(beside.joined(company.known))
    evidence = model.look_at(company.asked.texts.tolist(), company.asked.vectors)
    return RouterTrial(evidence, _numbers(company.asked.labels, model), np.full(len(company.asked.texts), EXAMPLE))


def _numbers(labels: np.ndarray, model: EvidenceModel) -> np.ndarray:
    """The index of each label among those of ``model``, -1 for a label that the model does not know."""
    number_of = {label: position for position, label in enumerate(model.labels)}
    return np.array([number_of.get(label, -1) for label in labels])


def _weights(group: np.ndarray) -> np.ndarray:
    """The weights of questions: they add up to 1, and each ``group`` has the same share of that. [questions]"""
    _, codes, counts = np.unique(group, return_inverse=True, return_counts=True)
    return np.asarray(1 / counts[codes] / len(counts))


def _in_part(names: np.ndarray, number: int) -> np.ndarray:
    """Whether each name is in the part with this ``number``: [names]. Every name is in exactly one part."""
    distinct, codes = np.unique(names.astype(str), return_inverse=True)
    return np.asarray((np.random.default_rng(0).permutation(len(distinct)) % TRIALS == number)[codes])


def _fit_chooser(trials: Sequence[RouterTrial]) -> np.ndarray:
    """The weights with the highest likelihood on the known questions: temperature scaling, for several inputs at once.

    All groups of questions count the same, however many questions they have.
    """
    known = [np.flatnonzero(trial.truth >= 0) for trial in trials]
    weights = _weights(np.concatenate([trial.group[rows] for trial, rows in zip(trials, known, strict=True)]))
    of_trials = np.split(weights, np.cumsum([len(rows) for rows in known])[:-1])
    parts = [
        (trial.evidence.by_size()[rows], trial.truth[rows], of_trial)
        for trial, rows, of_trial in zip(trials, known, of_trials, strict=True)
    ]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _RIDGE * float(values @ values), 2 * _RIDGE * values
        for inputs, truth, weights in parts:
            rows = np.arange(len(truth))
            p = softmax(inputs @ values)
            value -= float(weights @ np.log(np.clip(p[rows, truth], 1e-12, 1)))
            p[rows, truth] -= 1
            slope = slope + np.einsum("q,ql,qlk->k", weights, p, inputs, optimize=True)
        return value, slope

    return _fit_weights(loss, parts[0][0].shape[2])


def _fit_known(inputs: np.ndarray, known: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The weights of a logistic regression, and its intercept. ``weights`` are those of the questions.

    No evidence gets a negative weight, so more evidence for a label never speaks against it, whatever the trials contained.
    Only two weights may have any sign: that of the last input, which says how small the label is, and the intercept.
    """
    scale = np.maximum(inputs.std(axis=0), 1e-6)
    scaled, sign = np.column_stack([inputs / scale, np.ones(len(inputs))]), np.where(known, 1.0, -1.0)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled @ values)
        pull = -sign / (1 + np.exp(np.clip(margin, -500, 500))) * weights
        ridge = _RIDGE * np.append(values[:-1], 0)
        return float(weights @ np.logaddexp(0, -margin) + ridge @ values), scaled.T @ pull + 2 * ridge

    fitted = _fit_weights(loss, scaled.shape[1], free=2)
    return np.append(fitted[:-1] / scale, fitted[-1])


def _fit_weights(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], count: int, free: int | None = None
) -> np.ndarray:
    """The weights with the lowest ``loss``. If ``free`` is given, only the last ``free`` ones may be negative."""
    from scipy.optimize import minimize

    bounds = None if free is None else [(0, None)] * (count - free) + [(None, None)] * free
    return np.asarray(minimize(loss, np.zeros(count), jac=True, bounds=bounds, method="L-BFGS-B").x)
