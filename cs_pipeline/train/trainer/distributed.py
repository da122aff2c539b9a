"""Processes that train together: the rank of this process, its share of a step, and communication with the others.

``torchrun`` and ``accelerate launch`` start them and set RANK, LOCAL_RANK and WORLD_SIZE. Without these variables there is
only one process, and nothing is communicated.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.recipe import TrainerSettings

_COLLECTIVE_TIMEOUT = timedelta(hours=2)
"""How long a process waits for the others during training. The launcher notices at once when one of them dies."""

_PREPARATION_TIMEOUT = timedelta(days=7)
"""How long the other processes wait while the first one downloads or trains the base."""


def rank() -> int:
    """The number of this process, from 0. Only process 0, the first, reports and writes."""
    return int(os.environ.get("RANK", 0))


def world_size() -> int:
    """The number of processes that train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def micro_batch_rows(settings: TrainerSettings, processes: int) -> int:
    """Rows of a micro-batch in each of ``processes``: the recipe's, or fewer if a step has fewer rows per process.

    Raises PipelineError if a step has fewer rows than there are processes.
    """
    rows = settings.rows_per_step
    if rows < processes:
        raise PipelineError(
            f"A step of the recipe has {rows} rows, which is too few for {processes} processes.",
            f"Start at most {rows} (CS_PROCESSES, --nproc-per-node), or raise trainer.per_device_train_batch_size "
            "or trainer.gradient_accumulation_steps.",
        )
    return min(settings.per_device_train_batch_size, -(-rows // processes))


class ProcessGroup:
    """The processes of one training run."""

    def __init__(self) -> None:
        self._store: Any = None  # belongs to the launcher, so it outlives each process
        self._joined = False

    def join(self) -> None:
        """Connects to the other processes. Raises PipelineError if there are more of them than GPUs."""
        if world_size() == 1:
            # Otherwise transformers would use all GPUs, each with a whole micro-batch, and a step would have more rows.
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            return
        import torch
        from torch.distributed import init_process_group
        from torch.distributed.rendezvous import rendezvous

        self._store, _, _ = next(rendezvous("env://", timeout=_COLLECTIVE_TIMEOUT))
        backend = "gloo"
        if torch.cuda.is_available():
            gpu = int(os.environ.get("LOCAL_RANK", 0))
            if gpu >= torch.cuda.device_count():
                raise PipelineError(
                    f"This machine has more training processes than GPUs, of which there are {torch.cuda.device_count()}.",
                    "Start one process per GPU: set CS_PROCESSES, or --nproc-per-node, to their number.",
                )
            torch.cuda.set_device(gpu)
            backend = "cpu:gloo,cuda:nccl"
        init_process_group(
            backend, store=self._store, rank=rank(), world_size=world_size(), timeout=_COLLECTIVE_TIMEOUT
        )
        self._joined = True

    def broadcast(self, decide: Callable[[], str]) -> str:
        """Calls ``decide`` in the first process and returns its result in all processes. ``decide`` may take hours."""
        if rank() > 0:
            self._store.wait(["decided"], _PREPARATION_TIMEOUT)
            return str(self._store.get("decided").decode())
        decision = decide()
        if self._store is not None:
            self._store.set("decided", decision)
        return decision

    def lost_another(self, error: Exception) -> bool:
        """Whether ``error`` means that another process ended. That process has reported the reason, unless it was killed."""
        if not self._joined:
            return False
        from torch.distributed import DistError

        return isinstance(error, DistError) or "/gloo/" in str(error)  # gloo's errors name their source file

    def first_to_fail(self) -> bool:
        """Whether no other process has reported a failure before."""
        return self._store is None or self._store.add("failed", 1) == 1

    def leave(self) -> None:
        """Disconnects after success."""
        if self._joined:
            from torch.distributed import destroy_process_group

            destroy_process_group()


def sum_over_processes(*numbers: float) -> list[float]:
    """Each number summed over all processes."""
    return _reduce(numbers, "SUM")


def max_over_processes(number: float) -> float:
    """The largest number of all processes."""
    return _reduce([number], "MAX")[0]


def _reduce(numbers: Sequence[float], operation: str) -> list[float]:
    if world_size() == 1:
        return list(numbers)
    import torch
    from torch.distributed import ReduceOp, all_reduce

    tensor = torch.tensor(numbers, dtype=torch.float64)  # on the CPU, so that no GPU has to wait for it
    all_reduce(tensor, getattr(ReduceOp, operation))
    return list(tensor.tolist())
