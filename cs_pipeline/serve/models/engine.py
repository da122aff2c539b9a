"""A loaded model and its thread, which answers waiting questions in micro-batches. All rows of a batch use one adapter."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.models.jobs import Job

logger = logging.getLogger(__name__)


class Engine:
    """A model and the only thread that uses it. All adapters share the weights of the base."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batches = 0
        self._peft: Any = None
        self._active: str | None = None
        self._waiting: deque[Job] = deque()
        self._calls: deque[tuple[Callable[[], object], Future[object]]] = deque()
        self._closing = False
        self._condition = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Adds ``job`` to the queue."""
        with self._condition:
            self._waiting.append(job)
            self._condition.notify()

    def attach(self, folder: str, name: str) -> None:
        """Loads the adapter in ``folder`` next to the loaded ones, between two batches."""
        self._call(lambda: self._attach(folder, name))

    def detach(self, name: str) -> None:
        """Unloads an adapter that no job uses any more."""
        self._call(lambda: self._detach(name))

    def close(self) -> None:
        """Answers the queued jobs, ends the thread, and releases the model."""
        with self._condition:
            self._closing = True
            self._condition.notify()
        self._thread.join()
        del self.model, self._peft

    @property
    def weight_bytes(self) -> int:
        """Bytes of memory that the weights take, adapters included."""
        return sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))

    def _call(self, function: Callable[[], object]) -> None:
        """Runs ``function`` in the engine's thread, between two batches."""
        done: Future[object] = Future()
        with self._condition:
            self._calls.append((function, done))
            self._condition.notify()
        done.result()

    def _work(self) -> None:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._calls or self._waiting or self._closing)
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._next_batch()
            if call:
                function, done = call
                try:
                    done.set_result(function())
                except BaseException as error:
                    done.set_exception(error)
            elif batch:
                self._answer(batch)
            elif self._closing:
                return

    def _next_batch(self) -> list[Job]:
        """The oldest waiting job and others of its variant, up to ``max_rows``."""
        if not self._waiting:
            return []
        variant = self._waiting[0].variant
        batch = [job for job in self._waiting if job.variant is variant][: variant.max_rows]
        taken = set(map(id, batch))
        self._waiting = deque(job for job in self._waiting if id(job) not in taken)
        return batch

    def _answer(self, batch: list[Job]) -> None:
        from cs_pipeline.serve.models.decoding import decode

        for job in batch:
            if early := job.early_finish():
                job.end(early)
        batch = [job for job in batch if not job.done.is_set()]
        if not batch:
            return
        try:
            self._activate(batch[0].variant.adapter)
            self.batches += 1
            decode(self.model, batch)
        except Exception as error:
            # The client gets only the type of the error: its text might quote the question.
            kind = type(error).__name__
            logger.exception("a batch of %d answers failed: %s", len(batch), kind)
            failure = PipelineError(f"The model failed while answering ({kind}).", "See the server's log.")
            for job in batch:
                if not job.done.is_set():
                    job.end(None, failure)

    def _activate(self, adapter: str | None) -> None:
        """Switches to ``adapter``, or to the bare base.

        In float32 on a CPU, the adapter is merged into the weights until another one is needed: unmerged, it would double
        the time per token of a small model. The rounding of a merge and unmerge changes a weight by 1e-7. In 16-bit weights
        the error would be larger, so there adapters stay unmerged.
        """
        if self._peft is None or adapter == self._active:
            return
        if self._active is not None and self._should_merge:
            self._peft.unmerge_adapter()
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(adapter, inference_mode=True)
            if self._should_merge:
                self._peft.merge_adapter([adapter])
        self._active = adapter

    @property
    def _should_merge(self) -> bool:
        return self.model.dtype.itemsize == 4 and self.model.device.type == "cpu"

    def _attach(self, folder: str, name: str) -> None:
        from peft import PeftModel

        self._activate(None)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name).eval()
        else:
            self._peft.load_adapter(folder, adapter_name=name)
        self._peft.base_model.disable_adapter_layers()

    def _detach(self, name: str) -> None:
        assert self._peft is not None
        self._activate(None)
        others = [other for other in self._peft.peft_config if other != name]
        if others:
            self._peft.set_adapter(others[0], inference_mode=True)  # otherwise peft picks one itself, with a warning
            self._peft.delete_adapter(name)
            self._peft.base_model.disable_adapter_layers()
        else:
            self.model = self._peft.unload()
            self._peft = None
