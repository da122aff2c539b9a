"""The results of an evaluation as one typed record, and the functions that write and read it (``evaluation.json``)."""

from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import BaseModel, ConfigDict, ValidationError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, locked, read_json, write_json
from cs_pipeline.core.yaml_file import key_errors
from cs_pipeline.evaluate.scoring.cost import GenerationRun
from cs_pipeline.evaluate.scoring.statistics import Difference, Interval
from cs_pipeline.text.placeholders import PlaceholderMode

FORMAT_VERSION = 4
"""Increase it when a key of ``evaluation.json`` changes. A file of another version is rejected."""

WITHOUT_RETRIEVAL = "without_retrieval"
LOOKUP = "lookup"
FREE_SYSTEMS = (LOOKUP, "nearest", "central")
"""Systems that copy an answer of the training rows. They cost nothing, so a model has to give better answers."""

ZERO_SHOT, FEW_SHOT, ZERO_SHOT_WITH_RETRIEVAL = "zero_shot", "few_shot", "zero_shot_with_retrieval"
PROMPTED_SYSTEMS = (ZERO_SHOT, FEW_SHOT, ZERO_SHOT_WITH_RETRIEVAL)
"""The untuned base with prompts that a practitioner would write. They answer only some of the test questions and are
compared in ``BaselineResults``; they are not in ``scores``."""

SYSTEMS = {
    "tuned": "tuned",
    "base": "its base model with the same prompt",
    "champion": "current champion",
    WITHOUT_RETRIEVAL: "this version without retrieved texts",
    LOOKUP: "the usual known answer to similar questions, word for word",
    "nearest": "answer of the nearest training question",
    "central": "most central answer of the predicted intent",
    "random": "a random training answer",
    ZERO_SHOT: "the untuned base with its own chat template and a short system message",
    FEW_SHOT: "the same with four solved examples as earlier turns",
    ZERO_SHOT_WITH_RETRIEVAL: "the same as zero_shot with the usual known answer before the question",
}
"""The systems that are compared, with their descriptions for the report. ``tuned`` is the evaluated version, even if it is
a look-up. ``champion`` is present only when another version holds the alias, ``without_retrieval`` only when the recipe
retrieves, ``base`` unless the recipe is a look-up."""

Scores: TypeAlias = dict[str, Interval | None]
"""By metric; None where the system has no such score."""

Differences: TypeAlias = dict[str, Difference | None]
"""By metric, the evaluated version minus another system; None where one of the two has no score."""


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class SliceResults(_Record):
    """Part of the test rows. ``gates``: whether it has enough clusters for figures by system, which can stop a promotion."""

    rows: int
    clusters: int
    gates: bool
    scores: dict[str, Scores]
    differences: dict[str, Differences]


class HeldOutResults(SliceResults):
    """The rows of the ``intents`` that the recipe holds out of training."""

    intents: list[str]


class IntentResults(_Record):
    """The number of rows of one intent, and the difference in ``right_intent`` from the base and the champion."""

    rows: int
    differences: dict[str, Differences]


class ComparisonResults(_Record):
    """Compares all systems on the same test rows: on all of them, by source and by intent.

    ``detectable`` is the smallest true difference that this test set would show, by system and metric.
    """

    scores: dict[str, Scores]
    differences: dict[str, Differences]
    detectable: dict[str, dict[str, float | None]]
    slices: dict[str, SliceResults]
    intents: dict[str, IntentResults]


class DataVersions(_Record):
    """The sha256 of the splits, the version of the index, and a hash of people's intent labels, None if there are none."""

    train_split: str
    test_split: str
    retrieval_index: str
    intent_labels: str | None = None


class LabelledIntents(_Record):
    """How many company rows of the test split have a known intent, and how often the router agrees with people's labels.

    ``counted`` rows count for right intent: they have a subject, or a person's label. ``labelled`` rows have a person's
    label; ``without_intent`` of these have none of the intents. ``share`` (0 to 1) of the labelled rows have a predicted
    intent that agrees, with Wilson's 95 % interval.
    """

    company_rows: int
    counted: int
    labelled: int
    without_intent: int
    agreed: int
    share: float | None
    low: float | None
    high: float | None


class GroupMeasure(_Record):
    """One measure of one group of cases, with its 95 % interval (see ``robustness_by_group``)."""

    group: str
    measure: str
    count: int
    rows: int
    value: float
    low: float
    high: float


class SimilarityQuarter(_Record):
    """The differences on one of four groups of test rows, from least to most similar to the nearest training question."""

    quarter: str
    rows: int
    differences: dict[str, Differences]


class RetrievalResults(_Record):
    """The effect of retrieval on the tuned model (see ``RetrievalEffect``)."""

    found: int
    left_out: int
    shares: dict[str, Scores]
    quarters: list[SimilarityQuarter]
    misled: list[GroupMeasure]


