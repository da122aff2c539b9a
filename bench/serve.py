"""Serving a fine-tune: in micro-batches and one answer at a time; the overhead of HTTP; the growth of memory.

    python -m bench.serve [--questions 96] [--clients 32] [--requests 2000] [--rounds 3] [--write]

It serves the champion of the lake (CS_LAKE, by default the project's), so run ``make demo`` first. A look-up has no batches:
if one is champion, the newest fine-tune is measured. The server is a separate process with two apps: one as shipped, and one
whose batches hold a single row. Both get the same questions from the
same number of concurrent clients and must give the same answers in float32. To measure the overhead of each layer, a single
client sends one question after the other to the bare model, the engine, the desk, and POST /chat.
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
from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.llm.base import base_of_version
from cs_pipeline.llm.model import SupportModel, compute_dtype
from cs_pipeline.recipe import FineTuneRecipe, read_fine_tune_recipe, read_recipe
from cs_pipeline.retrieval.router import prompt_intents
from cs_pipeline.serve.desk.desk import Desk, DeskRequest
from cs_pipeline.serve.models.jobs import Sampling
from cs_pipeline.serve.models.pool import LoadedLanguageModel, memory_limit
from cs_pipeline.serve.models.service import ModelService
from cs_pipeline.serve.settings import ServeSettings
from cs_pipeline.tracking import Version, champion_number, find_versions, get_version, open_store

BATCHED, SINGLE = "micro-batched", "one at a time"
LAYERS = ("model", "engine", "desk", "HTTP")
SAMPLE_EVERY = 100
"""Requests between two readings of the server's memory."""
MAX_GROWTH = 20.0
"""Maximum growth of memory in MiB per thousand requests, in the second half of the run."""
TIMEOUT = 600
"""Time limit of an answer in seconds, long enough that none is cut off on a busy machine."""


@dataclass(frozen=True)
class TimedReply:
    """A response and the seconds it took."""

    text: str
    author: str
    seconds: float


def measured_version(lake: DataLake) -> Version:
    """The champion if it is a fine-tune, else the newest fine-tune. Raises PipelineError if there is none."""
    client = open_store(lake)
    champion = champion_number(client)
    newest_first = [int(version.version) for version in reversed(find_versions(client))]
    for number in sorted(newest_first, key=lambda number: number != champion):
        version = get_version(client, number)
        if isinstance(read_recipe(version.folder / "adapter" / "recipe.yaml"), FineTuneRecipe):
            return version
    raise PipelineError("No fine-tune is registered yet.", "Run the full pipeline first: make demo")


