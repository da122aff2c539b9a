"""Decides which rows go into which step: grouped by length, reproducible, and independent of the number of processes.

The sampler of transformers draws from torch's global generator, so the order would change when training is resumed or
another process takes part. With several processes it also repeats rows to fill the last step of an epoch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cs_pipeline.llm.model import batches_by_length
from cs_pipeline.llm.prompt import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_POOL_STEPS = 50
"""Steps in a pool: their rows are drawn together and sorted by length. An epoch of
four steps or more has at least four pools."""


class Batches:
    """A batch sampler: one process's part of each step of an epoch, as indices of ``lengths`` (tokens per row).

    The ``rows`` of a step over all processes depend only on lengths, seed and epoch; the last step of an epoch may have
    fewer. Each of ``processes`` gets rows of similar length, in micro-batches of at most ``tokens`` tokens with padding. A
    process for which no row is left gets the index ``len(lengths)``, for which ``data_loader`` has a row without labels.
    """

    def __init__(self, lengths: Sequence[int], rows: int, tokens: int, seed: int, rank: int, processes: int) -> None:
        self._lengths = np.asarray(lengths)
        self._rows, self._tokens, self._seed = rows, tokens, seed
        self._rank, self._processes = rank, processes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        """The number of steps."""
        return -(-len(self._lengths) // self._rows)

    def __iter__(self) -> Iterator[list[list[int]]]:
        """The micro-batches of each step, longest rows first."""
        for step in self.steps():
            rows = step[self._rank :: self._processes]
            batches = batches_by_length(self._lengths[rows].tolist(), len(rows), self._tokens)
            yield [rows[batch].tolist() for batch in batches][::-1] or [[len(self._lengths)]]

    def steps(self) -> list[np.ndarray]:
        """The rows of each step of the epoch, longest first.

        The step with the longest row comes first, so that training runs out of memory at once or never.
        """
        random = np.random.default_rng((self._seed, self._epoch))
        rows = random.permutation(len(self._lengths))
        pool = self._rows * max(1, min(len(rows) // (self._rows * 4), _POOL_STEPS))
        pools = (rows[i : i + pool] for i in range(0, len(rows), pool))
        grouped = np.concatenate([drawn[np.argsort(-self._lengths[drawn], kind="stable")] for drawn in pools])
        steps = [grouped[i : i + self._rows] for i in range(0, len(grouped), self._rows)]
        full, rest = steps[: len(rows) // self._rows], steps[len(rows) // self._rows :]
        full = [full[i] for i in random.permutation(len(full))]
        longest = max(range(len(full)), key=lambda i: self._lengths[full[i][0]], default=0)
        return full[longest : longest + 1] + full[:longest] + full[longest + 1 :] + rest


def data_loader(
    examples: Sequence[Example], batches: Batches, collate: Callable[[list[dict[str, Any]]], Any]
) -> "DataLoader":
    """Steps in the order of ``batches``: dicts whose only key, ``micro_batches``, has a list of what ``collate`` returns.

    The Trainer sets its epoch.
    """
    import torch
    from torch.utils.data import DataLoader

    class Loader(DataLoader):
        def set_epoch(self, epoch: int) -> None:
            batches.set_epoch(epoch)

    class Rows(torch.utils.data.Dataset[list[dict[str, Any]]]):
        def __getitem__(self, indices: list[int]) -> list[dict[str, Any]]:
            return [rows[i] for i in indices]

    rows: list[dict[str, Any]] = [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
    rows.append({"input_ids": examples[0].input_ids[:1], "labels": [IGNORE_INDEX]})
    return Loader(
        Rows(),
        batch_sampler=batches,
        collate_fn=lambda step: {"micro_batches": [collate(micro_batch) for micro_batch in step]},
        pin_memory=torch.cuda.is_available(),
    )