class BaselineResults(_Record):
    """All systems, PROMPTED_SYSTEMS among them, on the same ``questions`` of the test rows.

    ``examples`` are the row ids of the training rows that ``few_shot`` shows as solved examples. ``same_as_base`` names the
    prompted systems whose prompt is that of ``base``; they were not evaluated again.
    """

    questions: int
    clusters: int
    scores: dict[str, Scores]
    differences: dict[str, Differences]
    examples: list[str]
    same_as_base: list[str]

    @property
    def strongest(self) -> str:
        """The prompted system with the highest answer quality."""
        quality = {system: self.scores[system]["quality"] for system in PROMPTED_SYSTEMS if system in self.scores}
        known = {system: score.score for system, score in quality.items() if score is not None}
        return max(known, key=known.__getitem__)


class SealedResults(_Record):
    """What the decision reads of the sealed test rows.

    ``differences`` in answer quality decide whether the candidate's answers are better. ``with_open`` holds the differences
    on all rows, sealed and open, in the metrics in which it must not be worse. Both are by the system compared with.
    """

    rows: int
    clusters: int
    differences: dict[str, Difference | None]
    with_open: dict[str, Differences]


class CrossValidated(_Record):
    """How a look-up answers the ``rows`` questions in ``clusters`` clusters; it hands ``handed_over`` of them over.

    It answers ``from_bitext`` of them with an answer of Bitext, and the others with one of the company. ``scores`` are
    those of the answers that it gives; empty if these are in fewer than MIN_CLUSTERS clusters.
    """

    rows: int
    clusters: int
    handed_over: int
    from_bitext: int
    scores: Scores


class CompanyResults(CrossValidated):
    """What the company's own ``conversations`` say about a look-up, and how well they compare systems.

    The look-up is judged on rows of all splits, each answered without the rows of its own cluster and conversation.
    ``rows_left_out`` rows were not asked, because there are too many. ``by_intent`` has the intents with at least
    MIN_CLUSTERS clusters. ``differences`` in answer quality, by the system compared with, are those on the company's
    ``test_rows``, sealed and open; it is empty if these are in fewer than MIN_CLUSTERS clusters.
    """

    conversations: int
    rows_left_out: int
    by_intent: dict[str, CrossValidated]
    test_rows: int
    test_clusters: int
    differences: dict[str, Difference | None]


@dataclass(frozen=True)
class PositionBias:
    """How the order of the answers sways the judge on ``pairs`` pairs, as shares from 0 to 1.

    ``consistent`` is the share of pairs with the same verdict in both orders. Of the verdicts other than ties,
    ``first`` is the share for the answer shown first, with Wilson's 95 % interval: 0.5 means no bias. It is None if there
    are only ties.
    """

    pairs: int
    consistent: float
    first: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class PeopleAgreement:
    """Cohen's kappa between the judge's verdicts (a, b, tie) and those of most people, on the ``pairs`` that both judged.

    The 95 % interval is from a bootstrap over questions; None where kappa is not defined.
    """

    kappa: float | None
    low: float | None
    high: float | None
    pairs: int


class _Tally(_Record):
    won: int
    lost: int
    ties: int
    share: float | None
    low: float | None
    high: float | None


class JudgeTally(_Tally):
    """How often the judge preferred the evaluated version: ``share`` of the decided pairs, with Wilson's 95 % interval."""


class PeopleVotes(_Tally):
    """How often people who did not know the systems preferred one version (``candidate``) to another (``incumbent``).

    Each question counts once: ``won``, ``lost`` and ``ties`` are questions on which most verdicts are for the candidate,
    against it, or neither. ``share`` is that of the decided questions, with Wilson's 95 % interval. ``raters`` people
    gave ``verdicts`` verdicts; ``busiest`` is the share of the verdicts that came from the person who gave most of
    them. ``shared`` counts the pairs of verdicts, other than ties, that two people gave on the same two answers;
    ``agreement`` is the share of these pairs that agree.
    """

    candidate: str
    incumbent: str
    verdicts: int
    raters: int
    busiest: float
    shared: int
    agreement: float | None


class JudgeResults(_Record):
    """The verdicts of a language model as judge.

    ``may_gate`` says whether they may decide which answers are better, and ``why`` gives the reason.
    """

    model: str
    against: dict[str, JudgeTally]
    position: PositionBias
    people: PeopleAgreement
    may_gate: bool
    why: str


@dataclass(frozen=True)
class TimedRun(GenerationRun):
    """The run over all test rows. ``alone`` holds the seconds of answers that were generated one at a time."""

    alone: list[float]


