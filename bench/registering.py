"""Logging an adapter to MLflow beside logging the whole model with the adapter merged in.

    python -m bench.registering [--model HuggingFaceTB/SmolLM2-135M-Instruct] [--rounds 3] [--write]

The base has random weights in the shape of the model, in bfloat16 as such models are published; the adapter is LoRA, r=16 on
all linear layers, as the recipes have it. Both are logged by the function that
registers versions, into an SQLite store with its artifacts on this disk. What was logged is loaded again, and both must give
the same logits.
"""

import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.bases import published_shape, random_base
from bench.rows import small_tokenizer
from bench.side_by_side import arguments, in_turn, machine, ratio, tell
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.recipe import Recipe
from cs_pipeline.tracking import get_or_create_run, open_store
from cs_pipeline.train.adapter import Adapter

CLOSE = 0.05
"""Largest difference of a logit, as a share of the largest logit, that merging in bfloat16's 8 bits may make."""


def make(folder: Path, shape: dict[str, Any]) -> None:
    """``folder`` with ``base``, ``adapter`` and ``merged``."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    random_base(folder / "base", shape, small_tokenizer(sample_rows(300), 400), torch.bfloat16)
    model: Any = AutoModelForCausalLM.from_pretrained(folder / "base", local_files_only=True)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:  # zero in a new adapter, which would then be no adapter at all
            torch.nn.init.normal_(parameter, std=0.02)
    model.save_pretrained(str(folder / "adapter"))
    model.merge_and_unload().save_pretrained(folder / "merged")


def measure(folder: Path, rounds: int, shape: dict[str, Any]) -> dict[str, Any]:
    """Both arms in ``folder``; raises AssertionError when what they logged gives different logits."""
    from cs_pipeline.llm.model import hush
    from cs_pipeline.register.version import _log_model

    hush()
    make(folder, shape)
    lake = DataLake(folder / "lake")
    client = open_store(lake)
    recipe = _recipe(folder / "base")

    def log(what: str) -> Path:
        run = get_or_create_run(client, lake, what, "bench")
        _log_model(run, recipe, lake, Adapter(folder / what, {}, {}))
        logged = lake.path("register", "artifacts").rglob("MLmodel")
        return max(logged, key=lambda file: file.stat().st_mtime).parent

    arms = in_turn({what: partial(log, what) for what in ("adapter", "merged")}, rounds)
    size = {
        what: sum(f.stat().st_size for f in arm.computed[-1].rglob("*") if f.is_file()) for what, arm in arms.items()
    }
    difference = _difference(folder / "base", *(arms[what].computed[-1] / "artifacts" / "adapter" for what in arms))
    assert difference < CLOSE, f"the adapter on its base and the merged model differ by {difference:.1%}"
    return {
        "arms": {what: arm.facts() | {"bytes": size[what]} for what, arm in arms.items()},
        "logits_differ": difference,
        "times_as_long": ratio(arms["merged"], arms["adapter"]),
        "times_the_bytes": size["merged"] / size["adapter"],
    }


def _recipe(base: Path) -> Recipe:
    return Recipe.model_validate(
        {
            "name": "bench",
            "description": "For the benchmark.",
            "base": {"source": "path", "path": str(base)},
            "quantization": "none",
            "lora": {"r": 16, "lora_alpha": 32},
            "trainer": {"max_steps": 1, "learning_rate": 1e-4, "per_device_train_batch_size": 1, "max_length": 512},
            "generation": {"max_new_tokens": 8},
        }
    )


def _difference(base: Path, adapter: Path, merged: Path) -> float:
    """The largest difference of the two models' logits on random tokens, as a share of the largest logit."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    whole = AutoModelForCausalLM.from_pretrained(merged, local_files_only=True).eval()
    ids = torch.randint(whole.config.vocab_size, (2, 16), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = whole(ids).logits.float()
        del whole
        tuned = PeftModel.from_pretrained(
            AutoModelForCausalLM.from_pretrained(base, local_files_only=True), str(adapter)
        )
        found = tuned.eval()(ids).logits.float()
    return float((found - expected).abs().max() / expected.abs().max())


def main() -> None:
    """Measures and prints; with --write the result is kept."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--model", default="HuggingFaceTB/SmolLM2-135M-Instruct")
    given = parser.parse_args()
    about = machine("mlflow", "peft", "torch", "transformers") | {"model": given.model}
    with tempfile.TemporaryDirectory(prefix="bench-registering-") as folder:
        result = about | measure(Path(folder), given.rounds, published_shape(given.model))
    table = Table("logged", "MB", "median s", title="into MLflow")
    for what, arm in result["arms"].items():
        table.add_row(what, f"{arm['bytes'] / 1e6:.1f}", f"{arm['median']:.2f}")
    times = result["times_as_long"]
    table.add_row("merged ÷ adapter", f"{result['times_the_bytes']:.1f}", f"{times['clock']:.1f}")
    tell("registering", result, table, given.write)


if __name__ == "__main__":
    main()
