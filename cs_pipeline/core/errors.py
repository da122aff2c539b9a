"""Errors and check results with messages for the user."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias


class PipelineError(Exception):
    """An error that the user can fix. ``what`` says what happened and where, ``fix`` what to do.

    The command line prints it without a traceback; Dagster shows it as the failure message.
    """

    def __init__(self, what: str, fix: str) -> None:
        super().__init__(f"{what}\n  What to do: {fix}")
        self.what = what
        self.fix = fix


Status: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class CheckOutcome:
    """The result of a data check. ``facts`` are the values that it found; ``problem`` is a message for the user."""

    passed: bool
    facts: Mapping[str, Any]
    problem: str | None = None


@dataclass(frozen=True)
class Finding:
    """The result of a check of the machine. ``fix`` is None if it is ok. A problem stops the pipeline; a note does not."""

    name: str
    status: Status
    what: str
    fix: str | None = None


def without_secret(text: str) -> str:
    """``text`` with user names and passwords removed from its URLs."""
    return re.sub(r"(?<=://)[^\s/]*@", "", text)
