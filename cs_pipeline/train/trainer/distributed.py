"""The processes that train together: which one this is, what part of a step is its own, and what they agree on.

``torchrun`` and ``accelerate launch`` start them and number them by RANK, LOCAL_RANK and WORLD_SIZE. A process without these
is alone, and every function here then costs nothing.
"""

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from cs_pipeline.core.errors import PipelineError

PATIENCE = timedelta(hours=2)
"""How long a process waits for another in the middle of a training; one that has died is noticed by the launcher at once."""

PREPARATION = timedelta(days=7)
"""How long the others wait while the first one fetches or trains the base."""


def rank() -> int:
    """This process among all, from 0; the first one alone reports and writes."""
    return int(os.environ.get("RANK", 0))


def local_rank() -> int:
    """This process among those of its machine, from 0: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0))


def processes() -> int:
    """How many train together."""
    return int(os.environ.get("WORLD_SIZE", 1))


def rows_at_once(batch_size: int, accumulation: int, processes: int) -> int:
    """Rows of a micro-batch in each of ``processes``, so that a step has ``batch_size × accumulation`` in all as before.

    Raises PipelineError when a step has fewer rows than there are processes.
    """
    rows = batch_size * accumulation
    if rows < processes:
        raise PipelineError(
            f"A step of the recipe has {batch_size} × {accumulation} rows, too few for {processes} processes.",
            f"Start at most {rows} (CS_PROCESSES, --nproc-per-node), or raise trainer.per_device_train_batch_size "
            "or trainer.gradient_accumulation_steps.",
        )
    return min(batch_size, -(-rows // processes))


class Team:
    """The processes of one training."""

    def __init__(self) -> None:
        self._store: Any = None  # the launcher's, so that it outlives each of them
        self._together = False

    def join(self) -> None:
        """Meets the others. Raises PipelineError where there are more of them than GPUs."""
        if processes() == 1:
            # Of several GPUs transformers would use all by itself, each with a whole batch: another recipe.
            os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
            return
        import torch
        from torch.distributed import init_process_group
        from torch.distributed.rendezvous import rendezvous

        self._store, _, _ = next(rendezvous("env://", timeout=PATIENCE))
        backend = "gloo"
        if torch.cuda.is_available():
            if local_rank() >= torch.cuda.device_count():
                raise PipelineError(
                    f"There are more training processes on this machine than its {torch.cuda.device_count()} GPUs.",
                    "Start one process a GPU: set CS_PROCESSES, or --nproc-per-node, to their number.",
                )
            torch.cuda.set_device(local_rank())
            backend = "cpu:gloo,cuda:nccl"
        init_process_group(backend, store=self._store, rank=rank(), world_size=processes(), timeout=PATIENCE)
        self._together = True

    def decided(self, decide: Callable[[], str]) -> str:
        """What ``decide`` returns to the first process, which alone calls it; the others wait, however long it takes."""
        if rank() > 0:
            self._store.wait(["decided"], PREPARATION)
            return str(self._store.get("decided").decode())
        decision = decide()
        if self._store is not None:
            self._store.set("decided", decision)
        return decision

    def has_lost_another(self, error: Exception) -> bool:
        """Whether ``error`` only says that another process has gone, which has told why, or was killed and could not."""
        if not self._together:
            return False
        from torch.distributed import DistError

        return isinstance(error, DistError) or "/gloo/" in str(error)  # gloo's errors name their source file

    def first_to_fail(self) -> bool:
        """Whether no other process has said before why it failed."""
        return self._store is None or self._store.add("failed", 1) == 1

    def leave(self) -> None:
        """Ends well."""
        if self._together:
            from torch.distributed import destroy_process_group

            destroy_process_group()


def total(*numbers: float) -> list[float]:
    """The sum of each over all processes."""
    return _agreed(numbers, "SUM")


def highest(number: float) -> float:
    """The greatest of all processes."""
    return _agreed([number], "MAX")[0]


def _agreed(numbers: Sequence[float], operation: str) -> list[float]:
    if processes() == 1:
        return list(numbers)
    import torch
    from torch.distributed import ReduceOp, all_reduce

    tensor = torch.tensor(numbers, dtype=torch.float64)  # on the CPU: no GPU has to wait for it
    all_reduce(tensor, getattr(ReduceOp, operation))
    return list(tensor.tolist())
