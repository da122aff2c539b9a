"""Scoring answers against references: this package's row statistics, and rouge-score and sacreBLEU row by row.

    python -m bench.metrics [FILE] [--answers 10000] [--systems 5] [--beside 300] [--rounds 3] [--write]

FILE holds rows in the Bitext schema; without it the sample rows are scored, whose answers are shorter. Each system answers
with the answers of other rows. First both arms score the same ``--beside`` answers and must give the same ROUGE, chrF and
BLEU. Then the whole metric part of an evaluation is timed: row statistics of ``--answers`` answers per system, scores and
differences with intervals, and all slices.
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

MOST = 60.0
"""Maximum seconds of the metric part for 10,000 answers of each of 5 systems."""

SCORES = ("rouge1", "rouge2", "rougeL", "bleu", "chrf")
CLOSE = 1e-6


def read_rows(file: Path | None, count: int) -> pd.DataFrame:
    """A random sample of ``count`` rows in the Bitext schema, with repetitions if there are fewer."""
    rows = sample_rows() if file is None else pd.read_csv(file, dtype=str, keep_default_na=False)
    return rows.sample(count, replace=count > len(rows), random_state=0).reset_index(drop=True)


def answers_of(rows: pd.DataFrame, system: int) -> list[str]:
    """The answers of a system: those of other rows, different for each system."""
    return rows["response"].sample(frac=1, random_state=system + 1).tolist()


def ours(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """This package's scores."""
    scores = corpus_scores(row_statistics([""] * len(answers), answers, references), SCORES)
    return {name: score or 0.0 for name, score in scores.items()}


def packages(answers: Sequence[str], references: Sequence[str]) -> dict[str, float]:
    """The libraries' scores: ROUGE and chrF of each row, BLEU of all rows."""
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


def metric_part(rows: pd.DataFrame, systems: int) -> dict[str, dict[str, float]]:
    """Wall-clock and CPU seconds of each step of an evaluation's metric part."""
    steps: dict[str, dict[str, float]] = {}
    started, used = time.perf_counter(), time.process_time()

    def done(step: str) -> None:
        nonlocal started, used
        steps[step] = {"clock": time.perf_counter() - started, "processor": time.process_time() - used}
        started, used = time.perf_counter(), time.process_time()

    rng = np.random.default_rng(0)
    places = np.arange(len(rows))
    test = rows.assign(
        row_id=places.astype(str),
        source=np.where(places % 4 > 0, "bitext", "company"),
        cluster_id=rng.integers(0, max(2, len(rows) * 4 // 5), len(rows)).astype(str),
        nearest_train_similarity=rng.random(len(rows)),
    )
    known = {"nll": 90.0, "answer_tokens": 80, "answer_chars": 400, "stopped": 1.0}
    stats = {}
    for system in range(systems):
        frame = row_statistics(rows["instruction"].tolist(), answers_of(rows, system), rows["response"].tolist())
        right = (rng.random(len(rows)) < 0.8).astype(float)
        stats[str(system) if system else "tuned"] = frame.assign(row_id=test["row_id"], right_intent=right, **known)
    done("row statistics")
    compare(test, stats)
    done("scores and differences")
    slice_scores(test, stats)
    done("slices")
    names = ("clock", "processor")
    steps["together"] = {name: sum(seconds[name] for seconds in steps.values()) for name in names}
    return steps


def measure(file: Path | None, answers: int, systems: int, beside: int, rounds: int) -> dict[str, Any]:
    """Runs both arms, then the whole metric part. Raises AssertionError if the arms give different scores."""
    rows = read_rows(file, answers)
    few = rows.head(beside)
    texts = (answers_of(few, 0), few["response"].tolist())
    arms = in_turn({"ours": lambda: ours(*texts), "packages": lambda: packages(*texts)}, rounds)
    scores = {name: arm.computed[-1] for name, arm in arms.items()}
    gap = max(abs(scores["ours"][name] - scores["packages"][name]) for name in SCORES)
    assert gap < CLOSE, f"the arms give different scores ({gap} apart): {scores}"
    return {
        "beside": beside,
        "arms": {name: arm.facts() | {"scores": scores[name]} for name, arm in arms.items()},
        "times_as_fast": ratio(arms["packages"], arms["ours"]),
        "answers": answers,
        "systems": systems,
        "seconds": metric_part(rows, systems),
        "most": MOST,
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--answers", type=int, default=10_000)
    parser.add_argument("--systems", type=int, default=5)
    parser.add_argument("--beside", type=int, default=300)
    given = parser.parse_args()
    about = machine("numpy", "pandas", "rouge-score", "sacrebleu") | {"file": given.file and given.file.name}
    result = about | measure(given.file, given.answers, given.systems, given.beside, given.rounds)
    table = Table("", "seconds", "CPU seconds", title=f"{given.answers:,} answers × {given.systems} systems")
    for name, arm in result["arms"].items():
        processor = sorted(arm["processor_seconds"])[len(arm["processor_seconds"]) // 2]
        table.add_row(f"{given.beside} answers by {name}", f"{arm['median']:.2f}", f"{processor:.2f}")
    times = result["times_as_fast"]
    table.add_row("times as fast", f"{times['clock']:.1f}", f"{times['processor']:.1f}")
    for step, seconds in result["seconds"].items():
        table.add_row(step, f"{seconds['clock']:.1f}", f"{seconds['processor']:.1f}")
    report("metrics", result, table, given.write)


if __name__ == "__main__":
    main()
