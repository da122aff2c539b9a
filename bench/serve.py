"""The server with the champion: micro-batches against one answer at a time, the overhead of HTTP, and memory growth.

    python -m bench.serve [--questions 96] [--clients 32] [--requests 2000] [--rounds 3] [--write]

It serves the champion of the lake (CS_LAKE, by default the project's), so run ``make demo`` first. The server is a
separate process with two apps: one as shipped, and one whose batches hold a single row. Both get the same questions from the
same number of concurrent clients and must give the same answers in float32. To measure the overhead of HTTP, a single client
asks one question after the other: the bare model, the engine, the desk, and POST /chat.
"""

import asyncio
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import psutil
import requests
from rich.table import Table

from bench.side_by_side import arguments, in_turn, machine, ratio, report
from cs_pipeline.company import load_company
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel, compute_dtype
from cs_pipeline.recipe import read_recipe
from cs_pipeline.serve.desk.desk import Desk, DeskRequest
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.serve.models.pool import memory_limit
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.settings import ServeSettings
from cs_pipeline.text.classifier import TextClassifier
from cs_pipeline.tracking import champion_version

BATCHED, SINGLE = "micro-batched", "one at a time"
LAYERS = ("model", "engine", "desk", "HTTP")
SAMPLE_EVERY = 100
"""Requests between two readings of the server's memory."""
STEADY = 20.0
"""Maximum growth in MiB per thousand requests, in the second half of the run."""


PATIENCE = 600
"""Time limit of an answer in seconds, long enough that none is cut off on a busy machine."""


@dataclass(frozen=True)
class Told:
    """A response and the seconds it took."""

    text: str
    author: str
    seconds: float


