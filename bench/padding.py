"""How much of what a training computes is text: our batches beside rows padded to a fixed length.

    python -m bench.padding [FILE] [--tokenizers FOLDER …] [--length 512] [--write]

FILE holds rows in the Bitext schema; without it the project's own sample rows are counted. Each FOLDER holds a tokenizer as
``save_pretrained`` writes it; without one a small one is trained on the rows. Counted are the tokens of an epoch's batches
as the trainer gets them from its collator: real ones, and those that padding makes of them. Nothing is timed.
"""

import argparse
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from bench.rows import encode, read_rows, small_tokenizer
from bench.side_by_side import machine, tell
from cs_pipeline.llm.prompt import IGNORED, Example
from cs_pipeline.train.trainer.batches import Batches, loader

BATCH = 16
KINDS = ("fixed", "grouped", "packed")
"""Padded to a fixed length; grouped by length and padded to the longest; without padding."""


def measure(examples: Sequence[Example], pad: int, length: int) -> dict[str, Any]:
    """The share of real tokens of three ways of batching; raises AssertionError when they do not teach the same."""
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    batches = Batches([len(example) for example in examples], BATCH, BATCH, 0, 0, 1)
    options: tuple[dict[str, Any], ...] = ({"pad_to_multiple_of": length}, {}, {"padding_free": True})
    real = sum(map(len, examples))
    shares: dict[str, float] = {}
    taught: dict[str, Counter[int]] = {}
    for name, option in zip(KINDS, options, strict=True):
        computed = 0
        taught[name] = Counter()
        for batch in loader(examples, batches, DataCollatorForLanguageModeling(pad, **option)):
            computed += batch["input_ids"].numel()
            taught[name].update(batch["labels"][batch["labels"] != IGNORED].tolist())
        shares[name] = real / computed
    assert taught["fixed"] == taught["grouped"] == taught["packed"], "the ways of batching teach other tokens"
    lengths = np.array([len(example) for example in examples])
    return {
        "rows": len(examples),
        "batch": BATCH,
        "fixed_length": length,
        "tokens_a_row": {
            "median": float(np.median(lengths)),
            "mean": float(lengths.mean()),
            "most": int(lengths.max()),
        },
        "real_token_share": shares,
        "times": {name: shares[name] / shares["fixed"] for name in KINDS},
    }


def main() -> None:
    """Counts and prints; with --write the result is kept."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--tokenizers", type=Path, nargs="*", default=[])
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--write", action="store_true", help="keep the result in bench/results")
    given = parser.parse_args()
    from transformers import AutoTokenizer

    rows = read_rows(given.file, None)
    named: dict[str, Any] = {
        folder.name: AutoTokenizer.from_pretrained(folder, local_files_only=True) for folder in given.tokenizers
    }
    result = machine("transformers", "trl") | {
        "file": given.file and given.file.name,
        "tokenizers": {
            name: measure(encode(rows, tokenizer, given.length), tokenizer.pad_token_id, given.length)
            for name, tokenizer in (named or {"small": small_tokenizer(rows)}).items()
        },
    }
    title = f"{len(rows):,} rows, batches of {BATCH}"
    table = Table("tokenizer", *(f"{kind}: real tokens" for kind in KINDS), title=title)
    for name, counted in result["tokenizers"].items():
        shares, times = counted["real_token_share"], counted["times"]
        table.add_row(name, *(f"{share:.1%} (× {times[kind]:.2f})" for kind, share in shares.items()))
    tell("padding", result, table, given.write)


if __name__ == "__main__":
    main()
