"""Training on a CUDA GPU: plain TRL with the published Phi-3-mini settings, and ours, one change at a time.

    python -m bench.gpu [--model microsoft/Phi-3-mini-4k-instruct] [--rows 320] [--rounds 3] [--write]
    python -m bench.gpu --toy

The model has the published shape and random weights, and the rows are generated: nothing is downloaded. Each training arm
changes one setting of the previous arm; all arms train on the same tokens and start at the same loss. The benchmark also
compares TRL's fused loss with full logits, in memory and time, and generation in batches with generation one by one.
``--toy`` runs everything on a CPU, at a small size: a test of the benchmark, not a measurement.
"""

import gc
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench import answers
from bench.bases import published_shape, random_base
from bench.flops import peak_of, utilisation
from bench.rows import read_rows, small_tokenizer, write_splits
from bench.side_by_side import arguments, in_turn, machine, ratio, report
from cs_pipeline.core.lake import DataLake
from cs_pipeline.ingest.sample import sample_rows
from cs_pipeline.llm.model import compute_dtype, load_base, load_chat_format, quiet_libraries
from cs_pipeline.recipe import FineTuneRecipe
from cs_pipeline.train.finetune import fine_tune
from cs_pipeline.train.plan.estimate import estimate
from cs_pipeline.train.rows import training_rows
from cs_pipeline.train.trainer.peft_model import build_peft_model

PLAIN = "plain TRL, published settings"
STEPS: dict[str, dict[str, Any]] = {
    "ours, published settings": {},
    "… without gradient checkpointing": {"gradient_checkpointing": False},
    "… micro-batches of four rows instead of one": {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 1},
    "… in bfloat16 instead of NF4": {"quantization": "none"},
    "… packed": {"packing": True},
    "… 32 rows per step instead of four": {"per_device_train_batch_size": 32},
}
"""The settings that each training arm changes, compared with the previous one."""

TOY_SHAPE = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "vocab_size": 600,
    "tie_word_embeddings": False,
}
MAX_LOSS_DIFFERENCE = 0.02
"""Maximum relative difference of the arms' losses before training: NF4 rounds the weights."""


