"""How well the router recognises what it does not know, with characters alone and with a sentence-embedding model.

    python -m bench.router [FILE] [--rows 6000] [--draws 20 21 22 23 24] [--embedder all-MiniLM-L6-v2] [--write]

FILE is a CSV in the Bitext schema; without it, rows are generated. Only rows of the training split are used, a random
sample of ``--rows``. In a draw, seven intents are left out, and the other rows are divided by clusters: 60 % to train,
20 % to choose the threshold, 20 % to measure. Questions about the seven intents are unknown to the router.

Each shop of ``shops.yaml`` is then added to all sampled rows: ten subjects with two or three questions each, beside 27
intents with hundreds each. The shop's paraphrases should be routed to their subject, and its foreign questions to no
subject of the shop.
"""

import argparse
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from bench.embedders import read_split_rows
from bench.side_by_side import machine, report
from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.prepare.router import calibration_error
from cs_pipeline.retrieval.embedder import MINILM, RememberingEmbedder
from cs_pipeline.retrieval.router import FALSE_HANDOVERS, Route, Router

SHOPS = Path(__file__).with_name("shops.yaml")
LEFT_OUT = 7
"""The number of intents that a draw leaves out."""
_MAX_UNKNOWN = 1_500
_COLUMNS = ["instruction", "intent", "cluster_id", "response"]


def measure_draw(rows: pd.DataFrame, seed: int, embedder: RememberingEmbedder | None) -> dict[str, Any]:
    """Shares (0 to 1) of known and unknown questions that get no label, accuracy and calibration error of one draw."""
    random = np.random.default_rng(seed)
    left_out = random.choice(sorted(rows["intent"].unique()), LEFT_OUT, replace=False)
    clusters = sorted(rows["cluster_id"].unique())
    part = rows["cluster_id"].map(dict(zip(clusters, random.choice(3, len(clusters), p=[0.6, 0.2, 0.2]), strict=True)))
    is_unknown = rows["intent"].isin(left_out)
    train, validation, test = (rows[~is_unknown & (part == number)] for number in range(3))
    unknown = rows[is_unknown][:_MAX_UNKNOWN]
    started = time.process_time()
    router = _fit(train, embedder)
    seconds = time.process_time() - started
    router = router.with_validation(validation["instruction"].tolist(), validation["intent"].tolist())
    routes = router.route(test["instruction"].tolist())
    right = np.array([route.best for route in routes], dtype=object) == test["intent"].to_numpy()
    handed_over = np.array([route.label is None for route in router.route(unknown["instruction"].tolist())])
    return {
        "draw": seed,
        "accuracy": float(right.mean()),
        "calibration_error": calibration_error(np.array([route.probability for route in routes]), right),
        "known_handed_over": float(np.mean([route.label is None for route in routes])),
        "unknown_handed_over": float(handed_over.mean()),
        "unknown_handed_over_by_intent": {
            intent: float(handed_over[(unknown["intent"] == intent).to_numpy()].mean())
            for intent in sorted(unknown["intent"].unique())
        },
        "fit_processor_seconds": seconds,
    }