class Server:
    """The process with both apps; ``urls`` by arm name."""

    def __init__(self, lake: DataLake) -> None:
        ports = [_free_port(), _free_port()]
        self.urls = {arm: f"http://127.0.0.1:{port}" for arm, port in zip((BATCHED, SINGLE), ports, strict=True)}
        command = [sys.executable, "-c", f"from bench.serve import serve_both; serve_both({ports[0]}, {ports[1]})"]
        self._process = subprocess.Popen(command, env=os.environ | {"CS_LAKE": str(lake.root)}, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the server did not start; its log is above")

    def ask(self, arm: str, question: str, model: str = "champion") -> Told:
        """Asks one question over HTTP, on a new connection."""
        started = time.perf_counter()
        body = {"user_input": question, "model_name": model}
        response = requests.post(f"{self.urls[arm]}/chat", json=body, timeout=PATIENCE)
        took = time.perf_counter() - started
        response.raise_for_status()
        answer = response.json()
        return Told(answer["response"], answer["author"], took)

    def load(self, arm: str, questions: Sequence[str], clients: int) -> list[Told]:
        """Asks all questions with ``clients`` concurrent clients; the responses are in the order of the questions."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(lambda question: self.ask(arm, question), questions))

    def memory(self) -> float:
        """Memory of the process in MiB."""
        return psutil.Process(self._process.pid).memory_info().rss / 2**20

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def serve_both(*ports: int) -> None:
    """The server process: the app as shipped, and one whose batches hold one row."""
    from cs_pipeline.serve.server import uvicorn_server

    async def run() -> None:
        servers = [uvicorn_server(ServeSettings(port=port, seconds=PATIENCE), DataLake.default()) for port in ports]
        serving = [asyncio.create_task(server.serve()) for server in servers]
        apps: list[Any] = [server.config.app for server in servers]
        held = [await _champion_of(app.state.service) for app in apps]
        held[1].variant = replace(held[1].variant, max_rows=1)
        print("ready", flush=True)  # noqa: T201
        await asyncio.gather(*serving)

    asyncio.run(run())


async def _champion_of(service: ModelService) -> Any:
    while service.registry.champion is None:
        await asyncio.sleep(0.1)
        if service.registry.failure:
            raise RuntimeError(service.registry.problem())
    return service.pool._loaded[str(service.registry.champion)]


def batches(server: Server, questions: Sequence[str], clients: int, rounds: int) -> dict[str, Any]:
    """Requests per second and p95 of both arms. Raises AssertionError if their answers differ."""
    arms: dict[str, Callable[[], list[Told]]] = {
        arm: lambda arm=arm: server.load(arm, questions, clients)  # type: ignore[misc]
        for arm in (BATCHED, SINGLE)
    }
    ran = in_turn(arms, rounds)
    # The desk's own replies may contain the number of a handover, which is always different.
    texts = {
        arm: [told.text if told.author == "model" else "" for told in measured.computed[-1]]
        for arm, measured in ran.items()
    }
    differ = sum(a != b for a, b in zip(*texts.values(), strict=True))
    assert not differ or compute_dtype().itemsize < 4, f"{differ} of {len(questions)} answers depend on the batch"
    facts = {}
    for arm, measured in ran.items():
        waited = [told.seconds for computed in measured.computed for told in computed]
        facts[arm] = measured.facts() | {
            "requests_per_second": len(questions) / measured.median,
            "p50": statistics.median(waited),
            "p95": float(np.quantile(waited, 0.95)),
        }
    return {
        "clients": clients,
        "questions": len(questions),
        "by_the_model": sum(told.author == "model" for told in ran[BATCHED].computed[-1]) / len(questions),
        "texts_that_differ": differ,
        "arms": facts,
        "times_as_fast": ratio(ran[SINGLE], ran[BATCHED])["clock"],
    }


def layers(server: Server, questions: Sequence[str], lake: DataLake, rounds: int) -> dict[str, Any]:
    """Seconds of the questions, one after the other, with one more layer each time."""
    version = champion_version(lake)
    assert version is not None
    adapter = version.folder / "adapter"
    recipe = read_recipe(adapter / "recipe.yaml")
    model = SupportModel(recipe, base_of_version(recipe, version.folder), adapter)
    routes = recipe.prompt.route == "intent"
    known = TextClassifier.load(adapter / "intent_classifier").predict(questions)[0] if routes else None
    service = ModelService(lake, memory_limit(None), 10, PATIENCE, 10, id)
    asyncio.run(_champion_of(service))
    desk = Desk(service, load_company(lake), lake)
    # The desk answers some questions without the model, which would make it look faster than the layers below.
    asked = [q for q in questions if desk.reply(DeskRequest(q)).author == "model"]
    intents: dict[str, str | None] = dict(zip(questions, known, strict=True)) if known else dict.fromkeys(questions)
    arms: dict[str, Callable[[], object]] = {
        "model": lambda: [model.answer([q], [intents[q]], [()]) for q in asked],
        "engine": lambda: [service.start("champion", q, (), Sampling()).text() for q in asked],
        "desk": lambda: [desk.reply(DeskRequest(q)) for q in asked],
        "HTTP": lambda: [server.ask(BATCHED, q) for q in asked],
    }
    ran = in_turn(arms, rounds)
    desk.close()
    service.close()
    each = {layer: 1000 * ran[layer].median / len(asked) for layer in LAYERS}
    return {"questions": len(asked), "milliseconds": each, "http_over_desk": each["HTTP"] - each["desk"]}


def steadiness(server: Server, questions: Sequence[str], clients: int, count: int) -> dict[str, Any]:
    """The server's memory over ``count`` requests to champion and base. Raises AssertionError if it keeps growing."""
    held = [server.memory()]
    models = ("champion", "champion:base")
    with ThreadPoolExecutor(clients) as pool:
        for start in range(0, count, SAMPLE_EVERY):
            numbers = range(start, min(start + SAMPLE_EVERY, count))
            list(pool.map(lambda i: server.ask(BATCHED, questions[i % len(questions)], models[i % 2]), numbers))
            held.append(server.memory())
    later = held[len(held) // 2 :]
    growth = float(np.polyfit(range(len(later)), later, 1)[0]) * 1000 / SAMPLE_EVERY if len(later) > 1 else 0.0
    assert growth < STEADY, f"a thousand requests add {growth:.1f} MiB: {held}"
    return {"requests": count, "mebibytes": [round(size, 1) for size in held], "growth_per_thousand": growth}


def measure(lake: DataLake, questions: int, clients: int, count: int, rounds: int) -> dict[str, Any]:
    """Runs all three parts on the first test questions of ``lake``, in random order."""
    rows = lake.read("prepare", "test_split", ["instruction"])["instruction"].to_pylist()
    asked = [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:questions]]
    server = Server(lake)
    try:
        return {
            "batches": batches(server, asked, clients, rounds),
            "layers": layers(server, asked[: max(8, questions // 4)], lake, rounds),
            "memory": steadiness(server, asked, clients, count),
        }
    finally:
        server.close()


def table_of(result: dict[str, Any]) -> Table:
    """The figures as tables."""
    load, price, memory = result["batches"], result["layers"], result["memory"]
    title = f"{load['questions']} questions from {load['clients']} clients at once"
    table = Table("serving", "requests/s", "p50 s", "p95 s", title=title)
    for arm, facts in load["arms"].items():
        table.add_row(arm, f"{facts['requests_per_second']:.1f}", f"{facts['p50']:.2f}", f"{facts['p95']:.2f}")
    table.add_row("times as fast", f"{load['times_as_fast']:.2f}", "", "")
    for layer, milliseconds in price["milliseconds"].items():
        table.add_row(f"one question, {layer}", "", f"{milliseconds / 1000:.3f}", "")
    table.add_row(f"MiB after {memory['requests']:,}", f"{memory['mebibytes'][-1]:,.0f}", "", "")
    table.add_row("MiB more a thousand", f"{memory['growth_per_thousand']:.1f}", "", "")
    return table


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    about = machine("torch", "transformers", "peft", "fastapi", "uvicorn")
    result = about | measure(DataLake.default(), given.questions, given.clients, given.requests, given.rounds)
    report("serve", result, table_of(result), given.write)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
