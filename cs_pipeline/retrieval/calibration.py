"""Learns from trials what evidence is worth: how probable a label is, and whether a question is about any known label.

A trial leaves out some labels, so their questions are unknown by construction and no questions about foreign subjects
have to be collected. Other labels are cut down to a few questions, so that the result also fits a company's subjects,
which may have three questions beside Bitext's hundreds.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from cs_pipeline.retrieval.evidence import EvidenceModel, LabelledQuestions, QuestionEvidence, is_small

TRIALS = 5
"""Each trial leaves out a fifth of the clusters and of the labels."""

SMALL_SIZES = (2, 3, 5, 10)
"""Numbers of questions to which labels are cut down in the trials."""

SMALL_SHARE = 0.25
"""The share of the labels of a trial that are cut down."""

REWORDED_SHARE = 0.7
"""Of the questions about a label that was cut down, this share counts: those with the least similar wording. Bitext's
questions are worded more closely than those of a company, and evidence from meaning would seem to be worth less than it
is."""

MAX_QUESTIONS = 1_000
"""The maximum number of known questions of a trial, and of unknown ones."""

MIN_LABELS, MIN_QUESTIONS = 5, 30
"""With fewer labels, or fewer known or unknown questions in all trials, nothing can be learnt."""

_RIDGE = 1e-3
_UNTRIED_MARGIN = 3.5  # the margin's weight that trials on Bitext's rows give


@dataclass(frozen=True)
class Calibration:
    """Weights learnt from trials. They are the same for all labels.

    ``chooser`` weighs the evidence of ``QuestionEvidence.by_size``; the sum is a label's logit. ``known`` weighs the
    evidence of ``QuestionEvidence.of_labels`` and ends with an intercept; the sum is the logit of the question being
    about a known label. It is empty if there were no trials; then every question is known.
    """

    chooser: np.ndarray
    known: np.ndarray

    @classmethod
    def untried(cls, inputs: int) -> "Calibration":
        """The calibration of too few labels or questions for trials: the margin alone chooses, and everything is known."""
        return cls(np.array([_UNTRIED_MARGIN, *[0.0] * (inputs - 1)]), np.zeros(0))

    def probabilities(self, evidence: QuestionEvidence) -> np.ndarray:
        """The probability of each label if the question is about one of them: [questions, labels]."""
        return softmax(np.asarray(evidence.by_size() @ self.chooser))

    def knowns(self, evidence: QuestionEvidence, chosen: np.ndarray) -> np.ndarray:
        """The probability that each question is about a known label, if ``chosen`` is the most probable one: [questions]."""
        if not len(self.known):
            return np.ones(len(chosen))
        logits = evidence.of_labels(chosen) @ self.known[:-1] + self.known[-1]
        return np.asarray(1 / (1 + np.exp(-np.clip(logits, -30, 30))))


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities of ``logits``: [rows, labels]."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


@dataclass(frozen=True)
class RouterTrial:
    """The evidence for questions that a trial's model was not trained on.

    ``truth`` is the number of the question's label, -1 if the model does not know it. ``cut`` says whether the label was
    cut down.
    """

    evidence: QuestionEvidence
    truth: np.ndarray
    cut: np.ndarray


@dataclass(frozen=True)
class TrialScores:
    """What the calibration says about the questions of the trials, arrays of shape [questions].

    ``known`` is the probability that it gives, ``is_known`` the truth, ``cut`` whether the question's label was cut down,
    ``small`` whether the chosen label is small, ``right`` whether it is the question's label.
    """

    known: np.ndarray
    is_known: np.ndarray
    cut: np.ndarray
    small: np.ndarray
    right: np.ndarray


def calibrate(rows: LabelledQuestions) -> tuple[Calibration, TrialScores | None]:
    """The calibration for models of ``rows``, and the scores of the trials, or None if no trials are possible."""
    inputs = 2 * 5 + 1 if rows.vectors is None else 2 * 6 + 2 + 1
    if len(np.unique(rows.labels.astype(str))) < MIN_LABELS:
        return Calibration.untried(inputs), None
    trials = [_trial(rows, number) for number in range(TRIALS)]
    truth = np.concatenate([trial.truth for trial in trials])
    if min((truth >= 0).sum(), (truth < 0).sum()) < MIN_QUESTIONS:
        return Calibration.untried(inputs), None
    chooser = Calibration(_fit_chooser(trials), np.zeros(0))
    chosen = [chooser.probabilities(trial.evidence).argmax(axis=1) for trial in trials]
    evidence = np.concatenate([trial.evidence.of_labels(one) for trial, one in zip(trials, chosen, strict=True)])
    calibration = Calibration(chooser.chooser, _fit_known(evidence, truth >= 0))
    known = [calibration.knowns(trial.evidence, one) for trial, one in zip(trials, chosen, strict=True)]
    small = [is_small(trial.evidence.sizes)[one] for trial, one in zip(trials, chosen, strict=True)]
    return calibration, TrialScores(
        np.concatenate(known),
        truth >= 0,
        np.concatenate([trial.cut for trial in trials]),
        np.concatenate(small),
        truth == np.concatenate(chosen),
    )


def _trial(rows: LabelledQuestions, number: int) -> RouterTrial:
    """Trains without a fifth of the clusters and labels, with some labels cut down, and looks at what was left out."""
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
    model = EvidenceModel.fit(rows.take(np.flatnonzero(train)))
    number_of = {label: position for position, label in enumerate(model.labels)}
    truth = np.array([number_of.get(label, -1) for label in rows.labels])
    asked = random.permutation(np.flatnonzero(held_out & (truth >= 0)))[:MAX_QUESTIONS]
    foreign = random.permutation(np.flatnonzero(truth < 0))[: len(asked)]
    picked = np.concatenate([asked, foreign])
    questions = rows.take(picked)
    evidence = model.look_at(questions.texts.tolist(), questions.vectors)
    kept = np.flatnonzero(_reworded(evidence, truth[picked], cut[picked]))
    return RouterTrial(evidence.take(kept), truth[picked][kept], cut[picked][kept])


def _reworded(evidence: QuestionEvidence, truth: np.ndarray, cut: np.ndarray) -> np.ndarray:
    """False for the questions about cut labels that are worded too much like their label's other questions: [questions]."""
    rows = np.flatnonzero(cut & (truth >= 0))
    kept = np.ones(len(truth), dtype=bool)
    if len(rows):
        similarity = evidence.kinds[rows, truth[rows], 1]
        kept[rows] = similarity <= np.quantile(similarity, REWORDED_SHARE)
    return kept


