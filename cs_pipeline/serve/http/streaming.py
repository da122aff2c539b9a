"""Waiting for an answer in a thread, and knowing at once when the client waits no more."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TypeVar

from fastapi import Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive

_T = TypeVar("_T")


async def wait_for_answer(request: Request, reply: Callable[[threading.Event], _T]) -> _T:
    """What ``reply`` returns in a thread; its event is set when the client hangs up."""
    async with _watched(request) as gone:
        return await run_in_threadpool(reply, gone)


@asynccontextmanager
async def _watched(request: Request) -> AsyncIterator[threading.Event]:
    gone = threading.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watching = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watching.cancel()


class EventStream(StreamingResponse):
    """Server-sent events (HTML standard, section 9.2), each the data of one; ``gone`` is set when the client hangs up."""

    media_type = "text/event-stream"

    def __init__(self, events: Iterator[str], gone: threading.Event) -> None:
        super().__init__((f"data: {event}\n\n" for event in events), headers={"Cache-Control": "no-store"})
        self._gone = gone

    async def listen_for_disconnect(self, receive: Receive) -> None:
        await super().listen_for_disconnect(receive)
        self._gone.set()