class Server:
    """The server process with both apps. ``urls`` maps the arms' names to their addresses; ``model`` is the measured one."""

    def __init__(self, lake: DataLake) -> None:
        self.model = str(measured_version(lake).version)
        ports = [_free_port(), _free_port()]
        self.urls = {arm: f"http://127.0.0.1:{port}" for arm, port in zip((BATCHED, SINGLE), ports, strict=True)}
        call = f"serve_both('{self.model}', {ports[0]}, {ports[1]})"
        command = [sys.executable, "-c", f"from bench.serve import serve_both; {call}"]
        self._process = subprocess.Popen(command, env=os.environ | {"CS_LAKE": str(lake.root)}, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError("the server did not start; its log above says why")

    def ask(self, arm: str, question: str, *, base: bool = False) -> TimedReply:
        """Asks the model, or its ``base``, one question over HTTP, on a new connection."""
        started = time.perf_counter()
        body = {"user_input": question, "model_name": f"{self.model}:base" if base else self.model}
        response = requests.post(f"{self.urls[arm]}/chat", json=body, timeout=TIMEOUT)
        seconds = time.perf_counter() - started
        response.raise_for_status()
        answer = response.json()
        return TimedReply(answer["response"], answer["author"], seconds)

    def ask_all(self, arm: str, questions: Sequence[str], clients: int) -> list[TimedReply]:
        """Asks all questions with ``clients`` concurrent clients; the responses are in the order of the questions."""
        with ThreadPoolExecutor(clients) as pool:
            return list(pool.map(lambda question: self.ask(arm, question), questions))

    def memory(self) -> float:
        """Memory of the process in MiB."""
        return psutil.Process(self._process.pid).memory_info().rss / 2**20

    def close(self) -> None:
        self._process.terminate()
        self._process.communicate()


def serve_both(model: str, *ports: int) -> None:
    """Runs the server process with ``model`` loaded: the app as shipped, and one whose batches hold one row."""
    from cs_pipeline.serve.server import uvicorn_server

    async def run() -> None:
        servers = [uvicorn_server(ServeSettings(port=port, seconds=TIMEOUT), DataLake.default()) for port in ports]
        tasks = [asyncio.create_task(server.serve()) for server in servers]
        apps: list[Any] = [server.config.app for server in servers]
        _, single = [await _loaded(app.state.service, model) for app in apps]
        single.variant = replace(single.variant, max_rows=1)
        while not all(server.started for server in servers):
            await asyncio.sleep(0.1)
        print("ready", flush=True)  # noqa: T201
        await asyncio.gather(*tasks)

    asyncio.run(run())


async def _loaded(service: ModelService, model: str) -> LoadedLanguageModel:
    while model not in service.registry.names():
        await asyncio.sleep(0.1)
    loaded = service.pool.hold(service.served(model))
    assert isinstance(loaded, LoadedLanguageModel)
    return loaded


def batches(server: Server, questions: Sequence[str], clients: int, rounds: int) -> dict[str, Any]:
    """Requests per second and p95 of both arms. Raises AssertionError if their answers differ."""
    arms: dict[str, Callable[[], list[TimedReply]]] = {
        arm: lambda arm=arm: server.ask_all(arm, questions, clients)  # type: ignore[misc]
        for arm in (BATCHED, SINGLE)
    }
    ran = in_turn(arms, rounds)
    # The desk's own replies may contain the reference of a handover, which always differs.
    texts = {
        arm: [reply.text if reply.author == "model" else "" for reply in measured.computed[-1]]
        for arm, measured in ran.items()
    }
    differ = sum(a != b for a, b in zip(*texts.values(), strict=True))
    assert not differ or compute_dtype().itemsize < 4, f"{differ} of {len(questions)} answers depend on the batch"
    facts = {}
    for arm, measured in ran.items():
        seconds = [reply.seconds for replies in measured.computed for reply in replies]
        facts[arm] = measured.facts() | {
            "requests_per_second": len(questions) / measured.median,
            "p50": statistics.median(seconds),
            "p95": float(np.quantile(seconds, 0.95)),
        }
    return {
        "clients": clients,
        "questions": len(questions),
        "by_the_model": sum(reply.author == "model" for reply in ran[BATCHED].computed[-1]) / len(questions),
        "texts_that_differ": differ,
        "arms": facts,
        "times_as_fast": ratio(ran[SINGLE], ran[BATCHED])["clock"],
    }


def layers(server: Server, questions: Sequence[str], lake: DataLake, rounds: int) -> dict[str, Any]:
    """Milliseconds per question through each of LAYERS, one question at a time. Each layer contains those before it."""
    version = measured_version(lake)
    adapter = version.folder / "adapter"
    recipe = read_fine_tune_recipe(adapter / "recipe.yaml")
    base = base_of_version(recipe, version.folder)
    assert base is not None
    model = SupportModel(recipe, base, adapter)
    intents = dict(zip(questions, prompt_intents(recipe, adapter, None)(questions), strict=True))
    service = ModelService(lake, memory_limit(None), 10, TIMEOUT, 10, id)
    asyncio.run(_loaded(service, server.model))
    desk = Desk(service, load_company(lake), lake)
    # The desk answers some questions without the model, which would make it look faster than the layers below.
    asked = [q for q in questions if desk.reply(DeskRequest(q, model=server.model)).author == "model"]
    arms: dict[str, Callable[[], object]] = {
        "model": lambda: [model.answer([q], [intents[q]], [()]) for q in asked],
        "engine": lambda: [service.start(server.model, q, (), Sampling()).text() for q in asked],
        "desk": lambda: [desk.reply(DeskRequest(q, model=server.model)) for q in asked],
        "HTTP": lambda: [server.ask(BATCHED, q) for q in asked],
    }
    ran = in_turn(arms, rounds)
    desk.close()
    service.close()
    each = {layer: 1000 * ran[layer].median / len(asked) for layer in LAYERS}
    return {"questions": len(asked), "milliseconds": each, "http_over_desk": each["HTTP"] - each["desk"]}


def memory_growth(server: Server, questions: Sequence[str], clients: int, count: int) -> dict[str, Any]:
    """The server's memory over ``count`` requests to the model and its base. Raises AssertionError if it keeps growing."""
    sizes = [server.memory()]
    with ThreadPoolExecutor(clients) as pool:
        for start in range(0, count, SAMPLE_EVERY):
            numbers = range(start, min(start + SAMPLE_EVERY, count))
            list(pool.map(lambda i: server.ask(BATCHED, questions[i % len(questions)], base=i % 2 == 1), numbers))
            sizes.append(server.memory())
    later = sizes[len(sizes) // 2 :]
    growth = float(np.polyfit(range(len(later)), later, 1)[0]) * 1000 / SAMPLE_EVERY if len(later) > 1 else 0.0
    assert growth < MAX_GROWTH, f"a thousand requests add {growth:.1f} MiB: {sizes}"
    return {"requests": count, "mebibytes": [round(size, 1) for size in sizes], "growth_per_thousand": growth}


def measure(lake: DataLake, questions: int, clients: int, count: int, rounds: int) -> dict[str, Any]:
    """Runs all three parts on the first test questions of ``lake``, in random order."""
    texts = lake.read("prepare", "test_split", ["instruction"])["instruction"].to_pylist()
    asked = [texts[i] for i in np.random.default_rng(0).permutation(len(texts))[:questions]]
    server = Server(lake)
    try:
        return {
            "batches": batches(server, asked, clients, rounds),
            "layers": layers(server, asked[: max(8, questions // 4)], lake, rounds),
            "memory": memory_growth(server, asked, clients, count),
        }
    finally:
        server.close()


def table_of(result: dict[str, Any]) -> Table:
    """The figures as a table."""
    load, layers, memory = result["batches"], result["layers"], result["memory"]
    title = f"{load['questions']} questions from {load['clients']} concurrent clients"
    table = Table("serving", "requests/s", "p50 s", "p95 s", title=title)
    for arm, facts in load["arms"].items():
        table.add_row(arm, f"{facts['requests_per_second']:.1f}", f"{facts['p50']:.2f}", f"{facts['p95']:.2f}")
    table.add_row("times as fast", f"{load['times_as_fast']:.2f}", "", "")
    for layer, milliseconds in layers["milliseconds"].items():
        table.add_row(f"one question, {layer}", "", f"{milliseconds / 1000:.3f}", "")
    table.add_row(f"MiB after {memory['requests']:,} requests", f"{memory['mebibytes'][-1]:,.0f}", "", "")
    table.add_row("MiB added per 1,000 requests", f"{memory['growth_per_thousand']:.1f}", "", "")
    return table


def main() -> None:
    """Measures and prints; with --write, saves the result."""
    parser = arguments(__doc__, rounds=3)
    parser.add_argument("--questions", type=int, default=96)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--requests", type=int, default=2000)
    given = parser.parse_args()
    conditions = machine("torch", "transformers", "peft", "fastapi", "uvicorn")
    result = conditions | measure(DataLake.default(), given.questions, given.clients, given.requests, given.rounds)
    report("serve", result, table_of(result), given.write)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    main()
