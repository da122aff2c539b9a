"""Base models that a Python package contains as a GGUF file. Each is converted once to a folder that transformers can load.

GGUF (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md) is llama.cpp's format: quantised weights, the vocabulary and
the chat template in one file. The converted folder is in the model cache, with a manifest.

The weights are stored in float32. A weight in Q4_1 is ``d * q + m``, where ``q`` has 4 bits and ``d`` and ``m`` are float16.
Every GGUF reader computes it in float32; bfloat16, with 8 bits of precision, would round it a second time. When the model is
loaded, the weights are cast to the type that the machine computes in.
"""

import io
import shutil
from collections import Counter
from collections.abc import Callable
from contextlib import redirect_stderr
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import atomic_folder, digest
from cs_pipeline.core.manifest import MANIFEST_NAME, read_manifest, write_manifest
from cs_pipeline.core.package import PackageFiles, convert_once, models_folder
from cs_pipeline.llm.model import quiet_libraries
from cs_pipeline.recipe import PackageBase

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

CONVERSION_VERSION = "1"
"""Increase it when the conversion of the same file gives another result. Base and adapters are then made again."""
_CONTROL, _USER_DEFINED = 3, 4
"""Values of ``tokenizer.ggml.token_type``."""
_FLOAT32_BYTES = 4


def fetch_package_base(spec: PackageBase, report: Callable[[str], None]) -> Path:
    """The folder with the converted model of ``spec``. Its package is fetched and its file converted if necessary.

    Raises PipelineError if the package cannot be fetched or its hash differs, if the file cannot be converted, if a
    converted file was changed, or if the disk is too full.
    """
    wanted = PackageFiles(spec.package, spec.version, spec.wheel_sha256, {spec.file: spec.file_sha256})
    folder = _converted_folder(spec)
    convert_once(wanted, folder, lambda files: _convert(files / spec.file, spec, folder, report), report)
    read_manifest(folder, "base_model")
    return folder


def cached_package_base(spec: PackageBase) -> Path | None:
    """The folder of the converted model if it is in the cache, else None. Does not use the network."""
    folder = _converted_folder(spec)
    return folder if (folder / MANIFEST_NAME).exists() else None


def base_hash(spec: PackageBase) -> str:
    """A hash that identifies the converted model: 16 hex digits, from the file's hash and the conversion's version."""
    return digest(spec.file_sha256, CONVERSION_VERSION)


def base_origin(spec: PackageBase, folder: Path) -> dict[str, str]:
    """The origin of the base in ``folder``, for lineage: its package and hashes, and how it was quantised."""
    origin = {"package": spec.package, "version": spec.version, "wheel_sha256": spec.wheel_sha256}
    origin |= {"file": spec.file, "file_sha256": spec.file_sha256, "licence": spec.licence}
    origin |= {"quantised_from": spec.quantised_from} if spec.quantised_from else {}
    formats = read_manifest(folder, "base_model")["tensor_formats"]
    return origin | {"quantisation": "GGUF, " + ", ".join(f"{count} tensors {name}" for name, count in formats.items())}


def _converted_folder(spec: PackageBase) -> Path:
    # The wheel's hash is included, so a recipe with a wrong hash never finds the model.
    return models_folder() / f"{Path(spec.file).stem}-{digest(base_hash(spec), spec.wheel_sha256)}"


def _convert(gguf: Path, spec: PackageBase, folder: Path, report: Callable[[str], None]) -> None:
    """Writes the model, the tokenizer and the template of ``gguf`` to ``folder``, as ``save_pretrained`` writes them."""
    from gguf import GGUFReader

    quiet_libraries()
    report(f"Converting {gguf.name} to safetensors in float32")
    reader = GGUFReader(gguf)
    metadata = {name: field.contents() for name, field in reader.fields.items()}
    needed = _FLOAT32_BYTES * sum(int(tensor.n_elements) for tensor in reader.tensors)
    free = shutil.disk_usage(folder.parent).free
    if needed > free:
        raise PipelineError(
            f"The converted model of {gguf.name} takes {needed / 1e9:,.1f} GB in {folder.parent}, and "
            f"{free / 1e9:,.1f} GB are free.",
            "Free disk space, or set CS_MODELS to a folder on a larger disk.",
        )
    tokenizer = _tokenizer(metadata, gguf.name)
    model = _model(gguf)
    ids = {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": metadata.get("tokenizer.ggml.eos_token_id"),
        "pad_token_id": metadata.get("tokenizer.ggml.padding_token_id", metadata.get("tokenizer.ggml.eos_token_id")),
    }
    model.config.update(ids | {"_name_or_path": ""})
    model.generation_config = type(model.generation_config)(**ids)
    with atomic_folder(folder) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(str(temporary))
        formats = Counter(tensor.tensor_type.name for tensor in reader.tensors)
        write_manifest(
            temporary,
            {
                "conversion": CONVERSION_VERSION,
                "package": spec.model_dump(mode="json"),
                "tensor_formats": dict(sorted(formats.items())),
            },
        )


def _model(gguf: Path) -> Any:
    """The model in ``gguf`` with its weights in float32 and no quantisation in its config."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with redirect_stderr(io.StringIO()):  # hides a progress bar that cannot be turned off
            loaded = AutoModelForCausalLM.from_pretrained(
                gguf.parent, gguf_file=gguf.name, dtype=torch.float32, local_files_only=True
            )
    except (ValueError, KeyError, NotImplementedError) as error:
        raise PipelineError(
            f"transformers cannot read {gguf.name}: {str(error).splitlines()[0]}.", "Use another file or package."
        ) from error
    # transformers refuses to save a model that was loaded from quantised weights, even after they were dequantised.
    config = {key: value for key, value in loaded.config.to_dict().items() if key != "quantization_config"}
    with torch.device("meta"):
        model = type(loaded)(type(loaded.config)(**config | {"dtype": "float32"}))
    model.load_state_dict(loaded.state_dict(), assign=True)
    model.tie_weights()
    return model


def _tokenizer(metadata: dict[str, Any], file: str) -> "PreTrainedTokenizerFast":
    """The tokenizer in a GGUF file. transformers' own reader ignores ``tokenizer.ggml.pre`` and does not split numbers."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    by_bytes: Any = pre_tokenizers.ByteLevel(add_prefix_space=False)
    digits: Any = pre_tokenizers.Digits(individual_digits=True)
    supported = {"gpt-2": by_bytes, "smollm": pre_tokenizers.Sequence([digits, by_bytes])}
    kind, pre_tokenizer = metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre")
    if kind != "gpt2" or pre_tokenizer not in supported:
        raise PipelineError(
            f"{file} has a tokenizer of the kind {kind} with the pre-tokenizer {pre_tokenizer}, which is not supported.",
            f"Use a file with a tokenizer of the kind gpt2 and the pre-tokenizer {' or '.join(supported)}.",
        )
    tokens: list[str] = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = supported[pre_tokenizer]
    tokenizer.decoder = decoders.ByteLevel()
    for token, type_ in zip(tokens, metadata["tokenizer.ggml.token_type"], strict=True):
        if type_ in (_CONTROL, _USER_DEFINED):
            tokenizer.add_tokens([AddedToken(token, special=type_ == _CONTROL, normalized=False)])
    named = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    ids = {name: metadata.get(f"tokenizer.ggml.{key}_token_id") for name, key in named.items()}
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        model_max_length=metadata[f"{metadata['general.architecture']}.context_length"],
        **{name: tokens[i] for name, i in ids.items() if i is not None},
    )
    wrapped.chat_template = metadata.get("tokenizer.chat_template")
    return wrapped
