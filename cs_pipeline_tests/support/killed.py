"""Kills work with SIGKILL at every line before which the disk has changed.

A child process counts the lines that it executes in the traced files. A first child records before which lines the disk
has changed; then, for each of these lines, a child kills itself there. A kill at any other line would leave the same disk.
"""

import json
import os
import signal
import sys
import time
import zlib
from collections.abc import Callable, Collection
from pathlib import Path
from types import FrameType
from typing import Any

Work = Callable[[], object]

_CLOCK_RESOLUTION = 50_000_000  # nanoseconds, with a margin: file times tick every 1 to 10 ms


def kill_points(work: Work, folder: Path, traced: Collection[str]) -> list[int]:
    """The first line of ``work``, the lines before which a file in ``folder`` has changed, and 0 for the end."""
    found: list[int] = []
    seen: object = None
    known: dict[Path, tuple[int, int]] = {}
    reading, writing = os.pipe()

    def look(line: int) -> None:
        nonlocal seen
        state = [_state(path, known) for path in sorted(folder.rglob("*")) if path.is_file()]
        if state != seen or line == 0:
            found.append(line)
            seen = state
        if line == 0:
            os.write(writing, json.dumps(found).encode())

    status = _in_a_child(work, traced, look)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert os.waitstatus_to_exitcode(status) == 0, "the work itself must not fail"
        points: list[int] = json.loads(pipe.read())
    return points


def kill(work: Work, point: int, traced: Collection[str]) -> None:
    """Runs ``work`` in a child process that is killed before line ``point``."""

    def die(line: int) -> None:
        if line == point:
            os.kill(os.getpid(), signal.SIGKILL)

    assert os.WIFSIGNALED(_in_a_child(work, traced, die))


def _in_a_child(work: Work, traced: Collection[str], at_line: Callable[[int], None]) -> int:
    """Runs ``work`` in a forked process that calls ``at_line`` with the number of each line; returns the wait status."""
    pid = os.fork()
    if pid:
        return os.waitpid(pid, 0)[1]
    lines = 0

    def local(frame: FrameType, event: str, arg: Any) -> Any:
        nonlocal lines
        if event == "line":
            lines += 1
            at_line(lines)
        return local

    status = 1
    try:
        sys.settrace(lambda frame, event, arg: local if frame.f_code.co_filename in traced else None)
        work()
        sys.settrace(None)
        at_line(0)
        status = 0
    finally:
        os._exit(status)


def _state(path: Path, known: dict[Path, tuple[int, int]]) -> tuple[Path, int, int]:
    """Path, time and hash of a file. It is read again if it has changed, or so recently that its time cannot tell."""
    stat = path.stat()
    if known.get(path, (0, 0))[0] != stat.st_ctime_ns or time.time_ns() - stat.st_ctime_ns < _CLOCK_RESOLUTION:
        known[path] = stat.st_ctime_ns, zlib.crc32(path.read_bytes())
    return path, stat.st_mtime_ns, known[path][1]
