"""The state of optimizers, schedules and random numbers as safetensors and JSON.

transformers keeps it as ``optimizer.pt`` and ``rng_state.pth``, which are pickles. ``weights_only=True`` narrows what
reading one may do; nothing of the kind has to be trusted where there is none.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


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
