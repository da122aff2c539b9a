"""Generation in batches ordered by length, in unordered batches, and one by one.

    python -m bench.answers [--recipe embedded] [--questions 256] [--rounds 3] [--write]

It uses the recipe's trained model in the lake (CS_LAKE, by default the project's), so run ``make demo`` first. Decoding is
greedy, and an answer leaves its batch when it ends. In float32 all three arms must give the same texts. In half
precision, rounding depends on the batch, so the number of differing answers is reported instead.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.side_by_side import arguments, in_turn, machine, ratio, report
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.model import Answer, SupportModel, compute_dtype
from cs_pipeline.recipe import FineTuneRecipe

BATCH = 32


def measure(
    recipe: FineTuneRecipe, base: Path, adapter: Path | None, lake: DataLake, questions: int, rounds: int
) -> dict[str, Any]:
    """Runs the arms on the first test questions of ``lake``. Raises AssertionError if their texts differ in float32."""
    rows = lake.read("prepare", "test_split").slice(0, questions)
    # Shuffled, because the split is ordered by intent and customers' questions are not.
    rows = rows.take(np.random.default_rng(0).permutation(rows.num_rows)).to_pydict()
    texts, intents = rows["instruction"], rows["predicted_intent"]

    def model(batch_size: int) -> SupportModel:
        generation = recipe.generation.model_copy(update={"per_device_eval_batch_size": batch_size})
        return SupportModel(recipe.model_copy(update={"generation": generation}), base, adapter)

    batched, single = model(BATCH), model(1)

    def answer(model: SupportModel, start: int, end: int) -> list[Answer]:
        return model.answer(texts[start:end], intents[start:end], [()] * len(texts[start:end]))

    def unordered() -> list[Answer]:
        parts = (answer(batched, start, start + BATCH) for start in range(0, len(texts), BATCH))
        return [one for part in parts for one in part]

    arms: dict[str, Callable[[], list[Answer]]] = {
        "ordered": lambda: answer(batched, 0, len(texts)),
        "unordered": unordered,
        "one by one": lambda: answer(single, 0, len(texts)),
    }
    ran = in_turn(arms, rounds)
    answers = {name: [one.text for one in arm.computed[-1]] for name, arm in ran.items()}
    differ = sum(len(set(of_arms)) > 1 for of_arms in zip(*answers.values(), strict=True))
    assert not differ or compute_dtype().itemsize < 4, f"{differ} of {len(texts)} answers depend on the batch"
    tokens = sum(one.tokens for one in ran["ordered"].computed[-1])
    return {
        "recipe": recipe.name,
        "questions": len(texts),
        "batch": BATCH,
        "tokens": tokens,
        "texts_that_differ": differ,
        "arms": {name: arm.facts() | {"tokens_per_second": tokens / arm.median} for name, arm in ran.items()},
        "unordered_to_ordered": ratio(ran["unordered"], ran["ordered"]),
        "one_by_one_to_ordered": ratio(ran["one by one"], ran["ordered"]),
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--recipe", default="embedded")
    parser.add_argument("--questions", type=int, default=256)
    given = parser.parse_args()
    from cs_pipeline.llm.base import find_base
    from cs_pipeline.recipe import read_fine_tune_recipe
    from cs_pipeline.train.adapter import current_adapter

    lake = DataLake.default()
    folder = current_adapter(given.recipe, lake).folder
    recipe = read_fine_tune_recipe(folder / "recipe.yaml")
    conditions = machine("peft", "torch", "transformers")
    base = Path(find_base(recipe, lake).path)
    result = conditions | measure(recipe, base, folder, lake, given.questions, given.rounds)
    table = Table("answers", "median s", "tokens/s", "times as long", title=f"{result['questions']} questions")
    ratios = {"unordered": result["unordered_to_ordered"], "one by one": result["one_by_one_to_ordered"]}
    for name, arm in result["arms"].items():
        of_arm = ratios.get(name)
        times = f"{of_arm['clock']:.2f} (CPU time {of_arm['processor']:.2f})" if of_arm else "1"
        table.add_row(name, f"{arm['median']:.1f}", f"{arm['tokens_per_second']:,.0f}", times)
    report("answers", result, table, given.write)


if __name__ == "__main__":
    main()
