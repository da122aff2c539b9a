"""Base models in the shape of published ones, with random weights: speed does not depend on the values of the weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cs_pipeline.core.yaml_file import read_yaml
from cs_pipeline.train.plan.estimate import SHAPES_FILE

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerBase


def published_shape(repo: str) -> dict[str, Any]:
    """The config.json of ``repo``, as far as it describes the model's shape."""
    shape: dict[str, Any] = read_yaml(SHAPES_FILE)[repo]["config"]
    return shape


def random_base(
    folder: Path, shape: dict[str, Any], tokenizer: "PreTrainedTokenizerBase", dtype: "torch.dtype | None" = None
) -> Path:
    """Saves a causal model of ``shape`` with ``tokenizer`` in ``folder``.

    The model may have more embeddings than the tokenizer has tokens. ``dtype`` is the type of the weights; None: the type
    that this machine computes in.
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
