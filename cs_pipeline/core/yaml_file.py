"""Reads YAML files: settings and recipes that people write, and the words and patterns of this package's rules."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cs_pipeline.core.errors import PipelineError

_NAME = re.compile(r"(?<!\?P)<([A-Z_]+)>")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in the file ``path``. Raises PipelineError if it cannot be read, is not a mapping or repeats a key."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _UniqueKeys)
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise PipelineError(
            f"{path} cannot be read as YAML: {error}", "Fix the line that the message names."
        ) from error
    if not isinstance(content, dict):
        raise PipelineError(f"{path} contains no keys.", "Write 'key: value' lines; the documentation has an example.")
    return content


def any_of(
    block: str, words: Mapping[str, str] | None = None, flags: re.RegexFlag = re.IGNORECASE | re.MULTILINE
) -> re.Pattern[str]:
    """Compiles ``block`` into one pattern. Each line is a regular expression. The pattern matches what any line matches.

    An indented line continues the line above it. ``<NAME>`` stands for the block ``words["NAME"]``, which may
    contain other such names.
    """

    def expanded(block: str) -> str:
        joined = "|".join(re.sub(r"\n[ ]+", "", block).splitlines())
        return _NAME.sub(lambda name: f"(?:{expanded((words or {})[name[1]])})", joined)

    return re.compile(expanded(block), flags)


class Section(BaseModel):
    """A section of a file that people write. It is immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    @classmethod
    def validated(cls, content: dict[str, Any], path: Path, what: str, explained_in: str) -> Self:
        """``content`` as this section. Raises PipelineError naming the file ``path`` and the keys that are wrong.

        ``what`` is the kind of file, as in ``key_errors``; ``explained_in`` is the module that explains its keys.
        """
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise PipelineError(
                f"{path}: {key_errors(error, what)}.",
                f"Fix these keys; {explained_in} explains every key.",
            ) from None


def key_errors(error: ValidationError, what: str) -> str:
    """What is wrong with each key, joined by semicolons. ``what`` is the kind of file, such as "a recipe"."""
    return "; ".join(_sentence(single, what) for single in error.errors())


def _sentence(error: Any, what: str) -> str:
    # For a union, ``loc`` also has the tag or type that pydantic tried. That is not a key of the file, so it is left out.
    parts = [part for part in error["loc"] if "[" not in str(part)]
    if parts[:1] == ["base"]:
        del parts[1:2]
    if error["type"] == "union_tag_not_found":
        return "'base.source' is missing"
    key = ".".join(map(str, parts))
    if error["type"] == "extra_forbidden":
        return f"'{key}' is not a key of {what}"
    if error["type"] == "missing":
        return f"'{key}' is missing"
    message = error["msg"].removeprefix("Value error, ")
    return f"'{key}' {message[0].lower()}{message[1:]}" if key else message


class _UniqueKeys(yaml.SafeLoader):
    """Refuses a repeated key; PyYAML itself would silently keep the last one."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        for key in keys:
            if keys.count(key) > 1:
                raise yaml.constructor.ConstructorError(None, None, f"'{key}' appears twice", node.start_mark)
        return super().construct_mapping(node, deep)
