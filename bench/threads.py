"""What it costs a training that its waiting threads sleep (OMP_WAIT_POLICY=PASSIVE) instead of spinning, alone on a machine.

    python -m bench.threads [--steps 60] [--rounds 3] [--write]

The package sets PASSIVE because two spinning processes on one machine slow one another many times over. Each arm is a
process of its own, in turn, which trains the embedded base's shape from the same weights on the same tokens with all cores;
both must end at the same loss. On a machine where others work the figures say little: look at the load.
"""

import json
import os
import subprocess
import sys
import time
from typing import Any

from rich.table import Table

from bench.side_by_side import arguments, in_turn, machine, ratio, tell
from cs_pipeline.recipe import EmbeddedBase

POLICY = "OMP_WAIT_POLICY"
CHILD = """
import torch  # first: OpenMP reads its settings once, and the package sets them
from bench.threads import train
print(train({steps}))
"""


def train(steps: int) -> str:
    """Seconds of ``steps`` steps after some to warm up, and the last loss, as JSON."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from cs_pipeline.train.estimate import shape_of

    base = EmbeddedBase(source="embedded")
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(**shape_of(base) or {})).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=base.learning_rate)
    for step in range(-5, steps):
        if step == 0:
            started = time.perf_counter()
        ids = torch.randint(base.vocabulary, (base.blocks, base.block_tokens))
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return json.dumps(
        {"seconds": time.perf_counter() - started, "loss": loss.item(), "threads": torch.get_num_threads()}
    )


def measure(steps: int, rounds: int) -> dict[str, Any]:
    """Both arms; raises AssertionError when they end at different losses."""

    def run(**settings: str) -> dict[str, Any]:
        environment = {name: value for name, value in os.environ.items() if name != POLICY} | settings
        command = [sys.executable, "-c", CHILD.format(steps=steps)]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    arms = in_turn({"sleeping": lambda: run(**{POLICY: "PASSIVE"}), "spinning": run}, rounds, warm=0)
    for arm in arms.values():  # without the start of the process
        arm.seconds[:] = [run["seconds"] for run in arm.computed]
    losses = {run["loss"] for arm in arms.values() for run in arm.computed}
    assert len(losses) == 1, f"the arms end at different losses: {losses}"
    return {
        "steps": steps,
        "torch_threads": arms["sleeping"].computed[-1]["threads"],
        "loss": losses.pop(),
        "arms": {name: {"seconds": arm.seconds, "median": arm.median} for name, arm in arms.items()},
        "sleeping_to_spinning": ratio(arms["sleeping"], arms["spinning"])["clock"],
    }


def main() -> None:
    """Measures and prints; with --write the result is kept."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--steps", type=int, default=60)
    given = parser.parse_args()
    about = machine("torch", "transformers")
    result = about | measure(given.steps, given.rounds)
    table = Table("threads that wait", "median s", title=f"{given.steps} steps with {result['torch_threads']} threads")
    for name, arm in result["arms"].items():
        table.add_row(name, f"{arm['median']:.2f}")
    table.add_row("ratio", f"{result['sleeping_to_spinning']:.2f}")
    tell("threads", result, table, given.write)


if __name__ == "__main__":
    main()
