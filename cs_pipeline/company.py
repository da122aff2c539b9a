"""A company's settings: ``company.yaml`` in the lake. Without that file the defaults apply."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, field_validator, model_validator

from cs_pipeline.core.lake import DataLake
from cs_pipeline.core.yaml_file import Section, read_yaml
from cs_pipeline.text.placeholders import catalogue


def _check_expression(text: str) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"is not a regular expression: {error}") from None
    return text


def _canonical_name(name: str) -> str:
    canonical = catalogue().name_of(name)
    if canonical is None:
        raise ValueError(f"'{name}' is not in the catalogue, cs_pipeline/text/placeholders.yaml")
    return canonical


_Expression = Annotated[str, Field(min_length=1), AfterValidator(_check_expression)]


class Columns(Section):
    """The columns of a CSV, JSON Lines or Parquet file. Each row has either a question and its answer, or one turn.

    ``subject`` is what the conversation is about, such as "battery", and not the subject line of a mail.
    """

    question: str | None = None
    answer: str | None = None
    text: str | None = None
    speaker: str | None = None
    conversation: str | None = None
    customer_id: str | None = None
    customer_name: str | None = None
    customer_email: str | None = None
    subject: str | None = None

    @model_validator(mode="after")
    def _one_layout(self) -> "Columns":
        has_pair = self.question is not None and self.answer is not None
        has_turn = None not in (self.text, self.speaker, self.conversation)
        others = (self.text, self.speaker) if has_pair else (self.question, self.answer)
        if has_pair == has_turn or any(name is not None for name in others):
            raise ValueError("name either question and answer, or text, speaker and conversation")
        return self


class SubjectSettings(Section):
    """Where a help desk's export says what a conversation is about. Without these settings, nothing is taken from there.

    The field comes first. If it has no value, or several, the subject is the first of ``tags`` that the conversation
    carries.
    """

    field: str = Field(
        "",
        coerce_numbers_to_str=True,
        description="a custom field: its id in Zendesk, its id or name in Help Scout; or type, Zendesk's type of ticket",
    )
    tags: tuple[Annotated[str, Field(min_length=1, max_length=80)], ...] = Field(
        (), description="the tags that are subjects, the most important one first; all other tags are ignored"
    )


class OwnPattern(Section):
    """A regular expression for the company's own numbers, and the placeholder that replaces them."""

    placeholder: Annotated[str, AfterValidator(_canonical_name)]
    expression: _Expression


class RetrainSettings(Section):
    """When retraining is due."""

    new_rows: int = Field(200, ge=1, description="retraining is due after this many new usable rows")
    days: int = Field(30, ge=1, description="if the champion is this many days old, one new row is enough")


class _Values(dict[str, str]):
    """A hashable dictionary. Cached functions take the settings as an argument, so the settings must be hashable."""

    def __hash__(self) -> int:  # type: ignore[override]
        return hash(frozenset(self.items()))


class HandoverSettings(Section):
    """When a conversation is handed over to an agent, and which webhook is called. The lake's queue has every handover."""

    webhook: str = Field(
        "", pattern=r"^(?:https?://\S+)?$", description="URL that gets each handover as JSON; empty: only the queue"
    )
    false_share: float = Field(
        0.02,
        gt=0,
        lt=1,
        description="share of questions about known subjects that may be handed over as unknown; with a larger share, fewer "
        "unknown questions are answered",
    )

    @model_validator(mode="before")
    @classmethod
    def _no_former_key(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and "confidence" in content:
            raise ValueError(
                "has the key 'confidence', which is replaced by 'false_share': the share of questions about known subjects "
                "that may be handed over as unknown (0.02 by default)"
            )
        return content


class Company(Section):
    """The settings. Sizes are in bytes, shares from 0 to 1."""

    landing: str = Field("", description="a folder or an fsspec URL (s3://bucket/folder); empty: landing/ in the lake")
    files_per_tick: int = Field(20, ge=1, description="maximum files taken in one scan of the landing folder")
    file_bytes: int = Field(1_000_000_000, ge=1, description="larger files (unpacked) are refused")
    bad_share: float = Field(0.2, ge=0, le=1, description="share of unusable records above which a day is refused")
    columns: Columns | None = None
    subjects: SubjectSettings = SubjectSettings()
    agents: tuple[str, ...] = Field(
        ("agent", "support", "assistant", "staff", "representative"), description="speakers that are agents"
    )
    automatic: tuple[str, ...] = Field(("system", "bot", "automatic"), description="speakers that are not people")
    automatic_replies: tuple[_Expression, ...] = Field(
        (), description="regular expressions of automatic replies, in addition to the known ones"
    )
    patterns: tuple[OwnPattern, ...] = ()
    phone_regions: tuple[Annotated[str, Field(pattern=r"^[A-Z]{2}$")], ...] = Field(
        ("US", "GB", "DE", "FR", "ES", "IT", "IN", "AU"),
        description="countries of phone numbers without a country code",
    )
    bitext_share: float = Field(
        1.0,
        ge=0,
        le=1,
        description="share of Bitext's training rows that models learn from and look-ups answer with; with 0, Bitext's "
        "intents are unknown and its test rows are left out",
    )
    rows_per_subject: int = Field(20, ge=1, description="maximum training rows per customer and day")
    price_per_hour: float | None = Field(
        None, ge=0, description="cost per hour of the machine that answers, in any currency; shown in reports"
    )
    retention_days: int = Field(30, ge=1, description="days that raw deliveries are kept")
    retrain: RetrainSettings = RetrainSettings()
    values: Mapping[str, str] = Field(
        _Values(), description="values of placeholders in every answer, by name: {Company Name: Brightmart}"
    )
    handover: HandoverSettings = HandoverSettings()
    topics: tuple[Annotated[str, Field(pattern=r"^[^{}\n]+$")], ...] = Field(
        ("orders", "deliveries", "payments", "refunds", "invoices", "accounts"),
        min_length=1,
        description="what customers can ask about; fixed replies to other messages name these topics",
    )

    @field_validator("values")
    @classmethod
    def _canonical_names(cls, values: Mapping[str, str]) -> Mapping[str, str]:
        for name, value in values.items():
            if not re.fullmatch(r"[^{}\n]+", value):
                raise ValueError(f"'{name}' needs a value on one line, without braces")
        named = _Values({_canonical_name(name): value for name, value in values.items()})
        if len(named) < len(values):
            raise ValueError("two of the names are spellings of the same placeholder")
        return named

    @property
    def own_patterns(self) -> list[tuple[str, str]]:
        """``patterns`` as pairs of placeholder and expression."""
        return [(pattern.placeholder, pattern.expression) for pattern in self.patterns]


def company_file(lake: DataLake) -> Path:
    """The path of the settings file."""
    return lake.root / "company.yaml"


def load_company(lake: DataLake) -> Company:
    """The company's settings. Raises PipelineError naming the file and the key that is wrong."""
    path = company_file(lake)
    if not path.exists():
        return Company()
    return Company.validated(read_yaml(path), path, "company.yaml", "cs_pipeline/company.py")