def _in_part(names: np.ndarray, number: int) -> np.ndarray:
    """Whether each name is in the part with this ``number``. A name is in exactly one of the parts: [names]."""
    distinct, codes = np.unique(names.astype(str), return_inverse=True)
    return np.asarray((np.random.default_rng(0).permutation(len(distinct)) % TRIALS == number)[codes])


def _fit_chooser(trials: Sequence[RouterTrial]) -> np.ndarray:
    """The weights with the highest likelihood on the known questions. It is a temperature for several kinds at once.

    Questions of labels that were cut down count as much, together, as the others.
    """
    parts = []
    for trial in trials:
        rows = np.flatnonzero(trial.truth >= 0)
        parts.append((trial.evidence.by_size()[rows], trial.truth[rows], trial.cut[rows]))
    small = np.concatenate([part[2] for part in parts])
    weight_of_small = (~small).sum() / max(1, small.sum()) if not small.all() else 1.0
    total = np.where(small, weight_of_small, 1.0).sum()

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = _RIDGE * float(values @ values), 2 * _RIDGE * values
        for inputs, truth, cut in parts:
            rows, weights = np.arange(len(truth)), np.where(cut, weight_of_small, 1.0) / total
            p = softmax(inputs @ values)
            value -= float(weights @ np.log(np.clip(p[rows, truth], 1e-12, 1)))
            p[rows, truth] -= 1
            slope = slope + np.einsum("q,ql,qlk->k", weights, p, inputs, optimize=True)
        return value, slope

    return _fit_weights(loss, parts[0][0].shape[2])


def _fit_known(inputs: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The weights of a logistic regression, and its intercept.

    No evidence has a negative weight: more of it never speaks against a label, whatever the trials happened to contain.
    Only the last input, whether the label is small, and the intercept may have any sign.
    """
    scale = np.maximum(inputs.std(axis=0), 1e-6)
    scaled, sign = np.column_stack([inputs / scale, np.ones(len(inputs))]), np.where(known, 1.0, -1.0)

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        margin = sign * (scaled @ values)
        pull = -sign / (1 + np.exp(np.clip(margin, -500, 500))) / len(sign)
        ridge = _RIDGE * np.append(values[:-1], 0)
        return float(np.logaddexp(0, -margin).mean() + ridge @ values), scaled.T @ pull + 2 * ridge

    weights = _fit_weights(loss, scaled.shape[1], free=2)
    return np.append(weights[:-1] / scale, weights[-1])


def _fit_weights(
    loss: Callable[[np.ndarray], tuple[float, np.ndarray]], count: int, free: int | None = None
) -> np.ndarray:
    """The weights with the lowest ``loss``. If ``free`` is given, only the last ``free`` ones may be negative."""
    from scipy.optimize import minimize

    bounds = None if free is None else [(0, None)] * (count - free) + [(None, None)] * free
    return np.asarray(minimize(loss, np.zeros(count), jac=True, bounds=bounds, method="L-BFGS-B").x)
