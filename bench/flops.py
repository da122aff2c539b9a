"""Model FLOP utilisation: what share of a GPU's arithmetic a training turns into text learnt.

After Chowdhery et al. 2022 (PaLM, arXiv 2204.02311, appendix B): the operations that the model needs for the tokens it was
trained on, over those that the hardware could have done in that time. Padding and what gradient checkpointing computes again
count for nothing. Of the operations those of the weights are counted (``train/plan/estimate.py``), and not attention's scores,
which at a few hundred tokens a row are about a hundredth.
"""

from typing import Any

from cs_pipeline.recipe import Recipe
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
"""Dense bfloat16 operations a second, accumulated in float32, by a part of the name that CUDA gives; the first match counts.

From NVIDIA's data sheets of these products (which show twice as much where they count structured sparsity), the two
GeForce cards from the Ada and the GA102 architecture white papers.
"""


def peak_of(name: str) -> float | None:
    """Operations a second of the GPU ``name``, None where it is not in the table."""
    words = f"{name.replace('-', ' ')} "
    return next((peak for part, peak in PEAK.items() if f" {part} " in words), None)


def utilisation(recipe: Recipe, shape: dict[str, Any], tokens_per_second: float, peak: float | None) -> float | None:
    """The share of ``peak`` that ``tokens_per_second`` of real tokens are; None where the peak is not known."""
    if peak is None:
        return None
    plain = recipe.trainer.model_copy(update={"gradient_checkpointing": False})
    needed = estimate(recipe.model_copy(update={"trainer": plain}), shape, 2).operations
    return needed * tokens_per_second / peak
