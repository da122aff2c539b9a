"""Results of an evaluation, complete with as little as is needed."""

from typing import Any

from cs_pipeline.evaluate.results import CompanyResults, DataVersions, EvaluationResults
from cs_pipeline.evaluate.scoring.statistics import Difference


def difference(low: float, high: float, rows: int = 90, clusters: int = 60) -> Difference:
    """A difference with these ends, in the middle of them."""
    return Difference((low + high) / 2, low, high, share_above_zero=0.5, rows=rows, clusters=clusters)


def company_of(conversations: int, test_rows: int, **known: Any) -> CompanyResults:
    """What the rows of a company say if each is a conversation and a cluster of its own, and the look-up answers none."""
    rows = {"rows": conversations, "clusters": conversations, "handed_over": conversations}
    rows |= {"from_bitext": 0, "rows_left_out": 0}
    parts: dict[str, Any] = {"scores": {}, "by_intent": {}, "differences": {}, **rows}
    about = {"conversations": conversations, "test_rows": test_rows, "test_clusters": test_rows}
    return CompanyResults(**parts | about | known)


def results_of(**known: Any) -> EvaluationResults:
    """Results of the recipe "one" without any figures, but for ``known``."""
    empty: dict[str, Any] = {
        "fingerprint": "fedcba9876543210",
        "code_version": "0",
        "recipe": "one",
        "adapter_fingerprint": "0123456789abcdef",
        "base": {"name": "embedded (828,288 parameters)", "source": "embedded", "revision": None, "sha256": "ba5e" * 4},
        "champion_version": None,
        "champion_base": None,
        "methods": {"tuned": "QLoRA"},
        "placeholders": {"tuned": "keep"},
        "data": DataVersions(train_split="11" * 32, test_split="33" * 32, retrieval_index="44" * 32),
        "rows": 90,
        "clusters": 60,
        "answer_classifier_accuracy": 0.98,
        "intent_labels": None,
        "answers_seen": 0.86,
        "sealed": None,
        "baselines": None,
        "held_out": None,
        "weak": [],
        "retrieval": None,
        "adapter_bytes": 3 * 2**20,
        "judge": None,
    }
    empty |= {name: {} for name in ("scores", "differences", "detectable", "slices", "intents", "references", "naive")}
    empty |= {name: {} for name in ("robustness", "probe", "runs", "seconds")}
    return EvaluationResults(**empty | known)
