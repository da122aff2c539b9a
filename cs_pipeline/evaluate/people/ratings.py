"""Collects people's judgements in the table ``human_ratings``, and exports samples for raters who work elsewhere.

Judgements come from the chat page and from imported sheets. Those from the page are raw: they may contain personal data,
which is replaced before they get into the table.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from cs_pipeline.company import Company
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, digest
from cs_pipeline.core.schema import RATING
from cs_pipeline.evaluate.decision import rivals
from cs_pipeline.evaluate.people.blind import BlindSheet, export_blind_sheet, import_blind_sheet, key_path
from cs_pipeline.evaluate.people.people import people_votes, rating_table
from cs_pipeline.evaluate.results import EvaluationResults, PeopleVotes, evaluation_folder, read_evaluation
from cs_pipeline.feedback import Feedback
from cs_pipeline.ingest.ledger import Ledger
from cs_pipeline.text.clean import normalize_text
from cs_pipeline.text.personal import PersonalData
from cs_pipeline.text.placeholders import Speaker
from cs_pipeline.tracking import FINGERPRINT, find_versions, open_store

RATINGS_TABLE = "human_ratings"


@dataclass(frozen=True)
class CollectedRatings:
    """The table's ``rows``, and what this run did.

    ``forgotten`` is the number of judgements that were removed. ``replaced`` counts the personal data that was replaced, by
    placeholder.
    """

    rows: pa.Table
    forgotten: int
    replaced: dict[str, int]


def write_human_ratings(lake: DataLake, company: Company) -> CollectedRatings:
    """Writes ``human_ratings`` (RATING): all judgements ever given, except the forgotten ones.

    New judgements are cleaned first, and the clean version replaces the raw one in the feedback database.
    """
    with Feedback(lake) as feedback, Ledger(lake) as ledger:
        raw, clean = feedback.judgements(raw=True), feedback.judgements(raw=False)
        tombstones = ledger.tombstones().rows
        forgotten = {row["id"] for row in [*raw, *clean] if not tombstones.isdisjoint((row["id"], row["question_id"]))}
        feedback.forget(forgotten)
        replaced: Counter[str] = Counter()
        if raw:
            cleaner = _Cleaner(PersonalData(company.phone_regions, company.own_patterns), ledger, replaced)
            feedback.replace_with_clean([cleaner.clean(row) for row in raw if row["id"] not in forgotten])
        rows = rating_table(feedback.judgements(raw=False))
    lake.write("evaluate", RATINGS_TABLE, rows, RATING)
    return CollectedRatings(rows, len(forgotten), dict(replaced.most_common()))


def export_samples(recipe_name: str, lake: DataLake, sheet: Path) -> BlindSheet:
    """Writes a blind ``sheet`` with answers from the recipe's last evaluation: those of tuned, base and the incumbent.

    The incumbent is the champion if it took part, else the best free look-up. The sheet's key names the systems "version 3",
    "version 3:base" and so on. Raises PipelineError when the recipe was not evaluated, its adapter is not registered, the
    sheet already exists, or every question was handed over.
    """
    results = read_evaluation(recipe_name, lake)
    number = _version_number(results, lake)
    if number is None:
        raise PipelineError(
            f"The evaluated adapter of '{recipe_name}' is not registered.",
            f"Materialise 'model_version' for the partition '{recipe_name}': ratings are kept per version.",
        )
    systems = {"tuned": f"version {number}", "base": f"version {number}:base"} | _incumbent(results)
    answers = pd.read_parquet(
        evaluation_folder(recipe_name, lake) / "answers.parquet", columns=["row_id", "system", "question", "answer"]
    )
    return export_blind_sheet(answers, systems, sheet)


def import_samples(sheet: Path, key: Path | None, rater: str, lake: DataLake) -> tuple[int, int]:
    """Adds the scores of a filled-in ``sheet`` to the feedback. Returns how many are new, and how many it had already.

    Raises PipelineError as ``import_blind_sheet`` does, and when ``rater`` scored one of the answers differently before.
    """
    rows = import_blind_sheet(sheet, key or key_path(sheet), rater, datetime.now(UTC)).to_pylist()
    with Feedback(lake) as feedback:
        added = feedback.add_clean(rows)
    return added, len(rows) - added


def votes_on_candidate(results: EvaluationResults, lake: DataLake, version: int | None = None) -> PeopleVotes | None:
    """The current blind votes of people on the evaluated version and the system that it must be better than.

    ``version`` is the number of the evaluated version, by default the one registered with its fingerprint. None if people
    have judged nothing yet, the version is not registered, or there is nothing that it must be better than.
    """
    if not lake.table("evaluate", RATINGS_TABLE).exists():
        return None
    ratings, incumbent = lake.read("evaluate", RATINGS_TABLE), _incumbent(results)
    if not ratings.num_rows or not incumbent:
        return None
    number = _version_number(results, lake) if version is None else version
    return None if number is None else people_votes(ratings, f"version {number}", *incumbent.values())


def _version_number(results: EvaluationResults, lake: DataLake) -> int | None:
    """The number of the registered version with the evaluated adapter."""
    numbers = {version.tags.get(FINGERPRINT): int(version.version) for version in find_versions(open_store(lake))}
    return numbers.get(results.adapter_fingerprint)


def _incumbent(results: EvaluationResults) -> dict[str, str]:
    """The system that the evaluated version must be better than, and its name in ratings; empty if there is none.

    A free look-up has no version number, so a hash of its data is part of its name.
    """
    system = next(iter(rivals(results)), None)
    if system is None:
        return {}
    if system == "champion":
        return {system: f"version {results.champion_version}"}
    data = digest(results.data.train_split, results.data.retrieval_index, results.placeholders["tuned"])
    return {system: f"free look-up '{system}' {data[:8]}"}


class _Cleaner:
    """Replaces personal data in judgements, and hashes raters and questions. ``replaced`` counts the placeholders."""

    def __init__(self, personal: PersonalData, ledger: Ledger, replaced: Counter[str]) -> None:
        self._personal, self._ledger, self._replaced = personal, ledger, replaced

    def clean(self, row: Mapping[str, Any]) -> dict[str, Any]:
        context = row["context"]
        turns = None if context is None else [[who, self._text(text, who)] for who, text in json.loads(context)]
        return {
            **row,
            "rater": self._ledger.hash_row("rater", row["rater"]),
            "question_id": self._ledger.hash_row("question", row["question"], context or ""),
            "question": self._text(row["question"], "customer"),
            "context": None if turns is None else json.dumps(turns, ensure_ascii=False),
            "answers": [self._text(answer, "agent") for answer in row["answers"]],
            "settings": json.dumps(self._values(json.loads(row["settings"])), ensure_ascii=False),
        }

    def _text(self, text: str, speaker: Speaker) -> str:
        text, found = self._personal.replace(normalize_text(text), speaker=speaker)
        self._replaced.update(found)
        return text

    def _values(self, settings: Any) -> Any:
        """``settings`` with every text cleaned, because a context or a placeholder's value may quote the customer."""
        if isinstance(settings, dict):
            return {name: self._values(value) for name, value in settings.items()}
        if isinstance(settings, list):
            return [self._values(value) for value in settings]
        return self._text(settings, "customer") if isinstance(settings, str) else settings
