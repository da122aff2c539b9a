"""What it costs a training that its waiting threads spin for long, for a moment or never: alone, and two at once.

    python -m bench.threads [--steps 40] [--rounds 3] [--write]

The package lets them spin for a moment and then sleep. Each arm is one process, or two at the same time, which train the
embedded base's shape from the same weights on the same tokens, each with all cores; all must end at the same loss. On a
machine where others work the figures say little: look at the load.
"""

import json
import os
import subprocess
import sys
import time
from functools import partial
from typing import Any

from rich.table import Table

import cs_pipeline
from bench.side_by_side import arguments, in_turn, machine, ratio, tell
from cs_pipeline.recipe import EmbeddedBase

SETTINGS = "OMP_WAIT_POLICY", "GOMP_SPINCOUNT"
WAYS: dict[str, dict[str, str]] = {
    "for a moment": cs_pipeline.OPENMP_WAITING,
    "never": {"OMP_WAIT_POLICY": "PASSIVE"},
    "for long": {},
}
"""How waiting threads spin, with its settings; the last is what PyTorch does when nothing is set."""
CHILD = """
import torch  # first: OpenMP reads its settings once, and the package sets them
from bench.threads import train
print(train({steps}))
"""


def train(steps: int) -> str:
    """Seconds of ``steps`` steps after some to warm up, and the last loss, as JSON."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cs_pipeline.train.plan.estimate import config_of

    base = EmbeddedBase(source="embedded")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config_of(base) or {})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.learning_rate)
    for step in range(-5, steps):
        if step == 0:
            started = time.perf_counter()
        ids = torch.randint(base.vocab_size, (base.per_device_train_batch_size, base.block_size))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return json.dumps(
        {"seconds": time.perf_counter() - started, "loss": loss.item(), "threads": torch.get_num_threads()}
    )


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """All arms; raises AssertionError when they end at different losses."""
    kept = {name: value for name, value in os.environ.items() if name not in SETTINGS}
    command = [sys.executable, "-c", CHILD.format(steps=steps)]

    def run(settings: dict[str, str], processes: int) -> list[dict[str, Any]]:
        begin = partial(
            subprocess.Popen[str],
            command,
            env=kept | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun = [begin() for _ in range(processes)]
        said = [process.communicate() for process in begun]
        assert not any(process.returncode for process in begun), said
        return [json.loads(out) for out, _ in said]

    arms = in_turn(
        {f"{way}, {n}": partial(run, settings, n) for way, settings in WAYS.items() for n in (1, 2)}, rounds, warm=0
    )
    for arm in arms.values():  # without the start of the processes
        arm.seconds[:] = [max(run["seconds"] for run in runs) for runs in arm.computed]
    every = [run for arm in arms.values() for runs in arm.computed for run in runs]
    losses = {run["loss"] for run in every}
    assert len(losses) == 1, f"the arms end at different losses: {losses}"
    return {
        "steps": steps,
        "torch_threads": every[0]["threads"],
        "loss": losses.pop(),
        "ways": {
            way: {
                number: {
                    "seconds": arms[f"{way}, {n}"].seconds,
                    "median": arms[f"{way}, {n}"].median,
                    "to_a_moment": ratio(arms[f"{way}, {n}"], arms[f"for a moment, {n}"])["clock"],
                }
                for number, n in (("one", 1), ("two", 2))
            }
            for way in WAYS
        },
    }


def main() -> None:
    """Measures and prints; with --write the result is kept."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    about = machine("torch", "transformers")
    result = about | measure(given.steps, given.rounds)
    title = f"{given.steps} steps with {result['torch_threads']} threads a process: seconds, and times a moment's"
    table = Table("threads that wait spin", "one process", "two at once", title=title)
    for way, counts in result["ways"].items():
        table.add_row(way, *(f"{of['median']:.2f} ({of['to_a_moment']:.2f})" for of in counts.values()))
    tell("threads", result, table, given.write)


if __name__ == "__main__":
    main()
