"""How the server runs: options of the command, else environment variables ``CS_SERVE_…``, else these defaults."""

import os
from ipaddress import ip_address
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.yaml_file import key_errors

PREFIX = "CS_SERVE_"


def _words(value: object) -> object:
    return tuple(word for word in value.replace(",", " ").split() if word) if isinstance(value, str) else value


class ServeSettings(BaseModel):
    """Each may be given as ``CS_SERVE_`` and its name in capitals; ``origins`` then as words with commas or spaces."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(
        "127.0.0.1", min_length=1, description="where to listen; elsewhere than on this machine with a key"
    )
    port: int = Field(8000, ge=1, le=65535)
    key: SecretStr = Field(SecretStr(""), description="what a client has to send; empty: nothing")
    origins: Annotated[tuple[str, ...], BeforeValidator(_words)] = Field(
        (), description="pages elsewhere whose scripts may call the API (CORS)"
    )
    queue: int = Field(256, ge=1, description="questions inside at once; one more is told to come again")
    seconds: float = Field(60, gt=0, description="from a question to the end of its answer")
    memory_gb: float | None = Field(None, gt=0, description="for weights; null: half the memory, or 4/5 of the GPU's")
    poll_seconds: float = Field(2, gt=0, description="between two looks at the champion's alias")
    log_text: bool = Field(False, description="questions and answers stand in the log")

    @property
    def local(self) -> bool:
        """Whether this machine alone can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _a_key_where_others_reach_it(self) -> "ServeSettings":
        if not self.local and len(self.key.get_secret_value()) < SHORTEST_KEY:
            raise ValueError(
                f"'{self.host}' can be reached from other machines, and that takes a key of {SHORTEST_KEY} "
                f"characters or more ({PREFIX}KEY)"
            )
        return self


SHORTEST_KEY = 16


def load_settings(host: str | None = None, port: int | None = None) -> ServeSettings:
    """The settings; what is given here goes before the environment. Raises PipelineError naming what is wrong."""
    given = {name: os.environ[f"{PREFIX}{name.upper()}"] for name in ServeSettings.model_fields if _set(name)}
    options = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    try:
        return ServeSettings.model_validate({**given, **options})
    except ValidationError as error:
        raise PipelineError(
            f"The server's settings: {key_errors(error, 'the settings')}.",
            f"Fix the option, or the environment variable {PREFIX} and the name in capitals.",
        ) from None


def _set(name: str) -> bool:
    return bool(os.environ.get(f"{PREFIX}{name.upper()}"))
