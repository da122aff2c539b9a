"""Regular expressions kept as blocks of lines in YAML files."""

import re
from collections.abc import Mapping

_NAME = re.compile(r"(?<!\?P)<([A-Z_]+)>")


def any_of(
    block: str, words: Mapping[str, str] | None = None, flags: re.RegexFlag = re.IGNORECASE | re.MULTILINE
) -> re.Pattern[str]:
    """One pattern that matches where any line of ``block`` does.

    An indented line continues the line above it. ``<NAME>`` stands for the block ``words["NAME"]``, which may hold names.
    """

    def expanded(block: str) -> str:
        joined = "|".join(re.sub(r"\n[ ]+", "", block).splitlines())
        return _NAME.sub(lambda name: f"(?:{expanded((words or {})[name[1]])})", joined)

    return re.compile(expanded(block), flags)
