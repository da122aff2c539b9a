"""Training on batches grouped by length and on random batches: tokens per second and final loss.

    python -m bench.grouping [FILE] [--rows 1500] [--epochs 2] [--rounds 3] [--write]

FILE is a CSV in the Bitext schema; without it the sample rows are used, whose lengths differ less. Both arms fine-tune all
weights of the embedded base with the recipes' trainer, collator and loss; only the assignment of rows to micro-batches
differs. Before training, both must give the same loss for the same rows and weights. Both start from a trained base:
from random weights, they end at different losses (3.90 grouped, 3.12 random, after 3 epochs at the base's own learning
rate).
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.table import Table

from bench.rows import encode, read_rows
from bench.side_by_side import arguments, in_turn, machine, ratio, report
from cs_pipeline.llm.prompt import IGNORE_INDEX, Example
from cs_pipeline.recipe import EmbeddedBase
from cs_pipeline.train.embedded import _blocks, _tokenizer, _train, transcripts
from cs_pipeline.train.trainer.batches import Batches

BATCH, MAX_TOKENS, LEARNING_RATE = 16, 512, 1e-3
MAX_LOSS_DIFFERENCE = 0.03
"""Maximum relative difference of the arms' validation losses after training: they see the rows in a different order."""


class RandomBatches(Batches):
    """Steps of rows of any length, with the interface of ``Batches``."""

    def steps(self) -> list[np.ndarray]:
        rows = np.random.default_rng((self._seed, self._epoch)).permutation(len(self._lengths))
        return [rows[i : i + self._rows] for i in range(0, len(rows), self._rows)]


KINDS: dict[str, type[Batches]] = {"grouped": Batches, "random": RandomBatches}


class StepLoader:
    """A data loader that yields each step as one batch."""

    def __init__(self, examples: Sequence[Example], batches: Batches, collate: Callable[[Any], dict[str, Any]]) -> None:
        self._rows = [{"input_ids": example.input_ids, "labels": example.labels} for example in examples]
        self._batches, self._collate = batches, collate
        self.set_epoch = batches.set_epoch

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return (self._collate([self._rows[i] for i in step]) for step in self._batches.steps())


class Bench:
    """The tokenized rows, and the training run of one arm."""

    def __init__(self, rows: pd.DataFrame, epochs: int, base: EmbeddedBase, folder: Path) -> None:
        self.epochs, self.folder = epochs, folder
        tenth = len(rows) // 10
        texts = transcripts(rows["instruction"][tenth:].tolist(), rows["response"][tenth:].tolist())
        self.tokenizer = _tokenizer(texts, base.vocab_size)
        self.validation, self.train = (
            encode(part, self.tokenizer, MAX_TOKENS) for part in (rows[:tenth], rows[tenth:])
        )
        self.tokens = sum(map(len, self.train))
        self._base, _ = _train(self.tokenizer, _blocks(self.tokenizer, texts, base), base, lambda line: None)

    def batches(self, kind: str, examples: Sequence[Example]) -> Batches:
        return KINDS[kind]([len(example) for example in examples], BATCH, BATCH * MAX_TOKENS, 0, 0, 1)

    def model(self) -> Any:
        return deepcopy(self._base)

    def collated(self, kind: str, examples: Sequence[Example]) -> Iterator[dict[str, Any]]:
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

        collate = DataCollatorForLanguageModeling(self.tokenizer.pad_token_id)
        return iter(StepLoader(examples, self.batches(kind, examples), collate))

    def loss(self, model: Any, kind: str, examples: Sequence[Example]) -> float:
        """Nats per answer token of ``examples`` in batches of ``kind``."""
        import torch

        nll = tokens = 0.0
        with torch.inference_mode():
            for batch in self.collated(kind, examples):
                supervised = int((batch["labels"][:, 1:] != IGNORE_INDEX).sum())
                nll += model(**batch).loss.item() * supervised
                tokens += supervised
        return nll / tokens

    def trained_model(self, kind: str) -> Any:
        """The model after training on batches of ``kind``."""
        from datasets import Dataset
        from transformers import PrinterCallback
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import DataCollatorForLanguageModeling, SFTTrainer

        collate = DataCollatorForLanguageModeling(self.tokenizer.pad_token_id)
        trainer: Any = SFTTrainer(
            model=self.model(),
            processing_class=self.tokenizer,
            train_dataset=Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in self.train]),
            data_collator=collate,
            args=SFTConfig(
                output_dir=str(self.folder / "trainer"),
                num_train_epochs=self.epochs,
                warmup_steps=20,
                learning_rate=LEARNING_RATE,
                per_device_train_batch_size=BATCH,
                activation_checkpointing=False,
                max_length=None,
                dataset_kwargs={"skip_prepare_dataset": True},
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                bf16=False,
                use_cpu=True,
                dataloader_pin_memory=False,
            ),
        )
        trainer.remove_callback(PrinterCallback)
        trainer.get_train_dataloader = lambda: StepLoader(self.train, self.batches(kind, self.train), collate)
        trainer.train()
        return trainer.model.eval()


