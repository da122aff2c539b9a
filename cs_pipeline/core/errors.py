"""Errors and findings that are written for people."""

import re
from dataclasses import dataclass
from typing import Literal, TypeAlias


class PipelineError(Exception):
    """Something the user can fix: what happened and where, then what to do.

    The command line prints it without a traceback; Dagster shows it as the failure's message.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n  What to do: {fix}")
        self.what = what
        self.fix = fix


Status: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do where it is not ok. A note is no obstacle; a problem is."""

    name: str
    status: Status
    what: str
    fix: str | None = None


def without_secret(text: str) -> str:
    """``text`` without user and password in the addresses that it holds."""
    return re.sub(r"(?<=://)[^\s/]*@", "", text)