@dataclass(frozen=True)
class Weakness:
    """A slice on which the evaluated version is worse than on all other test rows.

    ``rest`` is the score on those other rows; ``p`` is adjusted for all slices and metrics (Holm). ``train_rows`` counts the
    training rows of an intent and is None for other slices; ``near`` is the median number of training questions near a
    question of the slice, ``near_rest`` the same for all other questions.
    """

    kind: str
    slice: str
    rows: int
    clusters: int
    metric: str
    score: float
    rest: float
    p: float
    train_rows: int | None
    near: float
    near_rest: float

    @property
    def shortfall(self) -> float:
        """How far the slice's score is from the rest's, as a share of the rest's score."""
        return abs(self.rest - self.score) / (abs(self.rest) or 1)

    @property
    def advice(self) -> str:
        """What to do about it, with the figures that this is based on."""
        name = self.slice if self.kind == "intent" else f"{self.kind.replace('_', ' ')} {self.slice}"
        rows = "" if self.train_rows is None else f"{self.train_rows:,} training rows; "
        near = f"similar training questions per question: {self.near:g} here, {self.near_rest:g} elsewhere"
        if self.near < self.near_rest / 2:
            return f"{name}: {rows}{near}. Add examples."
        return f"{name}: {rows}{near}. Examples are not scarce: check first whether its answers contradict one another."


class EvaluationResults(ComparisonResults):
    """Everything that ``evaluation.json`` holds. Dictionaries are by system unless their type says otherwise.

    ``answers_seen`` is the ``seen_share`` of the reference answers. ``methods`` names how the evaluated version, its base
    and the champion were made (``Recipe.training_method``). ``champion_base`` is the sha256 of the champion's base.
    ``intent_labels`` is None without company rows.

    ``baselines`` is None if the untuned base was not prompted (see ``evaluate_prompted_base``). ``sealed`` is None if there
    are too few test rows to seal a part of them. Only ``sealed``, ``company`` and ``intent_labels`` count sealed rows;
    all other figures, ``rows`` and ``clusters`` among them, are of the open rows. ``rows_left_out`` counts the open
    rows that were not asked because the recipe asks for fewer (``evaluation.test_rows``); then nothing is sealed
    either. ``company`` is None if the lake has no company rows.

    ``fingerprint`` is a hash of all input of the evaluation. ``champion_version`` is the version that the model was compared
    with, None if there was none. ``references`` holds the scores of the reference answers themselves in the metrics that
    need no reference, ``naive`` the scores of the nearest training question's answer on a random split. ``robustness`` and
    ``probe`` (1 where a question of general knowledge was answered correctly) are the results of ``run_trials``.
    """

    format_version: int = FORMAT_VERSION
    fingerprint: str
    code_version: str
    recipe: str
    adapter_fingerprint: str
    base: dict[str, Any]
    champion_version: int | None
    champion_base: str | None
    methods: dict[str, str]
    placeholders: dict[str, PlaceholderMode]
    data: DataVersions
    rows: int
    rows_left_out: int = 0
    clusters: int
    answer_classifier_accuracy: float
    intent_labels: LabelledIntents | None
    answers_seen: float | None
    sealed: SealedResults | None
    company: CompanyResults | None = None
    held_out: HeldOutResults | None
    references: dict[str, float | None]
    weak: list[Weakness]
    naive: dict[str, float | None]
    robustness: dict[str, list[GroupMeasure]]
    retrieval: RetrievalResults | None
    baselines: BaselineResults | None
    probe: dict[str, list[float]]
    runs: dict[str, TimedRun]
    adapter_bytes: int
    judge: JudgeResults | None
    seconds: dict[str, float]


def evaluation_folder(recipe_name: str, lake: DataLake) -> Path:
    """The folder of ``evaluation.json`` and the tables behind its figures; docs/evaluation.md lists them."""
    return lake.path("evaluate", "evaluation", recipe_name)


def evaluation_file(recipe_name: str, lake: DataLake) -> Path:
    """The path of the stored results."""
    return evaluation_folder(recipe_name, lake) / "evaluation.json"


def write_evaluation(results: EvaluationResults, path: Path) -> None:
    """Writes ``results`` to the file ``path``. Raises ValueError when a figure is not a finite number."""
    write_json(path, results.model_dump(mode="json"))


def read_evaluation(recipe_name: str, lake: DataLake) -> EvaluationResults:
    """The results of the recipe's last evaluation.

    Raises PipelineError when there is none, when the file has another format version, and when it is damaged.
    """
    path = evaluation_file(recipe_name, lake)
    # Repeating only 'evaluation' is not enough: the base and the adapter of another release must be rebuilt too.
    fix = f"Run the full pipeline for this recipe: cs-pipeline demo --recipe {recipe_name}"
    try:
        stored = read_json(path)
        if not isinstance(stored, dict) or stored.get("format_version") != FORMAT_VERSION:
            raise PipelineError(
                f"{path} was written by another release: its format is not version {FORMAT_VERSION}.", fix
            )
        return EvaluationResults.model_validate(stored)
    except FileNotFoundError:
        raise PipelineError(f"{path} is missing.", fix) from None
    except ValidationError as error:
        raise PipelineError(f"{path} is damaged: {key_errors(error, 'an evaluation')}.", fix) from error
    except ValueError as error:  # not JSON
        raise PipelineError(f"{path} is damaged: {error}.", fix) from error


def evaluations_lock(lake: DataLake) -> AbstractContextManager[bool]:
    """A lock. While it is held, no other run replaces an evaluation or writes the leaderboard."""
    return locked(lake.path("evaluate", ".evaluations.lock"))
