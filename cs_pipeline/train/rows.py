"""The rows a recipe trains on, as tokens, and the proof that the loss sees what it should."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake
from cs_pipeline.placeholders import apply
from cs_pipeline.prompt import (
    IGNORED,
    Context,
    Example,
    earlier_turns,
    encode_example,
    fit,
    messages,
    plain_text,
)
from cs_pipeline.recipe import Recipe
from cs_pipeline.schema import SEEN

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VALIDATION_ROWS = 256
"""Rows of the validation split on which the loss is taken before and after: the first by id, so as good as random."""

_SEEN_OF_A_ROW = ["row_id", "source", "source_file_sha256", "subject_id"]
_COLUMNS = [*_SEEN_OF_A_ROW, "context", "instruction", "response", "predicted_intent"]


@dataclass(frozen=True)
class Rows:
    """``examples`` in the table's order, a row as often as the mixture has it, and what became of the rows.

    ``seen`` are the rows in ``examples``, once each, with the schema SEEN. ``too_long`` rows did not fit into the recipe's
    ``max_length`` and were left out; ``shortened`` ones fit without their oldest turns.
    """

    examples: list[Example]
    seen: pa.Table
    too_long: int
    shortened: int


def training_rows(recipe: Recipe, lake: DataLake, tokenizer: "PreTrainedTokenizerBase", side: str) -> Rows:
    """The rows of ``side`` (train or validation) in the recipe's mixture, placeholder mode and prompt.

    Raises PipelineError when the loss would not cover the answer and its stop token alone, or when no row is left.
    """
    table = lake.read("prepare", f"{side}_split", _COLUMNS)
    if side == "train":
        places = mixture(table.column("source").to_pylist(), recipe)
    else:
        ids = table.column("row_id").to_pylist()
        places = sorted(range(len(ids)), key=ids.__getitem__)[:VALIDATION_ROWS]
    times = Counter(places)
    examples: list[Example] = []
    seen: list[dict[str, Any]] = []
    too_long = shortened = 0
    for row, count in zip(table.take(pa.array(times, pa.int64())).to_pylist(), times.values(), strict=True):
        example, left_out, answer = _encoded(tokenizer, recipe, row)
        if len(example) > recipe.trainer.max_length:
            too_long += 1
            continue
        _assert_supervision(tokenizer, example, answer, row["row_id"])
        shortened += left_out > 0
        examples += [example] * count
        seen.append({**{name: row[name] for name in _SEEN_OF_A_ROW}, "through": ""})
    if not examples:
        raise PipelineError(
            f"No row of the {side} split fits into {recipe.trainer.max_length} tokens.",
            "Raise trainer.max_length in the recipe.",
        )
    return Rows(examples, pa.Table.from_pylist(seen, SEEN), too_long, shortened)


def mixture(sources: Sequence[str], recipe: Recipe) -> list[int]:
    """Places in ``sources`` (bitext or company, one a training row), ascending, as often as the recipe trains on each."""
    random = np.random.default_rng(recipe.trainer.seed)
    times = np.ones(len(sources), dtype=np.int64)
    company = np.flatnonzero(np.asarray(sources) == "company")
    whole, part = divmod(recipe.mixture.company_weight, 1)
    times[company] = int(whole)
    times[random.choice(company, round(part * len(company)), replace=False)] += 1
    places = np.repeat(np.arange(len(sources)), times)
    if recipe.train_rows is not None and recipe.train_rows < len(places):
        places = np.sort(random.choice(places, recipe.train_rows, replace=False))
    return places.tolist()


def _encoded(tokenizer: "PreTrainedTokenizerBase", recipe: Recipe, row: dict[str, Any]) -> tuple[Example, int, str]:
    """The row as tokens, how many of its earlier turns were left out to make it fit, and its answer in the recipe's mode."""
    row_id, mode = row["row_id"], recipe.placeholders
    question = apply(row["instruction"], mode, "customer", row_id)
    answer = apply(row["response"], mode, "agent", row_id)
    earlier = [(speaker, apply(text, mode, speaker, row_id)) for speaker, text in earlier_turns(row["context"])]

    def encode(turns: Context) -> Example:
        return encode_example(tokenizer, messages(question, recipe.prompt, row["predicted_intent"], turns), answer)

    return *fit(encode, earlier, recipe.trainer.max_length), answer


def _assert_supervision(tokenizer: "PreTrainedTokenizerBase", example: Example, answer: str, row_id: str) -> None:
    """The supervised tokens are exactly the answer and the stop token; decoding them is the test."""
    first = next((i for i, label in enumerate(example.labels) if label != IGNORED), len(example.labels))
    supervised = example.labels[first:]
    stop = tokenizer.eos_token_id
    text = str(tokenizer.decode(supervised[:-1], skip_special_tokens=False)) if supervised else ""
    if (
        first == 0
        or not supervised
        or supervised != example.input_ids[first:]
        or supervised[-1] != stop
        or stop in supervised[:-1]
        or text.split() != plain_text(tokenizer, answer).split()
    ):
        # Without the text: a person may have written it.
        raise PipelineError(
            f"Row {row_id}: the loss would cover other text instead of the answer and the stop token.",
            "The tokenizer of this base cannot write the answer back, or its stop token is not its eos token: "
            "use another base.",
        )
