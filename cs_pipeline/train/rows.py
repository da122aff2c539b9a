"""The rows a recipe trains on, as tokens, and the proof that the loss sees what it should."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake
from cs_pipeline.placeholders import apply
from cs_pipeline.prompt import IGNORED, Example, encode_example, messages, plain_text
from cs_pipeline.recipe import Recipe

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rows:
    """``examples`` in the table's order, and how many rows were ``too_long`` for the recipe and left out."""

    examples: list[Example]
    too_long: int


def training_rows(recipe: Recipe, lake: DataLake, tokenizer: "PreTrainedTokenizerBase", side: str) -> Rows:
    """The rows of ``side`` (train or validation) in the recipe's placeholder mode and prompt.

    Raises PipelineError when the loss would not cover the answer and its stop token alone, or when no row is left.
    """
    columns = ["row_id", "instruction", "response", "predicted_intent"]
    table = lake.read("prepare", f"{side}_split", columns).to_pydict()
    chosen = list(range(len(table["row_id"])))
    if side == "train" and recipe.train_rows is not None and recipe.train_rows < len(chosen):
        random = np.random.default_rng(recipe.trainer.seed)
        chosen = sorted(random.choice(len(chosen), recipe.train_rows, replace=False).tolist())
    examples, too_long = [], 0
    for i in chosen:
        row_id = table["row_id"][i]
        question = apply(table["instruction"][i], recipe.placeholders, "customer", row_id)
        answer = apply(table["response"][i], recipe.placeholders, "agent", row_id)
        turns = messages(question, recipe.prompt, table["predicted_intent"][i])
        example = encode_example(tokenizer, turns, answer)
        if len(example.input_ids) > recipe.trainer.max_length:
            too_long += 1
            continue
        _assert_supervision(tokenizer, example, answer, row_id)
        examples.append(example)
    if not examples:
        raise PipelineError(
            f"No row of the {side} split fits into {recipe.trainer.max_length} tokens.",
            "Raise trainer.max_length in the recipe.",
        )
    return Rows(examples, too_long)


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
        raise PipelineError(
            f"Row {row_id}: the loss would cover {text[:80]!r} instead of the answer {answer[:80]!r} and the stop token.",
            "The tokenizer of this base cannot write the answer back, or its stop token is not its eos token: "
            "use another base.",
        )
