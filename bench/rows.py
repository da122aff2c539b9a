"""Rows for the benchmarks, from a file or generated, as tokens or as the three splits."""

from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pyarrow as pa

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.schema import SPLIT_ROW
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.llm.prompt import ChatFormat, Example, chat_messages
from cs_pipeline.recipe import PromptSettings
from cs_pipeline.train.embedded import _tokenizer, transcripts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

VOCAB_SIZE = 2048


def read_rows(file: Path | None, count: int | None) -> pd.DataFrame:
    """A fixed random sample of ``count`` rows in the Bitext schema, or all rows in random order if it is None.

    The rows come from ``file``, a CSV, or are generated if it is None.
    """
    rows = sample_rows(count or 3000) if file is None else pd.read_csv(file, dtype=str, keep_default_na=False)
    return rows.sample(count or len(rows), random_state=0)


def small_tokenizer(rows: pd.DataFrame, vocab_size: int = VOCAB_SIZE) -> "PreTrainedTokenizerBase":
    """A byte-level BPE tokenizer trained on ``rows``, with the embedded base's markers and template."""
    return _tokenizer(transcripts(rows["instruction"].tolist(), rows["response"].tolist()), vocab_size)


def encode(rows: pd.DataFrame, tokenizer: "PreTrainedTokenizerBase", max_tokens: int) -> list[Example]:
    """The rows as tokenized examples; rows of more than ``max_tokens`` tokens are left out."""
    chat = ChatFormat(tokenizer, "causal")
    pairs = zip(rows["instruction"], rows["response"], strict=True)
    prompts = ((chat_messages(question, PromptSettings(), None, ()), answer) for question, answer in pairs)
    examples = (chat.encode_example(messages, answer) for messages, answer in prompts)
    return [example for example in examples if len(example) <= max_tokens]


def write_splits(rows: pd.DataFrame, lake: DataLake) -> None:
    """Writes ``rows`` as train, validation and test split; the last two get a tenth each. The rows have no clusters."""
    tenth = len(rows) // 10
    for split, part in (("validation", rows[:tenth]), ("test", rows[tenth : 2 * tenth]), ("train", rows[2 * tenth :])):
        table = [
            {
                "row_id": f"{split}{number:08}",
                "source": "bitext",
                "source_file_sha256": "",
                "source_row": number,
                "instruction": row["instruction"],
                "response": row["response"],
                "intent": row["intent"],
                "split": split,
                "predicted_intent": row["intent"],
                "predicted_confidence": 1.0,
            }
            for number, row in enumerate(part.to_dict("records"))
        ]
        lake.write("prepare", f"{split}_split", pa.Table.from_pylist(table, SPLIT_ROW), SPLIT_ROW)
