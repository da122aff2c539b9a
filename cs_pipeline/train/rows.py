"""The rows a recipe trains on, as tokens, and the proof that the loss sees what it should."""

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
    RetrievedText,
    Told,
    earlier_turns,
    fit_found_texts,
    messages,
)
from cs_pipeline.recipe import Recipe
from cs_pipeline.retrieval.retrieve import open_index, retrieve
from cs_pipeline.text.placeholders import Speaker, apply
from cs_pipeline.train.supervision import SupervisionCheck

_SEEN_OF_A_ROW = ["row_id", "source", "source_file_sha256", "subject_id"]
_COLUMNS = [*_SEEN_OF_A_ROW, "cluster_id", "context", "instruction", "response", "predicted_intent"]


@dataclass(frozen=True)
class TrainingRows:
    """``examples`` in the table's order, a row as often as the mixture has it, and what became of the rows.

    ``seen`` are the rows in ``examples``, and those whose answers stand before their questions, once each, with the schema
    SEEN_ROW. ``too_long`` rows did not fit into the recipe's ``max_length`` and were left out; ``shortened`` ones fit without
    their oldest turns. Of the ``found`` texts of the rows, ``found_left_out`` did not fit beside question and answer;
    ``retold`` rows answer with the first of theirs. Of ``rewritten`` ones the tokenizer has not every character; ``spelt``
    is the share of all characters that are spelt by their code points.
    """

    examples: list[Example]
    seen: pa.Table
    too_long: int
    shortened: int
    found: int
    found_left_out: int
    retold: int
    rewritten: int
    spelt: float


def training_rows(recipe: Recipe, lake: DataLake, chat: ChatFormat, side: str) -> TrainingRows:
    """The rows of ``side`` (train or validation) in the recipe's mixture, placeholder mode and prompt.

    Raises PipelineError when the loss would not cover the answer and its stop token alone, when the tokenizer cannot write
    the texts, or when no row is left.
    """
    table = rows_seen(recipe, lake, side, _COLUMNS)
    sources = table.column("source").to_pylist()
    times = Counter(mixture(sources, recipe) if side == "train" else range(len(sources)))
    drawn = table.take(pa.array(times, pa.int64()))
    texts = [_said(row, recipe) for row in drawn.to_pylist()]
    # Nothing of the row's own cluster: it would learn to copy what no customer's question will ever find.
    clusters = drawn.column("cluster_id").to_pylist()
    questions = [said.question for said in texts]
    intents = drawn.column("predicted_intent").to_pylist()
    found = retrieve(open_index(recipe, lake), recipe.prompt, recipe.placeholders, questions, intents, clusters)
    examples: list[Example] = []
    seen: list[dict[str, Any]] = []
    told_rows: set[str] = set()
    too_long = shortened = told = untold = retold = 0
    share = recipe.mixture.retold if side == "train" else 0
    retelling = np.random.default_rng((recipe.trainer.seed, 1)).random(len(texts)) < share
    preflight = SupervisionCheck(chat)
    for row, said, known, count, retells in zip(
        drawn.to_pylist(), texts, found, times.values(), retelling, strict=True
    ):
        preflight.read(said.question, said.answer, *(text for _, text in said.earlier), *(one.text for one in known))
        fitted = _encoded(said, row["predicted_intent"], known, recipe, chat)
        if retells:
            again = _retold(said, fitted.found)
            refitted = _encoded(again, row["predicted_intent"], known, recipe, chat)
            if again != said and refitted.found[:1] == fitted.found[:1]:  # a longer answer leaves it less room
                said, fitted, retold = again, refitted, retold + 1
        if len(fitted.encoded) > recipe.trainer.max_length:
            too_long += 1
            continue
        preflight.decode(row["row_id"], fitted.encoded, said.answer)
        shortened += fitted.without > 0
        told += len(fitted.found)
        untold += len(known) - len(fitted.found)
        told_rows |= {one.id for one in fitted.found if one.kind == "answer"}
        examples += [fitted.encoded] * count
        seen.append({**{name: row[name] for name in _SEEN_OF_A_ROW}, "through": ""})
    preflight.assert_nothing_lost()
    if not examples:
        raise PipelineError(
            f"No row of the {side} split fits into {recipe.trainer.max_length} tokens.",
            "Raise trainer.max_length in the recipe.",
        )
    others = told_rows - {one["row_id"] for one in seen}
    table = pa.concat_tables([pa.Table.from_pylist(seen, SEEN_ROW), _told(others, lake)])
    spelt = preflight.rewritten, preflight.spelt_share
    return TrainingRows(examples, table, too_long, shortened, told + untold, untold, retold, *spelt)