def measure_shop(
    rows: pd.DataFrame, shop: Mapping[str, Any], embedder: RememberingEmbedder | None
) -> tuple[dict[str, Any], list[str]]:
    """Counts of how the shop's paraphrases and foreign questions are routed, and a line for each that went wrong.

    A paraphrase went wrong if it did not get its subject, a foreign question if it got any label.
    """
    known = [
        (question, subject, f"{subject} {number}", shop["answers"][subject])
        for subject, groups in shop["known"].items()
        for number, group in enumerate(groups)
        for question in ([group] if isinstance(group, str) else group)
    ]
    router = _fit(pd.concat([rows[_COLUMNS], pd.DataFrame(known, columns=_COLUMNS)]), embedder)
    asked = [(question, subject) for subject, questions in shop["paraphrases"].items() for question in questions]
    routes = router.route([question for question, _ in asked])
    foreign = router.route(shop["foreign"])
    counts = {
        "paraphrases": len(asked),
        "most_probable_right": sum(route.best == subject for route, (_, subject) in zip(routes, asked, strict=True)),
        "routed_right": sum(route.label == subject for route, (_, subject) in zip(routes, asked, strict=True)),
        "routed_to_other_subject": sum(
            route.label in shop["known"] and route.label != subject
            for route, (_, subject) in zip(routes, asked, strict=True)
        ),
        "routed_to_intent": sum(route.label is not None and route.label not in shop["known"] for route in routes),
        "foreign": len(foreign),
        "foreign_to_subject": sum(route.label in shop["known"] for route in foreign),
        "foreign_to_intent": sum(route.label is not None and route.label not in shop["known"] for route in foreign),
    }
    lines = [
        _line(question, route, subject)
        for route, (question, subject) in zip(routes, asked, strict=True)
        if route.label != subject
    ]
    lines += [
        _line(question, route, "foreign")
        for route, question in zip(foreign, shop["foreign"], strict=True)
        if route.label is not None
    ]
    return counts, lines


def _fit(rows: pd.DataFrame, embedder: RememberingEmbedder | None) -> Router:
    texts, labels, clusters, answers = (rows[name].tolist() for name in _COLUMNS)
    return Router.fit(texts, labels, clusters, embedder, answers)


def _line(question: str, route: Route, expected: str) -> str:
    return f"{question} ({expected}): {route.label or 'none'}, most probable {route.best}, known {route.known:.2f}"


def measure(rows: pd.DataFrame, draws: Sequence[int], embedder: RememberingEmbedder | None) -> dict[str, Any]:
    """All figures of one arm. ``rows`` are of the training split."""
    measured = [measure_draw(rows, seed, embedder) for seed in draws]
    shops, wrong = {}, {}
    for name, shop in read_yaml(SHOPS).items():
        shops[name], wrong[name] = measure_shop(rows, shop, embedder)
    names = [name for name, value in measured[0].items() if isinstance(value, float)]
    mean = {name: float(np.mean([draw[name] for draw in measured])) for name in names}
    return {"draws": measured, "mean": mean, "shops": shops, "not_as_expected": wrong}


def table_of(result: Mapping[str, Any]) -> Table:
    """The figures of both arms."""
    arms = [result[name] for name in ("characters", "sentences")]
    table = Table("", "characters", result["embedder"], title=f"{result['rows']:,} rows")
    for name in arms[0]["mean"]:
        table.add_row(f"draws, mean: {name}", *(f"{arm['mean'][name]:.4f}" for arm in arms))
    for shop, counts in arms[0]["shops"].items():
        for name in counts:
            table.add_row(f"{shop}: {name}", *(str(arm["shops"][shop][name]) for arm in arms))
    return table


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="save the result in bench/results")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=6_000, help="the number of rows of the training split")
    parser.add_argument("--draws", type=int, nargs="+", default=[20, 21, 22, 23, 24], help="seeds")
    parser.add_argument("--embedder", default=MINILM, help="as in CS_EMBEDDER")
    given = parser.parse_args()
    result = machine("scikit-learn", "scipy", "numpy", "torch")
    result |= {"file": given.file and given.file.name, "embedder": given.embedder, "share": FALSE_HANDOVERS}
    with tempfile.TemporaryDirectory(prefix="bench-router-") as folder:
        rows = read_split_rows(given.file, Path(folder))
        train = rows[rows["split"] == "train"]
        sample = train.sample(min(given.rows, len(train)), random_state=1).reset_index(drop=True)
        embedder = RememberingEmbedder(given.embedder, Path(folder) / "vectors", print)
        result["rows"] = len(sample)
        result["characters"] = measure(sample, given.draws, None)
        result["sentences"] = measure(sample, given.draws, embedder)
    report("router", result, table_of(result), given.write)


if __name__ == "__main__":
    main()