def measure(rows: pd.DataFrame, epochs: int, rounds: int, base: EmbeddedBase, folder: Path) -> dict[str, Any]:
    """Runs both arms. Raises AssertionError if their losses differ too much, or do not fall."""
    from cs_pipeline.llm.model import quiet_libraries

    quiet_libraries()
    bench = Bench(rows, epochs, base, folder)
    start = bench.model()
    before = {kind: bench.loss(start, kind, bench.validation) for kind in KINDS}
    assert abs(before["grouped"] - before["random"]) < 1e-4, f"different losses for the same rows: {before}"
    arms = in_turn({kind: partial(bench.trained_model, kind) for kind in KINDS}, rounds)
    after = {kind: bench.loss(arm.computed[-1], "grouped", bench.validation) for kind, arm in arms.items()}
    difference = abs(after["grouped"] / after["random"] - 1)
    assert difference < MAX_LOSS_DIFFERENCE, f"the arms end at different losses: {after}"
    assert max(after.values()) < before["grouped"], f"the validation loss did not fall: {before}, {after}"
    computed = {kind: sum(b["input_ids"].numel() for b in bench.collated(kind, bench.train)) for kind in KINDS}
    return {
        "rows": len(rows),
        "epochs": epochs,
        "batch": BATCH,
        "arms": {
            kind: arm.facts()
            | {
                "tokens_per_second": epochs * bench.tokens / arm.median,
                "real_token_share": bench.tokens / computed[kind],
                "validation_loss": after[kind],
            }
            for kind, arm in arms.items()
        },
        "validation_loss_before": before["grouped"],
        "times_as_fast": ratio(arms["random"], arms["grouped"]),
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=1500)
    parser.add_argument("--epochs", type=int, default=2)
    given = parser.parse_args()
    conditions = machine("torch", "transformers", "trl") | {"file": given.file and given.file.name}
    rows = read_rows(given.file, given.rows)
    with tempfile.TemporaryDirectory(prefix="bench-grouping-") as folder:
        result = conditions | measure(rows, given.epochs, given.rounds, EmbeddedBase(source="embedded"), Path(folder))
    table = Table(
        "batches", "tokens/s", "real tokens", "loss after", title=f"{given.epochs} epochs of {given.rows:,} rows"
    )
    for kind, arm in result["arms"].items():
        table.add_row(
            kind, f"{arm['tokens_per_second']:,.0f}", f"{arm['real_token_share']:.1%}", f"{arm['validation_loss']:.3f}"
        )
    times = result["times_as_fast"]
    table.add_row("ratio", f"{times['clock']:.2f} (CPU time {times['processor']:.2f})", "", "")
    report("grouping", result, table, given.write)


if __name__ == "__main__":
    main()