def _told(row_ids: set[str], lake: DataLake) -> pa.Table:
    """These training rows as SEEN_ROW has those whose answers were told."""
    if not row_ids:
        return SEEN_ROW.empty_table()
    rows = lake.read("prepare", "train_split", _SEEN_OF_A_ROW)
    rows = rows.filter(pc.is_in(rows.column("row_id"), value_set=pa.array(sorted(row_ids), pa.string())))
    through = pa.array([IN_PROMPT] * rows.num_rows, pa.string())
    return rows.append_column(SEEN_ROW.field("through"), through).cast(SEEN_ROW)


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


def _retold(said: _Said, found: Sequence[RetrievedText]) -> _Said:
    """With the first known answer of ``found`` as its own, or as it is where there is none."""
    return replace(said, answer=found[0].text) if found and found[0].kind == "answer" else said


def _encoded(
    said: _Said, intent: str | None, found: Sequence[RetrievedText], recipe: Recipe, chat: ChatFormat
) -> Told[Example]:
    """The row as tokens, with what of its found texts and earlier turns fits beside question and answer."""

    def encode(turns: Context, known: Sequence[RetrievedText]) -> Example:
        return chat.example(messages(said.question, recipe.prompt, intent, turns, known), said.answer)

    return fit_found_texts(encode, said.earlier, found, recipe.trainer.max_length)


VALIDATION_ROWS = 256
"""Rows of the validation split on which the loss is taken before and after: the first by id, so as good as random."""

OUT_OF_SCOPE = "out_of_scope"
"""The ``source`` of the rows in OUT_OF_SCOPE_FILE."""
OUT_OF_SCOPE_FILE = Path(__file__).parent / "out_of_scope.yaml"


def rows_seen(recipe: Recipe, lake: DataLake, side: str, columns: list[str]) -> pa.Table:
    """The rows of ``side`` for ``recipe``, with ``columns``: those of ``validation`` are the ones the loss is taken on.

    Raises PipelineError when an intent that the recipe holds out has no row to train on.
    """
    if side == "validation":
        return _for_loss(_taught(recipe, lake, "validation", columns)).select(columns)
    tables = [_taught(recipe, lake, "train", columns).select(columns)]
    if recipe.mixture.validation:
        validation = _taught(recipe, lake, "validation", [*columns, "cluster_id"])
        kept_apart = _for_loss(validation).column("cluster_id").combine_chunks()
        others = pc.invert(pc.is_in(validation.column("cluster_id"), kept_apart))
        tables.append(validation.filter(others).select(columns))
    if recipe.mixture.out_of_scope:
        tables.append(_out_of_scope(tables[0].schema))
    return pa.concat_tables(tables)


def _taught(recipe: Recipe, lake: DataLake, side: str, columns: list[str]) -> pa.Table:
    """The rows of ``side`` but those of the intents that are held out."""
    table = lake.read("prepare", f"{side}_split", list(dict.fromkeys([*columns, "intent", "row_id"])))
    if not recipe.held_out_intents:
        return table
    if unknown := sorted(set(recipe.held_out_intents) - set(table.column("intent").unique().to_pylist())):
        raise PipelineError(
            f"The recipe '{recipe.name}' holds out intents that no {side} row has: {', '.join(unknown)}.",
            "Name intents of the data in held_out_intents; the asset 'intent_classifier' lists them.",
        )
    return table.filter(pc.invert(pc.is_in(table.column("intent"), pa.array(recipe.held_out_intents))))


def _for_loss(validation: pa.Table) -> pa.Table:
    return validation.take(pc.sort_indices(validation, [("row_id", "ascending")])[:VALIDATION_ROWS])


def _out_of_scope(schema: pa.Schema) -> pa.Table:
    sha256 = file_sha256(OUT_OF_SCOPE_FILE)
    rows: list[dict[str, Any]] = []
    for pair in yaml.safe_load(OUT_OF_SCOPE_FILE.read_text()):
        question, answer = pair["question"], pair["answer"]
        known = {
            "row_id": hashlib.sha256(f"{OUT_OF_SCOPE}\0{question}".encode()).hexdigest()[:16],
            "source": OUT_OF_SCOPE,
            "source_file_sha256": sha256,
            "instruction": question,
            "response": answer,
        }
        rows.append({name: known.get(name) for name in schema.names})
    return pa.Table.from_pylist(rows, schema)