class Bench:
    """A lake with sample rows, a base with random weights, and the arms. All files are in ``folder``."""

    def __init__(self, folder: Path, shape: dict[str, Any], rows: int) -> None:
        self.folder, self.shape = folder, shape
        self.lake = DataLake(folder / "lake")
        write_splits(read_rows(None, rows), self.lake)
        tokenizer = small_tokenizer(sample_rows(1000), min(2048, shape["vocab_size"]))
        self.base = random_base(folder / "base", shape, tokenizer)
        self.runs = 0

    def recipe(self, **changes: Any) -> FineTuneRecipe:
        """The published settings with ``changes``. Without a GPU, plain AdamW replaces 8-bit AdamW."""
        trainer = {
            "num_train_epochs": 1,
            "learning_rate": 3e-4,
            "per_device_train_batch_size": 1,
            "gradient_accumulation_steps": 4,
            "max_length": 512,
            "optim": "paged_adamw_8bit" if _on_gpu() else "adamw_torch",
            "gradient_checkpointing": True,
            "packing": False,
        }
        return FineTuneRecipe.model_validate(
            {
                "name": "bench",
                "description": "For the benchmark.",
                "base": {"source": "path", "path": str(self.base)},
                "quantization": changes.pop("quantization", "nf4"),
                "lora": {"r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "target_modules": "attention"},
                "trainer": trainer | changes,
                "generation": {"max_new_tokens": 64 if _on_gpu() else 8},
            }
        )

    def recipes(self) -> dict[str, FineTuneRecipe]:
        """The recipe of each arm. Plain TRL has the same recipe as ours with the published settings."""
        changes: dict[str, Any] = {}
        recipes = {PLAIN: self.recipe()}
        for name, change in STEPS.items():
            changes |= change
            recipes[name] = self.recipe(**changes)
        return recipes

    def ours(self, recipe: FineTuneRecipe) -> dict[str, Any]:
        """The figures of a training run with ``recipe``."""
        self.runs += 1
        folder, work = (self.folder / f"{name}{self.runs}" for name in ("adapter", "work"))
        folder.mkdir()
        figures, _ = fine_tune(recipe, self.lake, self.base, None, folder, work, lambda _: None, lambda *_: None)
        return figures

    def plain(self, recipe: FineTuneRecipe) -> dict[str, Any]:
        """The same figures from TRL's own trainer with the published settings and the same tokens."""
        from datasets import Dataset
        from peft import LoraConfig, prepare_model_for_kbit_training
        from transformers import PrinterCallback
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        from cs_pipeline.llm.model import base_family

        t, lora, chat = recipe.trainer, recipe.lora, load_chat_format(recipe, self.base, None)
        assert lora is not None
        splits = {}
        for split in ("train", "validation"):
            examples = training_rows(recipe, self.lake, chat, split).examples
            splits[split] = Dataset.from_list([{"input_ids": e.input_ids, "labels": e.labels} for e in examples])
        model = load_base(self.base, recipe.quantization)
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)  # the trainer enables it
        trainer = SFTTrainer(
            model=model,
            processing_class=chat.tokenizer,
            train_dataset=splits["train"],
            eval_dataset=splits["validation"],
            peft_config=LoraConfig(
                r=lora.r,
                lora_alpha=lora.lora_alpha,
                lora_dropout=lora.lora_dropout,
                target_modules=list(base_family(self.base).attention),
                task_type="CAUSAL_LM",
            ),
            args=SFTConfig(
                output_dir=str(self.folder / "plain"),
                num_train_epochs=1,
                learning_rate=t.learning_rate,
                optim=t.optim,
                per_device_train_batch_size=t.per_device_train_batch_size,
                gradient_accumulation_steps=t.gradient_accumulation_steps,
                activation_checkpointing=t.gradient_checkpointing,
                max_length=t.max_length,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                bf16=_on_gpu(),
                use_cpu=not _on_gpu(),
                dataloader_pin_memory=_on_gpu(),
            ),
        )
        trainer.remove_callback(PrinterCallback)
        before = trainer.evaluate()["eval_loss"]
        seconds = trainer.train().metrics["train_runtime"]
        tokens = sum(map(len, splits["train"]["input_ids"]))
        return {
            "validation_loss_before": before,
            "seconds": seconds,
            "tokens_per_second": tokens / seconds,
            "real_token_share": 1.0,
            "packing": False,
            "peak_memory_gib": _peak_gib(),
        }

    def training(self, rounds: int) -> dict[str, Any]:
        """Runs all arms in turn. Raises AssertionError if they do not train on the same tokens or start at the same loss."""
        recipes = self.recipes()

        def arm(name: str) -> dict[str, Any]:
            _reset_peak()
            return (self.plain if name == PLAIN else self.ours)(recipes[name])

        ran = in_turn({name: partial(arm, name) for name in recipes}, rounds, warmup_rounds=0)
        figures = {name: arm.computed for name, arm in ran.items()}
        tokens = {round(run["tokens_per_second"] * run["seconds"]) for runs in figures.values() for run in runs}
        assert max(tokens) - min(tokens) <= 1, f"the arms trained on different numbers of tokens: {tokens}"
        losses = [run["validation_loss_before"] for runs in figures.values() for run in runs]
        assert max(losses) / min(losses) - 1 < MAX_LOSS_DIFFERENCE, f"the arms start at different losses: {losses}"
        peak = peak_of(_device())
        arms: dict[str, Any] = {}
        for name, runs in figures.items():
            rate = statistics.median(run["tokens_per_second"] for run in runs)
            arms[name] = {
                "tokens_per_second": rate,
                "of_all_rounds": [run["tokens_per_second"] for run in runs],
                "utilisation": utilisation(recipes[name], self.shape, rate, peak),
                "peak_memory_gib": max(run["peak_memory_gib"] for run in runs),
                "estimated_memory_gib": estimate(
                    recipes[name], self.shape, compute_dtype().itemsize, "cuda"
                ).memory.total
                / 2**30,
                "real_token_share": runs[-1]["real_token_share"],
                "packed": runs[-1]["packing"],
            }
        return {"tokens": tokens.pop(), "peak_operations_per_second": peak, "arms": arms}

    def loss(self, rows: int, length: int, rounds: int) -> dict[str, Any]:
        """Memory and time of a forward and backward pass with TRL's fused loss and with full logits."""
        import torch
        from trl.trainer.utils import add_fused_lm_head

        model = build_peft_model(self.recipe(quantization="none"), self.base, None)
        add_fused_lm_head(model.get_base_model())
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(self.shape["vocab_size"], (rows, length), generator=random).to(model.device)

        def full() -> Any:
            logits = model(input_ids=ids).logits[:, :-1].float()
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

        def fused() -> Any:
            return model(input_ids=ids, labels=ids, fused_lm_head=True).loss

        def step(loss_of: Callable[[], Any]) -> dict[str, float]:
            _reset_peak()
            with torch.autocast(ids.device.type, torch.bfloat16, enabled=_on_gpu()):
                loss = loss_of()
            loss.backward()
            model.zero_grad()
            return {"loss": loss.item(), "peak_memory_gib": _peak_gib()}

        arms = in_turn({"full logits": lambda: step(full), "fused": lambda: step(fused)}, rounds)
        losses = {name: arm.computed[-1]["loss"] for name, arm in arms.items()}
        assert abs(losses["fused"] / losses["full logits"] - 1) < 1e-3, f"the losses differ: {losses}"
        return {
            "rows": rows,
            "length": length,
            "arms": {name: arm.facts() | arm.computed[-1] for name, arm in arms.items()},
            "full_to_fused": ratio(arms["full logits"], arms["fused"]),
        }


