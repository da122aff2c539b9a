"""What the found texts are to a model that reads them: with and without, by similarity, copied, grounded, misled."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cs_pipeline.evaluate.comparison import FEWEST_CLUSTERS
from cs_pipeline.evaluate.robustness.robustness import by_group
from cs_pipeline.evaluate.robustness.trials import ask_test_rows, mislead
from cs_pipeline.evaluate.scoring.groundedness import groundedness, groundedness_shares
from cs_pipeline.evaluate.scoring.test_set import FrozenTestSet
from cs_pipeline.evaluate.slices import parts
from cs_pipeline.evaluate.statistics import paired_bootstrap
from cs_pipeline.llm.model import Answer, SupportModel
from cs_pipeline.llm.prompt import RetrievedText

WITHOUT = "without_retrieval"
"""The system that is the tuned model, asked without found texts."""

KNOWN = "known_answer"
"""The system that gives the first known answer that the tuned model was told, as it stands."""

COMPARED = ("rougeL", "bleu", "chrf", "placeholder_f1", "right_intent")
"""In what the tuned model is held against itself without found texts, and against answers that cost nothing."""


@dataclass(frozen=True)
class RetrievalEffect:
    """``found`` texts were given for the test rows, ``left_out`` of them did not fit into a prompt. ``without`` are the row
    statistics of the same model that was told none, asked in ``seconds``; ``known`` are the answers of KNOWN, empty where
    none was found; ``rows`` are those of ``grounding.py`` by system (the
    texts are those that the tuned model read, so the other's share is what two answers have in common anyhow); ``misled``
    has the columns of ``robustness.judged``."""

    found: int
    left_out: int
    without: pd.DataFrame
    seconds: float
    known: list[str]
    rows: dict[str, pd.DataFrame]
    misled: pd.DataFrame


def measure_retrieval_effect(
    model: SupportModel,
    classifier: Path,
    rows: FrozenTestSet,
    found: Sequence[Sequence[RetrievedText]],
    answers: Sequence[Answer],
    statistics: pd.DataFrame,
    report: Callable[[str], None],
) -> RetrievalEffect:
    """Asks ``model`` without the texts ``found`` for the test rows, and with misleading ones; ``answers`` and their
    ``statistics`` are what it said with them."""
    started = time.monotonic()
    without, others, _ = ask_test_rows(WITHOUT, model, rows, [()] * len(rows.questions), report)
    seconds = time.monotonic() - started
    report("tuned: found texts that mislead")
    read = [answer.found for answer in answers]
    known = [next((one.text for one in texts if one.kind == "answer"), "") for texts in found]
    return RetrievalEffect(
        sum(map(len, found)),
        sum(map(len, found)) - sum(map(len, read)),
        without,
        seconds,
        known,
        {
            system: groundedness(rows.asked, [answer.text for answer in said], read)
            for system, said in (("tuned", answers), (WITHOUT, others))
        },
        mislead(model, classifier, rows, found, statistics),
    )


def retrieval_facts(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], judged: RetrievalEffect, samples: int = 1000
) -> dict[str, Any]:
    """What ``evaluation.json`` says of it: ``found`` and ``left_out``, ``shares`` by system, ``quarters`` of similarity with
    the paired differences of the tuned model from COMPARED systems, and ``misled`` as ``robustness.by_group`` has it."""
    clusters = test["cluster_id"].tolist()
    return {
        "found": judged.found,
        "left_out": judged.left_out,
        "shares": {system: groundedness_shares(rows, clusters, samples) for system, rows in judged.rows.items()},
        "quarters": [
            _quarter(test, stats, part.name, part.member, samples)
            for part in parts(test, stats["tuned"]["reference_words"].tolist())
            if part.kind == "similarity"
        ],
        "misled": by_group(judged.misled).to_dict("records"),
    }


def _quarter(
    test: pd.DataFrame, stats: Mapping[str, pd.DataFrame], name: str, member: np.ndarray, samples: int
) -> dict[str, Any]:
    clusters = test["cluster_id"][member].tolist()
    differences = {}
    if len(set(clusters)) >= FEWEST_CLUSTERS:
        for other in (name for name in (WITHOUT, KNOWN, "nearest") if name in stats):
            pair = stats["tuned"][member], stats[other][member]
            found = paired_bootstrap(*pair, clusters, samples, metrics=COMPARED)
            differences[other] = {metric: value and asdict(value) for metric, value in found.items()}
    return {"quarter": name, "rows": int(member.sum()), "differences": differences}


def misled_groups(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """The groups of misleading texts, as ``evaluation.json`` has them: ``group``, ``rows`` and a key for each measure."""
    groups: dict[str, dict[str, Any]] = {}
    for row in facts["misled"]:
        groups.setdefault(row["group"], {"group": row["group"], "obeyed": None})[row["measure"]] = row
    return [group | {"rows": group["as_expected"]["rows"]} for name, group in groups.items() if name != "all"]
