"""What the prepare stage costs when 1 % more rows land, compared with a full rebuild; both are measured in one run.

    python bench/prepare.py [--rows 1000000] [--write]

It generates a company's raw conversations, one percent per day, prepares all but the last day, and then measures

- landing: the last day is cleaned and joined to the existing rows, all rows are checked for leaks, the router is
  trained, and the splits are written;
- full rebuild: Bitext and all days go through every step, from the raw rows, in a new lake. Cleaning a day depends
  only on that day, so each day is cleaned only once: its table is copied and its time is counted.

Both must end with the same tables.
"""

import argparse
import json
import os
import platform
import random
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
from rich.console import Console
from rich.table import Table

from cs_pipeline.company import Company
from cs_pipeline.core.lake import PRIVATE, DataLake, write_json
from cs_pipeline.core.schema import CONVERSATION, INTERACTION, SUBJECT
from cs_pipeline.ingest.bitext import load_bitext
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.prepare.company.interactions import clean_day
from cs_pipeline.prepare.intent_classifier import train_classifiers
from cs_pipeline.prepare.router import train_router
from cs_pipeline.prepare.splits.conversations import join_conversations
from cs_pipeline.prepare.splits.leakage import find_leaks
from cs_pipeline.prepare.splits.split import SPLITS, split_bitext
from cs_pipeline.prepare.splits.split_tables import write_split
from cs_pipeline.text.clean import clean

DAYS = 100
MAX_RATIO = 0.05
"""Maximum cost of landing one percent, as a share of a full rebuild."""

# Sentences added to the questions, so that few are equal: the slots are filled with made-up words and digits.
DETAILS = [
    "It is about the {word} {word} in {word}.",
    "I bought the {word} {digit} weeks ago in your shop in {word}.",
    "My order is {digit}{digit}{digit}-{digit}{digit}{digit}{digit}, the one with the {word} in it.",
    "The {word} was a present for my {word}, so it matters to me.",
    "I already wrote to {word}.{word}@example.com about the {word} and heard nothing.",
    "You can call me on +44 20 7946 0{digit}{digit}{digit}, I am at home with my {word}.",
    "The same happened with the {word} last {word}, {digit} days in a row.",
]


