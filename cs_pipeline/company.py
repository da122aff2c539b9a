"""What a company says of its own conversations: ``company.yaml`` in the lake. Without the file the defaults hold."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from cs_pipeline.core.errors import PipelineError
from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.yaml_file import key_errors, read_yaml
from cs_pipeline.text.placeholders import catalogue


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is no regular expression: {error}") from None
    return text


def _known(name: str) -> str:
    known = catalogue().name_of(name)
    if known is None:
        raise ValueError(f"'{name}' is not in the catalogue, cs_pipeline/text/placeholders.yaml")
    return known


class Columns(_Part):
    """Which column of a CSV, JSON Lines or Parquet file holds what: a question and its answer, or one turn a row."""

    question: str | None = None
    answer: str | None = None
    text: str | None = None
    speaker: str | None = None
    conversation: str | None = None
    customer_id: str | None = None
    customer_name: str | None = None
    customer_email: str | None = None

    @model_validator(mode="after")
    def _one_shape(self) -> "Columns":
        pair = self.question is not None and self.answer is not None
        turn = None not in (self.text, self.speaker, self.conversation)
        if pair == turn:
            raise ValueError("name either question and answer, or text, speaker and conversation")
        return self


class OwnPattern(_Part):
    """What the company's own numbers look like, and the placeholder that takes their place."""

    placeholder: str
    expression: str

    _compiles = field_validator("expression")(_expression)
    _is_known = field_validator("placeholder")(_known)


class RetrainSettings(_Part):
    """When a new training is due."""

    new_rows: int = Field(200, ge=1, description="usable rows since the champion's training")
    days: int = Field(30, ge=1, description="the champion's age from which on a single new row is enough")


class _Values(dict[str, str]):
    """Settings are read by functions that remember what they were given, and must have a hash."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class HandoverSettings(_Part):
    """When a person takes a conversation over, and where it is reported beside the queue in the lake."""

    webhook: str = Field(
        "", pattern=r"^(?:https?://\S+)?$", description="URL that is sent each handover as JSON; empty: the queue alone"
    )
    confidence: float = Field(0.2, ge=0, le=1, description="of a question's intent, below which a person takes over")


class Company(_Part):
    """The settings. Sizes are bytes, shares between 0 and 1."""

    landing: str = Field("", description="a folder or an fsspec URL (s3://bucket/folder); empty: landing/ in the lake")
    files_per_tick: int = Field(20, ge=1, description="files taken by one look at the landing place")
    file_bytes: int = Field(1_000_000_000, ge=1, description="a larger file, unpacked, is refused")
    bad_share: float = Field(0.2, ge=0, le=1, description="share of unusable records above which a day is not used")
    columns: Columns | None = None
    agents: tuple[str, ...] = Field(
        ("agent", "support", "assistant", "staff", "representative"), description="speakers that are agents"
    )
    automatic: tuple[str, ...] = Field(("system", "bot", "automatic"), description="speakers that are no people")
    automatic_replies: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        (), description="regular expressions of replies that no person wrote, beside the known ones"
    )
    patterns: tuple[OwnPattern, ...] = ()
    phone_regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field(
        ("US", "GB", "DE", "FR", "ES", "IT", "IN", "AU"), description="where numbers without +country are from"
    )
    rows_per_subject: int = Field(20, ge=1, description="rows of one customer and day that may train")
    price_per_hour: float | None = Field(
        None, ge=0, description="what an hour of the machine that answers costs, in any currency; reports show the cost"
    )
    retention_days: int = Field(30, ge=1, description="days that raw deliveries are kept")
    retrain: RetrainSettings = RetrainSettings()
    values: Mapping[str, str] = Field(
        _Values(), description="what placeholders stand for in every answer, by name: {Company Name: Brightmart}"
    )
    handover: HandoverSettings = HandoverSettings()

    @field_validator("automatic_replies")
    @classmethod
    def _compile(cls, expressions: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(_expression, expressions))

    @field_validator("values")
    @classmethod
    def _by_name(cls, values: Mapping[str, str]) -> Mapping[str, str]:
        for name, value in values.items():
            if not re.fullmatch(r"[^{}\n]+", value):
                raise ValueError(f"'{name}' needs a value on one line, without braces")
        named = _Values({_known(name): value for name, value in values.items()})
        if len(named) < len(values):
            raise ValueError("one placeholder has two values, under two of its spellings")
        return named

    @property
    def own_patterns(self) -> list[tuple[str, str]]:
        """``patterns`` as pairs of a placeholder and an expression."""
        return [(pattern.placeholder, pattern.expression) for pattern in self.patterns]


def company_file(lake: DataLake) -> Path:
    """Where the settings lie."""
    return lake.root / "company.yaml"


def load_company(lake: DataLake) -> Company:
    """The company's settings. Raises PipelineError naming the file and the key that is wrong."""
    path = company_file(lake)
    if not path.exists():
        return Company()
    try:
        return Company.model_validate(read_yaml(path))
    except ValidationError as error:
        raise PipelineError(
            f"{path}: {key_errors(error, 'company.yaml')}.",
            "Fix these keys; every key and its meaning stands in cs_pipeline/company.py.",
        ) from None
