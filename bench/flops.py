"""Model FLOPs utilisation (MFU) of a training run.

MFU is the number of operations that the model needs for its training tokens, divided by the number that the hardware could
have done in that time (Chowdhery et al. 2022, PaLM, arXiv 2204.02311, appendix B). Padding and recomputation by gradient
checkpointing do not count. Only operations on weights are counted (``train/plan/estimate.py``); attention scores would add
about one percent at a few hundred tokens per row.
"""

from typing import Any

from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train.plan.estimate import estimate

PEAK = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""Dense bfloat16 operations per second with float32 accumulation. The keys are parts of CUDA's device names; the first match
counts.

The figures are from NVIDIA's data sheets (which show twice as much where they count structured sparsity), those of the two
GeForce cards from the white papers on the Ada and GA102 architectures.
"""


def peak_of(name: str) -> float | None:
    """Peak operations per second of the GPU ``name``; None if it is not in the table."""
    words = f"{name.replace('-', ' ')} "
    return next((peak for part, peak in PEAK.items() if f" {part} " in words), None)


def utilisation(
    recipe: FineTuneRecipe, shape: dict[str, Any], tokens_per_second: float, peak: float | None
) -> float | None:
    """MFU at ``tokens_per_second``, padding excluded; None if the peak is unknown."""
    if peak is None:
        return None
    trainer = recipe.trainer.model_copy(update={"gradient_checkpointing": False})
    needed = estimate(recipe.model_copy(update={"trainer": trainer}), shape, 2, "cuda").operations
    return needed * tokens_per_second / peak
