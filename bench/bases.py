"""Bases of random weights in the shape of published models: how fast a model computes does not depend on what it knows."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.train.plan.estimate import SHAPES_FILE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def published_shape(repo: str) -> dict[str, Any]:
    """What the config.json of ``repo`` says of its shape."""
    shape: dict[str, Any] = read_yaml(SHAPES_FILE)[repo]["config"]
    return shape


def random_base(
    folder: Path, shape: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", dtype: "torch.dtype | None" = None
) -> Path:
    """``folder`` with a causal model of ``shape`` and ``tokenizer``, whose vocabulary may be smaller than the shape's.

    The weights are of ``dtype``, None for what this machine computes in.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cs_pipeline.llm.model import compute_dtype

    torch.manual_seed(0)
    ids: dict[str, Any] = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(**shape, **ids, bos_token_id=None), dtype=dtype or compute_dtype()
        )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