def generated_days(rows: int, seed: int = 0) -> Iterator[tuple[date, pa.Table]]:
    """``rows`` raw conversations of one question and one answer, spread over DAYS days: (day, INTERACTION table)."""
    rng = random.Random(seed)
    sample = sample_rows(max(270, min(rows // 10, 60_000)), seed=1)
    pairs = list(zip(sample["instruction"], sample["response"], strict=True))
    onsets = sorted([*"bdfghjklmnprstvz", "br", "fl", "sh", "st", "tr"])
    syllables = [onset + vowel + coda for onset in onsets for vowel in "aeiou" for coda in ("", *"lmnrst")]
    words = ["".join(rng.choices(syllables, k=rng.choice([2, 3]))) for _ in range(50_000)]
    for number in range(DAYS):
        day = date(2026, 1, 1) + timedelta(days=number)
        turns = []
        for row in range(rows * number // DAYS, rows * (number + 1) // DAYS):
            question, answer = rng.choice(pairs)
            if rng.random() < 0.9:
                detail = rng.choice(DETAILS)
                while "{" in detail:
                    detail = detail.replace("{word}", rng.choice(words), 1)
                    detail = detail.replace("{digit}", str(rng.randrange(10)), 1)
                question = f"{question} {detail}"
            subject = f"{rng.randrange(max(1, rows // 5)):016x}"
            conversation = {
                "source_file_sha256": f"{number:064x}",
                "source_row": row,
                "delivered_on": day,
                "conversation_id": str(row),
                "subject_id": subject,
                "known": [],
            }
            turns.append({**conversation, "turn": 0, "role": "customer", "text": question})
            turns.append({**conversation, "turn": 1, "role": "agent", "text": answer})
        yield day, pa.Table.from_pylist(turns, schema=INTERACTION)


class Clock:
    """Wall-clock and CPU seconds of each step; other work on the machine increases only the first."""

    def __init__(self) -> None:
        self.steps: dict[str, np.ndarray] = {}

    @contextmanager
    def __call__(self, step: str) -> Iterator[None]:
        start = np.array([time.monotonic(), time.process_time()])
        yield
        self.steps[step] = self[step] + np.array([time.monotonic(), time.process_time()]) - start

    def __getitem__(self, step: str) -> np.ndarray:
        return self.steps.get(step, np.zeros(2))

    @property
    def total(self) -> np.ndarray:
        return sum(self.steps.values(), np.zeros(2))


def prepare_bitext(lake: DataLake, clock: Clock) -> None:
    """Cleans and splits the raw Bitext rows, and trains the classifiers."""
    raw = lake.read("ingest", "bitext_conversations")
    with clock("clean_bitext"):
        cleaned = clean(raw)
        lake.write("prepare", "clean_bitext", cleaned.rows, CONVERSATION)
    with clock("bitext_splits"):
        split_bitext(lake)
    with clock("classifiers"):
        train_classifiers(lake)


def clean_days(lake: DataLake, days: list[date], clock: Clock) -> None:
    """Cleans the raw conversations of each day."""
    for day in days:
        with clock("clean_interactions"):
            clean_day(lake, Company(), day)


def give_subjects(lake: DataLake) -> None:
    """Writes the table ``subjects``, in which the subject of each row is the intent that the classifier predicts.

    Discovered subjects depend on what was delivered when, so the two arms would end with different tables.
    """
    names = [path.stem for path in sorted(lake.path("prepare", "clean_interactions").glob("*.parquet"))]
    read = ["row_id", "delivered_on", "intent", "intent_confidence"]
    days = pa.concat_tables(lake.read("prepare", f"clean_interactions/{name}", read) for name in names)
    row_ids, delivered_on, intents, similarity = days.columns
    nothing = pa.nulls(days.num_rows, pa.string())
    state = {"version": "", "aliases": {}, "labels": {}, "found_on": {}, "parts": [], "given": {}, "mapped": {}}
    schema = SUBJECT.with_metadata({"subjects": json.dumps(state)})
    no_candidate = pa.nulls(days.num_rows, pa.int32())
    columns = [row_ids, row_ids, delivered_on, intents, nothing, similarity, nothing, no_candidate]
    subjects = pa.table(columns, schema=schema)
    lake.write("prepare", "subjects", subjects, SUBJECT)


def join_and_split(lake: DataLake, clock: Clock) -> pa.Table:
    """Joins the rows of both sources, checks for leaks, trains a router on characters alone and writes the splits.

    Returns the table of conversations.
    """
    give_subjects(lake)
    with clock("conversations"):
        rows = join_conversations(lake).rows
    with clock("no_leakage"):
        assert find_leaks(rows) == []
    with clock("router"):
        train_router(lake, "")
    with clock("sides"):
        for split in SPLITS:
            write_split(lake, split)
    return rows


def measure(rows: int, folder: Path, source: str = "sample") -> dict[str, Any]:
    """Runs both arms in ``folder`` on the Bitext rows of ``source``. Raises AssertionError if their tables differ."""
    lake, rebuilt = DataLake(folder / "landing"), DataLake(folder / "rebuilt")
    raw, _ = load_bitext(source, folder)
    lake.write("ingest", "bitext_conversations", raw, CONVERSATION)
    days = []
    for day, table in generated_days(rows):
        lake.write("ingest", f"company_interactions/{day}", table, INTERACTION, mode=PRIVATE)
        days.append(day)
    before, landing, full = Clock(), Clock(), Clock()
    prepare_bitext(lake, before)
    clean_days(lake, days[:-1], before)
    join_and_split(lake, before)
    clean_days(lake, days[-1:], landing)
    landed = join_and_split(lake, landing)

    rebuilt.path("ingest").parent.mkdir()
    rebuilt.path("ingest").symlink_to(lake.path("ingest"))
    prepare_bitext(rebuilt, full)
    full.steps["clean_interactions"] = before["clean_interactions"] + landing["clean_interactions"]
    for name in ("clean_interactions", "clean_interactions_set_aside", "clean_interactions_flagged"):
        shutil.copytree(lake.path("prepare", name), rebuilt.path("prepare", name))
    rebuilt_rows = join_and_split(rebuilt, full)

    assert landed.equals(rebuilt_rows), "the tables of conversations differ between the two arms"
    splits: dict[str, set[str]] = {}
    for cluster, split in zip(landed.column("cluster_id").to_pylist(), landed.column("split").to_pylist(), strict=True):
        splits.setdefault(cluster, set()).add(split)
    assert all(len(of_cluster) == 1 for of_cluster in splits.values()), "a cluster is in more than one split"
    return {
        "rows": rows,
        "conversations": landed.num_rows,
        "clusters": len(splits),
        "sides": {split: landed.column("split").to_pylist().count(split) for split in ("train", "validation", "test")},
        **{
            f"{kind}seconds": {
                step: {"landing": float(of_landing[clock]), "full_rebuild": float(of_full[clock])}
                for step, of_landing, of_full in (
                    *((step, landing[step], seconds) for step, seconds in full.steps.items()),
                    ("together", landing.total, full.total),
                )
            }
            for clock, kind in enumerate(("", "processor_"))
        },
        "ratio": float(landing.total[0] / full.total[0]),
        "processor_ratio": float(landing.total[1] / full.total[1]),
        "most": MAX_RATIO,
        "peak_memory_gb": _peak_memory() / 1e9,
    }


def machine() -> dict[str, Any]:
    """The conditions of the measurement."""
    packages = ("numpy", "pandas", "pyarrow", "scipy", "scikit-learn", "presidio-analyzer")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {psutil.virtual_memory().total / 1e9:.0f} GB",
        "load_before": [round(load, 2) for load in os.getloadavg()],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in packages},
    }


def _peak_memory() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--write", action="store_true", help="save the result as bench/results/prepare.json")
    given = parser.parse_args()
    conditions = machine()
    with tempfile.TemporaryDirectory(prefix="bench-prepare-") as folder:
        result = conditions | measure(given.rows, Path(folder))
    table = Table("seconds (CPU time)", "landing 1 %", "full rebuild", title=f"prepare at {result['rows']:,} rows")
    for step, seconds in result["seconds"].items():
        processor = result["processor_seconds"][step]
        table.add_row(step, *(f"{seconds[arm]:.2f} ({processor[arm]:.2f})" for arm in ("landing", "full_rebuild")))
    table.add_row("ratio", f"{result['ratio']:.2%} ({result['processor_ratio']:.2%})", f"at most {MAX_RATIO:.0%}")
    console = Console()
    console.print(table)
    console.print(
        f"{result['date']}, {result['machine']}, load {result['load_before'][0]}, "
        f"peak memory {result['peak_memory_gb']:.1f} GB, Python {result['python']}, {result['versions']}"
    )
    if given.write:
        write_json(Path(__file__).parent / "results" / "prepare.json", result)


if __name__ == "__main__":
    main()