def measure(folder: Path, shape: dict[str, Any], rows: int, rounds: int) -> dict[str, Any]:
    """Runs all parts. Raises AssertionError if the results of two arms differ too much."""
    import datasets

    quiet_libraries()
    datasets.disable_progress_bars()
    bench = Bench(folder, shape, rows)
    toy = not _on_gpu()
    fastest = bench.recipes()[list(STEPS)[-1]]
    return {
        "device": _device(),
        "optimizer": fastest.trainer.optim,
        "training": bench.training(rounds),
        "loss": bench.loss(*((2, 32) if toy else (8, 512)), rounds),
        "answers": answers.measure(fastest, bench.base, None, bench.lake, 8 if toy else 64, rounds),
    }


def _on_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


def _device() -> str:
    import torch

    return torch.cuda.get_device_name() if _on_gpu() else "CPU"


def _reset_peak() -> None:
    import torch

    if _on_gpu():
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_gib() -> float:
    """Peak GPU memory; 0 without a GPU."""
    import torch

    return torch.cuda.max_memory_allocated() / 2**30 if _on_gpu() else 0.0


def tables(result: dict[str, Any]) -> list[Table]:
    """The figures as tables."""
    training = Table(
        "training", "tokens/s", "times the previous one", "utilisation", "peak GiB", title=result["device"]
    )
    previous = None
    for name, arm in result["training"]["arms"].items():
        rate, share = arm["tokens_per_second"], arm["utilisation"]
        if "packed" in name and not arm["packed"]:
            name += " (padded, because FlashAttention is not available)"
        times = "" if previous is None else f"{rate / previous:.2f}"
        used = "unknown" if share is None else f"{share:.1%}"
        training.add_row(name, f"{rate:,.0f}", times, used, f"{arm['peak_memory_gib']:.1f}")
        previous = rate
    loss = Table(
        "loss", "median s", "peak GiB", title=f"{result['loss']['rows']} rows of {result['loss']['length']} tokens"
    )
    for name, arm in result["loss"]["arms"].items():
        loss.add_row(name, f"{arm['median']:.3f}", f"{arm['peak_memory_gib']:.2f}")
    generation = Table(
        "answers", "median s", "tokens/s", title=f"{result['answers']['texts_that_differ']} texts differ"
    )
    for name, arm in result["answers"]["arms"].items():
        generation.add_row(name, f"{arm['median']:.2f}", f"{arm['tokens_per_second']:,.0f}")
    return [training, loss, generation]


def main() -> None:
    """Measures and prints; with --write, saves the result as results/gpu-DATE.json."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--model", default="microsoft/Phi-3-mini-4k-instruct")
    parser.add_argument("--rows", type=int, default=320)
    parser.add_argument("--toy", action="store_true", help="a small size that also runs on a CPU")
    given = parser.parse_args()
    if not (given.toy or _on_gpu()):
        parser.error("this machine has no CUDA GPU; --toy tests the benchmark on a CPU")
    if given.toy and given.write:
        parser.error("--toy measures no speed, so its result is not saved; leave out --write")
    packages = ("torch", "transformers", "trl", "peft", "bitsandbytes", "accelerate")
    conditions = machine(*packages) | {"model": "toy" if given.toy else given.model}
    shape, rows = (TOY_SHAPE, 40) if given.toy else (published_shape(given.model), given.rows)
    with tempfile.TemporaryDirectory(prefix="bench-gpu-") as folder:
        result = conditions | measure(Path(folder), shape, rows, 1 if given.toy else given.rounds)
    *first, last = tables(result)
    for table in first:
        Console().print(table)
    report(f"gpu-{result['date'][:10]}", result, last, given.write)


if __name__ == "__main__":
    main()
