"""The differences between models that were trained on the same rows with different seeds.

    python bench/training_noise.py FILE [--recipe embedded] [--seeds 5] [--write]

FILE is a CSV in the Bitext schema. The benchmark writes one recipe per seed, materialises all assets up to its evaluation
and prints the scores of the tuned models. Promotion adds the standard deviation of the answer quality to the
uncertainty that comes from the test rows (``TRAINING_NOISE`` in evaluate/decision.py).
"""

import argparse
import json
import os
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import dagster as dg
import numpy as np
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from cs_pipeline.core.lake import DataLake, write_json
from cs_pipeline.evaluate.decision import MARGINS
from cs_pipeline.evaluate.results import read_evaluation
from cs_pipeline.recipe import load_fine_tune_recipe


def measure(source: Path, recipe: str, seeds: int, folder: Path, note: Console) -> dict[str, list[float]]:
    """The tuned model's scores in the metrics that promotion reads, one per seed. All files are in ``folder``."""
    spec = load_fine_tune_recipe(recipe).model_dump(mode="json", exclude={"name"})
    spec["evaluation"] = {"robustness_cases": 1, "timed_answers": 1}  # they take time and are not read here
    recipes = folder / "recipes"
    recipes.mkdir()
    for seed in range(seeds):
        spec["trainer"]["seed"] = seed
        (recipes / f"seed{seed}.yaml").write_text(yaml.safe_dump(spec))
    os.environ |= {"CS_RECIPES": str(recipes), "CS_BITEXT": str(source.absolute()), "CS_LAKE": str(folder / "lake")}
    from cs_pipeline.definitions import defs  # reads the recipes

    figures: dict[str, list[float]] = {name: [] for name in MARGINS}
    lake = DataLake(folder / "lake")
    (folder / "dagster").mkdir()
    job = defs.resolve_job_def("support_model")
    upstream = dg.AssetSelection.assets("evaluation").upstream().resolve(defs.resolve_asset_graph())
    selection = list(upstream & job.asset_layer.selected_asset_keys)
    with dg.DagsterInstance.local_temp(str(folder / "dagster"), {"telemetry": {"enabled": False}}) as instance:
        for seed in range(seeds):
            job.execute_in_process(
                instance=instance,
                partition_key=f"seed{seed}",
                asset_selection=selection,
                run_config={"loggers": {"console": {"config": {"log_level": "WARNING"}}}},
            )
            scores = read_evaluation(f"seed{seed}", lake).scores["tuned"]
            for name, values in figures.items():
                score = scores[name]
                assert score is not None
                values.append(score.score)
            note.print(f"seed {seed}: {json.dumps({name: round(values[-1], 4) for name, values in figures.items()})}")
    return figures


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="save the result in bench/results/training_noise.json")
    arguments = parser.parse_args()
    console = Console()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(arguments.file, arguments.recipe, arguments.seeds, Path(folder), console)
    table = Table("metric", "mean", "standard deviation", "margin")
    for name, values in figures.items():
        deviation = float(np.std(values, ddof=1))
        table.add_row(name, *(f"{value:.2f}" for value in (np.mean(values), deviation, MARGINS[name])))
    console.print(table)
    if arguments.write:
        facts = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "cores": psutil.cpu_count(logical=False)}
        facts |= {"recipe": arguments.recipe, "rows_of": arguments.file.name, "figures": figures}
        write_json(Path(__file__).parent / "results" / "training_noise.json", facts)


if __name__ == "__main__":
    main()
