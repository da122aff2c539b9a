"""Checkpoints of an unfinished training on disk: written atomically, verified when read, as safetensors and JSON."""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_folder, locked
from cs_pipeline.core.manifest import read_manifest, write_manifest

_KEPT = 2
"""Checkpoints to keep: the newest, and the previous one in case the newest is damaged."""

_LOCK = ".lock"


class Checkpoints:
    """The checkpoints in ``folder``, each in a folder such as ``step-00000120``. Only this process writes there.

    ``report`` gets a line for each checkpoint that is set aside as broken.
    """

    def __init__(self, folder: Path, report: Callable[[str], None]) -> None:
        self.folder = folder
        self._report = report

    def at(self, step: int) -> Path:
        """The folder of the checkpoint of ``step``. It need not exist."""
        return self.folder / f"step-{step:08}"

    def newest(self) -> int | None:
        """The step of the newest complete checkpoint; None if there is none.

        The checkpoint of the best step before it must be complete too. Every file is compared with its hash. A broken
        checkpoint is renamed to ``broken-…``, and the previous one is tried.
        """
        for leftover in self.folder.glob(".step-*"):  # left by a process that was killed while writing
            shutil.rmtree(leftover)
        for path in reversed(self._oldest_first()):
            manifest = self._manifest(path)
            best = None if manifest is None else self.at(manifest["best"] or manifest["step"])
            if best is not None and (best == path or self._manifest(best) is not None):
                return _step(path)
        return None

    @contextmanager
    def writing(self, step: int, best: int | None) -> Iterator[Path]:
        """Yields a temporary folder, which becomes the checkpoint of ``step`` after the block, complete and synced.

        ``best`` is the step of the lowest validation loss so far. Afterwards only the last two checkpoints and the one of
        ``best`` are kept. Raises PipelineError if the checkpoint cannot be written; existing ones are then kept.
        """
        try:
            with atomic_folder(self.at(step)) as temporary:
                yield temporary
                write_manifest(temporary, {"step": step, "best": best})
        except (OSError, SafetensorError, PipelineError) as error:
            existing = self._oldest_first()
            kept = f"the one of step {_step(existing[-1]):,} is kept" if existing else "there is no earlier one"
            raise PipelineError(
                f"The checkpoint of step {step:,} cannot be written to {self.folder}: {error.__cause__ or error}; {kept}.",
                "Free disk space, or point CS_LAKE at a larger disk, and start the same training again: it resumes.",
            ) from error
        for path in self._oldest_first()[:-_KEPT]:
            if _step(path) != best:
                shutil.rmtree(path)

    def discard(self) -> None:
        """Deletes all checkpoints."""
        for path in self._oldest_first():
            shutil.rmtree(path)

    def _oldest_first(self) -> list[Path]:
        return sorted(self.folder.glob("step-*"))

    def _manifest(self, path: Path) -> dict[str, Any] | None:
        """The manifest of a complete checkpoint. A broken one is set aside."""
        if not path.exists():
            return None
        try:
            return read_manifest(path, "adapter")
        except PipelineError as error:
            aside = path.with_name(f"broken-{_step(path):08}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            self._report(f"A checkpoint is broken and was set aside as {aside.name}: {error.what}")
            return None


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


@contextmanager
def working_folder(folder: Path) -> Iterator[Path]:
    """Locks ``folder``, which holds the checkpoints of a training run, for this process.

    An empty folder is removed after the block; otherwise ``remove_working_folder`` removes it when the training is finished.
    Raises PipelineError while another process trains the same adapter.
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
    """Removes the working folder of a finished training, unless another process is using it."""
    if not folder.exists():
        return
    with locked(folder / _LOCK, wait=False) as held:
        if not held:
            return
        # Renamed first, so that a half-deleted folder does not look like training to resume.
        renamed = folder.rename(folder.with_name(f".{folder.name}.{os.getpid()}"))
    shutil.rmtree(renamed)


def write_state(path: Path, state: Any) -> None:
    """Writes ``state`` to two files: ``path`` with the suffixes .json and .safetensors.

    It may consist of dicts, lists, tuples, tensors and plain values. Raises TypeError for anything else.
    """
    import torch
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}

    def to_json(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            tensors[str(len(tensors))] = value.detach().to("cpu", copy=True).contiguous()
            return {"tensor": str(len(tensors) - 1)}
        if isinstance(value, Mapping):
            return {"dict": [[key, to_json(item)] for key, item in value.items()]}
        if isinstance(value, list | tuple):
            return {type(value).__name__: [to_json(item) for item in value]}
        if value is None or isinstance(value, bool | int | float | str):
            return value
        raise TypeError(f"a state cannot contain a {type(value).__name__}")

    path.with_suffix(".json").write_text(json.dumps(to_json(state)))
    save_file(tensors, path.with_suffix(".safetensors"))


def read_state(path: Path) -> Any:
    """Reads what ``write_state`` wrote, with tensors on the CPU."""
    from safetensors.torch import load_file

    tensors = load_file(path.with_suffix(".safetensors"))

    def from_json(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "tensor":
            return tensors[content]
        if kind == "dict":
            return {key: from_json(item) for key, item in content}
        items = [from_json(item) for item in content]
        return tuple(items) if kind == "tuple" else items

    return from_json(json.loads(path.with_suffix(".json").read_text()))
