"""The checkpoints of an unfinished training: each complete or absent, the newest complete one found again."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_folder, locked
from cs_pipeline.core.manifest import read_manifest, write_manifest

_KEPT = 2
"""Newest checkpoints that are kept: the last, and the one before it in case that the disk damages the last."""


class Checkpoints:
    """Folders ``step-00000120`` below ``folder``, which this process alone writes.

    ``report`` gets a line for each checkpoint that is set aside.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder = folder
        self._report = report

    def at(self, step: int) -> Path:
        """Where the checkpoint of ``step`` lies or will lie."""
        return self.folder / f"step-{step:08}"

    def newest(self) -> int | None:
        """The step of the newest checkpoint that is complete, and that of its best step with it; None where there is none.

        Every file is compared with its hash. A checkpoint that fails is set aside as ``broken-…``, and the one before it is
        tried.
        """
        for leftover in self.folder.glob(".step-*"):  # of a process that was killed while it wrote
            shutil.rmtree(leftover)
        for path in reversed(self._all()):
            manifest = self._manifest(path)
            best = None if manifest is None else self.at(manifest["best"] or manifest["step"])
            if best is not None and (best == path or self._manifest(best) is not None):
                return _step(path)
        return None

    @contextmanager
    def writing(self, step: int, best: int | None) -> Iterator[Path]:
        """A folder for the files of the checkpoint of ``step``, which is there, whole and synced, when the block ends well.

        ``best`` is the step of the lowest validation loss so far. Checkpoints that are neither among the last two nor that
        of ``best`` go afterwards. Raises PipelineError when it cannot be written; those that are there stay.
        """
        try:
            with atomic_folder(self.at(step)) as temporary:
                yield temporary
                write_manifest(temporary, {"step": step, "best": best})
        except (OSError, SafetensorError, PipelineError) as error:
            before = self._all()
            kept = f"that of step {_step(before[-1]):,} is kept" if before else "there is none from before"
            raise PipelineError(
                f"The checkpoint of step {step:,} cannot be written to {self.folder}: {error.__cause__ or error}; {kept}.",
                "Free the disk, or point CS_LAKE at a larger one, and start the same training again: it goes on from there.",
            ) from error
        for path in self._all()[:-_KEPT]:
            if _step(path) != best:
                shutil.rmtree(path)

    def discard(self) -> None:
        """Removes them all."""
        for path in self._all():
            shutil.rmtree(path)

    def _all(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("step-*"))

    def _manifest(self, path: Path) -> dict[str, Any] | None:
        """The manifest of a checkpoint that is there and whole; one that is there and is not is set aside."""
        if not path.exists():
            return None
        try:
            return read_manifest(path, "adapter")
        except PipelineError as error:
            aside = path.with_name(f"broken-{_step(path):08}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            self._report(f"A checkpoint is not what was written and is set aside as {aside.name}: {error.what}")
            return None


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """``folder``, where a training keeps what it needs to go on, for this process alone.

    It stays if there is anything in it; ``remove_working_folder`` removes it when the training is finished. Raises
    PipelineError while another process trains the same.
    """
    with locked(folder / _LOCK, wait=False) as held:
        if not held:
            raise PipelineError(
                f"Another process is training the same adapter: it holds {folder / _LOCK}.",
                "Wait until it has finished, or stop it.",
            )
        try:
            yield folder
        finally:
            if not any(path.is_file() and path.name != _LOCK for path in folder.rglob("*")):
                shutil.rmtree(folder)


def remove_working_folder(folder: Path) -> None:
    """Removes what a finished training kept to go on, unless another process has begun it anew."""
    if not folder.exists():
        return
    with locked(folder / _LOCK, wait=False) as held:
        if not held:
            return
        # Renamed first: half of it must not look like a training to go on with.
        gone = folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}"))
    shutil.rmtree(gone)


_LOCK = ".lock"


def write_state(path: Path, state: Any) -> None:
    """Writes ``state`` to ``path`` with .json and .safetensors behind it.

    It may be of dicts, lists, tuples, tensors and plain values; raises TypeError for anything else.
    """
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):
            return {"dict": [[key, plain(its)] for key, its in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [plain(each) for each in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a state holds a {type(value).__name__}, which is not kept")

    path.with_suffix(".json").write_text(json.dumps(plain(state)))
    save_file(tensors, path.with_suffix(".safetensors"))


def read_state(path: Path) -> Any:
    """What ``write_state`` wrote, tensors on the CPU."""
    tensors = load_file(path.with_suffix(".safetensors"))

    def whole(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: whole(its) for key, its in content}
        items = [whole(each) for each in content]
        return tuple(items) if kind == "tuple" else items

    return whole(json.loads(path.with_suffix(".json").read_text()))
