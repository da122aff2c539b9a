"""Why a question is not answered now: errors that the API turns into a status, and the page into a sentence."""

from collections.abc import Sequence

from cs_pipeline.core.errors import PipelineError


class Refusal(PipelineError):  # noqa: N818  (no fault of anybody)
    """A question that is not answered, through no fault of the program."""


class Busy(Refusal):
    """As many questions wait as may. ``retry_after`` are the seconds after which there is probably room."""

    def __init__(self, retry_after: int) -> None:
        super().__init__("Too many questions are being answered.", f"Ask again in {retry_after} s.")
        self.retry_after = retry_after


class NotReady(Refusal):
    """No such model stands ready: there is no champion yet, it does not load, or there is no memory for it now."""

    def __init__(self, what: str, fix: str, retry_after: int) -> None:
        super().__init__(what, fix)
        self.retry_after = retry_after


class TooLong(Refusal):
    """The question, with what goes before it, leaves the model no room for an answer, or is more than the desk reads."""

    def __init__(self, length: int, most: int, unit: str = "tokens") -> None:
        super().__init__(f"The question takes {length:,} {unit}; {most:,} can be read.", "Ask more briefly.")


class UnknownModel(Refusal):
    """No model has this name. ``names`` are those there are; what was asked for is not repeated."""

    def __init__(self, names: Sequence[str]) -> None:
        super().__init__("There is no such model.", f"Choose one of: {', '.join(names) or 'none is registered yet'}.")
        self.names = tuple(names)
