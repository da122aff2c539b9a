"""Turns rows of a split into training examples: in the recipe's mixture, placeholder mode and prompt, as token ids."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import yaml

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake, file_sha256
from cs_pipeline.core.schema import IN_PROMPT, SEEN_ROW
from cs_pipeline.llm.prompt import (
    ChatFormat,
    Context,
    Example,
    FittedPrompt,
    RetrievedText,
    chat_messages,
    earlier_turns,
    fit_prompt,
)
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.retrieval.retrieve import in_context, open_index, own_known_rows, retrieve
from cs_pipeline.text.placeholders import Speaker, apply
from cs_pipeline.train.supervision import SupervisionCheck

OUT_OF_SCOPE = "out_of_scope"
"""The ``source`` of the rows in OUT_OF_SCOPE_FILE."""
OUT_OF_SCOPE_FILE = Path(__file__).parent / "out_of_scope.yaml"

_SEEN_COLUMNS = ["row_id", "source", "source_file_sha256", "subject_id"]
_COLUMNS = [*_SEEN_COLUMNS, "cluster_id", "conversation_id", "context", "instruction", "response", "predicted_intent"]


@dataclass(frozen=True)
class TrainingRows:
    """The ``examples`` in the table's order, each repeated as often as the mixture requires, and counts.

    ``seen`` has the schema SEEN_ROW and lists each row once: those in ``examples``, and those whose answers are in the
    prompts. The counts are: ``too_long`` rows, dropped because they did not fit into the recipe's ``max_length``;
    ``shortened`` rows, which fit after their oldest turns were dropped; rows ``with_earlier_turns`` in their prompts;
    ``retrieved`` texts, of which ``retrieved_dropped`` did not fit; ``retold`` rows, which have the first retrieved answer
    as their target; ``escaped`` rows, with text that the tokenizer cannot represent. ``escaped_share`` is the share of all
    characters that became code points.
    """

    examples: list[Example]
    seen: pa.Table
    too_long: int
    shortened: int
    with_earlier_turns: int
    retrieved: int
    retrieved_dropped: int
    retold: int
    escaped: int
    escaped_share: float


def training_rows(recipe: FineTuneRecipe, lake: DataLake, chat: ChatFormat, split: str) -> TrainingRows:
    """The rows of ``split`` (train or validation) as training examples of the recipe.

    Raises PipelineError if the loss would not cover exactly the answer and its stop token, if the tokenizer cannot
    represent the texts, or if no row fits.
    """
    table = select_rows(recipe, lake, split, _COLUMNS)
    sources = table.column("source").to_pylist()
    times = Counter(sample_mixture(sources, recipe) if split == "train" else range(len(sources)))
    table = table.take(pa.array(times, pa.int64()))
    rows, intents = table.to_pylist(), table.column("predicted_intent").to_pylist()
    texts = [_row_texts(row, recipe) for row in rows]
    # As in serving, a question that is very short, or that the router does not know alone, is searched together with
    # the customer's message before it.
    searched = [in_context(text.question, text.earlier, intent) for text, intent in zip(texts, intents, strict=True)]
    # A row's own cluster is excluded: its answers are almost the target, and nothing so similar exists for new questions.
    # The rows of its own conversation are excluded too: a new customer's question would not find such answers either.
    clusters = table.column("cluster_id").to_pylist()
    index = open_index(recipe, lake)
    own_rows = None if index is None else own_known_rows(table.column("conversation_id").to_pylist(), lake)
    texts_found = retrieve(index, recipe.prompt, recipe.placeholders, searched, intents, clusters, own_rows)
    examples: list[Example] = []
    seen: list[dict[str, Any]] = []
    in_prompts: set[str] = set()
    too_long = shortened = with_earlier_turns = kept = dropped = retold = 0
    share = recipe.mixture.retold if split == "train" else 0
    retells = np.random.default_rng((recipe.trainer.seed, 1)).random(len(texts)) < share
    check = SupervisionCheck(chat)
    for row, text, retrieved, count, retell in zip(rows, texts, texts_found, times.values(), retells, strict=True):
        check.count_escapes(
            text.question, text.answer, *(turn for _, turn in text.earlier), *(one.text for one in retrieved)
        )
        fitted = _fit(text, row["predicted_intent"], retrieved, recipe, chat)
        if retell and fitted.retrieved and fitted.retrieved[0].kind == "answer":
            copied = replace(text, answer=fitted.retrieved[0].text)
            refitted = _fit(copied, row["predicted_intent"], retrieved, recipe, chat)
            # If the known answer is longer than the row's own, it may not fit into the prompt and the target at once.
            if copied != text and refitted.retrieved[:1] == fitted.retrieved[:1]:
                text, fitted, retold = copied, refitted, retold + 1
        if len(fitted.encoded) > recipe.trainer.max_length:
            too_long += 1
            continue
        check.check_labels(row["row_id"], fitted.encoded, text.answer)
        shortened += fitted.turns_dropped > 0
        with_earlier_turns += fitted.turns_dropped < len(text.earlier)
        kept += len(fitted.retrieved)
        dropped += len(retrieved) - len(fitted.retrieved)
        in_prompts |= {one.id for one in fitted.retrieved if one.kind == "answer"}
        examples += [fitted.encoded] * count
        seen.append({**{name: row[name] for name in _SEEN_COLUMNS}, "through": ""})
    check.raise_on_lost_text()
    if not examples:
        raise PipelineError(
            f"No row of the {split} split fits into {recipe.trainer.max_length} tokens.",
            "Raise trainer.max_length in the recipe.",
        )
    others = in_prompts - {row["row_id"] for row in seen}
    seen_table = pa.concat_tables([pa.Table.from_pylist(seen, SEEN_ROW), _seen_in_prompts(others, lake)])
    escaped = check.escaped_rows, check.escaped_share
    return TrainingRows(
        examples, seen_table, too_long, shortened, with_earlier_turns, kept + dropped, dropped, retold, *escaped
    )


def _seen_in_prompts(row_ids: set[str], lake: DataLake) -> pa.Table:
    """The training rows ``row_ids``, seen only as answers in other rows' prompts, with the schema SEEN_ROW."""
    if not row_ids:
        return SEEN_ROW.empty_table()
    rows = lake.read("prepare", "train_split", _SEEN_COLUMNS)
    rows = rows.filter(pc.is_in(rows.column("row_id"), value_set=pa.array(sorted(row_ids), pa.string())))
    through = pa.array([IN_PROMPT] * rows.num_rows, pa.string())
    return rows.append_column(SEEN_ROW.field("through"), through).cast(SEEN_ROW)


