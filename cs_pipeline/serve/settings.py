"""Server settings: command-line options, else environment variables ``CS_SERVE_…``, else these defaults."""

import os
from ipaddress import ip_address
from typing import Annotated

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError, model_validator

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.yaml_file import key_errors

_PREFIX = "CS_SERVE_"
_MIN_KEY_LENGTH = 16


def _split_words(value: object) -> object:
    return tuple(value.replace(",", " ").split()) if isinstance(value, str) else value


class ServeSettings(BaseModel):
    """Each setting is also the environment variable ``CS_SERVE_`` plus its name in capitals.

    In the variable, ``origins`` is a list separated by commas or spaces.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    host: str = Field(
        "127.0.0.1", min_length=1, description="address to listen on; any address but localhost requires a key"
    )
    port: int = Field(8000, ge=1, le=65535)
    key: SecretStr = Field(SecretStr(""), description="key that clients must send; empty: none")
    origins: Annotated[tuple[str, ...], BeforeValidator(_split_words)] = Field(
        (), description="other sites whose scripts may call the API (CORS)"
    )
    queue: int = Field(256, ge=1, description="questions that may wait or be answered at once; more get status 429")
    seconds: float = Field(60, gt=0, description="time limit from a question to the end of its answer")
    memory_gb: float | None = Field(
        None, gt=0, description="memory for weights; null: half the memory, or 4/5 of the GPU's"
    )
    poll_seconds: float = Field(2, gt=0, description="seconds between checks of the champion's alias")
    log_text: bool = Field(False, description="write questions and answers to the log")

    @property
    def local(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    @model_validator(mode="after")
    def _require_key_beyond_this_machine(self) -> "ServeSettings":
        if not self.local and len(self.key.get_secret_value()) < _MIN_KEY_LENGTH:
            raise ValueError(
                f"'{self.host}' can be reached from other machines, so the server needs a key of {_MIN_KEY_LENGTH} "
                f"characters or more ({_PREFIX}KEY)"
            )
        return self


def load_settings(host: str | None = None, port: int | None = None) -> ServeSettings:
    """The settings. The arguments take precedence over the environment. Raises PipelineError naming each invalid setting."""
    variables = {name: os.environ.get(f"{_PREFIX}{name.upper()}") for name in ServeSettings.model_fields}
    values = {name: value for name, value in variables.items() if value}
    options = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    try:
        return ServeSettings.model_validate({**values, **options})
    except ValidationError as error:
        raise PipelineError(
            f"The server's settings are wrong: {key_errors(error, 'the settings')}.",
            f"Fix the option, or the environment variable {_PREFIX} plus the name in capitals.",
        ) from None
