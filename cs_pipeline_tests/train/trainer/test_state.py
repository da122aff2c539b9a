"""What a checkpoint keeps of optimizers and schedules comes back as it was, without pickle."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cs_pipeline.train.trainer.checkpoints import read_state, write_state


def test_everything_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6, dtype=torch.float32)
    state = {
        "state": {
            0: {"step": torch.tensor(3.0), "exp_avg": shared, "map": shared},
            1: {"quantised": shared[2:4].byte()},
        },
        "param_groups": [{"lr": 0.1 + 0.2, "betas": (0.9, 0.999), "params": [0, 1], "foreach": None, "fused": False}],
        "half": torch.tensor([[1.5, math.inf], [math.nan, -0.0]], dtype=torch.bfloat16),
        "none": {},
        "tensor": {"dict": [], "list": ()},
        "name": "ünï\n",
        "inf": -math.inf,
    }
    write_state(tmp_path / "state", state)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["state.json", "state.safetensors"]
    again = read_state(tmp_path / "state")

    def same(one: Any, other: Any) -> None:
        assert type(one) is type(other)
        if isinstance(one, torch.Tensor):
            assert one.dtype == other.dtype
            assert torch.equal(
                one.view(torch.uint8) if one.dim() else one, other.view(torch.uint8) if one.dim() else other
            )
        elif isinstance(one, dict):
            assert list(one) == list(other)
            for key in one:
                same(one[key], other[key])
        elif isinstance(one, list | tuple):
            assert len(one) == len(other)
            for its, others in zip(one, other, strict=True):
                same(its, others)
        else:
            assert one == other

    same(state, again)


def test_what_cannot_be_kept_is_refused(tmp_path: Path) -> None:
    for thing in (np.zeros(2), object(), {1, 2}, b"bytes"):
        with pytest.raises(TypeError, match=type(thing).__name__):
            write_state(tmp_path / "state", {"thing": [thing]})


@pytest.mark.parametrize("kind", ["adamw_torch", "paged_adamw_8bit"])
def test_an_optimizer_goes_on_as_if_nothing_had_been(tmp_path: Path, kind: str) -> None:
    """The second one keeps its moments in 8 bits, with maps that all parameters share, and on a GPU it pages them."""
    from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit

    device = "cuda" if torch.cuda.is_available() else "cpu"
    eight_bit = PagedAdamW8bit if device == "cuda" else AdamW8bit

    def made() -> tuple[torch.nn.Module, torch.optim.Optimizer, Any]:
        torch.manual_seed(0)
        model = torch.nn.Linear(128, 64).to(device)  # bitsandbytes keeps smaller ones in 32 bits
        optimizer = (torch.optim.AdamW if kind == "adamw_torch" else eight_bit)(model.parameters(), lr=0.1)
        return model, optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))

    def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, scheduler: Any, number: int) -> None:
        torch.manual_seed(number)
        model(torch.randn(4, 128, device=device)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
        scheduler.step()

    whole = made()
    for number in range(3):
        step(*whole, number)
    write_state(tmp_path / "state", [whole[1].state_dict(), whole[2].state_dict()])
    other = made()
    other[0].load_state_dict(whole[0].state_dict())
    for part, state in zip(other[1:], read_state(tmp_path / "state"), strict=True):
        part.load_state_dict(state)
    for number in range(3, 6):
        step(*whole, number)
        step(*other, number)
    for one, another in zip(whole[0].parameters(), other[0].parameters(), strict=True):
        assert torch.equal(one, another)


def test_random_numbers_go_on_as_if_nothing_had_been(tmp_path: Path) -> None:
    from cs_pipeline.train.trainer.resumable import _random_state, _set_random_state

    def drawn() -> list[float]:
        return [random.random(), random.gauss(0, 1), np.random.rand(), np.random.normal(), torch.rand(1).item()]

    drawn()
    write_state(tmp_path / "state", _random_state())
    expected = drawn()
    drawn()
    _set_random_state(read_state(tmp_path / "state"))
    assert drawn() == expected
