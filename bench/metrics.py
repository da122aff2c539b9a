"""Scoring answers against references: with this package's row statistics, and with rouge-score and sacreBLEU row by row.

    python -m bench.metrics [FILE] [--answers 10000] [--systems 5] [--compared 300] [--rounds 3] [--write]

FILE is a CSV in the Bitext schema; without it the sample rows are scored, whose answers are shorter. The answers of each
system are those of other rows. First both arms score the same ``--compared`` answers and must give the same ROUGE, chrF and
BLEU. Then all metrics of an evaluation are timed with this package: row statistics of ``--answers`` answers per system,
scores and differences with intervals, and all slices.
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from bench.side_by_side import arguments, in_turn, machine, ratio, report
from cs_pipeline.evaluate.comparison import compare
from cs_pipeline.evaluate.scoring.metrics import corpus_scores, row_statistics
from cs_pipeline.evaluate.slices import slice_scores
from cs_pipeline.ingest.sample import sample_rows

MAX_SECONDS = 60.0
"""Maximum seconds for all metrics of 10,000 answers of each of 5 systems."""

SCORES = ("rouge1", "rouge2", "rougeL", "bleu", "chrf")
MAX_DIFFERENCE = 1e-6


def read_rows(file: Path | None, count: int) -> pd.DataFrame:
    """A random sample of ``count`` rows in the Bitext schema, with repetitions if there are fewer."""
    rows = sample_rows() if file is None else pd.read_csv(file, dtype=str, keep_default_na=False)
    return rows.sample(count, replace=count > len(rows), random_state=0).reset_index(drop=True)


def answers_of(rows: pd.DataFrame, system: int) -> list[str]:
    """The answers of a system: the rows' responses, shuffled differently for each system."""
    return rows["response"].sample(frac=1, random_state=system + 1).tolist()


def our_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores as this package computes them."""
    scores = corpus_scores(row_statistics([""] * len(answers), answers, references), SCORES)
    return {name: score or 0.0 for name, score in scores.items()}


def library_scores(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The scores as rouge-score and sacreBLEU compute them. As in an evaluation, chrF is computed for each row too."""
    import sacrebleu
    from rouge_score.rouge_scorer import RougeScorer

    kinds = ["rouge1", "rouge2", "rougeL"]
    scorer = RougeScorer(kinds, use_stemmer=True)
    rows = [scorer.score(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    for answer, reference in zip(answers, references, strict=True):
        sacrebleu.sentence_chrf(answer, [reference])
    return {kind: 100 * float(np.mean([row[kind].fmeasure for row in rows])) for kind in kinds} | {
        "bleu": sacrebleu.corpus_bleu(answers, [references], force=True).score,
        "chrf": sacrebleu.corpus_chrf(answers, [references]).score,
    }


def time_all_metrics(rows: pd.DataFrame, systems: int) -> dict[str, dict[str, float]]:
    """Wall-clock and CPU seconds of each step in which an evaluation computes its metrics."""
    steps: dict[str, dict[str, float]] = {}
    started, cpu_started = time.perf_counter(), time.process_time()

    def end_step(name: str) -> None:
        nonlocal started, cpu_started
        steps[name] = {"clock": time.perf_counter() - started, "processor": time.process_time() - cpu_started}
        started, cpu_started = time.perf_counter(), time.process_time()

    rng = np.random.default_rng(0)
    numbers = np.arange(len(rows))
    test = rows.assign(
        row_id=numbers.astype(str),
        source=np.where(numbers % 4 > 0, "bitext", "company"),
        cluster_id=rng.integers(0, max(2, len(rows) * 4 // 5), len(rows)).astype(str),
        nearest_train_similarity=rng.random(len(rows)),
    )
    constants = {"nll": 90.0, "answer_tokens": 80, "answer_chars": 400, "stopped": 1.0}
    stats = {}
    for system in range(systems):
        frame = row_statistics(rows["instruction"].tolist(), answers_of(rows, system), rows["response"].tolist())
        right = (rng.random(len(rows)) < 0.8).astype(float)
        stats[str(system) if system else "tuned"] = frame.assign(row_id=test["row_id"], right_intent=right, **constants)
    end_step("row statistics")
    compare(test, stats)
    end_step("scores and differences")
    slice_scores(test, stats)
    end_step("slices")
    clocks = ("clock", "processor")
    steps["together"] = {clock: sum(seconds[clock] for seconds in steps.values()) for clock in clocks}
    return steps


def measure(file: Path | None, answers: int, systems: int, compared: int, rounds: int) -> dict[str, Any]:
    """Runs both arms, then times all metrics. Raises AssertionError if the arms give different scores."""
    rows = read_rows(file, answers)
    few = rows.head(compared)
    texts = (answers_of(few, 0), few["response"].tolist())
    arms = in_turn({"ours": lambda: our_scores(*texts), "packages": lambda: library_scores(*texts)}, rounds)
    scores = {name: arm.computed[-1] for name, arm in arms.items()}
    difference = max(abs(scores["ours"][name] - scores["packages"][name]) for name in SCORES)
    assert difference < MAX_DIFFERENCE, f"the scores of the arms differ by {difference}: {scores}"
    return {
        "beside": compared,
        "arms": {name: arm.facts() | {"scores": scores[name]} for name, arm in arms.items()},
        "times_as_fast": ratio(arms["packages"], arms["ours"]),
        "answers": answers,
        "systems": systems,
        "seconds": time_all_metrics(rows, systems),
        "most": MAX_SECONDS,
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--systems", type=int, default=5)
    parser.add_argument("--compared", type=int, default=300)
    given = parser.parse_args()
    conditions = machine("numpy", "pandas", "rouge-score", "sacrebleu") | {"file": given.file and given.file.name}
    result = conditions | measure(given.file, given.answers, given.systems, given.compared, given.rounds)
    table = Table("", "seconds", "CPU seconds", title=f"{given.answers:,} answers × {given.systems} systems")
    for name, arm in result["arms"].items():
        processor = sorted(arm["processor_seconds"])[len(arm["processor_seconds"]) // 2]
        table.add_row(f"{given.compared} answers by {name}", f"{arm['median']:.2f}", f"{processor:.2f}")
    times = result["times_as_fast"]
    table.add_row("times as fast", f"{times['clock']:.1f}", f"{times['processor']:.1f}")
    for step, seconds in result["seconds"].items():
        table.add_row(step, f"{seconds['clock']:.1f}", f"{seconds['processor']:.1f}")
    report("metrics", result, table, given.write)


if __name__ == "__main__":
    main()
