"""The rows a recipe trains on, as tokens, and the proof that the loss sees what it should."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from cs_pipeline.errors import PipelineError
from cs_pipeline.lake import DataLake
from cs_pipeline.placeholders import Speaker, apply
from cs_pipeline.prompt import Chat, Context, Example, earlier_turns, fit, messages
from cs_pipeline.recipe import Recipe
from cs_pipeline.schema import SEEN
from cs_pipeline.train.preflight import Preflight
from cs_pipeline.train.view import OUT_OF_SCOPE, rows_seen

_SEEN_OF_A_ROW = ["row_id", "source", "source_file_sha256", "subject_id"]
_COLUMNS = [*_SEEN_OF_A_ROW, "context", "instruction", "response", "predicted_intent"]


@dataclass(frozen=True)
class Rows:
    """``examples`` in the table's order, a row as often as the mixture has it, and what became of the rows.

    ``seen`` are the rows in ``examples``, once each, with the schema SEEN. ``too_long`` rows did not fit into the recipe's
    ``max_length`` and were left out; ``shortened`` ones fit without their oldest turns. Of ``rewritten`` ones the tokenizer
    has not every character; ``spelt`` is the share of all characters that are spelt by their code points.
    """

    examples: list[Example]
    seen: pa.Table
    too_long: int
    shortened: int
    rewritten: int
    spelt: float


def training_rows(recipe: Recipe, lake: DataLake, chat: Chat, side: str) -> Rows:
    """The rows of ``side`` (train or validation) in the recipe's mixture, placeholder mode and prompt.

    Raises PipelineError when the loss would not cover the answer and its stop token alone, when the tokenizer cannot write
    the texts, or when no row is left.
    """
    table = rows_seen(recipe, lake, side, _COLUMNS)
    sources = table.column("source").to_pylist()
    times = Counter(mixture(sources, recipe) if side == "train" else range(len(sources)))
    examples: list[Example] = []
    seen: list[dict[str, Any]] = []
    too_long = shortened = 0
    preflight = Preflight(chat)
    for row, count in zip(table.take(pa.array(times, pa.int64())).to_pylist(), times.values(), strict=True):
        said = _said(row, recipe)
        preflight.read(said.question, said.answer, *(text for _, text in said.earlier))
        example, left_out = _encoded(said, row["predicted_intent"], recipe, chat)
        if len(example) > recipe.trainer.max_length:
            too_long += 1
            continue
        preflight.decode(row["row_id"], example, said.answer)
        shortened += left_out > 0
        examples += [example] * count
        seen.append({**{name: row[name] for name in _SEEN_OF_A_ROW}, "through": ""})
    preflight.assert_nothing_lost()
    if not examples:
        raise PipelineError(
            f"No row of the {side} split fits into {recipe.trainer.max_length} tokens.",
            "Raise trainer.max_length in the recipe.",
        )
    table = pa.Table.from_pylist(seen, SEEN)
    return Rows(examples, table, too_long, shortened, preflight.rewritten, preflight.spelt_share)


def mixture(sources: Sequence[str], recipe: Recipe) -> list[int]:
    """Places in ``sources`` (bitext, company or ours), one a training row, ascending, as often as it is trained on."""
    random = np.random.default_rng(recipe.trainer.seed)
    times = np.ones(len(sources), dtype=np.int64)
    times[np.asarray(sources) == OUT_OF_SCOPE] = recipe.mixture.out_of_scope
    company = np.flatnonzero(np.asarray(sources) == "company")
    whole, part = divmod(recipe.mixture.company_weight, 1)
    times[company] = int(whole)
    times[random.choice(company, round(part * len(company)), replace=False)] += 1
    places = np.repeat(np.arange(len(sources)), times)
    if recipe.train_rows is not None and recipe.train_rows < len(places):
        places = np.sort(random.choice(places, recipe.train_rows, replace=False))
    return places.tolist()


@dataclass(frozen=True)
class _Said:
    """The texts of a row in the recipe's placeholder mode."""

    question: str
    answer: str
    earlier: Context


def _said(row: dict[str, Any], recipe: Recipe) -> _Said:
    def text(raw: str, speaker: Speaker) -> str:
        return apply(raw, recipe.placeholders, speaker, row["row_id"])

    earlier = [(speaker, text(raw, speaker)) for speaker, raw in earlier_turns(row["context"])]
    return _Said(text(row["instruction"], "customer"), text(row["response"], "agent"), earlier)


def _encoded(said: _Said, intent: str | None, recipe: Recipe, chat: Chat) -> tuple[Example, int]:
    """The row as tokens, and how many of its earlier turns were left out to make it fit."""

    def encode(turns: Context) -> Example:
        return chat.example(messages(said.question, recipe.prompt, intent, turns), said.answer)

    return fit(encode, said.earlier, recipe.trainer.max_length)
