"""What a look at the machine, the stores or a recipe has found, for people."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """What was found, and what to do where it is not ok. A note is no obstacle; a problem is."""

    name: str
    status: Status
    what: str
    mend: str | None = None