def sample_mixture(sources: Sequence[str], recipe: FineTuneRecipe) -> list[int]:
    """Indices of ``sources`` (bitext, company or out_of_scope), ascending, each as often as its row is trained on."""
    random = np.random.default_rng(recipe.trainer.seed)
    times = np.ones(len(sources), dtype=np.int64)
    times[np.asarray(sources) == OUT_OF_SCOPE] = recipe.mixture.out_of_scope
    company = np.flatnonzero(np.asarray(sources) == "company")
    repeats, fraction = divmod(recipe.mixture.company_weight, 1)
    times[company] = int(repeats)
    times[random.choice(company, round(fraction * len(company)), replace=False)] += 1
    indices = np.repeat(np.arange(len(sources)), times)
    if recipe.train_rows is not None and recipe.train_rows < len(indices):
        indices = np.sort(random.choice(indices, recipe.train_rows, replace=False))
    return indices.tolist()


@dataclass(frozen=True)
class _RowTexts:
    """The texts of a row in the recipe's placeholder mode."""

    question: str
    answer: str
    earlier: Context


def _row_texts(row: dict[str, Any], recipe: FineTuneRecipe) -> _RowTexts:
    def text(raw: str, speaker: Speaker) -> str:
        return apply(raw, recipe.placeholders, speaker, row["row_id"])

    earlier = [(speaker, text(raw, speaker)) for speaker, raw in earlier_turns(row["context"])]
    return _RowTexts(text(row["instruction"], "customer"), text(row["response"], "agent"), earlier)


def _fit(
    text: _RowTexts, intent: str | None, retrieved: Sequence[RetrievedText], recipe: FineTuneRecipe, chat: ChatFormat
) -> FittedPrompt[Example]:
    """The row as an example, with as many retrieved texts and earlier turns as fit into ``max_length``."""

    def encode(turns: Context, texts: Sequence[RetrievedText]) -> Example:
        return chat.encode_example(chat_messages(text.question, recipe.prompt, intent, turns, texts), text.answer)

    return fit_prompt(encode, text.earlier, retrieved, recipe.trainer.max_length)


def select_rows(recipe: FineTuneRecipe, lake: DataLake, split: str, columns: list[str]) -> pa.Table:
    """The ``columns`` of the recipe's training rows, or of the rows that measure its validation loss.

    ``split`` is train or validation. Raises PipelineError if the recipe holds out an intent that no row has.
    """
    if split == "validation":
        return _loss_rows(recipe, _without_held_out(recipe, lake, "validation", columns)).select(columns)
    tables = [_without_held_out(recipe, lake, "train", columns).select(columns)]
    if recipe.mixture.validation:
        validation = _without_held_out(recipe, lake, "validation", [*columns, "cluster_id"])
        loss_clusters = _loss_rows(recipe, validation).column("cluster_id").combine_chunks()
        others = pc.invert(pc.is_in(validation.column("cluster_id"), loss_clusters))
        tables.append(validation.filter(others).select(columns))
    if recipe.mixture.out_of_scope:
        tables.append(_out_of_scope_rows(tables[0].schema))
    return pa.concat_tables(tables)


def _without_held_out(recipe: FineTuneRecipe, lake: DataLake, split: str, columns: list[str]) -> pa.Table:
    table = lake.read("prepare", f"{split}_split", list(dict.fromkeys([*columns, "intent", "row_id"])))
    if not recipe.held_out_intents:
        return table
    if unknown := sorted(set(recipe.held_out_intents) - set(table.column("intent").unique().to_pylist())):
        raise PipelineError(
            f"The recipe '{recipe.name}' holds out intents that no {split} row has: {', '.join(unknown)}.",
            "Name intents of the data in held_out_intents; the asset 'router' lists them.",
        )
    return table.filter(pc.invert(pc.is_in(table.column("intent"), pa.array(recipe.held_out_intents))))


def _loss_rows(recipe: FineTuneRecipe, validation: pa.Table) -> pa.Table:
    """The rows with the lowest ids. Ids are hashes, so these rows are a random sample."""
    return validation.take(pc.sort_indices(validation, [("row_id", "ascending")])[: recipe.validation_rows])


def _out_of_scope_rows(schema: pa.Schema) -> pa.Table:
    sha256 = file_sha256(OUT_OF_SCOPE_FILE)
    rows: list[dict[str, Any]] = []
    for pair in yaml.safe_load(OUT_OF_SCOPE_FILE.read_text()):
        question, answer = pair["question"], pair["answer"]
        values = {
            "row_id": hashlib.sha256(f"{OUT_OF_SCOPE}\0{question}".encode()).hexdigest()[:16],
            "source": OUT_OF_SCOPE,
            "source_file_sha256": sha256,
            "instruction": question,
            "response": answer,
        }
        rows.append({name: values.get(name) for name in schema.names})
    return pa.Table.from_pylist(rows, schema)
