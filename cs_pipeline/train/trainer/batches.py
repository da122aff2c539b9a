"""Decides which rows go into which step: grouped by length, reproducible, and independent of the number of processes.

The sampler of transformers draws from torch's global generator, so the order would change when a training is resumed or
another process takes part. With several processes it also repeats rows to fill the last step of an epoch.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from cs_pipeline.llm.prompt import IGNORE_INDEX, Example

if TYPE_CHECKING:
    from torch.utils.data import DataLoader

_POOL_STEPS = 50
"""Steps in a pool: their rows are drawn together and sorted by length. Fewer if an epoch would have less than four pools."""


class Batches:
    """A batch sampler: one process's micro-batches of an epoch, as indices of ``lengths`` (tokens per row).

    A step has ``rows`` rows over all processes, the last one of an epoch perhaps fewer. They depend only on lengths, seed
    and epoch. Each of ``processes`` gets rows of similar length, in micro-batches of at most ``micro`` rows. A micro-batch
    for which no row is left has the index ``len(lengths)``: ``data_loader`` adds a row without labels there.
    """

    def __init__(self, lengths: Sequence[int], rows: int, micro: int, seed: int, rank: int, processes: int) -> None:
        self._lengths = np.asarray(lengths)
        self._rows, self._micro, self._seed = rows, micro, seed
        self._rank, self._processes = rank, processes
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        full_steps, rest = divmod(len(self._lengths), self._rows)
        return full_steps * self._micro_batches(self._rows) + self._micro_batches(rest)

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.steps():
            parts = np.array_split(step, self._micro_batches(len(step)) * self._processes)
            for part in parts[self._rank :: self._processes]:
                yield part.tolist() or [len(self._lengths)]

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

    def _micro_batches(self, rows: int) -> int:
        """Micro-batches per process in a step of ``rows`` rows."""
        return -(-rows // (self._micro * self._processes))


def data_loader(
    examples: Sequence[Example], batches: Batches, collate: Callable[[list[dict[str, Any]]], Any]
) -> "DataLoader":
    """The ``examples`` in the order of ``batches``. The Trainer sets its epoch."""
    import torch
    from torch.utils.data import DataLoader

    class Loader(DataLoader):
        def set_epoch(self, epoch: int) -> None:
            batches.set_epoch(epoch)

    rows: Any = [{"input_ids": e.input_ids, "labels": e.labels} for e in examples]
    rows.append({"input_ids": examples[0].input_ids[:1], "labels": [IGNORE_INDEX]})
    return Loader(rows, batch_sampler=batches, collate_fn=collate, pin_memory=torch.cuda.is_available())
