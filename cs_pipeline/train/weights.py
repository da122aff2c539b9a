"""Whether a folder holds a whole model: its configuration, its tokenizer, and all of its weights as safetensors."""

import json
from pathlib import Path

WEIGHTS = "model.safetensors"
INDEX = f"{WEIGHTS}.index.json"
"""Names the shard in which each weight lies, where they are too large for one file."""
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json")


def shards(folder: Path) -> list[str]:
    """The names of the weight files that a model in ``folder`` needs, sorted; the index is read where there is one."""
    index = folder / INDEX
    if not index.exists():
        return [WEIGHTS]
    return sorted(set(json.loads(index.read_text())["weight_map"].values()))


def lacking(folder: Path) -> list[str]:
    """What keeps ``folder`` from being a whole model, for people; nothing: it is one. Weights are measured, not read."""
    if not folder.is_dir():
        return ["everything: it is no folder"]
    lacks = [name for name in ("config.json", "tokenizer_config.json") if not (folder / name).exists()]
    if not any((folder / name).exists() for name in _TOKENIZERS):
        lacks.append(" or ".join(_TOKENIZERS))
    try:
        needed = shards(folder)
    except (ValueError, KeyError, TypeError, AttributeError):
        return [*lacks, f"a readable {INDEX}"]
    return [*lacks, *(text for name in needed if (text := _lacks_weights(folder / name)))]


def _lacks_weights(file: Path) -> str:
    """A safetensors file begins with the length of a JSON header, which says where each tensor ends."""
    if not file.exists():
        return file.name
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        whole = file.stat().st_size == 8 + length + max(ends)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, MemoryError):
        whole = False
    return "" if whole else f"a whole {file.name}"
