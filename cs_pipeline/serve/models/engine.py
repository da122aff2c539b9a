"""A loaded base at work: one thread that answers waiting questions in micro-batches, whatever is the same adapter's."""

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.serve.models.jobs import Job

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class _Call(Generic[_T]):
    """Something to be done to the model between two batches."""

    def __init__(self, function: Callable[[], _T]) -> None:
        self._function = function
        self._result: _T
        self._error: BaseException | None = None
        self._done = threading.Event()

    def run(self) -> None:
        try:
            self._result = self._function()
        except BaseException as error:
            self._error = error
        self._done.set()

    def wait(self) -> _T:
        self._done.wait()
        if self._error is not None:
            raise self._error
        return self._result


class Engine:
    """A model and the thread that alone touches it. Its adapters share the weights of the base."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.batches = 0
        self._peft: Any = None
        self._speaking: str | None = None
        self._waiting: deque[Job] = deque()
        self._calls: deque[_Call[Any]] = deque()
        self._closing = False
        self._change = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="engine", daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Puts ``job`` behind those that wait."""
        with self._change:
            self._waiting.append(job)
            self._change.notify()

    def attach(self, folder: str, name: str) -> None:
        """Loads the adapter in ``folder`` beside those that are there, between two batches."""
        self._call(lambda: self._attach(folder, name))

    def detach(self, name: str) -> None:
        """Unloads an adapter; no job may need it any more."""
        self._call(lambda: self._detach(name))

    def close(self) -> None:
        """Ends the thread after what waits is answered, and lets the model go."""
        with self._change:
            self._closing = True
            self._change.notify()
        self._thread.join()
        del self.model, self._peft

    @property
    def bytes(self) -> int:
        """What the weights take where they lie, adapters included."""
        return sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))

    def _call(self, function: Callable[[], _T]) -> _T:
        call = _Call(function)
        with self._change:
            self._calls.append(call)
            self._change.notify()
        return call.wait()

    def _work(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._calls or self._waiting or self._closing)
                call = self._calls.popleft() if self._calls else None
                batch = [] if call else self._take()
            if call:
                call.run()
            elif batch:
                self._answer(batch)
            elif self._closing:
                return

    def _take(self) -> list[Job]:
        """The job that has waited longest and those of the same voice, as many as one batch may hold."""
        if not self._waiting:
            return []
        voice = self._waiting[0].voice
        batch = [job for job in self._waiting if job.voice is voice][: voice.rows]
        taken = set(map(id, batch))
        self._waiting = deque(job for job in self._waiting if id(job) not in taken)
        return batch

    def _answer(self, batch: list[Job]) -> None:
        from cs_pipeline.serve.models.decoding import decode

        for job in batch:
            if early := job.over():
                job.end(early)
        batch = [job for job in batch if not job.done.is_set()]
        if not batch:
            return
        try:
            self._speak_as(batch[0].voice.adapter)
            self.batches += 1
            decode(self.model, batch)
        except Exception as error:
            # The kind alone: its text might quote what was asked.
            logger.exception("a batch of %d answers failed: %s", len(batch), type(error).__name__)
            for job in batch:
                if not job.done.is_set():
                    job.end(
                        None,
                        PipelineError(
                            f"The model failed while answering ({type(error).__name__}).", "The server's log says why."
                        ),
                    )

    def _speak_as(self, adapter: str | None) -> None:
        """Makes ``adapter`` the one that answers.

        In float32 it is added to the weights, and taken off again when another one's turn comes: beside them it would make
        every token of a small model take twice as long. What the two roundings leave is 1e-7 of a weight. In half of float32
        it would be more, so that there adapters stay beside the weights.
        """
        if self._peft is None or adapter == self._speaking:
            return
        if self._speaking is not None and self._adds:
            self._peft.unmerge_adapter()
        if adapter is None:
            self._peft.base_model.disable_adapter_layers()
        else:
            self._peft.base_model.enable_adapter_layers()
            self._peft.set_adapter(adapter, inference_mode=True)
            if self._adds:
                self._peft.merge_adapter([adapter])
        self._speaking = adapter

    @property
    def _adds(self) -> bool:
        return self.model.dtype.itemsize == 4 and self.model.device.type == "cpu"

    def _attach(self, folder: str, name: str) -> None:
        from peft import PeftModel

        self._speak_as(None)
        if self._peft is None:
            self._peft = PeftModel.from_pretrained(self.model, folder, adapter_name=name).eval()
        else:
            self._peft.load_adapter(folder, adapter_name=name)
        self._peft.base_model.disable_adapter_layers()

    def _detach(self, name: str) -> None:
        assert self._peft is not None
        self._speak_as(None)
        others = [other for other in self._peft.peft_config if other != name]
        if others:
            self._peft.set_adapter(others[0], inference_mode=True)  # peft would choose one itself, and warn
            self._peft.delete_adapter(name)
            self._peft.base_model.disable_adapter_layers()
        else:
            self.model = self._peft.unload()
            self._peft = None
